//! The default engine: the `raft-log` crate, with nothing held back before a flush and a bounded cache.

use std::io::{self, Read, Write};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use codeq::{Decode, Encode};
use raft_log::api::raft_log_writer::RaftLogWriter;
use raft_log::{Config, RaftLog, chunked_wal};

use super::directory::DirectoryLock;
use super::kind::LogSettings;
use super::{Ballot, Engine, LogBounds, LogFile, Position, Record};

/// Largest payload a record on disk may claim. Far above what a proposal may hold: a larger claim is corruption, and
/// must not make us reserve that much memory.
const MAX_RECORD_BYTES: u32 = 64 * 1024 * 1024;

/// An [`Engine`] on the `raft-log` crate.
pub struct RaftLogEngine {
    log: Mutex<RaftLog<Shape>>,
    // Dropped after the log: the folder is free for another process only once nothing writes to it.
    _lock: Option<Arc<DirectoryLock>>,
}

impl RaftLogEngine {
    /// Opens the log, creating it where there is none. A torn last record is cut off; damage elsewhere is an error.
    pub fn open(settings: &LogSettings, lock: Option<Arc<DirectoryLock>>) -> io::Result<Self> {
        std::fs::create_dir_all(&settings.directory)?;
        let config = Config {
            wal: chunked_wal::Config {
                dir: settings.directory.to_string_lossy().into_owned(),
                chunk_max_size: Some(settings.chunk_bytes),
                // Our own thread gathers writers, so waiting for more of them here would only add latency.
                flush_batch_wait: Some(Duration::ZERO),
                // The buffer is allocated whole for each file read at start.
                read_buffer_size: Some(1024 * 1024),
                truncate_incomplete_record: Some(true),
                ..Default::default()
            },
            log_cache_max_items: None,
            log_cache_capacity: Some(settings.cache_bytes),
        };
        // It panics over a file that was emptied, unless that is its last one.
        let opened = catch_unwind(AssertUnwindSafe(|| RaftLog::open(Arc::new(config))));
        let log = opened.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::InvalidData, "it cannot be read")));
        let log = log.map_err(|error| name_empty_files(&settings.directory, error))?;
        Ok(Self { log: Mutex::new(log), _lock: lock })
    }

    /// How often the log was synced to disk in this life.
    #[cfg(test)]
    pub(crate) fn sync_count(&self) -> u64 {
        self.lock().stat().flush_metrics.sync_batch_count
    }

    /// A panic while the lock was held can only come from inside the log; its data is checked before it is changed.
    fn lock(&self) -> MutexGuard<'_, RaftLog<Shape>> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says of a log that cannot be opened which of its files are empty: each begins with a record.
fn name_empty_files(directory: &Path, error: io::Error) -> io::Error {
    let Ok(entries) = std::fs::read_dir(directory) else { return error };
    let empty = entries.flatten().filter(|entry| entry.metadata().is_ok_and(|meta| meta.len() == 0));
    let mut names: Vec<_> = empty.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| name.ends_with(".wal"));
    match names.is_empty() {
        true => error,
        false => io::Error::new(error.kind(), format!("{error}: empty are {}", names.join(", "))),
    }
}

impl Engine for RaftLogEngine {
    fn bounds(&self) -> LogBounds {
        let log = self.lock();
        let state = log.log_state();
        LogBounds {
            vote: state.vote().copied(),
            committed: state.committed().copied(),
            purged: state.purged().copied(),
            last: state.last().copied(),
        }
    }

    fn append(&self, records: Vec<Record>) -> io::Result<()> {
        let records = records.into_iter().map(|record| (record.position, Blob(record.payload)));
        self.lock().append(records).map(drop)
    }

