//! What happened: whole rows put, keys deleted. The only thing that watchers ever see.

use std::sync::Arc;

use crate::{Check, CheckId, ClusterId, Instance, InstanceId, Name, Node, Text, Timestamp};

/// One thing that happened to the catalog. Folding it twice at one index changes nothing more.
///
/// Only ever added to: agents of a neighbouring version are sent the kinds they know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The registry got its identity, or a new incarnation of it.
    SetCluster(ClusterId),
    /// Every member knows this format now.
    SetFormat(u32),
    /// The order of a node's own writes; kept by the registry, never watched.
    PutWriter {
        /// The node.
        node: Name,
        /// Its last write.
        writer: Writer,
    },
    /// A node came or changed.
    PutNode(Arc<Node>),
    /// A node went, and all that stands on it.
    DeleteNode(Name),
    /// An instance came or changed.
    PutInstance(Arc<Instance>),
    /// An instance went, and its checks.
    DeleteInstance {
        /// Its node.
        node: Name,
        /// Its id.
        id: InstanceId,
    },
    /// A check came or changed.
    PutCheck(Arc<Check>),
    /// A check went.
    DeleteCheck {
        /// Its node.
        node: Name,
        /// Its id.
        id: CheckId,
    },
    /// What a replica hears of a service outside its Scope; never in the log.
    PutDirectory(DirectoryRow),
    /// A service outside a replica's Scope has no instance left; never in the log.
    DeleteDirectory(Name),
}

/// A service as every replica knows it, whether or not it holds the instances.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryRow {
    /// The service.
    pub service: Name,
    /// Its blocking index.
    pub index: u64,
    /// The union of its instances' tags, sorted.
    pub tags: Vec<Text>,
}

/// The place of a write among its node's writes: later ones supersede earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Writer {
    /// Raised at each start of the agent.
    pub incarnation: u64,
    /// Raised with each write of one incarnation.
    pub sequence: u64,
}

/// All Changes of one log entry: folded whole or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The log index, and the version of the rows it puts.
    pub index: u64,
    /// The time it was proposed at, never before the previous entry's.
    pub at: Timestamp,
    /// In key order.
    pub changes: Vec<Change>,
}
