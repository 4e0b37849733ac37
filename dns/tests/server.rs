//! The server over real sockets, asked by hickory's encoder and decoder.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod support;

use std::{collections::BTreeSet, sync::atomic::Ordering, time::Duration};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, RecordType, rdata::opt::EdnsOption},
};
use muster_catalog::{Address, Freshness, Instance, Scope, Snapshot, Timestamp, View, project_snapshot};
use muster_dns::{DnsConfig, DnsError};
use support::{
    TestServer,
    catalog::{instance, live, node, register, sample},
    config,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream, UdpSocket},
    time::timeout,
};

/// Far longer than any answer takes: a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(20);

fn query(name: &str, qtype: RecordType, edns: Option<u16>) -> Message {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), qtype));
    if let Some(size) = edns {
        let mut edns = Edns::new();
        edns.set_max_payload(size);
        message.set_edns(edns);
    }
    message
}

async fn exchange_udp(server: &TestServer, bytes: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server.udp).await.unwrap();
    socket.send(bytes).await.unwrap();
    let mut buffer = vec![0; 65_535];
    let length = timeout(PATIENCE, socket.recv(&mut buffer)).await.expect("no reply").unwrap();
    buffer.truncate(length);
    buffer
}

async fn ask_udp(server: &TestServer, message: &Message) -> (Message, usize) {
    let bytes = exchange_udp(server, &message.to_vec().unwrap()).await;
    (Message::from_vec(&bytes).unwrap(), bytes.len())
}

async fn send_tcp(stream: &mut TcpStream, message: &Message) {
    let bytes = message.to_vec().unwrap();
    stream.write_u16(bytes.len().try_into().unwrap()).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
}

async fn receive_tcp(stream: &mut TcpStream) -> Message {
    let length = timeout(PATIENCE, stream.read_u16()).await.expect("no reply").unwrap();
    let mut bytes = vec![0; length.into()];
    stream.read_exact(&mut bytes).await.unwrap();
    Message::from_vec(&bytes).unwrap()
}

async fn ask_tcp(server: &TestServer, message: &Message) -> Message {
    let mut stream = TcpStream::connect(server.tcp).await.unwrap();
    send_tcp(&mut stream, message).await;
    receive_tcp(&mut stream).await
}

fn ede(message: &Message) -> Option<u16> {
    message.edns.as_ref()?.options().as_ref().iter().find_map(|(_, option)| match option {
        EdnsOption::Unknown(15, data) => Some(u16::from_be_bytes([data[0], data[1]])),
        _ => None,
    })
}

#[tokio::test]
async fn answers_carry_the_right_flags_and_the_questions_case() {
    let server = TestServer::sample().await;
    let (reply, _) = ask_udp(&server, &query("wEb.SeRvIcE.mesh.INTERNAL.", RecordType::A, None)).await;
    let meta = &reply.metadata;
    assert_eq!((meta.id, meta.message_type, meta.response_code), (4711, MessageType::Response, ResponseCode::NoError));
    assert!(meta.authoritative && meta.recursion_desired && !meta.recursion_available && !meta.truncation);
    assert!(reply.edns.is_none(), "no OPT for who sent none");
    assert_eq!(reply.answers.len(), 3);
    assert!(reply.answers.iter().all(|record| record.name.to_string() == "wEb.SeRvIcE.mesh.INTERNAL."));
    assert_eq!(reply.queries[0].name().to_string(), "wEb.SeRvIcE.mesh.INTERNAL.");
    server.handle.stop().await.unwrap();
}

#[tokio::test]
async fn udp_answers_fit_glue_goes_first_and_opt_stays() {
    let server = TestServer::sample().await;
    for (offered, limit) in [(None, 512), (Some(100), 512), (Some(512), 512), (Some(900), 900), (Some(3000), 3000)] {
        for qtype in [RecordType::A, RecordType::SRV] {
            let (reply, size) = ask_udp(&server, &query("big.service.mesh.internal.", qtype, offered)).await;
            assert!(size <= limit, "{size} > {limit} for {offered:?} {qtype}");
            assert!(size > limit - 100, "{size} wastes {limit} for {offered:?} {qtype}");
            assert!(reply.metadata.truncation && !reply.answers.is_empty() && reply.additionals.is_empty());
            assert_eq!(reply.edns.as_ref().map(Edns::max_payload), offered.map(|_| 1232));
        }
    }
    // All SRV records fit but not all addresses: no TC, whoever wants the addresses asks for them.
    let mut snapshot = Snapshot::default();
    support::catalog::add_big(&mut snapshot, 7);
    server.source.set(live(snapshot));
    let (reply, size) = ask_udp(&server, &query("big.service.mesh.internal.", RecordType::SRV, Some(512))).await;
    assert_eq!((reply.answers.len(), reply.metadata.truncation), (7, false));
    assert!(reply.additionals.len() < 7 && reply.edns.is_some() && size <= 512);
}

