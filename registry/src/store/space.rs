//! Room on the disk: writes are refused while there is still enough left to go on with everything else.
//!
//! A full disk met in the middle of a write leaves a log of unknown content, and the process has to end. So the member
//! stops taking entries earlier: a leader hands the lead on or refuses proposals, a follower refuses appends that carry
//! what a client wrote (heartbeats and elections go on), and reads are served throughout.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::{error, info, warn};

/// Knows how much room was left at the last look. Clones share it.
#[derive(Clone, Debug)]
pub struct DiskGuard {
    path: Arc<PathBuf>,
    reserve: u64,
    free: Arc<AtomicU64>,
}

impl DiskGuard {
    /// Guards the disk of `path`, keeping `reserve` bytes free.
    pub fn new(path: &Path, reserve: u64) -> Self {
        let guard = Self { path: Arc::new(path.to_path_buf()), reserve, free: Arc::new(AtomicU64::new(u64::MAX)) };
        guard.look();
        guard
    }

    /// Looks at the disk. A system that does not say counts as roomy: a wrong refusal would stop a healthy registry.
    pub fn look(&self) {
        let free = match free_bytes(&self.path) {
            Ok(free) => free,
            Err(error) => {
                warn!(path = ?self.path, %error, "the room left on the disk is unknown");
                u64::MAX
            }
        };
        let was_full = self.is_full();
        self.free.store(free, Ordering::Relaxed);
        metrics::gauge!("muster_registry_disk_full").set(if self.is_full() { 1.0 } else { 0.0 });
        match (was_full, self.is_full()) {
            (false, true) => error!(%self, "refusing writes"),
            (true, false) => info!(free, "the disk has room again: taking writes"),
            _ => {}
        }
    }

    /// Whether new entries are to be refused.
    pub fn is_full(&self) -> bool {
        self.free.load(Ordering::Relaxed) < self.reserve
    }
}

impl fmt::Display for DiskGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (free, path) = (self.free.load(Ordering::Relaxed), &self.path);
        write!(f, "the disk of {path:?} has {free} bytes left and {} are kept free: make room on it", self.reserve)
    }
}

fn free_bytes(path: &Path) -> io::Result<u64> {
    let found = rustix::fs::statvfs(path)?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}
