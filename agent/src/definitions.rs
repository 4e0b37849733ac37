//! The directory of definition files, taken up live.
//!
//! The truth is a scan of the directory: at the start, whenever the system reports a change in it, and every few
//! seconds in case a report was lost (network file systems give none). A file is read once it has stood still for
//! [`SETTLE`], so half-written files and editors that replace a file by way of its absence do no harm. A file that
//! cannot be taken up keeps its last good services; a service leaves only when its file, seen whole, no longer has it,
//! and many leave at once only past the [`brake`]. All of that holds over a restart: what was in force is kept.
//!
//! An entry of the directory harms itself alone: what is no regular file, cannot be opened or does not answer ([`disk`])
//! is a problem of its own, and what is beyond a limit is left out, never what is in force already.

pub mod brake;
mod disk;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use brake::{RemovalBrake, RemovalHold};
use disk::{Disk, Fingerprint, Look, Reading};
use muster_catalog::{CheckId, InstanceId};
use muster_registry::Decision;
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::definition::ServiceDefinition;
use crate::local::{FileService, LocalError, LocalHandle};

/// How long a file must stand still before it is read: an editor or a copy writes faster than this.
const SETTLE: Duration = Duration::from_millis(200);
/// While files go on vanishing, those that are gone wait for each other so long at most: a directory that is being
/// emptied is then seen emptied, and not file by file.
const VANISHED_TOGETHER: Duration = Duration::from_secs(2);
/// Scans without a report of a change: one `stat` per file.
const RESCAN_EVERY: Duration = Duration::from_secs(5);
/// More files than this are a mistake in what is put there.
const MAX_FILES: usize = 1024;
/// All files together: what one host can run.
const MAX_SERVICES: usize = 4096;

/// A definition that was not taken up, for people and for the API: file, line, key, value, remedy.
pub type Problem = String;

/// A file of the directory.
#[derive(Debug)]
struct KnownFile {
    path: Arc<Path>,
    /// As last seen; `None` while it is missing.
    seen: Option<Fingerprint>,
    seen_at: Instant,
    /// As it was when it was last read.
    read: Option<Fingerprint>,
    good: Vec<Arc<ServiceDefinition>>,
    problem: Option<Problem>,
    /// Why it cannot be looked at or read, and since when.
    failing: Option<(Instant, String)>,
}

/// The files of one directory and what they define.
#[derive(Debug)]
pub struct Definitions {
    directory: PathBuf,
    settle: Duration,
    disk: Disk,
    files: BTreeMap<PathBuf, KnownFile>,
    /// The services of the last scan: a limit is for those that come after them.
    in_force: BTreeSet<InstanceId>,
    directory_problem: Option<Problem>,
    /// Whether the last scan listed the directory.
    listed: bool,
    /// Already logged, so that each is logged once.
    logged: Vec<Problem>,
}

/// What a scan came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scan {
    /// All services that the files define, by file and place.
    pub services: Vec<FileService>,
    /// All that is wrong.
    pub problems: Vec<Problem>,
    /// Some file has not stood still for long enough: scan again soon.
    pub unsettled: bool,
    /// The directory could not be looked through: these are the last known ones.
    pub unread: bool,
}

