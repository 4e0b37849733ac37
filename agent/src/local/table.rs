//! What stands on this node, without tasks or I/O: each operation takes the time and marks what it changed.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use muster_catalog::{Check, CheckId, Instance, InstanceId, Name, Status, Text, Timestamp};
use tokio::{task::AbortHandle, time::Instant};

use super::store::{SavedMaintenance, SavedResult};
use super::{LocalCheck, LocalError, LocalListing, LocalRows, LocalService, NOT_RUN_YET, Source, Sources, TtlUpdate};
use crate::checks::{Outcome, Report, damping::FlapDamper, threshold::Threshold, ttl::TtlDeadline};
use crate::definition::{CheckDefinition, Probe, ServiceDefinition, is_reserved};

mod maintenance;

/// More services on one host than this come from a runaway client.
pub(super) const MAX_SERVICES: usize = 4096;
/// Each costs a task and a probe per interval.
pub(super) const MAX_CHECKS: usize = 8192;
/// A result older than this and one period of its check says nothing about now: the check is "not run yet".
const MAX_RESTORED_AGE: Duration = Duration::from_secs(300);
/// After a start, results wait this long for their checks to be defined again (files are read in the first seconds).
const CLAIM_WITHIN: Duration = Duration::from_secs(60);

/// One moment on both clocks: the one that only goes on, and the one that survives a restart.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    pub(super) instant: Instant,
    pub(super) wall: Timestamp,
}

/// What the owner has to do after operations.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Marks {
    /// A definition or status changed: new rows, a new generation.
    pub(super) rows: bool,
    /// Only outputs changed.
    pub(super) outputs: bool,
    /// A status changed: save results soon.
    pub(super) statuses: bool,
}

/// Aborts the probe's task when its check goes.
#[derive(Debug)]
pub(super) struct Task(pub(super) AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Debug)]
struct ServiceSlot {
    definition: Arc<ServiceDefinition>,
    source: Source,
    withdrawn: bool,
    row: Arc<Instance>,
}

#[derive(Debug)]
pub(super) struct CheckSlot {
    pub(super) definition: Arc<CheckDefinition>,
    source: Source,
    /// Part of its service's definition, not registered by itself.
    listed: bool,
    threshold: Threshold,
    damper: FlapDamper,
    output: Text,
    last_run: Option<Timestamp>,
    ttl: Option<TtlDeadline>,
    critical_since: Option<Instant>,
    /// Which start of its task reports count.
    pub(super) run: u64,
    pub(super) task: Option<Task>,
    row: Arc<Check>,
}

/// All services and checks of this node.
#[derive(Debug)]
pub(super) struct Table {
    node: Name,
    services: BTreeMap<InstanceId, ServiceSlot>,
    pub(super) checks: BTreeMap<CheckId, CheckSlot>,
    maintenance: SavedMaintenance,
    node_row: Option<Arc<Check>>,
    /// Results from before the restart that no check has claimed yet.
    restored: BTreeMap<CheckId, SavedResult>,
    /// Checks that went while their results may be on disk: one that comes under the same id later is another one.
    pub(super) forgotten: Vec<CheckId>,
    started: Instant,
    /// Which boot of the host this is, where it says so.
    boot: Option<Arc<str>>,
    sources: Sources,
    draining: bool,
    generation: u64,
    pub(super) marks: Marks,
}

impl Table {
    pub(super) fn new(
        node: Name,
        maintenance: SavedMaintenance,
        restored: BTreeMap<CheckId, SavedResult>,
        boot: Option<Arc<str>>,
        started: Instant,
    ) -> Self {
        let mut table = Self {
            node,
            services: BTreeMap::new(),
            checks: BTreeMap::new(),
            maintenance,
            node_row: None,
            restored,
            forgotten: Vec::new(),
            started,
            boot,
            sources: Sources::Reading,
            draining: false,
            generation: 0,
            marks: Marks { rows: true, ..Marks::default() },
        };
        table.node_row = table.node_maintenance_row();
        table
    }

