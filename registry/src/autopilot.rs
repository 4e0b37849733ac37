//! Autopilot: what the leader does about its members by itself. Pure; time is an argument.
//!
//! It gives new members their vote when they have been healthy for a while, takes dead ones out where that costs no
//! quorum, and completes a change that an earlier leader left half done. Like leases, what it knows lives in the
//! leader's memory alone: an election starts it anew, with full terms.

pub(crate) mod task;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::raft::{Contacts, Member};

/// A change of members that takes longer than this has lost its leader in between.
const HALF_DONE: Duration = Duration::from_secs(5);
/// Voters at most; a learner beyond them waits.
const MOST_VOTERS: usize = 7;

/// What autopilot goes by.
#[derive(Debug, Clone)]
pub struct AutopilotConfig {
    /// A member that has not answered the leader for longer is not healthy. Default 1 s: five heartbeats.
    pub last_contact: Duration,
    /// A member that lacks more entries than this is not healthy. Default 1,000.
    pub trailing_entries: u64,
    /// How long a new member has to be healthy before it gets its vote. Default 10 s.
    pub stable_after: Duration,
    /// Whether dead members are taken out. Default yes.
    pub remove_dead: bool,
    /// A member that has not answered for so long is dead. Default 5 min: longer than a host takes to start.
    pub dead_after: Duration,
    /// Dead voters are taken out only while so many voters are left. Default 3: of a registry of three nobody goes
    /// before a fourth has come.
    pub min_voters: usize,
}

impl Default for AutopilotConfig {
    fn default() -> Self {
        Self {
            last_contact: Duration::from_secs(1),
            trailing_entries: 1_000,
            stable_after: Duration::from_secs(10),
            remove_dead: true,
            dead_after: Duration::from_secs(300),
            min_voters: 3,
        }
    }
}

/// A member as the leader sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Observed {
    pub(crate) id: u64,
    pub(crate) voter: bool,
    pub(crate) read_only: bool,
    pub(crate) healthy: bool,
    /// For how long it has been as `healthy` says.
    pub(crate) lasting: Duration,
    /// For how long it has not answered; since this leader first looked at most.
    pub(crate) silent: Duration,
    /// Whether it answered in this term.
    pub(crate) heard: bool,
    /// The last entry that it is known to have.
    pub(crate) matched: u64,
}

/// What autopilot does next. One thing at a time, each waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// Completes a half-done change.
    Complete,
    /// Gives a vote.
    Promote(u64),
    /// Takes a dead member out.
    Remove(u64),
}

/// How many more voters may be lost.
pub(crate) fn failure_tolerance(members: &[Observed]) -> usize {
    let voters = members.iter().filter(|member| member.voter).count();
    let healthy = members.iter().filter(|member| member.voter && member.healthy).count();
    healthy.saturating_sub(voters / 2 + 1)
}

/// The next act, if anything is to do.
pub(crate) fn decide(config: &AutopilotConfig, members: &[Observed], joint: Option<Duration>) -> Option<Act> {
    if let Some(lasting) = joint {
        return (lasting >= HALF_DONE).then_some(Act::Complete);
    }
    let voters = members.iter().filter(|member| member.voter).count();
    let waiting = |member: &&Observed| !member.voter && !member.read_only;
    let stable = members.iter().filter(waiting).find(|member| member.healthy && member.lasting >= config.stable_after);
    if let Some(member) = stable.filter(|_| voters < MOST_VOTERS) {
        return Some(Act::Promote(member.id));
    }
    let dead = |member: &&Observed| config.remove_dead && member.silent >= config.dead_after;
    if let Some(member) = members.iter().filter(dead).find(|member| !member.voter) {
        return Some(Act::Remove(member.id));
    }
    // Of the present voters a majority has to agree, and of the next ones too.
    let healthy = members.iter().filter(|member| member.voter && member.healthy).count();
    let spare = voters > config.min_voters.max(1) && healthy > voters / 2;
    members.iter().filter(dead).find(|member| member.voter && spare).map(|member| Act::Remove(member.id))
}

