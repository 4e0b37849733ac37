//! A member killed over and over while it writes: nothing that it acknowledged is ever missing.
//!
//! The member is a process of its own, this test run again; the writers are here, and so is what they were told.
#![allow(clippy::unwrap_used)]
#![allow(clippy::print_stdout, reason = "how much was tested, and what was passed over")]

mod support;

use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::{env, path::Path, time::Duration};

use muster_catalog::{Name, port::Sink};
use muster_registry::{Client, ClientConfig, Registry, RegistryConfig, raft::ConsensusConfig, store::EngineKind};
use support::{push, replica};
use tokio::{net::TcpListener, sync::Notify, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

/// Set for the run that is the member: its data folder and its engine.
const FOLDER: &str = "MUSTER_TEST_MEMBER_FOLDER";
const ENGINE: &str = "MUSTER_TEST_MEMBER_ENGINE";
/// What the member says when it listens.
const LISTENS: &str = "the member listens on ";
/// Lives of a member.
const ROUNDS: u64 = 20;
const WRITERS: u64 = 8;
/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

fn be_the_member(folder: &Path, engine: &str) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut consensus = ConsensusConfig::new("killed", &address, folder);
        consensus.log_engine = EngineKind::ALL.into_iter().find(|kind| kind.name() == engine).unwrap();
        consensus.election_timeout_min = Duration::from_millis(50);
        consensus.election_timeout_max = Duration::from_millis(100);
        consensus.heartbeat_interval = Duration::from_millis(20);
        // So that the kill also meets snapshots and purges.
        consensus.snapshot_entries = 200;
        consensus.kept_entries = 50;
        let member = Registry::start(RegistryConfig::new(consensus), listener, CancellationToken::new()).await.unwrap();
        println!("{LISTENS}{address}");
        io::stdout().flush().unwrap();
        let reason = member.stopped().await;
        panic!("{reason}");
    });
}

struct Member {
    process: Child,
    address: String,
}

impl Member {
    fn start(test: &str, folder: &Path, kind: EngineKind) -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", test, "--nocapture"]).env(FOLDER, folder).env(ENGINE, kind.name());
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines().map_while(Result::ok);
        let address = lines.find_map(|line| line.split_once(LISTENS).map(|(_, address)| address.to_owned()));
        Self { process, address: address.expect("the member says why it does not start") }
    }
}

impl Drop for Member {
    /// SIGKILL, also where the test fails: the process would outlive it.
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// What was acknowledged: the highest index, and the number of every node written.
#[derive(Default)]
struct Acknowledged {
    index: u64,
    nodes: Vec<u64>,
}

/// Writes node after node until the member is gone; `enough` hears of the count that is to be the last.
async fn write_until_killed(
    client: Arc<Client>,
    next: Arc<AtomicU64>,
    acknowledged: Arc<Mutex<Acknowledged>>,
    last: usize,
    enough: Arc<Notify>,
    stop: CancellationToken,
) {
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let written = tokio::select! {
            written = client.submit(push(&format!("node-{number}"), 1, &["web"])) => written,
            () = stop.cancelled() => return,
        };
        if let Ok(written) = written {
            let mut acknowledged = acknowledged.lock().unwrap();
            acknowledged.index = acknowledged.index.max(written.index);
            acknowledged.nodes.push(number);
            if acknowledged.nodes.len() >= last {
                enough.notify_one();
            }
        }
    }
}

async fn check_and_kill_over_and_over(test: &str, kind: EngineKind) {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let (next, acknowledged) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(Acknowledged::default())));
    for round in 0..=ROUNDS {
        let member = Member::start(test, &data, kind);
        let client = Arc::new(Client::new(ClientConfig::new(vec![member.address.clone()])));
        let index = acknowledged.lock().unwrap().index;
        let snapshot = timeout(PATIENCE, replica(&client, index)).await.unwrap();
        for number in &acknowledged.lock().unwrap().nodes {
            let name = Name::lookup(&format!("node-{number}"));
            assert!(snapshot.find_node(&name).is_some(), "{kind}: node-{number} was acknowledged before kill {round}");
        }
        // At another place of the log each time, and of what the flushing thread does.
        let last = acknowledged.lock().unwrap().nodes.len() + rand::random_range(20..80);
        let (enough, stop) = (Arc::new(Notify::new()), CancellationToken::new());
        let mut writers = JoinSet::new();
        for _ in 0..WRITERS {
            let (client, next, acknowledged) = (client.clone(), next.clone(), acknowledged.clone());
            writers.spawn(write_until_killed(client, next, acknowledged, last, enough.clone(), stop.clone()));
        }
        timeout(PATIENCE, enough.notified()).await.unwrap();
        drop(member);
        stop.cancel();
        while let Some(ended) = writers.join_next().await {
            ended.unwrap();
        }
    }
    println!("{kind}: {} writes acknowledged over {ROUNDS} kills", acknowledged.lock().unwrap().nodes.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_killed_while_it_writes_loses_nothing_acknowledged() {
    if let (Some(folder), Ok(engine)) = (env::var_os(FOLDER), env::var(ENGINE)) {
        return tokio::task::spawn_blocking(move || be_the_member(Path::new(&folder), &engine)).await.unwrap();
    }
    for kind in EngineKind::ALL.into_iter().filter(|kind| kind.check_built().is_ok()) {
        let test = "a_member_killed_while_it_writes_loses_nothing_acknowledged";
        check_and_kill_over_and_over(test, kind).await;
    }
}
