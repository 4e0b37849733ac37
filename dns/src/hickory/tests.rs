use std::net::{Ipv4Addr, Ipv6Addr};

use futures_util::FutureExt;
use hickory_proto::{
    op::{Message, MessageType, OpCode, Query},
    rr::{
        DNSClass, Name as DnsName, RData, RecordType,
        rdata::{A, AAAA, CNAME, HINFO, NS, SOA, SRV},
    },
    serialize::binary::{BinDecodable, BinEncodable, BinEncoder},
};
use hickory_server::net::{runtime::TokioTime, xfer::Protocol};
use proptest::prelude::*;

use super::*;
use crate::{
    Ede, EdeCode,
    encode::{count_fitting, encode},
    fixed, fixture,
    wire::{self, Read},
};

/// Names that the sample answers, each in its own way, one beyond the zones and one of them that is not there.
const NAMES: [&str; 16] = [
    "web.service.mesh.internal.",
    "WeB.service.Mesh.internal.",
    "_web._tcp.service.consul.",
    "green.web.service.mesh.internal.",
    "big.service.mesh.internal.",
    "mail.service.mesh.internal.",
    "six.service.consul.",
    "edge.service.mesh.internal.",
    "gone.service.mesh.internal.",
    "n1.node.mesh.internal.",
    "db.rack-1.node.mesh.internal.",
    "0a000001.addr.mesh.internal.",
    "ns.mesh.internal.",
    "mesh.internal.",
    "nope.service.mesh.internal.",
    "www.example.com.",
];

const TYPES: [RecordType; 9] = [
    RecordType::A,
    RecordType::AAAA,
    RecordType::SRV,
    RecordType::ANY,
    RecordType::SOA,
    RecordType::NS,
    RecordType::CNAME,
    RecordType::TXT,
    RecordType::AXFR,
];

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

/// What may arrive: mostly a question that is answered, now and then one that is refused before it is parsed or after.
fn question() -> impl Strategy<Value = Vec<u8>> {
    let known = prop::sample::select(&NAMES[..]).prop_map(|text| DnsName::from_ascii(text).unwrap());
    let owner = prop_oneof![4 => known, 1 => name()];
    let qtype = prop_oneof![4 => prop::sample::select(&TYPES[..]), 1 => any::<u16>().prop_map(RecordType::from)];
    let class = prop_oneof![9 => Just(DNSClass::IN), 1 => Just(DNSClass::CH)];
    let operation = prop_oneof![9 => Just(OpCode::Query), 1 => Just(OpCode::Notify)];
    let edns = prop::option::of((any::<u16>(), prop_oneof![9 => Just(0_u8), 1 => Just(1)], any::<bool>()));
    let flags = any::<(u16, bool, bool, bool)>();
    let parts = (owner, qtype, class, operation, edns, flags);
    parts.prop_map(
        |(owner, qtype, class, operation, edns, (id, recursion_desired, authentic_data, checking_disabled))| {
            let mut message = Message::new(id, MessageType::Query, operation);
            message.metadata.recursion_desired = recursion_desired;
            message.metadata.authentic_data = authentic_data;
            message.metadata.checking_disabled = checking_disabled;
            let mut query = Query::query(owner, qtype);
            query.set_query_class(class);
            message.add_query(query);
            message.edns = edns.map(|(size, version, dnssec_ok)| {
                let mut edns = Edns::new();
                edns.set_max_payload(size).set_version(version).set_dnssec_ok(dnssec_ok);
                edns
            });
            message.to_bytes().unwrap()
        },
    )
}

fn handler() -> Handler {
    let mut snapshot = fixture::sample();
    fixture::add_big(&mut snapshot, 200);
    fixed::handler(snapshot)
}

