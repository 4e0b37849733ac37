//! One connection with parked reads on it: what comes before, behind and instead of their answers.
#![allow(clippy::unwrap_used)]

mod support;

use std::{collections::BTreeMap, time::Duration};

use muster_catalog::Status;
use support::House;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// How long the server may take to close a connection before a test gives up.
const PATIENCE: Duration = Duration::from_secs(10);

/// A client that shows what is on the wire.
struct Client {
    stream: TcpStream,
    read: Vec<u8>,
}

/// An answer: the status line, its fields, its body.
struct Answer {
    status: String,
    fields: BTreeMap<String, String>,
    body: String,
}

impl Client {
    async fn connect(house: &House) -> Self {
        Self { stream: TcpStream::connect(house.handle.address).await.unwrap(), read: Vec::new() }
    }

    async fn send(&mut self, line: &str, more: &str) {
        let text = format!("{line}\r\nHost: localhost\r\n{more}\r\n");
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    async fn head(&mut self) -> Answer {
        let end = loop {
            if let Some(end) = self.read.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break end;
            }
            assert!(self.stream.read_buf(&mut self.read).await.unwrap() > 0, "the server closed the connection");
        };
        let head: Vec<u8> = self.read.drain(..end + 4).collect();
        let head = String::from_utf8(head).unwrap();
        let (status, fields) = head.trim_end().split_once("\r\n").unwrap();
        let fields = fields.lines().map(|line| line.split_once(": ").unwrap());
        Answer {
            status: status.to_owned(),
            fields: fields.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            body: String::new(),
        }
    }

    async fn answer(&mut self) -> Answer {
        let mut answer = self.head().await;
        let length: usize = answer.fields["Content-Length"].parse().unwrap();
        while self.read.len() < length {
            assert!(self.stream.read_buf(&mut self.read).await.unwrap() > 0, "the server closed the connection");
        }
        answer.body = String::from_utf8(self.read.drain(..length).collect()).unwrap();
        answer
    }

    /// What comes until the server closes the connection.
    async fn rest(mut self) -> Vec<u8> {
        let end = self.stream.read_to_end(&mut self.read);
        tokio::time::timeout(PATIENCE, end).await.expect("the server left the connection open").unwrap();
        self.read
    }
}

fn parked_line(index: u64, version: &str) -> String {
    format!("GET /v1/health/service/web?stale&index={index}&wait=60s HTTP/{version}")
}

#[tokio::test]
async fn a_parked_answer_reads_like_any_other_and_the_connection_goes_on() {
    let house = House::start().await;
    house.catalog.push("n1", "web", &[], Status::Passing);
    let mut client = Client::connect(&house).await;
    for round in 0..4 {
        client.send("GET /v1/health/service/web?stale HTTP/1.1", "").await;
        let index: u64 = client.answer().await.fields["X-Consul-Index"].parse().unwrap();
        let before = house.subscriptions();
        client.send(&parked_line(index, "1.1"), if round == 2 { "Connection: keep-alive\r\n" } else { "" }).await;
        house.until_subscribed(before).await;
        let pipelined = round % 2 == 1;
        if pipelined {
            client.send("GET /v1/health/service/web?stale HTTP/1.1", "").await;
        }
        let tag = format!("round-{round}");
        house.catalog.push("n1", "web", &[&tag], Status::Passing);
        let parked = client.answer().await;
        if !pipelined {
            client.send("GET /v1/health/service/web?stale HTTP/1.1", "").await;
        }
        let mut plain = client.answer().await;
        plain.fields.insert("Date".into(), parked.fields["Date"].clone());
        assert_eq!((parked.status, parked.fields, &parked.body), (plain.status, plain.fields, &plain.body));
        assert!(parked.body.contains(&tag), "{}", parked.body);
    }
    let body = r#"{"Name":"web"}"#;
    client.send("PUT /v1/agent/service/register HTTP/1.1", &format!("Content-Length: {}\r\n", body.len())).await;
    client.stream.write_all(body.as_bytes()).await.unwrap();
    assert_eq!(client.answer().await.status, "HTTP/1.1 200 OK");
}

#[tokio::test]
async fn requests_behind_a_parked_read_are_answered_behind_it_in_order() {
    let house = House::start().await;
    house.catalog.push("n1", "web", &[], Status::Passing);
    let mut client = Client::connect(&house).await;
    let before = house.subscriptions();
    // All in one piece: what is behind the read that parks is in hyper's buffer by then.
    let lines = [parked_line(1, "1.1"), "HEAD /v1/catalog/nodes HTTP/1.1".into(), parked_line(2, "1.1")];
    let all: String = lines.iter().map(|line| format!("{line}\r\nHost: localhost\r\n\r\n")).collect();
    client.stream.write_all(all.as_bytes()).await.unwrap();
    house.until_subscribed(before).await;
    house.catalog.push("n1", "web", &["one"], Status::Passing);
    assert!(client.answer().await.body.contains("one"));
    assert!(client.head().await.fields.contains_key("Content-Length"));
    house.until_subscribed(before + 1).await;
    house.catalog.push("n1", "web", &["two"], Status::Passing);
    assert!(client.answer().await.body.contains("two"));
}

