//! What survives a restart: API registrations (a file each), the last good definitions of files, maintenance, and the last
//! results of all checks.
//!
//! Every file is written beside its place, flushed and renamed. One that cannot be read is set aside with an error in
//! the log; the agent goes on without it.

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
}

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
        Self { status: status.as_str().to_owned(), output, at_ms: at.0, flaps: None }
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

    pub(super) fn status(&self) -> Option<Status> {
        Status::parse(&self.status)
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
        let saved = Saved {
            services: read_all(&store.services(), MAX_SERVICES, |text: ServiceText| text.validate("service"))?,
            checks: read_all(&store.checks(), MAX_CHECKS, validate_check)?,
            files: read::<Vec<SavedFileService>>(&store.files())
                .into_iter()
                .flatten()
                .filter_map(|saved| validate_file_service(saved, &store.files()))
                .collect(),
            maintenance: read(&store.maintenance()).unwrap_or_default(),
            results: read(&store.results()).unwrap_or_default(),
        };
        Ok((store, saved))
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

    pub(super) fn put_results(&self, results: &BTreeMap<CheckId, SavedResult>) -> io::Result<()> {
        write(&self.results(), results)
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
        match read(path).map(&validate) {
            Some(Ok(definition)) => found.push(definition),
            Some(Err(error)) => set_aside(path, &error.to_string()),
            None => {}
        }
    }
    Ok(found)
}

/// The content of a file, if it is there and whole.
fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let reason = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => error.to_string(),
        Ok(meta) if meta.len() > MAX_FILE => format!("{} bytes are too many", meta.len()),
        Ok(_) => match fs::read(path) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(value) => return Some(value),
                Err(error) => error.to_string(),
            },
            Err(error) => error.to_string(),
        },
    };
    set_aside(path, &reason);
    None
}

fn set_aside(path: &Path, reason: &str) {
    let aside = path.with_extension("json.corrupt");
    let moved = fs::rename(path, &aside).err().map(|error| error.to_string());
    tracing::error!(
        file = %path.display(), aside = %aside.display(), reason, not_moved = moved,
        "a saved file cannot be read and is set aside: register what it held again"
    );
}
