//! Who lives: the leader's leases of all nodes with an agent. Pure; time is an argument.
//!
//! The catalog holds the verdicts, this table what they follow from. It lives in the leader's memory alone: an
//! election starts a new one with full terms.

pub(crate) mod brake;
pub(crate) mod cause;
mod lateness;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use muster_catalog::{Name, Snapshot, Status};

use brake::{Brake, Decision, Hold, MassExpiry};
use lateness::Lateness;

/// Verdicts of one tick in one Command: larger ones go in several, so that an entry stays small.
const MAX_VERDICT: usize = 1000;

/// How long nodes live without a word.
#[derive(Debug, Clone)]
pub struct LeaseConfig {
    /// A node is lost when it was not heard for so long.
    pub ttl: Duration,
    /// A node whose stream broke is lost after this, unless it is heard again.
    pub grace: Duration,
    /// When so many nodes expire at once that it is more likely us than them.
    pub mass: MassExpiry,
}

impl Default for LeaseConfig {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(10), grace: Duration::from_secs(1), mass: MassExpiry::default() }
    }
}

/// What a tick asks to be committed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdicts {
    /// Nodes that are lost, with the incarnation that was silent.
    pub(crate) lost: Vec<(Name, u64)>,
    /// Nodes that are back.
    pub(crate) returned: Vec<(Name, u64)>,
}

#[derive(Debug)]
struct Lease {
    incarnation: u64,
    ends: Instant,
    /// As the catalog has it.
    lost: bool,
    /// Whether it was heard since this table began or it was lost.
    heard: bool,
    /// The stream that was opened last; a suspicion about an older one says nothing.
    stream: u64,
    contact: Contact,
}

/// How a node was last heard of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Contact {
    /// The id of the member that heard it, or lost it; 0 while none has.
    pub(crate) member: u64,
    /// Whether its stream broke there.
    pub(crate) broken: bool,
}

/// The leases of all nodes with an agent.
#[derive(Debug)]
pub(crate) struct LeaseTable {
    config: LeaseConfig,
    leases: BTreeMap<Name, Lease>,
    last_tick: Instant,
    lateness: Lateness,
    brake: Brake,
}

impl LeaseTable {
    /// A new leader's, in this term: every node has a full lease.
    pub(crate) fn new(config: LeaseConfig, term: u64, now: Instant, snapshot: &Snapshot) -> Self {
        let brake = Brake::new(config.mass.clone(), term);
        let mut table = Self { config, leases: BTreeMap::new(), last_tick: now, lateness: Lateness::default(), brake };
        for (name, _) in snapshot.writers() {
            table.learn(now, snapshot, name);
        }
        table
    }

    /// How often to tick: a lease ends at most this much late.
    pub(crate) fn tick_interval(config: &LeaseConfig) -> Duration {
        (config.grace / 4).clamp(Duration::from_millis(20), Duration::from_millis(250))
    }

    /// How many leases there are.
    pub(crate) fn len(&self) -> usize {
        self.leases.len()
    }

    /// Follows the catalog in the nodes that moved since `old`: new ones get a term, gone ones are forgotten, verdicts are
    /// taken note of.
    pub(crate) fn follow(&mut self, now: Instant, old: &Snapshot, snapshot: &Snapshot) {
        for node in snapshot.moved_nodes(old) {
            self.learn(now, snapshot, &node);
        }
    }

    /// Follows the catalog in one node.
    pub(crate) fn learn(&mut self, now: Instant, snapshot: &Snapshot, node: &Name) {
        if snapshot.find_writer(node).is_none() {
            self.leases.remove(node);
        }
        let liveness = snapshot.find_node(node).and_then(|entry| entry.liveness());
        let (Some(writer), Some(liveness)) = (snapshot.find_writer(node), liveness) else { return };
        let lost = liveness.value.status != Status::Passing;
        match self.leases.get_mut(node) {
            Some(lease) if lease.incarnation == writer.incarnation => {
                if lost && !lease.lost {
                    self.brake.note_loss(now, node);
                }
                lease.heard &= lease.lost == lost;
                lease.lost = lost;
            }
            // A push of a new start of the agent is a sign of life.
            _ => {
                let (incarnation, ends) = (writer.incarnation, now + self.config.ttl);
                let contact = Contact::default();
                let lease = Lease { incarnation, ends, lost, heard: false, stream: 0, contact };
                self.leases.insert(node.clone(), lease);
            }
        }
    }

