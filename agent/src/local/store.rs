//! What survives a restart: API registrations (a file each), the last good definitions of files, maintenance, and the last
//! results of all checks.
//!
//! Every file is written beside its place, flushed and renamed. One whose content is damaged is set aside with an error in
//! the log; the agent goes on without it, and says so. One that cannot be read for another reason (permissions, no
//! descriptors, a failing disk) may be whole: the agent does not start without it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use muster_catalog::{CheckId, InstanceId, Status, Text, Timestamp};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    FileService,
    table::{MAX_CHECKS, MAX_SERVICES},
};
use crate::checks::{begin, damping::KeptFlaps};
use crate::definition::{CheckDefinition, CheckText, InvalidDefinition, ServiceDefinition, ServiceText};

/// The largest file that is read back: the results of [`MAX_CHECKS`] checks fit.
const MAX_FILE: u64 = 64 * 1024 * 1024;
/// What is kept of an output: enough to recognise it until the next probe.
const MAX_SAVED_OUTPUT: usize = 512;

/// The directory.
#[derive(Debug, Clone)]
pub(super) struct Store {
    root: PathBuf,
}

/// What was found on disk.
#[derive(Debug, Default)]
pub(super) struct Saved {
    pub(super) services: Vec<ServiceDefinition>,
    pub(super) checks: Vec<CheckDefinition>,
    pub(super) files: Vec<FileService>,
    pub(super) maintenance: SavedMaintenance,
    pub(super) results: BTreeMap<CheckId, SavedResult>,
    /// Registrations that were damaged, for an operator.
    pub(super) damaged: Vec<String>,
}

/// What is out on purpose.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(super) struct SavedMaintenance {
    pub(super) node: Option<Text>,
    pub(super) services: BTreeMap<InstanceId, Text>,
}

/// The last result of a check.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct SavedResult {
    status: String,
    pub(super) output: String,
    at_ms: u64,
    /// Absent in files of older builds, and of checks that have not fallen lately.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    flaps: Option<SavedFlaps>,
    /// Of the host, when it was saved; absent in files of older builds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    boot: Option<Arc<str>>,
    /// Whether the agent was being stopped for good.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    left: bool,
}

/// The result of a check, or that it has none any more.
pub(super) type AddedResult = (CheckId, Option<SavedResult>);

/// How a check flapped, as of `at_ms`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct SavedFlaps {
    at_ms: u64,
    penalty: f64,
    falls: u32,
    lasting_ms: u64,
    remaining_ms: Option<u64>,
}

impl SavedResult {
    pub(super) fn new(status: Status, output: &str, at: Timestamp) -> Self {
        let output = begin(output, MAX_SAVED_OUTPUT).to_owned();
        Self { status: status.as_str().to_owned(), output, at_ms: at.0, flaps: None, boot: None, left: false }
    }

    /// With how the check flapped, as of `now`.
    pub(super) fn with_flaps(self, kept: Option<KeptFlaps>, now: Timestamp) -> Self {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let flaps = kept.map(|kept| SavedFlaps {
            at_ms: now.0,
            penalty: kept.penalty,
            falls: kept.falls,
            lasting_ms: ms(kept.lasting),
            remaining_ms: kept.remaining.map(ms),
        });
        Self { flaps, ..self }
    }

    /// How it flapped, and how long ago that was.
    pub(super) fn flaps(&self, now: Timestamp) -> Option<(KeptFlaps, Duration)> {
        let saved = self.flaps?;
        let kept = KeptFlaps {
            penalty: saved.penalty,
            falls: saved.falls,
            lasting: Duration::from_millis(saved.lasting_ms),
            remaining: saved.remaining_ms.map(Duration::from_millis),
        };
        Some((kept, now.since(Timestamp(saved.at_ms))))
    }

    /// With when it was: in which boot of the host, and whether the agent was leaving.
    pub(super) fn within(self, boot: Option<Arc<str>>, left: bool) -> Self {
        Self { boot, left, ..self }
    }

    /// The status, unless what it is about may have been started anew since: after a boot, or after the agent had left,
    /// nothing is said before it was probed. Who reports to a TTL check outlives the agent, but not the host.
    pub(super) fn status(&self, boot: Option<&str>, is_ttl: bool) -> Option<Status> {
        let same_boot = self.boot.is_none() || self.boot.as_deref() == boot;
        Status::parse(&self.status).filter(|_| same_boot && (is_ttl || !self.left))
    }

    pub(super) fn at(&self) -> Timestamp {
        Timestamp(self.at_ms)
    }
}

