use muster_catalog::{Change, DirectoryRow, Entry, Timestamp};

use super::*;

const HOUR: Duration = Duration::from_secs(3_600);

fn name(service: &str) -> Name {
    Name::lookup(service)
}

fn names(services: &[&str]) -> Vec<Name> {
    services.iter().map(|service| name(service)).collect()
}

/// A replica of a catalog with these services, which holds the first of them.
fn replica(services: &[&str], held: usize) -> Snapshot {
    let scope = Scope::Services { names: names(&services[..held]).into_iter().collect(), node: None };
    let mut snapshot = Snapshot::new(scope);
    let rows = services.iter().map(|service| DirectoryRow { service: name(service), index: 1, tags: Vec::new() });
    snapshot.fold(&Entry { index: 1, at: Timestamp(1), changes: rows.map(Change::PutDirectory).collect() });
    snapshot
}

fn nobody(_: &Name) -> bool {
    false
}

#[test]
fn only_what_the_directory_names_and_the_scope_does_not_joins_and_only_once() {
    let begun = Instant::now();
    let (uses, mut growth) = (Uses::new(begun), Growth::default());
    let held = replica(&["web", "db"], 0);
    for service in ["web", "WEB", "nothing"] {
        growth.want(name(service));
    }
    let plan = growth.plan(10, &held, &uses, begun, nobody);
    assert_eq!(plan, Rescope { join: names(&["web"]), ..Rescope::default() });
    growth.want(name("web"));
    assert_eq!(growth.plan(10, &held, &uses, begun, nobody), Rescope::default(), "it is under way");
    growth.connection_lost();
    assert!(growth.is_wanted());
    let again = growth.plan(10, &held, &uses, begun, nobody);
    assert_eq!(again.join, names(&["web"]), "on the next stream it is asked for again");
    growth.spliced(&names(&["web"]), &[]);
    assert!(!growth.is_wanted());
}

#[test]
fn ten_thousand_random_names_leave_nothing_behind() {
    let begun = Instant::now();
    let (uses, mut growth, held) = (Uses::new(begun), Growth::default(), replica(&["web"], 1));
    uses.follow(held.scope(), begun);
    for number in 0..10_000 {
        let random = name(&format!("r{number}"));
        uses.used(&random, begun);
        growth.want(random);
    }
    assert_eq!(growth.plan(10, &held, &uses, begun, nobody), Rescope::default());
    assert!(growth.wanted.is_empty() && growth.joining.is_empty());
    assert_eq!(uses.last.read().unwrap().len(), 1);
}

#[test]
fn what_nobody_used_for_the_time_leaves_and_what_is_waited_on_stays() {
    let begun = Instant::now();
    let (uses, mut growth) = (Uses::new(begun), Growth::default());
    let held = replica(&["web", "db", "cache"], 3);
    uses.follow(held.scope(), begun);
    let bounds = (10, HOUR);
    assert_eq!(growth.evict(bounds, &held, &uses, begun + HOUR - Duration::from_secs(1), nobody), []);
    uses.used(&name("DB"), begun + HOUR / 2);
    let waited = |service: &Name| *service == name("cache");
    assert_eq!(growth.evict(bounds, &held, &uses, begun + HOUR, waited), names(&["web"]));
    assert_eq!(growth.evict(bounds, &held, &uses, begun + HOUR, waited), [], "it is leaving already");
    growth.spliced(&[], &names(&["web"]));
    assert_eq!(growth.evict(bounds, &held, &uses, begun + HOUR, nobody), names(&["cache", "web"]), "those that stayed");
    // What joins counts as used, what stays keeps its time.
    let wider = replica(&["web", "db", "cache", "new"], 4);
    uses.follow(wider.scope(), begun + HOUR);
    assert_eq!(uses.unused(HOUR / 2, begun + HOUR), names(&["cache", "web", "db"]));
}

