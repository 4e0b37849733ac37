//! What the replicated log asks of the thing it replicates.

use std::fmt;
use std::io::{self, Read, Write};

use bytes::Bytes;

/// One committed entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Its place in the log.
    pub index: u64,
    /// `None` for the entries that only Raft needs: a new leader's first, and changes of members.
    pub payload: Option<Bytes>,
}

/// Writes a frozen state, off the runtime, in whatever order and time it takes.
pub type Freeze = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()> + Send>;

/// A deterministic state: the same entries in the same order give the same state at every member.
pub trait Machine: Send + Sync + 'static {
    /// What a proposer gets back. Entries without a payload get the default, and nobody reads it.
    type Answer: Clone + Default + Send + Sync + fmt::Debug + 'static;

    /// Applies a whole batch in order and publishes once at its end. One answer per entry, in order.
    fn apply(&mut self, batch: Vec<Committed>) -> Vec<Self::Answer>;

    /// About how many things the state holds, each about as much as an entry brings.
    fn size(&self) -> usize;

    /// The present state, cheaply held on to; the closure serialises it later and elsewhere.
    fn freeze(&self) -> Freeze;

    /// Replaces the state by a serialised one. On an error the member stops.
    fn install(&mut self, from: &mut dyn Read) -> io::Result<()>;
}
