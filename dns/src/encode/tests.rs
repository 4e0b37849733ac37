use std::net::Ipv4Addr;

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        RecordType,
        rdata::{A, SRV, TXT},
    },
};
use hickory_server::{net::xfer::Protocol, server::Request};

use super::*;

fn request(owner: DnsName, qtype: RecordType) -> Request {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(owner, qtype));
    Request::from_bytes(message.to_vec().unwrap(), ([127, 0, 0, 1], 53).into(), Protocol::Udp).unwrap()
}

fn reply(request: &Request, answer: Answer) -> Reply<'_> {
    let metadata = Metadata::response_from_request(&request.metadata);
    Reply { request, query: None, metadata, answer, max_udp_size: 1232, started: None }
}

#[test]
fn names_are_written_once_in_their_case_and_the_targets_of_srv_in_full() {
    let name = |text: &str| DnsName::from_ascii(text).unwrap();
    let request = request(name("Web.service.mesh."), RecordType::SRV);
    let target = name("n1.node.mesh.");
    let mut answer = Answer::code(ResponseCode::NoError);
    let srv = |target| RData::SRV(SRV::new(1, 2, 80, target));
    answer.answers = [target.clone(), name("N1.node.mesh.")]
        .map(|target| Record::from_rdata(name("Web.service.mesh."), 5, srv(target)))
        .into();
    let ip = RData::A(A(Ipv4Addr::LOCALHOST));
    answer.additionals = vec![Record::from_rdata(target, 5, ip)];
    let bytes = encode(&reply(&request, answer)).unwrap();
    let count = |text: &[u8]| bytes.windows(text.len()).filter(|window| *window == text).count();
    assert_eq!([count(b"\x03Web\x07service"), count(b"\x02n1\x04node\x04mesh\0"), count(b"\x02N1\x04node")], [1, 1, 1]);
    // Header, question, two answers with a pointer as owner and a full target, and an address that points to the first.
    assert_eq!(bytes.len(), 12 + (18 + 4) + 2 * (2 + 10 + 6 + 14) + (2 + 10 + 4));
}

#[test]
fn a_type_that_no_answer_has_is_not_written() {
    let mut answer = Answer::code(ResponseCode::NoError);
    answer.answers = vec![Record::from_rdata(DnsName::root(), 5, RData::TXT(TXT::new(vec!["text".to_owned()])))];
    assert_eq!(encode(&reply(&request(DnsName::root(), RecordType::TXT), answer)), None);
}
