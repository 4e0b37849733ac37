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
    edns::Opt,
    encode::encode,
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

    /// Answers without waiting; the service that has to be held first otherwise.
    fn look(&self, request: &Request, query: Option<&LowerQuery>, limit: usize) -> Result<Answer, NotHeld> {
        let Some(query) = query else { return Ok(Answer::code(ResponseCode::FormErr)) };
        if let Some(rcode) = find_refusal(request, query) {
            return Ok(Answer::code(rcode));
        }
        let owner = query.original().name();
        let question = question::parse(owner, &self.zones);
        if let Question::Inside { subject: Subject::Service { service, .. }, .. } = &question {
            self.source.used(service);
        }
        let (qtype, most, now) = (query.query_type(), most_records(limit), (self.clock)());
        let asked = Asked { question: &question, owner, qtype, most, now };
        answer::answer(&self.source.view(), &self.zones, asked, &mut rand::rng())
    }

    async fn answer(&self, request: &Request, query: Option<&LowerQuery>, limit: usize) -> Answer {
        let NotHeld(service) = match self.look(request, query, limit) {
            Ok(answer) => return answer,
            Err(missing) => missing,
        };
        if let Ok(_permit) = self.holds.try_acquire() {
            // The source promises to be back by then; the wait is bounded here all the same. Late is not held.
            let _late = timeout(HOLD_WAIT, self.source.hold(&service)).await;
        }
        self.look(request, query, limit).unwrap_or_else(|NotHeld(service)| {
            Answer::not_ready(&format!("service {service} is being loaded, ask again"))
        })
    }

    fn opt<'a>(&self, request: &Request, answer: &'a Answer) -> Option<Opt<'a>> {
        let query = request.edns.as_ref()?;
        Some(Opt::reply(query, self.max_udp_size, answer.ede.as_ref()))
    }

    /// Makes an answer fit, and what stands above it.
    fn compose(&self, request: &Request, mut answer: Answer, limit: usize) -> (Metadata, Answer) {
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = answer.rcode;
        metadata.authoritative = answer.authoritative;
        let opt = self.opt(request, &answer).map_or(0, |opt| opt.size());
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
        (metadata, answer)
    }

    /// The reply to a question that needs nothing to be waited for, which nearly all are; `None` for the others, which
    /// `handle_request` answers. It says the same in fewer steps.
    pub(crate) fn answer_at_once(&self, request: &Request) -> Option<Vec<u8>> {
        let started = self.metrics.start();
        let query = request.request_info().ok().map(|info| info.query);
        let limit = self.limit(request);
        let answer = self.look(request, query, limit).ok()?;
        let (metadata, answer) = self.compose(request, answer, limit);
        let reply = encode(&metadata, request.queries.as_bytes(), &answer, self.opt(request, &answer))?;
        self.metrics.finish(query.map(LowerQuery::query_type), answer.rcode, started);
        Some(reply)
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
        let answer = self.answer(request, query, limit).await;
        let (metadata, answer) = self.compose(request, answer, limit);
        let edns = self.opt(request, &answer).map(Opt::to_edns);
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
