use proptest::{collection::vec, option, prelude::*};

use super::*;

fn write(value: &str) -> Kind {
    Kind::Write(value.to_owned())
}

fn read(value: &str) -> Kind {
    Kind::Read((!value.is_empty()).then(|| value.to_owned()))
}

/// What was asked, when, and when the answer came (0 for none).
type Call = (Kind, u64, u64);

/// Calls of one register, each by a client of its own.
fn history(operations: &[Call]) -> History {
    let operations = operations.iter().enumerate().map(|(client, (kind, invoked, returned))| Operation {
        client,
        key: "web".to_owned(),
        kind: kind.clone(),
        invoked: *invoked,
        returned: (*returned > 0).then_some(*returned),
    });
    History { operations: operations.collect() }
}

#[test]
fn histories_are_judged_rightly() {
    let table: &[(&str, bool, &[Call])] = &[
        ("nothing happened", true, &[]),
        ("a register starts empty", true, &[(read(""), 1, 2)]),
        ("one after the other", true, &[(write("a"), 1, 2), (read("a"), 3, 4), (Kind::Delete, 5, 6), (read(""), 7, 8)]),
        ("a stale read", false, &[(write("a"), 1, 2), (write("b"), 3, 4), (read("a"), 5, 6)]),
        ("an acknowledged write is lost", false, &[(write("a"), 1, 2), (read(""), 3, 4)]),
        ("a value from nowhere", false, &[(write("a"), 1, 2), (read("z"), 3, 4)]),
        ("a concurrent write is not yet seen", true, &[(write("a"), 1, 9), (read(""), 2, 3), (read("a"), 4, 5)]),
        ("a concurrent write is seen, then unseen", false, &[(write("a"), 1, 9), (read("a"), 2, 3), (read(""), 4, 5)]),
        ("an unknown outcome that happened, late", true, &[(write("a"), 1, 0), (read(""), 2, 3), (read("a"), 8, 9)]),
        ("an unknown outcome that never happened", true, &[(write("a"), 1, 0), (write("b"), 2, 3), (read("b"), 8, 9)]),
        (
            "an unknown outcome happens once",
            false,
            &[(write("a"), 1, 0), (read("a"), 2, 3), (write("b"), 4, 5), (read("b"), 6, 7), (read("a"), 8, 9)],
        ),
        ("an unknown outcome before it was asked", false, &[(read("a"), 1, 2), (write("a"), 3, 0)]),
        ("a deleted value comes back", false, &[(write("a"), 1, 2), (Kind::Delete, 3, 4), (read("a"), 5, 6)]),
        ("touching in time is concurrent", true, &[(write("a"), 1, 3), (read(""), 3, 4)]),
        ("an unanswered read says nothing", true, &[(write("a"), 1, 2), (read(""), 3, 0)]),
    ];
    for (case, linearizable, operations) in table {
        let result = check(&history(operations));
        assert_eq!(result.is_ok(), *linearizable, "{case}: {result:?}");
    }
}

#[test]
fn a_violation_is_readable() {
    let stale = history(&[(write("a"), 1, 2), (write("b"), 3, 4), (read("b"), 5, 6), (read("a"), 7, 8)]);
    let expected = "register \"web\" is not linearizable: 3 of 4 answers are explained by
    [     1 ..      2] client 0: write \"a\"
    [     3 ..      4] client 1: write \"b\"
    [     5 ..      6] client 2: read \"b\"
after which it holds \"b\", and none of these fits:
    [     7 ..      8] client 3: read \"a\"
";
    assert_eq!(check(&stale).unwrap_err().to_string(), expected);
    let backwards = history(&[(write("a"), 5, 2)]);
    assert!(check(&backwards).unwrap_err().to_string().contains("malformed"));
}

#[test]
fn registers_are_independent() {
    let mut mixed = history(&[(write("a"), 1, 2), (read(""), 3, 4)]);
    assert!(check(&mixed).is_err());
    mixed.operations[1].key = "api".to_owned();
    assert_eq!(check(&mixed), Ok(()));
}

#[test]
fn long_histories_with_lost_answers_are_decided() {
    // 20 clients at once, every tenth answer lost, 4,000 operations on one register.
    let mut operations = Vec::new();
    let mut held = String::new();
    for round in 0..200_u64 {
        for client in 0..20 {
            let (invoked, returned) = (round * 100 + client, round * 100 + 50 + client);
            let kind = if client % 4 == 0 { write(&format!("{round}.{client}")) } else { read(&held) };
            if let Kind::Write(value) = &kind {
                held.clone_from(value);
            }
            operations.push((kind, invoked, if (round + client) % 10 == 0 { 0 } else { returned }));
        }
    }
    assert_eq!(check(&history(&operations)), Ok(()));
}

/// Whether any order at all explains the answers: by trying every one.
fn explained_by_some_order(left: &[Operation], held: Option<&str>) -> bool {
    if left.iter().all(|operation| operation.returned.is_none()) {
        return true;
    }
    left.iter().enumerate().any(|(at, operation)| {
        if left.iter().any(|other| other.returned.is_some_and(|returned| returned < operation.invoked)) {
            return false;
        }
        let mut rest = left.to_vec();
        rest.remove(at);
        match &operation.kind {
            Kind::Write(value) => explained_by_some_order(&rest, Some(value)),
            Kind::Delete => explained_by_some_order(&rest, None),
            Kind::Read(value) => {
                (operation.returned.is_none() || value.as_deref() == held) && explained_by_some_order(&rest, held)
            }
        }
    })
}

fn any_operation() -> impl Strategy<Value = Call> {
    let value = || proptest::sample::select(&["a", "b"][..]);
    let kind = prop_oneof![
        3 => value().prop_map(write),
        4 => option::of(value()).prop_map(|value| read(value.unwrap_or_default())),
        1 => Just(Kind::Delete),
    ];
    (kind, 1..20_u64, 0..12_u64, 0..8_u8).prop_map(|(kind, invoked, takes, lost)| {
        let returned = if lost == 0 { 0 } else { invoked + takes };
        (kind, invoked, returned)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_search_agrees_with_trying_every_order(operations in vec(any_operation(), 0..7)) {
        let history = history(&operations);
        prop_assert_eq!(check(&history).is_ok(), explained_by_some_order(&history.operations, None));
    }
}