/// Why nothing is done about a member, or what will be, for people.
pub(crate) fn note(config: &AutopilotConfig, members: &[Observed], member: &Observed) -> String {
    let voters = members.iter().filter(|member| member.voter).count();
    let left = |total: Duration, past: Duration| Duration::from_secs(total.saturating_sub(past).as_secs() + 1);
    match member {
        Observed { voter: false, read_only: true, healthy: true, .. } => "serves reads, has no vote".to_owned(),
        Observed { voter: false, read_only: false, healthy: true, .. } if voters >= MOST_VOTERS => {
            format!("waits: there are {MOST_VOTERS} voters")
        }
        Observed { voter: false, read_only: false, healthy: true, lasting, .. } => {
            format!("gets its vote in {:?}", left(config.stable_after, *lasting))
        }
        Observed { healthy: true, .. } => String::new(),
        _ if !config.remove_dead => "stays until it is removed by command".to_owned(),
        Observed { voter: true, silent, .. } if *silent >= config.dead_after => {
            "dead; it stays because too few voters would be left: add a member, or replace this one".to_owned()
        }
        Observed { silent, .. } if *silent > config.last_contact => {
            format!("counts as dead in {:?}", left(config.dead_after, *silent))
        }
        _ => "catches up".to_owned(),
    }
}

/// What is remembered of one member.
#[derive(Debug)]
struct Known {
    /// When it was first looked at: one that has not answered yet is silent since then.
    seen: Instant,
    healthy: bool,
    /// Since when it has been as `healthy` says.
    since: Instant,
}

/// What the leader remembers of its members from look to look.
#[derive(Debug)]
pub(crate) struct Ledger {
    config: AutopilotConfig,
    known: BTreeMap<u64, Known>,
    joint_since: Option<Instant>,
}

impl Ledger {
    /// A new leader's.
    pub(crate) fn new(config: AutopilotConfig) -> Self {
        Self { config, known: BTreeMap::new(), joint_since: None }
    }

    /// Takes note of how the members are.
    pub(crate) fn observe(&mut self, now: Instant, members: &[Member], contacts: &Contacts) -> Vec<Observed> {
        self.known.retain(|id, _| members.iter().any(|member| member.id == *id));
        self.joint_since = contacts.joint.then(|| self.joint_since.unwrap_or(now));
        members.iter().map(|member| self.observe_one(now, member, contacts)).collect()
    }

    fn observe_one(&mut self, now: Instant, member: &Member, contacts: &Contacts) -> Observed {
        let contact = contacts.members.get(&member.id).copied().unwrap_or_default();
        let matched = contact.matched.unwrap_or_default();
        let near = matched.saturating_add(self.config.trailing_entries) >= contacts.last;
        let healthy = contact.silent.is_some_and(|silent| silent <= self.config.last_contact) && near;
        let known = self.known.entry(member.id).or_insert(Known { seen: now, healthy, since: now });
        if known.healthy != healthy {
            (known.healthy, known.since) = (healthy, now);
        }
        let silent = contact.silent.unwrap_or_else(|| now.saturating_duration_since(known.seen));
        Observed {
            id: member.id,
            voter: member.voter,
            read_only: member.read_only,
            healthy,
            lasting: now.saturating_duration_since(known.since),
            silent,
            heard: contact.silent.is_some(),
            matched,
        }
    }

