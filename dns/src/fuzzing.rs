//! What `fuzz/` runs, and the replay of its seeds in `tests/`: only in builds with the feature `fuzzing`.

use std::{net::SocketAddr, sync::OnceLock};

use futures_util::FutureExt;
use hickory_proto::{
    op::{Message, MessageType},
    serialize::binary::BinDecodable,
};
use hickory_server::net::xfer::Protocol;
use muster_catalog::{
    Address, Command, Entry, Instance, Name, Node, Origin, Port, Proposal, Registration, Snapshot, Timestamp, Weights,
    decide,
};

use crate::{
    config::MAX_LOOPBACK_SIZE,
    fixed,
    handler::Handler,
    wire::{self, Read},
};

/// Answers whatever arrived in a datagram or on a connection. A reply has to be one: readable, to the same question,
/// and no longer than its protocol carries.
///
/// # Panics
///
/// When it is not.
pub fn question(bytes: &[u8]) {
    for protocol in [Protocol::Udp, Protocol::Tcp] {
        let client = ([127, 0, 0, 1], 53).into();
        // The catalog is held whole, so that nothing has to be waited for.
        let reply = exchange(bytes.to_vec(), client, protocol).now_or_never();
        let Some(reply) = reply.expect("an answer from a catalog that is held does not wait") else { continue };
        let message = check(bytes, protocol, &reply);
        // Instances are drawn, so only as many can be expected to come again.
        if protocol == Protocol::Udp
            && let Read::Request(request) = wire::read(handler().metrics(), bytes.to_vec(), client, protocol)
        {
            let quick = handler().write_at_once(&request).expect("a reply that waits for nothing");
            let quick = check(bytes, protocol, &quick);
            assert_eq!(quick.metadata, message.metadata);
            assert_eq!(quick.queries, message.queries);
            assert_eq!(quick.edns, message.edns);
            let counts = |message: &Message| [&message.answers, &message.authorities].map(Vec::len);
            assert_eq!(counts(&quick), counts(&message));
        }
    }
}

/// `None` for what must not be answered.
async fn exchange(bytes: Vec<u8>, client: SocketAddr, protocol: Protocol) -> Option<Vec<u8>> {
    match wire::read(handler().metrics(), bytes, client, protocol) {
        Read::Nothing => None,
        Read::Refused(reply) => Some(reply),
        Read::Request(request) => handler().write_in_time(&request).await,
    }
}

fn check(bytes: &[u8], protocol: Protocol, reply: &[u8]) -> Message {
    let most = if protocol == Protocol::Udp { usize::from(MAX_LOOPBACK_SIZE) } else { usize::from(u16::MAX) };
    assert!(reply.len() <= most, "a reply of {} bytes", reply.len());
    let message = Message::from_bytes(reply).expect("a reply that can be read");
    assert_eq!(message.message_type, MessageType::Response);
    assert_eq!(reply.get(..2), bytes.get(..2), "a reply to another question");
    message
}

fn handler() -> &'static Handler {
    static HANDLER: OnceLock<Handler> = OnceLock::new();
    HANDLER.get_or_init(|| fixed::handler(catalog()))
}

/// Three instances of a service with tags and two ports, one of them by name only, one by IPv6.
fn catalog() -> Snapshot {
    let mut snapshot = Snapshot::default();
    for (node, address) in [("n1", "10.0.0.1"), ("n2", "2001:db8::2"), ("n3", "host.example.com")] {
        let name = Name::lookup(node);
        let (tagged_addresses, meta, locality) = (Default::default(), Default::default(), None);
        let address = Address::parse(address).expect("an address");
        let ports = [("default", 80), ("metrics", 9100)].map(|(name, number)| Port { name: name.into(), number });
        let instance = Instance {
            node: name.clone(),
            id: "web-1".into(),
            service: Name::lookup("web"),
            tags: vec!["green".into(), "v1".into()],
            address: None,
            tagged_addresses: Default::default(),
            ports: ports.into(),
            meta: Default::default(),
            weights: Weights::default(),
            locality: None,
            draining: false,
            maintenance: None,
            enable_tag_override: false,
            proxy: None,
            traffic: None,
            origin: Origin::Catalog,
        };
        let (id, origin) = ("".into(), Origin::Catalog);
        let row = Node { name: name.clone(), id, address, tagged_addresses, meta, locality, origin };
        let registration = Registration { name, node: Some(row), instances: vec![instance], checks: Vec::new() };
        let proposal = Proposal { at: Timestamp(1), command: Command::Register(registration) };
        let changes = decide(&snapshot, &proposal).expect("a registration");
        let index = snapshot.index() + 1;
        snapshot.fold(&Entry { index, at: Timestamp(1), changes });
    }
    snapshot
}
