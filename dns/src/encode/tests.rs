use std::net::{Ipv4Addr, Ipv6Addr};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        RecordType,
        rdata::{A, AAAA, CNAME, HINFO, NS, SOA, SRV, TXT},
    },
    serialize::binary::{BinDecodable, BinEncodable},
};
use proptest::prelude::*;

use super::*;
use crate::{Ede, EdeCode};

/// Few labels of few letters, so that names share their ends, and differ by case alone now and then.
fn name() -> impl Strategy<Value = DnsName> {
    let label = prop_oneof![
        "[aAbB]{1,2}".prop_map(String::into_bytes),
        Just(vec![b'x'; 63]),
        prop::collection::vec(any::<u8>(), 1..4)
    ];
    prop::collection::vec(label, 0..6).prop_filter_map("too long", |labels| {
        let labels: Vec<&[u8]> = labels.iter().map(Vec::as_slice).collect();
        DnsName::from_labels(labels).ok()
    })
}

fn data() -> impl Strategy<Value = RData> {
    let soa = (name(), name(), any::<(u32, i32, i32, i32, u32)>());
    prop_oneof![
        any::<u32>().prop_map(|bits| RData::A(A(Ipv4Addr::from_bits(bits)))),
        any::<u128>().prop_map(|bits| RData::AAAA(AAAA(Ipv6Addr::from_bits(bits)))),
        (any::<(u16, u16, u16)>(), name())
            .prop_map(|((priority, weight, port), target)| { RData::SRV(SRV::new(priority, weight, port, target)) }),
        name().prop_map(|target| RData::CNAME(CNAME(target))),
        name().prop_map(|target| RData::NS(NS(target))),
        soa.prop_map(|(mname, rname, (serial, refresh, retry, expire, minimum))| {
            RData::SOA(SOA::new(mname, rname, serial, refresh, retry, expire, minimum))
        }),
        Just(RData::HINFO(HINFO::new("RFC8482".to_owned(), String::new()))),
    ]
}

fn records(most: usize) -> impl Strategy<Value = Vec<Record>> {
    let record = (name(), any::<u32>(), data()).prop_map(|(name, ttl, data)| {
        // Times of more than 31 bits are read as 0 (RFC 2181 §8).
        Record::from_rdata(name, ttl >> 1, data)
    });
    prop::collection::vec(record, 0..most)
}

fn metadata() -> impl Strategy<Value = Metadata> {
    (any::<u16>(), any::<[bool; 5]>(), 0..6_u16).prop_map(|(id, flags, rcode)| {
        let mut metadata = Metadata::new(id, MessageType::Response, OpCode::Query);
        metadata.response_code = ResponseCode::from(0, rcode as u8);
        [
            metadata.authoritative,
            metadata.truncation,
            metadata.recursion_desired,
            metadata.authentic_data,
            metadata.checking_disabled,
        ] = flags;
        metadata
    })
}

proptest! {
    #[test]
    fn hickory_reads_what_was_written_and_writes_no_less(
        metadata in metadata(),
        owner in name(),
        (answers, soa, additionals) in (records(12), records(2), records(12)),
        edns in prop::option::of((any::<bool>(), prop::option::of("[a-z ]{0,20}"))),
    ) {
        let query = Query::query(owner, RecordType::SRV);
        let mut answer = Answer::code(metadata.response_code);
        (answer.answers, answer.soa, answer.additionals) = (answers, soa.into_iter().next(), additionals);
        answer.ede = edns.clone().and_then(|(_, text)| Some(Ede::new(EdeCode::StaleAnswer, text?)));
        let opt = edns.map(|(dnssec_ok, _)| {
            Opt::reply(Edns::new().set_dnssec_ok(dnssec_ok), 1232, answer.ede.as_ref())
        });
        let written = encode(&metadata, &query.to_bytes().unwrap(), &answer, opt).unwrap();

        let mut message = Message::new(metadata.id, metadata.message_type, metadata.op_code);
        message.metadata = metadata;
        message.add_query(query);
        message.answers = answer.answers.clone();
        message.authorities = answer.soa.iter().cloned().collect();
        message.additionals = answer.additionals.clone();
        message.edns = opt.map(Opt::to_edns);
        let expected = message.to_bytes().unwrap();
        prop_assert_eq!(Message::from_bytes(&written).unwrap(), Message::from_bytes(&expected).unwrap());
        prop_assert!(written.len() <= expected.len(), "{} bytes, hickory {}", written.len(), expected.len());
    }
}

#[test]
fn names_are_written_once_in_their_case_and_the_targets_of_srv_in_full() {
    let name = |text: &str| DnsName::from_ascii(text).unwrap();
    let query = Query::query(name("Web.service.mesh."), RecordType::SRV);
    let target = name("n1.node.mesh.");
    let mut answer = Answer::code(ResponseCode::NoError);
    let srv = |target| RData::SRV(SRV::new(1, 2, 80, target));
    answer.answers = [target.clone(), name("N1.node.mesh.")]
        .map(|target| Record::from_rdata(name("Web.service.mesh."), 5, srv(target)))
        .into();
    let ip = RData::A(A(Ipv4Addr::LOCALHOST));
    answer.additionals = vec![Record::from_rdata(target, 5, ip)];
    let metadata = Metadata::new(7, MessageType::Response, OpCode::Query);
    let bytes = encode(&metadata, &query.to_bytes().unwrap(), &answer, None).unwrap();
    let count = |text: &[u8]| bytes.windows(text.len()).filter(|window| *window == text).count();
    assert_eq!([count(b"\x03Web\x07service"), count(b"\x02n1\x04node\x04mesh\0"), count(b"\x02N1\x04node")], [1, 1, 1]);
    // Header, question, two answers with a pointer as owner and a full target, and an address that points to the first.
    assert_eq!(bytes.len(), 12 + (18 + 4) + 2 * (2 + 10 + 6 + 14) + (2 + 10 + 4));
}

#[test]
fn a_type_that_no_answer_has_is_not_written() {
    let mut answer = Answer::code(ResponseCode::NoError);
    answer.answers = vec![Record::from_rdata(DnsName::root(), 5, RData::TXT(TXT::new(vec!["text".to_owned()])))];
    let metadata = Metadata::new(7, MessageType::Response, OpCode::Query);
    assert_eq!(encode(&metadata, &[], &answer, None), None);
}
