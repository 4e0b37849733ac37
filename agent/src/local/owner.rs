//! The owner task: every reason to wake in one `select!`.

use std::{
    collections::BTreeSet,
    future::pending,
    io, mem,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use muster_catalog::{CheckId, InstanceId, Name, Status, Text, Timestamp};
use tokio::{
    sync::{mpsc, watch},
    task::{JoinError, JoinSet, spawn_blocking},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::handle::{Letter, Request};
use super::store::{AddedResult, Saved, Store};
use super::table::{Moment, Table, Task, refuse_file};
use super::{FileService, LocalConfig, LocalError, LocalFailure, LocalHandle, LocalRows, Source, Sources, TtlUpdate};
use crate::checks::{self, Report, Tools, schedule::Schedule};
use crate::definition::{CheckDefinition, Probe, ServiceDefinition};

/// Requests that wait; beyond it callers wait.
const MAX_LETTERS: usize = 256;
/// Outcomes that wait; beyond it probes wait.
const MAX_REPORTS: usize = 256;
/// Status changes within this time are saved together.
const SAVE_SOON: Duration = Duration::from_secs(1);
/// How often the first process of a container takes leave of processes that were left to it.
const REAP_EVERY: Duration = Duration::from_secs(2);
/// How old saved results may grow while nothing changes: well below the age at which they are no longer believed.
const SAVE_EVERY: Duration = Duration::from_secs(60);

/// The owner of this node's truth. [`LocalState::run`] is its task.
#[derive(Debug)]
pub struct LocalState {
    node: Name,
    table: Table,
    store: Option<Store>,
    /// As they are kept on disk.
    kept_files: Vec<FileService>,
    base: Instant,
    runs: u64,
    tools: Arc<Tools>,
    tasks: JoinSet<CheckId>,
    reports: (mpsc::Sender<Report>, mpsc::Receiver<Report>),
    letters: mpsc::Receiver<Letter>,
    rows: watch::Sender<Arc<LocalRows>>,
    save_at: Instant,
}

impl LocalState {
    /// Reads what is kept on disk. Blocks; call it before the runtime is busy.
    pub fn open(config: LocalConfig) -> Result<(Self, LocalHandle), LocalFailure> {
        let (store, saved) = match &config.data_dir {
            None => (None, Saved::default()),
            Some(root) => {
                let (store, saved) = Store::open(root).map_err(|error| LocalFailure::DataDirectory {
                    path: root.display().to_string(),
                    reason: error.to_string(),
                })?;
                (Some(store), saved)
            }
        };
        let at = now();
        let mut table = Table::new(config.node.clone(), saved.maintenance, saved.results, boot_id(), at.instant);
        for definition in saved.services {
            if let Err(error) = definition.checks.iter().try_for_each(refuse_file_only) {
                tracing::error!(service = %definition.id, %error, "a saved service is left out");
                continue;
            }
            table.put_service(Arc::new(definition), Source::Api, at);
        }
        for definition in saved.checks {
            match refuse_file_only(&definition).and_then(|()| table.admit_check(&definition)) {
                Ok(()) => table.put_check(Arc::new(definition), Source::Api, false, at),
                Err(error) => tracing::warn!(check = %definition.id, %error, "a saved check is left out"),
            }
        }
        let damaged = saved.damaged.into();
        let (sender, letters) = mpsc::channel(MAX_LETTERS);
        let (rows, watch) = watch::channel(Arc::new(table.rows(false)));
        let state = Self {
            node: config.node,
            table,
            store,
            kept_files: saved.files,
            base: at.instant,
            runs: 0,
            tools: Arc::new(Tools::new(config.scripts)),
            tasks: JoinSet::new(),
            reports: mpsc::channel(MAX_REPORTS),
            letters,
            rows,
            save_at: at.instant + SAVE_EVERY,
        };
        Ok((state, LocalHandle { letters: sender, rows: watch, damaged }))
    }

    /// The services of definition files that were in force when the agent last ran. They are not taken up by themselves.
    pub fn last_file_services(&self) -> &[FileService] {
        &self.kept_files
    }

    /// Runs until told to stop; saves the results then. An error must end the process.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), LocalFailure> {
        let is_first_process = std::process::id() == 1;
        let mut reaping = tokio::time::interval(REAP_EVERY);
        loop {
            self.publish();
            let deadline = self.table.next_deadline();
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(letter) = self.letters.recv() => self.open_letter(letter).await,
                Some(report) = self.reports.1.recv() => self.table.observe(report, now()),
                Some(ended) = self.tasks.join_next_with_id(), if !self.tasks.is_empty() => self.review(ended)?,
                () = sleep_until(deadline) => self.pass_time().await,
                () = tokio::time::sleep_until(self.save_at) => self.save_results().await,
                _ = reaping.tick(), if is_first_process => self.tools.reap_orphans(),
            }
        }
        self.tasks.shutdown().await;
        self.save_results().await;
        Ok(())
    }

    async fn open_letter(&mut self, letter: Letter) {
        match letter {
            // A caller that went away does not need the answer.
            Letter::List(answer) => drop(answer.send(self.table.list())),
            Letter::Request(request, answer) => {
                let outcome = self.fulfil(request).await;
                self.forget_results().await;
                self.publish();
                drop(answer.send(outcome));
            }
        }
    }

    async fn fulfil(&mut self, request: Request) -> Result<(), LocalError> {
        match request {
            Request::RegisterService { definition, replace_existing_checks } => {
                self.register_service(*definition, replace_existing_checks).await
            }
            Request::RegisterCheck(definition) => self.register_check(*definition).await,
            Request::DeregisterService(id) => self.deregister_service(&id).await,
            Request::DeregisterCheck(id) => self.deregister_check(&id).await,
            Request::UpdateTtl(id, update) => self.update_ttl(id, &update).await,
            Request::SetServiceMaintenance(id, reason) => self.set_maintenance(Some(&id), reason).await,
            Request::SetNodeMaintenance(reason) => self.set_maintenance(None, reason).await,
            Request::SetFileServices(services, sources) => {
                let outcome = self.set_file_services(services).await;
                self.table.note_sources(if outcome.is_ok() { sources } else { Sources::Part });
                outcome
            }
            Request::Drain => {
                self.table.drain();
                Ok(())
            }
        }
    }

    async fn register_service(&mut self, mut definition: ServiceDefinition, replace: bool) -> Result<(), LocalError> {
        definition.checks.iter().try_for_each(refuse_file_only)?;
        let id = definition.id.clone();
        let earlier = self.table.find_service(&id).map(|(earlier, _)| earlier.clone());
        self.table.admit_service(&definition, earlier.as_ref().map_or(0, |earlier| earlier.checks.len()))?;
        let standalone = self.table.standalone_checks(&id);
        if let Some(earlier) = earlier {
            if !replace {
                let named: BTreeSet<_> = definition.checks.iter().map(|check| check.id.clone()).collect();
                let stay = earlier.checks.iter().filter(|check| !named.contains(&check.id));
                definition.checks.extend(stay.cloned());
            }
            if *earlier == definition && (!replace || standalone.is_empty()) {
                return Ok(());
            }
        }
        let definition = Arc::new(definition);
        let kept = definition.clone();
        self.keep(move |store| store.put_service(&kept)).await?;
        for check in &standalone {
            let listed = definition.checks.iter().any(|listed| listed.id == *check);
            if replace || listed {
                let gone = check.clone();
                self.keep(move |store| store.remove_check(&gone)).await?;
            }
            if replace && !listed {
                self.table.remove_check(check);
            }
        }
        self.table.put_service(definition, Source::Api, now());
        Ok(())
    }

    async fn register_check(&mut self, definition: CheckDefinition) -> Result<(), LocalError> {
        refuse_file_only(&definition)?;
        self.table.admit_check(&definition)?;
        let earlier = self.table.find_check(&definition.id);
        if earlier.is_some_and(|(earlier, _, _)| **earlier == definition) {
            return Ok(());
        }
        if earlier.is_some_and(|(_, _, listed)| listed) {
            self.unlist_check(&definition.id).await?;
        }
        let definition = Arc::new(definition);
        let kept = definition.clone();
        self.keep(move |store| store.put_check(&kept)).await?;
        self.table.put_check(definition, Source::Api, false, now());
        Ok(())
    }

    async fn deregister_service(&mut self, id: &InstanceId) -> Result<(), LocalError> {
        let Some((_, source)) = self.table.find_service(id) else {
            return Err(LocalError::UnknownService(id.clone()));
        };
        refuse_file("service", id, source)?;
        self.forget_service(id).await
    }

    /// Removes a service and all that is kept of it. Its maintenance goes last: at no time is it here without it.
    async fn forget_service(&mut self, id: &InstanceId) -> Result<(), LocalError> {
        self.remove_service(id).await?;
        if let Some(left) = self.table.maintenance_without(id) {
            let kept = left.clone();
            self.keep(move |store| store.put_maintenance(&kept)).await?;
            self.table.set_maintenance(left);
        }
        Ok(())
    }

    async fn remove_service(&mut self, id: &InstanceId) -> Result<(), LocalError> {
        self.remove_registration(id).await?;
        self.table.remove_service(id);
        Ok(())
    }

    /// Removes from disk what the API registered.
    async fn remove_registration(&self, id: &InstanceId) -> Result<(), LocalError> {
        let (gone, checks) = (id.clone(), self.table.standalone_checks(id));
        self.keep(move |store| {
            checks.iter().try_for_each(|check| store.remove_check(check))?;
            store.remove_service(&gone)
        })
        .await
    }

    /// A client that reported a change of status does not report it again when the agent is killed: it is on disk first.
    async fn update_ttl(&mut self, id: CheckId, update: &TtlUpdate) -> Result<(), LocalError> {
        let Some(result) = self.table.update_ttl(&id, update, now())? else { return Ok(()) };
        self.add_results(vec![(id, Some(result))]).await;
        Ok(())
    }

    /// Results of checks that are gone must not come back with a check that takes their id.
    async fn forget_results(&mut self) {
        let forgotten: Vec<_> = mem::take(&mut self.table.forgotten).into_iter().map(|id| (id, None)).collect();
        if !forgotten.is_empty() {
            self.add_results(forgotten).await;
        }
    }

    async fn add_results(&self, results: Vec<AddedResult>) {
        if let Err(error) = self.keep(move |store| store.add_results(&results)).await {
            tracing::warn!(%error, "a check's result is not saved: it is as it was before if the agent is killed now");
        }
    }

    async fn deregister_check(&mut self, id: &CheckId) -> Result<(), LocalError> {
        let Some((_, source, listed)) = self.table.find_check(id) else {
            return Err(LocalError::UnknownCheck(id.clone()));
        };
        refuse_file("check", id, source)?;
        if listed {
            self.unlist_check(id).await?;
        } else {
            let gone = id.clone();
            self.keep(move |store| store.remove_check(&gone)).await?;
        }
        self.table.remove_check(id);
        Ok(())
    }

    /// Takes a check out of its API service's definition, so that it does not return with it after a restart.
    async fn unlist_check(&mut self, id: &CheckId) -> Result<(), LocalError> {
        let instance = self.table.find_check(id).and_then(|(check, _, _)| check.instance.clone());
        let Some((service, _)) = instance.and_then(|instance| self.table.find_service(&instance)) else {
            return Ok(());
        };
        let mut service = ServiceDefinition::clone(service);
        service.checks.retain(|check| check.id != *id);
        let kept = service.clone();
        self.keep(move |store| store.put_service(&kept)).await?;
        self.table.shorten_service(service);
        Ok(())
    }

    async fn set_maintenance(&mut self, id: Option<&InstanceId>, reason: Option<Text>) -> Result<(), LocalError> {
        let planned = self.table.plan_maintenance(id, reason)?;
        let kept = planned.clone();
        self.keep(move |store| store.put_maintenance(&kept)).await?;
        self.table.set_maintenance(planned);
        Ok(())
    }

    async fn set_file_services(&mut self, services: Vec<FileService>) -> Result<(), LocalError> {
        let named: BTreeSet<_> = services.iter().map(|service| service.definition.id.clone()).collect();
        for id in self.table.file_service_ids() {
            if !named.contains(&id) {
                tracing::info!(service = %id, "its definition file is gone: deregistered");
                // A deployment may put it back: it is out on purpose until somebody ends that.
                self.remove_service(&id).await?;
            }
        }
        self.keep_files(&services).await;
        let mut refused = Vec::new();
        for FileService { definition, path } in services {
            let shown = path.display().to_string();
            let source = Source::File(path);
            let earlier = self.table.find_service(&definition.id);
            if earlier.is_some_and(|(earlier, by)| *earlier == definition && *by == source) {
                continue;
            }
            if let Err(why) = self.table.admit_file_checks(&definition) {
                refused.push(format!("{shown}: {why}"));
                continue;
            }
            if earlier.is_some_and(|(_, by)| *by == Source::Api) {
                tracing::warn!(service = %definition.id, "a definition file replaces the API's registration");
                self.remove_registration(&definition.id).await?;
                for check in self.table.standalone_checks(&definition.id) {
                    if !definition.checks.iter().any(|named| named.id == check) {
                        self.table.remove_check(&check);
                    }
                }
            }
            self.yield_check_ids(&definition).await?;
            self.table.put_service(definition, source, now());
        }
        if refused.is_empty() { Ok(()) } else { Err(LocalError::NotTakenUp(refused)) }
    }

    /// The files have them still: one that cannot be kept is taken up all the same.
    async fn keep_files(&mut self, services: &[FileService]) {
        if self.kept_files == services {
            return;
        }
        let kept = services.to_vec();
        match self.keep(move |store| store.put_files(&kept)).await {
            Ok(()) => self.kept_files = services.to_vec(),
            Err(error) => tracing::warn!(%error, "the last good definitions are not kept over a restart"),
        }
    }

    /// Files win: the API's checks of this very service that have an id which the file needs are its own from now on. Their
    /// status stays.
    async fn yield_check_ids(&mut self, definition: &ServiceDefinition) -> Result<(), LocalError> {
        for check in &definition.checks {
            let taken = self.table.find_check(&check.id).is_some_and(|(_, source, _)| *source == Source::Api);
            if taken {
                tracing::warn!(check = %check.id, "a definition file replaces the API's check");
                let gone = check.id.clone();
                self.keep(move |store| store.remove_check(&gone)).await?;
            }
        }
        Ok(())
    }

    async fn pass_time(&mut self) {
        for id in self.table.pass_time(now()) {
            // It is out of the catalog already; on disk it is tried again when the agent next starts.
            if let Err(error) = self.forget_service(&id).await {
                tracing::error!(service = %id, %error, "a critical service could not be removed from disk");
            }
        }
        self.forget_results().await;
    }

    async fn save_results(&mut self) {
        let results = self.table.results(now());
        if let Err(error) = self.keep(move |store| store.put_results(&results)).await {
            tracing::warn!(%error, "check results are not saved: after a restart checks begin anew");
        }
        self.save_at = Instant::now() + SAVE_EVERY;
    }

    /// Writes to the data directory off the runtime's threads.
    async fn keep(&self, write: impl FnOnce(&Store) -> io::Result<()> + Send + 'static) -> Result<(), LocalError> {
        let Some(store) = self.store.clone() else { return Ok(()) };
        match spawn_blocking(move || write(&store)).await {
            Ok(outcome) => outcome.map_err(|error| LocalError::Storage(error.to_string())),
            Err(error) => Err(LocalError::Storage(error.to_string())),
        }
    }

    /// Starts the probes of new checks and shows what changed.
    fn publish(&mut self) {
        let marks = mem::take(&mut self.table.marks);
        if marks.statuses {
            self.save_at = self.save_at.min(Instant::now() + SAVE_SOON);
        }
        if !marks.rows && !marks.outputs {
            return;
        }
        if marks.rows {
            self.start_probes();
        }
        let rows = Arc::new(self.table.rows(marks.rows));
        if marks.rows {
            gauge_statuses(&rows);
            metrics::gauge!("muster_agent_checks_held_back").set(self.table.held_back() as f64);
        }
        self.rows.send_if_modified(|shown| {
            *shown = rows;
            marks.rows
        });
    }

    fn start_probes(&mut self) {
        let at = Instant::now();
        for (id, slot) in &mut self.table.checks {
            if slot.task.is_some() || matches!(slot.definition.probe, Probe::Ttl { .. }) {
                continue;
            }
            self.runs += 1;
            slot.run = self.runs;
            let schedule = Schedule::new(self.node.as_key(), id, slot.definition.interval, self.base, at);
            let (tools, rows, reports) = (self.tools.clone(), self.rows.subscribe(), self.reports.0.clone());
            let task = checks::run(slot.definition.clone(), schedule, slot.run, tools, rows, reports);
            slot.task = Some(Task(self.tasks.spawn(task)));
        }
    }

    /// A task that was aborted with its check is as it should be; any other end is not.
    fn review(&self, ended: Result<(tokio::task::Id, CheckId), JoinError>) -> Result<(), LocalFailure> {
        match ended {
            Err(error) if error.is_cancelled() => Ok(()),
            Ok((_, check)) => Err(LocalFailure::ProbeEnded { check, reason: "it returned".to_owned() }),
            Err(error) => {
                let mine = |task: &Task| task.0.id() == error.id();
                let slot = self.table.checks.values().find(|slot| slot.task.as_ref().is_some_and(mine));
                let check = slot.map_or_else(|| "(removed)".into(), |slot| slot.definition.id.clone());
                Err(LocalFailure::ProbeEnded { check, reason: error.to_string() })
            }
        }
    }
}

