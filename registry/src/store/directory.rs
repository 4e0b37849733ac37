//! The data folder of a member: its format, its lock and its node id.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;

use super::EngineKind;

/// First words of every data folder. A change that older versions cannot read raises the number.
const FORMAT: &str = "muster registry data, format 1";
const FORMAT_FILE: &str = "FORMAT";
const LOCK_FILE: &str = "LOCK";
const NODE_ID_FILE: &str = "node-id";
/// Why the member that the folder belongs to takes part no more.
const REMOVED_FILE: &str = "REMOVED";
/// Why the member serves nothing: its catalog was found to differ from the others'.
const DIFFERS_FILE: &str = "DIFFERS";

/// Why a data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// Another process has it.
    #[error("data folder {0:?} is in use by another process: stop that process, or give this one its own `data_dir`")]
    Locked(PathBuf),
    /// Something else lies there.
    #[error("data folder {0:?} is not empty and not a registry's: give an empty or new `data_dir`")]
    Foreign(PathBuf),
    /// Written by another version.
    #[error(
        "data folder {path:?} has the format {found:?}, this version reads {FORMAT:?}: run the version that wrote it"
    )]
    Format {
        /// The folder.
        path: PathBuf,
        /// What its marker says.
        found: String,
    },
    /// Begun by the other engine, which alone can read its log.
    #[error(
        "data folder {path:?} was written by the log engine {found}, and `log_engine` names {wanted}: \
         set `log_engine = \"{found}\"`, or empty the whole data folder to rejoin as a new member"
    )]
    OtherEngine {
        /// The folder.
        path: PathBuf,
        /// Whose log lies in it.
        found: EngineKind,
        /// What the configuration asks for.
        wanted: EngineKind,
    },
    /// The member was taken out of its registry: with its old id and log it may not take part again.
    #[error("data folder {path:?}: {why}")]
    Removed {
        /// The folder.
        path: PathBuf,
        /// What was noted when it happened.
        why: String,
    },
    /// The identity is unreadable. It is never made up anew for a log that exists: that would be a second vote.
    #[error(
        "{path:?} holds {found:?} instead of a node id: restore the file, or empty the whole data folder to rejoin as a new member"
    )]
    NodeId {
        /// The file.
        path: PathBuf,
        /// Its content.
        found: String,
    },
    /// Log or snapshot are not what they were: with its old id, the member would vote and acknowledge a second time.
    #[error(
        "data folder {path:?}: {why}: put the whole folder back as it was, or empty the whole folder to rejoin as a new \
         member (a registry of one member begins anew then: `muster registry restore` puts a backup in place)"
    )]
    LogLost {
        /// The folder.
        path: PathBuf,
        /// What is missing.
        why: String,
    },
    /// The disk said no.
    #[error("data folder {path:?}: {source}")]
    Io {
        /// What was touched.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
}

impl DirectoryError {
    /// Whether it stays so until somebody does something about the folder or the configuration.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Foreign(_)
            | Self::Format { .. }
            | Self::OtherEngine { .. }
            | Self::Removed { .. }
            | Self::NodeId { .. }
            | Self::LogLost { .. } => true,
            // The other process ends, a disk is mounted or emptied.
            Self::Locked(_) | Self::Io { .. } => false,
        }
    }
}

/// Holds the folder against a second process for as long as it lives.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: File,
    // After the file: whoever waits on this may open the folder again.
    released: watch::Sender<()>,
}

impl DirectoryLock {
    /// Ends (with an error) when the folder is free again.
    pub fn watch_release(&self) -> watch::Receiver<()> {
        self.released.subscribe()
    }
}

/// An opened data folder.
#[derive(Clone, Debug)]
pub struct DataDirectory {
    path: PathBuf,
    node_id: u64,
    lock: Arc<DirectoryLock>,
}

impl DataDirectory {
    /// Opens `path` for logs of `engine` and locks it; makes it, with a random node id, where there is nothing yet.
    pub fn open(path: &Path, engine: EngineKind) -> Result<Self, DirectoryError> {
        let at = |path: &Path| {
            let path = path.to_path_buf();
            move |source| DirectoryError::Io { path, source }
        };
        fs::create_dir_all(path).map_err(at(path))?;
        let lock = lock(path)?;
        let marker = path.join(FORMAT_FILE);
        let node_file = path.join(NODE_ID_FILE);
        match fs::read_to_string(&marker) {
            Ok(found) => check_marker(path, &found, engine)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                refuse_foreign(path)?;
                let id: u64 = rand::random_range(1..u64::MAX);
                write_durably(&node_file, format!("{id}\n").as_bytes()).map_err(at(&node_file))?;
                // Last, so that a crash before it leaves a folder which the next start may begin again.
                write_durably(&marker, marker_of(engine).as_bytes()).map_err(at(&marker))?;
            }
            Err(error) => return Err(at(&marker)(error)),
        }
        if let Ok(why) = fs::read_to_string(path.join(REMOVED_FILE)) {
            return Err(DirectoryError::Removed { path: path.to_path_buf(), why: why.trim().to_owned() });
        }
        let found = match fs::read_to_string(&node_file) {
            // Told as one that holds nothing: what to do is the same.
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            found => found.map_err(at(&node_file))?,
        };
        let node_id = match found.trim().parse() {
            Ok(id) if id != 0 => id,
            _ => return Err(DirectoryError::NodeId { path: node_file, found: found.chars().take(64).collect() }),
        };
        Ok(Self { path: path.to_path_buf(), node_id, lock: Arc::new(lock) })
    }

    /// Whether something was begun there.
    pub fn exists(path: &Path) -> bool {
        path.join(FORMAT_FILE).is_file()
    }

    /// Draws another id: whoever asks for the old one is not answered any more.
    pub(crate) fn renew_node_id(&self) -> Result<u64, DirectoryError> {
        let id: u64 = rand::random_range(1..u64::MAX);
        let path = self.path.join(NODE_ID_FILE);
        write_durably(&path, format!("{id}\n").as_bytes()).map_err(|source| DirectoryError::Io { path, source })?;
        Ok(id)
    }

    /// This member's id, drawn once per disk: a wiped disk is a new member.
    pub fn node_id(&self) -> u64 {
        self.node_id
    }

    /// Keeps the folder locked for as long as it is held.
    pub fn lock(&self) -> Arc<DirectoryLock> {
        Arc::clone(&self.lock)
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the log lies.
    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// Where snapshots lie.
    pub fn snapshots(&self) -> PathBuf {
        self.path.join("snapshots")
    }
}