    /// Takes note that `member` heard a node. False when this agent is not known so: it has to push all it has.
    pub(crate) fn renew(&mut self, now: Instant, node: &Name, incarnation: u64, stream: u64, member: u64) -> bool {
        let Some(lease) = self.leases.get_mut(node) else { return false };
        if lease.incarnation != incarnation {
            return false;
        }
        lease.ends = now + self.config.ttl;
        lease.heard = true;
        lease.contact = Contact { member, broken: false };
        if stream != 0 {
            lease.stream = stream;
        }
        true
    }

    /// A node's stream to `member` broke: it has the grace left to be heard again.
    pub(crate) fn suspect(&mut self, now: Instant, node: &Name, incarnation: u64, stream: u64, member: u64) {
        let Some(lease) = self.leases.get_mut(node) else { return };
        let about_it = lease.incarnation == incarnation && (lease.stream == stream || lease.stream == 0);
        if about_it {
            lease.ends = lease.ends.min(now + self.config.grace);
            lease.contact = Contact { member, broken: true };
        }
    }

    /// What is held back.
    pub(crate) fn hold(&self) -> Option<&Hold> {
        self.brake.hold()
    }

    /// How each living node was last heard of.
    pub(crate) fn contacts(&self) -> impl Iterator<Item = (&Name, Contact)> {
        self.leases.iter().filter(|(_, lease)| !lease.lost).map(|(node, lease)| (node, lease.contact))
    }

    /// Does with what is held under this id as an operator decided; returns how many nodes that were. `None` when
    /// nothing is held under it: the decision was about something that is over.
    pub(crate) fn decide(&mut self, now: Instant, id: &str, decision: Decision) -> Option<usize> {
        let nodes = self.brake.decide(id, decision)?;
        if decision == Decision::Release {
            for node in nodes.keys() {
                if let Some(lease) = self.leases.get_mut(node) {
                    lease.ends = now + self.config.ttl;
                }
            }
        }
        Some(nodes.len())
    }

    /// What follows from the time. The verdicts come again until [`Self::follow`] finds them in the catalog.
    pub(crate) fn tick(&mut self, now: Instant) -> Verdicts {
        self.forgive_lateness(now);
        let silent = self.leases.iter().filter(|(_, lease)| !lease.lost && lease.ends <= now);
        let silent = silent.map(|(name, lease)| (name.clone(), lease.incarnation)).collect();
        let living = self.leases.values().filter(|lease| !lease.lost).count();
        let returned = self.leases.iter().filter(|(_, lease)| lease.lost && lease.heard && lease.ends > now);
        let returned = returned.map(|(name, lease)| (name.clone(), lease.incarnation)).take(MAX_VERDICT).collect();
        let mut lost = self.brake.judge(now, silent, living);
        lost.truncate(MAX_VERDICT);
        Verdicts { lost, returned }
    }

    /// A leader that did not run could not hear either: all leases grow by the time it missed.
    fn forgive_lateness(&mut self, now: Instant) {
        let interval = Self::tick_interval(&self.config);
        let late = now.saturating_duration_since(self.last_tick).saturating_sub(interval);
        self.last_tick = now;
        if late > interval {
            self.lateness.note(late);
            self.leases.values_mut().for_each(|lease| lease.ends += late);
            self.brake.forgive(late);
        }
        if let Some((times, worst)) = self.lateness.tell(now) {
            let leases = self.leases.len();
            tracing::warn!(times, ?worst, leases, "the lease clock was late, all leases are extended by it");
        }
    }
}

#[cfg(test)]
mod tests;