impl Definitions {
    /// A directory that has not been scanned yet.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            settle: Duration::ZERO,
            disk: Disk::default(),
            files: BTreeMap::new(),
            in_force: BTreeSet::new(),
            directory_problem: None,
            listed: false,
            logged: Vec::new(),
        }
    }

    /// The same, with what was in force when the agent last ran.
    fn resume(directory: &Path, last: &[FileService]) -> Self {
        let mut definitions = Self::new(directory);
        for FileService { definition, path } in last {
            let file = definitions.files.entry(path.to_path_buf());
            file.or_insert_with(|| KnownFile::of_an_earlier_start(path)).good.push(definition.clone());
            definitions.in_force.insert(definition.id.clone());
        }
        definitions
    }

    /// Looks at every file and reads those that changed. The first scan takes files as they are. Blocks, for as long as
    /// the file system takes to answer or is found not to.
    pub fn scan(&mut self, now: Instant) -> Scan {
        let found = self.disk.list(&self.directory);
        self.listed = found.is_ok();
        // One that is not there holds none, and what was in force goes past the brake.
        let unread = found.as_ref().is_err_and(|error| !error.absent);
        self.directory_problem = match found {
            Ok(found) => self.look_at(found, now),
            // An incomplete view removes nothing.
            Err(error) => Some(format!("{}: {}", self.directory.display(), error.why)),
        };
        let settle = self.settle;
        let vanishing = self.files.values().any(|file| file.seen.is_none() && now - file.seen_at < settle);
        let patience = if vanishing { settle.max(VANISHED_TOGETHER) } else { settle };
        self.files.retain(|_, file| file.seen.is_some() || now - file.seen_at < patience);
        self.read_changed(now, settle);
        self.settle = SETTLE;
        let unsettled = self.files.values().any(|file| file.is_unsettled(now, settle));
        let (services, problems) = self.merge(now, settle);
        self.in_force = services.iter().map(|service| service.definition.id.clone()).collect();
        for problem in problems.iter().filter(|problem| !self.logged.contains(problem)) {
            tracing::error!(%problem, "a definition is not taken up");
        }
        self.logged.clone_from(&problems);
        Scan { services, problems, unsettled, unread }
    }

    /// Takes note of how the files look; those that are known come before new ones where there are too many.
    fn look_at(&mut self, found: Vec<PathBuf>, now: Instant) -> Option<Problem> {
        let (mut taken, new): (Vec<_>, Vec<_>) = found.into_iter().partition(|path| self.files.contains_key(path));
        let room = MAX_FILES.saturating_sub(taken.len());
        let over = new.len().saturating_sub(room);
        taken.extend(new.into_iter().take(room));
        let mut looks = self.disk.look(taken);
        for (path, file) in &mut self.files {
            file.note(looks.remove(path).unwrap_or(Look::Nothing), now);
        }
        for (path, look) in looks {
            let mut file = KnownFile::new(&path, None, now);
            file.note(look, now);
            if file.seen.is_some() {
                self.files.insert(path, file);
            }
        }
        (over > 0).then(|| {
            let directory = self.directory.display();
            format!(
                "{directory}: {over} files beyond the first {MAX_FILES} are left out: put several services into one"
            )
        })
    }

    /// Reads the files that changed and have stood still since.
    fn read_changed(&mut self, now: Instant, settle: Duration) {
        let due: Vec<_> =
            self.files.iter().filter(|(_, file)| file.is_due(now, settle)).map(|(path, _)| path.clone()).collect();
        let readings = self.disk.read(due.clone());
        let silence = self.disk.silence();
        for (path, reading) in due.iter().zip(readings) {
            let Some(file) = self.files.get_mut(path) else { continue };
            match reading {
                Some(reading) => file.take(reading),
                None => file.failing = Some((now, silence.clone())),
            }
        }
    }

    /// All services of all files. Of two with one id, or with checks of one id, the first by file name wins.
    fn merge(&self, now: Instant, settle: Duration) -> (Vec<FileService>, Vec<Problem>) {
        let mut problems: Vec<_> = self.directory_problem.iter().cloned().collect();
        let mut services: Vec<FileService> = Vec::new();
        let mut owners: BTreeMap<InstanceId, Arc<Path>> = BTreeMap::new();
        let mut check_owners: BTreeMap<CheckId, Arc<Path>> = BTreeMap::new();
        for file in self.files.values() {
            problems.extend(file.find_problem(now, settle));
            let path = file.path.display();
            for definition in &file.good {
                let taken = owners.get(&definition.id).map(|owner| ("service", &definition.id, owner)).or_else(|| {
                    let mut checks = definition.checks.iter();
                    checks.find_map(|check| Some(("check", &check.id, check_owners.get(&check.id)?)))
                });
                if let Some((what, id, owner)) = taken {
                    let owner = owner.display();
                    problems.push(format!(
                        "{path}: {what} id {id:?} is defined in {owner} already, which stands: give this one another id"
                    ));
                    continue;
                }
                owners.insert(definition.id.clone(), file.path.clone());
                check_owners.extend(definition.checks.iter().map(|check| (check.id.clone(), file.path.clone())));
                services.push(FileService { definition: definition.clone(), path: file.path.clone() });
            }
        }
        self.leave_out(&mut services, &mut problems);
        (services, problems)
    }

    /// Leaves out what is beyond [`MAX_SERVICES`]: the last by file name of those that are not in force.
    fn leave_out(&self, services: &mut Vec<FileService>, problems: &mut Vec<Problem>) {
        let mut over = services.len().saturating_sub(MAX_SERVICES);
        let mut left_out = |service: &FileService| {
            let out = over > 0 && !self.in_force.contains(&service.definition.id);
            if out {
                over -= 1;
                let (path, id) = (service.path.display(), &service.definition.id);
                problems.push(format!(
                    "{path}: service {id:?} is beyond {MAX_SERVICES} services of one host: remove some first"
                ));
            }
            out
        };
        let mut kept: Vec<_> = services.drain(..).rev().filter(|service| !left_out(service)).collect();
        kept.reverse();
        // All that is left was in force, and a limit that became smaller with a new build holds all the same.
        kept.truncate(MAX_SERVICES);
        *services = kept;
    }
}

