//! Which services a replica holds: what readers ask for joins, what nobody uses leaves.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use muster_catalog::{Name, Scope, ServiceLookup, Snapshot};
use tokio::time::Instant;

/// How long the first question for a service waits until the Scope has grown; who asks meanwhile waits for the same.
pub(super) const HOLD_PATIENCE: Duration = Duration::from_millis(500);
/// How many services may be waited for at once: a burst of first questions, not a scan of the whole catalog.
pub(super) const MAX_HOLDS: usize = 1_024;
/// In a full Scope a set makes room only after it was unused for this long: what is in use is not driven out by a scan.
const MIN_UNUSED: Duration = Duration::from_secs(10);

/// How much a replica holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Width {
    /// Every service.
    All,
    /// The services that are used, and the own node.
    Scope {
        /// How many services at most.
        services: usize,
        /// How long a set stays that nobody uses.
        idle: Duration,
    },
}

impl Width {
    /// The Scope to ask for by one who holds `held`, of the agent's own node. It is never wider than what is held,
    /// except for the node and for all: nothing is asked for before somebody uses it.
    pub(super) fn scope(self, held: &Snapshot, own: &Name) -> Scope {
        let Self::Scope { services: most, .. } = self else { return Scope::All };
        let names = match held.scope() {
            Scope::Services { names, .. } => names.clone(),
            // Kept when all was held. What is unused leaves in time; of a catalog that does not fit, all does at once.
            Scope::All if held.service_count() <= most => held.services().map(|slot| slot.name.clone()).collect(),
            Scope::All => Default::default(),
        };
        Scope::Services { names, node: Some(own.clone()) }
    }
}

/// When each service of the Scope was used last. Only names of the Scope are here, so that questions grow nothing.
#[derive(Debug)]
pub(super) struct Uses {
    begun: Instant,
    last: RwLock<HashMap<Name, Arc<AtomicU64>>>,
}

impl Uses {
    /// Nothing is held.
    pub(super) fn new(begun: Instant) -> Self {
        Self { begun, last: RwLock::default() }
    }

    /// Notes that a service was used; does nothing for one outside the Scope.
    pub(super) fn used(&self, service: &Name, now: Instant) {
        let last = self.last.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = last.get(service) {
            last.store(self.seconds(now), Ordering::Relaxed);
        }
    }

    /// Takes over the names of a Scope; those that are new count as used now.
    pub(super) fn follow(&self, scope: &Scope, now: Instant) {
        let mut next = HashMap::new();
        if let Scope::Services { names, .. } = scope {
            let last = self.last.read().unwrap_or_else(PoisonError::into_inner);
            let time = |service| last.get(service).cloned().unwrap_or_else(|| Arc::new(self.seconds(now).into()));
            next.extend(names.iter().map(|service| (service.clone(), time(service))));
        }
        // Made beforehand, and what was is dropped afterwards: questions wait for the exchange alone.
        let _before = std::mem::replace(&mut *self.last.write().unwrap_or_else(PoisonError::into_inner), next);
    }

    /// The services that were not used for so long, those unused for longest first.
    fn unused(&self, idle: Duration, now: Instant) -> Vec<Name> {
        let last = self.last.read().unwrap_or_else(PoisonError::into_inner);
        let now = self.seconds(now);
        let unused = last.iter().map(|(service, last)| (last.load(Ordering::Relaxed), service));
        let mut unused: Vec<_> = unused.filter(|(last, _)| now.saturating_sub(*last) >= idle.as_secs()).collect();
        unused.sort();
        unused.into_iter().map(|(_, service)| service.clone()).collect()
    }

    fn seconds(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.begun).as_secs()
    }
}

/// The services that readers wait for, each with the end of their shared patience.
#[derive(Debug, Default)]
pub(super) struct Holds {
    ends: Mutex<HashMap<Name, Instant>>,
}

impl Holds {
    /// Joins the wait for a service: when it ends, and whether this is who began it. `None` when too many are waited for.
    pub(super) fn join(&self, service: &Name, now: Instant) -> Option<(Instant, bool)> {
        let mut ends = self.lock();
        if let Some(end) = ends.get(service).filter(|end| now < **end) {
            return Some((*end, false));
        }
        if ends.len() >= MAX_HOLDS {
            ends.retain(|_, end| now < *end);
        }
        if ends.len() >= MAX_HOLDS {
            return None;
        }
        let end = now + HOLD_PATIENCE;
        ends.insert(service.clone(), end);
        Some((end, true))
    }