#[tokio::test]
async fn tcp_answers_in_full_and_many_times() {
    let server = TestServer::sample().await;
    let mut stream = TcpStream::connect(server.tcp).await.unwrap();
    for _ in 0..3 {
        send_tcp(&mut stream, &query("big.service.mesh.internal.", RecordType::SRV, None)).await;
    }
    for _ in 0..3 {
        let reply = receive_tcp(&mut stream).await;
        assert_eq!((reply.answers.len(), reply.additionals.len()), (200, 200));
        assert!(!reply.metadata.truncation);
    }
}

/// A client that does not ask again over TCP, as HAProxy, is not to see instances come and go.
#[tokio::test]
async fn a_cut_answer_holds_the_same_instances_each_time() {
    let server = TestServer::sample().await;
    for qtype in [RecordType::A, RecordType::SRV] {
        let message = query("big.service.mesh.internal.", qtype, Some(1232));
        let (mut parts, mut firsts) = (BTreeSet::new(), BTreeSet::new());
        for _ in 0..10 {
            let (reply, _) = ask_udp(&server, &message).await;
            assert!(reply.metadata.truncation);
            let texts: Vec<_> = reply.answers.iter().map(|record| record.data.to_string()).collect();
            firsts.insert(texts[0].clone());
            parts.insert(texts.into_iter().collect::<BTreeSet<_>>());
        }
        assert_eq!(parts.len(), 1, "{qtype}: another part each time");
        assert!(firsts.len() > 1, "{qtype}: the same one goes first each time");
    }
}

/// As HAProxy with the `accepted_payload_size` of its documentation.
#[tokio::test]
async fn a_client_on_this_host_gets_all_that_it_takes() {
    let server = TestServer::sample().await;
    let (reply, size) = ask_udp(&server, &query("big.service.mesh.internal.", RecordType::A, Some(8192))).await;
    assert_eq!((reply.answers.len(), reply.metadata.truncation), (200, false), "{size} bytes");
    let mut snapshot = Snapshot::default();
    support::catalog::add_big(&mut snapshot, 900);
    server.source.set(live(snapshot));
    // Beyond what a pointer to an earlier name can reach, too.
    let (reply, size) = ask_udp(&server, &query("big.service.mesh.internal.", RecordType::SRV, Some(65_535))).await;
    assert_eq!((reply.answers.len(), reply.metadata.truncation), (900, false), "{size} bytes");
}

#[tokio::test]
async fn more_than_tcp_can_carry_is_cut_without_tc() {
    let mut snapshot = Snapshot::default();
    support::catalog::add_big(&mut snapshot, 6000);
    let server = TestServer::start(config(), live(snapshot), None).await;
    let reply = ask_tcp(&server, &query("big.service.mesh.internal.", RecordType::A, Some(1232))).await;
    assert!((4000..6000).contains(&reply.answers.len()), "{} answers", reply.answers.len());
    assert!(!reply.metadata.truncation && reply.edns.is_some());
}

#[tokio::test]
async fn what_is_no_ordinary_query_is_refused_by_the_book() {
    let server = TestServer::sample().await;
    let name = "web.service.mesh.internal.";
    let mut chaos = query("version.bind.", RecordType::TXT, None);
    chaos.queries[0].set_query_class(DNSClass::CH);
    let mut two = query(name, RecordType::A, None);
    two.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::AAAA));
    let mut none = query(name, RecordType::A, None);
    none.queries.clear();
    let mut version = query(name, RecordType::A, Some(1232));
    version.edns.as_mut().unwrap().set_version(1);
    let mut notify = query(name, RecordType::SOA, None);
    notify.metadata.op_code = OpCode::Notify;
    let table = [
        (chaos, ResponseCode::Refused),
        (two, ResponseCode::FormErr),
        (none, ResponseCode::FormErr),
        (version, ResponseCode::BADVERS),
        (notify, ResponseCode::NotImp),
        (query("mesh.internal.", RecordType::AXFR, None), ResponseCode::NotImp),
        (query("mesh.internal.", RecordType::IXFR, None), ResponseCode::NotImp),
        (query("example.com.", RecordType::A, None), ResponseCode::Refused),
        (query("nope.service.mesh.internal.", RecordType::A, None), ResponseCode::NXDomain),
    ];
    for (message, rcode) in table {
        let (reply, _) = ask_udp(&server, &message).await;
        // By number: 16 is BADVERS in a reply and BADSIG in a signature, and the decoder knows one name for both.
        let (id, found) = (reply.metadata.id, u16::from(reply.metadata.response_code));
        assert_eq!((id, found), (4711, u16::from(rcode)), "{message}");
        assert_eq!(reply.edns.as_ref().map(Edns::version), message.edns.as_ref().map(|_| 0));
        let reply = ask_tcp(&server, &message).await;
        assert_eq!(u16::from(reply.metadata.response_code), u16::from(rcode), "{message} over TCP");
    }
}