impl KnownFile {
    fn new(path: &Path, seen: Option<Fingerprint>, seen_at: Instant) -> Self {
        Self { path: Arc::from(path), seen, seen_at, read: None, good: Vec::new(), problem: None, failing: None }
    }

    /// Seen and read as no file is: whatever is there now is another one, and until it is known it is there.
    fn of_an_earlier_start(path: &Path) -> Self {
        let seen = Some(Fingerprint::default());
        Self { read: seen.clone(), ..Self::new(path, seen, Instant::now()) }
    }

    /// Takes note of what stands under its name now.
    fn note(&mut self, look: Look, now: Instant) {
        let seen = match look {
            Look::File(seen) => Some(seen),
            Look::Nothing => None,
            Look::Bad(why) => {
                let since = self.failing.take().map_or(now, |(since, _)| since);
                self.failing = Some((since, why));
                // It is there, and nobody can say that it changed.
                if self.seen.is_none() {
                    (self.seen, self.read) = (Some(Fingerprint::default()), Some(Fingerprint::default()));
                }
                return;
            }
        };
        self.failing = None;
        if self.seen != seen {
            (self.seen, self.seen_at) = (seen, now);
        }
    }

    /// Whether it is to be read: it changed and has stood still since.
    fn is_due(&self, now: Instant, settle: Duration) -> bool {
        let changed = self.seen.is_some() && self.seen != self.read;
        changed && self.failing.is_none() && now - self.seen_at >= settle
    }

    fn is_unsettled(&self, now: Instant, settle: Duration) -> bool {
        match &self.failing {
            Some((since, _)) => now - *since < settle,
            None => self.seen != self.read,
        }
    }

    /// Takes up what was read, unless it changed meanwhile: the next scan sees that.
    fn take(&mut self, (outcome, look): Reading) {
        if self.seen.clone().map(Look::File) != Some(look) {
            return;
        }
        self.read.clone_from(&self.seen);
        match outcome {
            Ok(services) => {
                tracing::info!(file = %self.path.display(), services = services.len(), "definitions taken up");
                self.good = services.into_iter().map(Arc::new).collect();
                self.problem = None;
            }
            Err(error) => self.problem = Some(error.to_string()),
        }
    }

    /// What is wrong with it. A failure that has just begun may be a link in the middle of being replaced.
    fn find_problem(&self, now: Instant, settle: Duration) -> Option<Problem> {
        let failing = self.failing.as_ref().filter(|(since, _)| now - *since >= settle);
        let failing = failing.map(|(_, why)| format!("{}: {why}", self.path.display()));
        let problem = failing.or_else(|| self.problem.clone())?;
        let kept = if self.good.is_empty() { "" } else { " (its last good definition stays in force)" };
        Some(format!("{problem}{kept}"))
    }
}

/// An operator's decision on its way to the task that follows the directory. The answer is how many services it was
/// about; `None` when nothing is held under the id.
#[derive(Debug)]
pub(crate) struct Decide {
    pub(crate) id: String,
    pub(crate) decision: Decision,
    pub(crate) reply: oneshot::Sender<Option<usize>>,
}

/// The way to the brake of the directory: what is held, and decisions about it.
#[derive(Debug, Clone)]
pub struct RemovalHandle {
    pub(crate) held: watch::Receiver<Option<Arc<RemovalHold>>>,
    pub(crate) decisions: mpsc::Sender<Decide>,
    /// Asks for a scan now.
    pub(crate) rescan: Arc<Notify>,
}

/// The brake and where it is asked.
#[derive(Debug)]
pub struct RemovalSeat {
    brake: RemovalBrake,
    held: watch::Sender<Option<Arc<RemovalHold>>>,
    decisions: mpsc::Receiver<Decide>,
    rescan: Arc<Notify>,
}

impl RemovalSeat {
    /// A brake with nothing held; `start` numbers the starts of the agent, and `last` was in force in the one before.
    pub fn new(config: brake::MassRemoval, start: u64, last: Vec<FileService>) -> (Self, RemovalHandle) {
        // Operators are few.
        let (sender, decisions) = mpsc::channel(16);
        let (shown, held) = watch::channel(None);
        let rescan = Arc::new(Notify::new());
        let brake = RemovalBrake::new(config, start, last);
        let seat = Self { brake, held: shown, decisions, rescan: rescan.clone() };
        (seat, RemovalHandle { held, decisions: sender, rescan })
    }

    fn judge(&mut self, defined: Vec<FileService>) -> Vec<FileService> {
        let in_force = self.brake.judge(Instant::now(), defined);
        self.held.send_if_modified(|shown| {
            let changed = shown.as_deref() != self.brake.hold();
            if changed {
                *shown = self.brake.hold().cloned().map(Arc::new);
            }
            changed
        });
        in_force
    }

