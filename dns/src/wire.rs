//! Bytes to a request: what is not worth parsing is refused first.

use std::net::SocketAddr;

use hickory_proto::{
    op::{Header, HeaderCounts, Metadata, ResponseCode},
    serialize::binary::BinEncodable,
};
use hickory_server::{net::xfer::Protocol, server::Request};

use crate::{
    check::{Check, check},
    metrics::Metrics,
};

/// What bytes from outside turned out to be.
pub(crate) enum Read {
    /// Nothing that may be answered.
    Nothing,
    /// Refused with this reply, without being parsed.
    Refused(Vec<u8>),
    /// A question.
    Request(Box<Request>),
}

/// Reads one message.
pub(crate) fn read(metrics: &Metrics, bytes: Vec<u8>, client: SocketAddr, protocol: Protocol) -> Read {
    let refused = |metadata, rcode| refuse(metrics, metadata, rcode).map_or(Read::Nothing, Read::Refused);
    let metadata = match check(&bytes) {
        Check::Ignore => return Read::Nothing,
        Check::Refuse(metadata, rcode) => return refused(&metadata, rcode),
        Check::Parse(metadata) => metadata,
    };
    match Request::from_bytes(bytes, client, protocol) {
        Ok(request) => Read::Request(Box::new(request)),
        Err(_) => refused(&metadata, ResponseCode::FormErr),
    }
}

fn refuse(metrics: &Metrics, query: &Metadata, rcode: ResponseCode) -> Option<Vec<u8>> {
    let metadata = refusal(metrics, query, rcode);
    Header { metadata, counts: HeaderCounts::default() }.to_bytes().ok()
}

/// The header of a reply to what is refused without being parsed, counted as one.
pub(crate) fn refusal(metrics: &Metrics, query: &Metadata, rcode: ResponseCode) -> Metadata {
    let mut metadata = Metadata::response_from_request(query);
    metadata.response_code = rcode;
    metrics.finish(None, rcode, None);
    metadata
}
