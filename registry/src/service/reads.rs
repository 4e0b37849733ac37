//! Read indexes: from the own log when this member leads, else from the leader.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::Status;

use super::{Core, peers::was_refused};
use crate::{
    proto::registry as pb,
    raft::{Member, ReadError, ReadPolicy},
};

/// How long a barrier looks for a leader: an election takes about a second.
pub(crate) const BARRIER_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two attempts when no leadership change wakes it.
const RETRY: Duration = Duration::from_millis(50);

/// Why an attempt gave no index.
#[derive(Debug)]
pub(crate) struct NoIndex {
    pub(crate) reason: String,
    /// Whether nobody listens where the leader did.
    pub(crate) leader_refused: bool,
}

impl Core {
    /// An index that holds all that was committed before now; rides out an election.
    pub(crate) async fn read_index(self: Arc<Self>, policy: ReadPolicy) -> Result<u64, String> {
        let deadline = Instant::now() + BARRIER_TIMEOUT;
        let mut leadership = self.log.leadership();
        loop {
            leadership.mark_unchanged();
            let reason = match timeout_at(deadline, self.try_read_index(policy)).await {
                Ok(Ok(index)) => return Ok(index),
                Ok(Err(error)) => error.reason,
                Err(_) => "the leader did not answer in time".to_owned(),
            };
            let again = Instant::now() + RETRY;
            if again >= deadline {
                return Err(reason);
            }
            tokio::select! {
                _ = leadership.changed() => {}
                () = sleep_until(again) => {}
            }
        }
    }

    /// One attempt.
    pub(crate) async fn try_read_index(&self, policy: ReadPolicy) -> Result<u64, NoIndex> {
        match self.log.read_index(policy).await {
            Ok(index) => Ok(index),
            Err(ReadError::NotLeader { leader: Some(leader) }) => self.ask_leader(leader, policy).await,
            Err(ReadError::NotLeader { leader: None }) => {
                Err(NoIndex { reason: "no member leads at the moment".to_owned(), leader_refused: false })
            }
            Err(error) => Err(NoIndex { reason: error.to_string(), leader_refused: false }),
        }
    }

    async fn ask_leader(&self, leader: Member, policy: ReadPolicy) -> Result<u64, NoIndex> {
        let consistency = match policy {
            ReadPolicy::Lease => pb::Consistency::Lease,
            ReadPolicy::Quorum => pb::Consistency::Linearizable,
        };
        let failed = |status: Status| NoIndex {
            reason: format!("leader {} at {}: {}", leader.name, leader.address, status.message()),
            leader_refused: was_refused(&status),
        };
        let mut client = self.peers.client(&leader.address).map_err(failed)?;
        let reply = client.read_index(pb::ReadIndexRequest { consistency: consistency.into() }).await;
        Ok(reply.map_err(failed)?.into_inner().index)
    }
}

/// What a consistency asks of the leader.
pub(crate) fn policy(consistency: pb::Consistency) -> ReadPolicy {
    match consistency {
        pb::Consistency::Linearizable => ReadPolicy::Quorum,
        pb::Consistency::Lease | pb::Consistency::Unspecified => ReadPolicy::Lease,
    }
}
