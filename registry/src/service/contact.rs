//! Whether this member keeps up with a leader. One that was cut off, or takes no entries because its disk is full, goes
//! on applying nothing, and would pass its old catalog off as the present one for as long as its watchers' connections
//! hold.
//!
//! And whether the leader keeps up with this member: one that has committed what the leader lacks is the last that knows
//! of entries which the registry lost, and its watchers would hear of that from nobody.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use super::Core;
use crate::raft::{Ahead, ReadPolicy};

/// How often the leader is asked: two dozen small calls in a lease, whatever the watchers.
const INTERVAL: Duration = Duration::from_millis(500);
/// How soon it is asked again when it did not answer: a follower may stand for election while nobody listens there, and
/// its chance should come soon after the leader's lease.
const SOON: Duration = Duration::from_millis(50);
/// A leader that does not answer within this is not heard.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// Without a leader, or behind it, for so long this member is cut off: several elections fit, and an agent has time to
/// find another member before its lease ends.
pub(crate) const PATIENCE: Duration = Duration::from_secs(4);

/// So long a leader has to lack what is committed here: it is never so in a sound registry, not for a moment, but this
/// member ends because of it.
const AHEAD_PATIENCE: Duration = Duration::from_secs(2);

/// Looks for the leader until the member stops.
pub(crate) async fn run(core: Arc<Core>, contact: watch::Sender<bool>, stop: CancellationToken) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // When this member was last known to have all that was committed; and what it lacked since.
    let (mut current, mut lacking) = (Instant::now(), None);
    let (mut agreement, mut ahead_since) = (core.agreement.clone(), None);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Ok(()) = agreement.changed() => {}
            _ = ticks.tick() => {}
        }
        if core.disagreement().is_some() {
            // The log has its reason already.
            contact.send_if_modified(|before| std::mem::replace(before, false));
        }
        let (asked, own) = (Instant::now(), core.catalog.now().index());
        let answer = timeout(ANSWER_TIMEOUT, core.try_read_index(ReadPolicy::Lease)).await;
        let leader_lacks = matches!(answer, Ok(Ok(index)) if index < own);
        ahead_since = ahead_since.or(Some(asked)).filter(|_| leader_lacks);
        if ahead_since.is_some_and(|since| since.elapsed() >= AHEAD_PATIENCE) && core.leader_surely_lacks(own).await {
            contact.send_replace(false);
            core.ahead.send_replace(Some(Ahead { committed: own }));
            return stop.cancelled().await;
        }
        match answer {
            Ok(Ok(index)) => _ = lacking.get_or_insert((asked, index)),
            Ok(Err(error)) => {
                if error.leader_refused {
                    core.log.stand_for_election().await;
                }
                // A connection that broke says little; whether the next one is refused is worth knowing soon.
                ticks.reset_after(SOON);
            }
            Err(_) => {}
        }
        if let Some((asked, _)) = lacking.take_if(|(_, index)| core.catalog.now().index() >= *index) {
            current = asked;
        }
        let disagrees = core.disagreement().is_some();
        let now = current.elapsed() < PATIENCE && !disagrees;
        let changed = contact.send_if_modified(|before| std::mem::replace(before, now) != now);
        match (changed, now, lacking) {
            (false, ..) => {}
            (true, false, _) if disagrees => {}
            (true, true, _) => tracing::info!("this member has what its leader has again"),
            (true, false, None) => {
                tracing::warn!("no leader was heard for {PATIENCE:?}: watchers are sent to other members");
            }
            (true, false, Some((_, index))) => {
                tracing::warn!(index, "an entry is missing for {PATIENCE:?}: watchers are sent to other members");
            }
        }
    }
}

impl Core {
    /// Whether the leader, confirmed by a quorum, has not committed up to an entry that is applied here. Whoever has the
    /// leader's address by now must not be taken for it.
    async fn leader_surely_lacks(&self, own: u64) -> bool {
        let Some(leader) = self.log.leadership().borrow().leader.clone() else { return false };
        if leader.id == self.log.id() || !self.answers_as_itself(&leader).await {
            return false;
        }
        let confirmed = timeout(ANSWER_TIMEOUT, self.try_read_index(ReadPolicy::Quorum)).await;
        matches!(confirmed, Ok(Ok(index)) if index < own)
    }
}