    /// Why a service of the API may not be taken up, if so.
    pub(super) fn admit_service(&self, definition: &ServiceDefinition, replaced: usize) -> Result<(), LocalError> {
        if let Some(slot) = self.services.get(&definition.id) {
            refuse_file("service", &definition.id, &slot.source)?;
        } else if self.services.len() >= MAX_SERVICES {
            return Err(LocalError::Invalid(format!("this node has {MAX_SERVICES} services already: deregister some")));
        }
        self.admit_checks(definition, replaced)
    }

    fn admit_checks(&self, definition: &ServiceDefinition, replaced: usize) -> Result<(), LocalError> {
        if self.checks.len() + definition.checks.len() > MAX_CHECKS + replaced {
            return Err(LocalError::Invalid(format!("this node has {MAX_CHECKS} checks already: deregister some")));
        }
        for check in &definition.checks {
            if is_reserved(&check.id) {
                return Err(reserved(&check.id));
            }
            let taken = self.checks.get(&check.id).filter(|slot| slot.definition.instance != check.instance);
            if let Some(slot) = taken {
                return Err(taken_check(&check.id, slot));
            }
        }
        Ok(())
    }

    /// Why a service of a file may not be taken up, if so: with one of its checks it would take that of another service
    /// of the API, or of the node, which would then stand unwatched and pass.
    pub(super) fn admit_file_checks(&self, definition: &ServiceDefinition) -> Result<(), LocalError> {
        let taken = definition.checks.iter().find_map(|check| {
            let slot = self.checks.get(&check.id)?;
            (slot.source == Source::Api && slot.definition.instance != check.instance).then_some((check, slot))
        });
        match taken {
            None => Ok(()),
            Some((check, slot)) => Err(taken_check(&check.id, slot)),
        }
    }

    /// Why a check of the API may not be taken up, if so.
    pub(super) fn admit_check(&self, definition: &CheckDefinition) -> Result<(), LocalError> {
        if let Some(id) = &definition.instance
            && !self.services.contains_key(id)
        {
            return Err(LocalError::UnknownService(id.clone()));
        }
        match self.checks.get(&definition.id) {
            Some(slot) => {
                refuse_file("check", &definition.id, &slot.source)?;
                let same = slot.definition.instance == definition.instance;
                if same { Ok(()) } else { Err(taken_check(&definition.id, slot)) }
            }
            None if is_reserved(&definition.id) => Err(reserved(&definition.id)),
            None if self.checks.len() >= MAX_CHECKS => {
                Err(LocalError::Invalid(format!("this node has {MAX_CHECKS} checks already: deregister some")))
            }
            None => Ok(()),
        }
    }

    pub(super) fn find_service(&self, id: &str) -> Option<(&Arc<ServiceDefinition>, &Source)> {
        self.services.get(id).map(|slot| (&slot.definition, &slot.source))
    }

    pub(super) fn find_check(&self, id: &str) -> Option<(&Arc<CheckDefinition>, &Source, bool)> {
        self.checks.get(id).map(|slot| (&slot.definition, &slot.source, slot.listed))
    }

    pub(super) fn file_service_ids(&self) -> Vec<InstanceId> {
        let from_file = self.services.iter().filter(|(_, slot)| slot.source != Source::Api);
        from_file.map(|(id, _)| id.clone()).collect()
    }

    /// The checks that were registered for the instance by themselves.
    pub(super) fn standalone_checks(&self, id: &str) -> Vec<CheckId> {
        let own = |slot: &&CheckSlot| slot.definition.instance.as_deref() == Some(id) && !slot.listed;
        self.checks.values().filter(own).map(|slot| slot.definition.id.clone()).collect()
    }

