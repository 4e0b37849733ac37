//! A small world in which everything collides, and commands drawn from it.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use imbl::OrdSet;
use muster_catalog::{
    Address, Check, CheckKind, ClusterId, Command, Entry, Instance, Name, Node, NodeSync, Origin, Port, Proposal,
    Protocol, Proxy, Registration, Rejection, Removal, Scope, Snapshot, Status, Text, Timestamp, Topic, Traffic,
    Upstream, Weights, Writer, decide,
};
use proptest::{collection::vec, option, prelude::*, sample::select};

/// One is the end of two others.
pub(crate) const NODES: [&str; 4] = ["n1", "rack", "N3.Rack", "n4.b.rack"];
pub(crate) const SERVICES: [&str; 4] = ["web", "api", "Db", "cache"];
pub(crate) const INSTANCES: [&str; 6] = ["i1", "i2", "i3", "i4", "i5", "i6"];
/// The last is the id of the liveness check: nobody but the registry may end up speaking for it.
pub(crate) const CHECKS: [&str; 5] = ["c1", "c2", "c3", "c4", "serfHealth"];
pub(crate) const TAGS: [&str; 4] = ["a", "b", "B", "c"];
pub(crate) const AGENTS: [&str; 2] = ["agent-one", "agent-two"];

pub(crate) fn text(value: &str) -> Text {
    Text::from(value)
}

pub(crate) fn name(value: &str) -> Name {
    Name::lookup(value)
}

pub(crate) fn writer(incarnation: u64, sequence: u64) -> Writer {
    Writer { incarnation, sequence }
}

pub(crate) fn node(node: &str, id: &str) -> Node {
    Node {
        name: name(node),
        id: text(id),
        address: Address::Ip(IpAddr::from([192, 0, 2, 1])),
        tagged_addresses: BTreeMap::new(),
        meta: BTreeMap::new(),
        locality: None,
        origin: Origin::Agent,
    }
}

pub(crate) fn instance(node: &str, id: &str, service: &str) -> Instance {
    Instance {
        node: name(node),
        id: text(id),
        service: name(service),
        tags: Vec::new(),
        address: None,
        tagged_addresses: BTreeMap::new(),
        ports: vec![Port { name: text("default"), number: 80 }],
        meta: BTreeMap::new(),
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

pub(crate) fn check(node: &str, id: &str, instance: Option<&str>, status: Status) -> Check {
    Check {
        node: name(node),
        id: text(id),
        instance: instance.map(text),
        name: text(id),
        status,
        notes: text(""),
        output: text(""),
        kind: CheckKind::default(),
        origin: Origin::Agent,
    }
}

pub(crate) fn sync(node_row: Node, writer: Writer) -> NodeSync {
    NodeSync {
        writer,
        node: node_row,
        complete: false,
        instances: Vec::new(),
        checks: Vec::new(),
        removed_instances: Vec::new(),
        removed_checks: Vec::new(),
    }
}

/// A registry without Raft: each command is an entry, refused ones are blank.
#[derive(Debug, Clone, Default)]
pub(crate) struct Registry {
    pub(crate) snapshot: Snapshot,
    pub(crate) log: Vec<Entry>,
}

impl Registry {
    /// Proposes a command and says what was refused, or the entry and the topics it touched.
    pub(crate) fn propose(&mut self, command: Command) -> Result<(Entry, Vec<Topic>), Rejection> {
        let at = Timestamp(self.snapshot.at().0 + 1);
        let decided = decide(&self.snapshot, &Proposal { at, command });
        let changes = decided.clone().unwrap_or_default();
        let entry = Entry { index: self.snapshot.index() + 1, at, changes };
        let topics = self.snapshot.fold(&entry);
        self.log.push(entry.clone());
        decided.map(|_| (entry, topics))
    }
}

fn pick(from: &'static [&'static str]) -> impl Strategy<Value = &'static str> + Clone {
    select(from)
}

fn any_status() -> impl Strategy<Value = Status> {
    select(&[Status::Passing, Status::Warning, Status::Critical][..])
}

