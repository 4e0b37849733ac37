//! What happened.

use std::sync::Arc;

use muster_catalog::{Change, Entry};

use super::{ConvertError, all, from_node_writer, from_row_key, name, node_writer, required, row_key, timestamp};
use crate::proto::catalog::{self as pb, change::Kind};

/// The Change kinds that this build knows, by their numbers in `catalog.proto`.
pub(crate) const KNOWN_CHANGES: [u32; 11] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];

/// A Change's number in `catalog.proto`.
pub(crate) fn change_kind(change: &Change) -> u32 {
    match change {
        Change::SetCluster(_) => 1,
        Change::SetFormat(_) => 2,
        Change::PutWriter { .. } => 3,
        Change::PutNode(_) => 4,
        Change::DeleteNode(_) => 5,
        Change::PutInstance(_) => 6,
        Change::DeleteInstance { .. } => 7,
        Change::PutCheck(_) => 8,
        Change::DeleteCheck { .. } => 9,
        Change::PutDirectory(_) => 10,
        Change::DeleteDirectory(_) => 11,
    }
}

impl From<&Change> for pb::Change {
    fn from(change: &Change) -> Self {
        let kind = match change {
            Change::SetCluster(cluster) => Kind::SetCluster(cluster.into()),
            Change::SetFormat(format) => Kind::SetFormat(*format),
            Change::PutWriter { node, writer } => Kind::PutWriter(node_writer(node, *writer)),
            Change::PutNode(node) => Kind::PutNode((&**node).into()),
            Change::DeleteNode(node) => Kind::DeleteNode(node.to_string()),
            Change::PutInstance(instance) => Kind::PutInstance((&**instance).into()),
            Change::DeleteInstance { node, id } => Kind::DeleteInstance(row_key(node, id)),
            Change::PutCheck(check) => Kind::PutCheck((&**check).into()),
            Change::DeleteCheck { node, id } => Kind::DeleteCheck(row_key(node, id)),
            Change::PutDirectory(row) => Kind::PutDirectory(row.into()),
            Change::DeleteDirectory(service) => Kind::DeleteDirectory(service.to_string()),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<pb::Change> for Change {
    type Error = ConvertError;

    fn try_from(change: pb::Change) -> Result<Self, ConvertError> {
        Ok(match required("change.kind", change.kind)? {
            Kind::SetCluster(cluster) => Self::SetCluster(cluster.into()),
            Kind::SetFormat(format) => Self::SetFormat(format),
            Kind::PutWriter(row) => {
                let (node, writer) = from_node_writer(row)?;
                Self::PutWriter { node, writer }
            }
            Kind::PutNode(node) => Self::PutNode(node.try_into()?),
            Kind::DeleteNode(node) => Self::DeleteNode(name("change.delete_node", &node)?),
            Kind::PutInstance(instance) => Self::PutInstance(instance.try_into()?),
            Kind::DeleteInstance(key) => {
                let (node, id) = from_row_key(&key)?;
                Self::DeleteInstance { node, id }
            }
            Kind::PutCheck(check) => Self::PutCheck(Arc::new(check.try_into()?)),
            Kind::DeleteCheck(key) => {
                let (node, id) = from_row_key(&key)?;
                Self::DeleteCheck { node, id }
            }
            Kind::PutDirectory(row) => Self::PutDirectory(row.try_into()?),
            Kind::DeleteDirectory(service) => Self::DeleteDirectory(name("change.delete_directory", &service)?),
        })
    }
}

impl From<&Entry> for pb::Entry {
    fn from(entry: &Entry) -> Self {
        let changes = entry.changes.iter().map(Into::into).collect();
        Self { index: entry.index, at_milliseconds: entry.at.0, changes }
    }
}

impl TryFrom<pb::Entry> for Entry {
    type Error = ConvertError;

    fn try_from(entry: pb::Entry) -> Result<Self, ConvertError> {
        Ok(Self { index: entry.index, at: timestamp(entry.at_milliseconds), changes: all(entry.changes)? })
    }
}
