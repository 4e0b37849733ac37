//! Snapshot files: written, checked, sent and received as a stream, never as one block of memory.
//!
//! ```text
//! "MUSTSNAP" · u32 version · u32 header length · header (protobuf SnapshotHeader) · body (the machine's) · u32 crc32
//! ```
//!
//! Numbers are big-endian; the checksum covers everything before it. A file is written under a temporary name, synced,
//! renamed, and its folder synced: `current` is always whole.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tracing::{info, warn};

use super::machine::Freeze;
use super::{RaftSnapshot, SnapshotMeta, wire};
use crate::store::DiskGuard;
use crate::store::directory::rename_durably;

const MAGIC: &[u8; 8] = b"MUSTSNAP";
/// Version of the file's frame; the body's version is the machine's matter.
const VERSION: u32 = 1;
const CURRENT: &str = "current";
/// Bytes of a snapshot between two looks at the room on the disk.
const LOOK_BYTES: u64 = 4 * 1024 * 1024;
/// A membership of hundreds of members is some kilobytes; a larger claim is corruption.
const MAX_HEADER_BYTES: u32 = 1024 * 1024;
/// Bytes of magic, version and header length, and of the checksum at the end.
const FIXED_HEAD: u64 = 16;
const TRAILER: u64 = 4;

/// A whole snapshot on disk. One that was received and not yet installed disappears with its last handle.
#[derive(Clone, Debug)]
pub struct SnapshotFile {
    path: PathBuf,
    /// Held open, so that a newer snapshot may take the name while this one is being sent.
    file: Arc<File>,
    temporary: Option<Arc<Temporary>>,
}

#[derive(Debug)]
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!(path = ?self.0, %error, "a temporary snapshot stays behind; the next start removes it");
            }
            _ => {}
        }
    }
}

impl SnapshotFile {
    /// Reads the head and checks the checksum of the whole file.
    fn verify(&self) -> io::Result<SnapshotMeta> {
        let mut reader = self.reader();
        let length = self.file.metadata()?.len();
        let body_end = length.checked_sub(TRAILER).ok_or_else(|| damaged(&self.path, "it is too short"))?;
        let mut summed = Summing { inner: (&mut reader).take(body_end), sum: crc32fast::Hasher::new() };
        let meta = read_head(&self.path, &mut summed)?;
        io::copy(&mut summed, &mut io::sink())?;
        let sum = summed.sum.finalize();
        let mut trailer = [0; TRAILER as usize];
        reader.read_exact(&mut trailer)?;
        if u32::from_be_bytes(trailer) != sum {
            return Err(damaged(&self.path, "its checksum is wrong"));
        }
        Ok(meta)
    }

    fn bytes(&self) -> io::Result<u64> {
        self.file.metadata().map(|found| found.len())
    }

    /// Passes the body to `take`.
    pub(crate) fn read_body<T>(&self, take: impl FnOnce(&mut dyn Read) -> io::Result<T>) -> io::Result<T> {
        let body_end = self.file.metadata()?.len().saturating_sub(TRAILER);
        let mut body = self.reader().take(body_end);
        read_head(&self.path, &mut body)?;
        take(&mut body)
    }

    /// The raw file from its beginning, to be sent as it is.
    pub(crate) fn reader(&self) -> BufReader<FromStart> {
        BufReader::with_capacity(64 * 1024, FromStart { file: Arc::clone(&self.file), offset: 0 })
    }
}

/// Reads an open file with a position of its own: several followers may be sent the same file at once.
pub(crate) struct FromStart {
    file: Arc<File>,
    offset: u64,
}

impl Read for FromStart {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(buffer, self.offset)?;
        self.offset += n as u64;
        Ok(n)
    }
}

fn read_head(path: &Path, from: &mut impl Read) -> io::Result<SnapshotMeta> {
    let mut magic = [0; 8];
    from.read_exact(&mut magic)?;
    if &magic != MAGIC {
        return Err(damaged(path, "it is no snapshot"));
    }
    let version = read_u32(from)?;
    if version != VERSION {
        return Err(damaged(path, &format!("its version is {version}, this program reads {VERSION}")));
    }
    let length = read_u32(from)?;
    if length > MAX_HEADER_BYTES {
        return Err(damaged(path, "its head is impossibly long"));
    }
    let mut header = vec![0; length as usize];
    from.read_exact(&mut header)?;
    Ok(wire::snapshot_header_from(header.into())?)
}

fn read_u32(from: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    from.read_exact(&mut bytes)?;
    Ok(u32::from_be_bytes(bytes))
}

fn damaged(path: &Path, why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("snapshot {path:?} cannot be read: {why}"))
}

/// Sums what passes through.
struct Summing<T> {
    inner: T,
    sum: crc32fast::Hasher,
}

impl<R: Read> Read for Summing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.sum.update(buffer.get(..n).unwrap_or_default());
        Ok(n)
    }
}

impl<W: Write> Write for Summing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buffer)?;
        self.sum.update(buffer.get(..n).unwrap_or_default());
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// The folder of snapshots: one current, and those under way.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    directory: PathBuf,
    disk: DiskGuard,
    /// Of the current one; here, because the lock of that is held while a file gets its name.
    current_bytes: AtomicU64,
    /// Also serialises renames: an older build must never replace a newer install.
    current: Mutex<Option<RaftSnapshot>>,
    next_temporary: AtomicU64,
}

