//! Who this agent is: a random id kept on disk, and an incarnation that every start raises.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use muster_catalog::{Text, Timestamp};
use serde::{Deserialize, Serialize};

/// The file in the data directory.
const FILE: &str = "node.json";

/// Who this agent is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    /// Random, drawn at the first start.
    pub(crate) id: Text,
    /// Raised at each start: later starts supersede earlier ones.
    pub(crate) incarnation: u64,
}

/// Why the identity could not be had.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The data directory cannot be used.
    #[error("cannot use {path}: {source}; make it a directory that this user may write, or set node.data_dir")]
    Storage {
        /// The file or directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Two agents on one directory would be one node twice.
    #[error("another agent runs on {path}: stop it, or set node.data_dir to a directory of its own")]
    Taken {
        /// The directory.
        path: PathBuf,
    },
    /// The file is there and is not ours.
    #[error("{path} is not an identity ({source}): restore it, or remove it to join as a new node")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: serde_json::Error,
    },
}

impl Identity {
    /// Reads the identity, draws one at the first start, and raises the incarnation.
    pub(crate) fn load(data_dir: &Path, now: Timestamp) -> Result<Self, IdentityError> {
        let path = data_dir.join(FILE);
        let storage = |source| IdentityError::Storage { path: path.clone(), source };
        fs::create_dir_all(data_dir).map_err(storage)?;
        let last = match fs::read(&path) {
            Ok(bytes) => Some(
                serde_json::from_slice::<Self>(&bytes)
                    .map_err(|source| IdentityError::Corrupt { path: path.clone(), source })?,
            ),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(storage(error)),
        };
        let known = last.is_some();
        let identity = match last {
            // The clock may have been set back since: the incarnation may not.
            Some(last) => Self { incarnation: now.0.max(last.incarnation + 1), ..last },
            None => Self { id: uuid::Uuid::new_v4().to_string().into(), incarnation: now.0 },
        };
        let bytes = serde_json::to_vec_pretty(&identity)
            .map_err(|source| IdentityError::Corrupt { path: path.clone(), source })?;
        match write_atomically(&path, &bytes) {
            Ok(()) => {}
            // It is known who this is: a full disk keeps nobody from answering. The clock tells the next start apart.
            Err(error) if known && error.kind() == io::ErrorKind::StorageFull => {
                tracing::error!(path = %path.display(), %error, "this start is not noted on disk: make room");
            }
            Err(error) => return Err(storage(error)),
        }
        Ok(identity)
    }
}

/// The agent's data directory, for as long as the process has it to itself.
#[derive(Debug)]
pub(crate) struct DataDirectory {
    path: PathBuf,
    _lock: fs::File,
}

impl DataDirectory {
    /// Takes the directory; refused while another process has it. The system lets go of it when the process ends.
    pub(crate) fn lock(path: &Path) -> Result<Self, IdentityError> {
        let file = path.join("lock");
        let storage = |source| IdentityError::Storage { path: file.clone(), source };
        fs::create_dir_all(path).map_err(storage)?;
        let lock = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&file).map_err(storage)?;
        match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(IdentityError::Taken { path: path.to_owned() }),
            Err(error) => Err(storage(error.into())),
        }
    }

    /// Whether registrations, results and the replica can be kept there.
    pub(crate) fn check(&self) -> Result<(), IdentityError> {
        let writable = rustix::fs::access(&self.path, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK);
        writable.map_err(|error| IdentityError::Storage { path: self.path.clone(), source: error.into() })
    }
}

/// Writes a file so that a crash leaves the old or the new one, never half of it.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let file = fs::File::create(&temporary)?;
    io::Write::write_all(&mut &file, bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    match path.parent() {
        Some(parent) => fs::File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// The clock: read here, handed to whoever needs it.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_stays_and_the_incarnation_rises_even_when_the_clock_is_set_back() {
        let directory = tempfile::tempdir().unwrap();
        let first = Identity::load(directory.path(), Timestamp(1_000)).unwrap();
        let second = Identity::load(directory.path(), Timestamp(10)).unwrap();
        assert_eq!(first.id, second.id);
        assert_eq!(second.incarnation, 1_001);
    }

    #[test]
    fn a_directory_is_one_agents_and_must_be_writable() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent");
        let held = DataDirectory::lock(&path).unwrap();
        let error = DataDirectory::lock(&path).unwrap_err().to_string();
        assert!(error.contains("another agent runs on") && error.contains("node.data_dir"), "{error}");
        held.check().unwrap();
        fs::remove_dir_all(&path).unwrap();
        assert!(held.check().unwrap_err().to_string().contains("cannot use"));
        drop(held);
        DataDirectory::lock(&path).unwrap();
    }

    #[test]
    fn a_damaged_file_is_an_error_that_names_it() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(FILE), b"{").unwrap();
        let error = Identity::load(directory.path(), Timestamp(1)).unwrap_err().to_string();
        assert!(error.contains("node.json is not an identity"), "{error}");
    }
}
