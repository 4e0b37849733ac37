//! Whether the members hold the same catalog. Equal logs give equal catalogs; where they do not (a defect, a damaged disk
//! or memory), answers depend on whom one asks, and nothing else would ever say so. Members therefore compare the checksum
//! of their rows at one index, all the time.

pub(crate) mod task;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use muster_catalog::Checksum;

/// What a member knows of its catalog and of the others'.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Agreement {
    /// Why this member serves nothing; `None` where it does.
    pub own: Option<Disagreement>,
    /// Why other members do not, by their ids, as they say themselves.
    pub others: BTreeMap<u64, String>,
    /// The last log index at which a majority of voters was found to have this member's catalog; 0 before the first.
    pub confirmed: u64,
}

/// Why a member serves nothing though it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disagreement {
    /// Whether a majority of voters agrees on another catalog. It stays so, also over a restart: what the member has
    /// answered may be wrong, and so may all be that it writes from its rows. Otherwise nobody knows who is right.
    pub decided: bool,
    /// What was found, and what to do.
    pub why: Arc<str>,
}

/// What the checksums at one index say of the own one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// A majority of voters has it.
    Confirmed,
    /// None that was heard has another one, and too few were heard.
    Unheard,
    /// Somebody has another one, and there is no majority for any.
    Undecided,
    /// A majority of voters, this many, has another one.
    Differs(usize),
}

/// Judges the own checksum by those that voters gave for the same index. `votes` says whether this member is one of the
/// `voters`; `given` holds those of the others that were heard.
fn judge(own: Checksum, votes: bool, voters: usize, given: &[Checksum]) -> Verdict {
    let mut counts: HashMap<Checksum, usize> = HashMap::new();
    for sum in given.iter().copied().chain(votes.then_some(own)) {
        *counts.entry(sum).or_default() += 1;
    }
    let majority = |count: usize| count > voters / 2;
    let others = counts.iter().filter(|(sum, _)| **sum != own).map(|(_, count)| *count).max();
    match others {
        Some(count) if majority(count) => Verdict::Differs(count),
        _ if counts.get(&own).is_some_and(|count| majority(*count)) => Verdict::Confirmed,
        Some(_) => Verdict::Undecided,
        None => Verdict::Unheard,
    }
}

/// What follows from a verdict at an index: `None` where the member serves.
fn follow(before: Option<Disagreement>, verdict: Verdict, index: u64, voters: usize) -> Option<Disagreement> {
    let decided = before.as_ref().is_some_and(|before| before.decided);
    match verdict {
        _ if decided => before,
        Verdict::Confirmed => None,
        Verdict::Unheard => before,
        Verdict::Undecided if before.is_some() => before,
        Verdict::Undecided => Some(Disagreement {
            decided: false,
            why: format!(
                "at log index {index} the members' catalogs differ, and no majority of the {voters} voters has the same: \
                 this member serves nothing until a majority has what it has. Start the voters that are down; where all \
                 are up, see \"Catalogs that differ\" in docs/operations.md"
            )
            .into(),
        }),
        Verdict::Differs(count) => Some(Disagreement {
            decided: true,
            why: format!(
                "at log index {index} this member's catalog differs from the one that {count} of {voters} voters have: it \
                 serves nothing any more. Stop it, empty the folder registry under its node.data_dir, start it: it joins as a \
                 new member"
            )
            .into(),
        }),
    }
}

#[cfg(test)]
mod verdicts {
    use super::*;

    #[test]
    fn a_majority_decides_and_without_one_nobody_is_right() {
        let sums = |values: &[u128]| values.iter().map(|value| Checksum(*value)).collect::<Vec<_>>();
        for (votes, voters, given, expected) in [
            (true, 1, &[][..], Verdict::Confirmed),
            (true, 3, &[1, 1], Verdict::Confirmed),
            // One differs, and it is not this one.
            (true, 3, &[1, 2], Verdict::Confirmed),
            (true, 3, &[2, 2], Verdict::Differs(2)),
            (true, 3, &[2, 3], Verdict::Undecided),
            (true, 3, &[2], Verdict::Undecided),
            (true, 3, &[1], Verdict::Confirmed),
            (true, 3, &[], Verdict::Unheard),
            (true, 2, &[2], Verdict::Undecided),
            (true, 4, &[2, 2], Verdict::Undecided),
            (true, 5, &[2, 2, 1], Verdict::Undecided),
            (true, 5, &[2, 2, 2], Verdict::Differs(3)),
            (true, 5, &[1, 1, 2, 2], Verdict::Confirmed),
            (true, 5, &[1, 2, 2, 3], Verdict::Undecided),
            // A learner is judged by the voters.
            (false, 3, &[1, 1], Verdict::Confirmed),
            (false, 3, &[2, 2], Verdict::Differs(2)),
            (false, 3, &[1, 2], Verdict::Undecided),
            (false, 3, &[1], Verdict::Unheard),
            (false, 1, &[2], Verdict::Differs(1)),
        ] {
            assert_eq!(judge(Checksum(1), votes, voters, &sums(given)), expected, "{votes} {voters} {given:?}");
        }
    }

    #[test]
    fn what_was_decided_stays_and_what_was_not_ends_with_a_majority_alone() {
        let after = |before: &Option<Disagreement>, verdict| follow(before.clone(), verdict, 7, 3);
        for calm in [Verdict::Confirmed, Verdict::Unheard] {
            assert_eq!(after(&None, calm), None);
        }
        let undecided = after(&None, Verdict::Undecided);
        assert!(undecided.as_ref().is_some_and(|found| !found.decided && found.why.contains("index 7")));
        assert_eq!(after(&undecided, Verdict::Unheard), undecided);
        assert_eq!(after(&undecided, Verdict::Confirmed), None);
        let decided = after(&undecided, Verdict::Differs(2));
        assert!(decided.as_ref().is_some_and(|found| found.decided && found.why.contains("2 of 3 voters")));
        for later in [Verdict::Confirmed, Verdict::Unheard, Verdict::Undecided, Verdict::Differs(2)] {
            assert_eq!(after(&decided, later), decided);
        }
    }
}
