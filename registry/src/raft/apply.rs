//! openraft's state machine on any [`Machine`]: batches, answers and snapshots.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::{Stream, StreamExt};
use openraft::storage::{ApplyResponder, EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use tokio::sync::watch;

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
}

impl<M: Machine> Applier<M> {
    pub(crate) fn new(machine: M, snapshots: SnapshotStore, applied: watch::Sender<u64>) -> Self {
        Self {
            machine: Arc::new(Mutex::new(machine)),
            snapshots,
            last_applied: None,
            membership: StoredMembership::default(),
            applied,
        }
    }

    fn apply_batch(&mut self, batch: &mut Vec<Committed>, answering: &mut Vec<Option<ApplyResponder<Types>>>) {
        let Some(last) = batch.last().map(|entry| entry.index) else { return };
        let mut answers = lock(&self.machine).apply(std::mem::take(batch)).into_iter();
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