#[tokio::test]
async fn rubbish_is_survived() {
    let server = TestServer::sample().await;
    let good = query("web.service.mesh.internal.", RecordType::A, Some(1232)).to_vec().unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server.udp).await.unwrap();
    for length in 0..good.len() {
        socket.send(&good[..length]).await.unwrap();
        let mut flipped = good.clone();
        flipped[length] ^= 0xff;
        socket.send(&flipped).await.unwrap();
        // A reply to each that gets one is read, so that none fills the buffer; the next query shows it still lives.
        let (reply, _) = ask_udp(&server, &Message::from_vec(&good).unwrap()).await;
        assert_eq!(reply.answers.len(), 3, "after {length} bytes");
    }
}

#[tokio::test]
async fn freshness_is_told_to_those_who_speak_edns() {
    let stale = View { freshness: Freshness::Stale { since: Timestamp(40_000) }, ..live(sample()) };
    let server = TestServer::start(config(), stale, None).await;
    let told = async |name: &str, edns| ede(&ask_udp(&server, &query(name, RecordType::A, edns)).await.0);
    assert_eq!(told("web.service.consul.", Some(1232)).await, Some(3));
    assert_eq!(told("nope.service.consul.", Some(1232)).await, Some(19));
    assert_eq!(told("gone.service.consul.", Some(1232)).await, Some(19));
    assert_eq!(told("web.service.consul.", None).await, None);
    server.source.set(View { freshness: Freshness::Empty, ..live(Snapshot::default()) });
    let (reply, _) = ask_udp(&server, &query("web.service.consul.", RecordType::A, Some(1232))).await;
    assert_eq!((reply.metadata.response_code, ede(&reply)), (ResponseCode::ServFail, Some(14)));
}

