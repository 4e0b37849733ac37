//! Rows for the tests of a push.

use muster_catalog::{Address, Check, CheckKind, Instance, Name, Node, Origin, Status, Weights};

use super::{Pusher, plan::Push};

pub(super) fn pusher() -> std::sync::Arc<Pusher> {
    let node = Node {
        name: Name::lookup("n1"),
        id: "id-1".into(),
        address: Address::parse("127.0.0.1").unwrap(),
        tagged_addresses: Default::default(),
        meta: Default::default(),
        locality: None,
        origin: Origin::Agent,
    };
    Pusher::new(node, 1)
}

pub(super) fn instance(id: &str) -> Instance {
    Instance {
        node: Name::lookup("n1"),
        id: id.into(),
        service: Name::lookup("web"),
        tags: Vec::new(),
        address: None,
        tagged_addresses: Default::default(),
        ports: Vec::new(),
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

/// A check of an instance, or of the node, with an output of so many bytes.
pub(super) fn check(id: &str, instance: Option<&str>, status: Status, output: usize) -> Check {
    Check {
        node: Name::lookup("n1"),
        id: id.into(),
        instance: instance.map(Into::into),
        name: "c".into(),
        status,
        notes: "".into(),
        output: "x".repeat(output).into(),
        kind: CheckKind::default(),
        origin: Origin::Agent,
    }
}

/// All of a node with so many instances, each with so many checks, each of those with an output of so many bytes. Every
/// second check is critical.
pub(super) fn everything(instances: usize, checks: usize, output: usize) -> Push {
    let status = |at| if at % 2 == 0 { Status::Passing } else { Status::Critical };
    let checks = (0..instances * checks).map(|at| {
        let owner = format!("i{:0>5}", at / checks);
        check(&format!("c{at:0>5}"), Some(&owner), status(at), output)
    });
    let checks = checks.collect();
    let instances = (0..instances).map(|at| instance(&format!("i{at:0>5}"))).collect();
    Push { complete: true, instances, checks, ..Push::default() }
}
