//! The replicated log: opaque payloads in, the same payloads in the same order at every member out.
//!
//! It owns consensus (openraft), the log's storage, the wire between members, Raft snapshots, bootstrap and changes of members.
//! It does not know what a payload means: a [`Machine`] applies them, freezes itself for a snapshot and is replaced by
//! one. The flow: [`Consensus::propose`] → the leader's log ([`log`]) and each follower's, over one kept stream
//! ([`network`], [`service`]) → a quorum has flushed → [`Machine::apply`] on every member, whole batches at a time
//! ([`apply`]) → the proposer gets its answer. Every so many entries the machine is frozen into a snapshot file
//! ([`snapshot`]) and the log before it is dropped; a member too far behind is sent that file.
//!
//! openraft's types stay in here, and its own serialisation is never used: [`wire`] is our encoding, on disk too.

mod ahead;
mod apply;
mod bootstrap;
mod change;
mod config;
mod consensus;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod leadership;
mod log;
mod machine;
mod membership;
mod network;
mod recover;
mod room;
mod service;
mod settings;
mod snapshot;
mod standing;
pub mod wire;

use std::any::Any;
use std::fmt;

use bytes::Bytes;

pub use ahead::Ahead;
pub(crate) use change::shown as id_text;
pub use change::{ChangeError, MemberChange};
pub use config::{ConsensusConfig, Formats, StartError};
pub use consensus::{Consensus, MAX_PAYLOAD_BYTES, ProposeError, Proposed, ReadError, ReadPolicy};
pub use leadership::Leadership;
pub use machine::{Committed, Freeze, Machine};
pub use membership::{Contact, Contacts, Greeting};
pub use network::{Dial, endpoint, plaintext, plaintext_by};
pub(crate) use recover::recover;
pub use recover::{RecoverError, Recovered};
pub use service::LogService;
pub use snapshot::SnapshotFile;
pub use standing::Removed;

openraft::declare_raft_types!(
    /// openraft, filled in: opaque payloads, random u64 ids, members known by name and address.
    pub Types:
        D = Payload,
        R = Reply,
        NodeId = u64,
        Node = Peer,
);

pub(crate) type Raft<M> = openraft::Raft<Types, apply::Applier<M>>;
pub(crate) type LogId = openraft::type_config::alias::LogIdOf<Types>;
pub(crate) type LeaderId = openraft::type_config::alias::LeaderIdOf<Types>;
pub(crate) type Vote = openraft::type_config::alias::VoteOf<Types>;
pub(crate) type Entry = openraft::type_config::alias::EntryOf<Types>;
pub(crate) type EntryPayload = openraft::type_config::alias::EntryPayloadOf<Types>;
pub(crate) type Membership = openraft::Membership<u64, Peer>;
pub(crate) type StoredMembership = openraft::type_config::alias::StoredMembershipOf<Types>;
pub(crate) type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<Types>;
pub(crate) type RaftSnapshot = openraft::type_config::alias::SnapshotOf<Types, SnapshotFile>;

/// The bytes of one proposal.
#[derive(Clone, PartialEq, Eq)]
pub struct Payload(pub Bytes);

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Payloads may hold secrets: logs show their size only.
        write!(f, "{} bytes", self.0.len())
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The machine's answer on its way through openraft, which is not generic over it: one box instead of a type
/// parameter on every module here.
#[derive(Debug, Default)]
pub struct Reply(pub(crate) Option<Box<dyn Any + Send + Sync>>);

/// What the membership says of a member, beside its id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Its configured name.
    pub name: String,
    /// `host:port`, resolved at every connection.
    pub address: String,
    /// It stays without a vote until it is promoted by command.
    pub read_only: bool,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.name, self.address)
    }
}

/// A server of the registry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Random, one per disk, never used again.
    pub id: u64,
    /// Its configured name.
    pub name: String,
    /// `host:port`.
    pub address: String,
    /// Whether it counts for the quorum.
    pub voter: bool,
    /// Whether it stays without a vote until it is promoted by command; other learners become voters by themselves.
    pub read_only: bool,
    /// Whether it leads, as far as this member knows.
    pub is_leader: bool,
}

#[cfg(test)]
mod tests;
