//! A disk that fails and a disk that is slow, put between a member's log and its engine.
//!
//! A member that fails ends its process, so it is a process of its own: this test, run again. The writers are here, and
//! so is what they were told.
#![allow(clippy::unwrap_used)]
#![allow(clippy::print_stdout, reason = "how much was tested")]

mod support;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::ops::Range;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use futures_util::future::join_all;
use metrics_exporter_prometheus::PrometheusBuilder;
use muster_catalog::{Name, port::Sink};
use muster_registry::store::{Ballot, Engine, Layer, LogBounds, LogFile, Position, Record};
use muster_registry::{Client, ClientConfig, Registry, RegistryConfig, raft::ConsensusConfig};
use support::{push, replica};
use tokio::{net::TcpListener, time::timeout};
use tokio_util::sync::CancellationToken;

/// Set for the run that is the member: its folder.
const FOLDER: &str = "MUSTER_TEST_BAD_DISK_FOLDER";
/// What the member says when it listens.
const LISTENS: &str = "the member listens on ";
/// The signal of an abort.
const SIGABRT: i32 = 6;
/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// A flush that takes longer than the longest election timeout (600 ms), twice over.
const SLOW: Duration = Duration::from_millis(1_300);

/// What a bad disk does.
#[derive(Default)]
struct Troubles {
    /// While this file is there, flushing fails.
    flush_fails: PathBuf,
    /// While this file is there, appending fails.
    append_fails: PathBuf,
    /// How long a flush takes.
    flush_milliseconds: AtomicU64,
}

/// A disk with troubles.
struct BadDisk {
    engine: Arc<dyn Engine>,
    troubles: Arc<Troubles>,
}

fn layer(troubles: Arc<Troubles>) -> Layer {
    Arc::new(move |engine| Arc::new(BadDisk { engine, troubles: Arc::clone(&troubles) }))
}

impl Engine for BadDisk {
    fn bounds(&self) -> LogBounds {
        self.engine.bounds()
    }
    fn append(&self, records: Vec<Record>) -> io::Result<()> {
        if self.troubles.append_fails.exists() {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "No space left on device (injected)"));
        }
        self.engine.append(records)
    }
    fn read(&self, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<Record>> {
        self.engine.read(range, max_bytes)
    }
    fn truncate_after(&self, keep: Option<Position>) -> io::Result<()> {
        self.engine.truncate_after(keep)
    }
    fn purge(&self, upto: Position) -> io::Result<()> {
        self.engine.purge(upto)
    }
    fn save_vote(&self, vote: Ballot) -> io::Result<()> {
        self.engine.save_vote(vote)
    }
    fn save_committed(&self, committed: Position) -> io::Result<()> {
        self.engine.save_committed(committed)
    }
    fn flush(&self) -> io::Result<()> {
        if self.troubles.flush_fails.exists() {
            return Err(io::Error::other("Input/output error (injected)"));
        }
        thread::sleep(Duration::from_millis(self.troubles.flush_milliseconds.load(Ordering::Relaxed)));
        self.engine.flush()
    }
    fn files(&self) -> Vec<LogFile> {
        self.engine.files()
    }
}

async fn start(mut consensus: ConsensusConfig, listener: TcpListener, troubles: Arc<Troubles>) -> Registry {
    consensus.layer = layer(troubles);
    Registry::start(RegistryConfig::new(consensus), listener, CancellationToken::new()).await.unwrap()
}

fn be_the_member(folder: &Path) {
    tracing_subscriber::fmt().with_ansi(false).with_writer(io::stderr).init();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (flush_fails, append_fails) = (folder.join("flush"), folder.join("append"));
        let troubles = Troubles { flush_fails, append_fails, ..Troubles::default() };
        let consensus = ConsensusConfig::new("bad-disk", &address, folder.join("data"));
        let member = start(consensus, listener, Arc::new(troubles)).await;
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
    fn start(test: &str, folder: &Path) -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", test, "--nocapture"]).env(FOLDER, folder);
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines().map_while(Result::ok);
        let address = lines.find_map(|line| line.split_once(LISTENS).map(|(_, address)| address.to_owned()));
        Self { process, address: address.expect("the member says why it does not start") }
    }

    fn client(&self) -> Client {
        Client::new(ClientConfig::new(vec![self.address.clone()]))
    }
}