#[tokio::test]
async fn a_parked_read_is_answered_as_its_request_wants_it() {
    let house = House::start().await;
    house.catalog.push("n1", "web", &[], Status::Passing);
    let line = parked_line(1, "1.1");
    let head = line.replacen("GET", "HEAD", 1);
    let table = [
        (&*line, "Connection: close\r\n", "HTTP/1.1 200 OK", true),
        (&*head, "Connection: close\r\n", "HTTP/1.1 200 OK", false),
        (&*parked_line(1, "1.0"), "", "HTTP/1.0 200 OK", true),
    ];
    for (number, (line, more, status, with_body)) in table.into_iter().enumerate() {
        let before = house.subscriptions();
        let mut client = Client::connect(&house).await;
        let line = line.replace("index=1", &format!("index={}", number + 1));
        client.send(&line, more).await;
        house.until_subscribed(before).await;
        house.catalog.push("n1", "web", &[status, line.as_str()], Status::Passing);
        let answer = client.head().await;
        assert_eq!(answer.status, status, "{line}");
        assert_eq!(!client.rest().await.is_empty(), with_body, "{line}");
    }
}

#[tokio::test]
async fn a_client_that_goes_while_its_read_is_parked_leaves_no_waiter() {
    let house = House::start().await;
    let before = house.subscriptions();
    let mut client = Client::connect(&house).await;
    client.send("GET /v1/catalog/nodes?index=9 HTTP/1.1", "").await;
    house.until_subscribed(before).await;
    assert_eq!(house.catalog.waiters.topic_count(), 1);
    drop(client);
    house.until("its place is given back", || house.catalog.waiters.topic_count() == 0).await;
}

#[tokio::test]
async fn a_connection_is_not_idle_for_long_before_nor_after_a_parked_read() {
    let house = House::start_with(|config| config.header_read_timeout = Duration::from_millis(50)).await;
    let silent = Client::connect(&house).await;
    assert!(silent.rest().await.is_empty());
    let mut client = Client::connect(&house).await;
    client.send("GET /v1/catalog/nodes?index=9&wait=200ms HTTP/1.1", "").await;
    assert_eq!(client.answer().await.status, "HTTP/1.1 200 OK");
    assert!(client.rest().await.is_empty());
}

#[tokio::test]
async fn a_stop_ends_a_parked_read_with_the_connection() {
    let house = House::start().await;
    let before = house.subscriptions();
    let (mut client, idle) = (Client::connect(&house).await, Client::connect(&house).await);
    client.send("GET /v1/catalog/nodes?index=9 HTTP/1.1", "").await;
    house.until_subscribed(before).await;
    house.shutdown.cancel();
    assert_eq!(client.answer().await.fields["Connection"], "close");
    assert!(client.rest().await.is_empty() && idle.rest().await.is_empty());
    house.handle.task.await.unwrap();
}

/// So much that neither the sockets nor the kernel take all of it at once.
const LARGE: usize = 30_000;

async fn register_many(house: &House) {
    let tags: Vec<String> = (0..LARGE).map(|number| format!("{number}-{}", "x".repeat(500))).collect();
    let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
    house.catalog.push("n1", "web", &tags, Status::Passing);
}

#[tokio::test]
async fn who_does_not_read_its_answer_is_cut_off() {
    let house = House::start_with(|config| config.write_timeout = Duration::from_millis(100)).await;
    register_many(&house).await;
    for line in ["GET /v1/health/service/web HTTP/1.1".to_owned(), parked_line(1, "1.1")] {
        let before = house.subscriptions();
        let mut client = Client::connect(&house).await;
        client.send(&line, "").await;
        if line.contains("index") {
            house.until_subscribed(before).await;
            register_many_more(&house).await;
        }
        client.stream.readable().await.unwrap();
        // The answer has begun. Longer than the server waits: nothing tells when the kernel's buffers are full.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let rest = tokio::time::timeout(PATIENCE, async {
            let mut read = Vec::new();
            // A reset is the same to the client as an end that comes too early.
            let _ = client.stream.read_to_end(&mut read).await;
            read
        });
        let read = rest.await.unwrap_or_else(|_| panic!("the connection is still open: {line}")).len();
        assert!(read < LARGE * 500, "all of {read} bytes came");
    }
}

async fn register_many_more(house: &House) {
    house.catalog.push("n2", "web", &["more"], Status::Passing);
}

#[tokio::test]
async fn who_does_not_read_large_answers_holds_up_large_ones_alone() {
    let house = House::start().await;
    register_many(&house).await;
    house.catalog.push("n3", "small", &["v1"], Status::Passing);
    let large = "GET /v1/health/service/web HTTP/1.1";
    let mut silent = Vec::new();
    for _ in 0..6 {
        let mut client = Client::connect(&house).await;
        client.send(large, "").await;
        silent.push(client);
    }
    // The first has begun; the others have as much room as is left, or wait.
    silent[0].stream.readable().await.unwrap();
    for line in [
        "GET /v1/health/service/small HTTP/1.1",
        "GET /v1/agent/self HTTP/1.1",
        "GET /metrics HTTP/1.1",
        "PUT /v1/agent/check/pass/none HTTP/1.1",
        "GET /v1/status/leader HTTP/1.1",
    ] {
        for _ in 0..3 {
            let mut client = Client::connect(&house).await;
            client.send(line, "Content-Length: 0\r\n").await;
            let answer =
                tokio::time::timeout(PATIENCE, client.answer()).await.unwrap_or_else(|_| panic!("held up: {line}"));
            assert!(!answer.status.contains("503"), "{line}: {}", answer.status);
        }
    }
    let mut waiting = Client::connect(&house).await;
    waiting.send(large, "").await;
    let early = tokio::time::timeout(Duration::from_millis(300), waiting.head()).await;
    assert!(early.is_err(), "there is no room for one more, so the test shows nothing");
    silent.clear();
    let answer = tokio::time::timeout(PATIENCE, waiting.head()).await.expect("it waits on although there is room");
    assert!(answer.status.contains("200"), "{}", answer.status);
}
