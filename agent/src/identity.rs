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
        let identity = match last {
            // The clock may have been set back since: the incarnation may not.
            Some(last) => Self { incarnation: now.0.max(last.incarnation + 1), ..last },
            None => Self { id: uuid::Uuid::new_v4().to_string().into(), incarnation: now.0 },
        };
        let bytes = serde_json::to_vec_pretty(&identity)
            .map_err(|source| IdentityError::Corrupt { path: path.clone(), source })?;
        write_atomically(&path, &bytes).map_err(storage)?;
        Ok(identity)
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
    fn a_damaged_file_is_an_error_that_names_it() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(FILE), b"{").unwrap();
        let error = Identity::load(directory.path(), Timestamp(1)).unwrap_err().to_string();
        assert!(error.contains("node.json is not an identity"), "{error}");
    }
}