/// What only files may define is refused here too, wherever else it was let through.
fn refuse_file_only(check: &CheckDefinition) -> Result<(), LocalError> {
    match check.find_file_only_key() {
        None => Ok(()),
        Some(key) => {
            let id = &check.id;
            Err(LocalError::Invalid(format!(
                "check {id:?} has {key}, which only a definition file may: write it there"
            )))
        }
    }
}

fn gauge_statuses(rows: &LocalRows) {
    for status in [Status::Passing, Status::Warning, Status::Critical] {
        let count = rows.checks.iter().filter(|check| check.status == status).count();
        metrics::gauge!("muster_agent_checks", "status" => status.as_str()).set(count as f64);
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => pending().await,
    }
}

/// Another one after each boot of the host.
fn boot_id() -> Option<Arc<str>> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().into())
}

fn now() -> Moment {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let wall = Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
    Moment { instant: Instant::now(), wall }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::Scripts;

    #[tokio::test]
    async fn a_probe_task_that_ends_by_itself_ends_the_owner() {
        for panics in [true, false] {
            let node = Name::host("node", "n1").unwrap();
            let (mut state, _handle) =
                LocalState::open(LocalConfig { node, data_dir: None, scripts: Scripts::Off }).unwrap();
            state.tasks.spawn(async move {
                assert!(!panics, "a defect in a probe");
                "service:web".into()
            });
            let failure = state.run(CancellationToken::new()).await.unwrap_err();
            assert!(failure.to_string().contains("ended by itself"), "{failure}");
        }
    }
}
