//! What is read of a request: the fields that are used, and no more of them than names may be asked for.
//!
//! The messages of the protocol hold much that is not used here, such as the extensions of a node, and what takes two bytes on
//! the wire may take a hundred when it is read. Fields that a message does not have are passed over.

use std::{collections::HashMap, marker::PhantomData};

use prost::{Message, bytes::Buf, decode_length_delimiter};
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder},
};
use tonic_prost::ProstEncoder;

use crate::{subscription::MAX_NAMES, wire::Wire};

/// How many fields a request may have, each name and each version being one: as many as may be subscribed to, unsubscribed
/// from, and brought along, and what else there is.
const MAX_FIELDS: usize = 3 * MAX_NAMES + 64;

/// `envoy.service.discovery.v3.DiscoveryRequest`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct DiscoveryRequest {
    #[prost(string, tag = "1")]
    pub(crate) version_info: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) node: Option<Node>,
    #[prost(string, repeated, tag = "3")]
    pub(crate) resource_names: Vec<String>,
    #[prost(string, tag = "4")]
    pub(crate) type_url: String,
    #[prost(string, tag = "5")]
    pub(crate) response_nonce: String,
    #[prost(message, optional, tag = "6")]
    pub(crate) error_detail: Option<Reason>,
}

/// `envoy.service.discovery.v3.DeltaDiscoveryRequest`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct DeltaDiscoveryRequest {
    #[prost(message, optional, tag = "1")]
    pub(crate) node: Option<Node>,
    #[prost(string, tag = "2")]
    pub(crate) type_url: String,
    #[prost(string, repeated, tag = "3")]
    pub(crate) resource_names_subscribe: Vec<String>,
    #[prost(string, repeated, tag = "4")]
    pub(crate) resource_names_unsubscribe: Vec<String>,
    #[prost(map = "string, string", tag = "5")]
    pub(crate) initial_resource_versions: HashMap<String, String>,
    #[prost(string, tag = "6")]
    pub(crate) response_nonce: String,
    #[prost(message, optional, tag = "7")]
    pub(crate) error_detail: Option<Reason>,
}

/// `envoy.config.core.v3.Node`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Node {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(string, tag = "2")]
    pub(crate) cluster: String,
}

/// `google.rpc.Status`: why something was rejected.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Reason {
    #[prost(int32, tag = "1")]
    pub(crate) code: i32,
    #[prost(string, tag = "2")]
    pub(crate) message: String,
}

/// Reads requests of a variant, and writes its responses.
#[derive(Debug)]
pub(crate) struct RequestCodec<W>(PhantomData<W>);

impl<W> Default for RequestCodec<W> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<W: Wire> Codec for RequestCodec<W> {
    type Encode = W::Response;
    type Decode = W;
    type Encoder = ProstEncoder<W::Response>;
    type Decoder = Self;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self {
        Self::default()
    }
}

impl<W: Wire> Decoder for RequestCodec<W> {
    type Item = W;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<W>, Status> {
        let message = source.copy_to_bytes(source.remaining());
        if count_fields(&message, MAX_FIELDS + 1) > MAX_FIELDS {
            let reason = format!("a request has more than {MAX_FIELDS} fields: subscribe to the wildcard instead");
            return Err(Status::resource_exhausted(reason));
        }
        let unreadable = |error| Status::invalid_argument(format!("the request cannot be read: {error}"));
        W::decode(message).map(Some).map_err(unreadable)
    }
}

/// Counts the fields of a message without reading what is in them, up to a limit. What it cannot pass over counts as that
/// many: no such message is sent by anyone.
fn count_fields(mut message: &[u8], limit: usize) -> usize {
    for counted in 0..limit {
        if message.is_empty() {
            return counted;
        }
        if pass_field(&mut message).is_none() {
            break;
        }
    }
    limit
}

/// Passes over a field, unless it is cut or a group.
fn pass_field(message: &mut &[u8]) -> Option<()> {
    let key = decode_length_delimiter(&mut *message).ok()?;
    let length = match key & 7 {
        0 => decode_length_delimiter(&mut *message).map(|_| 0).ok()?,
        1 => 8,
        2 => decode_length_delimiter(&mut *message).ok()?,
        5 => 4,
        _ => return None,
    };
    *message = message.get(length..)?;
    Some(())
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::{
        envoy::{
            config::core::v3 as core,
            service::discovery::v3::{self as discovery, ResourceLocator},
        },
        google::rpc,
    };

    use super::*;

    #[test]
    fn what_is_used_of_a_request_is_read() {
        let (id, cluster, user_agent_name) = ("x".to_owned(), "c".to_owned(), "envoy".to_owned());
        let node = core::Node { id: id.clone(), cluster: cluster.clone(), user_agent_name, ..Default::default() };
        let details = vec![Default::default()];
        let status = rpc::Status { code: 13, message: "no".into(), details };
        let (node, error_detail) = (Some(node), Some(status));
        let locators = vec![ResourceLocator::default()];
        let (read_node, reason) = (Some(Node { id, cluster }), Some(Reason { code: 13, message: "no".into() }));
        let state = discovery::DiscoveryRequest {
            version_info: "v".into(),
            node: node.clone(),
            resource_names: vec!["a".into(), "b".into()],
            resource_locators: locators.clone(),
            type_url: "t".into(),
            response_nonce: "n".into(),
            error_detail: error_detail.clone(),
        };
        let read = DiscoveryRequest {
            version_info: "v".into(),
            node: read_node.clone(),
            resource_names: vec!["a".into(), "b".into()],
            type_url: "t".into(),
            response_nonce: "n".into(),
            error_detail: reason.clone(),
        };
        let bytes = state.encode_to_vec();
        assert_eq!((count_fields(&bytes, 100), DiscoveryRequest::decode(&*bytes).unwrap()), (8, read));
        let delta = discovery::DeltaDiscoveryRequest {
            node,
            type_url: "t".into(),
            resource_names_subscribe: vec!["a".into()],
            resource_names_unsubscribe: vec!["b".into(), "c".into()],
            resource_locators_subscribe: locators.clone(),
            resource_locators_unsubscribe: locators,
            initial_resource_versions: [("d".into(), "1".into())].into(),
            response_nonce: "n".into(),
            error_detail,
        };
        let read = DeltaDiscoveryRequest {
            node: read_node,
            type_url: "t".into(),
            resource_names_subscribe: vec!["a".into()],
            resource_names_unsubscribe: vec!["b".into(), "c".into()],
            initial_resource_versions: [("d".into(), "1".into())].into(),
            response_nonce: "n".into(),
            error_detail: reason,
        };
        let bytes = delta.encode_to_vec();
        assert_eq!((count_fields(&bytes, 100), DeltaDiscoveryRequest::decode(&*bytes).unwrap()), (10, read));
    }

    #[test]
    fn fields_of_every_kind_are_counted_and_what_is_cut_is_not_taken_for_few() {
        // A number, eight bytes, text, and four bytes.
        let fields = [&[0x08, 0xff, 0x01][..], &[0x09, 1, 2, 3, 4, 5, 6, 7, 8], &[0x0a, 1, 7], &[0x0d, 1, 2, 3, 4]];
        let message = fields.concat();
        assert_eq!((count_fields(&message, 100), count_fields(&message, 3), count_fields(&[], 100)), (4, 3, 0));
        assert_eq!(count_fields(&message[..message.len() - 1], 100), 100);
        // Of a group, whose end would have to be looked for.
        assert_eq!(count_fields(&[0x0b, 0x0c], 100), 100);
    }
}
