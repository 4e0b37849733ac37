//! A registry that has lost its quorum for good, begun anew from what one member holds. Offline: the folder is locked.
//!
//! The member gets a new id, so that members that were thought dead and come back with the old membership cannot reach
//! it: they ask for the old id, and are refused.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use super::consensus::failed;
use super::snapshot::SnapshotStore;
use super::{
    Committed, EntryPayload, LogId, Machine, Membership, Payload, Peer, SnapshotMeta, StartError, StoredMembership,
    wire,
};
use crate::store::directory::{DataDirectory, unmark_differing};
use crate::store::mark::LogMark;
use crate::store::{DiskGuard, Engine, EngineKind, LogSettings};

/// Bytes of the log read and applied at once.
const BATCH_BYTES: usize = 4 * 1024 * 1024;

/// What became of the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// The last entry it holds now.
    pub index: u64,
    /// Entries at the end of the log of which this member did not know whether they were committed. They are in.
    pub uncertain: u64,
    /// The members that are no more: their names and addresses.
    pub left_behind: Vec<String>,
}

/// Why a folder cannot be recovered.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The folder, its lock, log or snapshot.
    #[error(transparent)]
    Start(#[from] StartError),
    /// There is no registry in it.
    #[error("{0:?} holds no member of a registry: name the configuration of a member that survived")]
    Nothing(PathBuf),
}

impl From<crate::store::directory::DirectoryError> for RecoverError {
    fn from(error: crate::store::directory::DirectoryError) -> Self {
        Self::Start(error.into())
    }
}

/// Makes the member in `data_dir` the only one. `finish` may change the machine before it is written; with `dry_run`
/// nothing is.
pub(crate) fn recover<M: Machine>(
    data_dir: &Path,
    kind: EngineKind,
    me: Peer,
    mut machine: M,
    finish: impl FnOnce(&mut M),
    dry_run: bool,
) -> Result<Recovered, RecoverError> {
    let nothing = || RecoverError::Nothing(data_dir.to_path_buf());
    if !DataDirectory::exists(data_dir) {
        return Err(nothing());
    }
    let failed = |what: &'static str| {
        let failed = failed(what, data_dir);
        move |source| RecoverError::Start(failed(source))
    };
    let directory = DataDirectory::open(data_dir, kind)?;
    let engine = kind.open(&LogSettings::new(directory.log()), Some(directory.lock())).map_err(failed("the log"))?;
    let snapshots =
        SnapshotStore::open(directory.snapshots(), DiskGuard::new(data_dir, 0)).map_err(failed("the snapshot"))?;

    let (mut last, mut membership) = (None, StoredMembership::default());
    if let Some(current) = snapshots.current() {
        current.snapshot.read_body(|body| machine.install(body)).map_err(failed("the snapshot"))?;
        (last, membership) = (current.meta.last_log_id, current.meta.last_membership);
    }
    replay(&*engine, &mut machine, &mut last, &mut membership).map_err(failed("the log"))?;
    let last = last.ok_or_else(nothing)?;
    let committed = engine.bounds().committed.map_or(0, |at| at.index);
    let others = membership.nodes().filter(|(id, _)| **id != directory.node_id());
    let recovered = Recovered {
        index: last.index,
        uncertain: last.index.saturating_sub(committed),
        left_behind: others.map(|(_, peer)| peer.to_string()).collect(),
    };
    if dry_run {
        return Ok(recovered);
    }
    finish(&mut machine);
    let id = directory.renew_node_id()?;
    let alone = Membership::new(vec![BTreeSet::from([id])], BTreeMap::from([(id, me)]))
        .map_err(|error| StartError::Raft(error.to_string()))?;
    let meta = SnapshotMeta { last_log_id: Some(last), last_membership: StoredMembership::new(Some(last), alone) };
    snapshots.build(meta, machine.freeze()).map_err(failed("the snapshot"))?;
    // Last: until the snapshot holds it all the log is needed, and a second attempt begins from both.
    engine.purge(wire::position(&last)).and_then(|()| engine.flush()).map_err(failed("the log"))?;
    // The new member's log is what it is now, whatever the old one's had lost.
    LogMark::remove(directory.path()).map_err(failed("the log"))?;
    unmark_differing(directory.path()).map_err(failed("the note that it differs"))?;
    Ok(recovered)
}

/// Applies what follows the snapshot in the log. All of it: what this member had not heard to be committed may have been
/// acknowledged all the same.
fn replay<M: Machine>(
    engine: &dyn Engine,
    machine: &mut M,
    last: &mut Option<LogId>,
    membership: &mut StoredMembership,
) -> io::Result<()> {
    let Some(end) = engine.bounds().last.map(|last| last.index + 1) else { return Ok(()) };
    loop {
        let next = last.as_ref().map_or(0, |last| last.index + 1);
        if next >= end {
            return Ok(());
        }
        let records = engine.read(next..end, BATCH_BYTES)?;
        let mut batch = Vec::with_capacity(records.len());
        for record in records {
            let entry = wire::record_from(record)?;
            let expected = last.as_ref().map_or(0, |last| last.index + 1);
            if entry.log_id.index != expected {
                let why = format!("entry {expected} is missing between snapshot and log");
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
            *last = Some(entry.log_id);
            let payload = match entry.payload {
                EntryPayload::Normal(Payload(bytes)) => Some(bytes),
                EntryPayload::Blank => None,
                EntryPayload::Membership(next) => {
                    *membership = StoredMembership::new(Some(entry.log_id), next);
                    None
                }
            };
            batch.push(Committed { index: entry.log_id.index, payload });
        }
        if batch.is_empty() {
            let why = format!("entry {next} cannot be read");
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        machine.apply(batch);
    }
}
