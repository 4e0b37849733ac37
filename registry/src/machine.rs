//! The state machine behind the log: payload → Proposal → `decide` → `fold` → one publication for each batch.

use std::{
    io::{self, Read, Write},
    sync::Arc,
};

use bytes::Bytes;
use muster_catalog::{
    Change, Checksum, ClusterId, Entry, Footprint, Proposal, Rejection, Scope, Snapshot, Timestamp, Topic, Waiters,
    decide,
};
use prost::Message;
use tokio::sync::watch;

use crate::{
    codec::{decode_snapshot, encode_snapshot},
    convert::ConvertError,
    proto::catalog as pb,
    raft::{Committed, Machine},
    watch::{
        ring::{Record, Ring},
        watchers::Watchers,
    },
};

pub(crate) mod restore;
pub(crate) mod sums;

use restore::Staging;
use sums::Sums;

/// What became of one entry.
#[derive(Debug, Clone, Default)]
pub(crate) enum Answer {
    /// This member did not apply it: it stopped before.
    #[default]
    Unapplied,
    /// It is in the catalog, or there was nothing to do.
    Applied,
    /// `decide` refused it, on every member alike.
    Rejected(Rejection),
    /// A piece of a restore that cannot be taken, on every member alike.
    RestoreRefused(String),
}

/// An entry that this build cannot read. To skip it would make this member's catalog differ from the others'.
#[derive(Debug, Clone, thiserror::Error)]
#[error("log entry {index} cannot be applied: {reason}. This member stops rather than skip it: update its build")]
pub struct Fault {
    /// The entry.
    pub index: u64,
    /// What is wrong with it.
    pub reason: String,
}

/// The reading side of a member's catalog.
#[derive(Debug, Clone)]
pub(crate) struct Catalog {
    /// The newest Snapshot.
    pub(crate) snapshot: watch::Receiver<Arc<Snapshot>>,
    /// What happened lately.
    pub(crate) ring: Arc<Ring>,
    /// The streams that follow it, by what they hold.
    pub(crate) watchers: Arc<Watchers>,
    /// Those that wait for one thing of it.
    pub(crate) waiters: Arc<Waiters>,
    /// Its checksums after the last entries.
    pub(crate) sums: Arc<Sums>,
    /// Why nothing is applied any more.
    pub(crate) fault: watch::Receiver<Option<Arc<Fault>>>,
}

impl Catalog {
    /// The newest Snapshot.
    pub(crate) fn now(&self) -> Arc<Snapshot> {
        self.snapshot.borrow().clone()
    }
}

/// The catalog as the log drives it.
#[derive(Debug)]
pub(crate) struct CatalogMachine {
    snapshot: Snapshot,
    published: watch::Sender<Arc<Snapshot>>,
    ring: Arc<Ring>,
    watchers: Arc<Watchers>,
    waiters: Arc<Waiters>,
    sums: Arc<Sums>,
    fault: watch::Sender<Option<Arc<Fault>>>,
    /// What came so far of a catalog that is to take the place of this one.
    staging: Staging,
}

/// What a batch did that others have to hear of.
#[derive(Default)]
struct Happened {
    records: Vec<Record>,
    topics: Vec<Topic>,
    /// The index and checksum after each entry.
    sums: Vec<(u64, Checksum)>,
    /// Another catalog took the place of the present one.
    replaced: bool,
}

impl CatalogMachine {
    /// An empty catalog and its readers' side.
    pub(crate) fn new() -> (Self, Catalog) {
        let mut snapshot = Snapshot::default();
        snapshot.keep_checksum();
        let (published, receiver) = watch::channel(Arc::new(snapshot.clone()));
        let (fault, fault_receiver) = watch::channel(None);
        let ring = Arc::new(Ring::new(snapshot.index()));
        let (watchers, waiters, sums) = <(Arc<Watchers>, Arc<Waiters>, Arc<Sums>)>::default();
        let catalog = Catalog {
            snapshot: receiver,
            ring: ring.clone(),
            watchers: watchers.clone(),
            waiters: waiters.clone(),
            sums: sums.clone(),
            fault: fault_receiver,
        };
        (Self { snapshot, published, ring, watchers, waiters, sums, fault, staging: Staging::default() }, catalog)
    }

    /// Publishes another catalog than the one before.
    fn publish_anew(&self) {
        self.published.send_replace(Arc::new(self.snapshot.clone()));
        self.watchers.wake_all();
        self.waiters.wake_all();
    }

    fn apply_one(&mut self, committed: Committed, happened: &mut Happened) -> Answer {
        let index = committed.index;
        if self.fault.borrow().is_some() {
            return Answer::Unapplied;
        }
        let Some(payload) = committed.payload else {
            self.snapshot.advance(index, self.snapshot.at());
            return Answer::Applied;
        };
        let size = payload.len();
        match decode_proposal(payload) {
            Ok(Proposed::Command(proposal)) => self.apply_proposal(index, proposal, size, happened),
            Ok(Proposed::Restore(at, piece)) => self.apply_restore(index, at, piece, happened),
            Err(reason) => {
                let fault = Fault { index, reason };
                tracing::error!(%fault, "the catalog stands still");
                self.fault.send_replace(Some(Arc::new(fault)));
                Answer::Unapplied
            }
        }
    }