/// Keeps what is sent.
#[derive(Clone, Default)]
struct Kept(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

#[async_trait]
impl ResponseHandler for Kept {
    async fn send_response<'a>(
        &mut self,
        response: MessageResponse<
            '_,
            'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
        >,
    ) -> Result<ResponseInfo, NetError> {
        let mut bytes = self.0.lock().unwrap();
        let mut encoder = BinEncoder::new(&mut bytes);
        Ok(response.destructive_emit(&mut encoder)?)
    }
}

/// A reply whose records stand in an order of their own: those of a service are drawn.
fn read(bytes: &[u8]) -> Message {
    let mut message = Message::from_bytes(bytes).unwrap();
    for records in [&mut message.answers, &mut message.additionals] {
        records.sort_by_key(ToString::to_string);
    }
    message
}

proptest! {
    #[test]
    fn both_ways_out_write_the_same_to_generated_questions(
        question in question(),
        is_udp in any::<bool>(),
        // Now and then with records and flags that no catalog of ours leads to.
        others in prop::option::of((records(12), records(2), records(12), prop::option::of("[a-z ]{0,20}"), any::<[bool; 4]>())),
    ) {
        let (handler, client) = (handler(), ([127, 0, 0, 1], 53).into());
        let protocol = if is_udp { Protocol::Udp } else { Protocol::Tcp };
        let read_request = |protocol| wire::read(handler.metrics(), question.clone(), client, protocol);

        // One reply, written by both.
        if let Read::Request(request) = read_request(protocol) {
            let mut reply = handler.answer_at_once(&request, count_fitting).unwrap();
            if let Some((answers, soa, additionals, text, flags)) = others {
                (reply.answer.answers, reply.answer.soa) = (answers, soa.into_iter().next());
                reply.answer.additionals = additionals;
                let metadata = &mut reply.metadata;
                [metadata.authoritative, metadata.truncation, metadata.authentic_data, metadata.checking_disabled] =
                    flags;
                reply.answer.ede = text.map(|text| Ede::new(EdeCode::StaleAnswer, text));
            }
            let (own, mut other) = (encode(&reply).unwrap(), Vec::new());
            let edns = reply.opt().map(Opt::to_edns);
            reply.response(edns.as_ref()).destructive_emit(&mut BinEncoder::new(&mut other)).unwrap();
            prop_assert_eq!(Message::from_bytes(&own).unwrap(), Message::from_bytes(&other).unwrap());
            prop_assert!(own.len() <= other.len(), "{} bytes, hickory {}", own.len(), other.len());
        }

        // One question, answered from its bytes to its bytes in either way.
        let own = match read_request(Protocol::Tcp) {
            Read::Nothing => None,
            Read::Refused(reply) => Some(reply),
            Read::Request(request) => handler.write_at_once(&request),
        };
        let Ok(request) = Request::from_bytes(question.clone(), client, Protocol::Tcp) else { return Ok(()) };
        let kept = Kept::default();
        handler.handle_request::<_, TokioTime>(&request, kept.clone()).now_or_never().unwrap();
        let other = kept.0.lock().unwrap();
        prop_assert_eq!(read(&own.unwrap()), read(&other));
    }
}

#[test]
fn what_hickory_cannot_carry_is_cut_before_it_gets_there() {
    let mut snapshot = fixture::sample();
    fixture::add_big(&mut snapshot, 6000);
    let mut query = Message::new(7, MessageType::Query, OpCode::Query);
    query.add_query(Query::query(DnsName::from_ascii("big.service.mesh.internal.").unwrap(), RecordType::A));
    let request = Request::from_bytes(query.to_vec().unwrap(), ([127, 0, 0, 1], 53).into(), Protocol::Tcp).unwrap();
    let kept = Kept::default();
    fixed::handler(snapshot).handle_request::<_, TokioTime>(&request, kept.clone()).now_or_never().unwrap();
    let bytes = kept.0.lock().unwrap();
    let reply = Message::from_bytes(&bytes).unwrap();
    assert!((1500..1700).contains(&reply.answers.len()), "{} answers", reply.answers.len());
    // hickory sets it where it cuts by itself.
    assert!(!reply.metadata.truncation);
}
