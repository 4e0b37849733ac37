//! What rooms read: Snapshots, and how fresh they are.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use crate::{Name, Snapshot, Text};

/// Milliseconds since the Unix epoch. Time is always an argument or a field, never read in this room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// How long ago `earlier` was; zero when it lies ahead.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// Which registry a catalog comes from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClusterId {
    /// Drawn once, at the first bootstrap; empty before.
    pub uuid: Text,
    /// Raised by a restore or recovery: within one, an index never goes backwards.
    pub incarnation: u64,
}

/// How current a View is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// Nothing was ever loaded: there is nothing to answer from.
    Empty,
    /// The stream from the registry is up.
    Live,
    /// The stream is down; this is what was known at that time.
    Stale {
        /// When the registry was last heard.
        since: Timestamp,
    },
}

impl Freshness {
    /// The age of the data at `now`: zero while live, `None` when there is none.
    pub fn age(self, now: Timestamp) -> Option<Duration> {
        match self {
            Self::Empty => None,
            Self::Live => Some(Duration::ZERO),
            Self::Stale { since } => Some(now.since(since)),
        }
    }
}

/// What a federated datacenter exports to this one.
#[derive(Debug, Clone)]
pub struct Import {
    /// Its services.
    pub snapshot: Arc<Snapshot>,
    /// Raised when the peer's index started anew.
    pub incarnation: u64,
}

/// What the rooms answer from: one consistent local Snapshot, the imports, and their freshness.
#[derive(Debug, Clone)]
pub struct View {
    /// This datacenter's catalog.
    pub local: Arc<Snapshot>,
    /// Federated datacenters by name.
    pub imports: Arc<BTreeMap<Name, Import>>,
    /// How current `local` is.
    pub freshness: Freshness,
}

impl View {
    /// A View of one Snapshot, without imports.
    pub fn new(local: Arc<Snapshot>, freshness: Freshness) -> Self {
        Self { local, imports: Arc::default(), freshness }
    }
}