    fn read(&self, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<Record>> {
        let log = self.lock();
        let mut bytes = 0;
        let mut records = Vec::new();
        for found in log.read(range.start, range.end.max(range.start)) {
            let (position, Blob(payload)) = found?;
            bytes += payload.len();
            if bytes > max_bytes && !records.is_empty() {
                break;
            }
            records.push(Record { position, payload });
        }
        Ok(records)
    }

    fn truncate_after(&self, keep: Option<Position>) -> io::Result<()> {
        let mut log = self.lock();
        if log.log_state().last() <= keep.as_ref() {
            return Ok(());
        }
        log.truncate(keep.map_or(0, |position| position.index + 1)).map(drop)
    }

    fn purge(&self, upto: Position) -> io::Result<()> {
        self.lock().purge(upto).map(drop)
    }

    fn save_vote(&self, vote: Ballot) -> io::Result<()> {
        self.lock().save_vote(vote).map(drop)
    }

    fn save_committed(&self, committed: Position) -> io::Result<()> {
        let mut log = self.lock();
        let state = log.log_state();
        // After a snapshot the commit may run ahead of the log for a moment; the snapshot itself then says how far.
        if state.last() < Some(&committed) || state.committed() >= Some(&committed) {
            return Ok(());
        }
        // Written with the next append: a write of its own for each commit would cost as much as the append's, and a
        // member that starts waits until the others confirm all it has, whatever stands here.
        log.commit(committed).map(drop)
    }

    fn flush(&self) -> io::Result<()> {
        let (done, wait) = sync_channel(1);
        self.lock().flush(true, Some(done))?;
        wait.recv().map_err(|_| io::Error::other("the log's writer stopped before it answered"))?
    }

    fn files(&self) -> Vec<LogFile> {
        let log = self.lock();
        let stat = log.stat();
        let path = |id| log.config().wal.chunk_path(id).into();
        let chunks = stat.closed_chunks.iter().chain([&stat.open_chunk]);
        chunks.map(|chunk| LogFile { path: path(chunk.chunk_id), length: chunk.size }).collect()
    }
}

/// The types `raft-log` stores for us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Shape;

impl raft_log::Types for Shape {
    type LogId = Position;
    type LogPayload = Blob;
    type Vote = Ballot;
    type Callback = SyncSender<io::Result<()>>;
    type UserData = u64;

    fn log_index(position: &Position) -> u64 {
        position.index
    }

    fn payload_size(payload: &Blob) -> u64 {
        payload.0.len() as u64
    }
}

#[derive(Clone, Debug)]
struct Blob(Bytes);

impl Encode for Blob {
    fn encode<W: Write>(&self, mut w: W) -> io::Result<usize> {
        let length = u32::try_from(self.0.len())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a log entry of 4 GiB or more"))?;
        let n = length.encode(&mut w)?;
        w.write_all(&self.0)?;
        Ok(n + self.0.len())
    }
}

impl Decode for Blob {
    fn decode<R: Read>(mut r: R) -> io::Result<Self> {
        let length = u32::decode(&mut r)?;
        if length > MAX_RECORD_BYTES {
            let message = format!("a log record claims {length} bytes, more than the {MAX_RECORD_BYTES} allowed");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        let mut payload = vec![0; length as usize];
        r.read_exact(&mut payload)?;
        Ok(Self(payload.into()))
    }
}

impl Encode for Position {
    fn encode<W: Write>(&self, mut w: W) -> io::Result<usize> {
        Ok(self.term.encode(&mut w)? + self.node.encode(&mut w)? + self.index.encode(&mut w)?)
    }
}

impl Decode for Position {
    fn decode<R: Read>(mut r: R) -> io::Result<Self> {
        Ok(Self { term: u64::decode(&mut r)?, node: u64::decode(&mut r)?, index: u64::decode(&mut r)? })
    }
}

impl Encode for Ballot {
    fn encode<W: Write>(&self, mut w: W) -> io::Result<usize> {
        Ok(self.term.encode(&mut w)? + self.node.encode(&mut w)? + u8::from(self.committed).encode(&mut w)?)
    }
}

impl Decode for Ballot {
    fn decode<R: Read>(mut r: R) -> io::Result<Self> {
        Ok(Self { term: u64::decode(&mut r)?, node: u64::decode(&mut r)?, committed: u8::decode(&mut r)? != 0 })
    }
}