/// A service of a definition file on disk.
#[derive(Serialize, Deserialize)]
struct SavedFileService {
    path: PathBuf,
    service: ServiceText,
}

/// A check of the API on disk: the written form and the instance it is for.
#[derive(Serialize, Deserialize)]
struct SavedCheck {
    instance: Option<String>,
    check: CheckText,
}

impl Store {
    /// Opens the directory, makes it if need be, and reads all that is there.
    pub(super) fn open(root: &Path) -> io::Result<(Self, Saved)> {
        let store = Self { root: root.to_owned() };
        fs::create_dir_all(store.services())?;
        fs::create_dir_all(store.checks())?;
        let mut damaged = Vec::new();
        let validate = |text: ServiceText| text.validate("service");
        let files = or_set_aside::<Vec<SavedFileService>>(&store.files())?.into_iter().flatten();
        let saved = Saved {
            services: read_all(&store.services(), MAX_SERVICES, validate, &mut damaged)?,
            checks: read_all(&store.checks(), MAX_CHECKS, validate_check, &mut damaged)?,
            files: files.filter_map(|saved| validate_file_service(saved, &store.files())).collect(),
            maintenance: store.read_maintenance()?,
            results: store.read_results()?,
            damaged,
        };
        Ok((store, saved))
    }

    /// Without it what is out on purpose would be sent traffic again: nothing is guessed.
    fn read_maintenance(&self) -> io::Result<SavedMaintenance> {
        match read(&self.maintenance())? {
            Content::Absent => Ok(SavedMaintenance::default()),
            Content::Whole(saved) => Ok(saved),
            Content::Damaged(reason) => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "{}: {reason}: what is in maintenance is not known; put the file back, or remove it to have nothing in \
                     maintenance",
                    self.maintenance().display()
                ),
            )),
        }
    }

    pub(super) fn put_service(&self, definition: &ServiceDefinition) -> io::Result<()> {
        write(&self.services().join(file_name(&definition.id)), &ServiceText::from(definition))
    }

    pub(super) fn remove_service(&self, id: &str) -> io::Result<()> {
        remove(&self.services().join(file_name(id)))
    }

    pub(super) fn put_check(&self, definition: &CheckDefinition) -> io::Result<()> {
        let instance = definition.instance.as_ref().map(ToString::to_string);
        let saved = SavedCheck { instance, check: CheckText::from(definition) };
        write(&self.checks().join(file_name(&definition.id)), &saved)
    }

    pub(super) fn remove_check(&self, id: &str) -> io::Result<()> {
        remove(&self.checks().join(file_name(id)))
    }

    pub(super) fn put_files(&self, services: &[FileService]) -> io::Result<()> {
        let saved = |FileService { definition, path }: &FileService| SavedFileService {
            path: path.to_path_buf(),
            service: ServiceText::from(&**definition),
        };
        write(&self.files(), &services.iter().map(saved).collect::<Vec<_>>())
    }

    pub(super) fn put_maintenance(&self, maintenance: &SavedMaintenance) -> io::Result<()> {
        write(&self.maintenance(), maintenance)
    }

    /// Replaces all results, also those that were added.
    pub(super) fn put_results(&self, results: &BTreeMap<CheckId, SavedResult>) -> io::Result<()> {
        write(&self.results(), results)?;
        remove(&self.added_results())
    }

    /// Adds results until all are written anew: a line for each, so that one report costs no more than itself. They begin
    /// with a line's end, for the line before may be torn.
    pub(super) fn add_results(&self, results: &[AddedResult]) -> io::Result<()> {
        let path = self.added_results();
        let is_new = !path.try_exists()?;
        let mut file = File::options().create(true).append(true).open(&path)?;
        let mut lines = b"\n".to_vec();
        for result in results {
            serde_json::to_writer(&mut lines, result)?;
            lines.push(b'\n');
        }
        file.write_all(&lines)?;
        file.sync_data()?;
        if is_new { sync_directory(&path) } else { Ok(()) }
    }

    fn read_results(&self) -> io::Result<BTreeMap<CheckId, SavedResult>> {
        let mut results: BTreeMap<CheckId, SavedResult> = or_set_aside(&self.results())?.unwrap_or_default();
        let added = read_bytes(&self.added_results())?.and_then(Result::ok).unwrap_or_default();
        let lines =
            added.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<AddedResult>(line).ok());
        for (id, result) in lines {
            match result {
                Some(result) => drop(results.insert(id, result)),
                None => drop(results.remove(&id)),
            }
        }
        Ok(results)
    }

    fn services(&self) -> PathBuf {
        self.root.join("services")
    }

    fn checks(&self) -> PathBuf {
        self.root.join("checks")
    }

    fn files(&self) -> PathBuf {
        self.root.join("files.json")
    }

    fn maintenance(&self) -> PathBuf {
        self.root.join("maintenance.json")
    }

    fn results(&self) -> PathBuf {
        self.root.join("results.json")
    }

    fn added_results(&self) -> PathBuf {
        self.root.join("results.jsonl")
    }
}

