//! How much is measured: all of it for figures, as little as runs for CI.

use std::time::Duration;

/// The sizes of a run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    /// How often each figure is taken; the median is printed.
    pub(super) rounds: usize,
    /// How long one round of writes or reads lasts.
    pub(super) round: Duration,
    /// DNS questions per round.
    pub(super) questions: usize,
    /// Names that DNS is asked for, with three instances each.
    pub(super) names: u64,
    /// Blocking reads that are parked at once.
    pub(super) waiters: usize,
    /// Services that they wait on.
    pub(super) waited: usize,
}

impl Size {
    /// For figures.
    pub(super) const FULL: Self = Self {
        rounds: 3,
        round: Duration::from_secs(4),
        questions: 200_000,
        names: 1_000,
        waiters: 10_000,
        waited: 100,
    };

    /// Shows that it runs.
    pub(super) const SMALL: Self =
        Self { rounds: 1, round: Duration::from_millis(500), questions: 6_400, names: 20, waiters: 100, waited: 5 };
}