fn any_writer() -> impl Strategy<Value = Writer> {
    (1..4_u64, 0..30_u64).prop_map(|(incarnation, sequence)| writer(incarnation, sequence))
}

fn any_node(name: &'static str) -> impl Strategy<Value = Node> {
    (pick(&AGENTS), 0..2_u8, proptest::bool::ANY).prop_map(move |(id, host, upper)| Node {
        address: Address::Ip(IpAddr::from([192, 0, 2, host])),
        name: Name::lookup(&if upper { name.to_uppercase() } else { name.to_owned() }),
        ..node(name, id)
    })
}

fn any_instance(node: &'static str) -> impl Strategy<Value = Instance> {
    let tags = vec(pick(&TAGS), 0..3);
    let mesh = (option::of(any_proxy()), option::of(0..3_u8));
    (pick(&INSTANCES), pick(&SERVICES), tags, 80..82_u16, mesh).prop_map(
        move |(id, service, tags, number, (proxy, panic_threshold))| Instance {
            tags: tags.into_iter().map(text).collect(),
            ports: vec![Port { name: text("default"), number }],
            proxy: proxy.map(Arc::new),
            traffic: panic_threshold.map(|percent| Arc::new(traffic(percent))),
            ..instance(node, id, service)
        },
    )
}

fn any_proxy() -> impl Strategy<Value = Proxy> {
    (pick(&SERVICES), vec(pick(&SERVICES), 0..2)).prop_map(|(service, upstreams)| proxy(service, &upstreams))
}

/// A proxy with these upstreams, by Host.
pub(crate) fn proxy(service: &str, upstreams: &[&str]) -> Proxy {
    let upstream = |service: &&str| Upstream {
        service: name(service),
        listen: None,
        protocol: Protocol::Http,
        connect_timeout: None,
    };
    let upstreams = upstreams.iter().map(upstream).collect();
    Proxy { service: name(service), instance: None, inbound: None, http_listener: None, upstreams }
}

/// Traffic settings that differ by their panic threshold.
pub(crate) fn traffic(panic_threshold: u8) -> Traffic {
    Traffic { panic_threshold: Some(panic_threshold), ..Traffic::default() }
}

fn any_check(node: &'static str) -> impl Strategy<Value = Check> {
    (pick(&CHECKS), option::of(pick(&INSTANCES)), any_status())
        .prop_map(move |(id, instance, status)| check(node, id, instance, status))
}

