//! A list of numbers as the machine, and a cluster of it whose connections can be cut.

use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::select_all;
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::raft::{
    Committed, Consensus, ConsensusConfig, Dial, Formats, Freeze, Machine, ProposeError, Proposed, endpoint,
};

/// Longest that anything in a test may take, on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.unwrap_or_else(|_| panic!("not within {LIMIT:?}: {what}"))
}

/// Appends numbers; answers how many there are.
#[derive(Clone, Default)]
pub(crate) struct List {
    pub(crate) entries: Arc<Mutex<Vec<(u64, u64)>>>,
}

impl List {
    pub(crate) fn entries(&self) -> Vec<(u64, u64)> {
        self.entries.lock().unwrap().clone()
    }
}

impl Machine for List {
    type Answer = u64;

    fn apply(&mut self, batch: Vec<Committed>) -> Vec<u64> {
        let mut entries = self.entries.lock().unwrap();
        let one = |entry: Committed| {
            if let Some(payload) = entry.payload {
                entries.push((entry.index, u64::from_be_bytes(payload[..].try_into().unwrap())));
            }
            entries.len() as u64
        };
        batch.into_iter().map(one).collect()
    }

    fn size(&self) -> usize {
        0
    }

    fn freeze(&self) -> Freeze {
        let entries = self.entries();
        Box::new(move |to: &mut dyn Write| {
            entries.iter().try_for_each(|(index, value)| {
                to.write_all(&index.to_be_bytes())?;
                to.write_all(&value.to_be_bytes())
            })
        })
    }

    fn install(&mut self, from: &mut dyn Read) -> io::Result<()> {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes)?;
        let number = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().unwrap());
        let pairs = bytes.chunks_exact(16).map(|pair| (number(&pair[..8]), number(&pair[8..])));
        *self.entries.lock().unwrap() = pairs.collect();
        Ok(())
    }
}

/// The cables between the members.
#[derive(Default)]
pub(crate) struct Cables {
    cut: Mutex<HashSet<String>>,
    tokens: Mutex<std::collections::HashMap<String, CancellationToken>>,
    tries: Mutex<std::collections::HashMap<String, usize>>,
}

impl Cables {
    fn token(&self, end: &str) -> CancellationToken {
        self.tokens.lock().unwrap().entry(end.to_owned()).or_default().clone()
    }

    /// Breaks every connection of `end`, and refuses new ones.
    pub(crate) fn cut(&self, end: &str) {
        self.cut.lock().unwrap().insert(end.to_owned());
        if let Some(token) = self.tokens.lock().unwrap().remove(end) {
            token.cancel();
        }
    }

    pub(crate) fn heal(&self, end: &str) {
        self.cut.lock().unwrap().remove(end);
    }

    /// How often somebody tried to connect to `end`.
    pub(crate) fn tries(&self, end: &str) -> usize {
        self.tries.lock().unwrap().get(end).copied().unwrap_or_default()
    }

    fn dial(self: &Arc<Self>, from: String) -> Dial {
        let cables = Arc::clone(self);
        Arc::new(move |to| {
            let (cables, from, to) = (Arc::clone(&cables), from.clone(), to.to_owned());
            let uri = format!("http://{to}");
            let connect = move |_| {
                let (cables, from, to) = (Arc::clone(&cables), from.clone(), to.clone());
                async move { cables.connect(&from, &to).await.map(TokioIo::new) }
            };
            Ok(endpoint(uri)?.connect_with_connector_lazy(tower::service_fn(connect)))
        })
    }

    async fn connect(&self, from: &str, to: &str) -> io::Result<tokio::io::DuplexStream> {
        *self.tries.lock().unwrap().entry(to.to_owned()).or_default() += 1;
        let (ours, theirs) = (self.token(from), self.token(to));
        if [from, to].iter().any(|end| self.cut.lock().unwrap().contains(*end)) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let mut socket = TcpStream::connect(to).await?;
        socket.set_nodelay(true)?;
        let (near, mut far) = tokio::io::duplex(256 * 1024);
        tokio::spawn(async move {
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut far, &mut socket) => {}
                () = ours.cancelled() => {}
                () = theirs.cancelled() => {}
            }
        });
        Ok(near)
    }
}

pub(crate) struct Node {
    pub(crate) consensus: Arc<Consensus<List>>,
    pub(crate) list: List,
    pub(crate) address: String,
    cables: Arc<Cables>,
    stop: CancellationToken,
    server: JoinHandle<()>,
}

impl Node {
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        // As the end of a process would: the server's own end leaves its connections to their tasks.
        self.cables.cut(&self.address);
        self.cables.heal(&self.address);
        self.consensus.shutdown().await;
        self.server.await.unwrap();
    }

    pub(crate) fn leads(&self) -> bool {
        self.consensus.leadership().borrow().is_leader
    }

    pub(crate) async fn wait_applied(&self, index: u64) {
        self.consensus.wait_applied(index, LIMIT).await.unwrap();
    }
}