    /// For how long a change has been half done.
    pub(crate) fn joint(&self, now: Instant) -> Option<Duration> {
        self.joint_since.map(|since| now.saturating_duration_since(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::Contact;

    const MINUTE: Duration = Duration::from_secs(60);

    fn voter(id: u64) -> Observed {
        Observed { id, voter: true, healthy: true, lasting: MINUTE, heard: true, ..Observed::default() }
    }

    fn dead(member: Observed) -> Observed {
        Observed { healthy: false, silent: 6 * MINUTE, ..member }
    }

    fn learner(id: u64, lasting: u64) -> Observed {
        Observed { voter: false, lasting: Duration::from_secs(lasting), ..voter(id) }
    }

    #[test]
    fn what_is_done_about_members() {
        let config = AutopilotConfig::default();
        let (v, l) = (voter, learner);
        let reader = |id| Observed { read_only: true, ..learner(id, 999) };
        let late = |id| Observed { healthy: false, silent: 4 * MINUTE, ..voter(id) };
        for (what, members, joint, expected) in [
            ("all is well", vec![v(1), v(2), v(3)], None, None),
            ("a new member is young", vec![v(1), v(2), v(3), l(4, 9)], None, None),
            ("a new member is stable", vec![v(1), v(2), v(3), l(4, 10)], None, Some(Act::Promote(4))),
            ("a reader stays one", vec![v(1), reader(4)], None, None),
            ("an unhealthy one waits", vec![v(1), Observed { healthy: false, ..l(4, 99) }], None, None),
            ("seven voters are enough", (1..8).map(v).chain([l(9, 99)]).collect(), None, None),
            ("one of three is dead and stays", vec![v(1), v(2), dead(v(3))], None, None),
            ("with a fourth it goes", vec![v(1), v(2), dead(v(3)), v(4)], None, Some(Act::Remove(3))),
            ("not yet dead", vec![v(1), v(2), late(3), v(4)], None, None),
            ("first the vote, then the dead", vec![v(1), v(2), dead(v(3)), l(4, 11)], None, Some(Act::Promote(4))),
            ("two of four dead: no majority is healthy", vec![v(1), v(2), dead(v(3)), dead(v(4))], None, None),
            ("two of five dead", vec![v(1), v(2), v(3), dead(v(4)), dead(v(5))], None, Some(Act::Remove(4))),
            ("three of five dead", vec![v(1), v(2), dead(v(3)), dead(v(4)), dead(v(5))], None, None),
            ("a dead learner costs nothing", vec![v(1), dead(l(4, 0))], None, Some(Act::Remove(4))),
            ("a change is under way", vec![v(1), l(4, 99)], Some(Duration::from_secs(1)), None),
            ("a change was left half done", vec![v(1), l(4, 99)], Some(MINUTE), Some(Act::Complete)),
        ] {
            assert_eq!(decide(&config, &members, joint), expected, "{what}");
        }
        let off = AutopilotConfig { remove_dead: false, ..config.clone() };
        assert_eq!(decide(&off, &[v(1), v(2), dead(v(3)), v(4), dead(l(5, 0))], None), None);
        let four = AutopilotConfig { min_voters: 4, ..config };
        assert_eq!(decide(&four, &[v(1), v(2), dead(v(3)), v(4)], None), None);
        assert_eq!(failure_tolerance(&[v(1), v(2), v(3), l(4, 99)]), 1);
        assert_eq!(failure_tolerance(&[v(1), v(2), dead(v(3))]), 0);
        assert_eq!(failure_tolerance(&[v(1), v(2), v(3), v(4), dead(v(5))]), 1);
    }

    #[test]
    fn removing_the_dead_never_leaves_fewer_healthy_voters_than_a_majority() {
        let config = AutopilotConfig { min_voters: 1, ..AutopilotConfig::default() };
        for voters in 1..=7_u64 {
            for gone in 0..voters {
                let mut members: Vec<Observed> = (1..=voters).map(voter).collect();
                members.iter_mut().take(gone as usize).for_each(|member| *member = dead(member.clone()));
                while let Some(Act::Remove(id)) = decide(&config, &members, None) {
                    let healthy = members.iter().filter(|member| member.healthy).count();
                    // The present voters had to agree to it.
                    assert!(healthy > members.len() / 2, "{voters} voters, {gone} dead");
                    assert!(members.iter().any(|member| member.id == id && !member.healthy));
                    members.retain(|member| member.id != id);
                    assert!(healthy > members.len() / 2, "{voters} voters, {gone} dead");
                }
            }
        }
    }

    #[test]
    fn health_begins_anew_with_each_lapse_and_silence_with_the_first_look() {
        let (begin, config) = (Instant::now(), AutopilotConfig::default());
        let mut ledger = Ledger::new(config);
        let members = [Member { id: 1, voter: true, ..Member::default() }, Member { id: 2, ..Member::default() }];
        let at = |seconds| begin + Duration::from_secs(seconds);
        let contacts = |silent: Option<u64>, matched| Contacts {
            last: 5_000,
            members: BTreeMap::from([(2, Contact { silent: silent.map(Duration::from_secs), matched: Some(matched) })]),
            ..Contacts::default()
        };
        let mut look = |seconds, silent, matched| {
            let seen = ledger.observe(at(seconds), &members, &contacts(silent, matched)).remove(1);
            (seen.healthy, seen.lasting.as_secs(), seen.silent.as_secs())
        };
        // Silent since it was first looked at, however long the leader leads; then far behind, then well.
        assert_eq!(look(1, None, 0), (false, 0, 0));
        assert_eq!(look(3, None, 0), (false, 2, 2));
        assert_eq!(look(4, Some(0), 3_999), (false, 3, 0));
        assert_eq!(look(5, Some(1), 4_000), (true, 0, 1));
        assert_eq!(look(9, Some(0), 5_000), (true, 4, 0));
        assert_eq!(look(10, Some(2), 5_000), (false, 0, 2));
        assert_eq!(look(11, Some(0), 5_000), (true, 0, 0));
        assert_eq!(ledger.joint(at(11)), None);
        let half = Contacts { joint: true, ..Contacts::default() };
        ledger.observe(at(12), &members, &half);
        ledger.observe(at(14), &members, &half);
        assert_eq!(ledger.joint(at(14)), Some(Duration::from_secs(2)));
    }
}
