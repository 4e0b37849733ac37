//! What holds of every sequence of commands: replay, folding, projection, indexes, waking.

mod support;

use std::collections::{BTreeSet, HashMap};

use muster_catalog::{
    Change, Check, Command, Entry, Footprint, Gathered, Name, NodeEntry, Scope, ServiceLookup, Snapshot,
    SnapshotBuilder, SnapshotRow, Splice, Status, Text, Timestamp, Topic, Wide, health, project_changes,
    project_snapshot,
};
use proptest::prelude::*;
use support::{NODES, Registry, SERVICES, any_change, any_command, any_commands, any_scope, name};

/// Long enough for rows to come, move, vanish and come again among so few names.
const COMMANDS: usize = 40;

fn registry_after(commands: &[Command]) -> Registry {
    let mut registry = Registry::default();
    for command in commands {
        let _ = registry.propose(command.clone());
    }
    registry
}

fn rebuilt(scope: Scope, snapshot: &Snapshot) -> Snapshot {
    let mut builder = SnapshotBuilder::new(scope);
    snapshot.rows().for_each(|row| builder.push(row));
    builder.finish()
}

fn rows(snapshot: &Snapshot) -> Vec<SnapshotRow> {
    snapshot.rows().collect()
}

/// The services that an entry may touch: those of the instances, checks and nodes that it names, before and after.
fn related(before: &Snapshot, after: &Snapshot, entry: &Entry) -> BTreeSet<Name> {
    let mut services = BTreeSet::new();
    for snapshot in [before, after] {
        for change in &entry.changes {
            let (node, instance) = match change {
                Change::PutNode(row) => (&row.name, Some(None)),
                Change::DeleteNode(node) => (node, Some(None)),
                Change::PutInstance(row) => (&row.node, Some(Some(row.id.clone()))),
                Change::DeleteInstance { node, id } => (node, Some(Some(id.clone()))),
                Change::PutCheck(row) => (&row.node, spoken_for(snapshot, &row.node, &row.id)),
                Change::DeleteCheck { node, id } => (node, spoken_for(snapshot, node, id)),
                _ => continue,
            };
            let Some(instance) = instance else { continue };
            let Some(entry) = snapshot.find_node(node) else { continue };
            let on_node = entry.instances.iter().map(|row| &row.instance.value);
            let named = on_node.filter(|row| instance.as_ref().is_none_or(|id| *id == row.id));
            services.extend(named.map(|row| row.service.clone()));
        }
    }
    services
}

/// The instance that a check speaks for, `Some(None)` when it is the whole node; `None` when there is no such check.
fn spoken_for(snapshot: &Snapshot, node: &Name, id: &Text) -> Option<Option<Text>> {
    let entry = snapshot.find_node(node)?;
    let checks = entry.instances.iter().flat_map(|entry| &entry.checks).chain(&entry.checks);
    let found = checks.map(|row| &row.value).find(|check| check.id == *id)?;
    Some(found.instance.clone())
}

/// What a checksum says of a row: not what follows from others.
fn hashed(row: SnapshotRow) -> Option<SnapshotRow> {
    match row {
        SnapshotRow::Header(_) | SnapshotRow::Service(_) => None,
        SnapshotRow::Node { row, .. } => Some(SnapshotRow::Node { row, index: 0 }),
        row => Some(row),
    }
}

/// What happens to a replica whose Scope changes while the catalog does.
#[derive(Debug, Clone)]
enum Step {
    Command(Box<Command>),
    Rescope { joined: Vec<Name>, left: Vec<Name> },
}

fn any_step() -> impl Strategy<Value = Step> {
    let services = || proptest::collection::vec(proptest::sample::select(&SERVICES[..]).prop_map(name), 0..3);
    prop_oneof![
        2 => any_command().prop_map(|command| Step::Command(Box::new(command))),
        1 => (services(), services()).prop_map(|(joined, left)| Step::Rescope { joined, left }),
    ]
}