    /// Whether the service is waited for.
    pub(super) fn contains(&self, service: &Name) -> bool {
        self.lock().contains_key(service)
    }

    /// Ends the waits: the services are held, or will not be.
    pub(super) fn end<'a>(&self, services: impl IntoIterator<Item = &'a Name>) {
        let mut ends = self.lock();
        for service in services {
            ends.remove(service);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Name, Instant>> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is to be asked of the member, and who is told that nothing comes of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Rescope {
    /// Services that join.
    pub(super) join: Vec<Name>,
    /// Services that leave.
    pub(super) leave: Vec<Name>,
    /// Services for which there is no room.
    pub(super) refused: Vec<Name>,
}

/// The changes of Scope that are wanted and under way.
#[derive(Debug, Default)]
pub(super) struct Growth {
    wanted: BTreeSet<Name>,
    joining: BTreeSet<Name>,
    leaving: BTreeSet<Name>,
}

impl Growth {
    /// A reader waits for a service.
    pub(super) fn want(&mut self, service: Name) {
        self.wanted.insert(service);
    }

    /// Whether anything is wanted that was not asked for yet.
    pub(super) fn is_wanted(&self) -> bool {
        !self.wanted.is_empty()
    }

    /// Asks for what is wanted; in a full Scope what was not used lately makes room.
    pub(super) fn plan(
        &mut self,
        most: usize,
        held: &Snapshot,
        uses: &Uses,
        now: Instant,
        is_waited_for: impl Fn(&Name) -> bool,
    ) -> Rescope {
        let mut rescope = Rescope::default();
        let wanted = std::mem::take(&mut self.wanted).into_iter();
        let wanted: Vec<Name> = wanted
            .filter(|service| matches!(held.service(service), ServiceLookup::NotHeld(_)))
            .filter(|service| !self.joining.contains(service))
            .collect();
        let mut room = most.saturating_sub(self.width(held));
        if wanted.len() > room {
            rescope.leave = self.spare(uses.unused(MIN_UNUSED, now), wanted.len() - room, is_waited_for);
            room += rescope.leave.len();
        }
        rescope.join = wanted;
        rescope.refused = rescope.join.split_off(room.min(rescope.join.len()));
        self.joining.extend(rescope.join.iter().cloned());
        rescope
    }

    /// Lets go of what nobody has used or waited on for so long, and of what is beyond the bound.
    pub(super) fn evict(
        &mut self,
        (most, idle): (usize, Duration),
        held: &Snapshot,
        uses: &Uses,
        now: Instant,
        is_waited_for: impl Fn(&Name) -> bool,
    ) -> Vec<Name> {
        let mut left = self.spare(uses.unused(idle, now), usize::MAX, &is_waited_for);
        let beyond = self.width(held).saturating_sub(most);
        left.extend(self.spare(uses.unused(Duration::ZERO, now), beyond, is_waited_for));
        left
    }

    fn spare(&mut self, unused: Vec<Name>, most: usize, is_waited_for: impl Fn(&Name) -> bool) -> Vec<Name> {
        let free = |service: &Name| !self.leaving.contains(service) && !is_waited_for(service);
        let left: Vec<Name> = unused.into_iter().filter(free).take(most).collect();
        self.leaving.extend(left.iter().cloned());
        left
    }

    /// The Scope with what is wanted in it as far as there is room, for a member that takes it from a hello only.
    pub(super) fn widened(&mut self, scope: &Scope, most: usize) -> Scope {
        self.wanted.append(&mut self.joining);
        let mut scope = scope.clone();
        if let Scope::Services { names, .. } = &mut scope {
            let room = most.saturating_sub(names.len());
            names.extend(std::mem::take(&mut self.wanted).into_iter().take(room));
        }
        scope
    }

    /// The member has changed the Scope.
    pub(super) fn spliced(&mut self, joined: &[Name], left: &[Name]) {
        for service in joined {
            self.joining.remove(service);
            self.leaving.remove(service);
        }
        for service in left {
            self.leaving.remove(service);
        }
    }

    /// What was under way is asked for again on the next stream.
    pub(super) fn connection_lost(&mut self) {
        self.wanted.append(&mut self.joining);
        self.leaving.clear();
    }

    /// How many services there will be once all that is under way is done.
    fn width(&self, held: &Snapshot) -> usize {
        let names = match held.scope() {
            Scope::All => 0,
            Scope::Services { names, .. } => names.len(),
        };
        (names + self.joining.len()).saturating_sub(self.leaving.len())
    }
}

#[cfg(test)]
mod tests;
