//! The metrics of the write path, looked up once: a lookup for each write is a hash and a lock of the recorder's.

use metrics::{Counter, Histogram, counter, histogram};

/// Counters and histograms that every write touches.
pub(crate) struct Meters {
    pub(crate) committed: Counter,
    pub(crate) refused: Counter,
    pub(crate) not_proposed: Counter,
    pub(crate) unknown_outcome: Counter,
    pub(crate) seconds: Histogram,
}

impl Meters {
    /// The recorder has to be installed before.
    pub(crate) fn new() -> Self {
        let writes = |result: &'static str| counter!("muster_registry_writes_total", "result" => result);
        Self {
            committed: writes("committed"),
            refused: writes("refused"),
            not_proposed: writes("not_proposed"),
            unknown_outcome: writes("unknown_outcome"),
            seconds: histogram!("muster_registry_write_seconds"),
        }
    }
}