fn validate_check(saved: SavedCheck) -> Result<CheckDefinition, InvalidDefinition> {
    saved.check.validate("check", "", "", saved.instance.map(Text::from))
}

/// One that this build does not take is left out: its file is read in any case.
fn validate_file_service(saved: SavedFileService, kept_in: &Path) -> Option<FileService> {
    match saved.service.validate("service") {
        Ok(definition) => Some(FileService { definition: Arc::new(definition), path: Arc::from(saved.path) }),
        Err(error) => {
            tracing::warn!(file = %kept_in.display(), of = %saved.path.display(), %error, "a kept definition is left out");
            None
        }
    }
}

/// Readable, safe as a file name whatever the id holds, and distinct by a 64 bit hash of the whole id.
fn file_name(id: &str) -> String {
    let hash = id
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    let readable: String = id.chars().take(60).map(plain).collect();
    format!("{readable}-{hash:016x}.json")
}

fn write<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let beside = path.with_extension("json.new");
    let mut file = File::create(&beside)?;
    file.write_all(&serde_json::to_vec_pretty(value)?)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    sync_directory(path)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        // Also where it was gone: whoever removed it may not have come to this.
        _ => sync_directory(path),
    }
}

/// What was done to a file's name is on disk after it: else a power cut may bring back what was removed.
fn sync_directory(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

fn read_all<T: DeserializeOwned, D>(
    directory: &Path,
    most: usize,
    validate: impl Fn(T) -> Result<D, InvalidDefinition>,
    damaged: &mut Vec<String>,
) -> io::Result<Vec<D>> {
    // What cannot be listed is not empty: a push without it would deregister all of it.
    let entries = fs::read_dir(directory)?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<PathBuf>>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    if paths.len() > most {
        tracing::error!(directory = %directory.display(), found = paths.len(), most, "too many saved files: the rest is ignored");
    }
    let mut found = Vec::new();
    for path in paths.iter().take(most) {
        let reason = match read(path)? {
            Content::Absent => continue,
            Content::Whole(saved) => match validate(saved) {
                Ok(definition) => {
                    found.push(definition);
                    continue;
                }
                Err(error) => error.to_string(),
            },
            Content::Damaged(reason) => reason,
        };
        let aside = set_aside(path, &reason);
        damaged.push(format!("{}: {reason}: register what it held again", aside.display()));
    }
    Ok(found)
}

/// What lies where a file is kept.
enum Content<T> {
    Absent,
    Whole(T),
    /// Why it is not what was written.
    Damaged(String),
}

/// An error says nothing about the content.
fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Content<T>> {
    let parse = |bytes: Vec<u8>| serde_json::from_slice(&bytes).map_err(|error| error.to_string());
    Ok(match read_bytes(path)? {
        None => Content::Absent,
        Some(bytes) => bytes.and_then(parse).map_or_else(Content::Damaged, Content::Whole),
    })
}

/// What a file holds, if it is there, or why that cannot be what was written.
fn read_bytes(path: &Path) -> io::Result<Option<Result<Vec<u8>, String>>> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(named(error)),
        Ok(meta) if meta.len() > MAX_FILE => Ok(Some(Err(format!("{} bytes are too many", meta.len())))),
        Ok(_) => fs::read(path).map_err(named).map(|bytes| Some(Ok(bytes))),
    }
}

/// The content of a file that is there and whole.
fn or_set_aside<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    Ok(match read(path)? {
        Content::Absent => None,
        Content::Whole(value) => Some(value),
        Content::Damaged(reason) => {
            set_aside(path, &reason);
            None
        }
    })
}

/// Moves it out of the way; returns where it is.
fn set_aside(path: &Path, reason: &str) -> PathBuf {
    let aside = path.with_extension("json.corrupt");
    let moved = fs::rename(path, &aside).err();
    let not_moved = moved.as_ref().map(ToString::to_string);
    tracing::error!(
        file = %path.display(), aside = %aside.display(), reason, not_moved,
        "a saved file is damaged and set aside: register what it held again"
    );
    if moved.is_some() { path.to_owned() } else { aside }
}
