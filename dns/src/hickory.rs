//! The other way out: what the [`Handler`] answers, written by hickory-server for the transports that it serves.
//!
//! No socket is given to hickory yet. Its encoder leaves names as they are after 120 of them, so a message holds some
//! 1,600 addresses where our own holds 4,000: plain TCP stays with our own.

use async_trait::async_trait;
use hickory_proto::{
    op::{Edns, Header, HeaderCounts, Metadata},
    rr::Record,
    serialize::binary::BinDecoder,
};
use hickory_server::{
    net::{NetError, runtime::Time},
    server::{Request, RequestHandler, ResponseHandler, ResponseInfo},
    zone_handler::{MessageResponse, MessageResponseBuilder, Queries},
};

use crate::{
    check::{Check, check},
    edns::Opt,
    fit::count_uncompressed,
    handler::Handler,
    reply::Reply,
    wire::refusal,
};

#[async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(&self, request: &Request, mut out: R) -> ResponseInfo {
        match check(request.as_slice()) {
            Check::Ignore => unsent(&Metadata::response_from_request(&request.metadata)),
            Check::Refuse(query, rcode) => {
                let metadata = refusal(self.metrics(), &query, rcode);
                // Without the question: its name may be a pointer into the header.
                let Ok(none) = Queries::read(&mut BinDecoder::new(&[]), 0) else { return unsent(&metadata) };
                let refused = MessageResponseBuilder::new(&none, None).build_no_records(metadata);
                info(out.send_response(refused).await, &metadata)
            }
            Check::Parse(_) => {
                let reply = self.answer_in_time(request, count_uncompressed).await;
                let edns = reply.opt().map(Opt::to_edns);
                let sent = out.send_response(reply.response(edns.as_ref())).await;
                self.finish(&reply);
                info(sent, &reply.metadata)
            }
        }
    }
}

impl Reply<'_> {
    /// The reply in hickory's words; `edns` is its OPT record.
    pub(crate) fn response<'a>(
        &'a self,
        edns: Option<&'a Edns>,
    ) -> MessageResponse<
        'a,
        'a,
        impl Iterator<Item = &'a Record> + Send + 'a,
        impl Iterator<Item = &'a Record> + Send + 'a,
        impl Iterator<Item = &'a Record> + Send + 'a,
        impl Iterator<Item = &'a Record> + Send + 'a,
    > {
        let Self { request, metadata, answer, .. } = self;
        let builder = MessageResponseBuilder::new(&request.queries, edns);
        builder.build(*metadata, &answer.answers, [], &answer.soa, &answer.additionals)
    }
}

fn info(sent: Result<ResponseInfo, NetError>, metadata: &Metadata) -> ResponseInfo {
    sent.unwrap_or_else(|error| {
        tracing::debug!(%error, "sending a reply failed");
        unsent(metadata)
    })
}

/// What hickory logs of a reply that was not sent.
fn unsent(metadata: &Metadata) -> ResponseInfo {
    ResponseInfo::from(Header { metadata: *metadata, counts: HeaderCounts::default() })
}

#[cfg(test)]
mod tests;
