//! Making an answer fit: glue goes first and silently, then answers with the TC flag; the OPT record always stays.

use hickory_proto::rr::{Name as DnsName, RData, Record};

use crate::Answer;

/// The message header.
pub(crate) const HEADER: usize = 12;
/// Type, class, TTL and length of a record.
const RECORD_BASE: usize = 10;
/// The shortest record that answers: a pointer to the name, and an IPv4 address.
const SHORTEST_RECORD: usize = 2 + RECORD_BASE + 4;
/// More than any record made here takes beside names.
const OTHER_DATA: usize = 64;

/// How many of the answers, of the SOA and of the additional records a way out writes in so many bytes, with the question.
pub(crate) type Measure = fn(&[u8], &Answer, usize) -> (usize, usize, usize);

/// The most records that could fit in a reply, and one, so that one too many is seen.
pub(crate) fn most_records(limit: usize) -> usize {
    limit / SHORTEST_RECORD + 1
}

/// Trims the answer to a question, which is given as it came, to `limit` bytes, of which the OPT record takes `opt`; tells
/// whether records that were asked for went. The common answer is recognised as short without being measured.
pub(crate) fn fit(answer: &mut Answer, question: &[u8], limit: usize, opt: usize, measure: Measure) -> bool {
    let records = answer.answers.iter().chain(&answer.soa).chain(&answer.additionals);
    let bound = HEADER + question.len() + opt + records.map(size_bound).sum::<usize>();
    if bound <= limit {
        return false;
    }
    let (answers, soa, additionals) = measure(question, answer, limit.saturating_sub(opt));
    let truncated = answers < answer.answers.len() || soa < answer.soa.iter().len();
    answer.answers.truncate(answers);
    if truncated {
        answer.soa = None;
    }
    // Without all answers, the addresses of some are no use: the client asks again.
    answer.additionals.truncate(if truncated { 0 } else { additionals });
    truncated
}

/// The [`Measure`] of a way out that may write every name in full.
pub(crate) fn count_uncompressed(question: &[u8], answer: &Answer, limit: usize) -> (usize, usize, usize) {
    let mut size = HEADER + question.len();
    let mut count = |records: &[Record]| {
        let mut fits = |record: &&Record| {
            size += size_bound(record);
            size <= limit
        };
        records.iter().take_while(&mut fits).count()
    };
    (count(&answer.answers), count(answer.soa.as_slice()), count(&answer.additionals))
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
