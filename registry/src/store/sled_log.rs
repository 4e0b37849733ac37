//! The second engine: the `sled` database, made durable by syncs of our own.
//!
//! `sled::Db::flush` is not durable on Linux. It hands its pages to the disk with `sync_file_range`, which writes neither
//! the file's new length nor the map of its blocks and leaves the disk's own cache alone: after a power loss the bytes
//! are there and no file leads to them. Values too large for a segment go to files of their own ("blobs"), which are not
//! synced at all. So [`Engine::flush`] here lets sled write, then syncs every new blob and the folder that names it, and
//! then `fdatasync`s sled's one data file; only after that is anything acknowledged.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use codeq::{Decode, Encode};
use sled::{Db, Tree};

use super::directory::{DirectoryLock, rename_durably};
use super::kind::LogSettings;
use super::{Ballot, Engine, LogBounds, LogFile, Position, Record};

/// Entries by their index; the tree beside it keeps what is known about all of them.
const ENTRIES: &str = "entries";
const MARKS: &str = "marks";
const VOTE: &str = "vote";
const COMMITTED: &str = "committed";
const PURGED: &str = "purged";

/// An [`Engine`] on the `sled` crate.
pub struct SledEngine {
    // Held during every call that may make sled write, so that what `flush` finds is whole.
    bounds: Mutex<LogBounds>,
    entries: Tree,
    marks: Tree,
    db: Db,
    disk: Disk,
    // Dropped last: the folder is free for another process only once nothing writes to it.
    _lock: Option<Arc<DirectoryLock>>,
}

impl SledEngine {
    /// Opens the log, creating it where there is none. A torn tail is cut off; a hole is an error.
    pub fn open(settings: &LogSettings, lock: Option<Arc<DirectoryLock>>) -> io::Result<Self> {
        let directory = &settings.directory;
        if !directory.exists() {
            create(settings)?;
        }
        let db = database(directory, settings)?;
        let (entries, marks) = (db.open_tree(ENTRIES)?, db.open_tree(MARKS)?);
        let purged = mark::<Position>(&marks, PURGED)?;
        if let Some(purged) = purged {
            // What the last life was killed over.
            remove_upto(&entries, purged)?;
        }
        let bounds = LogBounds {
            vote: mark(&marks, VOTE)?,
            committed: mark(&marks, COMMITTED)?,
            purged,
            last: last(&entries, purged)?,
        };
        let disk = Disk::open(directory)?;
        // What opening wrote: sled replays its file into a new index file.
        sync_all_in(directory)?;
        Ok(Self { bounds: Mutex::new(bounds), entries, marks, db, disk, _lock: lock })
    }

    /// How often the log was synced to disk in this life.
    #[cfg(test)]
    pub(crate) fn sync_count(&self) -> u64 {
        self.disk.syncs.load(std::sync::atomic::Ordering::SeqCst)
    }

