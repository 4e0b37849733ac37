//! openraft's state machine on any [`Machine`]: batches, answers and snapshots.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::{Stream, StreamExt};
use openraft::storage::{ApplyResponder, EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use tokio::sync::{Notify, watch};

use super::machine::{Committed, Freeze, Machine};
use super::snapshot::SnapshotStore;
use super::{LogId, Payload, RaftSnapshot, Reply, SnapshotFile, SnapshotMeta, StoredMembership, Types};

/// Most entries applied, and published, at once: keeps the time between two published states short while catching up.
const APPLY_BATCH: usize = 1024;

/// Bytes of the log after which the state is written as a snapshot, however few entries they are: what is replayed at start,
/// kept on the disk, and held in the log's cache (64 MiB) stays near this. More where the last snapshot is larger.
const SNAPSHOT_LOG_BYTES: u64 = 64 * 1024 * 1024;

/// Feeds the machine. Owned by openraft's state machine task; only installing and snapshots leave that task.
pub(crate) struct Applier<M> {
    state: State<M>,
    /// One past the last applied index, so that "nothing yet" is told from "index 0".
    applied: watch::Sender<u64>,
}

/// The machine and where it stands, for who applies and for who writes snapshots.
pub(crate) struct State<M> {
    held: Arc<Mutex<Held<M>>>,
    snapshots: SnapshotStore,
}

impl<M> Clone for State<M> {
    fn clone(&self) -> Self {
        Self { held: Arc::clone(&self.held), snapshots: self.snapshots.clone() }
    }
}

struct Held<M> {
    machine: M,
    /// What the machine has applied, which the next snapshot holds.
    last_applied: Option<LogId>,
    membership: StoredMembership,
    due: SnapshotDue,
    /// Written, and not yet taken up by openraft.
    written: Option<RaftSnapshot>,
}

impl<M: Machine> Held<M> {
    /// The present state, to be written.
    fn freeze(&mut self) -> (SnapshotMeta, Freeze) {
        let meta = SnapshotMeta { last_log_id: self.last_applied, last_membership: self.membership.clone() };
        (meta, self.machine.freeze())
    }
}

impl<M: Machine> State<M> {
    /// Writes the present state and makes it the current snapshot.
    pub(crate) async fn write_snapshot(&self) -> io::Result<()> {
        let (meta, freeze, last, bytes) = {
            let mut held = lock(&self.held);
            let (meta, freeze) = held.freeze();
            let (last, bytes) = (held.due.last, held.due.bytes);
            // At once: what is applied meanwhile must not ask for another one.
            held.due.written(meta.last_log_id.map_or(0, |id| id.index));
            (meta, freeze, last, bytes)
        };
        let snapshots = self.snapshots.clone();
        // A state that cannot be written is a failure like any other, not the end of the process.
        let built = tokio::task::spawn_blocking(move || snapshots.build(meta, freeze)).await;
        let built = built.map_err(io::Error::other).and_then(|built| built);
        let mut held = lock(&self.held);
        match built {
            Ok(written) => {
                held.written = Some(written);
                Ok(())
            }
            Err(error) => {
                (held.due.last, held.due.bytes) = (last, held.due.bytes.saturating_add(bytes));
                Err(error)
            }
        }
    }
}

/// When the state is to be written as a snapshot.
#[derive(Default)]
pub(crate) struct SnapshotDue {
    /// At least so many entries lie between two.
    entries: u64,
    /// Where the last one ends.
    last: u64,
    /// Bytes of entries applied since then.
    bytes: u64,
    /// Told when one is due.
    wanted: Arc<Notify>,
}

impl SnapshotDue {
    /// With who is told.
    pub(crate) fn new(entries: u64) -> (Self, Arc<Notify>) {
        let due = Self { entries, ..Self::default() };
        let wanted = Arc::clone(&due.wanted);
        (due, wanted)
    }

    /// A large state is written after more entries: each entry pays for two things at most, however many there are. So it
    /// is with bytes: the next snapshot is no larger than the last one and what came since.
    fn look(&self, applied: u64, size: usize, last_bytes: u64) {
        let entries = self.entries.max(u64::try_from(size / 2).unwrap_or(u64::MAX));
        let many = applied.saturating_sub(self.last) >= entries;
        if many || self.bytes >= SNAPSHOT_LOG_BYTES.max(last_bytes) {
            self.wanted.notify_one();
        }
    }

    /// A snapshot ends here. What comes from here on counts for the next one.
    fn written(&mut self, last: u64) {
        (self.last, self.bytes) = (last, 0);
    }
}

impl<M: Machine> Applier<M> {
    pub(crate) fn new(machine: M, snapshots: SnapshotStore, applied: watch::Sender<u64>, due: SnapshotDue) -> Self {
        let held = Held { machine, last_applied: None, membership: StoredMembership::default(), due, written: None };
        Self { state: State { held: Arc::new(Mutex::new(held)), snapshots }, applied }
    }

    /// For who writes snapshots.
    pub(crate) fn state(&self) -> State<M> {
        self.state.clone()
    }

    fn apply_batch(&self, batch: &mut Batch) {
        let Some(last) = batch.last else { return };
        let mut held = lock(&self.state.held);
        let entries = std::mem::take(&mut batch.entries);
        held.due.bytes +=
            entries.iter().filter_map(|entry| entry.payload.as_ref()).map(|bytes| bytes.len() as u64).sum::<u64>();
        let mut answers = held.machine.apply(entries).into_iter();
        held.last_applied = Some(last);
        if let Some(membership) = batch.membership.take() {
            held.membership = membership;
        }
        held.due.look(last.index, held.machine.size(), self.state.snapshots.current_bytes());
        self.state.snapshots.keep_room(held.due.bytes);
        drop(held);
        for responder in batch.answering.drain(..) {
            let answer = answers.next();
            if let Some(responder) = responder {
                responder.send(Reply(answer.map(|answer| Box::new(answer) as _)));
            }
        }
        self.applied.send_replace(last.index + 1);
        metrics::gauge!("muster_registry_applied_index").set(last.index as f64);
    }
}

/// Entries on their way into the machine, and who waits for their answers.
#[derive(Default)]
struct Batch {
    entries: Vec<Committed>,
    answering: Vec<Option<ApplyResponder<Types>>>,
    last: Option<LogId>,
    /// The last one among them.
    membership: Option<StoredMembership>,
}

/// A panic inside the machine ends the process by way of openraft; the guard's poison adds nothing to that.
fn lock<M>(machine: &Mutex<M>) -> MutexGuard<'_, M> {
    machine.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<M: Machine> RaftStateMachine<Types> for Applier<M> {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let held = lock(&self.state.held);
        Ok((held.last_applied, held.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        let mut batch = Batch::default();
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            batch.last = Some(entry.log_id);
            let payload = match entry.payload {
                EntryPayload::Normal(Payload(bytes)) => Some(bytes),
                EntryPayload::Blank => None,
                EntryPayload::Membership(membership) => {
                    batch.membership = Some(StoredMembership::new(Some(entry.log_id), membership));
                    None
                }
            };
            batch.entries.push(Committed { index: entry.log_id.index, payload });
            batch.answering.push(responder);
            if batch.entries.len() >= APPLY_BATCH {
                self.apply_batch(&mut batch);
                batch.last = None;
            }
        }
        self.apply_batch(&mut batch);
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let mut held = lock(&self.state.held);
        let written = held.written.take();
        let (meta, freeze) = held.freeze();
        Builder { snapshots: self.state.snapshots.clone(), written, meta, freeze: Mutex::new(Some(freeze)) }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotFile) -> Result<(), io::Error> {
        let (state, installed) = (self.state.clone(), meta.clone());
        let work = move || {
            let mut held = lock(&state.held);
            snapshot.read_body(|body| held.machine.install(body))?;
            held.last_applied = installed.last_log_id;
            held.membership = installed.last_membership.clone();
            held.due.written(installed.last_log_id.map_or(0, |last| last.index));
            drop(held);
            state.snapshots.make_current(installed, snapshot).map(drop)
        };
        tokio::task::spawn_blocking(work).await.map_err(io::Error::other)??;
        if let Some(last) = &meta.last_log_id {
            self.applied.send_replace(last.index + 1);
        }
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<RaftSnapshot>, io::Error> {
        Ok(self.state.snapshots.current())
    }
}

/// Gives openraft the snapshot that was written before it was asked for one. Only where there is none it writes one.
pub(crate) struct Builder {
    snapshots: SnapshotStore,
    written: Option<RaftSnapshot>,
    meta: SnapshotMeta,
    /// Behind a lock only because openraft wants builders to be `Sync`.
    freeze: Mutex<Option<Freeze>>,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> Result<RaftSnapshot, io::Error> {
        if let Some(written) = self.written.take() {
            return Ok(written);
        }
        let freeze = lock(&self.freeze).take().ok_or_else(|| io::Error::other("a frozen state is written once"))?;
        let (snapshots, meta) = (self.snapshots.clone(), self.meta.clone());
        tokio::task::spawn_blocking(move || snapshots.build(meta, freeze)).await.map_err(io::Error::other)?
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_snapshot_is_due_after_more_entries_the_more_there_is() {
        let (mut due, wanted) = SnapshotDue::new(100);
        let told = |due: &SnapshotDue, applied, size| {
            due.look(applied, size, 0);
            wanted.notified().now_or_never().is_some()
        };
        assert!(!told(&due, 99, 0) && told(&due, 100, 200));
        assert!(!told(&due, 499, 1000) && told(&due, 500, 1000));
        due.written(500);
        assert!(!told(&due, 999, 1000) && told(&due, 1000, 1000));
        // Few entries, and many bytes.
        due.bytes = SNAPSHOT_LOG_BYTES;
        assert!(told(&due, 501, 1000));
        due.look(501, 1000, SNAPSHOT_LOG_BYTES + 1);
        assert!(wanted.notified().now_or_never().is_none());
    }
}
