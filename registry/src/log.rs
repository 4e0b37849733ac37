//! What this room needs of a replicated log, and nothing of how it is replicated.
//!
//! A seam: the service is tested on a log in memory.

use std::fmt;

use bytes::Bytes;
use muster_catalog::port::BoxFuture;
use tokio::sync::watch;

use crate::machine::Answer;

#[cfg(test)]
pub(crate) mod memory;

/// A log entry that a quorum has.
#[derive(Debug, Clone)]
pub struct Committed {
    /// Its index.
    pub index: u64,
    /// What was proposed; `None` for a blank or membership entry.
    pub payload: Option<Bytes>,
}

/// What a log drives.
pub trait Machine: Send + Sync + 'static {
    /// What applying one entry yields.
    type Answer: Clone + Default + Send + Sync + fmt::Debug + 'static;
    /// Applies entries in order, an answer for each; publishes once, at the end.
    fn apply(&mut self, batch: Vec<Committed>) -> Vec<Self::Answer>;
    /// A writer of the state as it is now; run aside.
    fn freeze(&self) -> Box<dyn FnOnce(&mut dyn std::io::Write) -> std::io::Result<()> + Send>;
    /// Replaces the state by one that was frozen.
    fn install(&mut self, from: &mut dyn std::io::Read) -> std::io::Result<()>;
}

/// A server of the registry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Member {
    /// Random, kept on its disk.
    pub id: u64,
    /// Its node's name.
    pub name: String,
    /// Where other members and agents reach it, `host:port`.
    pub address: String,
    /// Whether it counts for the quorum.
    pub voter: bool,
    /// Whether it leads, as far as this member knows.
    pub is_leader: bool,
}

/// Who leads, as one member knows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Leadership {
    /// Whether this member does.
    pub is_leader: bool,
    /// Who does.
    pub leader: Option<Member>,
    /// The term.
    pub term: u64,
    /// Whether this member has again what it had before its start: earlier, it may know less than it served already.
    pub recovered: bool,
}

/// Why an entry was not acknowledged.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ProposeError {
    /// Another member leads, or none does; nothing was proposed.
    #[error("this member does not lead")]
    NotLeader {
        /// Who does.
        leader: Option<Member>,
    },
    /// It may or may not be committed.
    #[error("{0}")]
    UnknownOutcome(String),
    /// The log takes nothing at this time; nothing was proposed.
    #[error("{0}")]
    Refused(String),
}

/// Why there is no index to read at.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ReadError {
    /// Another member leads, or none does.
    #[error("this member does not lead")]
    NotLeader {
        /// Who does.
        leader: Option<Member>,
    },
    /// No quorum answered in time, or this member is stopping.
    #[error("{0}")]
    Unavailable(String),
}

/// How sure a leader has to be that it still leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReadPolicy {
    /// As sure as its lease makes it.
    Lease,
    /// A quorum confirmed it since.
    Quorum,
}

/// The replicated log that drives this member's catalog.
pub(crate) trait Log: Send + Sync + 'static {
    /// Appends and returns what applying it here yielded, once a quorum has it on disk.
    fn propose(&self, payload: Bytes) -> BoxFuture<'_, Result<(u64, Answer), ProposeError>>;
    /// An index that holds all that was committed before; only the leader has one.
    fn read_index(&self, policy: ReadPolicy) -> BoxFuture<'_, Result<u64, ReadError>>;
    /// Who leads, and every change of it.
    fn leadership(&self) -> watch::Receiver<Leadership>;
    /// All members.
    fn members(&self) -> Vec<Member>;
    /// This member's id.
    fn id(&self) -> u64;
}
