//! The state machine behind the log: payload → Proposal → `decide` → `fold` → one publication for each batch.

use std::{
    io::{self, Read, Write},
    sync::Arc,
};

use bytes::Bytes;
use muster_catalog::{Change, Entry, Footprint, Proposal, Rejection, Scope, Snapshot, decide};
use prost::Message;
use tokio::sync::watch;

use crate::{
    codec::{decode_snapshot, encode_snapshot},
    convert::ConvertError,
    proto::catalog as pb,
    raft::{Committed, Machine},
    watch::ring::{Record, Ring},
};

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
    fault: watch::Sender<Option<Arc<Fault>>>,
}

impl CatalogMachine {
    /// An empty catalog and its readers' side.
    pub(crate) fn new() -> (Self, Catalog) {
        let snapshot = Snapshot::default();
        let (published, receiver) = watch::channel(Arc::new(snapshot.clone()));
        let (fault, fault_receiver) = watch::channel(None);
        let ring = Arc::new(Ring::new(snapshot.index()));
        let catalog = Catalog { snapshot: receiver, ring: ring.clone(), fault: fault_receiver };
        (Self { snapshot, published, ring, fault }, catalog)
    }

    fn apply_one(&mut self, committed: Committed, records: &mut Vec<Record>) -> Answer {
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
            Ok(proposal) => self.apply_proposal(index, proposal, size, records),
            Err(reason) => {
                let fault = Fault { index, reason };
                tracing::error!(%fault, "the catalog stands still");
                self.fault.send_replace(Some(Arc::new(fault)));
                Answer::Unapplied
            }
        }
    }

    fn apply_proposal(&mut self, index: u64, proposal: Proposal, size: usize, records: &mut Vec<Record>) -> Answer {
        // A leader whose clock lags behind its predecessor's must not turn time back.
        let proposal = Proposal { at: proposal.at.max(self.snapshot.at()), ..proposal };
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
            records.push(Record { footprint: footprint.after(&self.snapshot, &topics), entry, size });
        }
        Answer::Applied
    }
}

impl Machine for CatalogMachine {
    type Answer = Answer;

    fn apply(&mut self, batch: Vec<Committed>) -> Vec<Answer> {
        let mut records = Vec::new();
        let answers = batch.into_iter().map(|committed| self.apply_one(committed, &mut records)).collect();
        // The ring first: whoever sees the Snapshot finds all that led to it.
        self.ring.append(records);
        self.published.send_replace(Arc::new(self.snapshot.clone()));
        answers
    }

    fn freeze(&self) -> Box<dyn FnOnce(&mut dyn Write) -> io::Result<()> + Send> {
        if let Some(fault) = self.fault.borrow().as_deref() {
            let fault = fault.clone();
            // A snapshot would claim entries that were not applied.
            return Box::new(move |_| Err(io::Error::other(fault)));
        }
        let snapshot = self.snapshot.clone();
        Box::new(move |to| encode_snapshot(&snapshot, to))
    }

    fn install(&mut self, from: &mut dyn Read) -> io::Result<()> {
        let snapshot = decode_snapshot(from, Scope::All).map_err(io::Error::other)?;
        self.ring.reset(snapshot.index());
        self.snapshot = snapshot;
        self.published.send_replace(Arc::new(self.snapshot.clone()));
        Ok(())
    }
}

/// A Proposal as the log holds it.
pub(crate) fn encode_proposal(proposal: &Proposal) -> Bytes {
    pb::Proposal::from(proposal).encode_to_vec().into()
}

fn decode_proposal(payload: Bytes) -> Result<Proposal, String> {
    let proposal = pb::Proposal::decode(payload).map_err(|error| error.to_string())?;
    Proposal::try_from(proposal).map_err(|error: ConvertError| error.to_string())
}

#[cfg(test)]
pub(crate) mod tests;
