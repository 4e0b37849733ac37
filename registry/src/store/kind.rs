//! Which engine keeps the log, and what both are told.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::directory::DirectoryLock;
use super::{Engine, RaftLogEngine};

/// The engines there are. A data folder belongs to the one that began it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineKind {
    /// [`RaftLogEngine`].
    #[default]
    RaftLog,
    /// `SledEngine`, in builds with the feature `sled`.
    Sled,
}

/// Where the log lies and how much of it stays in memory.
#[derive(Clone, Debug)]
pub struct LogSettings {
    /// The folder of the log's files.
    pub directory: PathBuf,
    /// Bytes after which `raft-log` begins a new file. 16 MiB: a purge frees whole files, and entries of the newest file
    /// are never evicted from the cache, so this also bounds the memory of the log. `sled` has segments of its own.
    pub chunk_bytes: usize,
    /// Bytes kept in memory for followers and for applying. 64 MiB holds the whole log between two snapshots.
    pub cache_bytes: usize,
}

impl LogSettings {
    /// The defaults, for a log in `directory`.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory, chunk_bytes: 16 * 1024 * 1024, cache_bytes: 64 * 1024 * 1024 }
    }
}

/// The engine was left out of this build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this build has no log engine {0}: build it with `--features {0}`, or use the engine raft-log")]
pub struct NotBuilt(pub EngineKind);

impl EngineKind {
    /// All of them, built or not.
    pub const ALL: [Self; 2] = [Self::RaftLog, Self::Sled];

    /// As the configuration and data folders name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::RaftLog => "raft-log",
            Self::Sled => "sled",
        }
    }

    /// Whether this build has it.
    pub fn check_built(self) -> Result<(), NotBuilt> {
        match self {
            Self::Sled if !cfg!(feature = "sled") => Err(NotBuilt(self)),
            _ => Ok(()),
        }
    }

    /// Opens the log, creating it where there is none; `lock` is let go of after it.
    pub fn open(self, settings: &LogSettings, lock: Option<Arc<DirectoryLock>>) -> io::Result<Arc<dyn Engine>> {
        match self {
            Self::RaftLog => Ok(Arc::new(RaftLogEngine::open(settings, lock)?)),
            #[cfg(feature = "sled")]
            Self::Sled => Ok(Arc::new(super::SledEngine::open(settings, lock)?)),
            #[cfg(not(feature = "sled"))]
            Self::Sled => Err(io::Error::new(io::ErrorKind::Unsupported, NotBuilt(self))),
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
