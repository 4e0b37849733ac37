//! The ports between rooms: what a reader asks of a source of Views, and a writer of the registry.
//!
//! Futures are boxed and runtime-free: a read takes one allocation only when it has to wait.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use crate::{Command, Name, Rejection, Topic, View, Waiter, Wide};

/// A boxed future, as object-safe async traits return it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// How current an answer has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Consistency {
    /// At least all that the leader had committed when asked, as far as its lease goes.
    #[default]
    Lease,
    /// At least all that was committed when asked: the leader confirms with a quorum that it still leads.
    Linearizable,
    /// Whatever is known here.
    Stale,
}

/// Why a barrier could not be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BarrierError {
    /// No leader answered in time.
    #[error("no cluster leader: {0}; ask with ?stale for the last known answer")]
    NoLeader(String),
    /// The registry has a leader, and refuses what is held here: an operator has to look.
    #[error("the registry refuses what this agent holds: {0}; ask with ?stale for what it holds")]
    Refused(String),
}

/// A read of more than a Scope holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WideRead {
    /// What is asked.
    pub wide: Wide,
    /// How current the answer has to be.
    pub consistency: Consistency,
    /// Wait until the answer is newer than this; 0 does not wait.
    pub after: u64,
    /// How long to wait for it.
    pub wait: Duration,
}

/// The answer to such a read.
pub struct WideAnswer {
    /// The answer's rows and nothing else.
    pub view: Arc<View>,
    /// Counts what the View takes: to be dropped with it, and both as soon as may be.
    pub held: Box<dyn Send + Sync>,
}

/// Why a read of more than the Scope holds has no answer. A part of one is never given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WideError {
    /// No member could be asked, or none hears a leader.
    #[error("this agent does not hold that, and no registry member answered: {0}")]
    Unreachable(String),
    /// It is not to be had in this way; the text says what to do.
    #[error("{0}")]
    Refused(String),
}

/// A source of Views: an agent's replica.
pub trait Source: Send + Sync + 'static {
    /// What is known now. Costs a reference count.
    fn view(&self) -> Arc<View>;

    /// Takes a place among the waiters of a topic: subscribe, read the View, then await.
    fn subscribe(&self, topic: Topic) -> Waiter;

    /// Returns once the View holds all that the consistency promises.
    fn barrier(&self, consistency: Consistency) -> BoxFuture<'_, Result<(), BarrierError>>;

    /// Why the registry refuses what is held here, for as long as an operator has to look at it. A source that asks no
    /// registry is refused by none.
    fn refusal(&self) -> Option<String> {
        None
    }

    /// Asks that a service which exists outside the Scope be held; returns when it is, or after at most 500 ms.
    fn hold(&self, service: &Name) -> BoxFuture<'_, ()>;

    /// Says that a service was read: what is not used for long leaves a Scope. Who waits on its topic, or holds a place
    /// among the waiters, uses it as well. Nothing to do for a source that holds everything.
    fn used(&self, service: &Name) {
        let _ = service;
    }

    /// Asks a member for what the Scope does not answer ([`crate::Scope::answers`]). A source that holds everything is
    /// never asked.
    fn read_wide(&self, read: WideRead) -> BoxFuture<'_, Result<WideAnswer, WideError>> {
        Box::pin(async move { Err(WideError::Refused(format!("nobody can be asked for {:?} here", read.wide))) })
    }
}

/// A write that was committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// The index it is visible at.
    pub index: u64,
}

/// Why a write was not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The registry refused; asking again will not help.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// The registry refused with words only, as it does across the wire.
    #[error("{0}")]
    Refused(String),
    /// It was not proposed, and will not be until there is room on the disks of the registry's members.
    #[error("the registry takes no writes: {0}")]
    NoRoom(String),
    /// It was not proposed; it is safe to ask again.
    #[error("no cluster leader: {0}")]
    Unavailable(String),
    /// It may or may not be committed. Read before asking again.
    #[error("the outcome is unknown: {0}; read it back before you repeat it")]
    UnknownOutcome(String),
}

/// A sink of Commands: the registry's client.
pub trait Sink: Send + Sync + 'static {
    /// Proposes a Command and returns once a quorum has it on disk.
    fn submit(&self, command: Command) -> BoxFuture<'_, Result<Written, SubmitError>>;
}
