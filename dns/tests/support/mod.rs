//! A server on loopback, and a source whose View tests exchange.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

pub mod catalog;

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use muster_catalog::{
    Name, Snapshot, Timestamp, Topic, View, Waiter, Waiters,
    port::{BarrierError, BoxFuture, Consistency, Source},
};
use muster_dns::{Dns, DnsConfig, DnsHandle};
use tokio::net::{TcpListener, UdpSocket};
use tokio_util::sync::CancellationToken;

/// The time that servers here are told.
pub const NOW: Timestamp = Timestamp(100_000);

/// A source whose View is set by the test; holding a service exchanges it for the next of `held`, if there is one.
pub struct TestSource {
    view: Mutex<Arc<View>>,
    held: Mutex<VecDeque<Arc<View>>>,
    waiters: Arc<Waiters>,
    /// How often a service was asked for.
    pub holds: AtomicUsize,
}

impl TestSource {
    pub fn new(view: View, held: Option<Snapshot>) -> Arc<Self> {
        let held = Mutex::new(held.map(|snapshot| Arc::new(catalog::live(snapshot))).into_iter().collect());
        Arc::new(Self { view: Mutex::new(Arc::new(view)), held, waiters: Arc::default(), holds: AtomicUsize::new(0) })
    }

    pub fn set(&self, view: View) {
        *self.view.lock().unwrap() = Arc::new(view);
    }

    /// Has the first View now, and one more of them each time a service is held.
    pub fn grow(&self, views: impl IntoIterator<Item = View>) {
        let mut views = views.into_iter();
        self.set(views.next().unwrap());
        *self.held.lock().unwrap() = views.map(Arc::new).collect();
    }
}

impl Source for TestSource {
    fn view(&self) -> Arc<View> {
        self.view.lock().unwrap().clone()
    }

    fn subscribe(&self, topic: Topic) -> Waiter {
        self.waiters.subscribe(topic)
    }

    fn barrier(&self, _: Consistency) -> BoxFuture<'_, Result<(), BarrierError>> {
        panic!("DNS answers from the View that is there")
    }

    fn hold(&self, _: &Name) -> BoxFuture<'_, ()> {
        self.holds.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            let next = self.held.lock().unwrap().pop_front();
            match next {
                Some(view) => *self.view.lock().unwrap() = view,
                // A registry that never answers.
                None => std::future::pending().await,
            }
        })
    }
}

/// A running server and where to ask it.
pub struct TestServer {
    pub handle: DnsHandle,
    pub source: Arc<TestSource>,
    pub udp: SocketAddr,
    pub tcp: SocketAddr,
}

impl TestServer {
    /// Serves the View on one port of loopback, UDP and TCP.
    pub async fn start(config: DnsConfig, view: View, held: Option<Snapshot>) -> Self {
        let source = TestSource::new(view, held);
        let (udp, tcp) = bind_both().await;
        let clock = Arc::new(|| NOW);
        let handle = Dns::start(config, vec![udp], vec![tcp], source.clone(), clock, CancellationToken::new()).unwrap();
        let (udp, tcp) = (handle.udp_addresses()[0], handle.tcp_addresses()[0]);
        Self { handle, source, udp, tcp }
    }

    pub async fn sample() -> Self {
        let mut snapshot = catalog::sample();
        catalog::add_big(&mut snapshot, 200);
        Self::start(config(), catalog::live(snapshot), None).await
    }
}

/// Two zones, and an address for the name server.
pub fn config() -> DnsConfig {
    let ns_addresses = vec!["10.0.0.53".parse().unwrap()];
    DnsConfig { alt_zones: vec!["consul".to_owned()], ns_addresses, ..DnsConfig::default() }
}

/// The same free port for both protocols, as `dig` wants it.
async fn bind_both() -> (UdpSocket, TcpListener) {
    loop {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
            return (udp, tcp);
        }
    }
}