impl SnapshotStore {
    /// Opens the folder, verifies the current snapshot and removes what an earlier life left half done.
    pub(crate) fn open(directory: PathBuf, disk: DiskGuard) -> io::Result<Self> {
        fs::create_dir_all(&directory)?;
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "tmp") {
                fs::remove_file(&path)?;
            }
        }
        let path = directory.join(CURRENT);
        let current = match File::open(&path) {
            Ok(file) => {
                let snapshot = SnapshotFile { path, file: Arc::new(file), temporary: None };
                Some(RaftSnapshot { meta: snapshot.verify()?, snapshot })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let bytes = current.as_ref().map_or(Ok(0), |current: &RaftSnapshot| current.snapshot.bytes())?;
        let shared = Shared {
            directory,
            disk,
            current_bytes: AtomicU64::new(bytes),
            current: Mutex::new(current),
            next_temporary: AtomicU64::new(0),
        };
        let store = Self { shared: Arc::new(shared) };
        store.keep_room(0);
        Ok(store)
    }

    pub(crate) fn current(&self) -> Option<RaftSnapshot> {
        self.lock().clone()
    }

    /// The bytes of the current one.
    pub(crate) fn current_bytes(&self) -> u64 {
        self.shared.current_bytes.load(Ordering::Relaxed)
    }

    /// Keeps room for the next one: as large as the current one, and what the log brought since.
    pub(crate) fn keep_room(&self, logged: u64) {
        self.shared.disk.keep_for_snapshot(self.current_bytes().saturating_add(logged));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<RaftSnapshot>> {
        self.shared.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a frozen state and makes it current. Blocks; not for the runtime's threads.
    pub(crate) fn build(&self, meta: SnapshotMeta, freeze: Freeze) -> io::Result<RaftSnapshot> {
        self.shared.disk.check_room_for(self.current_bytes())?;
        self.shared.disk.keep_for_snapshot(0);
        let built = self.build_checked(meta, freeze);
        self.keep_room(0);
        built
    }

    fn build_checked(&self, meta: SnapshotMeta, freeze: Freeze) -> io::Result<RaftSnapshot> {
        let mut upload = self.begin()?;
        let mut summed = Summing { inner: &mut upload, sum: crc32fast::Hasher::new() };
        let header = wire::snapshot_header_to(&meta);
        let length = u32::try_from(header.len()).map_err(io::Error::other)?;
        summed.write_all(MAGIC)?;
        summed.write_all(&VERSION.to_be_bytes())?;
        summed.write_all(&length.to_be_bytes())?;
        summed.write_all(&header)?;
        freeze(&mut summed)?;
        let sum = summed.sum.finalize();
        upload.write_all(&sum.to_be_bytes())?;
        let written = upload.sync()?;
        let bytes = written.file.metadata()?.len();
        let snapshot = self.make_current(meta, written)?;
        info!(last = ?snapshot.meta.last_log_id.map(|id| id.index), bytes, "wrote a snapshot");
        Ok(snapshot)
    }

    /// A temporary file to write a snapshot into, as it is built or as it arrives.
    pub(crate) fn begin(&self) -> io::Result<Upload> {
        let number = self.shared.next_temporary.fetch_add(1, Ordering::Relaxed);
        let path = self.shared.directory.join(format!("{number}.tmp"));
        let file = File::options().create_new(true).read(true).write(true).open(&path)?;
        let (file, disk) = (BufWriter::with_capacity(64 * 1024, file), self.shared.disk.clone());
        Ok(Upload { file, disk, unlooked: LOOK_BYTES, temporary: Temporary(path) })
    }

    /// Gives a complete, synced file the current name, unless a newer one has it already.
    pub(crate) fn make_current(&self, meta: SnapshotMeta, mut written: SnapshotFile) -> io::Result<RaftSnapshot> {
        let mut current = self.lock();
        if let Some(newer) = current.as_ref().filter(|newer| newer.meta.last_log_id > meta.last_log_id) {
            return Ok(newer.clone());
        }
        if let Some(temporary) = written.temporary.take() {
            let path = self.shared.directory.join(CURRENT);
            rename_durably(&written.path, &path)?;
            written.path = path;
            // Only now: its end removes the temporary name, which is free by now.
            drop(temporary);
        }
        self.shared.current_bytes.store(written.bytes()?, Ordering::Relaxed);
        let snapshot = RaftSnapshot { meta, snapshot: written };
        *current = Some(snapshot.clone());
        Ok(snapshot)
    }
}

/// A snapshot on its way to the disk; gone if it is dropped before it is complete.
pub(crate) struct Upload {
    file: BufWriter<File>,
    disk: DiskGuard,
    /// Bytes written since the last look at the disk.
    unlooked: u64,
    temporary: Temporary,
}

/// Gives up while there is still room for the log.
impl Write for Upload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.unlooked >= LOOK_BYTES {
            self.disk.check_room_for(LOOK_BYTES)?;
            self.unlooked = 0;
        }
        let n = self.file.write(bytes)?;
        self.unlooked += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Upload {
    fn sync(self) -> io::Result<SnapshotFile> {
        let file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        let path = self.temporary.0.clone();
        Ok(SnapshotFile { path, file: Arc::new(file), temporary: Some(Arc::new(self.temporary)) })
    }

    /// Syncs what arrived and checks that it is a whole snapshot.
    pub(crate) fn complete(self) -> io::Result<RaftSnapshot> {
        let snapshot = self.sync()?;
        if snapshot.file.metadata()?.len() < FIXED_HEAD + TRAILER {
            return Err(damaged(&snapshot.path, "it is too short"));
        }
        Ok(RaftSnapshot { meta: snapshot.verify()?, snapshot })
    }
}
