//! Room on the members' disks: a leader without any hands the lead on to a voter that has some. Where nobody has, writes
//! are refused at once and say why: waiting would not help.

use std::sync::atomic::Ordering;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::{info, warn};

use super::change::best_voter;
use super::membership::Membership;
use super::wire::proto;
use super::{Machine, ProposeError};

/// How often the room is looked at.
const INTERVAL: Duration = Duration::from_secs(1);

impl<M: Machine> Membership<M> {
    /// Looks at the disk until cancelled, and acts on it.
    pub(super) async fn watch_room(self, stop: CancellationToken) {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let looked = self.shared.disk.clone();
            if tokio::task::spawn_blocking(move || looked.look()).await.is_err() {
                return;
            }
            let nowhere = self.shared.disk.is_full() && !self.leave_it_to_who_has_room().await;
            self.shared.no_room_anywhere.store(nowhere, Ordering::Relaxed);
        }
    }

    /// Why nothing is proposed here, where the disk is the reason. While somebody else may have room it is a matter of
    /// another leader.
    pub(super) fn no_room(&self) -> Option<ProposeError> {
        let nowhere = || self.shared.no_room_anywhere.load(Ordering::Relaxed);
        self.shared.disk.is_full().then(|| match nowhere() {
            true => ProposeError::NoRoom(self.shared.disk.to_string()),
            false => ProposeError::NotLeader { leader: None },
        })
    }

    /// Whether there is room for what is to be appended. What an election writes is small and goes on: without it nobody
    /// could lead, or be read from. What is in the log already needs none; a leader that missed our answer sends it anew.
    pub(super) fn check_room(&self, append: &proto::AppendRequest) -> Result<(), Status> {
        let disk = &self.shared.disk;
        if !disk.is_full() {
            return Ok(());
        }
        let last = self.shared.raft.metrics().borrow_watched().last_log_index;
        let is_new = |entry: &proto::Entry| entry.log_id.is_some_and(|id| Some(id.index) > last);
        match append.entries.iter().any(|entry| is_new(entry) && is_written_by_a_client(entry)) {
            true => Err(Status::resource_exhausted(disk.to_string())),
            false => Ok(()),
        }
    }

    /// As the leader, hands the lead to the voter with room that has most of the log. Whether somebody else leads or is to.
    async fn leave_it_to_who_has_room(&self) -> bool {
        let Some(mut contacts) = self.contacts() else { return true };
        let greetings = self.greetings().await;
        let membership = self.effective();
        let has_room = |id: &u64| greetings.get(id).is_some_and(|greeting| !greeting.no_room);
        if !membership.voter_ids().any(|id| has_room(&id)) {
            return false;
        }
        contacts.members.retain(|id, _| has_room(id));
        // One that answers may not have been heard yet in a new term.
        let Some((next, peer)) = best_voter(&membership, &contacts, self.shared.id) else { return true };
        info!(to = peer.name, "handing the lead on to a member with room on its disk");
        // What does not succeed is tried again at the next look.
        if let Err(error) = self.shared.raft.trigger().transfer_leader(next).await {
            warn!(%error, "the lead was not handed on");
        }
        true
    }
}

fn is_written_by_a_client(entry: &proto::Entry) -> bool {
    let kind = entry.payload.as_ref().and_then(|payload| payload.kind.as_ref());
    matches!(kind, Some(proto::payload::Kind::Normal(_)))
}