/// Folders and addresses, which outlive the members.
pub(crate) struct Cluster {
    pub(crate) cables: Arc<Cables>,
    pub(crate) addresses: Vec<String>,
    folder: TempDir,
    pub(crate) snapshot_entries: u64,
}

impl Cluster {
    pub(crate) async fn new(size: usize) -> Self {
        // Held until all are known, so that no two are the same.
        let mut listeners = Vec::new();
        for _ in 0..size {
            listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
        }
        let addresses = listeners.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect();
        let folder = tempfile::tempdir().unwrap();
        Self { cables: Arc::default(), addresses, folder, snapshot_entries: 20_000 }
    }

    pub(crate) fn data_dir(&self, number: usize) -> PathBuf {
        self.folder.path().join(number.to_string())
    }

    pub(crate) fn config(&self, number: usize) -> ConsensusConfig {
        let address = self.addresses[number].clone();
        let mut config = ConsensusConfig::new(format!("member-{number}"), address.clone(), self.data_dir(number));
        config.members = self.addresses.clone();
        config.formats = Formats { newest: 2, in_force: Arc::new(|| 2) };
        config.dial = self.cables.dial(address);
        config.snapshot_entries = self.snapshot_entries;
        config.kept_entries = self.snapshot_entries / 4;
        // The machines that run these tests are shared.
        config.disk_reserve = 0;
        config.fault = Arc::new(|why| panic!("unexpected fault: {why}"));
        config
    }

    pub(crate) async fn start(&self, number: usize) -> Node {
        self.start_with(self.config(number)).await
    }

    pub(crate) async fn start_with(&self, config: ConsensusConfig) -> Node {
        let (list, address) = (List::default(), config.address.clone());
        let listener = TcpListener::bind(address.parse::<SocketAddr>().unwrap()).await.unwrap();
        let consensus = Arc::new(Consensus::start(config, list.clone()).await.unwrap());
        let stop = CancellationToken::new();
        let (service, stopping) = (consensus.service(), stop.clone());
        let server = tokio::spawn(async move {
            // Without it each small reply waits for the acknowledgement of the one before: 20 ms per write, not 1.
            let quick = |socket: TcpStream| socket.set_nodelay(true).map(|()| socket);
            let incoming = TcpListenerStream::new(listener).map(move |socket| socket.and_then(quick));
            let serving = Server::builder().add_service(service).serve_with_incoming(incoming);
            tokio::select! {
                served = serving => served.unwrap(),
                () = stopping.cancelled() => {}
            }
        });
        consensus.bootstrap_or_join();
        Node { consensus, list, address, cables: Arc::clone(&self.cables), stop, server }
    }

    pub(crate) async fn start_all(&self) -> Vec<Node> {
        let mut nodes = Vec::new();
        for number in 0..self.addresses.len() {
            nodes.push(self.start(number).await);
        }
        nodes
    }
}

/// The one among `nodes` that leads in the highest term that any of them knows of.
pub(crate) async fn leader(nodes: &[Node]) -> &Node {
    within("a leader", async {
        let mut watches: Vec<_> = nodes.iter().map(|node| node.consensus.leadership()).collect();
        loop {
            let terms: Vec<u64> = watches.iter_mut().map(|watch| watch.borrow_and_update().term).collect();
            let highest = terms.iter().copied().max();
            if let Some(found) = nodes.iter().zip(terms).find(|(node, term)| node.leads() && Some(*term) == highest) {
                return found.0;
            }
            select_all(watches.iter_mut().map(|watch| Box::pin(watch.changed()))).await.0.unwrap();
        }
    })
    .await
}

pub(crate) fn payload(value: u64) -> Bytes {
    Bytes::copy_from_slice(&value.to_be_bytes())
}

/// Writes until somebody accepts.
pub(crate) async fn write(nodes: &[Node], value: u64) -> u64 {
    propose(nodes, value).await.unwrap_or_else(|error| panic!("{error}")).0
}

/// What a leader makes of a write, once one takes it upon itself.
pub(crate) async fn propose(nodes: &[Node], value: u64) -> Proposed<List> {
    within("an outcome", async {
        loop {
            match leader(nodes).await.consensus.propose(payload(value)).await {
                Err(ProposeError::NotLeader { .. }) => tokio::task::yield_now().await,
                outcome => return outcome,
            }
        }
    })
    .await
}

/// Every node's list, once all of them have applied `index`.
pub(crate) async fn lists(nodes: &[Node], index: u64) -> Vec<Vec<(u64, u64)>> {
    let mut lists = Vec::new();
    for node in nodes {
        node.wait_applied(index).await;
        lists.push(node.list.entries());
    }
    lists
}
