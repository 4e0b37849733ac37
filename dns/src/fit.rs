//! Making an answer fit: glue goes first and silently, then answers with the TC flag; the OPT record always stays.

use hickory_proto::{
    ProtoError,
    op::Metadata,
    rr::{Name as DnsName, RData, Record},
    serialize::binary::BinEncoder,
};
use hickory_server::zone_handler::{MessageResponseBuilder, Queries};

use crate::Answer;

/// The message header.
const HEADER: usize = 12;
/// Type, class, TTL and length of a record.
const RECORD_BASE: usize = 10;
/// The shortest record that answers: a pointer to the name, and an IPv4 address.
const SHORTEST_RECORD: usize = 2 + RECORD_BASE + 4;
/// More than any record made here takes beside names.
const OTHER_DATA: usize = 64;

/// The most records that could fit in a reply, and one, so that one too many is seen.
pub(crate) fn most_records(limit: usize) -> usize {
    limit / SHORTEST_RECORD + 1
}

/// Trims an answer to `limit` bytes, of which the OPT record takes `opt`; tells whether records that were asked for
/// went. The common answer is recognised as short without being encoded; the others are encoded to be measured.
pub(crate) fn fit(
    answer: &mut Answer,
    metadata: Metadata,
    queries: &Queries,
    limit: usize,
    opt: usize,
) -> Result<bool, ProtoError> {
    let records = answer.answers.iter().chain(&answer.soa).chain(&answer.additionals);
    let bound = HEADER + queries.as_bytes().len() + opt + records.map(size_bound).sum::<usize>();
    if bound <= limit {
        return Ok(false);
    }
    let mut bytes = Vec::with_capacity(limit);
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(u16::try_from(limit.saturating_sub(opt)).unwrap_or(u16::MAX));
    let response = MessageResponseBuilder::new(queries, None).build(
        metadata,
        answer.answers.iter(),
        [],
        answer.soa.iter(),
        answer.additionals.iter(),
    );
    let counts = response.destructive_emit(&mut encoder)?.counts();
    let truncated = usize::from(counts.answers) < answer.answers.len();
    answer.answers.truncate(usize::from(counts.answers));
    // Without all answers, the addresses of some are no use: the client asks again.
    answer.additionals.truncate(if truncated { 0 } else { usize::from(counts.additionals) });
    Ok(truncated)
}

/// No less than the record takes, with no name compressed.
fn size_bound(record: &Record) -> usize {
    let name = |name: &DnsName| name.len() + 1;
    let data = match &record.data {
        RData::A(_) => 4,
        RData::AAAA(_) => 16,
        RData::SRV(srv) => 6 + name(&srv.target),
        RData::CNAME(target) => name(&target.0),
        RData::NS(target) => name(&target.0),
        RData::SOA(soa) => 20 + name(&soa.mname) + name(&soa.rname),
        _ => OTHER_DATA,
    };
    name(&record.name) + RECORD_BASE + data
}
