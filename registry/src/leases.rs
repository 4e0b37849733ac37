//! Who lives: the leader's leases of all nodes with an agent. Pure; time is an argument.
//!
//! The catalog holds the verdicts, this table what they follow from. It lives in the leader's memory alone: an
//! election starts a new one with full terms.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use muster_catalog::{Name, Snapshot, Status};

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

/// The brake on losing many nodes at once.
#[derive(Debug, Clone)]
pub struct MassExpiry {
    /// Fewer nodes than this are never held back.
    pub nodes: usize,
    /// More than this share of the living, in percent, is held back.
    pub percent: usize,
    /// Losses this close together count as one event.
    pub window: Duration,
    /// How long they are held. Three lease terms: agents that were cut off by a fault of the registry or its network
    /// come back within one or two of them; what is silent for longer is lost indeed.
    pub hold: Duration,
}

impl Default for MassExpiry {
    fn default() -> Self {
        Self { nodes: 10, percent: 30, window: Duration::from_secs(15), hold: Duration::from_secs(30) }
    }
}

/// What a tick asks to be committed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdicts {
    /// Nodes that are lost, with the incarnation that was silent.
    pub(crate) lost: Vec<(Name, u64)>,
    /// Nodes that are back.
    pub(crate) returned: Vec<(Name, u64)>,
    /// How many more are lost but held back.
    pub(crate) held: usize,
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
}

/// The leases of all nodes with an agent.
#[derive(Debug)]
pub(crate) struct LeaseTable {
    config: LeaseConfig,
    leases: BTreeMap<Name, Lease>,
    last_tick: Instant,
    /// When verdicts of loss were given lately, and how many.
    recent: VecDeque<(Instant, usize)>,
    held_since: Option<Instant>,
}

impl LeaseTable {
    /// A new leader's: every node has a full term.
    pub(crate) fn new(config: LeaseConfig, now: Instant, snapshot: &Snapshot) -> Self {
        let (leases, recent) = (BTreeMap::new(), VecDeque::new());
        let mut table = Self { config, leases, last_tick: now, recent, held_since: None };
        table.reconcile(now, snapshot);
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

    /// Follows the catalog: new nodes get a term, gone ones are forgotten, verdicts are taken note of.
    pub(crate) fn reconcile(&mut self, now: Instant, snapshot: &Snapshot) {
        self.leases.retain(|name, _| snapshot.find_writer(name).is_some());
        for (name, _) in snapshot.writers() {
            self.learn(now, snapshot, name);
        }
    }

    /// Follows the catalog in one node.
    pub(crate) fn learn(&mut self, now: Instant, snapshot: &Snapshot, node: &Name) {
        let liveness = snapshot.find_node(node).and_then(|entry| entry.liveness());
        let (Some(writer), Some(liveness)) = (snapshot.find_writer(node), liveness) else { return };
        let lost = liveness.value.status != Status::Passing;
        match self.leases.get_mut(node) {
            Some(lease) if lease.incarnation == writer.incarnation => {
                lease.heard &= lease.lost == lost;
                lease.lost = lost;
            }
            // A push of a new start of the agent is a sign of life.
            _ => {
                let (incarnation, ends) = (writer.incarnation, now + self.config.ttl);
                self.leases.insert(node.clone(), Lease { incarnation, ends, lost, heard: false, stream: 0 });
            }
        }
    }

    /// Takes note that a node lives. False when this agent is not known so: it has to push all it has.
    pub(crate) fn renew(&mut self, now: Instant, node: &Name, incarnation: u64, stream: u64) -> bool {
        let Some(lease) = self.leases.get_mut(node) else { return false };
        if lease.incarnation != incarnation {
            return false;
        }
        lease.ends = now + self.config.ttl;
        lease.heard = true;
        if stream != 0 {
            lease.stream = stream;
        }
        true
    }

    /// A node's stream broke: it has the grace left to be heard again.
    pub(crate) fn suspect(&mut self, now: Instant, node: &Name, incarnation: u64, stream: u64) {
        let Some(lease) = self.leases.get_mut(node) else { return };
        let about_it = lease.incarnation == incarnation && (lease.stream == stream || lease.stream == 0);
        if about_it {
            lease.ends = lease.ends.min(now + self.config.grace);
        }
    }

    /// What follows from the time. The verdicts come again until [`Self::reconcile`] finds them in the catalog.
    pub(crate) fn tick(&mut self, now: Instant) -> Verdicts {
        self.forgive_lateness(now);
        let due = self.leases.iter().filter(|(_, lease)| !lease.lost && lease.ends <= now);
        let mut due: Vec<(Name, u64)> = due.map(|(name, lease)| (name.clone(), lease.incarnation)).collect();
        let returned = self.leases.iter().filter(|(_, lease)| lease.lost && lease.heard && lease.ends > now);
        let returned = returned.map(|(name, lease)| (name.clone(), lease.incarnation)).take(MAX_VERDICT).collect();
        if self.is_held(now, due.len()) {
            return Verdicts { lost: Vec::new(), returned, held: due.len() };
        }
        due.truncate(MAX_VERDICT);
        Verdicts { lost: due, returned, held: 0 }
    }

    /// Takes note that so many losses were committed.
    pub(crate) fn committed(&mut self, now: Instant, lost: usize) {
        // What was held first has been waited for already: it does not hold back what comes after it.
        if lost > 0 && self.held_since.is_none() {
            self.recent.push_back((now, lost));
        }
    }

    /// A leader that did not run could not hear either: all leases grow by the time it missed.
    fn forgive_lateness(&mut self, now: Instant) {
        let interval = Self::tick_interval(&self.config);
        let late = now.saturating_duration_since(self.last_tick).saturating_sub(interval);
        self.last_tick = now;
        if late > interval {
            tracing::warn!(
                ?late,
                leases = self.leases.len(),
                "the lease clock was late, all leases are extended by it"
            );
            self.leases.values_mut().for_each(|lease| lease.ends += late);
        }
    }

    fn is_held(&mut self, now: Instant, due: usize) -> bool {
        let mass = &self.config.mass;
        while self.recent.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > mass.window) {
            self.recent.pop_front();
        }
        let recent: usize = self.recent.iter().map(|(_, count)| count).sum();
        let together = due + recent;
        let living = self.leases.values().filter(|lease| !lease.lost).count() + recent;
        let massive = due > 0 && together >= mass.nodes && together * 100 > living * mass.percent;
        if !massive {
            self.held_since = None;
            return false;
        }
        let since = *self.held_since.get_or_insert(now);
        now.saturating_duration_since(since) < mass.hold
    }
}

#[cfg(test)]
mod tests;
