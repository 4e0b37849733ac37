//! What the tests share: a catalog to edit, small HTTP servers and clients, and patience.
#![allow(dead_code, unreachable_pub, missing_docs)]

use std::{
    collections::BTreeMap,
    future::Future,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use muster_catalog::{
    Address, Change, Check, CheckKind, Entry, Freshness, Instance, Name, Node, Origin, Port, Snapshot, Status,
    Timestamp, Topic, View, Waiter, Waiters, Weights,
    port::{BarrierError, BoxFuture, Consistency, Source},
};
use muster_xds::{Unregistered, Xds, XdsConfig, XdsHandle};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;

/// How long anything may take before a test gives up: generous, for busy machines.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A catalog in memory, edited by Changes.
pub struct FakeSource {
    view: Mutex<Arc<View>>,
    waiters: Arc<Waiters>,
}

impl FakeSource {
    /// Nothing was loaded yet.
    pub fn empty() -> Arc<Self> {
        let view = View::new(Arc::new(Snapshot::default()), Freshness::Empty);
        Arc::new(Self { view: Mutex::new(Arc::new(view)), waiters: Arc::default() })
    }

    /// Loaded, with one node.
    pub fn loaded() -> Arc<Self> {
        let source = Self::empty();
        source.edit(vec![Change::PutNode(Arc::new(node("n1")))]);
        source
    }

    pub fn edit(&self, changes: Vec<Change>) {
        let mut view = self.view.lock().unwrap();
        let mut snapshot = (*view.local).clone();
        let index = snapshot.index() + 1;
        let topics = snapshot.fold(&Entry { index, at: Timestamp(index), changes });
        *view = Arc::new(View::new(Arc::new(snapshot), Freshness::Live));
        drop(view);
        self.waiters.wake(&topics);
    }
}

impl Source for FakeSource {
    fn view(&self) -> Arc<View> {
        self.view.lock().unwrap().clone()
    }

    fn subscribe(&self, topic: Topic) -> Waiter {
        self.waiters.subscribe(topic)
    }

    fn barrier(&self, _: Consistency) -> BoxFuture<'_, Result<(), BarrierError>> {
        Box::pin(async { Ok(()) })
    }

    fn hold(&self, _: &Name) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

pub fn node(name: &str) -> Node {
    Node {
        name: Name::lookup(name),
        id: name.into(),
        address: Address::Ip(Ipv4Addr::LOCALHOST.into()),
        tagged_addresses: BTreeMap::new(),
        meta: BTreeMap::new(),
        locality: None,
        origin: Origin::Agent,
    }
}

/// An instance on the one node; its id is the service and the port.
pub fn instance(service: &str, port: u16) -> Instance {
    Instance {
        node: Name::lookup("n1"),
        id: format!("{service}-{port}").into(),
        service: Name::lookup(service),
        tags: Vec::new(),
        address: None,
        tagged_addresses: BTreeMap::new(),
        ports: vec![Port { name: "default".into(), number: port }],
        meta: BTreeMap::new(),
        weights: Weights::default(),
        locality: None,
        draining: false,
        maintenance: None,
        enable_tag_override: false,
        proxy: None,
        traffic: None,
        origin: Origin::Agent,
    }
}

pub fn put(instance: Instance) -> Change {
    Change::PutInstance(Arc::new(instance))
}

pub fn delete(service: &str, port: u16) -> Change {
    Change::DeleteInstance { node: Name::lookup("n1"), id: format!("{service}-{port}").into() }
}

pub fn check(service: &str, port: u16, status: Status) -> Change {
    let id = format!("{service}-{port}");
    Change::PutCheck(Arc::new(Check {
        node: Name::lookup("n1"),
        id: format!("check-{id}").into(),
        instance: Some(id.into()),
        name: "check".into(),
        status,
        notes: "".into(),
        output: "".into(),
        kind: CheckKind::default(),
        origin: Origin::Agent,
    }))
}

pub fn config() -> XdsConfig {
    XdsConfig { unregistered: Unregistered::All, ..XdsConfig::default() }
}

/// A server on a free port, or on a given one after a restart.
pub async fn serve(config: XdsConfig, source: Arc<FakeSource>, port: u16) -> (XdsHandle, CancellationToken) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.unwrap();
    let stop = CancellationToken::new();
    (Xds::start(config, listener, source, stop.clone()).unwrap(), stop)
}

/// Waits until a condition holds, asking again and again.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let asked = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, asked).await.is_ok(), "waited in vain until {what}");
}

/// An HTTP server that answers every request with its name, and counts them.
pub struct Upstream {
    pub port: u16,
    pub requests: Arc<AtomicUsize>,
    stop: CancellationToken,
}

impl Upstream {
    pub async fn start(name: &str) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (requests, stop) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
        let (counter, name, stopped) = (requests.clone(), name.to_owned(), stop.clone());
        tokio::spawn(async move {
            loop {
                let accepted = tokio::select! {
                    () = stopped.cancelled() => return,
                    accepted = listener.accept() => accepted,
                };
                let Ok((stream, _)) = accepted else { continue };
                let (counter, name, stopped) = (counter.clone(), name.clone(), stopped.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        () = stopped.cancelled() => {}
                        () = answer(stream, &name, &counter) => {}
                    }
                });
            }
        });
        Self { port, requests, stop }
    }

    pub fn count(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn answer(mut stream: TcpStream, name: &str, counter: &AtomicUsize) {
    let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(count) => seen.extend_from_slice(&buffer[..count]),
        }
        while let Some(end) = seen.windows(4).position(|window| window == b"\r\n\r\n") {
            seen.drain(..end + 4);
            counter.fetch_add(1, Ordering::SeqCst);
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}", name.len());
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

/// Status and body of a GET; an error where nothing listens.
pub async fn get(address: SocketAddr, host: &str, path: &str) -> std::io::Result<(u16, String)> {
    let fetch = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let status = answer.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
        Ok((status, body))
    };
    tokio::time::timeout(PATIENCE, fetch).await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}

/// A port that is free now.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// Where peers for tests are installed.
pub fn peers() -> PathBuf {
    let peers = std::env::var_os("MUSTER_PEERS").map(PathBuf::from);
    let home = || PathBuf::from(std::env::var("HOME").unwrap_or_default()).join(".cache/muster-peers");
    peers.unwrap_or_else(home).join("venv")
}

/// A peer that is not there fails the test where everything must be tested, and is told of elsewhere.
pub fn is_missing(what: &str, how: &str) {
    assert!(std::env::var_os("CI").is_none(), "{what} is not installed: {how}");
    println!("skipped, {what} is not installed: {how}");
}
