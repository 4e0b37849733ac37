//! A backup of the catalog as a file, checked before it is trusted.
//!
//! ```text
//! "MUSTBACK" · u32 version · u32 header length · header (protobuf BackupHeader) · a Snapshot (see [`crate::codec`]) · u32 crc32
//! ```
//!
//! Numbers are big-endian; the checksum covers everything before it. The file gets its name when it is whole.

use std::{
    fs::{self, File},
    io::{self, BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

use muster_catalog::{ClusterId, Scope, Snapshot, Timestamp};
use prost::Message;

use crate::{
    codec::{SnapshotError, decode_snapshot},
    limits::MAX_RESTORED_BYTES,
    proto::registry as pb,
    store::directory::rename_durably,
};

const MAGIC: [u8; 8] = *b"MUSTBACK";
/// Raised when the frame changes; the header changes by adding fields.
const VERSION: u32 = 1;
/// A header is some hundred bytes; a larger claim is damage.
const MAX_HEADER: u32 = 64 * 1024;
/// Bytes of the checksum.
const TRAILER: u64 = 4;

/// What stands above the rows of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BackupHeader {
    /// The registry it was taken from.
    pub cluster: ClusterId,
    /// The catalog's format.
    pub format: u32,
    /// The last index it holds.
    pub index: u64,
    /// The time of that index.
    pub at: Timestamp,
    /// When it was taken, by the clock of the member.
    pub taken: Timestamp,
    /// The member that gave it.
    pub taken_by: String,
    /// How many nodes are in it.
    pub nodes: u64,
    /// How many services.
    pub services: u64,
    /// How many instances.
    pub instances: u64,
}

/// Why a backup cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The disk said no.
    #[error("{path:?}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// It is no backup, or damaged, or of a newer build.
    #[error("{path:?} is no usable backup: {why}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// It is whole, and no registry would take it.
    #[error(
        "{path:?} is whole and CANNOT BE RESTORED: its rows have {bytes} bytes, and a restore takes at most \
         {MAX_RESTORED_BYTES}. Take out of the catalog what makes it so large (metadata, outputs, services that nobody \
         needs), and back it up again; until then the members' own folders are all there is"
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Of its rows.
        bytes: u64,
    },
}

/// Sums what passes through.
struct Summed<T> {
    inner: T,
    sum: crc32fast::Hasher,
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.sum.update(bytes.get(..n).unwrap_or_default());
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Summed<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(bytes)?;
        self.sum.update(bytes.get(..n).unwrap_or_default());
        Ok(n)
    }
}

/// A backup that is being written. Without [`Self::finish`] the file does not get its name.
pub(crate) struct BackupWriter {
    path: PathBuf,
    temporary: PathBuf,
    out: Summed<BufWriter<File>>,
}

impl BackupWriter {
    /// Begins a backup beside `path`.
    pub(crate) fn create(path: &Path, header: &pb::BackupHeader) -> Result<Self, BackupError> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".part");
        let temporary = path.with_file_name(name);
        let file = File::create(&temporary).map_err(|source| BackupError::Io { path: temporary.clone(), source })?;
        let out = Summed { inner: BufWriter::new(file), sum: crc32fast::Hasher::new() };
        let mut writer = Self { path: path.to_owned(), temporary, out };
        let header = header.encode_to_vec();
        writer.write(&MAGIC)?;
        writer.write(&VERSION.to_be_bytes())?;
        writer.write(&u32::try_from(header.len()).unwrap_or(u32::MAX).to_be_bytes())?;
        writer.write(&header)?;
        Ok(writer)
    }

    /// Adds a piece of the rows.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), BackupError> {
        let path = &self.temporary;
        self.out.write_all(bytes).map_err(|source| BackupError::Io { path: path.clone(), source })
    }

    /// Syncs it, reads it back, and gives it its name.
    pub(crate) fn finish(mut self) -> Result<Backup, BackupError> {
        let sum = self.out.sum.clone().finalize();
        self.write(&sum.to_be_bytes())?;
        let failed = |source| BackupError::Io { path: self.temporary.clone(), source };
        self.out.flush().map_err(failed)?;
        self.out.inner.get_ref().sync_all().map_err(failed)?;
        let backup = Backup::read(&self.temporary)?;
        rename_durably(&self.temporary, &self.path).map_err(failed)?;
        Ok(Backup { path: self.path.clone(), ..backup })
    }
}

impl Drop for BackupWriter {
    fn drop(&mut self) {
        // After the end it has another name; what could not be written is of no use.
        drop(fs::remove_file(&self.temporary));
    }
}

/// A backup that was read and checked.
#[derive(Debug, Clone)]
pub struct Backup {
    /// The file.
    pub path: PathBuf,
    /// What it is a backup of.
    pub header: BackupHeader,
    /// What is in it.
    pub snapshot: Snapshot,
    /// The size of its rows in bytes.
    pub bytes: u64,
}

