//! A Snapshot as bytes: Raft snapshots and an agent's replica file are the same rows.
//!
//! `magic, version, (length, row)…, 0, crc32`. Rows are written and read one by one: a large catalog is never held twice.
//! Before that a replica which does not hold everything has its Scope, `magic, length, scope, crc32`: a build that does
//! not know it refuses the file rather than take a part for the whole.

use std::io::{self, Read, Write};

use muster_catalog::{Scope, Snapshot, SnapshotBuilder, SnapshotRow};
use prost::Message;

use crate::{
    convert::ConvertError,
    limits::MAX_ROW_BYTES,
    proto::{catalog as pb, registry as pb_registry},
};

const MAGIC: [u8; 8] = *b"MUSTERSN";
/// What a Scope begins with.
const SCOPE_MAGIC: [u8; 8] = *b"MUSTERSC";
/// Raised when the frame changes; rows change by adding fields.
const VERSION: u32 = 1;
/// A length above this is damage.
const MAX_ROW: u32 = MAX_ROW_BYTES as u32;

/// Why bytes are not a Snapshot. The remedy is always a fresh copy from the registry.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// It could not be read.
    #[error("the snapshot could not be read: {0}")]
    Io(#[from] io::Error),
    /// Something else altogether.
    #[error("this is not a snapshot of Muster: it starts with {0:02x?}")]
    Magic([u8; 8]),
    /// Written by a newer build.
    #[error("the snapshot has format version {0}, this build reads {VERSION}: update this build")]
    Version(u32),
    /// A length that no row has.
    #[error("the snapshot is damaged: row {row} claims {length} bytes, over {MAX_ROW}")]
    Length {
        /// Counted from 1.
        row: u64,
        /// What it claims.
        length: u32,
    },
    /// A row that is not protobuf.
    #[error("the snapshot is damaged: row {row} cannot be decoded: {source}")]
    Row {
        /// Counted from 1.
        row: u64,
        /// What is wrong with it.
        source: prost::DecodeError,
    },
    /// A row that this build does not understand.
    #[error("row {row} of the snapshot: {source}")]
    Convert {
        /// Counted from 1.
        row: u64,
        /// What is wrong with it.
        source: ConvertError,
    },
    /// The bytes changed since they were written.
    #[error("the snapshot is damaged: its checksum is {found:08x}, {expected:08x} was written")]
    Checksum {
        /// What the bytes give.
        found: u32,
        /// What stands at the end.
        expected: u32,
    },
}

/// Writes a Snapshot, whatever its Scope.
pub fn encode_snapshot(snapshot: &Snapshot, to: &mut dyn Write) -> io::Result<()> {
    let mut out = Summed { inner: to, sum: crc32fast::Hasher::new() };
    out.write_all(&MAGIC)?;
    out.write_all(&VERSION.to_le_bytes())?;
    let mut buffer = Vec::new();
    for row in snapshot.rows() {
        buffer.clear();
        pb::SnapshotRow::from(&row).encode(&mut buffer).map_err(io::Error::other)?;
        let length = u32::try_from(buffer.len()).ok().filter(|length| *length <= MAX_ROW);
        let length = length.ok_or_else(|| io::Error::other(format!("a row of {} bytes is too large", buffer.len())))?;
        out.write_all(&length.to_le_bytes())?;
        out.write_all(&buffer)?;
    }
    out.write_all(&0_u32.to_le_bytes())?;
    let sum = out.sum.clone().finalize();
    out.inner.write_all(&sum.to_le_bytes())?;
    out.inner.flush()
}

/// Reads a Snapshot that was written from one of that Scope.
pub fn decode_snapshot(from: &mut dyn Read, scope: Scope) -> Result<Snapshot, SnapshotError> {
    let mut input = Summed { inner: from, sum: crc32fast::Hasher::new() };
    let magic = input.array::<8>()?;
    if magic != MAGIC {
        return Err(SnapshotError::Magic(magic));
    }
    let version = u32::from_le_bytes(input.array()?);
    if version != VERSION {
        return Err(SnapshotError::Version(version));
    }
    let mut builder = SnapshotBuilder::new(scope);
    let mut buffer = Vec::new();
    for row in 1.. {
        let length = u32::from_le_bytes(input.array()?);
        if length == 0 {
            break;
        }
        if length > MAX_ROW {
            return Err(SnapshotError::Length { row, length });
        }
        input.take(length, &mut buffer)?;
        let decoded =
            pb::SnapshotRow::decode(buffer.as_slice()).map_err(|source| SnapshotError::Row { row, source })?;
        builder.push(SnapshotRow::try_from(decoded).map_err(|source| SnapshotError::Convert { row, source })?);
    }
    let found = input.sum.clone().finalize();
    let expected = u32::from_le_bytes(input.array()?);
    if found != expected {
        return Err(SnapshotError::Checksum { found, expected });
    }
    Ok(builder.finish())
}