    /// Puts a service and the checks of its definition; earlier listed checks that it does not name go.
    pub(super) fn put_service(&mut self, definition: Arc<ServiceDefinition>, source: Source, at: Moment) {
        let id = definition.id.clone();
        self.remove_checks(|slot| {
            slot.listed
                && slot.definition.instance.as_ref() == Some(&id)
                && !definition.checks.iter().any(|check| check.id == slot.definition.id)
        });
        for check in &definition.checks {
            self.put_check(Arc::new(check.clone()), source.clone(), true, at);
        }
        let maintenance = self.maintenance.services.get(&id).cloned();
        let row = Arc::new(definition.to_instance(&self.node, self.draining, maintenance));
        self.services.insert(id, ServiceSlot { definition, source, withdrawn: false, row });
        self.marks.rows = true;
    }

    /// Puts a check. One of the same id keeps its status and output: changing a definition must not make it flap.
    pub(super) fn put_check(&mut self, definition: Arc<CheckDefinition>, source: Source, listed: bool, at: Moment) {
        self.marks.rows = true;
        let id = definition.id.clone();
        let earlier = self.checks.remove(&id);
        if let Some(mut slot) = earlier {
            if slot.definition == definition {
                (slot.source, slot.listed) = (source, listed);
                self.checks.insert(id, slot);
                return;
            }
            let mut new = CheckSlot::new(&self.node, definition, source, listed, at);
            if new.definition.probe.kind() == slot.definition.probe.kind() {
                new.damper = slot.damper.under(new.definition.flaps);
                new.carry(&self.node, slot.threshold.status(), slot.output.clone(), slot.last_run, at);
                new.critical_since = slot.critical_since.filter(|_| slot.threshold.status() == Status::Critical);
            } else {
                self.forgotten.push(id.clone());
            }
            self.checks.insert(id, new);
            return;
        }
        let mut new = CheckSlot::new(&self.node, definition, source, listed, at);
        let oldest = MAX_RESTORED_AGE + new.row.kind.interval;
        let saved = self.restored.remove(&id).filter(|saved| at.wall.since(saved.at()) <= oldest);
        if let Some((kept, age)) = saved.as_ref().and_then(|saved| saved.flaps(at.wall)) {
            new.damper = FlapDamper::restore(new.definition.flaps, kept, age, at.instant);
        }
        let status = saved.as_ref().and_then(|saved| saved.status(self.boot.as_deref(), new.ttl.is_some()));
        if let (Some(saved), Some(status)) = (saved, status) {
            new.carry(&self.node, status, Text::from(saved.output.as_str()), Some(saved.at()), at);
            let age = at.wall.since(saved.at());
            // In that time it could have fallen: the host may have been started anew, and the service not.
            if age > new.row.kind.interval * new.threshold.fall() {
                new.threshold.doubt();
            }
            new.show_age(&self.node, age, at.instant);
        }
        self.checks.insert(id, new);
    }

    /// Removes a service and all its checks.
    pub(super) fn remove_service(&mut self, id: &str) {
        self.services.remove(id);
        self.remove_checks(|slot| slot.definition.instance.as_deref() == Some(id));
    }

    pub(super) fn remove_check(&mut self, id: &str) {
        self.remove_checks(|slot| &*slot.definition.id == id);
    }

    fn remove_checks(&mut self, gone: impl Fn(&CheckSlot) -> bool) {
        let forgotten = &mut self.forgotten;
        self.checks.retain(|id, slot| {
            let gone = gone(slot);
            if gone && slot.last_run.is_some() {
                forgotten.push(id.clone());
            }
            !gone
        });
        self.marks.rows = true;
    }

    /// Replaces a definition whose list of checks alone became shorter.
    pub(super) fn shorten_service(&mut self, definition: ServiceDefinition) {
        if let Some(slot) = self.services.get_mut(&definition.id) {
            slot.definition = Arc::new(definition);
        }
    }

    /// Takes a probe's outcome, unless its check was replaced since.
    pub(super) fn observe(&mut self, report: Report, at: Moment) {
        let Some(slot) = self.checks.get_mut(&report.check).filter(|slot| slot.run == report.run) else { return };
        let before = slot.threshold.status();
        slot.threshold.observe(report.outcome.status);
        self.settle(&report.check, before, report.outcome.output, at);
    }