    /// A panic while the lock was held can only come from inside sled; the bounds are changed after sled has written.
    fn lock(&self) -> MutexGuard<'_, LogBounds> {
        self.bounds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine for SledEngine {
    fn bounds(&self) -> LogBounds {
        *self.lock()
    }

    fn append(&self, records: Vec<Record>) -> io::Result<()> {
        let mut bounds = self.lock();
        let mut last = bounds.last;
        let mut batch = sled::Batch::default();
        for Record { position, payload } in records {
            if last.is_some_and(|last| position.index != last.index + 1) {
                let message = format!("entry {} does not follow {last:?}", position.index);
                return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
            }
            let mut value = Vec::new();
            position.encode(&mut value)?;
            value.extend_from_slice(&payload);
            batch.insert(&position.index.to_be_bytes(), value);
            last = Some(position);
        }
        self.entries.apply_batch(batch)?;
        bounds.last = last;
        Ok(())
    }

    fn read(&self, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<Record>> {
        let _reading = self.lock();
        let mut bytes = 0;
        let mut records = Vec::new();
        if range.is_empty() {
            return Ok(records);
        }
        for found in self.entries.range(range.start.to_be_bytes()..range.end.to_be_bytes()) {
            let record = record(&found?)?;
            bytes += record.payload.len();
            if bytes > max_bytes && !records.is_empty() {
                break;
            }
            records.push(record);
        }
        Ok(records)
    }

    fn truncate_after(&self, keep: Option<Position>) -> io::Result<()> {
        let mut bounds = self.lock();
        if bounds.last <= keep {
            return Ok(());
        }
        if bounds.committed > keep {
            let message = format!("entries up to {:?} are committed, cannot truncate after {keep:?}", bounds.committed);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let first = keep.map_or(0, |keep| keep.index + 1);
        // From the end, so that a crash in between leaves no hole.
        for key in self.entries.range(first.to_be_bytes()..).keys().rev() {
            self.entries.remove(key?)?;
        }
        bounds.last = keep.or(bounds.purged);
        Ok(())
    }

    fn purge(&self, upto: Position) -> io::Result<()> {
        let mut bounds = self.lock();
        if bounds.purged >= Some(upto) {
            return Ok(());
        }
        // First the mark: what a crash in between leaves before it is removed at the next start.
        save(&self.marks, PURGED, &upto)?;
        remove_upto(&self.entries, upto)?;
        bounds.purged = Some(upto);
        bounds.last = bounds.last.filter(|last| last.index > upto.index).or(Some(upto));
        Ok(())
    }

    fn save_vote(&self, vote: Ballot) -> io::Result<()> {
        let mut bounds = self.lock();
        save(&self.marks, VOTE, &vote)?;
        bounds.vote = Some(vote);
        Ok(())
    }

    fn save_committed(&self, committed: Position) -> io::Result<()> {
        let mut bounds = self.lock();
        // After a snapshot the commit may run ahead of the log for a moment; the snapshot itself then says how far.
        if bounds.last < Some(committed) || bounds.committed >= Some(committed) {
            return Ok(());
        }
        save(&self.marks, COMMITTED, &committed)?;
        bounds.committed = Some(committed);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let writing = self.lock();
        let blobs = self.disk.find_blobs()?;
        drop(writing);
        self.db.flush()?;
        self.disk.sync(blobs)
    }

    fn files(&self) -> Vec<LogFile> {
        // sled cuts its file itself where its end is free: only an empty one is none of its doing.
        vec![LogFile { path: self.disk.path.clone(), length: 1 }]
    }
}

/// sled's files, for syncing.
struct Disk {
    data: File,
    path: PathBuf,
    blobs: PathBuf,
    /// Blobs that were there at the last sync. A blob is written once and never changed.
    synced: Mutex<HashSet<OsString>>,
    #[cfg(test)]
    syncs: std::sync::atomic::AtomicU64,
}

impl Disk {
    fn open(directory: &Path) -> io::Result<Self> {
        let path = directory.join("db");
        Ok(Self {
            data: File::open(&path)?,
            path,
            blobs: directory.join("blobs"),
            synced: Mutex::default(),
            #[cfg(test)]
            syncs: Default::default(),
        })
    }

    /// The blobs there are. Whole only while nobody writes.
    fn find_blobs(&self) -> io::Result<HashSet<OsString>> {
        fs::read_dir(&self.blobs)?.map(|entry| Ok(entry?.file_name())).collect()
    }

    fn sync(&self, blobs: HashSet<OsString>) -> io::Result<()> {
        let mut synced = self.synced.lock().unwrap_or_else(PoisonError::into_inner);
        let mut is_new = false;
        for name in blobs.difference(&synced) {
            match File::open(self.blobs.join(name)) {
                Ok(blob) => blob.sync_all()?,
                // sled has dropped it already: the entry was purged or truncated.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            is_new = true;
        }
        if is_new {
            File::open(&self.blobs)?.sync_all()?;
        }
        *synced = blobs;
        self.data.sync_data()?;
        #[cfg(test)]
        self.syncs.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Ok(())
    }
}

/// Makes an empty database that is there whole or not at all: sled does not sync what it writes first.
fn create(settings: &LogSettings) -> io::Result<()> {
    let unfinished = settings.directory.with_extension("new");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished)?;
    }
    drop(database(&unfinished, settings)?);
    sync_all_in(&unfinished)?;
    rename_durably(&unfinished, &settings.directory)
}

fn database(directory: &Path, settings: &LogSettings) -> io::Result<Db> {
    let cache = u64::try_from(settings.cache_bytes).unwrap_or(u64::MAX);
    // No thread that flushes by the clock: ours does, for those who wait.
    Ok(sled::Config::new().path(directory).cache_capacity(cache).flush_every_ms(None).open()?)
}

/// Syncs every file of a folder and of the folders in it, and their names.
fn sync_all_in(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => sync_all_in(&entry.path())?,
            false => File::open(entry.path())?.sync_all()?,
        }
    }
    File::open(directory)?.sync_all()
}

fn remove_upto(entries: &Tree, upto: Position) -> io::Result<()> {
    for key in entries.range(..=upto.index.to_be_bytes()).keys() {
        entries.remove(key?)?;
    }
    Ok(())
}

fn mark<T: Decode>(marks: &Tree, name: &str) -> io::Result<Option<T>> {
    marks.get(name)?.map(|value| T::decode(&*value)).transpose()
}

fn save<T: Encode>(marks: &Tree, name: &str, value: &T) -> io::Result<()> {
    let mut bytes = Vec::new();
    value.encode(&mut bytes)?;
    marks.insert(name, bytes)?;
    Ok(())
}

fn record((key, value): &(sled::IVec, sled::IVec)) -> io::Result<Record> {
    let mut rest = &value[..];
    let position = Position::decode(&mut rest)?;
    if position.index.to_be_bytes() != key[..] {
        let message = format!("entry {} lies under the key {key:?}", position.index);
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(Record { position, payload: Bytes::copy_from_slice(rest) })
}

/// The last entry, after a look at all of them for holes.
fn last(entries: &Tree, purged: Option<Position>) -> io::Result<Option<Position>> {
    let mut last = purged;
    for found in entries.iter() {
        let position = record(&found?)?.position;
        if last.is_some_and(|last| position.index != last.index + 1) {
            let message = format!("the log has a hole between {last:?} and {position:?}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        last = Some(position);
    }
    Ok(last)
}
