//! Reads that a member answers: one for all who ask the same, and for none an answer older than asked for.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::atomic::Ordering;

use muster_catalog::{Name, Scope, Status};
use support::{House, Reply, request};
use tokio::task::JoinHandle;

const ANY: &str = "/v1/health/state/any";

/// An agent that holds node `n1` alone.
async fn narrow_house() -> House {
    let house = House::start().await;
    house.catalog.push("n1", "web", &[], Status::Passing);
    house.catalog.push("n2", "db", &[], Status::Passing);
    house.catalog.narrow(Scope::Services { names: Default::default(), node: Some(Name::lookup("n1")) });
    house
}

fn ask(house: &House, path: &str) -> JoinHandle<Reply> {
    let (address, path) = (house.handle.address, path.to_owned());
    tokio::spawn(async move { request(address, "GET", &path, "").await })
}

fn reads(house: &House) -> u64 {
    house.catalog.wide_reads.load(Ordering::SeqCst)
}

/// Nothing else is under way on the one thread of a test: what was asked before these has reached the ports by then.
async fn settle(house: &House) {
    for _ in 0..20 {
        assert_eq!(house.get("/v1/catalog/nodes?stale").await.status, 200);
    }
}

fn has(reply: &Reply, service: &str) -> bool {
    let checks = reply.json();
    checks.as_array().unwrap().iter().any(|check| check["ServiceName"] == service)
}

#[tokio::test]
async fn parked_reads_of_one_question_cost_one_read_of_a_member() {
    let house = narrow_house().await;
    let index = house.get(ANY).await.index();
    let before = reads(&house);
    let path = format!("{ANY}?index={index}&wait=60s");
    let parked: Vec<_> = (0..40).map(|_| ask(&house, &path)).collect();
    let pretty = ask(&house, &format!("{path}&pretty"));
    house.until("a member is asked", || reads(&house) > before).await;
    settle(&house).await;
    house.catalog.push("n2", "new", &[], Status::Passing);
    for reply in parked {
        let reply = reply.await.unwrap();
        assert!(reply.status == 200 && reply.index() > index && has(&reply, "new"), "{}", reply.text);
    }
    assert!(pretty.await.unwrap().text.contains("\n    "), "JSON is shared by those who ask for the same");
    assert_eq!(reads(&house) - before, 1);
    house.until("the rows are let go", || house.catalog.wide_views.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test]
async fn a_read_shares_none_that_was_sent_before_it() {
    let house = narrow_house().await;
    let all = house.catalog.answers.forget_permits(usize::MAX);
    let before = reads(&house);
    let first = ask(&house, ANY);
    house.until("a member is asked", || reads(&house) > before).await;
    settle(&house).await;
    house.catalog.push("n2", "new", &[], Status::Passing);
    let later: Vec<_> = (0..10).map(|_| ask(&house, ANY)).collect();
    settle(&house).await;
    assert_eq!(reads(&house) - before, 1, "one is under way, and one follows");
    house.catalog.answers.add_permits(all);
    assert!(!has(&first.await.unwrap(), "new"));
    for reply in later {
        assert!(has(&reply.await.unwrap(), "new"), "written before it was asked");
    }
    assert_eq!(reads(&house) - before, 2);
}

#[tokio::test]
async fn who_joins_a_parked_read_misses_nothing_that_was_written_before() {
    let house = narrow_house().await;
    let index = house.get(ANY).await.index();
    let all = house.catalog.answers.forget_permits(usize::MAX);
    let before = reads(&house);
    let path = format!("{ANY}?index={index}&wait=60s");
    let first = ask(&house, &path);
    house.until("a member is asked", || reads(&house) > before).await;
    house.catalog.push("n2", "new", &[], Status::Passing);
    settle(&house).await;
    // What the first read answers is made by now, and on its way.
    house.catalog.push("n2", "newer", &[], Status::Passing);
    let (second, stale) = (ask(&house, &path), ask(&house, &format!("{path}&stale")));
    settle(&house).await;
    house.catalog.answers.add_permits(all);
    let first = first.await.unwrap();
    assert!(has(&first, "new") && !has(&first, "newer"), "{}", first.text);
    assert!(has(&second.await.unwrap(), "newer"), "written before it was asked");
    assert_eq!(stale.await.unwrap().status, 200);
}

#[tokio::test]
async fn whose_time_is_up_gets_what_is_there_and_who_waits_on_gets_the_news() {
    let house = narrow_house().await;
    let index = house.get(ANY).await.index();
    let before = reads(&house);
    let short = ask(&house, &format!("{ANY}?index={index}&wait=300ms"));
    house.until("a member is asked", || reads(&house) > before).await;
    let long = ask(&house, &format!("{ANY}?index={index}&wait=60s"));
    settle(&house).await;
    let reply = short.await.unwrap();
    assert_eq!((reply.status, reply.index()), (200, index));
    settle(&house).await;
    house.catalog.push("n2", "new", &[], Status::Passing);
    assert!(has(&long.await.unwrap(), "new"));
}
