//! Catalogs to ask, made the way the registry makes them: Commands decided and folded.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::sync::Arc;

use muster_catalog::{
    Address, Check, CheckKind, Command, Entry, Freshness, Instance, Name, Node, NodeSync, Origin, Port, Proposal,
    Snapshot, Status, Timestamp, View, Weights, Writer, decide,
};

/// A node with an agent.
pub fn node(name: &str, address: &str) -> Node {
    Node {
        name: Name::host("node", name).unwrap(),
        id: name.into(),
        address: Address::parse(address).unwrap(),
        tagged_addresses: Default::default(),
        meta: Default::default(),
        locality: None,
        origin: Origin::Agent,
    }
}

/// An instance with port 80 and no tags.
pub fn instance(node: &str, id: &str, service: &str) -> Instance {
    Instance {
        node: Name::host("node", node).unwrap(),
        id: id.into(),
        service: Name::label("service", service).unwrap(),
        tags: Vec::new(),
        address: None,
        tagged_addresses: Default::default(),
        ports: vec![Port { name: "http".into(), number: 80 }],
        meta: Default::default(),
        weights: Weights::default(),
        locality: None,
        draining: false,
        maintenance: None,
        enable_tag_override: false,
        proxy: None,
        traffic: None,
        origin: Origin::Agent,
    }
}

/// A check of an instance, of that status.
pub fn check(node: &str, instance: &str, status: Status) -> Check {
    Check {
        node: Name::host("node", node).unwrap(),
        id: format!("service:{instance}").into(),
        instance: Some(instance.into()),
        name: "".into(),
        status,
        notes: "".into(),
        output: "".into(),
        kind: CheckKind::default(),
        origin: Origin::Agent,
    }
}

/// Registers a node with all that stands on it.
pub fn register(snapshot: &mut Snapshot, node: Node, instances: Vec<Instance>, checks: Vec<Check>) {
    let writer = Writer { incarnation: 1, sequence: 1 };
    let (removed_instances, removed_checks) = (Vec::new(), Vec::new());
    let sync = NodeSync { writer, node, complete: true, instances, checks, removed_instances, removed_checks };
    let at = Timestamp(1);
    let changes = decide(snapshot, &Proposal { at, command: Command::Sync(sync) }).unwrap();
    let index = snapshot.index() + 1;
    snapshot.fold(&Entry { index, at, changes });
}

/// A live View of it.
pub fn live(snapshot: Snapshot) -> View {
    View::new(Arc::new(snapshot), Freshness::Live)
}

/// The catalog that most tests ask: three healthy `web`s, and one of every oddity.
pub fn sample() -> Snapshot {
    let mut snapshot = Snapshot::default();
    let metrics = Port { name: "metrics".into(), number: 9100 };
    let web = |node: &str, tag: &str| {
        let mut web = instance(node, "web", "Web");
        web.tags = vec![tag.into(), "v1.2".into()];
        web.ports.push(metrics.clone());
        web
    };
    let mut own = web("n3", "blue");
    own.address = Address::parse("10.1.0.3");
    own.ports.truncate(1);
    let mut host = instance("n1", "mail", "mail");
    host.address = Address::parse("mx.example.com");
    let mut six = instance("n2", "six", "six");
    six.address = Address::parse("2001:db8::6");
    let mut draining = instance("n1", "gone", "gone");
    draining.draining = true;
    let mut maintained = instance("n2", "gone", "gone");
    maintained.maintenance = Some("upgrade".into());
    let sick = instance("n3", "gone", "gone");
    let weightless = {
        let mut instance = instance("n1", "gone-2", "gone");
        instance.weights = Weights { passing: 5, warning: 0 };
        instance
    };
    let mut warned = instance("n2", "warned", "warned");
    warned.weights = Weights { passing: 10, warning: 3 };
    let checks = vec![check("n1", "gone-2", Status::Warning)];
    register(&mut snapshot, node("n1", "10.0.0.1"), vec![web("n1", "green"), host, draining, weightless], checks);
    let checks = vec![check("n2", "warned", Status::Warning)];
    register(&mut snapshot, node("n2", "10.0.0.2"), vec![web("n2", "green"), six, maintained, warned], checks);
    let checks = vec![check("n3", "gone", Status::Critical)];
    register(&mut snapshot, node("n3", "10.0.0.3"), vec![own, sick], checks);
    register(&mut snapshot, node("db.rack-1", "2001:db8::1"), vec![instance("db.rack-1", "db", "db")], Vec::new());
    register(&mut snapshot, node("edge", "edge.example.com"), vec![instance("edge", "edge", "edge")], Vec::new());
    snapshot
}

/// A service `big` of so many instances, each with an address of its own.
pub fn add_big(snapshot: &mut Snapshot, count: u16) {
    let instances = (0..count).map(|number| {
        let mut big = instance("big", &format!("big-{number}"), "big");
        let [high, low] = number.to_be_bytes();
        big.address = Address::parse(&format!("10.9.{high}.{low}"));
        big
    });
    register(snapshot, node("big", "10.9.255.255"), instances.collect(), Vec::new());
}

/// A node with the service `big` on so many ports.
pub fn add_ports(snapshot: &mut Snapshot, count: u16) {
    let instances = (0..count).map(|number| {
        let mut big = instance("big", &format!("big-{number}"), "big");
        big.ports = vec![Port { name: "http".into(), number: 7000 + number }];
        big
    });
    register(snapshot, node("big", "10.9.255.255"), instances.collect(), Vec::new());
}
