//! Autopilot's task: every member runs it, the leader's acts. It also raises the catalog's format.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use muster_catalog::Command;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Act, AutopilotConfig, Ledger, Observed, decide, failure_tolerance, note};
use crate::{
    client::MemberHealth,
    raft::{ChangeError, Contacts, Greeting, MemberChange, id_text},
    service::Core,
};

/// How often the members are looked at, and asked what their builds know: a promotion is at most this late.
const INTERVAL: Duration = Duration::from_secs(1);

/// What the leader thinks of its members.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct AutopilotStatus {
    pub(crate) members: BTreeMap<u64, MemberHealth>,
    /// How many more voters may be lost.
    pub(crate) failure_tolerance: u32,
}

/// What the leader shows of its members; `None` from a member that does not lead.
pub(crate) type StatusSender = watch::Sender<Option<Arc<AutopilotStatus>>>;

/// Runs until the member stops.
pub(crate) async fn run(core: Arc<Core>, config: AutopilotConfig, shown: StatusSender, stop: CancellationToken) {
    let mut leadership = core.log.leadership();
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (acting, asking) = (JoinSet::new(), JoinSet::new());
    let mut pilot = Pilot { core, config, reign: None, greetings: BTreeMap::new(), acting, asking, shown };
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = leadership.changed() => {
                if changed.is_err() {
                    return;
                }
                leadership.borrow_and_update();
            }
            _ = ticks.tick() => {}
            Some(greeted) = pilot.asking.join_next() => pilot.greetings = greeted.unwrap_or_default(),
            Some(_) = pilot.acting.join_next() => {}
        }
        pilot.look(Instant::now());
    }
}

struct Pilot {
    core: Arc<Core>,
    config: AutopilotConfig,
    /// The term in which this member leads, and what it has seen since.
    reign: Option<(u64, Ledger)>,
    greetings: BTreeMap<u64, Greeting>,
    /// The act under way; one at a time.
    acting: JoinSet<()>,
    /// The question under way to all members.
    asking: JoinSet<BTreeMap<u64, Greeting>>,
    shown: StatusSender,
}

impl Pilot {
    fn look(&mut self, now: Instant) {
        let Some(contacts) = self.core.log.contacts() else {
            self.reign = None;
            self.greetings.clear();
            self.shown.send_if_modified(|shown| shown.take().is_some());
            return;
        };
        let term = contacts.term;
        if self.reign.as_ref().is_none_or(|(reign, _)| *reign != term) {
            self.reign = Some((term, Ledger::new(self.config.clone())));
        }
        let Some((_, ledger)) = &mut self.reign else { return };
        let members = self.core.log.members();
        let observed = ledger.observe(now, &members, &contacts);
        let joint = ledger.joint(now);
        self.show(&observed);
        if self.asking.is_empty() {
            self.ask();
        }
        if !self.acting.is_empty() {
            return;
        }
        if let Some(act) = decide(&self.config, &observed, joint) {
            let name = |id: u64| members.iter().find(|member| member.id == id).map(|member| member.name.clone());
            return self.act(act, name);
        }
        let newest = self.format_of_all(&contacts);
        let serves = self.core.disagreement().is_none();
        if serves && newest.is_some_and(|newest| newest > self.core.catalog.now().format()) {
            self.raise_format();
        }
    }

    /// The newest format that every member knows; `None` while one of them did not say.
    fn format_of_all(&self, contacts: &Contacts) -> Option<u32> {
        let formats = contacts.members.keys().map(|id| self.greetings.get(id).map(|said| said.format));
        formats.min().flatten()
    }

    fn ask(&mut self) {
        let (core, known) = (self.core.clone(), !self.greetings.is_empty());
        self.asking.spawn(async move {
            if known {
                // Not before the next look: greetings are a call to each member.
                tokio::time::sleep(INTERVAL / 2).await;
            }
            core.log.greetings().await
        });
    }

    fn act(&mut self, act: Act, name: impl Fn(u64) -> Option<String>) {
        let (kind, change, id) = match act {
            Act::Complete => ("complete", MemberChange::Complete, None),
            Act::Promote(id) => ("promote", MemberChange::Promote(id_text(id)), Some(id)),
            Act::Remove(id) => ("remove", MemberChange::Remove(id_text(id)), Some(id)),
        };
        let (core, member) = (self.core.clone(), id.and_then(name));
        tracing::warn!(act = kind, member, "autopilot changes the members");
        self.acting.spawn(async move {
            match core.log.change_members(change).await {
                Ok(done) => {
                    metrics::counter!("muster_registry_autopilot_acts_total", "act" => kind).increment(1);
                    tracing::info!(done, "autopilot is done");
                }
                Err(ChangeError::NotLeader { .. }) => {}
                Err(error) => tracing::warn!(%error, act = kind, "autopilot could not do it; it looks again"),
            }
        });
    }

    /// Raises the catalog's format to what every member knows, asked again while nobody can come in.
    fn raise_format(&mut self) {
        let core = self.core.clone();
        self.acting.spawn(async move {
            // A registry that begins has its identity first. The sender lives as long as the member.
            let mut snapshots = core.catalog.snapshot.clone();
            let named = snapshots.wait_for(|snapshot| !snapshot.cluster().uuid.is_empty());
            let Ok(Ok(_)) = timeout(INTERVAL, named).await else { return };
            let _fixed = core.log.hold_members().await;
            let greetings = core.log.greetings().await;
            let Some(contacts) = core.log.contacts() else { return };
            let formats = contacts.members.keys().map(|id| greetings.get(id).map(|said| said.format));
            let Some(format) = formats.min().flatten().filter(|format| *format > core.catalog.now().format()) else {
                return;
            };
            match core.propose(Command::SetFormat(format)).await {
                Ok(_) => tracing::info!(format, "every member knows it: the catalog's format is raised"),
                Err(error) => tracing::warn!(%error, format, "the catalog's format was not raised; it is tried again"),
            }
        });
    }

    fn show(&self, observed: &[Observed]) {
        let health = observed.iter().map(|member| {
            let said = self.greetings.get(&member.id);
            let health = MemberHealth {
                healthy: member.healthy,
                silent: member.heard.then_some(member.silent),
                matched: member.matched,
                since: member.lasting,
                format: said.map_or(0, |said| said.format),
                version: said.map(|said| said.version.clone()).unwrap_or_default(),
                note: match said.and_then(|said| said.no_room.as_ref()) {
                    Some(why) => format!("takes no writes: {why}"),
                    None => note(&self.config, observed, member),
                },
            };
            (member.id, health)
        });
        let tolerance = failure_tolerance(observed);
        let status = AutopilotStatus {
            members: health.collect(),
            failure_tolerance: u32::try_from(tolerance).unwrap_or(u32::MAX),
        };
        let voters = observed.iter().filter(|member| member.voter).count();
        metrics::gauge!("muster_registry_members", "role" => "voter").set(voters as f64);
        metrics::gauge!("muster_registry_members", "role" => "learner").set((observed.len() - voters) as f64);
        let unhealthy = observed.iter().filter(|member| !member.healthy).count();
        metrics::gauge!("muster_registry_unhealthy_members").set(unhealthy as f64);
        metrics::gauge!("muster_registry_failure_tolerance").set(tolerance as f64);
        self.shown.send_replace(Some(Arc::new(status)));
    }
}