#[tokio::test]
async fn a_service_outside_the_scope_is_held_once_then_answered() {
    let narrow = project_snapshot(&Scope::Services { names: Default::default(), node: None }, &sample());
    let server = TestServer::start(config(), live(narrow), Some(sample())).await;
    let message = query("web.service.mesh.internal.", RecordType::A, Some(1232));
    for _ in 0..2 {
        assert_eq!(ask_udp(&server, &message).await.0.answers.len(), 3);
    }
    assert_eq!(server.source.holds.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_alias_and_what_it_leads_to_are_held_by_one_question() {
    let mut all = sample();
    let address = Address::parse("web.service.mesh.internal");
    let alias = Instance { address, ..instance("n9", "al", "al") };
    register(&mut all, node("n9", "10.0.0.99"), vec![alias], Vec::new());
    let scoped = |names: &[&str]| {
        let names = names.iter().map(|name| muster_catalog::Name::lookup(name)).collect();
        live(project_snapshot(&Scope::Services { names, node: None }, &all))
    };
    let server = TestServer::start(config(), scoped(&["al"]), Some(all.clone())).await;
    let (reply, _) = ask_udp(&server, &query("al.service.mesh.internal.", RecordType::A, None)).await;
    assert_eq!(reply.answers.len(), 4);
    server.source.grow([scoped(&[]), scoped(&["al"]), scoped(&["al", "web"])]);
    let (reply, _) = ask_udp(&server, &query("al.service.mesh.internal.", RecordType::A, None)).await;
    assert_eq!((reply.answers.len(), reply.metadata.response_code), (4, ResponseCode::NoError));
}

#[tokio::test]
async fn a_service_that_cannot_be_held_is_a_failure_and_blocks_nobody() {
    let narrow = project_snapshot(&Scope::Services { names: Default::default(), node: None }, &sample());
    let server = TestServer::start(config(), live(narrow), None).await;
    let missing = query("web.service.mesh.internal.", RecordType::A, Some(1232));
    let node = query("n1.node.mesh.internal.", RecordType::A, None);
    let started = std::time::Instant::now();
    let ((failed, _), quick) = tokio::join!(ask_udp(&server, &missing), async {
        let reply = ask_udp(&server, &node).await.0;
        (reply.answers.len(), started.elapsed())
    });
    assert_eq!((failed.metadata.response_code, ede(&failed)), (ResponseCode::ServFail, Some(14)));
    assert!(started.elapsed() >= Duration::from_millis(500), "it waited for the service");
    assert!(quick.0 == 1 && quick.1 < started.elapsed(), "the other question did not wait");
    server.handle.stop().await.unwrap();
}

#[tokio::test]
async fn who_waits_for_a_service_over_tcp_gives_up_its_turn() {
    let narrow = project_snapshot(&Scope::Services { names: Default::default(), node: None }, &sample());
    let server = TestServer::start(config(), live(narrow), None).await;
    let mut waits = TcpStream::connect(server.tcp).await.unwrap();
    send_tcp(&mut waits, &query("web.service.mesh.internal.", RecordType::A, Some(1232))).await;
    let started = std::time::Instant::now();
    let failed = async { (receive_tcp(&mut waits).await, started.elapsed()) };
    let quick = async {
        let mut quick = TcpStream::connect(server.tcp).await.unwrap();
        for _ in 0..3 {
            send_tcp(&mut quick, &query("n1.node.mesh.internal.", RecordType::A, None)).await;
            assert_eq!(receive_tcp(&mut quick).await.answers.len(), 1);
        }
        started.elapsed()
    };
    let ((failed, waited), quick) = tokio::join!(failed, quick);
    assert_eq!((failed.metadata.response_code, ede(&failed)), (ResponseCode::ServFail, Some(14)));
    assert!(quick < waited, "it waited too: {quick:?}, {waited:?}");
    server.handle.stop().await.unwrap();
}

#[tokio::test]
async fn tcp_connections_are_few_and_not_idle() {
    let limits = DnsConfig { tcp_connections: 1, tcp_idle_timeout: Duration::from_secs(2), ..config() };
    let server = TestServer::start(limits, live(sample()), None).await;
    let mut first = TcpStream::connect(server.tcp).await.unwrap();
    send_tcp(&mut first, &query("web.service.mesh.internal.", RecordType::A, None)).await;
    assert_eq!(receive_tcp(&mut first).await.answers.len(), 3);
    let mut second = TcpStream::connect(server.tcp).await.unwrap();
    let closed = timeout(PATIENCE, second.read_u8()).await.expect("the second connection stays open");
    assert!(closed.is_err(), "the second connection was served");
    send_tcp(&mut first, &query("n1.node.mesh.internal.", RecordType::A, None)).await;
    assert_eq!(receive_tcp(&mut first).await.answers.len(), 1, "the first is still there");
    let idle = timeout(PATIENCE, first.read_u8()).await.expect("the silent connection stays open");
    assert!(idle.is_err());
}

#[tokio::test]
async fn a_host_that_holds_its_share_of_tcp_connections_shuts_no_other_out() {
    let limits = DnsConfig { tcp_connections: 8, tcp_idle_timeout: Duration::from_secs(600), ..config() };
    let server = TestServer::start(limits, live(sample()), None).await;
    let mut halves = Vec::new();
    for _ in 0..8 {
        let mut stream = TcpStream::connect(server.tcp).await.unwrap();
        // The length of a message and nothing of it.
        let _sent = stream.write_all(&[0, 40]).await;
        halves.push(stream);
    }
    let last = halves.last_mut().unwrap();
    let closed = timeout(PATIENCE, last.read_u8()).await.expect("it holds more than its share");
    assert!(closed.is_err());
    let other = TcpSocket::new_v4().unwrap();
    other.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut other = other.connect(server.tcp).await.unwrap();
    send_tcp(&mut other, &query("web.service.mesh.internal.", RecordType::A, None)).await;
    assert_eq!(timeout(PATIENCE, receive_tcp(&mut other)).await.expect("it is shut out").answers.len(), 3);
    server.handle.stop().await.unwrap();
}

#[tokio::test]
async fn stopping_frees_the_sockets_and_bad_configurations_do_not_start() {
    let server = TestServer::sample().await;
    let (udp, tcp) = (server.udp, server.tcp);
    let open = TcpStream::connect(tcp).await.unwrap();
    timeout(PATIENCE, server.handle.stop()).await.expect("it does not stop").unwrap();
    drop(open);
    UdpSocket::bind(udp).await.unwrap();
    let source = support::TestSource::new(live(sample()), None);
    let clock = std::sync::Arc::new(|| support::NOW);
    let start =
        |config| muster_dns::Dns::start(config, vec![], vec![], source.clone(), clock.clone(), Default::default());
    assert!(matches!(start(config()), Err(DnsError::NoSockets)));
    let error = start(DnsConfig { zone: "-".to_owned(), ..config() }).unwrap_err().to_string();
    assert!(error.starts_with("dns.zone"), "{error}");
}