impl Drop for Member {
    /// Also where the test fails: the process would outlive it.
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fails_ends_the_process_and_nothing_acknowledged_is_lost() {
    if let Some(folder) = env::var_os(FOLDER) {
        return tokio::task::spawn_blocking(move || be_the_member(Path::new(&folder))).await.unwrap();
    }
    let test = "a_disk_that_fails_ends_the_process_and_nothing_acknowledged_is_lost";
    // What fails, and what the log then says beside what to do.
    let faults = [
        ("flush", "the log could not be flushed: Input/output error (injected)"),
        ("append", "No space left on device (injected)"),
    ];
    let folder = tempfile::tempdir().unwrap();
    let (mut acknowledged, mut index) = (Vec::new(), 0);
    for (fault, said) in faults {
        let mut member = Member::start(test, folder.path());
        let client = member.client();
        for number in 0..40 {
            let name = format!("{fault}-{number}");
            index = timeout(PATIENCE, client.submit(push(&name, 1, &["web"]))).await.unwrap().unwrap().index;
            acknowledged.push(name);
        }
        let trouble = folder.path().join(fault);
        fs::write(&trouble, "").unwrap();
        // It may come to be on disk, but nobody is told so.
        let lost = timeout(PATIENCE, client.submit(push("unacknowledged", 1, &["web"]))).await.unwrap();
        assert!(lost.is_err(), "{fault}: a write was acknowledged by a disk that fails: {lost:?}");
        let mut log = String::new();
        member.process.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        let ended = member.process.wait().unwrap();
        assert_eq!(ended.signal(), Some(SIGABRT), "{fault}: {ended}\n{log}");
        for part in ["ERROR", "storage failed; ending the process", "Check the disk", said] {
            assert!(log.contains(part), "{fault}: no {part:?} in\n{log}");
        }

        fs::remove_file(&trouble).unwrap();
        let member = Member::start(test, folder.path());
        let snapshot = timeout(PATIENCE, replica(&member.client(), index)).await.unwrap();
        for name in &acknowledged {
            assert!(snapshot.find_node(&Name::lookup(name)).is_some(), "{fault}: {name} was acknowledged and is lost");
        }
    }
    println!("{} writes were acknowledged", acknowledged.len());
}

/// A deleted file takes every write and sync of those who have it open, and is gone with them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_files_go_while_it_runs_ends_and_names_them() {
    if let Some(folder) = env::var_os(FOLDER) {
        return tokio::task::spawn_blocking(move || be_the_member(Path::new(&folder))).await.unwrap();
    }
    let test = "a_member_whose_files_go_while_it_runs_ends_and_names_them";
    type Harm = fn(&Path, &Path) -> io::Result<()>;
    let harms: [(Harm, &str); 4] = [
        (|data, _| fs::remove_dir_all(data), "it was deleted, moved or covered by another one"),
        (
            |data, _| fs::rename(data, data.with_extension("old")).and_then(|()| fs::create_dir(data)),
            "it was deleted, moved",
        ),
        (|_, log| fs::remove_file(log), "of the log was deleted or moved"),
        (|_, log| fs::OpenOptions::new().write(true).open(log)?.set_len(0), "of the log was cut short"),
    ];
    for (harm, said) in harms {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let mut member = Member::start(test, folder.path());
        let client = member.client();
        for number in 0..40 {
            let written = client.submit(push(&format!("before-{number}"), 1, &["web"]));
            timeout(PATIENCE, written).await.unwrap().unwrap();
        }
        let mut files = fs::read_dir(data.join("log")).unwrap().map(|entry| entry.unwrap().path());
        let log = files.find(|path| path.extension().is_some_and(|kind| kind == "wal")).unwrap();
        harm(&data, &log).unwrap();
        let mut lines = member.process.stderr.take().unwrap();
        let read = tokio::task::spawn_blocking(move || {
            let mut log = String::new();
            lines.read_to_string(&mut log).map(|_| log)
        });
        let log = timeout(PATIENCE, read).await.expect("the member goes on without its files").unwrap().unwrap();
        let ended = member.process.wait().unwrap();
        assert_eq!(ended.signal(), Some(SIGABRT), "{said}: {ended}\n{log}");
        for part in ["storage failed; ending the process", said, &format!("{data:?}"), "`muster registry restore`"] {
            // The line is written with its quotes escaped.
            assert!(log.replace('\\', "").contains(part), "no {part:?} in\n{log}");
        }
        // What another one made at that path is not written to.
        assert!(!data.join("log-mark").exists() || data.join("FORMAT").exists(), "the mark lies in a foreign folder");
    }
}