fn any_own_node() -> impl Strategy<Value = Option<Name>> {
    proptest::option::of(proptest::sample::select(&NODES[..]).prop_map(name))
}

fn all_checks(snapshot: &Snapshot) -> Vec<Check> {
    let on_node = |node: &NodeEntry| {
        let of_instances = node.instances.iter().flat_map(|entry| &entry.checks);
        node.checks.iter().chain(of_instances).map(|check| (*check.value).clone()).collect::<Vec<_>>()
    };
    snapshot.nodes().flat_map(|node| on_node(node)).collect()
}

/// Whether the Scope names the node: what stands there comes with every load.
fn is_own(scope: &Scope, node: &Name) -> bool {
    *scope != Scope::All && scope.holds_node(node)
}

fn assert_consistent(snapshot: &Snapshot) {
    let nodes: Vec<&NodeEntry> = snapshot.nodes().map(|entry| &**entry).collect();
    let instances: usize = nodes.iter().map(|node| node.instances.len()).sum();
    assert_eq!(snapshot.instance_count(), instances, "instance_count");
    assert_eq!(snapshot.node_count(), nodes.len(), "node_count");
    let mut by_service: HashMap<&Name, Vec<_>> = HashMap::new();
    for entry in nodes.iter().flat_map(|node| &node.instances) {
        by_service.entry(&entry.instance.value.service).or_default().push(entry.clone());
    }
    assert_eq!(snapshot.service_count(), by_service.len(), "a service without instances, or one that is missing");
    for (service, expected) in by_service {
        let ServiceLookup::Held(slot, set) = snapshot.service(service) else { panic!("{service} is not held") };
        assert!(set.instances.iter().eq(&expected), "the instances of {service}");
        let tags = expected.iter().flat_map(|entry| entry.instance.value.tags.iter().cloned());
        let tags: Vec<Text> = tags.collect::<BTreeSet<_>>().into_iter().collect();
        assert_eq!(*slot.tags, *tags, "the tags of {service}");
    }
    for node in nodes {
        let ids = node.instances.iter().flat_map(|entry| &entry.checks).chain(&node.checks);
        let ids: Vec<&Text> = ids.map(|row| &row.value.id).collect();
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "two checks of one id on {node:?}");
        for entry in &node.instances {
            let statuses = entry.checks.iter().chain(&node.checks).map(|row| row.value.status);
            assert_eq!(Some(health::status(node, entry)), statuses.max().or(Some(Status::Passing)), "of {entry:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn replaying_commands_or_folding_their_changes_gives_equal_catalogs(commands in any_commands(COMMANDS)) {
        let (one, other) = (registry_after(&commands), registry_after(&commands));
        prop_assert_eq!(rows(&one.snapshot), rows(&other.snapshot));
        let mut folded = Snapshot::default();
        for entry in &one.log {
            folded.fold(entry);
        }
        prop_assert_eq!(&folded, &one.snapshot);
    }

    #[test]
    fn a_snapshot_is_rebuilt_whole_from_its_rows_and_goes_on_as_if_it_had_never_been_written(
        before in any_commands(COMMANDS), after in any_commands(10), scope in any_scope(),
    ) {
        let mut registry = registry_after(&before);
        prop_assert_eq!(&rebuilt(Scope::All, &registry.snapshot), &registry.snapshot);
        let projected = project_snapshot(&scope, &registry.snapshot);
        let streamed: Vec<SnapshotRow> = registry.snapshot.rows_for(&scope, None).collect();
        prop_assert_eq!(streamed, rows(&projected));
        prop_assert_eq!(&rebuilt(scope, &projected), &projected);
        let mut restored = Registry { snapshot: rebuilt(Scope::All, &registry.snapshot), log: Vec::new() };
        for command in after {
            prop_assert_eq!(registry.propose(command.clone()), restored.propose(command));
        }
        prop_assert_eq!(rows(&registry.snapshot), rows(&restored.snapshot));
    }

    #[test]
    fn folding_an_entry_twice_changes_nothing_more(commands in any_commands(COMMANDS)) {
        let mut twice = Snapshot::default();
        for entry in &registry_after(&commands).log {
            twice.fold(entry);
            let once = twice.clone();
            twice.fold(entry);
            prop_assert_eq!(&twice, &once);
        }
    }

    #[test]
    fn projection_commutes_with_folding(commands in any_commands(COMMANDS), scope in any_scope()) {
        let mut registry = Registry::default();
        let mut replica = Snapshot::new(scope.clone());
        for command in commands {
            let before = registry.snapshot.clone();
            let Ok((entry, touched)) = registry.propose(command) else {
                replica.advance(registry.snapshot.index(), registry.snapshot.at());
                continue;
            };
            let footprint = Footprint::before(&before, &entry.changes).after(&registry.snapshot, &touched);
            let changes = project_changes(&scope, &entry, &footprint);
            let projected = Entry { changes, ..entry.clone() };
            let woken = replica.fold(&projected);
            prop_assert_eq!(&replica, &project_snapshot(&scope, &registry.snapshot), "{:#?}", entry.changes);
            let missed: Vec<&Topic> = touched.iter().filter(|topic| !woken.contains(topic)).collect();
            let heard = |topic: &&&Topic| match topic {
                Topic::Service(_) | Topic::AnyService | Topic::Services | Topic::Nodes | Topic::Index => true,
                Topic::Format => true,
                Topic::Node(node) => scope.holds_node(node),
                Topic::Checks => scope == Scope::All,
            };
            prop_assert_eq!(missed.iter().find(heard), None, "{:#?}", entry.changes);
            replica.fold(&projected);
            prop_assert_eq!(&replica, &project_snapshot(&scope, &registry.snapshot), "folded twice");
        }
    }

    #[test]
    fn what_touches_nothing_that_is_held_may_be_gathered_and_told_at_any_later_time(
        commands in proptest::collection::vec((any_command(), any::<bool>()), 1..COMMANDS), scope in any_scope(),
    ) {
        let mut registry = Registry::default();
        let mut replica = Snapshot::new(scope.clone());
        let mut gathered = Gathered::default();
        let mut woken = BTreeSet::from([Topic::Index]);
        let mut touched_since = BTreeSet::new();
        for (command, tell) in commands {
            let before = registry.snapshot.clone();
            let mut touches = false;
            if let Ok((entry, touched)) = registry.propose(command) {
                let footprint = Footprint::before(&before, &entry.changes).after(&registry.snapshot, &touched);
                touches = footprint.touches(&scope);
                touched_since.extend(touched);
                if touches {
                    for entry in std::mem::take(&mut gathered).finish() {
                        woken.extend(replica.fold(&entry));
                    }
                    let changes = project_changes(&scope, &entry, &footprint);
                    woken.extend(replica.fold(&Entry { changes, ..entry }));
                } else {
                    gathered.push(&entry, &footprint);
                }
            }
            if !touches && !tell {
                continue;
            }
            for entry in std::mem::take(&mut gathered).finish() {
                woken.extend(replica.fold(&entry));
            }
            replica.advance(registry.snapshot.index(), registry.snapshot.at());
            prop_assert_eq!(&replica, &project_snapshot(&scope, &registry.snapshot));
            let heard = |topic: &&&Topic| match topic {
                Topic::Node(node) => scope.holds_node(node),
                Topic::Checks => scope == Scope::All,
                _ => true,
            };
            let missed: Vec<&Topic> = touched_since.difference(&woken).collect();
            prop_assert_eq!(missed.iter().find(heard), None);
            touched_since.clear();
            woken = BTreeSet::from([Topic::Index]);
        }
    }

    #[test]
    fn the_nodes_that_moved_are_those_of_which_something_is_otherwise(
        before in any_commands(COMMANDS), after in any_commands(10),
    ) {
        let mut registry = registry_after(&before);
        let old = registry.snapshot.clone();
        for command in after {
            let _ = registry.propose(command);
        }
        let new = &registry.snapshot;
        let names: BTreeSet<Name> = NODES.iter().map(|node| name(node)).collect();
        let differs = |node: &&Name| {
            old.find_node(node) != new.find_node(node) || old.find_writer(node) != new.find_writer(node)
        };
        let expected: BTreeSet<Name> = names.iter().filter(differs).cloned().collect();
        prop_assert_eq!(new.moved_nodes(&old), expected);
    }

    #[test]
    fn a_splice_gives_the_projection_to_the_new_scope_and_folding_goes_on_from_there(
        steps in proptest::collection::vec(any_step(), 1..COMMANDS), node in any_own_node(),
    ) {
        let mut scope = Scope::Services { names: Default::default(), node };
        let mut registry = Registry::default();
        let mut replica = Snapshot::new(scope.clone());
        for step in steps {
            match step {
                Step::Command(command) => {
                    let before = registry.snapshot.clone();
                    if let Ok((entry, touched)) = registry.propose(*command) {
                        let footprint = Footprint::before(&before, &entry.changes).after(&registry.snapshot, &touched);
                        let changes = project_changes(&scope, &entry, &footprint);
                        replica.fold(&Entry { changes, ..entry });
                    } else {
                        replica.advance(registry.snapshot.index(), registry.snapshot.at());
                    }
                }
                Step::Rescope { joined, left } => {
                    let Scope::Services { names, .. } = &mut scope else { unreachable!("made above") };
                    left.iter().for_each(|service| { names.remove(service); });
                    names.extend(joined.iter().cloned());
                    let rows = joined.iter().flat_map(|service| registry.snapshot.set_rows(service)).collect();
                    let index = registry.snapshot.index();
                    let woken = replica.splice(Splice { index, joined: joined.clone(), left, rows });
                    prop_assert!(joined.into_iter().all(|service| woken.contains(&Topic::Service(service))));
                }
            }
            prop_assert_eq!(&replica, &project_snapshot(&scope, &registry.snapshot));
        }
    }

    #[test]
    fn the_sets_that_moved_and_the_directory_are_enough_to_catch_up(
        before in any_commands(COMMANDS), after in any_commands(20), scope in any_scope(),
    ) {
        let mut registry = registry_after(&before);
        let old = project_snapshot(&scope, &registry.snapshot);
        for command in after {
            let _ = registry.propose(command);
        }
        let new = project_snapshot(&scope, &registry.snapshot);
        let mut builder = SnapshotBuilder::new(scope.clone());
        registry.snapshot.rows_for(&scope, Some(old.index())).for_each(|row| builder.push(row));
        prop_assert_eq!(builder.finish_after(old.index(), &old), Ok(new.clone()));
        // Nothing moved: no set comes at all.
        let sets = registry.snapshot.rows_for(&scope, Some(new.index())).filter(|row| matches!(row, SnapshotRow::Instance(row) if !is_own(&scope, &row.value.node)));
        prop_assert_eq!(sets.count(), 0);
        // One who does not hold what it claims is told so, and is not left with a part.
        let mut builder = SnapshotBuilder::new(scope.clone());
        registry.snapshot.rows_for(&scope, Some(new.index())).for_each(|row| builder.push(row));
        let held = new.services().filter(|slot| slot.set.is_some()).count();
        let bare = builder.finish_after(new.index(), &Snapshot::new(scope.clone()));
        prop_assert_eq!(bare.is_err(), held > 0);
    }

    #[test]
    fn rows_that_say_things_twice_leave_a_catalog_of_one_mind(
        first in any_commands(COMMANDS), second in any_commands(COMMANDS),
    ) {
        let mut builder = SnapshotBuilder::new(Scope::All);
        for commands in [first, second] {
            registry_after(&commands).snapshot.rows().for_each(|row| builder.push(row));
        }
        let built = builder.finish();
        let mut in_sets = 0;
        for slot in built.services() {
            for entry in &slot.set.as_ref().expect("all is held").instances {
                let instance = &entry.instance.value;
                let node = built.find_node(&instance.node).expect("what stands in a set stands on a node");
                prop_assert_eq!(&instance.service, &slot.name);
                prop_assert_eq!(node.find_instance(&instance.id), Some(entry));
                in_sets += 1;
            }
        }
        prop_assert_eq!(in_sets, built.instance_count());
        prop_assert_eq!(rebuilt(Scope::All, &built), built);
    }

    #[test]
    fn a_wide_read_has_all_that_was_asked_and_its_index(
        commands in any_commands(COMMANDS), node in proptest::sample::select(&NODES[..]),
        status in proptest::sample::select(vec![None, Some(Status::Passing), Some(Status::Critical)]),
    ) {
        let full = registry_after(&commands).snapshot;
        let answered = |wide: &Wide| {
            let mut builder = SnapshotBuilder::new(Scope::Services { names: Default::default(), node: None });
            wide.rows(&full).for_each(|row| builder.push(row));
            builder.finish()
        };
        let node = name(node);
        let wide = Wide::Node(node.clone());
        let answer = answered(&wide);
        prop_assert_eq!(answer.find_node(&node), full.find_node(&node));
        prop_assert_eq!(wide.index(&answer), wide.index(&full));
        prop_assert!(answer.node_count() <= 1);
        let wide = Wide::Checks(status);
        let answer = answered(&wide);
        let wanted = |check: &&Check| status.is_none_or(|status| check.status == status);
        let expected: Vec<Check> = all_checks(&full).into_iter().filter(|check| wanted(&check)).collect();
        prop_assert_eq!(all_checks(&answer), expected);
        prop_assert_eq!(wide.index(&answer), wide.index(&full));
        let wide = Wide::Instances(Vec::new());
        let answer = answered(&wide);
        prop_assert_eq!(answer.instance_count(), full.instance_count());
        prop_assert!(all_checks(&answer).is_empty());
        prop_assert_eq!(answered(&Wide::Instances(vec![("no".into(), "such".into())])).node_count(), 0);
    }

    #[test]
    fn indexes_never_go_backwards_and_unrelated_services_are_left_alone(commands in any_commands(COMMANDS)) {
        let mut registry = Registry::default();
        for command in commands {
            let before = registry.snapshot.clone();
            let Ok((entry, touched)) = registry.propose(command) else { continue };
            let after = &registry.snapshot;
            prop_assert!(after.nodes_index() >= before.nodes_index());
            prop_assert!(after.services_index() >= before.services_index());
            prop_assert!(after.checks_index() >= before.checks_index());
            prop_assert!(after.extinction_index() >= before.extinction_index());
            let related = related(&before, after, &entry);
            for service in SERVICES.map(name) {
                let (old, new) = (before.service_index(&service), after.service_index(&service));
                prop_assert!(new >= old, "{} went from {} to {}", service, old, new);
                let woken = touched.contains(&Topic::Service(service.clone()));
                let exists = !matches!(after.service(&service), ServiceLookup::Absent);
                if related.contains(&service) {
                    prop_assert!(woken && new == entry.index, "{} was not touched by {:#?}", service, entry.changes);
                } else {
                    prop_assert!(!woken && (new == old || !exists), "{} was touched by {:#?}", service, entry.changes);
                }
            }
            for node in before.nodes().map(|node| node.node.value.name.clone()) {
                prop_assert!(after.node_index(&node) >= before.node_index(&node));
            }
        }
    }

    #[test]
    fn what_is_so_already_yields_no_change(commands in any_commands(COMMANDS)) {
        let mut registry = Registry::default();
        for mut command in commands {
            // A push that a later one has overtaken is dropped, however new its content.
            let last = match &command {
                Command::Sync(sync) => registry.snapshot.find_writer(&sync.node.name).filter(|last| *last >= sync.writer),
                _ => None,
            };
            if registry.propose(command.clone()).is_err() || last.is_some() {
                continue;
            }
            if let Command::Sync(sync) = &mut command {
                sync.writer.sequence += 1;
            }
            let before = registry.snapshot.clone();
            if let Ok((entry, touched)) = registry.propose(command.clone()) {
                // The order of a node's writes is the registry's own matter: no watcher sees it, no row or index moves.
                let watched = entry.changes.iter().filter(|change| !matches!(change, Change::PutWriter { .. }));
                prop_assert_eq!(watched.count(), 0, "{:#?}", command);
                let without_order = |snapshot: &Snapshot| {
                    let rows = snapshot.rows().filter(|row| !matches!(row, SnapshotRow::Header(_) | SnapshotRow::Writer { .. }));
                    rows.collect::<Vec<_>>()
                };
                prop_assert_eq!(without_order(&registry.snapshot), without_order(&before));
                prop_assert_eq!(touched, vec![Topic::Index]);
            }
        }
    }

    #[test]
    fn counts_and_indexes_equal_a_recount(commands in any_commands(COMMANDS)) {
        let mut registry = Registry::default();
        for command in commands {
            let _ = registry.propose(command);
            assert_consistent(&registry.snapshot);
        }
    }

    #[test]
    fn a_name_ends_others_while_a_look_at_every_node_finds_one(commands in any_commands(COMMANDS)) {
        let mut registry = Registry::default();
        for command in commands {
            let _ = registry.propose(command);
            for end in NODES.iter().chain(&["b.rack", "B.RACK", "n4", "ack", "nope.rack"]) {
                let below = format!(".{}", end.to_lowercase());
                let expected = registry.snapshot.nodes().any(|node| node.node.value.name.as_key().ends_with(&below));
                prop_assert_eq!(registry.snapshot.has_nodes_below(&name(end)), expected, "{}", end);
            }
        }
    }

    #[test]
    fn the_checksum_that_is_kept_is_that_of_the_rows(
        commands in any_commands(COMMANDS), entries in proptest::collection::vec(proptest::collection::vec(any_change(), 0..6), 1..20),
    ) {
        let mut log = registry_after(&commands).log;
        let after = log.len() as u64 + 1;
        // Then such as no command makes.
        log.extend((after..).zip(entries).map(|(index, changes)| Entry { index, at: Timestamp(index), changes }));
        let (mut kept, mut seen) = (Snapshot::default(), HashMap::new());
        kept.keep_checksum();
        for entry in &log {
            kept.fold(entry);
            let mut counted = kept.clone();
            counted.keep_checksum();
            prop_assert_eq!(kept.checksum(), counted.checksum(), "{:#?}", entry.changes);
            // Others have another.
            let rows: Vec<_> = kept.rows().filter_map(hashed).collect();
            let known = seen.entry(kept.checksum()).or_insert_with(|| rows.clone());
            prop_assert_eq!(&*known, &rows);
        }
    }

    #[test]
    fn deciding_is_total_and_changes_nothing(
        before in any_commands(COMMANDS), commands in proptest::collection::vec(any_command(), 1..20),
    ) {
        let registry = registry_after(&before);
        for command in commands {
            let _ = registry.clone().propose(command);
        }
        prop_assert_eq!(rows(&registry.snapshot), rows(&registry_after(&before).snapshot));
    }

    #[test]
    fn folding_is_total_also_for_changes_that_no_command_makes(
        entries in proptest::collection::vec(proptest::collection::vec(any_change(), 0..6), 1..20), scope in any_scope(),
    ) {
        let mut snapshot = Snapshot::new(scope);
        for (index, changes) in (1..).zip(entries) {
            let entry = Entry { index, at: Timestamp(index), changes };
            snapshot.fold(&entry);
        }
        prop_assert_eq!(snapshot.index() > 0, true);
        let held: usize = snapshot.nodes().map(|node| node.instances.len()).sum();
        prop_assert_eq!(snapshot.instance_count(), held);
    }
}
