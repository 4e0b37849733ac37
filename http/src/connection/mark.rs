//! What the parts of one connection tell each other.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// A truth that several parts of one task see. They never run at the same time, so no ordering is asked for.
#[derive(Debug, Clone, Default)]
pub(super) struct Flag(Arc<AtomicBool>);

impl Flag {
    pub(super) fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn set(&self, to: bool) {
        self.0.store(to, Ordering::Relaxed);
    }
}

/// Travels with a request, for the read that parks to say so.
#[derive(Debug, Clone, Default)]
pub(crate) struct ParkedMark(Flag);

impl ParkedMark {
    /// The answer is a long time in coming.
    pub(crate) fn set(&self) {
        self.0.set(true);
    }

    pub(super) fn clear(&self) {
        self.0.set(false);
    }

    pub(super) fn is_set(&self) -> bool {
        self.0.get()
    }
}