#[test]
fn a_full_scope_makes_room_from_what_was_not_used_lately_and_refuses_the_rest() {
    let begun = Instant::now();
    let (uses, mut growth) = (Uses::new(begun), Growth::default());
    let held = replica(&["web", "db", "one", "two"], 2);
    uses.follow(held.scope(), begun);
    growth.want(name("one"));
    let at_once = growth.plan(2, &held, &uses, begun, nobody);
    assert_eq!(at_once, Rescope { refused: names(&["one"]), ..Rescope::default() }, "both were used just now");
    let later = begun + MIN_UNUSED;
    uses.used(&name("web"), later);
    growth.want(name("one"));
    growth.want(name("two"));
    let plan = growth.plan(2, &held, &uses, later, nobody);
    let expected = Rescope { join: names(&["one"]), leave: names(&["db"]), refused: names(&["two"]) };
    assert_eq!(plan, expected);
    // A bound that was lowered is reached by letting go of what was unused for longest.
    let (uses, mut growth) = (Uses::new(begun), Growth::default());
    let held = replica(&["web", "db", "one"], 3);
    uses.follow(held.scope(), begun);
    for service in ["web", "one"] {
        uses.used(&name(service), later);
    }
    assert_eq!(growth.evict((2, HOUR), &held, &uses, later, nobody), names(&["db"]));
}

#[test]
fn all_who_ask_for_a_service_share_one_wait_and_waits_are_few() {
    let (begun, holds) = (Instant::now(), Holds::default());
    let (end, first) = holds.join(&name("web"), begun).unwrap();
    assert!(first && end == begun + HOLD_PATIENCE);
    assert_eq!(holds.join(&name("web"), begun + HOLD_PATIENCE / 2), Some((end, false)));
    assert_eq!(holds.join(&name("web"), end), Some((end + HOLD_PATIENCE, true)), "patience ran out: a new wait");
    for number in 1..MAX_HOLDS {
        assert!(holds.join(&name(&format!("s{number}")), end).is_some());
    }
    assert_eq!(holds.join(&name("other"), end), None);
    assert!(holds.join(&name("other"), end + HOLD_PATIENCE).is_some(), "those that are over make room");
    assert!(holds.contains(&name("other")));
    holds.end(&names(&["other"]));
    assert!(!holds.contains(&name("other")));
}

#[test]
fn a_member_that_cannot_splice_is_asked_for_what_is_wanted_within_the_bound() {
    let begun = Instant::now();
    let (uses, mut growth, held) = (Uses::new(begun), Growth::default(), replica(&["web", "db", "one"], 1));
    growth.want(name("db"));
    let under_way = growth.plan(10, &held, &uses, begun, nobody);
    assert_eq!(under_way.join, names(&["db"]));
    growth.want(name("one"));
    let widened = growth.widened(held.scope(), 2);
    assert_eq!(widened, Scope::Services { names: names(&["web", "db"]).into_iter().collect(), node: None });
    assert!(!growth.is_wanted(), "for what had no room its reader asks again");
}

#[test]
fn a_narrower_width_begins_with_what_fits_and_a_wider_one_asks_for_all() {
    let width = Width::Scope { services: 2, idle: HOUR };
    let own = name("n1");
    let mut small = Snapshot::default();
    let row = |service: &str| Change::PutDirectory(DirectoryRow { service: name(service), index: 1, tags: Vec::new() });
    small.fold(&Entry { index: 1, at: Timestamp(1), changes: vec![row("web"), row("db")] });
    let both = Scope::Services { names: names(&["db", "web"]).into_iter().collect(), node: Some(own.clone()) };
    assert_eq!(width.scope(&small, &own), both);
    small.fold(&Entry { index: 2, at: Timestamp(1), changes: vec![row("cache")] });
    let none = Scope::Services { names: Default::default(), node: Some(own.clone()) };
    assert_eq!(width.scope(&small, &own), none);
    assert!(width.scope(&replica(&["web"], 1), &own).covers(&none));
    assert_eq!(Width::All.scope(&replica(&["web"], 1), &own), Scope::All);
}
