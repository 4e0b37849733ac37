//! The brake on a services directory that suddenly lists far fewer services: a roll-out that went wrong, a mount that is
//! gone, a template that rendered nothing. Pure; time is an argument.
//!
//! What is gone stays in force with its last good definition until it is back, an operator decides, or the time is up;
//! whatever the remaining files say is taken up meanwhile. A service that others took the place of is not missed: what
//! counts is by how much the whole shrinks.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use muster_registry::Decision;
use tokio::time::Instant;

use super::MAX_SERVICES;
use crate::local::FileService;

/// When so many definitions vanish at once that a mistake is likelier than a wish.
#[derive(Debug, Clone)]
pub struct MassRemoval {
    /// Fewer services than this are removed at once, unless they are all there are.
    pub services: usize,
    /// More than this share, in percent, is held.
    pub percent: usize,
    /// So many that are all there are, are held too.
    pub all_of: usize,
    /// Removals this close together count as one event.
    pub window: Duration,
    /// How long they are held: a person has to notice a broken roll-out and repair it. Their checks go on meanwhile, so
    /// what is really gone is critical and gets no traffic.
    pub hold: Duration,
}

impl Default for MassRemoval {
    fn default() -> Self {
        let (window, hold) = (Duration::from_secs(15), Duration::from_secs(600));
        Self { services: 10, percent: 30, all_of: 3, window, hold }
    }
}

/// Removals that are held, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RemovalHold {
    /// What a decision has to name; never given twice.
    pub(crate) id: String,
    pub(crate) since: Instant,
    /// When they are removed without a decision.
    pub(crate) until: Instant,
    /// How many services there were …
    pub(crate) before: usize,
    /// … and how many files still define, when it began.
    pub(crate) left: usize,
    /// What is kept in force.
    pub(crate) services: Vec<FileService>,
}

/// The brake of one directory.
#[derive(Debug)]
pub(crate) struct RemovalBrake {
    config: MassRemoval,
    /// The start of the agent: ids of an earlier one mean nothing here.
    start: u64,
    holds: u64,
    hold: Option<RemovalHold>,
    in_force: Vec<FileService>,
    /// When services that were not held went lately, and how many.
    recent: VecDeque<(Instant, usize)>,
}

impl RemovalBrake {
    /// `in_force` is what an earlier start of the agent left.
    pub(crate) fn new(config: MassRemoval, start: u64, in_force: Vec<FileService>) -> Self {
        Self { config, start, holds: 0, hold: None, in_force, recent: VecDeque::new() }
    }

    /// What was last let through.
    pub(crate) fn in_force(&self) -> &[FileService] {
        &self.in_force
    }

    /// What is held.
    pub(crate) fn hold(&self) -> Option<&RemovalHold> {
        self.hold.as_ref()
    }

    /// What is to be in force, given what the files define.
    pub(crate) fn judge(&mut self, now: Instant, defined: Vec<FileService>) -> Vec<FileService> {
        let gone = self.find_gone(&defined);
        self.in_force = match self.hold.take() {
            None if gone.is_empty() => defined,
            None if !self.is_massive(now, defined.len()) => {
                self.recent.push_back((now, self.in_force.len().saturating_sub(defined.len())));
                defined
            }
            Some(_) if gone.is_empty() => {
                count("returned");
                tracing::warn!("the services whose removal was held are defined again");
                defined
            }
            Some(hold) if now >= hold.until => {
                count("time_up");
                tracing::warn!(
                    services = gone.len(),
                    id = hold.id,
                    "nobody decided on the held removal: they are gone"
                );
                defined
            }
            hold => {
                let before = self.in_force.len();
                let hold = hold.unwrap_or_else(|| self.begin(now, before, defined.len(), &gone));
                self.hold = Some(RemovalHold { services: gone.clone(), ..hold });
                defined.into_iter().chain(gone).collect()
            }
        };
        metrics::gauge!("muster_agent_removals_held")
            .set(self.hold.as_ref().map_or(0, |hold| hold.services.len()) as f64);
        self.in_force.clone()
    }

    /// Ends the hold as an operator wants it; returns how many services it held. `None` when nothing is held under this
    /// id. [`Self::judge`] comes next.
    pub(crate) fn decide(&mut self, now: Instant, id: &str, decision: Decision) -> Option<usize> {
        let hold = self.hold.take_if(|hold| hold.id == id)?;
        let services = hold.services.len();
        count(decision.as_str());
        tracing::warn!(id, services, decision = decision.as_str(), "an operator decided on a mass removal");
        match decision {
            Decision::Commit => self.in_force.retain(|service| !hold.services.contains(service)),
            Decision::Release => {
                let begun = self.begin(now, hold.before, hold.left, &hold.services);
                self.hold = Some(RemovalHold { services: hold.services, ..begun });
            }
        }
        Some(services)
    }

    /// Services in force that no file defines any more, but for those whose ids others have taken.
    fn find_gone(&self, defined: &[FileService]) -> Vec<FileService> {
        let ids: BTreeSet<_> = defined.iter().map(|service| &service.definition.id).collect();
        let checks = defined.iter().flat_map(|service| &service.definition.checks);
        let checks: BTreeSet<_> = checks.map(|check| &check.id).collect();
        let gone = self.in_force.iter().filter(|service| {
            let definition = &service.definition;
            !ids.contains(&definition.id) && !definition.checks.iter().any(|check| checks.contains(&check.id))
        });
        gone.take(MAX_SERVICES.saturating_sub(defined.len())).cloned().collect()
    }

