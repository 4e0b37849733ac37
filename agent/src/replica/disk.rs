//! The replica on disk: a file with the rows of its Snapshot as the registry streams them, and a journal beside it of what
//! happened since.
//!
//! The file is when the replica was last known to be current, its Scope and its rows; a build of before the journal reads
//! it alone, and finds an older replica. The journal names the file that it goes on from, by its time and its last bytes:
//! beside any other it says nothing. After a crash the file is the old or the new one, and of the journal those steps
//! count that are whole.

use std::{
    fs, io,
    io::{BufReader, BufWriter, Read, Seek, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use muster_catalog::{Snapshot, Timestamp};
use muster_registry::{
    journal::{MAX_STEP_BYTES, ReplicaEvent, decode_step, encode_event, encode_step},
    store::directory::rename_durably,
};

/// A journal may grow to this however small the file is.
const MIN_JOURNAL_BYTES: u64 = 256 * 1024;
/// What a journal begins with.
const JOURNAL_MAGIC: [u8; 8] = *b"MUSTERJN";
/// Raised when the frame changes; events change by adding fields and kinds.
const JOURNAL_VERSION: u32 = 1;

/// Why the kept replica cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The file cannot be read.
    #[error("cannot read the replica {path}: {source}; make it readable, or remove it to begin empty")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// What the disk does not have yet.
#[derive(Debug)]
pub(super) struct Unsaved {
    /// The replica as it is.
    pub(super) snapshot: Snapshot,
    /// What led to it from what the disk has; `None` where that does not say it all.
    pub(super) events: Option<Vec<ReplicaEvent>>,
    /// When it was last known to be current.
    pub(super) since: Timestamp,
}

/// The two files.
#[derive(Debug)]
pub(super) struct Disk {
    path: PathBuf,
    /// The file that is there; `None` where it is not known to be whole.
    file: Option<Base>,
    /// The journal of that file, open at its end.
    journal: Option<(fs::File, u64)>,
}

/// A file that a journal goes on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Base {
    since: u64,
    /// The last bytes of the file: the checksum of its rows.
    sum: [u8; 4],
    bytes: u64,
}

impl Base {
    fn of(file: &fs::File) -> io::Result<Self> {
        let (mut since, mut sum, bytes) = ([0; 8], [0; 4], file.metadata()?.len());
        file.read_exact_at(&mut since, 0)?;
        file.read_exact_at(&mut sum, bytes.saturating_sub(4))?;
        Ok(Self { since: u64::from_be_bytes(since), sum, bytes })
    }

    fn journal_head(self) -> Vec<u8> {
        [&JOURNAL_MAGIC[..], &JOURNAL_VERSION.to_le_bytes(), &self.since.to_be_bytes(), &self.sum].concat()
    }
}

impl Disk {
    /// Reads what was kept, and when it was last current. A damaged file is set aside: its content is on the registry.
    pub(super) fn load(path: &Path) -> Result<(Self, Option<(Snapshot, Timestamp)>), DiskError> {
        let failed = |source| DiskError::Read { path: path.to_owned(), source };
        let mut disk = Self { path: path.to_owned(), file: None, journal: None };
        let file = match fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((disk, None)),
            Err(source) => return Err(failed(source)),
        };
        let (mut snapshot, mut since) = match read(BufReader::new(&file)) {
            Ok(kept) => kept,
            Err(reason) => {
                let aside = path.with_extension("damaged");
                tracing::error!(path = %path.display(), %reason, aside = %aside.display(), "the kept replica is damaged; set aside, beginning empty");
                fs::rename(path, &aside).map_err(failed)?;
                return Ok((disk, None));
            }
        };
        let base = Base::of(&file).map_err(failed)?;
        disk.file = Some(base);
        match disk.replay(base, &mut snapshot, &mut since) {
            Ok(journal) => disk.journal = journal,
            // What it has is on the registry, and the file by itself is only older. It is begun anew with the file.
            Err(error) => {
                tracing::warn!(%error, path = %disk.journal_path().display(), "the journal of the replica cannot be read");
                disk.file = None;
            }
        }
        Ok((disk, Some((snapshot, since))))
    }

    /// Does again what the journal says of this file, as far as it is whole; open to go on from there.
    fn replay(
        &self,
        base: Base,
        snapshot: &mut Snapshot,
        since: &mut Timestamp,
    ) -> io::Result<Option<(fs::File, u64)>> {
        let mut file = match fs::OpenOptions::new().read(true).write(true).open(self.journal_path()) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let head = base.journal_head();
        let (mut from, mut found) = (BufReader::new(&file), Vec::new());
        (&mut from).take(head.len() as u64).read_to_end(&mut found)?;
        if found != head {
            return Ok(None);
        }
        let mut whole = head.len() as u64;
        loop {
            match decode_step(&mut from) {
                Ok(None) => break,
                Ok(Some((time, events, bytes))) => {
                    events.into_iter().for_each(|event| redo(snapshot, event));
                    (*since, whole) = (time, whole + bytes);
                }
                Err(reason) => {
                    tracing::warn!(%reason, path = %self.journal_path().display(), "the journal of the replica ends early; going on from there");
                    break;
                }
            }
        }
        file.set_len(whole)?;
        file.seek(io::SeekFrom::Start(whole))?;
        Ok(Some((file, whole)))
    }

    /// Writes what the disk does not have: to the journal, or all of it. Returns the bytes of the file where that was
    /// written anew.
    pub(super) fn save(&mut self, unsaved: &Unsaved) -> io::Result<Option<u64>> {
        let step = unsaved.events.as_deref().zip(self.file).map(|(events, base)| self.step(base, events));
        if let Some(events) = step.transpose()?.flatten() {
            // What a failed write leaves behind is no journal to go on with.
            let (base, journal) = (self.file.take(), self.journal.take());
            self.append(base, journal, &encode_step(unsaved.since, &events)?)?;
            self.file = base;
            return Ok(None);
        }
        self.write(&unsaved.snapshot, unsaved.since).map(Some)
    }

    /// The events as they are appended; `None` where it is better to write the file anew.
    fn step(&self, base: Base, events: &[ReplicaEvent]) -> io::Result<Option<Vec<u8>>> {
        let most = base.bytes.max(MIN_JOURNAL_BYTES).min(MAX_STEP_BYTES as u64 / 2);
        let room = most.saturating_sub(self.journal.as_ref().map_or(0, |(_, bytes)| *bytes));
        let mut encoded = Vec::new();
        for event in events {
            encode_event(event, &mut encoded)?;
            if encoded.len() as u64 > room {
                return Ok(None);
            }
        }
        Ok(Some(encoded))
    }

    fn append(&mut self, base: Option<Base>, journal: Option<(fs::File, u64)>, step: &[u8]) -> io::Result<()> {
        let (mut file, bytes) = match journal {
            Some(journal) => journal,
            None => {
                let path = self.journal_path();
                let mut file = fs::File::create(&path)?;
                let head = base.map(Base::journal_head).unwrap_or_default();
                file.write_all(&head)?;
                sync_folder(&path)?;
                (file, head.len() as u64)
            }
        };
        file.write_all(step)?;
        file.sync_data()?;
        self.journal = Some((file, bytes + step.len() as u64));
        Ok(())
    }

    fn write(&mut self, snapshot: &Snapshot, since: Timestamp) -> io::Result<u64> {
        (self.file, self.journal) = (None, None);
        let temporary = self.path.with_extension("tmp");
        let file = fs::OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&temporary)?;
        let mut to = BufWriter::new(file);
        to.write_all(&since.0.to_be_bytes())?;
        muster_registry::encode_replica(snapshot, &mut to)?;
        let file = to.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        rename_durably(&temporary, &self.path)?;
        let base = Base::of(&file)?;
        self.file = Some(base);
        match fs::remove_file(self.journal_path()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(base.bytes),
        }
    }

    fn journal_path(&self) -> PathBuf {
        self.path.with_extension("journal")
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| fs::File::open(folder)?.sync_all())
}

fn redo(snapshot: &mut Snapshot, event: ReplicaEvent) {
    match event {
        ReplicaEvent::Entry(entry) => _ = snapshot.fold(&entry),
        ReplicaEvent::Splice(splice) => _ = snapshot.splice(splice),
        ReplicaEvent::Advance { index, at } => snapshot.advance(index, at),
    }
}

fn read(mut from: impl Read) -> Result<(Snapshot, Timestamp), String> {
    let mut since = [0; 8];
    from.read_exact(&mut since).map_err(|error| error.to_string())?;
    let snapshot = muster_registry::decode_replica(&mut from).map_err(|error| error.to_string())?;
    Ok((snapshot, Timestamp(u64::from_be_bytes(since))))
}

#[cfg(test)]
mod tests;
