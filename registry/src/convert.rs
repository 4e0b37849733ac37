//! Catalog types to protobuf and back. Protobuf stops here.
//!
//! Names from the log and from other members are believed as they are: the door (`service::door`) checks them
//! before they are proposed, and a build with stricter rules must still read what an older one committed.

mod change;
mod command;
mod mesh;
mod row;
mod scope;
mod snapshot;
#[cfg(test)]
pub(crate) mod strategies;
#[cfg(test)]
mod tests;
mod wide;

use muster_catalog::{ClusterId, Name, Text, Timestamp, Writer};

pub(crate) use change::{KNOWN_CHANGES, change_kind};

/// The kinds of WatchEvent beyond those of the first build, by their numbers in `registry.proto`.
pub(crate) const KNOWN_EVENTS: [u32; 1] = [7];

use crate::proto::catalog as pb;

/// Why a message is not what the catalog calls it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// A field that has to be there is not.
    #[error("{0} is missing: the sender is broken or newer than this build; update this build")]
    Missing(&'static str),
    /// An enum value or variant of a newer build.
    #[error("{field} has the unknown value {value}: it was written by a newer build; update this build")]
    Unknown {
        /// The field.
        field: &'static str,
        /// What it has.
        value: i32,
    },
    /// Bytes that are not the message that they should be.
    #[error("{field} cannot be decoded: {source}")]
    Bytes {
        /// The field.
        field: &'static str,
        /// What is wrong with them.
        source: prost::DecodeError,
    },
    /// Text that its field cannot hold.
    #[error("{field} is {value:?}, which is no IP address with a port")]
    Address {
        /// The field.
        field: &'static str,
        /// What was given.
        value: String,
    },
    /// A number that its field cannot hold.
    #[error("{field} is {value}, which is over {limit}")]
    Range {
        /// The field.
        field: &'static str,
        /// What was given.
        value: u64,
        /// The largest permitted.
        limit: u64,
    },
}

/// What must be there.
pub(crate) fn required<T>(field: &'static str, value: Option<T>) -> Result<T, ConvertError> {
    value.ok_or(ConvertError::Missing(field))
}

fn name(field: &'static str, value: &str) -> Result<Name, ConvertError> {
    if value.is_empty() { Err(ConvertError::Missing(field)) } else { Ok(Name::lookup(value)) }
}

fn short(field: &'static str, value: u32) -> Result<u16, ConvertError> {
    u16::try_from(value).map_err(|_| ConvertError::Range { field, value: value.into(), limit: u16::MAX.into() })
}

fn text(value: &str) -> Text {
    Text::from(value)
}

fn texts(values: &[Text]) -> Vec<String> {
    values.iter().map(|value| value.to_string()).collect()
}

fn from_texts(values: &[String]) -> Vec<Text> {
    values.iter().map(|value| text(value)).collect()
}

fn all<A, B>(values: Vec<A>) -> Result<Vec<B>, ConvertError>
where
    B: TryFrom<A, Error = ConvertError>,
{
    values.into_iter().map(B::try_from).collect()
}

impl From<&ClusterId> for pb::ClusterId {
    fn from(cluster: &ClusterId) -> Self {
        Self { uuid: cluster.uuid.to_string(), incarnation: cluster.incarnation }
    }
}

impl From<pb::ClusterId> for ClusterId {
    fn from(cluster: pb::ClusterId) -> Self {
        Self { uuid: text(&cluster.uuid), incarnation: cluster.incarnation }
    }
}

impl From<Writer> for pb::Writer {
    fn from(writer: Writer) -> Self {
        Self { incarnation: writer.incarnation, sequence: writer.sequence }
    }
}

impl From<pb::Writer> for Writer {
    fn from(writer: pb::Writer) -> Self {
        Self { incarnation: writer.incarnation, sequence: writer.sequence }
    }
}

fn node_writer(node: &Name, writer: Writer) -> pb::NodeWriter {
    pb::NodeWriter { node: node.to_string(), writer: Some(writer.into()) }
}

fn from_node_writer(row: pb::NodeWriter) -> Result<(Name, Writer), ConvertError> {
    Ok((name("writer.node", &row.node)?, required("writer.writer", row.writer)?.into()))
}

fn row_key(node: &Name, id: &Text) -> pb::RowKey {
    pb::RowKey { node: node.to_string(), id: id.to_string() }
}

fn from_row_key(key: &pb::RowKey) -> Result<(Name, Text), ConvertError> {
    Ok((name("key.node", &key.node)?, text(&key.id)))
}

/// Milliseconds of a field.
pub(crate) fn timestamp(milliseconds: u64) -> Timestamp {
    Timestamp(milliseconds)
}
