//! Rows in messages: as many in each as make a frame, and only so many in memory at once.

use std::iter::Peekable;

use muster_catalog::{Name, Scope, Snapshot, SnapshotRow, Wide};
use prost::Message;

use crate::{limits::PIECE_BYTES, proto::catalog as pb};

/// Rows on their way, piece by piece. There is always at least one piece, if an empty one.
pub(super) struct Pieces<'a> {
    rows: Peekable<Box<dyn Iterator<Item = SnapshotRow> + Send + 'a>>,
    ended: bool,
}

impl<'a> Pieces<'a> {
    /// The rows in their order.
    fn new(rows: impl Iterator<Item = SnapshotRow> + Send + 'a) -> Self {
        let rows: Box<dyn Iterator<Item = SnapshotRow> + Send + 'a> = Box::new(rows);
        Self { rows: rows.peekable(), ended: false }
    }

    /// The rows of a Scope: all, or those that one who holds it up to an index lacks.
    pub(super) fn load(snapshot: &'a Snapshot, scope: &'a Scope, after: Option<u64>) -> Self {
        Self::new(snapshot.rows_for(scope, after))
    }

    /// The answer to a read.
    pub(super) fn wide(snapshot: &'a Snapshot, wide: &'a Wide) -> Self {
        Self::new(wide.rows(snapshot))
    }

    /// The sets of services.
    pub(super) fn sets(snapshot: &'a Snapshot, services: &'a [Name]) -> Self {
        Self::new(services.iter().flat_map(|service| snapshot.set_rows(service)))
    }

    /// The next piece, and whether it is the last one.
    pub(super) fn take(&mut self) -> Option<(Vec<pb::SnapshotRow>, bool)> {
        if self.ended {
            return None;
        }
        let (mut piece, mut bytes) = (Vec::new(), 0);
        while bytes < PIECE_BYTES
            && let Some(row) = self.rows.next()
        {
            let row = pb::SnapshotRow::from(&row);
            bytes += row.encoded_len();
            piece.push(row);
        }
        self.ended = self.rows.peek().is_none();
        Some((piece, self.ended))
    }
}