    /// Takes what a service says of itself.
    /// Takes a client's report; returns it where it changes the status, to be kept before it is acknowledged.
    pub(super) fn update_ttl(
        &mut self,
        id: &CheckId,
        update: &TtlUpdate,
        at: Moment,
    ) -> Result<Option<SavedResult>, LocalError> {
        let slot = self.checks.get_mut(id).ok_or_else(|| LocalError::UnknownCheck(id.clone()))?;
        let Some(ttl) = &mut slot.ttl else {
            let kind = slot.definition.probe.kind();
            let message = format!("check {id:?} is of type {kind} and probes by itself: only ttl checks take updates");
            return Err(LocalError::Invalid(message));
        };
        ttl.renew(at.instant);
        let before = slot.threshold.status();
        slot.threshold.set(update.status);
        self.settle(id, before, Outcome::new(update.status, &update.output).output, at);
        let changed = self.checks.get(id).filter(|slot| slot.threshold.status() != before);
        Ok(changed.and_then(|slot| self.result(slot, at)))
    }

    /// The earliest time at which [`Table::pass_time`] has something to do.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let ttls = self.checks.values().filter_map(|slot| slot.ttl.as_ref()?.until());
        let reaps = self.checks.values().filter_map(|slot| self.reap_at(slot));
        let recoveries = self.checks.values().filter(|slot| slot.is_held_back()).filter_map(|slot| slot.damper.until());
        ttls.chain(reaps).chain(recoveries).min()
    }

    /// How many checks are good and held back.
    pub(super) fn held_back(&self) -> usize {
        self.checks.values().filter(|slot| slot.is_held_back()).count()
    }

    fn reap_at(&self, slot: &CheckSlot) -> Option<Instant> {
        let (since, after) = (slot.critical_since?, slot.definition.deregister_critical_after?);
        let service = self.services.get(slot.definition.instance.as_ref()?)?;
        (!service.withdrawn).then(|| since + after)
    }

    /// Expires TTLs, lets recoveries through that were held back, and withdraws services that were critical for too long; returns those of the API, which are to be
    /// deregistered. A file's service is only withdrawn: it returns when its checks are good again.
    pub(super) fn pass_time(&mut self, at: Moment) -> Vec<InstanceId> {
        let mut expired = Vec::new();
        for (id, slot) in &mut self.checks {
            let outcome = slot.ttl.as_mut().and_then(|ttl| ttl.expire(at.instant, &slot.output));
            if let Some(outcome) = outcome {
                let before = slot.threshold.status();
                slot.threshold.set(outcome.status);
                expired.push((id.clone(), before, outcome));
            }
        }
        for (id, before, outcome) in expired {
            self.settle(&id, before, outcome.output, at);
        }
        let over = |slot: &CheckSlot| slot.is_held_back() && slot.damper.remaining(at.instant).is_none();
        let over: Vec<_> = self.checks.iter().filter(|(_, slot)| over(slot)).map(|(id, _)| id.clone()).collect();
        over.iter().for_each(|id| self.show(id, at));
        let overdue = |slot: &&CheckSlot| self.reap_at(slot).is_some_and(|due| due <= at.instant);
        let mut due: Vec<_> =
            self.checks.values().filter(overdue).filter_map(|slot| slot.definition.instance.clone()).collect();
        due.dedup();
        for id in &due {
            if let Some(slot) = self.services.get_mut(id) {
                slot.withdrawn = true;
                self.marks.rows = true;
                tracing::warn!(service = %id, "critical for longer than deregister_critical_after: out of the catalog");
            }
        }
        due.retain(|id| self.services.get(id).is_some_and(|slot| slot.source == Source::Api));
        due
    }

    /// Takes note of a result; `before` is what the thresholds came to before it.
    fn settle(&mut self, id: &CheckId, before: Status, output: Text, at: Moment) {
        let Some(slot) = self.checks.get_mut(id) else { return };
        slot.last_run = Some(at.wall);
        slot.output = output;
        let now = slot.threshold.status();
        if now != before {
            self.marks.statuses = true;
            // What is held back as critical is good by itself, and not to be deregistered.
            slot.critical_since = (now == Status::Critical).then_some(at.instant);
            if now == Status::Critical && slot.damper.fall(at.instant) {
                let kind = slot.definition.probe.kind();
                metrics::counter!("muster_agent_check_suppressions_total", "type" => kind).increment(1);
                tracing::warn!(check = %id, "it falls again and again: its recovery will be held back for a while");
            }
        }
        self.show(id, at);
    }

    /// Puts a check's status and output into its row.
    fn show(&mut self, id: &CheckId, at: Moment) {
        let Some(slot) = self.checks.get_mut(id) else { return };
        let row = slot.build_row(&self.node, at.instant);
        if row.status == slot.row.status {
            if row.output != slot.row.output {
                // An output travels with the next push. The first one makes a push: that a check has not run yet would be
                // said for as long as it fails.
                self.marks.rows |= *slot.row.output == *NOT_RUN_YET;
                self.marks.outputs = true;
                slot.row = row;
            }
            return;
        }
        tracing::info!(check = %id, from = %slot.row.status, to = %row.status, output = %row.output, "status changed");
        slot.row = row;
        (self.marks.rows, self.marks.statuses) = (true, true);
        let Some(instance) = slot.definition.instance.clone() else { return };
        let of_it = |slot: &&CheckSlot| slot.definition.instance.as_ref() == Some(&instance);
        let critical = self.checks.values().filter(of_it).any(|slot| slot.row.status == Status::Critical);
        if let Some(service) = self.services.get_mut(&instance) {
            service.withdrawn &= critical;
        }
    }

    /// Takes note of how much was read.
    pub(super) fn note_sources(&mut self, sources: Sources) {
        if self.sources != sources {
            self.sources = sources;
            self.marks.rows = true;
        }
    }

    pub(super) fn drain(&mut self) {
        self.draining = true;
        self.rebuild_instances();
    }

    fn rebuild_instances(&mut self) {
        for slot in self.services.values_mut() {
            let maintenance = self.maintenance.services.get(&slot.definition.id).cloned();
            let row = slot.definition.to_instance(&self.node, self.draining, maintenance);
            if *slot.row != row {
                slot.row = Arc::new(row);
            }
        }
        self.marks.rows = true;
    }

    /// The rows that the registry should hold now, as a new generation if more than outputs changed.
    pub(super) fn rows(&mut self, new_generation: bool) -> LocalRows {
        self.generation += u64::from(new_generation);
        let shown = |instance: &Option<InstanceId>| {
            instance.as_ref().and_then(|id| self.services.get(id)).is_none_or(|slot| !slot.withdrawn)
        };
        let checks = self.checks.values().filter(|slot| shown(&slot.definition.instance)).map(|slot| &slot.row);
        let mut checks: Vec<_> = checks.chain(&self.node_row).cloned().collect();
        checks.sort_by(|a, b| a.id.cmp(&b.id));
        let instances = self.services.values().filter(|slot| !slot.withdrawn).map(|slot| slot.row.clone()).collect();
        LocalRows { generation: self.generation, sources: self.sources, draining: self.draining, instances, checks }
    }

    pub(super) fn list(&self) -> LocalListing {
        let services = self.services.values().map(|slot| LocalService {
            definition: slot.definition.clone(),
            source: slot.source.clone(),
            instance: slot.row.clone(),
            withdrawn: slot.withdrawn,
        });
        let checks = self.checks.values().map(|slot| LocalCheck {
            definition: slot.definition.clone(),
            source: slot.source.clone(),
            check: slot.row.clone(),
            last_run: slot.last_run,
        });
        let node_maintenance = self.maintenance.node.clone();
        LocalListing { services: services.collect(), checks: checks.collect(), node_maintenance }
    }

    /// The last results, and those from before the restart that may still be claimed.
    pub(super) fn results(&mut self, at: Moment) -> BTreeMap<CheckId, SavedResult> {
        if at.instant.saturating_duration_since(self.started) > CLAIM_WITHIN {
            self.restored.clear();
        }
        let mut results = self.restored.clone();
        for (id, slot) in &self.checks {
            if let Some(result) = self.result(slot, at) {
                results.insert(id.clone(), result);
            }
        }
        results
    }

    fn result(&self, slot: &CheckSlot, at: Moment) -> Option<SavedResult> {
        let result = SavedResult::new(slot.threshold.status(), &slot.output, slot.last_run?);
        let result = result.with_flaps(slot.damper.keep(at.instant), at.wall);
        Some(result.within(self.boot.clone(), self.draining))
    }
}

