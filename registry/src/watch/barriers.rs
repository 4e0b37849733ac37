//! The barriers of one stream: one read index in flight serves all that were asked before it.

use std::{future::pending, sync::Arc};

use muster_catalog::port::BoxFuture;
use tokio::time::{Instant, timeout_at};

use crate::{
    raft::ReadPolicy,
    service::{Core, reads::BARRIER_TIMEOUT},
};

/// Reads that may wait on one stream.
const MAX_QUEUED: usize = 4096;

/// The barriers of one stream.
#[derive(Default)]
pub(crate) struct Barriers {
    queued: Vec<(u64, ReadPolicy)>,
    /// What is being served, oldest first.
    serving: Vec<u64>,
    state: State,
}

#[derive(Default)]
enum State {
    #[default]
    Idle,
    /// The leader is asked.
    Asking(BoxFuture<'static, Result<u64, String>>),
    /// The stream has to reach this index.
    Reaching(u64, Instant),
    Failed(String),
}

impl Barriers {
    /// Takes a barrier; false when too many wait.
    pub(crate) fn ask(&mut self, core: &Arc<Core>, id: u64, policy: ReadPolicy) -> bool {
        if self.queued.len() >= MAX_QUEUED {
            return false;
        }
        self.queued.push((id, policy));
        self.start(core);
        true
    }

    fn start(&mut self, core: &Arc<Core>) {
        if !matches!(self.state, State::Idle) || self.queued.is_empty() {
            return;
        }
        let queued = std::mem::take(&mut self.queued);
        let strictest = queued.iter().any(|(_, policy)| *policy == ReadPolicy::Quorum);
        let policy = if strictest { ReadPolicy::Quorum } else { ReadPolicy::Lease };
        self.serving = queued.into_iter().map(|(id, _)| id).collect();
        self.state = State::Asking(Box::pin(core.clone().read_index(policy)));
    }

    /// Returns when something about the barriers changed.
    pub(crate) async fn progress(&mut self) {
        match &mut self.state {
            State::Asking(asking) => {
                self.state = match asking.await {
                    Ok(index) => State::Reaching(index, Instant::now() + BARRIER_TIMEOUT),
                    Err(error) => State::Failed(error),
                };
            }
            State::Reaching(index, deadline) => {
                let wait = timeout_at(*deadline, pending::<()>()).await;
                debug_assert!(wait.is_err());
                self.state =
                    State::Failed(format!("this member did not reach index {index} within {BARRIER_TIMEOUT:?}"));
            }
            State::Idle | State::Failed(_) => pending().await,
        }
    }

    /// Whether a stream at `cursor` has to come further first.
    pub(crate) fn are_ahead_of(&self, cursor: u64) -> bool {
        matches!(self.state, State::Reaching(index, _) if index > cursor)
    }

    /// The barriers that a stream at `cursor` can answer, and what to answer.
    pub(crate) fn reached(&mut self, core: &Arc<Core>, cursor: u64) -> Vec<(u64, Result<u64, String>)> {
        let result = match &mut self.state {
            State::Reaching(index, _) if *index <= cursor => Ok(cursor),
            State::Failed(error) => Err(std::mem::take(error)),
            State::Idle | State::Asking(_) | State::Reaching(..) => return Vec::new(),
        };
        let served = std::mem::take(&mut self.serving);
        self.state = State::Idle;
        self.start(core);
        served.into_iter().map(|id| (id, result.clone())).collect()
    }
}
