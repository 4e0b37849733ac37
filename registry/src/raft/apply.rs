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

/// Feeds the machine. Owned by openraft's state machine task; only installing leaves that task.
pub(crate) struct Applier<M> {
    machine: Arc<Mutex<M>>,
    snapshots: SnapshotStore,
    last_applied: Option<LogId>,
    membership: StoredMembership,
    /// One past the last applied index, so that "nothing yet" is told from "index 0".
    applied: watch::Sender<u64>,
    due: SnapshotDue,
}

/// When the state is to be written as a snapshot.
#[derive(Default)]
pub(crate) struct SnapshotDue {
    /// At least so many entries lie between two.
    entries: u64,
    /// Where the last one, or the one that is being written, ends.
    last: u64,
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

    /// A large state is written after more entries: each entry pays for two things at most, however many there are.
    fn look(&self, applied: u64, size: usize) {
        let entries = self.entries.max(u64::try_from(size / 2).unwrap_or(u64::MAX));
        if applied.saturating_sub(self.last) >= entries {
            self.wanted.notify_one();
        }
    }
}

impl<M: Machine> Applier<M> {
    pub(crate) fn new(machine: M, snapshots: SnapshotStore, applied: watch::Sender<u64>, due: SnapshotDue) -> Self {
        Self {
            machine: Arc::new(Mutex::new(machine)),
            snapshots,
            last_applied: None,
            membership: StoredMembership::default(),
            applied,
            due,
        }
    }

    fn apply_batch(&mut self, batch: &mut Vec<Committed>, answering: &mut Vec<Option<ApplyResponder<Types>>>) {
        let Some(last) = batch.last().map(|entry| entry.index) else { return };
        let mut machine = lock(&self.machine);
        let mut answers = machine.apply(std::mem::take(batch)).into_iter();
        self.due.look(last, machine.size());
        drop(machine);
        for responder in answering.drain(..) {
            let answer = answers.next();
            if let Some(responder) = responder {
                responder.send(Reply(answer.map(|answer| Box::new(answer) as _)));
            }
        }
        self.applied.send_replace(last + 1);
        metrics::gauge!("muster_registry_applied_index").set(last as f64);
    }
}

/// A panic inside the machine ends the process by way of openraft; the guard's poison adds nothing to that.
fn lock<M>(machine: &Mutex<M>) -> MutexGuard<'_, M> {
    machine.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<M: Machine> RaftStateMachine<Types> for Applier<M> {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.last_applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        let mut batch = Vec::new();
        let mut answering = Vec::new();
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            self.last_applied = Some(entry.log_id);
            let payload = match entry.payload {
                EntryPayload::Normal(Payload(bytes)) => Some(bytes),
                EntryPayload::Blank => None,
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(entry.log_id), membership);
                    None
                }
            };
            batch.push(Committed { index: entry.log_id.index, payload });
            answering.push(responder);
            if batch.len() >= APPLY_BATCH {
                self.apply_batch(&mut batch, &mut answering);
            }
        }
        self.apply_batch(&mut batch, &mut answering);
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        self.due.last = self.last_applied.map_or(0, |id| id.index);
        let meta = SnapshotMeta { last_log_id: self.last_applied, last_membership: self.membership.clone() };
        Builder { snapshots: self.snapshots.clone(), meta, freeze: Mutex::new(Some(lock(&self.machine).freeze())) }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotFile) -> Result<(), io::Error> {
        let machine = Arc::clone(&self.machine);
        let snapshots = self.snapshots.clone();
        let installed = meta.clone();
        let work = move || {
            snapshot.read_body(|body| lock(&machine).install(body))?;
            snapshots.make_current(installed, snapshot).map(drop)
        };
        tokio::task::spawn_blocking(work).await.map_err(io::Error::other)??;
        self.last_applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        if let Some(last) = &meta.last_log_id {
            self.due.last = last.index;
            self.applied.send_replace(last.index + 1);
        }
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<RaftSnapshot>, io::Error> {
        Ok(self.snapshots.current())
    }
}

/// Writes one frozen state to disk.
pub(crate) struct Builder {
    snapshots: SnapshotStore,
    meta: SnapshotMeta,
    /// Behind a lock only because openraft wants builders to be `Sync`.
    freeze: Mutex<Option<Freeze>>,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> Result<RaftSnapshot, io::Error> {
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
            due.look(applied, size);
            wanted.notified().now_or_never().is_some()
        };
        assert!(!told(&due, 99, 0) && told(&due, 100, 200));
        assert!(!told(&due, 499, 1000) && told(&due, 500, 1000));
        due.last = 500;
        assert!(!told(&due, 999, 1000) && told(&due, 1000, 1000));
    }
}
