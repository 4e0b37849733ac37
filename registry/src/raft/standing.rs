//! Whether this member still belongs to the registry.
//!
//! Who is removed is not told so by the log: the leader stops sending. Every member that is not the leader therefore asks
//! another one each second who the members are. A later committed membership without this member in it is the proof.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::membership::Membership;
use super::wire::proto;
use super::{Machine, Peer, StoredMembership};

/// How often: a removed member serves no longer than two of these.
const INTERVAL: Duration = Duration::from_secs(1);

/// This member was taken out of the registry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "member {name} was removed from its registry (at log index {index}, as {told_by} says): to bring it back, empty its data \
     folder, start it, and add it by `muster registry add`"
)]
pub struct Removed {
    /// This member.
    pub name: String,
    /// A membership from there on does not hold it.
    pub index: u64,
    /// Who says so.
    pub told_by: String,
}

impl<M: Machine> Membership<M> {
    /// Returns when this member was removed.
    pub(crate) async fn removed(&self, stop: CancellationToken) -> Option<Removed> {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The last membership that had it in: one without it may follow in the log before anybody is asked.
        let mut last: Option<std::sync::Arc<StoredMembership>> = None;
        for turn in 0.. {
            tokio::select! {
                () = stop.cancelled() => return None,
                _ = ticks.tick() => {}
            }
            let now = self.effective();
            if now.get_node(&self.shared.id).is_some() {
                last = Some(now);
            }
            let Some(known) = last.as_ref().filter(|_| !self.shared.raft.is_leader()) else { continue };
            let Some((_, peer)) = self.whom_to_ask(known, turn) else { continue };
            let Some(reply) = self.greet(&peer.address).await else { continue };
            if let Some(index) = removed_by(known, self.shared.id, &reply) {
                let name = self.shared.me.name.clone();
                return Some(Removed { name, index, told_by: peer.name });
            }
        }
        None
    }

    /// The leader, and every other time somebody else: the leader known here may be one of long ago.
    fn whom_to_ask(&self, known: &StoredMembership, turn: usize) -> Option<(u64, Peer)> {
        let others: Vec<(u64, Peer)> =
            known.nodes().filter(|(id, _)| **id != self.shared.id).map(|(id, peer)| (*id, peer.clone())).collect();
        let leader = self.leader().filter(|_| turn.is_multiple_of(2));
        let leader = leader.and_then(|leader| others.iter().find(|(id, _)| *id == leader.id));
        leader.or_else(|| others.get(turn / 2 % others.len().max(1))).cloned()
    }
}

/// The index of a later membership without this member, if that is what the reply of one of its members says. Somebody
/// else may have the address by now, of another registry even: ids are drawn once and tell them apart.
fn removed_by(known: &StoredMembership, me: u64, reply: &proto::HelloReply) -> Option<u64> {
    let one_of_us = reply.member.as_ref().is_some_and(|member| known.get_node(&member.id).is_some());
    let later = known.log_id().as_ref().is_none_or(|id| id.index < reply.membership_index);
    (one_of_us && later && !reply.member_ids.is_empty() && !reply.member_ids.contains(&me))
        .then_some(reply.membership_index)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::super::wire::log_id;
    use super::*;
    use crate::store::Position;

    #[test]
    fn only_a_later_membership_of_this_registry_takes_a_member_out() {
        let nodes: BTreeMap<u64, Peer> = (1..=3).map(|id| (id, Peer::default())).collect();
        let membership = super::super::Membership::new(vec![BTreeSet::from([1, 2, 3])], nodes).unwrap();
        let known = StoredMembership::new(Some(log_id(Position { term: 1, node: 1, index: 10 })), membership);
        let reply = |from: u64, index, ids: &[u64]| proto::HelloReply {
            member: Some(proto::Member { id: from, ..Default::default() }),
            membership_index: index,
            member_ids: ids.to_vec(),
            ..Default::default()
        };
        for (reply, expected) in [
            (reply(1, 11, &[1, 2]), Some(11)),
            (reply(1, 11, &[1, 2, 3]), None),
            // It is behind.
            (reply(1, 10, &[1, 2]), None),
            (reply(1, 9, &[1]), None),
            // An older build does not say.
            (reply(1, 0, &[]), None),
            // Another registry, or a member that came later: not to be believed in this.
            (reply(7, 99, &[7]), None),
        ] {
            assert_eq!(removed_by(&known, 3, &reply), expected, "{reply:?}");
        }
    }
}
