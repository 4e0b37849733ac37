//! What this room needs of a replicated log, and nothing of how it is replicated.
//!
//! A seam: the service is tested on a log in memory.

#[cfg(test)]
pub(crate) mod memory;

use std::{any::Any, collections::BTreeMap};

use bytes::Bytes;
use muster_catalog::port::BoxFuture;
use tokio::sync::watch;

use crate::{
    machine::{Answer, CatalogMachine},
    raft::{
        ChangeError, Consensus, Contacts, Greeting, Leadership, Member, MemberChange, ProposeError, ReadError,
        ReadPolicy,
    },
};

/// What became of a proposal: its index, and what applying it yielded.
pub(crate) type Outcome = Result<(u64, Answer), ProposeError>;

/// The replicated log that drives this member's catalog.
pub(crate) trait Log: Send + Sync + 'static {
    /// Appends each payload as an entry of its own, in this order, and returns for each what applying it here yielded,
    /// once a quorum has it on disk.
    fn propose_many(&self, payloads: Vec<Bytes>) -> BoxFuture<'_, Vec<Outcome>>;
    /// An index that holds all that was committed before; only the leader has one.
    fn read_index(&self, policy: ReadPolicy) -> BoxFuture<'_, Result<u64, ReadError>>;
    /// Stands for election, unless a leader's lease still runs.
    fn stand_for_election(&self) -> BoxFuture<'_, ()>;
    /// Who leads, and every change of it.
    fn leadership(&self) -> watch::Receiver<Leadership>;
    /// All members.
    fn members(&self) -> Vec<Member>;
    /// This member's id.
    fn id(&self) -> u64;
    /// Changes the members and says what was done; the leader alone can.
    fn change_members(&self, change: MemberChange) -> BoxFuture<'_, Result<String, ChangeError>>;
    /// Keeps the members as they are until the guard goes.
    fn hold_members(&self) -> BoxFuture<'_, Box<dyn Any + Send>>;
    /// What this member hears of the others as their leader.
    fn contacts(&self) -> Option<Contacts>;
    /// What each member that answers says of itself.
    fn greetings(&self) -> BoxFuture<'_, BTreeMap<u64, Greeting>>;
}

impl Log for Consensus<CatalogMachine> {
    fn propose_many(&self, payloads: Vec<Bytes>) -> BoxFuture<'_, Vec<Outcome>> {
        Box::pin(Consensus::propose_many(self, payloads))
    }

    fn read_index(&self, policy: ReadPolicy) -> BoxFuture<'_, Result<u64, ReadError>> {
        Box::pin(Consensus::read_index(self, policy))
    }

    fn stand_for_election(&self) -> BoxFuture<'_, ()> {
        Box::pin(Consensus::stand_for_election(self))
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

    fn change_members(&self, change: MemberChange) -> BoxFuture<'_, Result<String, ChangeError>> {
        Box::pin(Consensus::change_members(self, change))
    }

    fn hold_members(&self) -> BoxFuture<'_, Box<dyn Any + Send>> {
        Box::pin(async { Box::new(Consensus::hold_members(self).await) as _ })
    }

    fn contacts(&self) -> Option<Contacts> {
        Consensus::contacts(self)
    }

    fn greetings(&self) -> BoxFuture<'_, BTreeMap<u64, Greeting>> {
        Box::pin(Consensus::greetings(self))
    }
}
