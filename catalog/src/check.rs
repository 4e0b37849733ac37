//! A check: a probe of a node or an instance, and its status.

use std::{fmt, time::Duration};

use crate::{InstanceId, Name, Origin, Text};

/// The id of the check that carries a node's liveness, as the v1 dialect calls it.
pub const NODE_LIVENESS_CHECK: &str = "serfHealth";

/// A check's id, unique on its node.
pub type CheckId = Text;

/// What a check found. Ordered from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Status {
    /// All is well.
    Passing,
    /// It answers, but an operator should look.
    Warning,
    /// It does not do its work.
    Critical,
}

impl Status {
    /// The word for it, as the v1 dialect spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passing => "passing",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }

    /// Reads the word for it.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "passing" => Some(Self::Passing),
            "warning" => Some(Self::Warning),
            "critical" => Some(Self::Critical),
            _ => None,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a check probes, as far as readers of the catalog see it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CheckKind {
    /// `http`, `tcp`, `ttl`, …; empty for a check that something outside runs.
    pub kind: Text,
    /// What is probed, for people: a URL, a host and port.
    pub target: Text,
    /// How often; zero when it does not apply.
    pub interval: Duration,
    /// How long one probe may take; zero when it does not apply.
    pub timeout: Duration,
}

/// A probe of a node (no instance) or of an instance, and its status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// The node it belongs to.
    pub node: Name,
    /// Unique on the node.
    pub id: CheckId,
    /// The instance it speaks for; `None` speaks for the whole node.
    pub instance: Option<InstanceId>,
    /// For people.
    pub name: Text,
    /// What it found.
    pub status: Status,
    /// What the operator wrote about it.
    pub notes: Text,
    /// What the last probe said.
    pub output: Text,
    /// How it probes.
    pub kind: CheckKind,
    /// Who may remove the row.
    pub origin: Origin,
}
