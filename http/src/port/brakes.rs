//! What is held back for now, and an operator's decision about it.

use std::time::Duration;

use muster_catalog::port::{BoxFuture, SubmitError};
use serde::{Serialize, Serializer};

/// The brakes that this agent knows of: its own, and the registry's.
pub trait Brakes: Send + Sync + 'static {
    /// What is held back.
    fn list(&self) -> BoxFuture<'_, BrakeListing>;

    /// Decides on what is held under this id; returns how many nodes or services that were.
    fn decide(&self, id: String, decision: BrakeDecision) -> BoxFuture<'_, Result<u64, SubmitError>>;
}

/// An operator's decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BrakeDecision {
    /// Let it happen now.
    Commit,
    /// It is a mistake: give it its whole time anew.
    Release,
}

/// What is held back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct BrakeListing {
    /// Each event by itself.
    pub held: Vec<HeldBrake>,
    /// Why the registry's brakes are not among them, if so.
    pub problem: Option<String>,
}

/// An event that is held back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct HeldBrake {
    /// What a decision has to name.
    #[serde(rename = "ID")]
    pub id: String,
    /// What is held back.
    pub kind: BrakeKind,
    /// Why it is held: the share, the window, the thresholds.
    pub reason: String,
    /// What those that are held have in common, and others have not.
    pub shared: Vec<String>,
    /// How many are held.
    pub count: u64,
    /// The first of them.
    pub items: Vec<HeldItem>,
    /// How long it is held already.
    #[serde(rename = "HeldForMs", serialize_with = "milliseconds")]
    pub held_for: Duration,
    /// How long it will be, without a decision.
    #[serde(rename = "RemainingMs", serialize_with = "milliseconds")]
    pub remaining: Duration,
    /// What a commit does.
    pub on_commit: &'static str,
    /// What a release does.
    pub on_release: &'static str,
}

/// What is held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BrakeKind {
    /// Many nodes went silent at once; the registry holds their loss.
    MassExpiry,
    /// Many definitions left the services directory at once; this agent holds their removal.
    MassRemoval,
}

/// One node or service of an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct HeldItem {
    /// The node's name, or the service's id.
    pub name: String,
    /// Where it was heard last, or defined.
    pub detail: String,
}

fn milliseconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}
