//! Room on the members' disks: a leader without any hands the lead on to a voter that has some. Where too few have any for
//! a majority, writes are refused at once and say whose disks: waiting would not help.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::{error, info, warn};

use super::change::{best_voter, majority, shown};
use super::membership::{Contacts, Greeting, Membership};
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
            let room = self.look_at_room().await;
            let before = std::mem::replace(&mut *self.room(), room.clone());
            // Its own disk is told of where it is looked at.
            match (before.refuses, room.refuses) {
                (false, true) => error!(why = room.to_string(), "refusing writes"),
                (true, false) => info!("enough voters have room: taking writes, as far as this member leads"),
                _ => {}
            }
        }
    }

    fn room(&self) -> MutexGuard<'_, Room> {
        self.shared.room.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why nothing is proposed here, where disks are the reason. While enough others may have room it is a matter of
    /// another leader.
    pub(super) fn no_room(&self) -> Option<ProposeError> {
        let room = self.room();
        if room.refuses && self.shared.raft.is_leader() {
            return Some(ProposeError::NoRoom(room.to_string()));
        }
        self.shared.disk.is_full().then_some(ProposeError::NotLeader { leader: None })
    }

    /// The voters that are known to have no room, for an answer of which they may be the reason.
    pub(super) fn known_without_room(&self) -> Option<String> {
        let room = self.room();
        (!room.full.is_empty()).then(|| room.to_string())
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

    /// As the leader, looks at the disks of all voters; one that has no room itself hands the lead on where enough others
    /// have. Who does not answer may have room: that there is no quorum then is said elsewhere.
    async fn look_at_room(&self) -> Room {
        let Some(contacts) = self.contacts() else { return Room::default() };
        let greetings = self.greetings().await;
        let membership = self.effective();
        let full = membership.voter_ids().filter_map(|id| {
            let why = greetings.get(&id)?.no_room.clone()?;
            let name = membership.get_node(&id).map_or_else(|| shown(id), |peer| peer.name.clone());
            Some((id, (name, why)))
        });
        let room = Room::new(membership.membership().get_joint_config(), full.collect());
        if self.shared.disk.is_full() && !room.refuses {
            self.leave_it_to_who_has_room(contacts, &greetings).await;
        }
        room
    }

    /// Hands the lead to the voter with room that has most of the log.
    async fn leave_it_to_who_has_room(&self, mut contacts: Contacts, greetings: &BTreeMap<u64, Greeting>) {
        let membership = self.effective();
        let has_room = |id: &u64| greetings.get(id).is_some_and(|greeting| greeting.no_room.is_none());
        contacts.members.retain(|id, _| has_room(id));
        // One that answers may not have been heard yet in a new term.
        let Some((next, peer)) = best_voter(&membership, &contacts, self.shared.id) else { return };
        info!(to = peer.name, "handing the lead on to a member with room on its disk");
        // What does not succeed is tried again at the next look.
        if let Err(error) = self.shared.raft.trigger().transfer_leader(next).await {
            warn!(%error, "the lead was not handed on");
        }
    }
}

/// What a leader knows of the voters' disks.
#[derive(Clone, Debug, Default)]
pub(super) struct Room {
    /// Those without room: the member's name, and what it says.
    full: Vec<(String, String)>,
    voters: usize,
    /// Too few others are left for a majority.
    refuses: bool,
}

impl Room {
    /// `sets` are the voters; two sets while a change of members is half done, and each needs its majority.
    fn new(sets: &[BTreeSet<u64>], full: BTreeMap<u64, (String, String)>) -> Self {
        let left = |set: &BTreeSet<u64>| set.iter().filter(|id| !full.contains_key(id)).count();
        let refuses = sets.iter().any(|set| left(set) < majority(set.len()));
        let voters = sets.iter().flatten().collect::<BTreeSet<_>>().len();
        Self { full: full.into_values().collect(), voters, refuses }
    }
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (1, [(_, why)]) = (self.voters, self.full.as_slice()) {
            return f.write_str(why);
        }
        let each: Vec<String> = self.full.iter().map(|(name, why)| format!("{name}: {why}")).collect();
        write!(f, "{} of {} voters have no room on their disks: {}", self.full.len(), self.voters, each.join("; "))
    }
}

fn is_written_by_a_client(entry: &proto::Entry) -> bool {
    let kind = entry.payload.as_ref().and_then(|payload| payload.kind.as_ref());
    matches!(kind, Some(proto::payload::Kind::Normal(_)))
}