/// A value of the rendered metrics.
fn metric(text: &str, name: &str) -> f64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or_else(|| panic!("no {name} in\n{text}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_slower_than_an_election_makes_writes_slow_and_elects_nobody() {
    let metrics = PrometheusBuilder::new().install_recorder().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let troubles = Arc::new(Troubles::default());
    let mut listeners = Vec::new();
    for _ in 0..3 {
        listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
    }
    let addresses: Vec<String> = listeners.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect();
    let mut members = Vec::new();
    for (listener, address) in listeners.into_iter().zip(&addresses) {
        let name = format!("slow-{}", members.len());
        let mut consensus = ConsensusConfig::new(&name, address, folder.path().join(&name));
        consensus.members = addresses.clone();
        // The outcome of a write on a disk as slow as this is known later than on any other.
        consensus.propose_timeout = PATIENCE;
        members.push(start(consensus, listener, Arc::clone(&troubles)).await);
    }
    let mut config = ClientConfig::new(addresses);
    (config.request_timeout, config.write_deadline) = (PATIENCE, PATIENCE);
    let client = Client::new(config);
    timeout(PATIENCE, client.submit(push("first", 1, &["web"]))).await.unwrap().unwrap();
    let term = members[0].leadership().borrow().term;

    troubles.flush_milliseconds.store(SLOW.as_millis() as u64, Ordering::Relaxed);
    let began = Instant::now();
    for round in 0..3 {
        // Those that come together share a flush: what is slow is the disk, not the number of writers.
        let writes = (0..16).map(|number| client.submit(push(&format!("slow-{round}-{number}"), 1, &["web"])));
        for written in timeout(PATIENCE, join_all(writes.collect::<Vec<_>>())).await.unwrap() {
            written.unwrap();
        }
    }
    let taken = began.elapsed();
    assert!(taken >= SLOW * 3, "three rounds took {taken:?}: the disk was not slow");
    assert!(taken < SLOW * 3 * 5, "three rounds took {taken:?}: writes did not share their flushes");
    for member in &members {
        assert_eq!(member.leadership().borrow().term, term, "a slow disk led to an election");
    }
    let text = metrics.render();
    assert!(metric(&text, "muster_registry_append_seconds_sum") >= SLOW.as_secs_f64() * 3.0);
    let slowest = metric(&text, "muster_registry_append_seconds{quantile=\"1\"}");
    assert!(slowest >= SLOW.as_secs_f64() * 0.95, "the slowest flush shows as {slowest} s");
    assert!(metric(&text, "muster_registry_write_seconds_sum") >= SLOW.as_secs_f64() * 3.0);

    troubles.flush_milliseconds.store(0, Ordering::Relaxed);
    timeout(PATIENCE, client.submit(push("last", 1, &["web"]))).await.unwrap().unwrap();
}
