//! The one `RequestHandler`: every rule of the protocol that is not a socket's.

use std::{sync::Arc, time::Duration};

use hickory_proto::{
    op::{Edns, LowerQuery, Metadata, OpCode, ResponseCode},
    rr::{DNSClass, RecordType},
};
use hickory_server::{
    net::{runtime::Time, xfer::Protocol},
    server::{Request, RequestHandler, ResponseHandler, ResponseInfo},
    zone_handler::MessageResponseBuilder,
};
use muster_catalog::port::Source;
use tokio::{sync::Semaphore, time::timeout};

use crate::{
    Answer, Asked, NotHeld, Question, Subject, Zones, answer,
    config::{MAX_UDP_SIZE, MIN_UDP_SIZE},
    edns::{opt_size, reply_edns},
    fit::{fit, most_records},
    metrics::Metrics,
    question,
    server::Clock,
};

/// The longest a question waits for a service to be held: clients ask again after a second or more.
const HOLD_WAIT: Duration = Duration::from_millis(500);
/// How many questions may wait for that at once; the next is told at once to ask again.
const MAX_HOLDS: usize = 256;

/// Answers requests from a source of Views.
pub(crate) struct Handler {
    zones: Zones,
    max_udp_size: u16,
    source: Arc<dyn Source>,
    clock: Clock,
    holds: Semaphore,
    metrics: Metrics,
}

impl Handler {
    pub(crate) fn new(zones: Zones, max_udp_size: u16, source: Arc<dyn Source>, clock: Clock) -> Self {
        let (holds, metrics) = (Semaphore::new(MAX_HOLDS), Metrics::new());
        Self { zones, max_udp_size, source, clock, holds, metrics }
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The most bytes that the client takes over the protocol.
    fn limit(&self, request: &Request) -> usize {
        if request.protocol() != Protocol::Udp {
            return usize::from(u16::MAX);
        }
        let offered = request.edns.as_ref().map_or(MIN_UDP_SIZE, Edns::max_payload);
        // The configured size was checked; the largest is repeated so that no clamp can panic.
        usize::from(offered.min(self.max_udp_size).clamp(MIN_UDP_SIZE, MAX_UDP_SIZE))
    }

    async fn answer(&self, request: &Request, query: Option<&LowerQuery>, limit: usize) -> Answer {
        let Some(query) = query else { return Answer::code(ResponseCode::FormErr) };
        if let Some(rcode) = find_refusal(request, query) {
            return Answer::code(rcode);
        }
        let owner = query.original().name();
        let asked = |question| Asked {
            question,
            owner,
            qtype: query.query_type(),
            most: most_records(limit),
            now: (self.clock)(),
        };
        let question = question::parse(owner, &self.zones);
        if let Question::Inside { subject: Subject::Service { service, .. }, .. } = &question {
            self.source.used(service);
        }
        let NotHeld(service) =
            match answer::answer(&self.source.view(), &self.zones, asked(&question), &mut rand::rng()) {
                Ok(answer) => return answer,
                Err(missing) => missing,
            };
        if let Ok(_permit) = self.holds.try_acquire() {
            // The source promises to be back by then; the wait is bounded here all the same. Late is not held.
            let _late = timeout(HOLD_WAIT, self.source.hold(&service)).await;
        }
        let again = answer::answer(&self.source.view(), &self.zones, asked(&question), &mut rand::rng());
        again.unwrap_or_else(|NotHeld(service)| {
            Answer::not_ready(&format!("service {service} is being loaded, ask again"))
        })
    }
}

/// Why a question is not looked up at all.
fn find_refusal(request: &Request, query: &LowerQuery) -> Option<ResponseCode> {
    if request.metadata.op_code != OpCode::Query {
        return Some(ResponseCode::NotImp);
    }
    if request.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return Some(ResponseCode::BADVERS);
    }
    if query.query_class() != DNSClass::IN {
        return Some(ResponseCode::Refused);
    }
    match query.query_type() {
        // The zone changes with every health check: whoever wants all of it watches the catalog.
        RecordType::AXFR | RecordType::IXFR => Some(ResponseCode::NotImp),
        // A pseudo record (OPT) or a signature's key exchange is no question.
        RecordType::OPT | RecordType::TSIG => Some(ResponseCode::FormErr),
        _ => None,
    }
}

#[async_trait::async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut response_handle: R,
    ) -> ResponseInfo {
        let started = self.metrics.start();
        let query = request.request_info().ok().map(|info| info.query);
        let limit = self.limit(request);
        let mut answer = self.answer(request, query, limit).await;

        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = answer.rcode;
        metadata.authoritative = answer.authoritative;
        let opt = opt_size(request.edns.as_ref(), answer.ede.as_ref());
        let truncated = match fit(&mut answer, metadata, &request.queries, limit, opt) {
            Ok(truncated) => truncated,
            Err(error) => {
                tracing::debug!(%error, "an answer could not be encoded");
                answer = Answer::code(ResponseCode::ServFail);
                metadata.response_code = ResponseCode::ServFail;
                metadata.authoritative = false;
                false
            }
        };
        // Over TCP there is nothing larger to ask with: what fits is a fair draw of the instances.
        metadata.truncation = truncated && request.protocol() == Protocol::Udp;
        if truncated {
            self.metrics.truncated.increment(1);
        }
        if answer.stale {
            self.metrics.stale.increment(1);
        }

        let edns = request.edns.as_ref().map(|query| reply_edns(query, self.max_udp_size, answer.ede.as_ref()));
        let response = MessageResponseBuilder::new(&request.queries, edns.as_ref()).build(
            metadata,
            answer.answers.iter(),
            [],
            answer.soa.iter(),
            answer.additionals.iter(),
        );
        let sent = response_handle.send_response(response).await;
        self.metrics.finish(query.map(LowerQuery::query_type), answer.rcode, started);
        sent.unwrap_or_else(|error| {
            tracing::debug!(%error, "a reply could not be encoded");
            ResponseInfo::from(hickory_proto::op::Header { metadata, counts: Default::default() })
        })
    }
}
