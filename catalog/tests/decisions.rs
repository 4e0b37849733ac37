//! Tables: each refusal, the order of a node's writes, whose rows go, health, what an absent service answers.
#![allow(clippy::unwrap_used, reason = "a helper of tests may fail as they do")]

mod support;

use muster_catalog::{
    Change, ClusterId, Command, FORMAT, Instance, NODE_LIVENESS_CHECK, Name, NameError, NodeSync, Origin, Registration,
    Rejection, Removal, Status, Topic, Weights, health,
};
use support::{Registry, check, instance, name, node, sync, text, writer};

/// A registry with node `n1`, whose agent `agent-one` runs `web` (instance `i1`, check `c1`).
fn registry() -> Registry {
    let mut registry = Registry::default();
    registry.propose(Command::Sync(web())).unwrap();
    registry
}

fn web() -> NodeSync {
    NodeSync {
        instances: vec![instance("n1", "i1", "web")],
        checks: vec![check("n1", "c1", Some("i1"), Status::Passing)],
        ..sync(node("n1", "agent-one"), writer(5, 10))
    }
}

fn register(node_name: &str) -> Registration {
    Registration { name: name(node_name), node: None, instances: Vec::new(), checks: Vec::new() }
}

fn liveness(node: &str, incarnation: u64, status: Status) -> Command {
    Command::Liveness { nodes: vec![(name(node), incarnation)], status }
}

fn is_alive(registry: &Registry, node: &str) -> Option<Status> {
    let entry = registry.snapshot.find_node(&name(node))?;
    entry.liveness().map(|check| check.value.status)
}

