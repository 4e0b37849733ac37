//! The end of a process in order: what it waits for, for how long, and what it says of that.

use std::time::Duration;

use muster_catalog::{Freshness, Name};
use tokio::{
    sync::watch,
    time::{Instant, timeout, timeout_at},
};

use super::{App, Stop};
use crate::{replica::Replica, sync::SyncStatus};

/// How long servers may take to finish what is under way once the node has left. Answers take milliseconds; one whose
/// client does not read must not hold up the stop, of which a service manager ends all after `agent.stop_timeout` and some.
const CLOSING: Duration = Duration::from_secs(3);
/// How long the registry may take to hear that the node lives on while its agent is started anew.
const PARTING: Duration = Duration::from_secs(1);
/// Who waits for longer is told what for. A stop that goes well takes less, and needs no word; a person at a terminal begins
/// to wonder about now.
const WORD_AFTER: Duration = Duration::from_secs(1);

/// What of an agent has to leave the registry.
pub(super) struct Leaving {
    pub(super) node: Name,
    pub(super) status: watch::Receiver<SyncStatus>,
    /// Whether it has left.
    pub(super) done: watch::Receiver<bool>,
}

impl Leaving {
    /// Whether the registry cannot know of this node: no push was taken, none of its members is heard, and it was not
    /// in what they last told, which may have been an earlier process.
    fn has_nothing_to_leave(&self, replica: Option<&Replica>) -> bool {
        let told = replica.map(Replica::told);
        let unheard = |told: &muster_catalog::View| {
            told.freshness != Freshness::Live && told.local.find_node(&self.node).is_none()
        };
        !self.status.borrow().known && told.is_none_or(|told| unheard(&told))
    }
}

impl App {
    /// Stops in order: the node leaves or says that it stays, servers finish, the replica and the log are flushed.
    pub async fn stop(mut self, how: Stop) {
        match how {
            Stop::Leave => self.leave().await,
            Stop::Restart => self.part().await,
        }
        self.closing.cancel();
        // A registry in this process serves until the agent is done with it.
        if timeout(CLOSING, self.supervisor.ended_but(&["registry"])).await.is_err() {
            tracing::warn!("some servers did not finish in time");
        }
        self.ending.cancel();
        if timeout(CLOSING, self.supervisor.ended()).await.is_err() {
            tracing::warn!("some tasks did not end in time");
        }
        // Nobody writes any more.
        drop(self.data);
    }

    /// Instances drain, then the node goes.
    async fn leave(&mut self) {
        let Some(mut leaving) = self.left.take() else { return };
        if leaving.has_nothing_to_leave(self.replica.as_deref()) {
            tracing::info!("the registry has not heard of this node: there is nothing to leave");
            return;
        }
        if let Some(local) = &self.local
            && let Err(error) = local.drain().await
        {
            tracing::warn!(%error, "could not mark the instances as draining");
        }
        self.leaving.cancel();
        let end = Instant::now() + self.stop_timeout;
        if timeout(WORD_AFTER.min(self.stop_timeout), leaving.done.wait_for(|done| *done)).await.is_ok() {
            return;
        }
        if Instant::now() < end {
            tracing::warn!(
                stop_timeout = ?self.stop_timeout,
                "waiting for the registry to take this node out, until agent.stop_timeout at the latest; a second Ctrl-C \
                 ends at once: then the node turns critical when its lease ends"
            );
            if timeout_at(end, leaving.done.wait_for(|done| *done)).await.is_ok() {
                return;
            }
        }
        tracing::warn!("leaving took longer than agent.stop_timeout; the lease will end by itself");
    }

    /// The registry hears that the end of this process is none of its node.
    async fn part(&mut self) {
        self.restarting.cancel();
        if let Some(replica) = &self.replica
            && timeout(PARTING, replica.parted()).await.is_err()
        {
            tracing::warn!(
                "the registry was not told of the restart: without a start within its grace the node is lost"
            );
        }
    }
}
