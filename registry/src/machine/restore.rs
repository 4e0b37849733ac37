//! Putting another catalog in the place of the present one: it comes through the log in pieces, so that every member
//! does it at the same index, and the last piece puts it in place.

use std::io::{self, Read, Write};

use bytes::Bytes;
use muster_catalog::{ClusterId, Row, Scope, Snapshot, SnapshotBuilder, SnapshotHeader, SnapshotRow, Timestamp};
use prost::Message;

use crate::{codec::decode_snapshot, limits::MAX_RESTORED_BYTES, proto::catalog as pb};

/// Whoever brings a catalog has to bring its next piece within this, by the log's clock; what there is goes then.
const PATIENCE_MILLISECONDS: u64 = 5 * 60 * 1000;
/// The largest piece that is read back from a Raft snapshot: an entry could not be larger.
const MAX_PIECE: u32 = 4 * 1024 * 1024;
/// The first format whose members know what a piece is.
pub(crate) const FIRST_FORMAT_TO_RESTORE: u32 = 2;

/// What came so far of a catalog.
#[derive(Debug, Default)]
pub(crate) struct Staging {
    id: String,
    pieces: Vec<Bytes>,
    bytes: usize,
    at: Timestamp,
}

impl Staging {
    /// Takes a piece. `Some` is the whole catalog, when this was the last.
    pub(crate) fn take(
        &mut self,
        piece: pb::RestorePiece,
        at: Timestamp,
        format: u32,
    ) -> Result<Option<Snapshot>, String> {
        if piece.number == 0 {
            *self = Self { id: piece.id.clone(), ..Self::default() };
        }
        if piece.id != self.id || piece.number as usize != self.pieces.len() {
            let expected = self.pieces.len();
            return Err(format!("piece {} came where {expected} was expected: begin anew", piece.number));
        }
        self.bytes += piece.data.len();
        if self.bytes > MAX_RESTORED_BYTES {
            *self = Self::default();
            return Err(format!("the catalog is larger than {MAX_RESTORED_BYTES} bytes"));
        }
        self.at = at;
        self.pieces.push(piece.data);
        if !piece.last {
            return Ok(None);
        }
        let whole = std::mem::take(self);
        let snapshot =
            decode_snapshot(&mut Pieces { pieces: whole.pieces.into_iter(), current: Bytes::new() }, Scope::All)
                .map_err(|error| error.to_string())?;
        if snapshot.format() > format {
            let found = snapshot.format();
            return Err(format!("it has catalog format {found}, this registry {format}: upgrade all members first"));
        }
        Ok(Some(snapshot))
    }

    /// Lets go of what nobody brings to an end.
    pub(crate) fn expire(&mut self, now: Timestamp) {
        if !self.pieces.is_empty() && now.0 > self.at.0.saturating_add(PATIENCE_MILLISECONDS) {
            tracing::warn!(bytes = self.bytes, "a restore was not brought to its end; what came of it is dropped");
            *self = Self::default();
        }
    }

    /// Bytes for a Raft snapshot, behind the catalog's own.
    pub(crate) fn freeze(&self) -> impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + use<> {
        let (id, pieces, at) = (self.id.clone(), self.pieces.clone(), self.at);
        move |to| {
            for (number, data) in (0_u32..).zip(pieces) {
                let piece = pb::RestorePiece { id: id.clone(), number, data, last: false };
                let bytes = pb::Proposal { at_milliseconds: at.0, command: None, restore: Some(piece) }.encode_to_vec();
                let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
                to.write_all(&length.to_be_bytes())?;
                to.write_all(&bytes)?;
            }
            Ok(())
        }
    }

    /// What [`Self::freeze`] wrote, to the end.
    pub(crate) fn install(from: &mut dyn Read) -> io::Result<Self> {
        let mut staging = Self::default();
        let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        let mut length = [0; 4];
        while from.read(&mut length[..1])? == 1 {
            from.read_exact(&mut length[1..])?;
            let length = u32::from_be_bytes(length);
            if length > MAX_PIECE {
                return Err(invalid(format!("a piece of a restore claims {length} bytes")));
            }
            let mut bytes = vec![0; length as usize];
            from.read_exact(&mut bytes)?;
            let proposal = pb::Proposal::decode(bytes.as_slice()).map_err(io::Error::other)?;
            let piece = proposal.restore.ok_or_else(|| invalid("a piece of a restore is missing".to_owned()))?;
            staging.take(piece, Timestamp(proposal.at_milliseconds), 0).map_err(invalid)?;
        }
        Ok(staging)
    }
}

/// Reads pieces one after the other, letting go of each.
struct Pieces {
    pieces: std::vec::IntoIter<Bytes>,
    current: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.pieces.next() {
                Some(next) => self.current = next,
                None => return Ok(0),
            }
        }
        let n = buffer.len().min(self.current.len());
        let piece = self.current.split_to(n);
        buffer.get_mut(..n).unwrap_or_default().copy_from_slice(&piece);
        Ok(n)
    }
}

/// The catalog as it takes the place of `present` at `index`: the same registry in its next incarnation. Every row is
/// new at that index: those that it had belong to another history, which may have been longer.
pub(crate) fn in_place_of(present: &Snapshot, restored: &Snapshot, index: u64, at: Timestamp) -> Snapshot {
    let ClusterId { uuid, incarnation } = present.cluster().clone();
    let header = SnapshotHeader {
        cluster: ClusterId { uuid, incarnation: incarnation.saturating_add(1) },
        format: present.format(),
        index,
        at,
        nodes_index: index,
        services_index: index,
        checks_index: index,
        extinction_index: index,
    };
    let mut builder = SnapshotBuilder::new(Scope::All);
    for row in restored.rows() {
        builder.push(match row {
            SnapshotRow::Header(_) => SnapshotRow::Header(header.clone()),
            SnapshotRow::Service(mut row) => {
                row.index = index;
                SnapshotRow::Service(row)
            }
            SnapshotRow::Node { row, .. } => SnapshotRow::Node { row: anew(row, index), index },
            SnapshotRow::Instance(row) => SnapshotRow::Instance(anew(row, index)),
            SnapshotRow::Check(row) => SnapshotRow::Check(anew(row, index)),
            row @ SnapshotRow::Writer { .. } => row,
        });
    }
    builder.finish()
}

fn anew<T>(row: Row<T>, index: u64) -> Row<T> {
    Row { created: index, modified: index, ..row }
}