/// The node that rows name: nearly always the writing one.
fn row_node(own: &'static str) -> impl Strategy<Value = &'static str> {
    prop_oneof![60 => Just(own), 1 => pick(&NODES)]
}

fn rows(own: &'static str) -> impl Strategy<Value = (Vec<Instance>, Vec<Check>)> {
    let instances = vec(row_node(own).prop_flat_map(any_instance), 0..4);
    (instances, vec(row_node(own).prop_flat_map(any_check), 0..3), 0..4_u8).prop_map(|(instances, mut checks, keep)| {
        if keep > 0 {
            // Mostly checks of instances that are put along: a random reference would be refused too often.
            for check in &mut checks {
                check.instance = check.instance.take().and(instances.first()).map(|first| first.id.clone());
            }
        }
        (instances, checks)
    })
}

fn any_sync() -> impl Strategy<Value = Command> {
    pick(&NODES).prop_flat_map(|own| {
        let removed = (vec(pick(&INSTANCES), 0..2), vec(pick(&CHECKS), 0..2));
        (any_writer(), any_node(own), proptest::bool::weighted(0.3), rows(own), removed).prop_map(
            |(writer, node, complete, (instances, checks), (gone, gone_checks))| {
                Command::Sync(NodeSync {
                    writer,
                    node,
                    complete,
                    instances,
                    checks,
                    removed_instances: gone.into_iter().map(text).collect(),
                    removed_checks: gone_checks.into_iter().map(text).collect(),
                })
            },
        )
    })
}

fn any_register() -> impl Strategy<Value = Command> {
    pick(&NODES).prop_flat_map(|own| {
        let row = option::weighted(0.7, row_node(own).prop_flat_map(any_node));
        (row, rows(own)).prop_map(move |(node, (instances, checks))| {
            Command::Register(Registration { name: name(own), node, instances, checks })
        })
    })
}

fn any_removal() -> impl Strategy<Value = Command> {
    let node = || pick(&NODES).prop_map(name);
    prop_oneof![
        node().prop_map(Removal::Node),
        (node(), pick(&INSTANCES)).prop_map(|(node, id)| Removal::Instance { node, id: text(id) }),
        (node(), pick(&CHECKS)).prop_map(|(node, id)| Removal::Check { node, id: text(id) }),
    ]
    .prop_map(Command::Deregister)
}

/// Any command over the small world.
pub(crate) fn any_command() -> impl Strategy<Value = Command> {
    let liveness = vec((pick(&NODES).prop_map(name), 1..4_u64), 0..4);
    let bootstrap = (0..2_u64).prop_map(|incarnation| ClusterId { uuid: text("uuid"), incarnation });
    prop_oneof![
        12 => any_sync(),
        4 => any_register(),
        3 => any_removal(),
        3 => (liveness, any_status()).prop_map(|(nodes, status)| Command::Liveness { nodes, status }),
        1 => (pick(&NODES), any_writer()).prop_map(|(node, writer)| Command::Leave { node: name(node), writer }),
        1 => bootstrap.prop_map(Command::Bootstrap),
        1 => (0..3_u32).prop_map(Command::SetFormat),
    ]
}

/// A sequence of commands in which a node's pushes are mostly newer than those before them.
pub(crate) fn any_commands(most: usize) -> impl Strategy<Value = Vec<Command>> {
    vec((any_command(), 0..10_u8), 1..most).prop_map(|commands| {
        let mut sequence = 30;
        let ordered = commands.into_iter().map(|(mut command, stale)| {
            sequence += 1;
            if let Command::Sync(sync) = &mut command
                && stale > 0
            {
                sync.writer = writer(3 + sequence / 60, sequence);
            }
            if let Command::Liveness { nodes, .. } = &mut command {
                nodes.iter_mut().for_each(|(_, incarnation)| *incarnation += 2);
            }
            command
        });
        ordered.collect()
    })
}

/// Any Scope over the small world.
pub(crate) fn any_scope() -> impl Strategy<Value = Scope> {
    let names = vec(pick(&SERVICES), 0..3).prop_map(|names| names.into_iter().map(name).collect::<OrdSet<_>>());
    let some =
        (names, option::of(pick(&NODES).prop_map(name))).prop_map(|(names, node)| Scope::Services { names, node });
    prop_oneof![1 => Just(Scope::All), 6 => some]
}

/// A Change of any kind, also such as `decide` would never make.
pub(crate) fn any_change() -> impl Strategy<Value = muster_catalog::Change> {
    use muster_catalog::{Change, DirectoryRow};
    let directory = (pick(&SERVICES), 0..9_u64, vec(pick(&TAGS), 0..3)).prop_map(|(service, index, tags)| {
        let tags = tags.into_iter().map(text).collect();
        Change::PutDirectory(DirectoryRow { service: name(service), index, tags })
    });
    let node = || pick(&NODES);
    prop_oneof![
        node().prop_flat_map(any_node).prop_map(|row| Change::PutNode(Arc::new(row))),
        node().prop_map(|row| Change::DeleteNode(name(row))),
        node().prop_flat_map(any_instance).prop_map(|row| Change::PutInstance(Arc::new(row))),
        (node(), pick(&INSTANCES)).prop_map(|(row, id)| Change::DeleteInstance { node: name(row), id: text(id) }),
        node().prop_flat_map(any_check).prop_map(|row| Change::PutCheck(Arc::new(row))),
        (node(), pick(&CHECKS)).prop_map(|(row, id)| Change::DeleteCheck { node: name(row), id: text(id) }),
        directory,
        pick(&SERVICES).prop_map(|service| Change::DeleteDirectory(name(service))),
        (node(), any_writer()).prop_map(|(row, writer)| Change::PutWriter { node: name(row), writer }),
    ]
}
