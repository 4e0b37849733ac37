//! Blocking reads: who wakes, who does not, and what a stop does to them.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use muster_catalog::{Freshness, Status, Timestamp};
use support::{House, request};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

#[tokio::test]
async fn a_parked_read_wakes_for_its_own_service_and_not_for_others() {
    let house = House::start().await;
    house.catalog.push("n1", "web", &[], Status::Passing);
    house.catalog.push("n2", "other", &[], Status::Passing);
    let index = house.get("/v1/health/service/web").await.index();
    let before = house.subscriptions();
    let address = house.handle.address;
    let path = format!("/v1/health/service/web?index={index}&wait=60s");
    let parked = tokio::spawn(async move { request(address, "GET", &path, "").await });
    house.until_subscribed(before).await;
    house.catalog.push("n2", "other", &["new"], Status::Passing);
    // Another request goes all the way through meanwhile; a wake would have taken a new place among the waiters.
    assert_eq!(house.get("/v1/catalog/service/other").await.status, 200);
    assert_eq!(house.subscriptions(), before + 1);
    assert!(!parked.is_finished());
    house.catalog.push("n1", "web", &["new"], Status::Passing);
    let reply = parked.await.unwrap();
    assert!(reply.index() > index);
    assert_eq!(reply.json()[0]["Service"]["Tags"][0], "new");
}

#[tokio::test]
async fn parked_reads_that_wake_together_share_what_they_ask_alike_and_nothing_else() {
    let house = House::start().await;
    house.catalog.push("n1", "web", &[], Status::Passing);
    house.catalog.push("n2", "web", &["v2"], Status::Passing);
    for (round, status) in [Status::Critical, Status::Passing].into_iter().enumerate() {
        let index = house.get("/v1/health/service/web").await.index();
        let mut parked = Vec::new();
        for asked in ["wait=60s", "wait=59s&stale", "wait=60s&passing", "wait=60s&tag=v2"] {
            let (address, before) = (house.handle.address, house.subscriptions());
            let path = format!("/v1/health/service/web?index={index}&{asked}");
            parked.push(tokio::spawn(async move { request(address, "GET", &path, "").await }));
            house.until_subscribed(before).await;
        }
        house.catalog.push("n1", "web", &[], status);
        let mut replies = Vec::new();
        for reply in parked {
            replies.push(reply.await.unwrap());
        }
        let rows = |at: usize| replies[at].json().as_array().unwrap().len();
        assert_eq!((rows(0), rows(1), rows(2), rows(3)), (2, 2, 1 + round, 1), "round {round}");
        assert_eq!(replies[0].text, replies[1].text);
        let consistency = |at: usize| replies[at].header("x-consul-effective-consistency");
        assert_eq!((consistency(0), consistency(1)), ("leader", "stale"), "headers are each one's own");
    }
}

#[tokio::test]
async fn a_wait_that_ends_gives_the_same_answer_at_the_same_index() {
    let house = House::start().await;
    house.catalog.push("n1", "web", &[], Status::Passing);
    let first = house.get("/v1/health/service/web").await;
    let started = Instant::now();
    let path = format!("/v1/health/service/web?index={}&wait=200ms", first.index());
    let second = house.get(&path).await;
    assert!(started.elapsed() >= Duration::from_millis(200));
    assert_eq!((second.index(), second.text), (first.index(), first.text.clone()));
    let ahead = house.get("/v1/health/service/web?index=99999&wait=10ms").await;
    assert_eq!(ahead.index(), first.index());
}

