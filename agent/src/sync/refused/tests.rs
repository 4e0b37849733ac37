use muster_catalog::Status;

use super::{
    super::samples::{check, instance},
    *,
};

fn push(instances: &[&str], checks: &[(&str, &str)]) -> Push {
    let checks = checks.iter().map(|(id, of)| check(id, Some(of), Status::Passing, 1)).collect();
    Push { instances: instances.iter().map(|id| instance(id)).collect(), checks, ..Push::default() }
}

fn ids(push: &Push) -> (Vec<&str>, Vec<&str>) {
    let instances = push.instances.iter().map(|row| &*row.id).collect();
    (instances, push.checks.iter().map(|row| &*row.id).collect())
}

fn refused() -> Refused {
    let mut refused = Refused::default();
    refused.add(push(&["a"], &[("a1", "a"), ("a2", "a")]), "the service is full");
    refused.add(push(&[], &[("b1", "b")]), "too long");
    refused
}

#[test]
fn what_is_as_it_was_is_held_back_and_what_changed_is_tried() {
    // A check is new, one is gone, and one has changed since.
    let mut next = push(&["a", "c"], &[("a1", "a"), ("a3", "a"), ("b1", "b"), ("c1", "c")]);
    next.checks[2].status = Status::Critical;
    let held = refused().hold_back(&mut next, |_| false);
    assert_eq!(ids(&next), (vec!["c"], vec!["b1", "c1"]));
    assert_eq!(held.len(), 3);
    assert_eq!(held.reasons().collect::<Vec<_>>(), [("instance a of service web".to_owned(), "the service is full")]);
    // The checks of one that the registry has in an earlier state say how it is.
    let mut next = push(&["a"], &[("a3", "a"), ("b1", "b")]);
    let held = refused().hold_back(&mut next, |id| &**id == "a");
    assert_eq!(ids(&next), (vec![], vec!["a3"]));
    let reasons: Vec<_> = held.reasons().map(|(row, _)| row).collect();
    assert_eq!(reasons, ["instance a of service web", "check b1"]);
}

#[test]
fn an_instance_that_is_tried_again_comes_with_all_its_checks() {
    let mut next = push(&["a"], &[("a1", "a"), ("a2", "a"), ("b1", "b")]);
    next.instances[0].tags.clear();
    next.instances[0].draining = true;
    let held = refused().hold_back(&mut next, |_| false);
    assert_eq!(ids(&next), (vec!["a"], vec!["a1", "a2"]));
    assert_eq!(held.len(), 1);
}

#[test]
fn the_registry_keeps_what_it_had_of_refused_rows() {
    let row = |id: &str, draining| Arc::new(Instance { draining, ..instance(id) });
    let rows = |rows: &[(&str, bool)]| LocalRows {
        instances: rows.iter().map(|(id, draining)| row(id, *draining)).collect(),
        ..LocalRows::default()
    };
    let before = rows(&[("a", false), ("b", false)]);
    let now = Arc::new(rows(&[("a", true), ("b", true), ("c", true)]));
    let settled = refused().settle(Some(&before), &now);
    assert_eq!(settled.instances, rows(&[("a", false), ("b", true), ("c", true)]).instances);
    assert_eq!(refused().settle(None, &now).instances, rows(&[("b", true), ("c", true)]).instances);
    assert!(Arc::ptr_eq(&Refused::default().settle(Some(&before), &now), &now), "comparing stays cheap");
}

#[test]
fn changes_are_news_and_a_repetition_is_none() {
    assert!(refused().log_changes(&Refused::default()));
    assert!(!refused().log_changes(&refused()));
    assert!(Refused::default().log_changes(&refused()));
}
