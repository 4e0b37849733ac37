//! A leader that dies with entries which its followers have and its own disk has not.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex};

use super::harness::{Cluster, leader, lists, payload, within, write};
use crate::store::{Ballot, Engine, Layer, LogBounds, LogFile, Position, Record};

/// A disk that can be held: what is written from then on stays in memory, no flush returns, and with the process it is
/// gone, as in a loss of power.
#[derive(Default)]
struct Held {
    state: Mutex<State>,
    let_go: Condvar,
}

#[derive(Default)]
struct State {
    held: bool,
    dead: bool,
    in_memory: Vec<Record>,
}

struct HeldDisk {
    engine: Arc<dyn Engine>,
    held: Arc<Held>,
}

impl Held {
    fn layer(self: &Arc<Self>) -> Layer {
        let held = Arc::clone(self);
        Arc::new(move |engine| Arc::new(HeldDisk { engine, held: Arc::clone(&held) }))
    }

    fn hold(&self) {
        self.state.lock().unwrap().held = true;
    }

    /// The process is gone: its flush ends, and has not reached the disk.
    fn die(&self) {
        self.state.lock().unwrap().dead = true;
        self.let_go.notify_all();
    }
}

impl Engine for HeldDisk {
    fn bounds(&self) -> LogBounds {
        let (bounds, state) = (self.engine.bounds(), self.held.state.lock().unwrap());
        let last = state.in_memory.last().map(|record| record.position);
        LogBounds { last: last.or(bounds.last), ..bounds }
    }
    fn append(&self, records: Vec<Record>) -> io::Result<()> {
        let mut state = self.held.state.lock().unwrap();
        if state.held {
            state.in_memory.extend(records);
            return Ok(());
        }
        self.engine.append(records)
    }
    fn read(&self, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<Record>> {
        let state = self.held.state.lock().unwrap();
        let mut found = self.engine.read(range.clone(), max_bytes)?;
        found.extend(state.in_memory.iter().filter(|record| range.contains(&record.position.index)).cloned());
        Ok(found)
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
        if self.held.state.lock().unwrap().held {
            return Ok(());
        }
        self.engine.save_committed(committed)
    }
    fn flush(&self) -> io::Result<()> {
        let state = self.held.state.lock().unwrap();
        let state = self.held.let_go.wait_while(state, |state| state.held && !state.dead).unwrap();
        if state.held {
            return Err(io::Error::other("the process is gone"));
        }
        drop(state);
        self.engine.flush()
    }
    fn files(&self) -> Vec<LogFile> {
        self.engine.files()
    }
}

/// A quorum of the others has the entry on disk, so it is acknowledged. Back within its lease, and without the entry, the
/// leader must not give its term and index to another one: the followers would keep theirs under them.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_leader_lost_and_a_quorum_has_is_there_when_it_restarts_at_once() {
    let cluster = Cluster::new(3).await;
    let disks: Vec<Arc<Held>> = (0..3).map(|_| Arc::default()).collect();
    let mut nodes = Vec::new();
    for (number, disk) in disks.iter().enumerate() {
        let mut config = cluster.config(number);
        config.layer = disk.layer();
        // The flush of the one that dies fails.
        config.fault = Arc::new(|_| ());
        nodes.push(cluster.start_with(config).await);
    }
    let first = write(&nodes, 0).await;
    let led = leader(&nodes).await.address.clone();
    let number = cluster.addresses.iter().position(|address| *address == led).unwrap();
    disks[number].hold();
    let acknowledged = within("the followers' flush", nodes[number].consensus.propose(payload(1))).await.unwrap().0;
    // They have to hear that it is committed no more than the leader does: all of this is within one lease.
    let dying = nodes.remove(number);
    disks[number].die();
    dying.stop().await;
    nodes.push(cluster.start(number).await);
    let last = write(&nodes, 2).await;
    for list in lists(&nodes, last).await {
        assert_eq!(list, [(first, 0), (acknowledged, 1), (last, 2)]);
    }
}
