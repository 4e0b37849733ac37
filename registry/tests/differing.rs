//! Real members that compare their catalogs, and one that reads another entry from its disk than was written there.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    collections::BTreeMap,
    fs, io,
    ops::Range,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use muster_catalog::port::Sink;
use muster_registry::{
    Agreement, Client, ClientConfig, Registry, RegistryConfig,
    raft::{ConsensusConfig, MemberChange},
    store::{Ballot, Engine, LogBounds, LogFile, Position, Record},
};
use support::{push, replica};
use tokio::{
    net::TcpListener,
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// Few, so that a member that was away is sent a snapshot.
const SNAPSHOT_ENTRIES: u64 = 8;
/// What is written, and what is read in its place.
const WRITTEN: &[u8] = b"honest";
const READ: &[u8] = b"forged";

/// A disk that alters what it was given, while it is told to.
struct Altering {
    engine: Arc<dyn Engine>,
    on: Arc<AtomicBool>,
}

fn altered(payload: &Bytes) -> Bytes {
    let mut payload = payload.to_vec();
    let places = payload.windows(WRITTEN.len()).enumerate().filter(|(_, window)| *window == WRITTEN);
    for at in places.map(|(at, _)| at).collect::<Vec<_>>() {
        payload[at..at + READ.len()].copy_from_slice(READ);
    }
    payload.into()
}

impl Engine for Altering {
    fn bounds(&self) -> LogBounds {
        self.engine.bounds()
    }
    fn append(&self, records: Vec<Record>) -> io::Result<()> {
        self.engine.append(records)
    }
    fn read(&self, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<Record>> {
        let mut records = self.engine.read(range, max_bytes)?;
        if self.on.load(Ordering::Relaxed) {
            records.iter_mut().for_each(|record| record.payload = altered(&record.payload));
        }
        Ok(records)
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
        self.engine.flush()
    }
    fn files(&self) -> Vec<LogFile> {
        self.engine.files()
    }
}

struct Member {
    registry: Registry,
    /// Unchanged since the start as long as nothing was found.
    agreement: watch::Receiver<Agreement>,
    stop: CancellationToken,
    alters: Arc<AtomicBool>,
}

impl Member {
    async fn start(name: &str, members: &[String], listener: TcpListener, disk: &Path) -> Self {
        let (stop, alters) = (CancellationToken::new(), Arc::<AtomicBool>::default());
        let address = listener.local_addr().unwrap().to_string();
        let mut consensus = ConsensusConfig::new(name, address, disk.join(name));
        consensus.members = members.to_vec();
        (consensus.snapshot_entries, consensus.kept_entries) = (SNAPSHOT_ENTRIES, SNAPSHOT_ENTRIES / 4);
        let on = alters.clone();
        consensus.layer = Arc::new(move |engine| Arc::new(Altering { engine, on: on.clone() }));
        let registry = Registry::start(RegistryConfig::new(consensus), listener, stop.clone()).await.unwrap();
        Self { agreement: registry.agreement(), registry, stop, alters }
    }

    async fn end(self) {
        self.stop.cancel();
        timeout(PATIENCE, self.registry.stopped()).await.unwrap();
    }

    async fn end_without_alarm(self) {
        assert!(!self.agreement.has_changed().unwrap(), "{:?}", self.agreement.borrow());
        self.end().await;
    }
}

async fn three(disk: &Path) -> (Vec<Member>, Vec<String>) {
    let mut listeners = Vec::new();
    for _ in 0..3 {
        listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
    }
    let addresses: Vec<String> = listeners.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect();
    let mut members = Vec::new();
    for (number, listener) in listeners.into_iter().enumerate() {
        members.push(Member::start(&format!("member-{number}"), &addresses, listener, disk).await);
    }
    (members, addresses)
}

/// Writes until a snapshot is due, and waits until all members were found to have what a majority has.
async fn write_and_agree(client: &Client, members: &[Member], sequence: &mut u64) {
    let mut last = 0;
    for _ in 0..=SNAPSHOT_ENTRIES {
        *sequence += 1;
        let services = [&["web"][..], &["web", "db"]][*sequence as usize % 2];
        last = timeout(PATIENCE, client.submit(push("a", *sequence, services))).await.unwrap().unwrap().index;
    }
    for member in members {
        let agree = async {
            while member.agreement.borrow().confirmed < last {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, agree).await.expect("the catalogs are not compared");
    }
}

/// Waits until exactly these members are said to serve nothing.
async fn until_faults(client: &Client, names: &[&str]) -> BTreeMap<u64, String> {
    let look = async {
        loop {
            let status = client.members_by_leader().await.unwrap();
            let found = status.members.iter().filter(|member| status.faults.contains_key(&member.id));
            if found.map(|member| member.name.as_str()).eq(names.iter().copied()) {
                return status.faults;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, look).await.expect("other members than expected, or none, serve nothing")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_differs_leaves_the_lead_stays_silent_after_a_restart_and_comes_back_emptied() {
    let disk = tempfile::tempdir().unwrap();
    let (mut members, addresses) = three(disk.path()).await;
    let client = Client::new(ClientConfig::new(addresses.clone()));
    timeout(PATIENCE, client.submit(push("a", 1, &["web"]))).await.unwrap().unwrap();
    let differing = members.iter().position(|member| !member.registry.leadership().borrow().is_leader).unwrap();
    let name = format!("member-{differing}");
    let only = Client::new(ClientConfig::new(vec![addresses[differing].clone()]));
    let others = addresses.iter().filter(|address| **address != addresses[differing]).cloned();
    let others = Client::new(ClientConfig::new(others.collect()));

    members[differing].alters.store(true, Ordering::Relaxed);
    let written = timeout(PATIENCE, others.submit(push("a", 2, &["web", "honest"]))).await.unwrap().unwrap();
    let faults = until_faults(&others, &[&name]).await;
    assert!(faults.values().all(|fault| fault.contains("2 of 3 voters")), "{faults:?}");
    members[differing].alters.store(false, Ordering::Relaxed);
    assert!(timeout(Duration::from_millis(500), replica(&only, written.index)).await.is_err(), "it serves");

    // Where it comes to lead, it does not for long.
    timeout(PATIENCE, others.change_members(MemberChange::Transfer(Some(name.clone())))).await.unwrap().unwrap();
    let mut leadership = members[differing].registry.leadership();
    let left = leadership.wait_for(|now| !now.is_leader && now.leader.is_some());
    timeout(PATIENCE, left).await.expect("it leads on").unwrap();
    let written = timeout(PATIENCE, others.submit(push("a", 3, &["web"]))).await.unwrap().unwrap();

    // Its log is right and so are its rows when they are made anew: but what it answered was wrong, and why is not known.
    let gone = members.remove(differing);
    gone.end().await;
    let listener = TcpListener::bind(&addresses[differing]).await.unwrap();
    let back = Member::start(&name, &addresses, listener, disk.path()).await;
    let own = back.registry.agreement().borrow().own.clone();
    assert!(own.is_some_and(|own| own.decided && faults.values().eq([&*own.why])));
    until_faults(&others, &[&name]).await;
    assert!(timeout(Duration::from_millis(500), replica(&only, written.index)).await.is_err(), "it serves");

    back.end().await;
    fs::remove_dir_all(disk.path().join(&name)).unwrap();
    let listener = TcpListener::bind(&addresses[differing]).await.unwrap();
    let back = Member::start(&name, &addresses, listener, disk.path()).await;
    let caught_up = timeout(PATIENCE, replica(&only, written.index)).await.unwrap();
    assert_eq!(caught_up.instance_count(), 1);
    until_faults(&others, &[]).await;
    back.end().await;
    for member in members {
        member.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_found_while_members_are_down_restart_come_anew_join_leave_and_are_restored() {
    let disk = tempfile::tempdir().unwrap();
    let (mut members, addresses) = three(disk.path()).await;
    let (client, sequence) = (Client::new(ClientConfig::new(addresses.clone())), &mut 0);
    write_and_agree(&client, &members, sequence).await;

    for wiped in [false, true] {
        let last = members.pop().unwrap();
        last.end_without_alarm().await;
        // Two of three are a majority.
        write_and_agree(&client, &members, sequence).await;
        if wiped {
            fs::remove_dir_all(disk.path().join("member-2")).unwrap();
        }
        let listener = TcpListener::bind(&addresses[2]).await.unwrap();
        members.push(Member::start("member-2", &addresses, listener, disk.path()).await);
        write_and_agree(&client, &members, sequence).await;
    }

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    members.push(Member::start("member-3", &addresses, listener, disk.path()).await);
    let add = MemberChange::Add { address, read_only: true };
    timeout(PATIENCE, client.change_members(add)).await.unwrap().unwrap();
    write_and_agree(&client, &members, sequence).await;

    let backup = client.backup(&disk.path().join("catalog.backup"), false).await.unwrap();
    write_and_agree(&client, &members, sequence).await;
    timeout(PATIENCE, client.restore(&backup)).await.unwrap().unwrap();
    write_and_agree(&client, &members, sequence).await;

    timeout(PATIENCE, client.change_members(MemberChange::Remove("member-3".to_owned()))).await.unwrap().unwrap();
    members.pop().unwrap().end_without_alarm().await;
    write_and_agree(&client, &members, sequence).await;
    for member in members {
        member.end_without_alarm().await;
    }
}
