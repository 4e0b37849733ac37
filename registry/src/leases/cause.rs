//! What the held nodes have in common that the others have not: where an operator looks first. Pure.

use std::collections::BTreeMap;

/// A trait is named when so many of the held nodes have it, in percent: one odd node among many must not hide it, …
const HELD_PERCENT: usize = 90;
/// … and at most so many of the others: what nearly all nodes have explains nothing.
const OTHERS_PERCENT: usize = 50;

/// What is known of a node, as (kind, value): `("member", "registry-1")`.
pub(crate) type Traits = Vec<(&'static str, String)>;

/// The traits that tell the held from the others, each with how many of the held and of the others have it.
pub(crate) fn find_shared(held: &[Traits], others: &[Traits]) -> Vec<Shared> {
    let count = |all: &[Traits]| {
        let mut counts: BTreeMap<(&'static str, String), usize> = BTreeMap::new();
        for one in all.iter().flatten().filter(|(_, value)| !value.is_empty()) {
            *counts.entry(one.clone()).or_default() += 1;
        }
        counts
    };
    let other_counts = count(others);
    let shared = count(held).into_iter().filter_map(|((kind, value), held_count)| {
        let others_count = other_counts.get(&(kind, value.clone())).copied().unwrap_or(0);
        let telling = held_count * 100 >= held.len() * HELD_PERCENT
            && others_count * 100 <= others.len() * OTHERS_PERCENT
            && !others.is_empty();
        telling.then_some(Shared { kind, value, held: held_count, others: others_count })
    });
    shared.collect()
}

/// A trait that most of the held nodes have, and few of the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shared {
    pub(crate) kind: &'static str,
    pub(crate) value: String,
    pub(crate) held: usize,
    pub(crate) others: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(groups: &[(usize, &str, &str)]) -> Vec<Traits> {
        let of = |(count, member, zone): &(usize, &str, &str)| {
            vec![vec![("member", (*member).to_owned()), ("zone", (*zone).to_owned())]; *count]
        };
        groups.iter().flat_map(of).collect()
    }

    #[test]
    fn what_the_held_share_and_the_others_do_not_is_named() {
        // (held, others, what is named)
        type Groups = &'static [(usize, &'static str, &'static str)];
        let table: [(Groups, Groups, &[&str]); 7] = [
            (&[(12, "m1", "a"), (12, "m2", "a")], &[(20, "m1", "b"), (20, "m2", "b")], &["zone=a"]),
            (&[(12, "m1", "a"), (12, "m1", "b")], &[(20, "m2", "a"), (20, "m3", "b")], &["member=m1"]),
            // One odd node does not hide it.
            (&[(23, "m1", "a"), (1, "m2", "b")], &[(40, "m2", "b")], &["member=m1", "zone=a"]),
            (&[(20, "m1", "a"), (4, "m2", "b")], &[(40, "m2", "b")], &[]),
            // All have it: it explains nothing.
            (&[(24, "m1", "a")], &[(40, "m1", "b")], &["zone=a"]),
            // Nobody else is left to compare with, and an unknown place is none.
            (&[(24, "m1", "a")], &[], &[]),
            (&[(24, "m1", "")], &[(40, "m2", "")], &["member=m1"]),
        ];
        for (held, others, expected) in table {
            let shared = find_shared(&nodes(held), &nodes(others));
            let named: Vec<String> = shared.iter().map(|one| format!("{}={}", one.kind, one.value)).collect();
            assert_eq!(named, expected, "{held:?} of {others:?}");
        }
    }
}
