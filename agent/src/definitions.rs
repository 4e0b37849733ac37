//! The directory of definition files, taken up live.
//!
//! The truth is a scan of the directory: at the start, whenever the system reports a change in it, and every few
//! seconds in case a report was lost (network file systems give none). A file is read once it has stood still for
//! [`SETTLE`], so half-written files and editors that replace a file by way of its absence do no harm. A file that
//! cannot be taken up keeps its last good services; a service leaves only when its file, seen whole, no longer has it,
//! and many leave at once only past the [`brake`]. All of that holds over a restart: what was in force is kept.

pub mod brake;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use brake::{RemovalBrake, RemovalHold};
use muster_catalog::{CheckId, InstanceId};
use muster_registry::Decision;
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    task::spawn_blocking,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::definition::{self, ServiceDefinition};
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

/// What tells a changed file from an unchanged one without reading it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Fingerprint {
    length: u64,
    inode: u64,
    modified: (i64, i64),
    /// Also moves when only the permissions change, so that a file made readable is read.
    changed: (i64, i64),
}

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
}

/// The files of one directory and what they define.
#[derive(Debug)]
pub struct Definitions {
    directory: PathBuf,
    settle: Duration,
    files: BTreeMap<PathBuf, KnownFile>,
    directory_problem: Option<Problem>,
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
        let (files, logged) = (BTreeMap::new(), Vec::new());
        Self { directory: directory.into(), settle: Duration::ZERO, files, directory_problem: None, logged }
    }

    /// The same, with what was in force when the agent last ran.
    fn resume(directory: &Path, last: &[FileService]) -> Self {
        let mut definitions = Self::new(directory);
        for FileService { definition, path } in last {
            let file = definitions.files.entry(path.to_path_buf());
            file.or_insert_with(|| KnownFile::of_an_earlier_start(path)).good.push(definition.clone());
        }
        definitions
    }

    /// Looks at every file and reads those that changed. The first scan takes files as they are. Blocks.
    pub fn scan(&mut self, now: Instant) -> Scan {
        let listing = list(&self.directory);
        // One that is not there holds none, and what was in force goes past the brake.
        let unread = listing.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::NotFound);
        match listing {
            Ok((found, problem)) => {
                self.directory_problem = problem;
                self.note(found, now);
            }
            // An incomplete view removes nothing.
            Err(error) => {
                let directory = self.directory.display();
                let remedy = "the services known so far stay; make it readable for the agent's user";
                self.directory_problem = Some(format!("{directory}: cannot be listed: {error}; {remedy}"));
            }
        }
        let settle = self.settle;
        let vanishing = self.files.values().any(|file| file.seen.is_none() && now - file.seen_at < settle);
        let patience = if vanishing { settle.max(VANISHED_TOGETHER) } else { settle };
        self.files.retain(|_, file| file.seen.is_some() || now - file.seen_at < patience);
        self.files.values_mut().for_each(|file| file.refresh(now, settle));
        self.settle = SETTLE;
        let unsettled = self.files.values().any(|file| file.seen != file.read);
        let (services, problems) = self.merge();
        metrics::gauge!("muster_agent_definition_errors").set(problems.len() as f64);
        for problem in problems.iter().filter(|problem| !self.logged.contains(problem)) {
            tracing::error!(%problem, "a definition is not taken up");
        }
        self.logged.clone_from(&problems);
        Scan { services, problems, unsettled, unread }
    }

    fn note(&mut self, mut found: BTreeMap<PathBuf, Fingerprint>, now: Instant) {
        for (path, file) in &mut self.files {
            let seen = found.remove(path);
            if file.seen != seen {
                (file.seen, file.seen_at) = (seen, now);
            }
        }
        for (path, seen) in found {
            let file = KnownFile::new(&path, Some(seen), now);
            self.files.insert(path, file);
        }
    }

    /// All services of all files. Of two with one id, or with checks of one id, the first by file name wins.
    fn merge(&self) -> (Vec<FileService>, Vec<Problem>) {
        let mut problems: Vec<_> = self.directory_problem.iter().cloned().collect();
        let mut services: Vec<FileService> = Vec::new();
        let mut owners: BTreeMap<InstanceId, Arc<Path>> = BTreeMap::new();
        let mut check_owners: BTreeMap<CheckId, Arc<Path>> = BTreeMap::new();
        for file in self.files.values() {
            problems.extend(file.problem.clone());
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
                if services.len() >= MAX_SERVICES {
                    problems.push(format!("{path}: service {:?} is beyond {MAX_SERVICES} services", definition.id));
                    break;
                }
                owners.insert(definition.id.clone(), file.path.clone());
                check_owners.extend(definition.checks.iter().map(|check| (check.id.clone(), file.path.clone())));
                services.push(FileService { definition: definition.clone(), path: file.path.clone() });
            }
        }
        (services, problems)
    }
}

