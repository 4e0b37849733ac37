//! What this room needs of a replicated log, and nothing of how it is replicated.
//!
//! A seam: the service is tested on a log in memory.

#[cfg(test)]
pub(crate) mod memory;

use bytes::Bytes;
use muster_catalog::port::BoxFuture;
use tokio::sync::watch;

use crate::{
    machine::{Answer, CatalogMachine},
    raft::{Consensus, Leadership, Member, ProposeError, ReadError, ReadPolicy},
};

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

impl Log for Consensus<CatalogMachine> {
    fn propose(&self, payload: Bytes) -> BoxFuture<'_, Result<(u64, Answer), ProposeError>> {
        Box::pin(Consensus::propose(self, payload))
    }

    fn read_index(&self, policy: ReadPolicy) -> BoxFuture<'_, Result<u64, ReadError>> {
        Box::pin(Consensus::read_index(self, policy))
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        Consensus::leadership(self)
    }

    fn members(&self) -> Vec<Member> {
        Consensus::members(self)
    }

    fn id(&self) -> u64 {
        self.node_id()
    }
}
