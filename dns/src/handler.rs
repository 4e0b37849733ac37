//! What answers questions: every rule of the protocol that is not a socket's, nor of how a reply is written.

use std::{
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use hickory_proto::{
    op::{Edns, LowerQuery, Metadata, OpCode, ResponseCode},
    rr::{DNSClass, RecordType},
};
use hickory_server::{net::xfer::Protocol, server::Request};
use muster_catalog::{Timestamp, port::Source};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};

use crate::{
    Answer, Asked, NotHeld, Order, Question, Subject, Zones, answer,
    config::{MAX_LOOPBACK_SIZE, MAX_UDP_SIZE, MIN_UDP_SIZE},
    encode::{count_fitting, encode},
    fit::{Measure, most_records},
    metrics::Metrics,
    question,
    reply::Reply,
};

/// The longest a question waits for a service to be held: clients ask again after a second or more.
const HOLD_WAIT: Duration = Duration::from_millis(500);
/// How many services one question waits for: the one that it names, and one that this is an alias of.
const HOLDS: usize = 2;
/// How many questions may wait for that at once; the next is told at once to ask again.
const MAX_HOLDS: usize = 256;

/// Tells the time: it is an argument of every answer and never read elsewhere.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Answers requests from a source of Views.
pub(crate) struct Handler {
    zones: Zones,
    max_udp_size: u16,
    source: Arc<dyn Source>,
    clock: Clock,
    holds: Semaphore,
    /// Chooses what a client is told of an answer that is cut; other agents choose another part for theirs.
    parts: RandomState,
    metrics: Metrics,
}

impl Handler {
    pub(crate) fn new(zones: Zones, max_udp_size: u16, source: Arc<dyn Source>, clock: Clock) -> Self {
        let (holds, metrics) = (Semaphore::new(MAX_HOLDS), Metrics::new());
        Self { zones, max_udp_size, source, clock, holds, parts: RandomState::new(), metrics }
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
        udp_limit(request.src().ip(), offered, self.max_udp_size)
    }

    /// Answers without waiting; the service that has to be held first otherwise.
    fn look(
        &self,
        request: &Request,
        query: Option<&LowerQuery>,
        limit: usize,
        order: Order,
    ) -> Result<Answer, NotHeld> {
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
        let asked = Asked { question: &question, owner, qtype, most, order, now };
        answer::answer(&self.source.view(), &self.zones, asked, &mut rand::rng())
    }

    /// Answers, and waits for what has to be held first.
    async fn look_in_time(&self, request: &Request, query: Option<&LowerQuery>, limit: usize) -> Answer {
        let until = Instant::now() + HOLD_WAIT;
        for _ in 0..HOLDS {
            let NotHeld(service) = match self.look(request, query, limit, Order::Drawn) {
                Ok(answer) => return answer,
                Err(missing) => missing,
            };
            let Ok(_permit) = self.holds.try_acquire() else { break };
            // The source promises to be back by then; the wait is bounded here all the same. Late is not held.
            let _late = timeout_at(until, self.source.hold(&service)).await;
        }
        self.look(request, query, limit, Order::Drawn).unwrap_or_else(|NotHeld(service)| {
            Answer::not_ready(&format!("service {service} is being loaded, ask again"))
        })
    }

    /// Makes a reply fit; tells whether records that were asked for went. Clients that do not ask again over TCP would take
    /// another part each time for instances that come and go: who asks is always told of the same ones.
    fn cut(&self, reply: &mut Reply<'_>, limit: usize, measure: Measure) -> bool {
        if !reply.fit(limit, measure) {
            return false;
        }
        let order = Order::Fixed(self.parts.hash_one(reply.request.src().ip()));
        let Ok(fixed) = self.look(reply.request, reply.query, limit, order) else { return true };
        reply.answer = fixed;
        let truncated = reply.fit(limit, measure);
        reply.answer.draw_order(&mut rand::rng());
        truncated
    }