/// The engine's name stands in the marker, so that a version that knows the default engine alone refuses the folder.
fn marker_of(engine: EngineKind) -> String {
    match engine {
        EngineKind::RaftLog => format!("{FORMAT}\n"),
        EngineKind::Sled => format!("{FORMAT}, log engine {engine}\n"),
    }
}

fn check_marker(path: &Path, found: &str, wanted: EngineKind) -> Result<(), DirectoryError> {
    let path = path.to_path_buf();
    match EngineKind::ALL.into_iter().find(|engine| marker_of(*engine) == found) {
        Some(engine) if engine == wanted => Ok(()),
        Some(found) => Err(DirectoryError::OtherEngine { path, found, wanted }),
        None => Err(DirectoryError::Format { path, found: found.chars().take(64).collect() }),
    }
}

fn lock(path: &Path) -> Result<DirectoryLock, DirectoryError> {
    let file = path.join(LOCK_FILE);
    let opened = OpenOptions::new().create(true).truncate(false).write(true).open(&file);
    let opened = opened.map_err(|source| DirectoryError::Io { path: file.clone(), source })?;
    match opened.try_lock() {
        Ok(()) => Ok(DirectoryLock { _file: opened, released: watch::Sender::new(()) }),
        Err(TryLockError::WouldBlock) => Err(DirectoryError::Locked(path.to_path_buf())),
        Err(TryLockError::Error(source)) => Err(DirectoryError::Io { path: file, source }),
    }
}

/// Only what an interrupted first start can leave may lie in a folder without a marker.
fn refuse_foreign(path: &Path) -> Result<(), DirectoryError> {
    let io = |source| DirectoryError::Io { path: path.to_path_buf(), source };
    for entry in fs::read_dir(path).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        let ours = [LOCK_FILE, NODE_ID_FILE].iter().any(|known| name == *known);
        if !ours && !name.to_string_lossy().ends_with(".tmp") {
            return Err(DirectoryError::Foreign(path.to_path_buf()));
        }
    }
    Ok(())
}

/// Notes that the folder's member was removed: it is not opened again.
pub(crate) fn mark_removed(path: &Path, why: &str) -> io::Result<()> {
    write_durably(&path.join(REMOVED_FILE), format!("{why}\n").as_bytes())
}

/// Notes that the catalog of the folder's member differs from the others'.
pub(crate) fn mark_differing(path: &Path, why: &str) -> io::Result<()> {
    write_durably(&path.join(DIFFERS_FILE), format!("{why}\n").as_bytes())
}

/// What was noted when the member was found to differ.
pub(crate) fn differing(path: &Path) -> Result<Option<String>, DirectoryError> {
    let path = path.join(DIFFERS_FILE);
    match fs::read_to_string(&path) {
        Ok(why) => Ok(Some(why.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(DirectoryError::Io { path, source }),
    }
}

/// Takes the note away: for a member that is made the whole registry, there is nobody to differ from.
pub(crate) fn unmark_differing(path: &Path) -> io::Result<()> {
    match fs::remove_file(path.join(DIFFERS_FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Writes a file so that after a crash it is there whole or not at all.
pub(crate) fn write_durably(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    rename_durably(&temporary, path)
}

/// Renames, then syncs the folder: only then does the new name survive a power loss.
pub fn rename_durably(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    match to.parent() {
        // A relative name without a folder lies in the working directory.
        Some(parent) if parent.as_os_str().is_empty() => File::open(".")?.sync_all(),
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_is_gone_or_damaged_is_never_made_up_anew() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(NODE_ID_FILE);
        let open = || DataDirectory::open(folder.path(), EngineKind::RaftLog);
        let drawn = open().unwrap().node_id();
        let kept = fs::read_to_string(&file).unwrap();
        for content in [None, Some(""), Some("0\n"), Some("not a number\n")] {
            match content {
                None => fs::remove_file(&file).unwrap(),
                Some(content) => fs::write(&file, content).unwrap(),
            }
            let error = open().unwrap_err();
            assert!(
                error.is_final() && error.to_string().contains("empty the whole data folder"),
                "{content:?}: {error}"
            );
        }
        fs::write(&file, kept).unwrap();
        assert_eq!(open().unwrap().node_id(), drawn);
    }
}