    fn apply_proposal(&mut self, index: u64, proposal: Proposal, size: usize, happened: &mut Happened) -> Answer {
        // A leader whose clock lags behind its predecessor's must not turn time back.
        let proposal = Proposal { at: proposal.at.max(self.snapshot.at()), ..proposal };
        self.staging.expire(proposal.at);
        let changes = match decide(&self.snapshot, &proposal) {
            Ok(changes) => changes,
            Err(rejection) => {
                self.snapshot.advance(index, proposal.at);
                return Answer::Rejected(rejection);
            }
        };
        if changes.is_empty() {
            self.snapshot.advance(index, proposal.at);
            return Answer::Applied;
        }
        let entry = Entry { index, at: proposal.at, changes };
        let footprint = Footprint::before(&self.snapshot, &entry.changes);
        let topics = self.snapshot.fold(&entry);
        let watched = entry.changes.iter().any(|change| !matches!(change, Change::PutWriter { .. }));
        if watched {
            let footprint = footprint.after(&self.snapshot, &topics);
            happened.records.push(Record::new(entry, footprint, size));
            happened.topics.extend(topics);
        }
        Answer::Applied
    }

    fn apply_restore(&mut self, index: u64, at: Timestamp, piece: pb::RestorePiece, happened: &mut Happened) -> Answer {
        let at = at.max(self.snapshot.at());
        match self.staging.take(piece, at, self.snapshot.format()) {
            Ok(Some(restored)) => {
                self.snapshot = restore::in_place_of(&self.snapshot, &restored, index, at);
                self.snapshot.keep_checksum();
                tracing::warn!(index, cluster = ?self.snapshot.cluster(), "another catalog was put in place of the present one");
                // What happened before did not lead to it.
                happened.records.clear();
                happened.replaced = true;
                self.ring.reset(index);
                Answer::Applied
            }
            Ok(None) => {
                self.snapshot.advance(index, at);
                Answer::Applied
            }
            Err(why) => {
                self.snapshot.advance(index, at);
                Answer::RestoreRefused(why)
            }
        }
    }

    /// Begins the registry's next incarnation, after an operator made one member all of it.
    pub(crate) fn raise_incarnation(&mut self) {
        let ClusterId { uuid, incarnation } = self.snapshot.cluster().clone();
        let next = ClusterId { uuid, incarnation: incarnation.saturating_add(1) };
        let (index, at) = (self.snapshot.index(), self.snapshot.at());
        self.snapshot.fold(&Entry { index, at, changes: vec![Change::SetCluster(next)] });
        self.publish_anew();
    }
}

impl Machine for CatalogMachine {
    type Answer = Answer;

    fn apply(&mut self, batch: Vec<Committed>) -> Vec<Answer> {
        let mut happened = Happened::default();
        let mut answers = Vec::with_capacity(batch.len());
        for committed in batch {
            let index = committed.index;
            answers.push(self.apply_one(committed, &mut happened));
            // None after an entry that this build cannot read.
            let reached = self.snapshot.checksum().filter(|_| self.snapshot.index() == index);
            happened.sums.extend(reached.map(|sum| (index, sum)));
        }
        self.sums.extend(happened.sums);
        // The ring first, and the marks: whoever sees the Snapshot finds all that led to it.
        let marked = self.watchers.mark(&happened.records);
        self.ring.append(happened.records);
        if happened.replaced {
            self.publish_anew();
        } else {
            self.published.send_replace(Arc::new(self.snapshot.clone()));
        }
        self.watchers.wake(marked);
        self.waiters.wake(&happened.topics);
        answers
    }

    fn size(&self) -> usize {
        self.snapshot.instance_count()
    }

    fn freeze(&self) -> Box<dyn FnOnce(&mut dyn Write) -> io::Result<()> + Send> {
        if let Some(fault) = self.fault.borrow().as_deref() {
            let fault = fault.clone();
            // A snapshot would claim entries that were not applied.
            return Box::new(move |_| Err(io::Error::other(fault)));
        }
        let (snapshot, staging) = (self.snapshot.clone(), self.staging.freeze());
        Box::new(move |to| encode_snapshot(&snapshot, to).and_then(|()| staging(to)))
    }

    fn install(&mut self, from: &mut dyn Read) -> io::Result<()> {
        let snapshot = decode_snapshot(from, Scope::All).map_err(io::Error::other)?;
        self.staging = Staging::install(from)?;
        self.ring.reset(snapshot.index());
        self.snapshot = snapshot;
        self.snapshot.keep_checksum();
        self.sums.reset(self.snapshot.index(), self.snapshot.checksum());
        self.publish_anew();
        Ok(())
    }
}

/// A Proposal as the log holds it.
pub(crate) fn encode_proposal(proposal: &Proposal) -> Bytes {
    pb::Proposal::from(proposal).encode_to_vec().into()
}

/// A piece of a restore as the log holds it.
pub(crate) fn encode_restore(at: Timestamp, piece: pb::RestorePiece) -> Bytes {
    pb::Proposal { at_milliseconds: at.0, command: None, restore: Some(piece) }.encode_to_vec().into()
}

/// What an entry holds.
#[expect(clippy::large_enum_variant, reason = "it is taken apart at once, and nearly every entry is the large one")]
enum Proposed {
    Command(Proposal),
    Restore(Timestamp, pb::RestorePiece),
}

fn decode_proposal(payload: Bytes) -> Result<Proposed, String> {
    let mut proposal = pb::Proposal::decode(payload).map_err(|error| error.to_string())?;
    if let Some(piece) = proposal.restore.take() {
        return Ok(Proposed::Restore(Timestamp(proposal.at_milliseconds), piece));
    }
    let proposal = Proposal::try_from(proposal).map_err(|error: ConvertError| error.to_string())?;
    Ok(Proposed::Command(proposal))
}

#[cfg(test)]
pub(crate) mod tests;
