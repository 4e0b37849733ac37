//! What happened lately, for watch streams: they keep a cursor and read on from it, so that a slow one holds nothing.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use bytes::Bytes;
use muster_catalog::{Change, Entry, Footprint, Gathered};
use prost::Message;

use crate::proto::catalog as pb;

/// Entries kept. Ten thousand nodes that flap once each still resume; a stream that is further behind reloads.
pub(super) const MAX_ENTRIES: usize = 16_384;
/// Payload bytes kept, at most: large pushes must not make the ring large.
pub(super) const MAX_BYTES: usize = 64 * 1024 * 1024;
/// What a record costs beside its payload: its footprint, and rows that are larger in memory than on the wire.
const RECORD_BYTES: usize = 1024;
/// Runs of entries that are kept gathered: watchers whose heartbeats come together ask for the same few.
const MAX_RUNS: usize = 16;
/// A run that is larger when gathered is not kept for others.
const MAX_RUN_BYTES: usize = 1024 * 1024;

/// One entry, and what a Scope needs to be told of it.
#[derive(Debug)]
pub(crate) struct Record {
    /// What happened.
    pub(crate) entry: Entry,
    /// What narrower Scopes need to know of the catalog around it.
    pub(crate) footprint: Footprint,
    /// The bytes of its payload.
    pub(crate) size: usize,
    /// As those who hold everything are sent it.
    pub(crate) whole: OnceLock<Bytes>,
}

impl Record {
    /// An entry that was just folded.
    pub(crate) fn new(entry: Entry, footprint: Footprint, size: usize) -> Self {
        Self { entry, footprint, size, whole: OnceLock::new() }
    }

    /// The entry as those who hold everything are sent it: encoded once, whoever asks.
    pub(crate) fn encode_whole(&self) -> Bytes {
        let encode = || {
            let watched = self.entry.changes.iter().filter(|change| !matches!(change, Change::PutWriter { .. }));
            encode(&Entry { changes: watched.cloned().collect(), ..self.entry })
        };
        self.whole.get_or_init(encode).clone()
    }
}

/// An entry as it is sent.
pub(crate) fn encode(entry: &Entry) -> Bytes {
    pb::Entry::from(entry).encode_to_vec().into()
}

/// What a run of entries is to those who hold nothing that it touches: after the first index, up to the second.
#[derive(Debug)]
struct Run {
    span: (u64, u64),
    entries: Arc<[Bytes]>,
}

/// The last entries with Changes, bounded by count and bytes.
#[derive(Debug)]
pub(crate) struct Ring {
    inner: Mutex<Inner>,
    runs: Mutex<VecDeque<Run>>,
    max_entries: usize,
    max_bytes: usize,
}

#[derive(Debug)]
struct Inner {
    records: VecDeque<Arc<Record>>,
    bytes: usize,
    /// All entries after this index are here.
    floor: u64,
}

impl Ring {
    /// An empty ring that starts after `floor`.
    pub(crate) fn new(floor: u64) -> Self {
        Self::bounded(floor, MAX_ENTRIES, MAX_BYTES)
    }

    fn bounded(floor: u64, max_entries: usize, max_bytes: usize) -> Self {
        let inner = Inner { records: VecDeque::new(), bytes: 0, floor };
        Self { inner: Mutex::new(inner), runs: Mutex::default(), max_entries, max_bytes }
    }

    /// Adds entries in order; the oldest make room.
    pub(crate) fn append(&self, records: Vec<Record>) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        for record in records {
            inner.bytes += record.size + RECORD_BYTES;
            inner.records.push_back(Arc::new(record));
        }
        while inner.records.len() > self.max_entries || inner.bytes > self.max_bytes {
            let Some(oldest) = inner.records.pop_front() else { break };
            inner.bytes -= oldest.size + RECORD_BYTES;
            inner.floor = oldest.entry.index;
        }
    }

    /// Forgets all: the catalog was replaced by one at `floor`.
    pub(crate) fn reset(&self, floor: u64) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        *inner = Inner { records: VecDeque::new(), bytes: 0, floor };
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// What happened after `cursor` and up to `last`, for those who hold nothing that it touches: gathered and encoded once,
    /// whoever asks. `None` when some of it is gone.
    pub(crate) fn gather(&self, cursor: u64, last: u64) -> Option<Arc<[Bytes]>> {
        // Whoever asks for the same waits for the first one, which takes less than doing it again.
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(run) = runs.iter().find(|run| run.span == (cursor, last)) {
            return Some(run.entries.clone());
        }
        let mut gathered = Gathered::default();
        for record in self.after(cursor, usize::MAX)?.iter().take_while(|record| record.entry.index <= last) {
            gathered.push(&record.entry, &record.footprint);
        }
        let entries: Arc<[Bytes]> = gathered.finish().iter().map(encode).collect();
        if entries.iter().map(Bytes::len).sum::<usize>() <= MAX_RUN_BYTES {
            runs.truncate(MAX_RUNS - 1);
            runs.push_front(Run { span: (cursor, last), entries: entries.clone() });
        }
        Some(entries)
    }

    /// At most `limit` entries after `cursor`, in order; `None` when some of them are gone.
    pub(crate) fn after(&self, cursor: u64, limit: usize) -> Option<Vec<Arc<Record>>> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if cursor < inner.floor {
            return None;
        }
        let start = inner.records.partition_point(|record| record.entry.index <= cursor);
        Some(inner.records.iter().skip(start).take(limit).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(index: u64, size: usize) -> Record {
        let entry = Entry { index, at: Default::default(), changes: Vec::new() };
        Record::new(entry, Footprint::default(), size)
    }

    fn indexes(ring: &Ring, cursor: u64) -> Option<Vec<u64>> {
        ring.after(cursor, 10).map(|records| records.iter().map(|record| record.entry.index).collect())
    }

    #[test]
    fn it_is_bounded_and_says_when_entries_are_gone() {
        let ring = Ring::bounded(5, 3, 10_000);
        ring.append(vec![record(6, 0), record(8, 0), record(9, 0)]);
        assert_eq!(indexes(&ring, 5), Some(vec![6, 8, 9]));
        assert_eq!(indexes(&ring, 7), Some(vec![8, 9]));
        assert_eq!(indexes(&ring, 100), Some(Vec::new()));
        assert_eq!(indexes(&ring, 4), None);
        ring.append(vec![record(10, 0)]);
        assert_eq!(indexes(&ring, 5), None);
        assert_eq!(indexes(&ring, 6), Some(vec![8, 9, 10]));
        ring.append(vec![record(11, 10_000)]);
        assert_eq!(indexes(&ring, 9), None, "one that exceeds the bytes alone is not kept");
        assert_eq!(indexes(&ring, 11), Some(Vec::new()));
        ring.reset(20);
        assert_eq!(indexes(&ring, 19), None);
        assert_eq!(indexes(&ring, 20), Some(Vec::new()));
    }
}
