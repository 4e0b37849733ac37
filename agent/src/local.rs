//! LocalState: the truth about this node, and the one task that owns it.
//!
//! ```text
//! definition files ─┐
//! HTTP API ─────────┼─▶ LocalHandle ─▶ owner task ─▶ LocalRows (watch) ─▶ Sync
//! probes, TTLs ─────┘                     └─▶ data directory (API registrations, results)
//! ```
//!
//! Only a change that clients should learn of (a definition, a status) raises [`LocalRows::generation`] and wakes the
//! receivers of [`LocalHandle::watch`]; a new output is put into the rows silently and travels with the next push.

mod handle;
mod owner;
mod store;
mod table;
#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use muster_catalog::{Check, CheckId, Instance, InstanceId, Name, Status, Text, Timestamp};

use crate::checks::Scripts;
use crate::definition::{CheckDefinition, ServiceDefinition};

pub use handle::LocalHandle;
pub use owner::LocalState;

/// The id of the check that stands for a node in maintenance, as the v1 dialect calls it.
pub const NODE_MAINTENANCE_CHECK: &str = "_node_maintenance";
/// What a check says that has not run.
pub const NOT_RUN_YET: &str = "not run yet";

/// What LocalState needs to know.
#[derive(Debug, Clone)]
pub struct LocalConfig {
    /// The node that all rows belong to.
    pub node: Name,
    /// Where API registrations and results are kept; `None` keeps nothing over a restart.
    pub data_dir: Option<PathBuf>,
    /// Whose scripts are run.
    pub scripts: Scripts,
}

/// Who defined a service or check. Files win over the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A definition file.
    File(Arc<Path>),
    /// The HTTP API.
    Api,
}

/// A service from a definition file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileService {
    /// What it says.
    pub definition: Arc<ServiceDefinition>,
    /// The file.
    pub path: Arc<Path>,
}

/// The rows that the registry should hold for this node, sorted by id. Unchanged rows keep their `Arc`, so that
/// comparing with what was acknowledged costs a pointer each.
#[derive(Debug, Clone, Default)]
pub struct LocalRows {
    /// Raised by every change that the registry should learn of at once.
    pub generation: u64,
    /// How much of what this node is to have was read.
    pub sources: Sources,
    /// Whether the agent is leaving: every instance is draining.
    pub draining: bool,
    /// Instances.
    pub instances: Vec<Arc<Instance>>,
    /// Checks of instances and of the node.
    pub checks: Vec<Arc<Check>>,
}

/// How much of what this node is to have was read since the agent started: deletions follow only from a complete view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sources {
    /// Definition files have not been looked at yet: what is missing in the rows may stand there. Nothing is told.
    #[default]
    Reading,
    /// Some could not be read: what is here is told, what is missing is not removed.
    Part,
    /// All of them.
    Whole,
}

/// A service as it stands here, for the agent API.
#[derive(Debug, Clone)]
pub struct LocalService {
    /// What was defined.
    pub definition: Arc<ServiceDefinition>,
    /// By whom.
    pub source: Source,
    /// The row; also kept while the service is withdrawn from the catalog.
    pub instance: Arc<Instance>,
    /// Out of the catalog because a check was critical for longer than its `deregister_critical_after`.
    pub withdrawn: bool,
}

/// A check as it stands here, for the agent API.
#[derive(Debug, Clone)]
pub struct LocalCheck {
    /// What was defined.
    pub definition: Arc<CheckDefinition>,
    /// By whom.
    pub source: Source,
    /// The row, with status and output.
    pub check: Arc<Check>,
    /// When it last ran or was told, also before a restart of the agent.
    pub last_run: Option<Timestamp>,
}

/// All that stands here, sorted by id.
#[derive(Debug, Clone, Default)]
pub struct LocalListing {
    /// Services.
    pub services: Vec<LocalService>,
    /// Checks.
    pub checks: Vec<LocalCheck>,
    /// Why the node is in maintenance, if it is.
    pub node_maintenance: Option<Text>,
}

/// An update of a TTL check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TtlUpdate {
    /// What the service says of itself.
    pub status: Status,
    /// Its words; cut at 4 KiB.
    pub output: String,
}

/// Why a request to LocalState was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LocalError {
    /// No such service.
    #[error("Unknown service ID {0:?}. Ensure that the service ID is passed, not the service name.")]
    UnknownService(InstanceId),
    /// No such check.
    #[error("Unknown check ID {0:?}. Ensure that the check ID is passed, not the check name.")]
    UnknownCheck(CheckId),
    /// A definition file has it.
    #[error(
        "{what} {id:?} is defined in {path}, which wins over the API: change or remove that file, or use another id"
    )]
    OwnedByFile {
        /// `service` or `check`.
        what: &'static str,
        /// Its id.
        id: Text,
        /// The file.
        path: String,
    },
    /// It cannot be as asked.
    #[error("{0}")]
    Invalid(String),
    /// Some definitions of files cannot stand beside what is there; all others are taken up.
    #[error("{}", .0.join("; "))]
    NotTakenUp(Vec<String>),
    /// It could not be kept on disk, so it was not taken up. Where the disk failed after the file was put in its place or
    /// removed, a restart finds it so.
    #[error(
        "cannot keep the change on disk: {0}; it is not in force, but may be after a restart of the agent: make room or \
         repair the directory, then repeat it"
    )]
    Storage(String),
    /// The agent is stopping.
    #[error("the agent is stopping: ask again once it runs")]
    Stopping,
}

/// Why the owner task ended before it was told to. The process must end with it.
#[derive(Debug, thiserror::Error)]
pub enum LocalFailure {
    /// A probe's task ended by itself.
    #[error("the task of check {check:?} ended by itself: {reason}")]
    ProbeEnded {
        /// The check.
        check: CheckId,
        /// How.
        reason: String,
    },
    /// The data directory cannot be used at all.
    #[error("data directory {path}: {reason}; make it writable for the agent's user, or choose another")]
    DataDirectory {
        /// The directory.
        path: String,
        /// What failed.
        reason: String,
    },
}