impl CheckSlot {
    fn new(node: &Name, definition: Arc<CheckDefinition>, source: Source, listed: bool, at: Moment) -> Self {
        let (status, output) = (definition.initial, Text::from(NOT_RUN_YET));
        let ttl = match definition.probe {
            Probe::Ttl { ttl } => Some(TtlDeadline::new(ttl, status != Status::Critical, at.instant)),
            _ => None,
        };
        Self {
            threshold: Threshold::new(definition.thresholds, status),
            damper: FlapDamper::new(definition.flaps, at.instant),
            row: Arc::new(definition.to_check(node, status, output.clone())),
            critical_since: (status == Status::Critical).then_some(at.instant),
            definition,
            source,
            listed,
            output,
            last_run: None,
            ttl,
            run: 0,
            task: None,
        }
    }

    /// Goes on from an earlier result instead of the initial status.
    fn carry(&mut self, node: &Name, status: Status, output: Text, last_run: Option<Timestamp>, at: Moment) {
        self.threshold.set(status);
        (self.output, self.last_run) = (output, last_run);
        self.critical_since = (status == Status::Critical).then_some(at.instant);
        if let Probe::Ttl { ttl } = self.definition.probe {
            self.ttl = Some(TtlDeadline::new(ttl, status != Status::Critical, at.instant));
        }
        self.row = self.build_row(node, at.instant);
    }

