//! What is counted. Handles are made once and kept, so that a query costs an atomic addition.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Instant,
};

use hickory_proto::{op::ResponseCode, rr::RecordType};
use metrics::{Counter, Histogram};

/// The closed set of the `type` label.
const TYPES: [&str; 12] = ["A", "AAAA", "SRV", "ANY", "SOA", "NS", "CNAME", "PTR", "TXT", "HTTPS", "other", "none"];
/// The closed set of the `rcode` label.
const RCODES: [&str; 8] = ["NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "BADVERS", "other"];
/// One query in so many is timed: recorders keep every observation until they are read.
const TIMED_ONE_IN: u32 = 16;

/// The room's metrics.
pub(crate) struct Metrics {
    queries: [[OnceLock<Counter>; RCODES.len()]; TYPES.len()],
    seconds: Histogram,
    turn: AtomicU32,
    /// Answers that lost records.
    pub(crate) truncated: Counter,
    /// Answers from a View that is not kept up to date.
    pub(crate) stale: Counter,
    /// TCP connections closed at once because too many were open.
    pub(crate) refused_connections: Counter,
    /// UDP queries not answered because too many replies were waiting.
    pub(crate) dropped: Counter,
}

impl Metrics {
    /// Makes the handles; the recorder must be installed before.
    pub(crate) fn new() -> Self {
        Self {
            queries: Default::default(),
            seconds: metrics::histogram!("muster_dns_query_seconds"),
            turn: AtomicU32::new(0),
            truncated: metrics::counter!("muster_dns_truncated_total"),
            stale: metrics::counter!("muster_dns_stale_answers_total"),
            refused_connections: metrics::counter!("muster_dns_tcp_refused_total"),
            dropped: metrics::counter!("muster_dns_dropped_total"),
        }
    }

    /// Takes the time, for one query in so many.
    pub(crate) fn start(&self) -> Option<Instant> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        turn.is_multiple_of(TIMED_ONE_IN).then(Instant::now)
    }

    /// Counts a reply. `None` stands for a query without a question that can be read.
    pub(crate) fn finish(&self, qtype: Option<RecordType>, rcode: ResponseCode, started: Option<Instant>) {
        let (kind, code) = (type_at(qtype), rcode_at(rcode));
        if let Some(cell) = self.queries.get(kind).and_then(|row| row.get(code)) {
            let make = || metrics::counter!("muster_dns_queries_total", "type" => TYPES[kind], "rcode" => RCODES[code]);
            cell.get_or_init(make).increment(1);
        }
        if let Some(started) = started {
            self.seconds.record(started.elapsed().as_secs_f64());
        }
    }
}

fn type_at(qtype: Option<RecordType>) -> usize {
    match qtype {
        Some(RecordType::A) => 0,
        Some(RecordType::AAAA) => 1,
        Some(RecordType::SRV) => 2,
        Some(RecordType::ANY) => 3,
        Some(RecordType::SOA) => 4,
        Some(RecordType::NS) => 5,
        Some(RecordType::CNAME) => 6,
        Some(RecordType::PTR) => 7,
        Some(RecordType::TXT) => 8,
        Some(RecordType::HTTPS) => 9,
        Some(_) => 10,
        None => 11,
    }
}

fn rcode_at(rcode: ResponseCode) -> usize {
    match rcode {
        ResponseCode::NoError => 0,
        ResponseCode::FormErr => 1,
        ResponseCode::ServFail => 2,
        ResponseCode::NXDomain => 3,
        ResponseCode::NotImp => 4,
        ResponseCode::Refused => 5,
        ResponseCode::BADVERS => 6,
        _ => 7,
    }
}