impl KnownFile {
    fn new(path: &Path, seen: Option<Fingerprint>, seen_at: Instant) -> Self {
        Self { path: Arc::from(path), seen, seen_at, read: None, good: Vec::new(), problem: None }
    }

    /// Seen and read as no file is: whatever is there now is another one, and until it is known it is there.
    fn of_an_earlier_start(path: &Path) -> Self {
        let seen = Some(Fingerprint::default());
        Self { read: seen.clone(), ..Self::new(path, seen, Instant::now()) }
    }

    /// Reads the file if it changed and has stood still since.
    fn refresh(&mut self, now: Instant, settle: Duration) {
        if self.seen.is_none() || self.seen == self.read || now - self.seen_at < settle {
            return;
        }
        let outcome = definition::read(&self.path);
        if fingerprint(&self.path).ok() != self.seen {
            return; // It changed while it was read: the next scan sees that.
        }
        self.read.clone_from(&self.seen);
        match outcome {
            Ok(services) => {
                tracing::info!(file = %self.path.display(), services = services.len(), "definitions taken up");
                self.good = services.into_iter().map(Arc::new).collect();
                self.problem = None;
            }
            Err(error) if self.good.is_empty() => self.problem = Some(error.to_string()),
            Err(error) => self.problem = Some(format!("{error} (its last good definition stays in force)")),
        }
    }
}

type Listing = (BTreeMap<PathBuf, Fingerprint>, Option<Problem>);

/// The definition files of a directory: `*.toml`, not hidden. A directory that does not exist holds none.
fn list(directory: &Path) -> io::Result<Listing> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if hidden || path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        match fingerprint(&path) {
            Ok(seen) => drop(files.insert(path, seen)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    let over = files.len().saturating_sub(MAX_FILES);
    let problem = (over > 0).then(|| {
        format!(
            "{}: {over} files beyond the first {MAX_FILES} are left out: put several services into one",
            directory.display()
        )
    });
    Ok((files.into_iter().take(MAX_FILES).collect(), problem))
}

fn fingerprint(path: &Path) -> io::Result<Fingerprint> {
    let meta = fs::metadata(path)?;
    Ok(Fingerprint {
        length: meta.len(),
        inode: meta.ino(),
        modified: (meta.mtime(), meta.mtime_nsec()),
        changed: (meta.ctime(), meta.ctime_nsec()),
    })
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
/// `problems`.
pub async fn follow(
    directory: PathBuf,
    local: LocalHandle,
    problems: watch::Sender<Arc<Vec<Problem>>>,
    mut seat: RemovalSeat,
    shutdown: CancellationToken,
) -> Result<(), tokio::task::JoinError> {
    let (poke, mut pokes) = mpsc::channel(1);
    let mut watcher = None;
    let mut definitions = Definitions::resume(&directory, seat.brake.in_force());
    let mut taken_up: Option<(Vec<FileService>, bool)> = None;
    loop {
        if watcher.is_none() {
            watcher = watch_directory(&directory, poke.clone());
        }
        let scanning = spawn_blocking(move || (definitions.scan(Instant::now()), definitions));
        let (scan, scanned) = scanning.await?;
        definitions = scanned;
        problems.send_if_modified(|shown| {
            let changed = **shown != scan.problems;
            if changed {
                *shown = Arc::new(scan.problems.clone());
            }
            changed
        });
        let (services, unread) = (seat.judge(scan.services), scan.unread);
        let mut wait = if scan.unsettled { SETTLE } else { seat.remaining().unwrap_or(RESCAN_EVERY).min(RESCAN_EVERY) };
        let wanted = (services, unread);
        if taken_up.as_ref() != Some(&wanted) {
            let services = wanted.0.clone();
            let outcome = match unread {
                true => local.set_last_file_services(services).await,
                false => local.set_file_services(services).await,
            };
            match outcome {
                Ok(()) => taken_up = Some(wanted),
                Err(LocalError::Stopping) => return Ok(()),
                Err(error) => {
                    tracing::error!(%error, "definitions are not all taken up: tried again");
                    wait = RESCAN_EVERY;
                }
            }
        }
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