/// Writes a replica: its Scope unless that is all, and its Snapshot.
pub fn encode_replica(snapshot: &Snapshot, to: &mut dyn Write) -> io::Result<()> {
    if *snapshot.scope() != Scope::All {
        let scope = pb_registry::Scope::from(snapshot.scope()).encode_to_vec();
        let length = u32::try_from(scope.len()).map_err(io::Error::other)?;
        to.write_all(&SCOPE_MAGIC)?;
        to.write_all(&length.to_le_bytes())?;
        to.write_all(&scope)?;
        to.write_all(&crc32fast::hash(&scope).to_le_bytes())?;
    }
    encode_snapshot(snapshot, to)
}

/// Reads a replica, with its Scope.
pub fn decode_replica(from: &mut dyn Read) -> Result<Snapshot, SnapshotError> {
    let mut magic = [0; 8];
    from.read_exact(&mut magic)?;
    if magic != SCOPE_MAGIC {
        return decode_snapshot(&mut magic.as_slice().chain(from), Scope::All);
    }
    let mut word = [0; 4];
    from.read_exact(&mut word)?;
    let length = u32::from_le_bytes(word);
    if length > MAX_ROW {
        return Err(SnapshotError::Length { row: 0, length });
    }
    let mut scope = Vec::new();
    (&mut *from).take(u64::from(length)).read_to_end(&mut scope)?;
    from.read_exact(&mut word)?;
    let (found, expected) = (crc32fast::hash(&scope), u32::from_le_bytes(word));
    if found != expected {
        return Err(SnapshotError::Checksum { found, expected });
    }
    let scope = pb_registry::Scope::decode(scope.as_slice());
    let scope = scope.map_err(|source| SnapshotError::Row { row: 0, source })?;
    decode_snapshot(from, Scope::from(&scope))
}

/// Sums what passes through.
struct Summed<T> {
    inner: T,
    sum: crc32fast::Hasher,
}

impl Summed<&mut dyn Write> {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sum.update(bytes);
        self.inner.write_all(bytes)
    }
}

impl Summed<&mut dyn Read> {
    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.inner.read_exact(bytes)?;
        self.sum.update(bytes);
        Ok(())
    }

    /// Reads so many bytes. Room is made for what comes, and not for what a damaged length claims.
    fn take(&mut self, length: u32, bytes: &mut Vec<u8>) -> io::Result<()> {
        bytes.clear();
        (&mut *self.inner).take(u64::from(length)).read_to_end(bytes)?;
        if bytes.len() < length as usize {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.sum.update(bytes);
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use muster_catalog::{Name, project_snapshot};

    use super::*;
    use crate::machine::tests::busy_snapshot;

    #[test]
    fn a_row_that_an_earlier_build_let_grow_is_kept() {
        let mut builder = muster_catalog::SnapshotBuilder::new(Scope::All);
        let tags = (0..12_000).map(|at| format!("{at:0>490}").as_str().into()).collect();
        let row = muster_catalog::DirectoryRow { service: Name::lookup("web"), index: 7, tags };
        builder.push(SnapshotRow::Service(row));
        let snapshot = builder.finish();
        let mut bytes = Vec::new();
        encode_snapshot(&snapshot, &mut bytes).unwrap();
        assert_eq!(decode_snapshot(&mut bytes.as_slice(), Scope::All).unwrap(), snapshot);
    }

    #[test]
    fn a_snapshot_comes_back_from_its_bytes_and_damage_is_seen() {
        let snapshot = busy_snapshot();
        let mut bytes = Vec::new();
        encode_snapshot(&snapshot, &mut bytes).unwrap();
        assert_eq!(decode_snapshot(&mut bytes.as_slice(), Scope::All).unwrap(), snapshot);
        for at in [0, 9, bytes.len() / 2, bytes.len() - 1] {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x40;
            assert!(decode_snapshot(&mut damaged.as_slice(), Scope::All).is_err(), "damage at {at} was not seen");
        }
        let replica = |bytes: &[u8]| decode_replica(&mut &*bytes);
        assert_eq!(replica(&bytes).unwrap(), snapshot, "what holds all has no Scope before it");
        let service = snapshot.services().next().unwrap().name.clone();
        let scope = Scope::Services { names: [service].into_iter().collect(), node: Some(Name::lookup("n1")) };
        let part = project_snapshot(&scope, &snapshot);
        let mut scoped = Vec::new();
        encode_replica(&part, &mut scoped).unwrap();
        assert_eq!(replica(&scoped).unwrap(), part);
        let refused = decode_snapshot(&mut scoped.as_slice(), Scope::All);
        assert!(matches!(refused, Err(SnapshotError::Magic(_))), "an older build takes no part for the whole");
        for at in 0..40 {
            let mut damaged = scoped.clone();
            damaged[at] ^= 0x40;
            assert!(replica(&damaged).is_err(), "damage at {at} was not seen");
        }
        let cut = &bytes[..bytes.len() - 5];
        assert!(matches!(decode_snapshot(&mut &*cut, Scope::All), Err(SnapshotError::Io(_))));
    }
}