    fn is_massive(&mut self, now: Instant, left: usize) -> bool {
        let MassRemoval { services, percent, all_of, window, .. } = self.config;
        while self.recent.front().is_some_and(|(at, _)| now - *at > window) {
            self.recent.pop_front();
        }
        let before = self.in_force.len() + self.recent.iter().map(|(_, count)| count).sum::<usize>();
        let lost = before.saturating_sub(left);
        (lost >= services && lost * 100 > before * percent) || (left == 0 && before >= all_of)
    }

    fn begin(&mut self, now: Instant, before: usize, left: usize, gone: &[FileService]) -> RemovalHold {
        self.holds += 1;
        let id = format!("removal-{}-{}", self.start, self.holds);
        let hold = self.config.hold;
        let first: Vec<_> = gone.iter().take(10).map(|service| &*service.definition.id).collect();
        tracing::warn!(
            id,
            services = gone.len(),
            before,
            left,
            ?first,
            "many definitions are gone from the services directory at once: their services stay for {hold:?}. Put the \
             files back, or `muster brakes commit {id}` if they are to go; without either they go when the time is up"
        );
        RemovalHold { id, since: now, until: now + hold, before, left, services: Vec::new() }
    }
}

fn count(end: &'static str) {
    metrics::counter!("muster_agent_mass_removals_total", "end" => end).increment(1);
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc};

    use super::*;
    use crate::definition::ServiceText;

    fn services(ids: impl IntoIterator<Item = usize>) -> Vec<FileService> {
        let service = |id: usize| {
            let text = ServiceText { name: format!("s{id}"), port: Some(80), ..Default::default() };
            let definition = Arc::new(text.validate("service").unwrap());
            FileService { definition, path: Arc::from(Path::new(&format!("/d/{id}.toml"))) }
        };
        ids.into_iter().map(service).collect()
    }

    fn count(services: &[FileService]) -> usize {
        services.len()
    }

    #[test]
    fn far_fewer_definitions_are_held_and_a_few_are_not() {
        // (before, left, held)
        for (before, left, held) in [
            (40, 10, 30),
            (40, 27, 13),
            // A third of many, or nine of ten, is no mass removal; all of three is.
            (40, 28, 0),
            (10, 1, 0),
            (3, 0, 3),
            (2, 0, 0),
        ] {
            let (mut brake, now) = (RemovalBrake::new(MassRemoval::default(), 1, Vec::new()), Instant::now());
            assert_eq!(count(&brake.judge(now, services(0..before))), before);
            assert_eq!(count(&brake.judge(now, services(0..left))), left + held, "{before} to {left}");
            assert_eq!(brake.hold().map_or(0, |hold| hold.services.len()), held, "{before} to {left}");
        }
        // Others took their place: nothing shrank.
        let (mut brake, now) = (RemovalBrake::new(MassRemoval::default(), 1, Vec::new()), Instant::now());
        brake.judge(now, services(0..20));
        assert_eq!(count(&brake.judge(now, services(20..40))), 20);
        // One after the other, within the window.
        let mut last = 0;
        for left in (0..20).rev() {
            last = count(&brake.judge(now, services(20..20 + left)));
        }
        assert_eq!(last, 11, "nine went, the tenth and all after it are held");
    }

    #[test]
    fn a_hold_ends_by_return_by_decision_or_by_time() {
        let start = || {
            let (mut brake, now) = (RemovalBrake::new(MassRemoval::default(), 9, Vec::new()), Instant::now());
            brake.judge(now, services(0..20));
            assert_eq!(count(&brake.judge(now, services([0]))), 20);
            let id = brake.hold().unwrap().id.clone();
            (brake, now, id)
        };
        let (mut brake, now, _) = start();
        // What the remaining files say is taken up; what is back is held no more.
        assert_eq!(count(&brake.judge(now, services((0..5).chain([50])))), 21);
        assert_eq!(brake.hold().unwrap().services.len(), 15);
        assert_eq!(count(&brake.judge(now, services((0..20).chain([50])))), 21);
        assert_eq!(brake.hold(), None);

        let (mut brake, now, id) = start();
        assert_eq!(brake.decide(now, "removal-8-1", Decision::Commit), None, "another start's");
        assert_eq!(brake.decide(now, &id, Decision::Commit), Some(19));
        assert_eq!(count(&brake.judge(now, services([0]))), 1);
        assert_eq!(brake.decide(now, &id, Decision::Commit), None, "once is enough");

        let (mut brake, now, id) = start();
        let later = now + Duration::from_secs(599);
        assert_eq!(brake.decide(later, &id, Decision::Release), Some(19));
        assert_eq!(count(&brake.judge(later + Duration::from_secs(599), services([0]))), 20, "a whole time anew");
        assert_eq!(brake.decide(later, &id, Decision::Commit), None, "it has another id now");
        assert_eq!(count(&brake.judge(later + Duration::from_secs(600), services([0]))), 1);
        assert_eq!(brake.hold(), None);
    }

    #[test]
    fn what_others_took_the_check_of_is_not_held() {
        let checked = |id: &str, check: &str| {
            let text = format!("name = \"{id}\"\nport = 1\n[[checks]]\nid = \"{check}\"\ntcp = \"127.0.0.1:1\"");
            let text: ServiceText = toml::from_str(&text).unwrap();
            let path = Arc::from(Path::new("/d/x.toml"));
            FileService { definition: Arc::new(text.validate("service").unwrap()), path }
        };
        let (mut brake, now) = (RemovalBrake::new(MassRemoval::default(), 1, Vec::new()), Instant::now());
        let before: Vec<_> = (0..20).map(|id| checked(&format!("a{id}"), &format!("up{id}"))).collect();
        brake.judge(now, before);
        let after = brake.judge(now, vec![checked("b", "up0")]);
        assert_eq!(count(&after), 20, "b, and all of the others but the one whose check it took");
        assert!(after.iter().all(|service| &*service.definition.id != "a0"));
    }
}
