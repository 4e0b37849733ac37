//! The log on disk: what a storage engine must do, the default one and, with the feature `sled`, a second one.
//!
//! An [`Engine`] knows positions, votes and opaque bytes, nothing of Raft's rules. Writes become readable at once and
//! durable at the next [`Engine::flush`]; one thread calls that for everything that gathered meanwhile, which is what
//! makes sixty-four writers share one `fdatasync`. Every engine passes the contract suite in `store/tests.rs` and
//! openraft's own.

pub mod directory;
mod flusher;
mod kind;
pub(crate) mod mark;
mod raft_log;
#[cfg(feature = "sled")]
mod sled_log;
mod space;
pub(crate) mod watched;

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

pub use flusher::{Completion, Fault, Flusher, abort_on_fault};
pub use kind::{EngineKind, LogSettings, NotBuilt};
pub use raft_log::RaftLogEngine;
#[cfg(feature = "sled")]
pub use sled_log::SledEngine;
pub use space::DiskGuard;

/// Where an entry stands in the log, and by whose leadership it came there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Term of the leader that proposed the entry.
    pub term: u64,
    /// That leader.
    pub node: u64,
    /// Place in the log.
    pub index: u64,
}

/// The vote a member has cast, in the order in which votes may only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ballot {
    /// Term voted in.
    pub term: u64,
    /// The candidate.
    pub node: u64,
    /// Whether a quorum granted it.
    pub committed: bool,
}

/// One entry as an engine stores it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where it stands.
    pub position: Position,
    /// The encoded payload.
    pub payload: Bytes,
}

/// What an engine knows about itself, read once at start and whenever asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogBounds {
    /// The last vote saved.
    pub vote: Option<Ballot>,
    /// The last commit position saved; may trail the true one.
    pub committed: Option<Position>,
    /// Everything up to here is gone.
    pub purged: Option<Position>,
    /// The last entry, or the purge position when there is none.
    pub last: Option<Position>,
}

/// A file of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFile {
    /// Where it lies.
    pub path: PathBuf,
    /// So many bytes of it were written: once the next flush returns it has no fewer.
    pub length: u64,
}

/// A log on disk. Calls come from several threads; writes come from one at a time.
///
/// Every write is readable when the call returns and durable when the next [`flush`](Engine::flush) returns.
pub trait Engine: Send + Sync + 'static {
    /// Vote, committed, purged and last.
    fn bounds(&self) -> LogBounds;

    /// Adds consecutive records after the last one.
    fn append(&self, records: Vec<Record>) -> io::Result<()>;

    /// The records of `range` in order, as many as fit in `max_bytes` but at least one where there is one.
    fn read(&self, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<Record>>;

    /// Forgets everything after `keep`, `None` all of it. An error where that is known to be committed.
    fn truncate_after(&self, keep: Option<Position>) -> io::Result<()>;

    /// Forgets everything up to and including `upto`, which may lie beyond the last record.
    fn purge(&self, upto: Position) -> io::Result<()>;

    /// Records a vote.
    fn save_vote(&self, vote: Ballot) -> io::Result<()>;

    /// Records how far the log is known to be committed. Durable with the next flush; nobody asks for one because of it.
    fn save_committed(&self, committed: Position) -> io::Result<()>;

    /// Blocks until every write before this call is on stable storage. An error is final: what is on disk is unknown.
    fn flush(&self) -> io::Result<()>;

    /// Whether the first of the entries that the bounds promise is there.
    fn begins_where_it_should(&self) -> io::Result<bool> {
        let bounds = self.bounds();
        if bounds.last <= bounds.purged {
            return Ok(true);
        }
        let first = bounds.purged.map_or(0, |purged| purged.index + 1);
        Ok(!self.read(first..first + 1, 1)?.is_empty())
    }

    /// The files without which the log cannot be opened again. A name is given once: what is removed does not return.
    fn files(&self) -> Vec<LogFile>;
}

/// Stands between the log and its engine: what a test makes slow, or lets fail as a disk does.
pub type Layer = Arc<dyn Fn(Arc<dyn Engine>) -> Arc<dyn Engine> + Send + Sync>;

/// Nothing in between.
pub fn no_layer() -> Layer {
    Arc::new(|engine| engine)
}

#[cfg(test)]
mod tests;