#[tokio::test]
async fn the_index_is_never_zero_and_an_absent_service_can_be_waited_for() {
    let house = House::start().await;
    for path in ["/v1/health/service/web", "/v1/catalog/nodes", "/v1/catalog/services", "/v1/health/state/any"] {
        assert_eq!(house.get(path).await.index(), 1, "{path}");
    }
    house.catalog.push("n2", "other", &[], Status::Passing);
    let before = house.subscriptions();
    let address = house.handle.address;
    let parked =
        tokio::spawn(async move { request(address, "GET", "/v1/health/service/web?index=1&wait=60s", "").await });
    house.until_subscribed(before).await;
    house.catalog.push("n1", "web", &[], Status::Passing);
    assert_eq!(parked.await.unwrap().json().as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_stop_releases_parked_reads_and_a_client_that_goes_leaves_no_waiter() {
    let house = House::start().await;
    house.catalog.push("n1", "web", &[], Status::Passing);
    let address = house.handle.address;
    let before = house.subscriptions();
    let gone = tokio::spawn(async move { request(address, "GET", "/v1/catalog/nodes?index=9", "").await });
    house.until_subscribed(before).await;
    assert_eq!(house.catalog.waiters.topic_count(), 1);
    gone.abort();
    let _ = gone.await;
    let parked = tokio::spawn(async move { request(address, "GET", "/v1/catalog/services?index=9", "").await });
    house.until_subscribed(before + 1).await;
    house.shutdown.cancel();
    assert_eq!(parked.await.unwrap().status, 200);
    house.handle.task.await.unwrap();
    assert_eq!(house.catalog.waiters.topic_count(), 0);
}

#[tokio::test]
async fn a_parked_read_fails_when_the_registry_is_lost_and_a_stale_one_waits_on() {
    let house = House::start().await;
    house.catalog.push("n1", "web", &[], Status::Passing);
    let (address, before) = (house.handle.address, house.subscriptions());
    let path = "/v1/health/service/web?index=1&wait=100ms";
    let default = tokio::spawn(async move { request(address, "GET", path, "").await });
    house.until_subscribed(before).await;
    house.catalog.set_freshness(Freshness::Stale { since: Timestamp(1) });
    let reply = default.await.unwrap();
    assert_eq!(reply.status, 500);
    assert!(reply.text.starts_with("No cluster leader"), "{}", reply.text);
    let stale = house.get("/v1/health/service/web?index=1&wait=10ms&stale").await;
    assert_eq!((stale.status, stale.header("x-consul-knownleader")), (200, "false"));
}

#[tokio::test]
async fn a_parked_read_says_that_the_registry_refuses_what_is_held() {
    let house = House::start().await;
    house.catalog.push("n1", "web", &[], Status::Passing);
    let (address, before) = (house.handle.address, house.subscriptions());
    let path = "/v1/health/service/web?index=1&wait=100ms";
    let default = tokio::spawn(async move { request(address, "GET", path, "").await });
    house.until_subscribed(before).await;
    house.catalog.refuse("entries that it had acknowledged are lost");
    let reply = default.await.unwrap();
    assert_eq!(reply.status, 503);
    assert!(reply.text.contains("acknowledged are lost"), "{}", reply.text);
}

/// How many parked reads the memory is measured with: both ends of each are descriptors of this process.
const PARKED: u64 = 400;
/// What one may take, with its connection: 10,000 fit into 100 MB, in a debug build and without its kernel's part. With
/// hyper's buffers they do not.
const MOST_BYTES: u64 = 10 * 1024;

#[cfg(target_os = "linux")]
#[tokio::test]
async fn parked_reads_are_cheap() {
    let house = House::start().await;
    house.catalog.push("n1", "web", &[], Status::Passing);
    let resident = || {
        let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
        pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    };
    let (before, memory) = (house.subscriptions(), resident());
    let mut clients = Vec::new();
    for _ in 0..PARKED {
        let mut client = TcpStream::connect(house.handle.address).await.unwrap();
        client.write_all(b"GET /v1/health/service/web?index=1 HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        clients.push(client);
    }
    house.until_subscribed(before + PARKED - 1).await;
    let each = resident().saturating_sub(memory) / PARKED;
    println!("a parked read takes about {each} bytes");
    assert!(each < MOST_BYTES, "a parked read takes {each} bytes");
    house.catalog.push("n1", "web", &["new"], Status::Passing);
    for mut client in clients {
        let mut head = [0; 15];
        client.read_exact(&mut head).await.unwrap();
        assert_eq!(&head, b"HTTP/1.1 200 OK");
    }
}

#[tokio::test]
async fn a_read_waits_for_no_write_that_came_after_it() {
    let house = House::start().await;
    house.catalog.push("n1", "web", &[], Status::Passing);
    let gate = house.catalog.gate.clone().write_owned().await;
    let (address, before) = (house.handle.address, house.catalog.barriers.load(Ordering::SeqCst));
    let read = tokio::spawn(async move { request(address, "GET", "/v1/health/service/web?consistent", "").await });
    house.until("the read waits", || house.catalog.barriers.load(Ordering::SeqCst) > before).await;
    // Of a service that the agent does not hold: the registry tells it seconds later that the index moved.
    house.catalog.hold_back();
    let body = r#"{"Node":"db2","Address":"10.2.0.2"}"#;
    assert_eq!(house.put("/v1/catalog/register", body).await.text, "true");
    drop(gate);
    let reply = read.await.unwrap();
    assert_eq!((reply.status, reply.json()[0]["Service"]["ID"].as_str()), (200, Some("web")), "{}", reply.text);
}