    /// How long the hold may last still.
    fn remaining(&self) -> Option<Duration> {
        Some(self.brake.hold()?.until.saturating_duration_since(Instant::now()))
    }
}

/// Keeps LocalState at what the directory says and the brake lets through, until told to stop. Problems are shown on
/// `problems`. An error means that the directory cannot be looked at any more.
pub async fn follow(
    directory: PathBuf,
    local: LocalHandle,
    problems: watch::Sender<Arc<Vec<Problem>>>,
    mut seat: RemovalSeat,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let (poke, mut pokes) = mpsc::channel(1);
    let mut look = Lookout { definitions: Definitions::resume(&directory, seat.brake.in_force()), watcher: None, poke };
    let mut taken_up: Option<(Vec<FileService>, bool)> = None;
    let mut refused: Vec<Problem> = Vec::new();
    loop {
        let scan;
        (scan, look) = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            scanned = look.scan() => scanned?,
        };
        let wanted = (seat.judge(scan.services), scan.unread);
        let mut wait = if scan.unsettled { SETTLE } else { seat.remaining().unwrap_or(RESCAN_EVERY).min(RESCAN_EVERY) };
        if taken_up.as_ref() != Some(&wanted) {
            let services = wanted.0.clone();
            let outcome = match wanted.1 {
                true => local.set_last_file_services(services).await,
                false => local.set_file_services(services).await,
            };
            let now_refused = match outcome {
                Ok(()) => {
                    taken_up = Some(wanted);
                    Vec::new()
                }
                Err(LocalError::Stopping) => return Ok(()),
                Err(LocalError::NotTakenUp(reasons)) => reasons,
                Err(error) => vec![format!("{}: {error}", directory.display())],
            };
            for problem in now_refused.iter().filter(|problem| !refused.contains(problem)) {
                tracing::error!(%problem, "a definition is not taken up: tried again");
            }
            refused = now_refused;
            if !refused.is_empty() {
                wait = wait.min(RESCAN_EVERY);
            }
        }
        show(&problems, scan.problems.into_iter().chain(refused.iter().cloned()).collect());
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            Some(()) = pokes.recv() => {}
            () = seat.rescan.notified() => {}
            Some(Decide { id, decision, reply }) = seat.decisions.recv() => {
                // The asker may have given up.
                reply.send(seat.brake.decide(Instant::now(), &id, decision)).ok();
            }
            () = tokio::time::sleep(wait) => {}
        }
    }
}

fn show(problems: &watch::Sender<Arc<Vec<Problem>>>, found: Vec<Problem>) {
    metrics::gauge!("muster_agent_definition_errors").set(found.len() as f64);
    problems.send_if_modified(|shown| {
        let changed = **shown != found;
        if changed {
            *shown = Arc::new(found);
        }
        changed
    });
}

/// The directory and the system's reports of changes in it.
struct Lookout {
    definitions: Definitions,
    watcher: Option<RecommendedWatcher>,
    poke: mpsc::Sender<()>,
}

impl Lookout {
    /// Scans on a thread of its own: the runtime's threads are for what cannot hang, and a stop waits for them.
    async fn scan(mut self) -> io::Result<(Scan, Self)> {
        let (answer, scanned) = oneshot::channel();
        std::thread::Builder::new().name("muster-scan".into()).spawn(move || {
            let mut scan = self.definitions.scan(Instant::now());
            // A directory that was just listed answers, so to watch it does not hang.
            if self.watcher.is_none() && self.definitions.listed {
                self.watcher = watch_directory(&self.definitions.directory, self.poke.clone());
                // What changed before it was watched is seen soon.
                scan.unsettled |= self.watcher.is_some();
            }
            // Whoever asked may have stopped.
            let _ = answer.send((scan, self));
        })?;
        scanned.await.map_err(|_| io::Error::other("the thread that scans the services directory ended by itself"))
    }
}

/// Pokes on every change in the directory; `None` where the system cannot, and then the rescan finds it.
fn watch_directory(directory: &Path, poke: mpsc::Sender<()>) -> Option<RecommendedWatcher> {
    let on_event = move |event: notify::Result<notify::Event>| {
        // Reading a file is an event too; a poke that is waiting already covers this one.
        if event.is_ok_and(|event| !event.kind.is_access()) {
            let _ = poke.try_send(());
        }
    };
    let mut watcher = notify::recommended_watcher(on_event).ok()?;
    watcher.watch(directory, RecursiveMode::NonRecursive).ok()?;
    Some(watcher)
}