    /// The reply to a question that needs nothing to be waited for, which nearly all are; cut by the measure of who writes it.
    pub(crate) fn answer_at_once<'r>(&self, request: &'r Request, measure: Measure) -> Option<Reply<'r>> {
        let started = self.metrics.start();
        let (query, limit) = (find_query(request), self.limit(request));
        let answer = self.look(request, query, limit, Order::Drawn).ok()?;
        Some(self.reply(self.draft(request, query, answer, started), limit, measure))
    }

    /// The reply to any question; cut by the measure of who writes it.
    pub(crate) async fn answer_in_time<'r>(&self, request: &'r Request, measure: Measure) -> Reply<'r> {
        let started = self.metrics.start();
        let (query, limit) = (find_query(request), self.limit(request));
        let answer = self.look_in_time(request, query, limit).await;
        self.reply(self.draft(request, query, answer, started), limit, measure)
    }

    fn draft<'r>(
        &self,
        request: &'r Request,
        query: Option<&'r LowerQuery>,
        answer: Answer,
        started: Option<std::time::Instant>,
    ) -> Reply<'r> {
        let metadata = Metadata::response_from_request(&request.metadata);
        Reply { request, query, metadata, answer, max_udp_size: self.max_udp_size, started }
    }

    fn reply<'r>(&self, mut reply: Reply<'r>, limit: usize, measure: Measure) -> Reply<'r> {
        let truncated = self.cut(&mut reply, limit, measure);
        reply.metadata.response_code = reply.answer.rcode;
        reply.metadata.authoritative = reply.answer.authoritative;
        // Over TCP there is nothing larger to ask with: what fits is a part of the instances.
        reply.metadata.truncation = truncated && reply.request.protocol() == Protocol::Udp;
        if truncated {
            self.metrics.truncated.increment(1);
        }
        if reply.answer.stale {
            self.metrics.stale.increment(1);
        }
        reply
    }

    /// Counts a reply that was written.
    pub(crate) fn finish(&self, reply: &Reply<'_>) {
        self.metrics.finish(reply.query.map(LowerQuery::query_type), reply.answer.rcode, reply.started);
    }

    /// As [`Self::answer_at_once`], written with the encoder of our own.
    pub(crate) fn write_at_once(&self, request: &Request) -> Option<Vec<u8>> {
        self.write(&self.answer_at_once(request, count_fitting)?)
    }

    /// As [`Self::answer_in_time`], written with the encoder of our own.
    pub(crate) async fn write_in_time(&self, request: &Request) -> Option<Vec<u8>> {
        self.write(&self.answer_in_time(request, count_fitting).await)
    }

    fn write(&self, reply: &Reply<'_>) -> Option<Vec<u8>> {
        let bytes = encode(reply);
        self.finish(reply);
        bytes
    }
}

fn find_query(request: &Request) -> Option<&LowerQuery> {
    request.request_info().ok().map(|info| info.query)
}

/// The most bytes of a UDP answer to a client. On this host a datagram of any size arrives in one piece, and no sender is
/// forged from outside, so the client gets what it takes.
fn udp_limit(client: IpAddr, offered: u16, configured: u16) -> usize {
    let most = if client.to_canonical().is_loopback() { MAX_LOOPBACK_SIZE } else { configured.min(MAX_UDP_SIZE) };
    usize::from(offered.min(most).max(MIN_UDP_SIZE))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_on_this_host_gets_what_it_takes_and_others_no_more_than_is_configured() {
        let table = [
            ("127.0.0.1", 0, 1232, 512),
            ("127.0.0.9", 8192, 1232, 8192),
            ("::1", 65_535, 512, 65_507),
            ("::ffff:127.0.0.1", 4096, 512, 4096),
            ("10.0.0.1", 8192, 1232, 1232),
            ("10.0.0.1", 8192, 4096, 4096),
            ("2001:db8::1", 900, 1232, 900),
            ("192.0.2.1", 512, 1232, 512),
        ];
        for (client, offered, configured, expected) in table {
            assert_eq!(udp_limit(client.parse().unwrap(), offered, configured), expected, "{client} {offered}");
        }
    }
}
