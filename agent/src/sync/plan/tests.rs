use muster_catalog::{CheckKind, Name, Weights};

use super::*;

fn instance(id: &str, tag: &str) -> Arc<Instance> {
    Arc::new(Instance {
        node: Name::lookup("n1"),
        id: id.into(),
        service: Name::lookup("web"),
        tags: vec![tag.into()],
        address: None,
        tagged_addresses: BTreeMap::new(),
        ports: Vec::new(),
        meta: BTreeMap::new(),
        weights: Weights::default(),
        locality: None,
        draining: false,
        maintenance: None,
        enable_tag_override: false,
        proxy: None,
        traffic: None,
        origin: Origin::Agent,
    })
}

fn check(id: &str, status: Status) -> Arc<Check> {
    Arc::new(Check {
        node: Name::lookup("n1"),
        id: id.into(),
        instance: Some("web".into()),
        name: id.into(),
        status,
        notes: "".into(),
        output: "".into(),
        kind: CheckKind::default(),
        origin: Origin::Agent,
    })
}

fn rows(instances: Vec<Arc<Instance>>, checks: Vec<Arc<Check>>) -> LocalRows {
    LocalRows { instances, checks, sources: Sources::Whole, ..LocalRows::default() }
}

#[test]
fn nothing_acknowledged_means_everything_and_completely() {
    let push = plan(None, &rows(vec![instance("web", "a")], vec![check("c", Status::Passing)])).unwrap();
    assert!(push.complete);
    assert_eq!((push.instances.len(), push.checks.len()), (1, 1));
    assert!(plan(None, &rows(vec![], vec![])).is_some(), "an empty node is a node too");
}

#[test]
fn only_what_changed_travels_and_what_is_gone_is_named() {
    let old = rows(
        vec![instance("a", "1"), instance("b", "1")],
        vec![check("c", Status::Passing), check("d", Status::Passing)],
    );
    let new = rows(vec![instance("a", "1"), instance("e", "1")], vec![check("c", Status::Critical)]);
    let push = plan(Some(&old), &new).unwrap();
    assert!(!push.complete);
    assert_eq!(push.instances, vec![(*instance("e", "1")).clone()]);
    assert_eq!(push.checks, vec![(*check("c", Status::Critical)).clone()]);
    assert_eq!((push.removed_instances, push.removed_checks), (vec!["b".into()], vec!["d".into()]));
    assert_eq!(plan(Some(&new), &new), None);
}

#[test]
fn what_the_catalog_cannot_hold_is_not_pushed_and_pushed_once_it_can() {
    let plain = instance("web", "1");
    let newer = Arc::new(Instance { traffic: Some(Arc::default()), ..(*plain).clone() });
    let full = Arc::new(rows(vec![instance("a", "1"), newer.clone()], vec![check("c", Status::Passing)]));
    let stripped = strip(1, &full);
    assert_eq!(stripped.instances[1], plain);
    assert!(Arc::ptr_eq(&stripped.instances[0], &full.instances[0]), "comparing stays cheap");
    assert!(Arc::ptr_eq(&strip(2, &full), &full));
    // The older registry is not fought with, and hears the rest when its format rises.
    assert_eq!(plan(Some(&stripped), &strip(1, &full)), None);
    let push = plan(Some(&stripped), &full).unwrap();
    assert_eq!((push.complete, push.instances), (false, vec![(*newer).clone()]));
}
