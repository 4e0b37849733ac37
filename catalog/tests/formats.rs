//! What a catalog of a lower format may not hold does not get in, whoever sends it; and what holds for a service whose
//! instances disagree on its traffic.
#![allow(clippy::unwrap_used, reason = "a helper of tests may fail as they do")]

mod support;

use std::sync::Arc;

use muster_catalog::{
    Command, FIRST_FORMAT, FORMAT, Instance, NodeSync, Registration, ServiceLookup, Topic, strip_command,
};
use proptest::prelude::*;
use support::{Registry, any_commands, instance, name, node, proxy, sync, traffic, writer};

fn newer() -> Instance {
    Instance {
        proxy: Some(Arc::new(proxy("web", &["db"]))),
        traffic: Some(Arc::new(traffic(40))),
        ..instance("n1", "i1", "web")
    }
}

fn push(sequence: u64) -> Command {
    let instances = vec![newer()];
    Command::Sync(NodeSync { instances, ..sync(node("n1", "agent-one"), writer(1, sequence)) })
}

fn row(registry: &Registry) -> Instance {
    let entry = registry.snapshot.find_node(&name("n1")).unwrap().find_instance("i1").unwrap();
    (*entry.instance.value).clone()
}

#[test]
fn a_catalog_begins_with_the_first_format_and_takes_newer_fields_once_it_is_raised() {
    let mut registry = Registry::default();
    assert_eq!(registry.snapshot.format(), FIRST_FORMAT);
    registry.propose(push(1)).unwrap();
    assert_eq!(row(&registry), instance("n1", "i1", "web"));
    let (_, topics) = registry.propose(Command::SetFormat(FORMAT)).unwrap();
    assert!(topics.contains(&Topic::Format), "writers have to hear of it: {topics:?}");
    let (entry, _) = registry.propose(push(2)).unwrap();
    assert!(!entry.changes.is_empty());
    assert_eq!(row(&registry), newer());
    let (entry, _) = registry.propose(push(3)).unwrap();
    assert_eq!(entry.changes, [], "an identical push changes nothing");
}

#[test]
fn a_command_is_stripped_of_what_its_catalog_cannot_hold_and_of_nothing_else() {
    let registration = Registration { name: name("n1"), node: None, instances: vec![newer()], checks: Vec::new() };
    for command in [push(1), Command::Register(registration)] {
        let mut stripped = command.clone();
        assert!(!strip_command(FORMAT, &mut stripped));
        assert_eq!(stripped, command);
        assert!(strip_command(FIRST_FORMAT, &mut stripped));
        let (Command::Sync(NodeSync { instances, .. }) | Command::Register(Registration { instances, .. })) = &stripped
        else {
            panic!("another command: {stripped:?}")
        };
        assert_eq!(*instances, [instance("n1", "i1", "web")]);
        assert!(!strip_command(FIRST_FORMAT, &mut stripped), "twice is once");
    }
}

#[test]
fn most_instances_decide_how_their_service_is_called() {
    let mut registry = Registry::default();
    registry.propose(Command::SetFormat(FORMAT)).unwrap();
    let agreed = |settings: &[Option<u8>]| {
        let mut registry = registry.clone();
        let instances = settings.iter().enumerate().map(|(at, percent)| Instance {
            traffic: percent.map(|percent| Arc::new(traffic(percent))),
            ..instance("n1", &format!("i{at}"), "web")
        });
        let instances = instances.collect();
        registry.propose(Command::Sync(NodeSync { instances, ..sync(node("n1", "a"), writer(1, 1)) })).unwrap();
        let ServiceLookup::Held(_, set) = registry.snapshot.service(&name("web")) else { panic!("no service") };
        let agreed = set.agreed_traffic();
        (agreed.traffic.panic_threshold, agreed.dissenters)
    };
    assert_eq!(agreed(&[None, None]), (None, 0));
    assert_eq!(agreed(&[None, Some(1), None]), (Some(1), 0), "those that carry none have no say");
    assert_eq!(agreed(&[Some(1), Some(2), Some(1)]), (Some(1), 1));
    assert_eq!(agreed(&[Some(2), Some(1)]), (Some(2), 1));
    assert_eq!(agreed(&[Some(1), Some(2)]), (Some(2), 1), "the order of instances has no say");
}

proptest! {
    /// An older member does not know the newer fields, and passes over them: it has to come to the same catalog.
    #[test]
    fn below_its_format_newer_fields_change_nothing(commands in any_commands(40)) {
        let (mut newer, mut older) = (Registry::default(), Registry::default());
        for command in commands.into_iter().filter(|command| !matches!(command, Command::SetFormat(_))) {
            let mut without = command.clone();
            strip_command(FIRST_FORMAT, &mut without);
            prop_assert_eq!(newer.propose(command), older.propose(without));
            prop_assert_eq!(&newer.snapshot, &older.snapshot);
        }
    }
}