impl Backup {
    /// Reads a file to its end and checks it.
    pub fn read(path: &Path) -> Result<Self, BackupError> {
        let unusable = |why: String| BackupError::Unusable { path: path.to_owned(), why };
        let file = File::open(path).map_err(|source| BackupError::Io { path: path.to_owned(), source })?;
        let length = file.metadata().map_err(|source| BackupError::Io { path: path.to_owned(), source })?.len();
        let body_end = length.checked_sub(TRAILER).ok_or_else(|| unusable("it is too short".to_owned()))?;
        let mut reader = BufReader::new(file);
        let mut summed = Summed { inner: (&mut reader).take(body_end), sum: crc32fast::Hasher::new() };
        let (header, before) = read_header(&mut summed).map_err(unusable)?;
        let snapshot =
            decode_snapshot(&mut summed, Scope::All).map_err(|error: SnapshotError| unusable(error.to_string()))?;
        let rest = io::copy(&mut summed, &mut io::sink()).map_err(|error| unusable(error.to_string()))?;
        if rest > 0 {
            return Err(unusable(format!("{rest} bytes follow its last row")));
        }
        let found = summed.sum.finalize();
        let mut trailer = [0; TRAILER as usize];
        reader.read_exact(&mut trailer).map_err(|error| unusable(error.to_string()))?;
        if u32::from_be_bytes(trailer) != found {
            return Err(unusable("its checksum is wrong: it was damaged or cut short".to_owned()));
        }
        Ok(Self { path: path.to_owned(), header, snapshot, bytes: body_end - before })
    }

    /// Says why no registry would take it, whole as it is.
    pub fn check_restorable(&self) -> Result<(), BackupError> {
        if self.bytes <= MAX_RESTORED_BYTES as u64 {
            return Ok(());
        }
        Err(BackupError::TooLarge { path: self.path.clone(), bytes: self.bytes })
    }

    /// The rows as they stand in the file.
    pub(crate) fn rows(&self) -> io::Result<impl Read + Send + use<>> {
        let file = File::open(&self.path)?;
        let length = file.metadata()?.len();
        let mut reader = BufReader::new(file);
        let skipped = length.saturating_sub(TRAILER).saturating_sub(self.bytes);
        io::copy(&mut (&mut reader).take(skipped), &mut io::sink())?;
        Ok(reader.take(self.bytes))
    }
}

/// The header, and how many bytes it and all before it take.
fn read_header(from: &mut impl Read) -> Result<(BackupHeader, u64), String> {
    let mut fixed = [0; 16];
    from.read_exact(&mut fixed).map_err(|error| error.to_string())?;
    let (magic, numbers) = fixed.split_at(8);
    if magic != MAGIC {
        return Err("it is none of Muster's".to_owned());
    }
    let number = |at: usize| numbers.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes);
    let (version, length) = (number(0), number(4));
    if version != VERSION {
        return Err(format!("its version is {version}, this build reads {VERSION}: use the build that wrote it"));
    }
    if length > MAX_HEADER {
        return Err("its head is impossibly long".to_owned());
    }
    let mut header = vec![0; length as usize];
    from.read_exact(&mut header).map_err(|error| error.to_string())?;
    let header = pb::BackupHeader::decode(header.as_slice()).map_err(|error| error.to_string())?;
    Ok((header.into(), 16 + u64::from(length)))
}

impl From<pb::BackupHeader> for BackupHeader {
    fn from(header: pb::BackupHeader) -> Self {
        Self {
            cluster: header.cluster.map(Into::into).unwrap_or_default(),
            format: header.format,
            index: header.index,
            at: Timestamp(header.at_milliseconds),
            taken: Timestamp(header.taken_milliseconds),
            taken_by: header.taken_by,
            nodes: header.nodes,
            services: header.services,
            instances: header.instances,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{codec::encode_snapshot, machine::tests::busy_snapshot};

    #[test]
    fn a_backup_is_read_as_it_was_written_and_damage_is_seen_wherever_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("catalog.backup");
        let snapshot = busy_snapshot();
        let header = pb::BackupHeader { index: snapshot.index(), taken_by: "m1".into(), ..Default::default() };
        let mut rows = Vec::new();
        encode_snapshot(&snapshot, &mut rows).unwrap();
        let mut writer = BackupWriter::create(&path, &header).unwrap();
        rows.chunks(100).for_each(|piece| writer.write(piece).unwrap());
        assert!(!path.exists(), "it has its name before it is whole");
        let written = writer.finish().unwrap();
        assert_eq!((written.snapshot, written.header.taken_by.as_str()), (snapshot.clone(), "m1"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);

        let read = Backup::read(&path).unwrap();
        assert_eq!((read.snapshot.clone(), read.header.index), (snapshot.clone(), snapshot.index()));
        let mut again = Vec::new();
        read.rows().unwrap().read_to_end(&mut again).unwrap();
        assert_eq!(again, rows);

        read.check_restorable().unwrap();
        let large = Backup { bytes: MAX_RESTORED_BYTES as u64 + 1, ..read };
        let why = large.check_restorable().unwrap_err().to_string();
        assert!(why.contains("CANNOT BE RESTORED") && why.contains("536870913 bytes"), "{why}");

        let whole = fs::read(&path).unwrap();
        for at in (0..whole.len()).step_by(whole.len() / 40) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            fs::write(&path, &damaged).unwrap();
            assert!(Backup::read(&path).is_err(), "damage at {at} was not seen");
            fs::write(&path, &whole[..at]).unwrap();
            assert!(Backup::read(&path).is_err(), "cut at {at} was not seen");
        }
        // One that is given up leaves nothing.
        drop(BackupWriter::create(&folder.path().join("other"), &header).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
