//! Who leads, told to whoever has to act on it; and the numbers of the log, told to the metrics.

use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::metrics::RaftServerMetrics;
use openraft::{RaftMetrics, ServerState};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::{Machine, Member, Raft, StoredMembership, Types};
use crate::store::Fault;

/// How often the numbers of the log are shown while nobody's leadership changes.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What this member knows of the registry's leadership. Watchers wake when anything but `last_applied` changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// Whether this member leads.
    pub is_leader: bool,
    /// Who leads, where known.
    pub leader: Option<Member>,
    /// The term it leads in.
    pub term: u64,
    /// Whether everything this member had before its start is applied again: before, its state may be older than one
    /// it already served.
    pub recovered: bool,
    /// Members, as this one knows them.
    pub members: Vec<Member>,
    /// Last applied index, as of the last wake or look.
    pub last_applied: Option<u64>,
}

/// Follows openraft until cancelled; a dead log is a fault.
///
/// Its metrics change several times with every write. Once the log is recovered only what concerns leadership is
/// waited for, and the numbers are looked at now and then.
pub(crate) async fn follow<M: Machine>(
    raft: Raft<M>,
    leadership: watch::Sender<Leadership>,
    stop: CancellationToken,
    fault: Fault,
) {
    let (mut all, mut server, mut ended) = (raft.metrics(), raft.server_metrics(), false);
    let mut looks = interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let known = server.borrow_and_update().clone();
        let now = all.borrow_and_update().clone();
        if let (Err(error), false) = (&now.running_state, stop.is_cancelled()) {
            fault(&format!("the replicated log has ended: {error}"));
            return;
        }
        // What concerns leadership is told first, the rest at once after it.
        let complete = is_of(&now, &known);
        if complete {
            publish(&now, &leadership);
        }
        let quiet = complete && !ended && leadership.borrow().recovered;
        tokio::select! {
            () = stop.cancelled() => return,
            changed = all.changed(), if !quiet => if changed.is_err() { return },
            changed = server.changed(), if quiet => ended = changed.is_err(),
            _ = looks.tick(), if quiet => {}
        }
    }
}

/// Whether both say the same of leadership.
fn is_of(now: &RaftMetrics<Types>, server: &RaftServerMetrics<Types>) -> bool {
    let membership = |config: &Arc<StoredMembership>| *config.log_id();
    now.vote == server.vote
        && now.state == server.state
        && now.current_leader == server.current_leader
        && membership(&now.membership_config) == membership(&server.membership_config)
}

fn publish(now: &RaftMetrics<Types>, leadership: &watch::Sender<Leadership>) {
    let members = members(now);
    let next = Leadership {
        is_leader: now.state == ServerState::Leader,
        leader: members.iter().find(|member| member.is_leader).cloned(),
        term: now.current_term,
        recovered: leadership.borrow().recovered || is_recovered(now),
        members,
        last_applied: now.last_applied.map(|id| id.index),
    };
    metrics::gauge!("muster_registry_raft_term").set(next.term as f64);
    metrics::gauge!("muster_registry_is_leader").set(if next.is_leader { 1.0 } else { 0.0 });
    metrics::gauge!("muster_registry_commit_index").set(now.cluster_committed.map_or(0, |id| id.index) as f64);
    leadership.send_if_modified(|last| {
        let led = |of: &Leadership| (of.term, of.leader.as_ref().map(|leader| leader.id));
        if next.leader.is_some() && led(last) != led(&next) {
            metrics::counter!("muster_registry_elections_total").increment(1);
            let leader = next.leader.as_ref().map(|leader| leader.name.as_str());
            info!(leader, term = next.term, "the registry has a leader");
        }
        let changed = *last != Leadership { last_applied: last.last_applied, ..next.clone() };
        *last = next;
        changed
    });
}

/// The registry has committed, and this member applied, all that lay in its log at the start.
fn is_recovered(now: &RaftMetrics<Types>) -> bool {
    let committed = now.cluster_committed.map(|id| id.index);
    committed.is_some() && committed >= now.last_log_index && now.last_applied.map(|id| id.index) >= committed
}

fn members(now: &RaftMetrics<Types>) -> Vec<Member> {
    let membership = now.membership_config.membership();
    let voters: Vec<u64> = membership.voter_ids().collect();
    let member = |(id, peer): (&u64, &super::Peer)| Member {
        id: *id,
        name: peer.name.clone(),
        address: peer.address.clone(),
        voter: voters.contains(id),
        read_only: peer.read_only,
        is_leader: now.current_leader == Some(*id),
    };
    membership.nodes().map(member).collect()
}
