//! What a member is told at start, and why it may refuse to start.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::network::{Dial, plaintext};
use crate::store::directory::DirectoryError;
use crate::store::{EngineKind, Fault, Layer, NotBuilt, abort_on_fault, no_layer};

/// Members of one registry. Each write goes to every one of them: more than seven make it slower, not safer.
pub(super) const MAX_MEMBERS: usize = 7;

/// The formats of payloads: what this build can apply, and what the log has been raised to.
#[derive(Clone)]
pub struct Formats {
    /// The newest that this build knows; the others are told.
    pub newest: u32,
    /// The one in force at this member now. A build that knows less cannot come in.
    pub in_force: Arc<dyn Fn() -> u32 + Send + Sync>,
}

impl Default for Formats {
    fn default() -> Self {
        Self { newest: 1, in_force: Arc::new(|| 1) }
    }
}

/// Everything a member of the replicated log is configured with.
#[derive(Clone)]
pub struct ConsensusConfig {
    /// This member's name, as shown to people.
    pub name: String,
    /// `host:port` at which the other members reach this one.
    pub address: String,
    /// For the first bootstrap every member's `host:port`, the same list at all of them; afterwards any that lead to the
    /// registry. Empty, or only this one: a registry of one. A member that is not in its own list begins no registry and
    /// waits to be added.
    pub members: Vec<String>,
    /// Where log, snapshots and identity are kept.
    pub data_dir: PathBuf,
    /// What keeps the log there. Default `raft-log`; a folder stays with the engine that began it.
    pub log_engine: EngineKind,
    /// Least silence after which a follower stands for election. Default 300 ms.
    pub election_timeout_min: Duration,
    /// Most silence; also the leader's lease, which is why a follower waits that long before it starts to count.
    /// Default 600 ms.
    pub election_timeout_max: Duration,
    /// How often a leader says that it is there. Default 200 ms: with the lease and the least silence after it, four may be
    /// lost before anybody stands, and each costs every member its wakes around the clock.
    pub heartbeat_interval: Duration,
    /// Entries after which the state is written as a snapshot; half as many as the state holds things, where that is more: a
    /// write costs the same however much there is. So many are replayed at start at most. Default 20,000.
    pub snapshot_entries: u64,
    /// Entries kept behind a snapshot, for followers that are a little behind. Default 5,000.
    pub kept_entries: u64,
    /// How long a proposal may stay without an answer before its outcome is called unknown. Default 5 s.
    pub propose_timeout: Duration,
    /// Bytes kept free on the disk; with less, writes are refused. Default 128 MiB: the disk is looked at every second.
    pub disk_reserve: u64,
    /// What payloads this build knows. Default the first format alone.
    pub formats: Formats,
    /// How to reach another member. Default plaintext.
    pub dial: Dial,
    /// What to do when the disk fails. Default: end the process.
    pub fault: Fault,
    /// What stands between the log and its engine. Default nothing; tests put a bad disk there.
    pub layer: Layer,
}

impl ConsensusConfig {
    /// The defaults, for a registry of one.
    pub fn new(name: impl Into<String>, address: impl Into<String>, data_dir: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            address: address.into(),
            members: Vec::new(),
            data_dir: data_dir.into(),
            log_engine: EngineKind::default(),
            election_timeout_min: Duration::from_millis(300),
            election_timeout_max: Duration::from_millis(600),
            heartbeat_interval: Duration::from_millis(200),
            snapshot_entries: 20_000,
            kept_entries: 5_000,
            propose_timeout: Duration::from_secs(5),
            disk_reserve: 128 * 1024 * 1024,
            formats: Formats::default(),
            dial: plaintext(),
            fault: abort_on_fault(),
            layer: no_layer(),
        }
    }

    /// Checks what openraft does not, and puts the members in their one order.
    pub(super) fn validated(mut self) -> Result<Self, StartError> {
        self.log_engine.check_built()?;
        self.members.sort();
        self.members.dedup();
        if self.members.is_empty() {
            self.members.push(self.address.clone());
        }
        if self.members.len() > MAX_MEMBERS {
            return Err(StartError::TooMany(self.members.len()));
        }
        Ok(self)
    }
}

/// Why a member does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Too long a list.
    #[error("`members` lists {0} addresses, at most {MAX_MEMBERS} are possible: three or five serve any registry")]
    TooMany(usize),
    /// Election and heartbeat times that cannot work together.
    #[error("election and heartbeat times: {0}: keep heartbeat < election minimum < election maximum")]
    Timing(String),
    /// The log's engine.
    #[error(transparent)]
    Engine(#[from] NotBuilt),
    /// The data folder.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// Log or snapshot cannot be read.
    #[error("{what} in the data folder {path:?}: {source}: {}", remedy(source))]
    Storage {
        /// Log or snapshots.
        what: &'static str,
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
    /// openraft refused.
    #[error("the log did not start: {0}")]
    Raft(String),
}

/// Emptying the folder is for what is damaged or missing, not for what could not be read.
fn remedy(source: &io::Error) -> &'static str {
    use io::ErrorKind::{InvalidData, InvalidInput, NotFound, Other, PermissionDenied, UnexpectedEof};
    match source.kind() {
        PermissionDenied => "let the user that runs this member read and write all files in it",
        // What those say who read it, and not the system: of its own errors only that a file is not there.
        InvalidData | InvalidInput | UnexpectedEof | Other | NotFound => {
            "restore it, or empty the whole data folder to rejoin as a new member (a registry of one member begins anew \
             then: `muster registry restore` puts a backup in place)"
        }
        _ => {
            "what it holds may be whole: see to the disk, its mount and the limits of this process, and start it again"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emptying_the_folder_is_advised_for_damage_and_not_for_what_could_not_be_read() {
        // As the log's own crates hand them on: with their kind, and without their number.
        let told = |error: io::Error| io::Error::new(error.kind(), format!("{error}; when:(open chunk)"));
        let (eio, emfile) = (io::Error::from_raw_os_error(5), io::Error::from_raw_os_error(24));
        for (source, expected) in [
            (told(io::ErrorKind::PermissionDenied.into()), "let the user that runs this member"),
            (told(eio), "may be whole: see to the disk, its mount and the limits"),
            (told(emfile), "may be whole: see to the disk, its mount and the limits"),
            (io::Error::from_raw_os_error(5), "may be whole"),
            (told(io::ErrorKind::InvalidData.into()), "empty the whole data folder"),
            (told(io::ErrorKind::UnexpectedEof.into()), "empty the whole data folder"),
            (io::Error::other("Log id is beyond the last"), "empty the whole data folder"),
        ] {
            let path = PathBuf::from("/var/lib/muster/registry");
            let said = StartError::Storage { what: "the log", path, source }.to_string();
            assert!(said.contains(expected) && said.contains("/var/lib/muster/registry"), "{said}");
            assert_eq!(said.contains("empty the whole"), expected.contains("empty the whole"), "{said}");
        }
    }
}
