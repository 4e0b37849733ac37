//! Snapshots as rows.

use muster_catalog::{Row, SnapshotHeader, SnapshotRow};

use super::{ConvertError, from_node_writer, node_writer, required, timestamp};
use crate::proto::catalog::{self as pb, snapshot_row::Kind};

impl From<&SnapshotRow> for pb::SnapshotRow {
    fn from(row: &SnapshotRow) -> Self {
        let kind = match row {
            SnapshotRow::Header(header) => Kind::Header(header.into()),
            SnapshotRow::Service(row) => Kind::Service(row.into()),
            SnapshotRow::Node { row, index } => Kind::Node(pb::NodeRow {
                node: Some((&*row.value).into()),
                created: row.created,
                modified: row.modified,
                index: *index,
            }),
            SnapshotRow::Instance(row) => Kind::Instance(pb::InstanceRow {
                instance: Some((&*row.value).into()),
                created: row.created,
                modified: row.modified,
            }),
            SnapshotRow::Check(row) => Kind::Check(pb::CheckRow {
                check: Some((&*row.value).into()),
                created: row.created,
                modified: row.modified,
            }),
            SnapshotRow::Writer { node, writer } => Kind::Writer(node_writer(node, *writer)),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<pb::SnapshotRow> for SnapshotRow {
    type Error = ConvertError;

    fn try_from(row: pb::SnapshotRow) -> Result<Self, ConvertError> {
        Ok(match required("row.kind", row.kind)? {
            Kind::Header(header) => Self::Header(header.into()),
            Kind::Service(row) => Self::Service(row.try_into()?),
            Kind::Node(row) => {
                let value = required("row.node", row.node)?.try_into()?;
                Self::Node { row: Row { created: row.created, modified: row.modified, value }, index: row.index }
            }
            Kind::Instance(row) => {
                let value = required("row.instance", row.instance)?.try_into()?;
                Self::Instance(Row { created: row.created, modified: row.modified, value })
            }
            Kind::Check(row) => {
                let value = required("row.check", row.check)?.try_into()?;
                Self::Check(Row { created: row.created, modified: row.modified, value })
            }
            Kind::Writer(row) => {
                let (node, writer) = from_node_writer(row)?;
                Self::Writer { node, writer }
            }
        })
    }
}

impl From<&SnapshotHeader> for pb::SnapshotHeader {
    fn from(header: &SnapshotHeader) -> Self {
        Self {
            cluster: Some((&header.cluster).into()),
            format: header.format,
            index: header.index,
            at_milliseconds: header.at.0,
            nodes_index: header.nodes_index,
            services_index: header.services_index,
            checks_index: header.checks_index,
            extinction_index: header.extinction_index,
        }
    }
}

impl From<pb::SnapshotHeader> for SnapshotHeader {
    fn from(header: pb::SnapshotHeader) -> Self {
        Self {
            cluster: header.cluster.map(Into::into).unwrap_or_default(),
            format: header.format,
            index: header.index,
            at: timestamp(header.at_milliseconds),
            nodes_index: header.nodes_index,
            services_index: header.services_index,
            checks_index: header.checks_index,
            extinction_index: header.extinction_index,
        }
    }
}