    /// Says in the row, until the next run, that the result is from before a restart.
    fn show_age(&mut self, node: &Name, age: Duration, now: Instant) {
        let (status, output) = self.verdict(now);
        let output = format!("{output} ({} s old, from before the agent's restart)", age.as_secs());
        self.row = Arc::new(self.definition.to_check(node, status, output.into()));
    }

    fn build_row(&self, node: &Name, now: Instant) -> Arc<Check> {
        let (status, output) = self.verdict(now);
        Arc::new(self.definition.to_check(node, status, output))
    }

    /// What is shown: a good result of a check that flaps is held back.
    fn verdict(&self, now: Instant) -> (Status, Text) {
        let status = self.threshold.status();
        match self.damper.remaining(now).filter(|_| status != Status::Critical) {
            None => (status, self.output.clone()),
            Some(remaining) => {
                let why = self.damper.explain(remaining);
                let told = Outcome::new(status, &format!("{status}, but held back {why}: {}", self.output));
                (Status::Critical, told.output)
            }
        }
    }

    fn is_held_back(&self) -> bool {
        self.row.status != self.threshold.status()
    }
}

fn reserved(id: &Text) -> LocalError {
    LocalError::Invalid(format!("check id {id:?} is kept for the node's own state: give the check another"))
}

fn taken_check(id: &CheckId, slot: &CheckSlot) -> LocalError {
    let owner = slot.definition.instance.as_deref().map_or("the node".to_owned(), |owner| format!("service {owner:?}"));
    let by = match &slot.source {
        Source::Api => "registered by the API".to_owned(),
        Source::File(path) => format!("defined in {}", path.display()),
    };
    LocalError::Invalid(format!(
        "check id {id:?} belongs to {owner} already, {by}: give this one an id of its own, or remove that one first"
    ))
}

pub(super) fn refuse_file(what: &'static str, id: &Text, source: &Source) -> Result<(), LocalError> {
    match source {
        Source::Api => Ok(()),
        Source::File(path) => Err(LocalError::OwnedByFile { what, id: id.clone(), path: path.display().to_string() }),
    }
}
