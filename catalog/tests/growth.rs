//! What a write costs does not grow with what stands beside the row that it names.

mod support;

use std::sync::Arc;

use muster_catalog::{
    Check, Command, Instance, InstanceEntry, NodeEntry, Registration, Removal, Snapshot, Status, health,
};
use support::{Registry, check, instance, name, node, text};

/// Far more than one write may copy.
const CHECKS: usize = 3_000;
/// As many as a register call takes.
const AT_ONCE: usize = 256;
/// Most rows that one write may copy: the leaves of a tree that it goes through, and their neighbours.
const COPIES: usize = 64;

fn registration(instances: Vec<Instance>, checks: Vec<Check>) -> Command {
    Command::Register(Registration { name: name("n1"), node: None, instances, checks })
}

fn many(of: Option<&str>) -> Vec<Check> {
    (0..CHECKS).map(|at| check("n1", &format!("c{at}"), of.map(|_| "i1"), Status::Passing)).collect()
}

/// A node with an instance, and these checks of one of the two.
fn registry_with(checks: &[Check]) -> Registry {
    let mut registry = Registry::default();
    let (name, row) = (name("n1"), Some(node("n1", "")));
    let first = Registration { name, node: row, instances: vec![own("i1")], checks: Vec::new() };
    let parts = checks.chunks(AT_ONCE).map(|part| registration(Vec::new(), part.to_vec()));
    for command in std::iter::once(Command::Register(first)).chain(parts) {
        assert!(registry.propose(command).is_ok());
    }
    registry
}

fn own(id: &str) -> Instance {
    instance("n1", id, "web")
}

fn found(snapshot: &Snapshot) -> (&Arc<NodeEntry>, &Arc<InstanceEntry>) {
    let found = snapshot.find_node(&name("n1")).and_then(|node| Some((node, node.find_instance("i1")?)));
    found.unwrap_or_else(|| panic!("no instance in {snapshot:?}"))
}

/// How many handles of each check there are: a row that is copied has one more.
fn handles(snapshot: &Snapshot) -> usize {
    found(snapshot).0.all_checks().map(|row| Arc::strong_count(&row.value)).sum()
}

#[test]
fn a_write_copies_few_of_many_checks() {
    for of in [None, Some("i1")] {
        let registry = registry_with(&many(of));
        let new = check("n1", "new", of, Status::Critical);
        let changed = check("n1", "c7", of, Status::Critical);
        let moved = check("n1", "c7", of.xor(Some("i1")), Status::Critical);
        let writes = [
            ("one comes", registration(Vec::new(), vec![new])),
            ("one changes", registration(Vec::new(), vec![changed])),
            ("one speaks for something else", registration(Vec::new(), vec![moved])),
            ("one goes", Command::Deregister(Removal::Check { node: name("n1"), id: text("c7") })),
            ("its instance changes", registration(vec![Instance { draining: true, ..own("i1") }], Vec::new())),
            ("another instance comes", registration(vec![own("i2")], Vec::new())),
        ];
        for (what, command) in writes {
            // Readers hold what they were given.
            let mut after = registry.clone();
            let before = handles(&registry.snapshot);
            let (entry, _) = after.propose(command).unwrap();
            assert!(!entry.changes.is_empty(), "{what}");
            let copies = handles(&registry.snapshot) - before;
            assert!(copies <= COPIES, "{what}, of {of:?}: {copies} checks copied");
        }
    }
}

#[test]
fn the_worst_of_many_checks_decides_whenever_it_comes_and_goes() {
    for of in [None, Some("i1")] {
        let mut registry = registry_with(&many(of));
        let mut expect = |command, expected| {
            registry.propose(command).unwrap();
            let (node, entry) = found(&registry.snapshot);
            assert_eq!(health::status(node, entry), expected, "{of:?}");
        };
        let put = |id: &str, status| registration(Vec::new(), vec![check("n1", id, of, status)]);
        let remove = |id: &str| Command::Deregister(Removal::Check { node: name("n1"), id: text(id) });
        expect(put("c7", Status::Warning), Status::Warning);
        expect(put("c8", Status::Critical), Status::Critical);
        expect(put("c8", Status::Critical), Status::Critical);
        expect(remove("c8"), Status::Warning);
        expect(put("c7", Status::Passing), Status::Passing);
        expect(put("new", Status::Critical), Status::Critical);
        expect(remove("new"), Status::Passing);
    }
}
