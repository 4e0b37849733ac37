//! The brake on losing many nodes at once. Pure; time is an argument.
//!
//! Losses that come together, more of them and a larger share than hosts lose by themselves, are likelier a fault of the
//! registry or of a network. They are held: nobody learns of them until an operator decides or the time is up, and nodes
//! that are heard meanwhile leave the hold. Once begun, a hold takes in every further loss and does not end because some
//! nodes came back: those that come back a second later must not be lost for that.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use muster_catalog::Name;

/// When so many nodes expire at once that it is more likely us than them.
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

/// What an operator says to what is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// The nodes are lost indeed: let it be known now.
    Commit,
    /// They are not: give each a full lease anew.
    Release,
}

impl Decision {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Commit => "commit",
            Self::Release => "release",
        }
    }
}

/// Losses that are held, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hold {
    /// What a decision has to name; never given twice, by no leader.
    pub(crate) id: String,
    pub(crate) since: Instant,
    /// When they are committed without a decision.
    pub(crate) until: Instant,
    /// When it began: how many were silent, or lost within the window …
    pub(crate) together: usize,
    /// … of how many that lived.
    pub(crate) living: usize,
    /// Who is silent still, with the incarnation that is.
    pub(crate) nodes: BTreeMap<Name, u64>,
}

/// The brake of one leader in one term.
#[derive(Debug)]
pub(crate) struct Brake {
    config: MassExpiry,
    term: u64,
    holds: u64,
    hold: Option<Hold>,
    /// Let through after they were held, and not yet in the catalog. They hold back nobody else.
    passed: BTreeMap<Name, u64>,
    /// When losses that were not held came lately, and how many.
    recent: VecDeque<(Instant, usize)>,
}

impl Brake {
    pub(crate) fn new(config: MassExpiry, term: u64) -> Self {
        let (passed, recent) = (BTreeMap::new(), VecDeque::new());
        Self { config, term, holds: 0, hold: None, passed, recent }
    }

    /// What is held.
    pub(crate) fn hold(&self) -> Option<&Hold> {
        self.hold.as_ref()
    }

    /// Of those that are silent, who is lost; the others are held. `living` counts those that the catalog has as alive,
    /// silent or not.
    pub(crate) fn judge(&mut self, now: Instant, silent: Vec<(Name, u64)>, living: usize) -> Vec<(Name, u64)> {
        let silent: BTreeMap<Name, u64> = silent.into_iter().collect();
        self.passed.retain(|node, incarnation| silent.get(node) == Some(incarnation));
        let fresh = silent.iter().filter(|(node, _)| !self.passed.contains_key(*node));
        let fresh: BTreeMap<Name, u64> = fresh.map(|(node, incarnation)| (node.clone(), *incarnation)).collect();
        if self.hold.is_none() && !self.is_massive(now, fresh.len(), living) {
            return silent.into_iter().collect();
        }
        let hold = self.hold.take().unwrap_or_else(|| self.begin(now, fresh.len(), living));
        if fresh.is_empty() {
            count("returned");
        } else if now >= hold.until {
            count("time_up");
            self.passed.extend(fresh);
        } else {
            self.hold = Some(Hold { nodes: fresh, ..hold });
        }
        self.passed.iter().map(|(node, incarnation)| (node.clone(), *incarnation)).collect()
    }

    /// Ends the hold as an operator wants it; returns who was held. `None` when nothing is held under this id.
    pub(crate) fn decide(&mut self, id: &str, decision: Decision) -> Option<BTreeMap<Name, u64>> {
        let hold = self.hold.take_if(|hold| hold.id == id)?;
        count(decision.as_str());
        if decision == Decision::Commit {
            self.passed.extend(hold.nodes.clone());
        }
        Some(hold.nodes)
    }

    /// Takes note that the catalog shows a node as lost.
    pub(crate) fn note_loss(&mut self, now: Instant, node: &Name) {
        // What was held has been waited for already: it does not hold back what comes after it.
        if self.passed.remove(node).is_some() {
            return;
        }
        match self.recent.back_mut() {
            Some((at, count)) if *at == now => *count += 1,
            _ => self.recent.push_back((now, 1)),
        }
    }

    /// The leader did not run for so long.
    pub(crate) fn forgive(&mut self, late: Duration) {
        if let Some(hold) = &mut self.hold {
            hold.until += late;
        }
    }

    fn is_massive(&mut self, now: Instant, silent: usize, living: usize) -> bool {
        let MassExpiry { nodes, percent, window, .. } = self.config;
        while self.recent.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > window) {
            self.recent.pop_front();
        }
        let (together, living) = self.counted(silent, living);
        silent > 0 && together >= nodes && together * 100 > living * percent
    }

    /// With those that were lost within the window, on both sides.
    fn counted(&self, silent: usize, living: usize) -> (usize, usize) {
        let recent: usize = self.recent.iter().map(|(_, count)| count).sum();
        (silent + recent, living.saturating_sub(self.passed.len()) + recent)
    }

    fn begin(&mut self, now: Instant, silent: usize, living: usize) -> Hold {
        self.holds += 1;
        let (together, living) = self.counted(silent, living);
        let id = format!("expiry-{}-{}", self.term, self.holds);
        Hold { id, since: now, until: now + self.config.hold, together, living, nodes: BTreeMap::new() }
    }
}

fn count(end: &'static str) {
    metrics::counter!("muster_registry_mass_expiries_total", "end" => end).increment(1);
}
