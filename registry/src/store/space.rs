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
    /// What the next snapshot needs, on top of the reserve; nothing while one is being written, for that takes the room.
    snapshot: Arc<AtomicU64>,
}

impl DiskGuard {
    /// Guards the disk of `path`, keeping `reserve` bytes free.
    pub fn new(path: &Path, reserve: u64) -> Self {
        let guard = Self {
            path: Arc::new(path.to_path_buf()),
            reserve,
            free: Arc::new(AtomicU64::new(u64::MAX)),
            snapshot: Arc::default(),
        };
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
        self.free.load(Ordering::Relaxed) < self.needed()
    }

    /// What to say of it, where new entries are to be refused.
    pub fn why_full(&self) -> Option<String> {
        self.is_full().then(|| self.to_string())
    }

    fn needed(&self) -> u64 {
        self.reserve.saturating_add(self.snapshot.load(Ordering::Relaxed))
    }

    /// Keeps so many bytes free for the next snapshot.
    pub(crate) fn keep_for_snapshot(&self, bytes: u64) {
        self.snapshot.store(bytes, Ordering::Relaxed);
    }

    /// Whether so many bytes may be written without taking from the log half of what is kept free for it. A system that
    /// does not say counts as roomy.
    pub(crate) fn check_room_for(&self, bytes: u64) -> io::Result<()> {
        let free = free_bytes(&self.path).unwrap_or(u64::MAX);
        let kept = self.reserve / 2;
        if free >= bytes.saturating_add(kept) {
            return Ok(());
        }
        let path = &self.path;
        let message = format!(
            "the disk of {path:?} has {free} bytes left, a snapshot needs {bytes} more and {kept} stay free for the log: \
             make room on it"
        );
        Err(io::Error::new(io::ErrorKind::StorageFull, message))
    }
}

impl fmt::Display for DiskGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (free, path) = (self.free.load(Ordering::Relaxed), &self.path);
        let needed = self.needed();
        write!(f, "the disk of {path:?} has {free} bytes left and {needed} are kept free: make room on it")
    }
}

fn free_bytes(path: &Path) -> io::Result<u64> {
    // A folder that is not made yet comes to lie on the disk of the one above it.
    let there = path.ancestors().find(|folder| folder.exists()).unwrap_or(path);
    let found = rustix::fs::statvfs(there)?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}
