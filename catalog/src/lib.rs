//! The nouns of Muster and the pure state machine that keeps them.
//!
//! **Owns**: [`Node`], [`Instance`], [`Check`] and their names; [`Command`] (what was asked), [`decide()`]
//! (what follows from it), [`Change`] (what happened), [`Snapshot::fold`] (the next state); the indexes
//! that DNS, HTTP and xDS read by; the health rules; the ports between rooms ([`port`]).
//!
//! **Deliberately does not**: do I/O, read a clock, draw a random number, know a wire format, or use tokio.
//!
//! The flow:
//!
//! ```text
//! Command ──decide(&Snapshot)──▶ [Change] ──fold──▶ Snapshot ──publish──▶ readers, waiters by Topic
//!                                   │
//!                                   └─project(Scope)──▶ a replica's [Change] ──fold──▶ its Snapshot
//! ```
//!
//! `decide` runs in the registry alone; `fold` runs in the registry and in every agent's replica.

mod change;
mod check;
mod checks;
mod checksum;
mod command;
mod decide;
mod ends;
mod fold;
mod format;
mod gather;
pub mod health;
mod instance;
mod instances;
mod name;
mod node;
mod overlay;
pub mod port;
mod proxy;
mod rows;
mod scope;
mod service;
mod snapshot;
mod sorted;
mod splice;
mod tags;
mod traffic;
mod view;
mod wake;
mod wide;

pub use change::{Change, DirectoryRow, Entry, Writer};
pub use check::{Check, CheckId, CheckKind, NODE_LIVENESS_CHECK, Status};
pub use checks::{CheckIter, Checks};
pub use checksum::{CHECKSUM_VERSION, Checksum};
pub use command::{Command, NodeSync, Proposal, Registration, Rejection, Removal};
pub use decide::decide;
pub use format::{FIRST_FORMAT, FORMAT, strip_command, strip_instance};
pub use gather::Gathered;
pub use instance::{Instance, InstanceId, Locality, Port, ServiceAddress, Weights};
pub use instances::Instances;
pub use name::{Name, NameError};
pub use node::{Address, Meta, Node, Origin};
pub use proxy::{Inbound, MAX_UPSTREAMS, Protocol, Proxy, ProxyFault, ProxyField, Upstream};
pub use rows::{SnapshotBuilder, SnapshotHeader, SnapshotRow};
pub use scope::{Footprint, Scope, project_changes, project_snapshot};
pub use service::{ServiceSet, ServiceSlot};
pub use snapshot::{InstanceEntry, NodeEntry, Row, ServiceLookup, Snapshot};
pub use splice::Splice;
pub use tags::{MAX_TAG_BYTES, added_tags, tag_bytes};
pub use traffic::{AgreedTraffic, OutlierDetection, Traffic, TrafficFault, TrafficField};
pub use view::{ClusterId, Freshness, Import, Timestamp, View};
pub use wake::{Topic, Waiter, Waiters};
pub use wide::Wide;

/// Shared immutable text: rows are cloned between Snapshots, their strings never are.
pub type Text = std::sync::Arc<str>;