fn instance_ids(registry: &Registry, node: &str) -> Vec<String> {
    let entry = registry.snapshot.find_node(&name(node)).unwrap();
    entry.instances.iter().map(|entry| entry.instance.value.id.to_string()).collect()
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table is one thing")]
fn each_refusal_names_the_field_and_the_remedy() {
    let foreign = Rejection::ForeignRow { row: "instance i1".into(), found: name("n2"), expected: name("n1") };
    let owned = |row: &str| Rejection::OwnedByAgent { row: row.into(), node: name("n1") };
    let next = |sequence| sync(node("n1", "agent-one"), writer(5, sequence));
    let table: Vec<(&str, Command, Rejection, &str)> = vec![
        (
            "another agent claims the name of a node that is alive",
            Command::Sync(sync(node("N1", "agent-two"), writer(9, 1))),
            Rejection::NodeNameTaken {
                node: name("n1"),
                owner: "agent-one".into(),
                owner_address: "192.0.2.1".into(),
                claimant: "agent-two".into(),
                claimant_address: "192.0.2.1".into(),
            },
            "give one of them another node.name",
        ),
        (
            "an earlier start of the agent writes",
            Command::Sync(sync(node("n1", "agent-one"), writer(4, 99))),
            Rejection::Superseded { node: name("n1"), newest: 5, given: 4 },
            "stop the older process",
        ),
        (
            "an earlier start of the agent leaves",
            Command::Leave { node: name("n1"), writer: writer(4, 99) },
            Rejection::Superseded { node: name("n1"), newest: 5, given: 4 },
            "stop the older process",
        ),
        (
            "a push carries an instance of another node",
            Command::Sync(NodeSync { instances: vec![instance("n2", "i1", "web")], ..next(11) }),
            foreign.clone(),
            "its own rows only",
        ),
        (
            "a registration carries an instance of another node",
            Command::Register(Registration { instances: vec![instance("n2", "i1", "web")], ..register("n1") }),
            // The row that the agent has under this id is looked at first.
            owned("instance i1"),
            "change it there",
        ),
        (
            "a registration carries the row of another node",
            Command::Register(Registration { node: Some(node("n2", "")), ..register("n1") }),
            Rejection::ForeignRow { row: "the node's row".into(), found: name("n2"), expected: name("n1") },
            "its own rows only",
        ),
        (
            "a registration for a node that nobody knows",
            Command::Register(Registration { instances: vec![instance("n9", "i1", "web")], ..register("n9") }),
            Rejection::UnknownNode(name("n9")),
            "give its Address",
        ),
        (
            "a check of an instance that does not exist",
            Command::Sync(NodeSync { checks: vec![check("n1", "c2", Some("i9"), Status::Passing)], ..next(11) }),
            Rejection::UnknownInstance { check: text("c2"), instance: text("i9"), node: name("n1") },
            "register the instance first",
        ),
        (
            "a check of an instance that goes with the same push",
            Command::Sync(NodeSync {
                checks: vec![check("n1", "c2", Some("i1"), Status::Passing)],
                removed_instances: vec![text("i1")],
                ..next(11)
            }),
            Rejection::UnknownInstance { check: text("c2"), instance: text("i1"), node: name("n1") },
            "register the instance first",
        ),
        (
            "the catalog API changes an agent's check",
            Command::Register(Registration {
                checks: vec![check("n1", "c1", None, Status::Passing)],
                ..register("n1")
            }),
            owned("check c1"),
            "change it there",
        ),
        (
            "the catalog API changes a node's liveness",
            Command::Register(Registration {
                checks: vec![check("n1", NODE_LIVENESS_CHECK, None, Status::Passing)],
                ..register("n1")
            }),
            owned("check serfHealth"),
            "change it there",
        ),
        (
            "the catalog API removes a node that is alive",
            Command::Deregister(Removal::Node(name("n1"))),
            owned("node n1"),
            "change it there",
        ),
        (
            "the catalog API removes an agent's instance",
            Command::Deregister(Removal::Instance { node: name("n1"), id: text("i1") }),
            owned("instance i1"),
            "change it there",
        ),
        (
            "the catalog API removes an agent's check",
            Command::Deregister(Removal::Check { node: name("n1"), id: text("c1") }),
            owned("check c1"),
            "change it there",
        ),
    ];
    for (case, command, expected, remedy) in table {
        let mut registry = registry();
        let before: Vec<_> = registry.snapshot.rows().skip(1).collect();
        let found = registry.propose(command).expect_err(case);
        assert_eq!(found, expected, "{case}");
        assert!(found.to_string().contains(remedy), "{case}: no {remedy:?} in {found}");
        assert_eq!(registry.snapshot.rows().skip(1).collect::<Vec<_>>(), before, "{case} changed something");
    }
    let passed_on = Rejection::from(Name::label("service.name", "").unwrap_err());
    assert_eq!(passed_on, Rejection::Name(NameError::Empty { field: "service.name" }));
}

#[test]
fn a_nodes_writes_are_ordered_by_incarnation_and_sequence() {
    enum Outcome {
        Taken,
        Dropped,
        Refused,
    }
    use Outcome::{Dropped, Refused, Taken};
    let table = [
        ((5, 11), Taken),
        ((5, 10), Dropped), // A retry of what is there.
        ((5, 9), Dropped),  // Overtaken by a later one.
        ((6, 0), Taken),    // A new start counts from anew.
        ((4, 11), Refused),
    ];
    for ((incarnation, sequence), outcome) in table {
        let mut registry = registry();
        let push = NodeSync {
            instances: vec![instance("n1", "i2", "api")],
            ..sync(node("n1", "agent-one"), writer(incarnation, sequence))
        };
        let result = registry.propose(Command::Sync(push));
        let case = format!("{incarnation}.{sequence} after 5.10: {result:?}");
        let (taken, newest) = match outcome {
            Taken => (true, writer(incarnation, sequence)),
            Dropped => (false, writer(5, 10)),
            Refused => {
                assert!(matches!(result, Err(Rejection::Superseded { newest: 5, given: 4, .. })), "{case}");
                continue;
            }
        };
        assert_eq!(instance_ids(&registry, "n1").contains(&"i2".to_owned()), taken, "{case}");
        assert_eq!(registry.snapshot.find_writer(&name("n1")), Some(newest), "{case}");
        assert_eq!(result.unwrap().0.changes.is_empty(), !taken, "{case}");
    }
}

#[test]
fn a_push_that_changes_nothing_still_bars_one_that_it_has_overtaken() {
    let mut registry = registry();
    let again = |sequence| Command::Sync(NodeSync { writer: writer(5, sequence), ..web() });
    assert_eq!(registry.propose(again(11)).unwrap().0.changes, Vec::new(), "nothing can lie between 10 and 11");
    // 12 is on its way still, with another instance.
    let overtaking = registry.propose(again(13)).unwrap();
    assert_eq!(overtaking.0.changes, vec![Change::PutWriter { node: name("n1"), writer: writer(5, 13) }]);
    assert_eq!(overtaking.1, vec![Topic::Index], "only the registry takes note of it");
    let late =
        NodeSync { instances: vec![instance("n1", "i2", "api")], ..sync(node("n1", "agent-one"), writer(5, 12)) };
    assert_eq!(registry.propose(Command::Sync(late)).unwrap().0.changes, Vec::new());
    assert_eq!(instance_ids(&registry, "n1"), ["i1"]);
}

#[test]
fn a_name_is_taken_over_once_the_lease_of_its_owner_has_ended() {
    let mut registry = registry();
    registry.propose(liveness("n1", 5, Status::Critical)).unwrap();
    // The other agent counts its starts for itself: its lower incarnation is not an older one.
    let claim = NodeSync { complete: true, ..sync(node("n1", "agent-two"), writer(1, 1)) };
    registry.propose(Command::Sync(claim)).unwrap();
    let entry = registry.snapshot.find_node(&name("n1")).unwrap();
    assert_eq!((&*entry.node.value.id, entry.instances.len()), ("agent-two", 0));
    assert_eq!(registry.snapshot.find_writer(&name("n1")), Some(writer(1, 1)));
    assert_eq!(is_alive(&registry, "n1"), Some(Status::Passing));
}

#[test]
fn liveness_is_one_change_to_one_check_and_only_for_the_incarnation_it_is_about() {
    let mut registry = registry();
    assert_eq!(registry.propose(liveness("n1", 4, Status::Critical)).unwrap().0.changes, Vec::new());
    assert_eq!(registry.propose(liveness("n9", 5, Status::Critical)).unwrap().0.changes, Vec::new());
    let (entry, touched) = registry.propose(liveness("n1", 5, Status::Critical)).unwrap();
    assert_eq!(entry.changes.len(), 1, "{:?}", entry.changes);
    assert!(touched.contains(&Topic::Service(name("web"))), "{touched:?}");
    assert_eq!(is_alive(&registry, "n1"), Some(Status::Critical));
    assert_eq!(registry.propose(liveness("n1", 5, Status::Critical)).unwrap().0.changes, Vec::new());
    // A push is a sign of life.
    registry.propose(Command::Sync(sync(node("n1", "agent-one"), writer(5, 11)))).unwrap();
    assert_eq!(is_alive(&registry, "n1"), Some(Status::Passing));
}

#[test]
fn nobody_but_the_registry_speaks_for_a_nodes_liveness() {
    let mut registry = registry();
    let lie = NodeSync {
        checks: vec![check("n1", NODE_LIVENESS_CHECK, None, Status::Critical)],
        removed_checks: vec![text(NODE_LIVENESS_CHECK)],
        ..sync(node("n1", "agent-one"), writer(5, 11))
    };
    assert_eq!(registry.propose(Command::Sync(lie)).unwrap().0.changes, Vec::new());
    assert_eq!(is_alive(&registry, "n1"), Some(Status::Passing));
    // A node without an agent may have a check of that name; it does not keep the node from being removed.
    let outside = Registration {
        node: Some(node("external", "")),
        checks: vec![check("external", NODE_LIVENESS_CHECK, None, Status::Passing)],
        ..register("external")
    };
    registry.propose(Command::Register(outside)).unwrap();
    assert_eq!(is_alive(&registry, "external"), None);
    registry.propose(Command::Deregister(Removal::Node(name("external")))).unwrap();
    assert_eq!(registry.snapshot.find_node(&name("external")), None);
}

#[test]
fn a_push_of_a_part_removes_nothing_that_it_does_not_name() {
    let mut registry = registry();
    let part =
        NodeSync { instances: vec![instance("n1", "i2", "api")], ..sync(node("n1", "agent-one"), writer(5, 11)) };
    registry.propose(Command::Sync(NodeSync { complete: false, ..part })).unwrap();
    assert_eq!(instance_ids(&registry, "n1"), ["i1", "i2"]);
}

#[test]
fn a_complete_push_removes_the_agents_rows_and_leaves_the_catalogs() {
    let mut registry = registry();
    let others = Registration {
        instances: vec![Instance { tags: vec![text("x")], ..instance("n1", "i2", "api") }],
        checks: vec![check("n1", "c2", Some("i2"), Status::Warning), check("n1", "c3", None, Status::Passing)],
        ..register("n1")
    };
    registry.propose(Command::Register(others)).unwrap();
    let push = NodeSync {
        complete: true,
        instances: vec![instance("n1", "i3", "db")],
        ..sync(node("n1", "agent-one"), writer(5, 11))
    };
    registry.propose(Command::Sync(push)).unwrap();
    assert_eq!(instance_ids(&registry, "n1"), ["i2", "i3"]);
    let entry = registry.snapshot.find_node(&name("n1")).unwrap();
    let origins: Vec<_> = entry.instances.iter().map(|entry| entry.instance.value.origin).collect();
    assert_eq!(origins, [Origin::Catalog, Origin::Agent]);
    let own: Vec<&str> = entry.checks.iter().map(|check| &*check.value.id).collect();
    assert_eq!(own, ["c3", NODE_LIVENESS_CHECK]);
    assert_eq!(entry.find_instance("i2").unwrap().checks.len(), 1);
    // Nor may the agent name them for removal.
    let removal = NodeSync {
        removed_instances: vec![text("i2"), text("i3")],
        removed_checks: vec![text("c3")],
        ..sync(node("n1", "agent-one"), writer(5, 12))
    };
    let (entry, _) = registry.propose(Command::Sync(removal)).unwrap();
    assert!(entry.changes.contains(&Change::DeleteInstance { node: name("n1"), id: text("i3") }));
    assert_eq!(instance_ids(&registry, "n1"), ["i2"]);
}

#[test]
fn of_two_rows_with_one_id_the_last_counts_and_removal_wins() {
    let mut registry = registry();
    let changed = Instance { draining: true, ..instance("n1", "i1", "web") };
    let twice = NodeSync {
        instances: vec![changed, instance("n1", "i1", "web"), instance("n1", "i2", "api")],
        removed_instances: vec![text("i2")],
        ..sync(node("n1", "agent-one"), writer(5, 11))
    };
    assert_eq!(registry.propose(Command::Sync(twice)).unwrap().0.changes, Vec::new());
}

#[test]
fn the_node_of_an_agent_keeps_the_row_that_the_agent_gave_it() {
    let mut registry = registry();
    let (entry, _) = registry
        .propose(Command::Register(Registration { node: Some(node("n1", "other")), ..register("n1") }))
        .unwrap();
    assert_eq!(entry.changes, Vec::new());
    // After the loss of the agent the catalog API may remove what is left.
    registry.propose(liveness("n1", 5, Status::Critical)).unwrap();
    registry.propose(Command::Deregister(Removal::Node(name("N1")))).unwrap();
    assert_eq!((registry.snapshot.node_count(), registry.snapshot.instance_count()), (0, 0));
    assert_eq!(registry.snapshot.find_writer(&name("n1")), None);
}

#[test]
fn the_first_identity_and_the_highest_format_stay() {
    let mut registry = Registry::default();
    let id = |uuid: &str| ClusterId { uuid: text(uuid), incarnation: 1 };
    for uuid in ["first", "second"] {
        registry.propose(Command::Bootstrap(id(uuid))).unwrap();
    }
    for format in [FORMAT + 1, FORMAT] {
        registry.propose(Command::SetFormat(format)).unwrap();
    }
    assert_eq!((registry.snapshot.cluster(), registry.snapshot.format()), (&id("first"), FORMAT + 1));
}

#[test]
fn an_absent_service_answers_the_index_of_the_last_extinction() {
    let mut registry = registry();
    assert_eq!(registry.snapshot.service_index(&name("web")), 1);
    assert_eq!(registry.snapshot.service_index(&name("never")), 0);
    let removal = NodeSync { removed_instances: vec![text("i1")], ..sync(node("n1", "agent-one"), writer(5, 11)) };
    let (entry, touched) = registry.propose(Command::Sync(removal)).unwrap();
    assert!(touched.contains(&Topic::Service(name("web"))) && touched.contains(&Topic::Services), "{touched:?}");
    // A client that waits at index 1 is not answered with an older one.
    assert_eq!(registry.snapshot.extinction_index(), entry.index);
    assert_eq!(registry.snapshot.service_index(&name("web")), entry.index);
    assert_eq!(registry.snapshot.service_index(&name("never")), entry.index);
    registry.propose(Command::SetFormat(FORMAT + 1)).unwrap();
    assert_eq!(registry.snapshot.service_index(&name("web")), entry.index, "a blank entry is no extinction");
}

#[test]
fn health_is_the_worst_of_the_nodes_and_the_instances_checks() {
    use Status::{Critical, Passing, Warning};
    let weights = Weights { passing: 10, warning: 3 };
    let table = [
        // node's check, instance's check, then: status, weight, serving, passing
        (None, None, Passing, 10, true, true),
        (Some(Passing), Some(Passing), Passing, 10, true, true),
        (Some(Passing), Some(Warning), Warning, 3, true, false),
        (Some(Warning), Some(Passing), Warning, 3, true, false),
        (Some(Critical), Some(Passing), Critical, 0, false, false),
        (Some(Warning), Some(Critical), Critical, 0, false, false),
    ];
    for (on_node, on_instance, status, weight, serving, passing) in table {
        let row = Instance { weights, ..instance("n1", "i1", "web") };
        for (row, takes_traffic, passes) in [
            (row.clone(), serving, passing),
            (Instance { draining: true, ..row.clone() }, false, false),
            (Instance { maintenance: Some(text("disk")), ..row.clone() }, false, false),
            (Instance { weights: Weights { warning: 0, ..weights }, ..row }, serving && status == Passing, passing),
        ] {
            let mut registry = Registry::default();
            let node_check = on_node.map(|status| check("n1", "c1", None, status));
            let own_check = on_instance.map(|status| check("n1", "c2", Some("i1"), status));
            let registration = Registration {
                node: Some(node("n1", "")),
                instances: vec![row.clone()],
                checks: node_check.into_iter().chain(own_check).collect(),
                ..register("n1")
            };
            registry.propose(Command::Register(registration)).unwrap();
            let node = registry.snapshot.find_node(&name("n1")).unwrap();
            let entry = node.find_instance("i1").unwrap();
            let case = format!("{on_node:?}, {on_instance:?}: {row:?}");
            assert_eq!(health::status(node, entry), status, "{case}");
            assert_eq!(health::is_serving(node, entry), takes_traffic, "{case}");
            assert_eq!(health::is_passing(node, entry), passes, "{case}");
            if row.weights == weights {
                assert_eq!(health::weight(node, entry), weight, "{case}");
            }
        }
    }
}
