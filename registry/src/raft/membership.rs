//! Who belongs to the registry, as this member knows it: what it tells others, and how an empty member gets in.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::{ChangeMembers, Instant};
use tonic::Status;
use tracing::warn;

use super::network::{Network, Use};
use super::room::Room;
use super::wire::{self, proto};
use super::{Formats, Machine, Peer, Raft, StoredMembership};
use crate::store::DiskGuard;

/// How long a member may take to say hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(1);

/// What a member says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// Its id.
    pub id: u64,
    /// The newest format of payloads that its build knows.
    pub format: u32,
    /// The version of its build; empty from builds that did not say.
    pub version: String,
    /// Why its disk takes no entries any more.
    pub no_room: Option<String>,
}

/// What the leader last heard of another member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contact {
    /// How long ago it answered; `None` when it never did in this term.
    pub silent: Option<Duration>,
    /// The last entry that it is known to have.
    pub matched: Option<u64>,
}

/// What the leader knows of all members.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contacts {
    /// The term it leads in.
    pub term: u64,
    /// The last entry of its log.
    pub last: u64,
    /// Whether a change of members is half done: two sets of voters are in force.
    pub joint: bool,
    /// Each member, the leader itself among them.
    pub members: BTreeMap<u64, Contact>,
}

/// This member's part in the membership. Clones share it.
pub(crate) struct Membership<M: Machine> {
    pub(super) shared: Arc<Shared<M>>,
}

impl<M: Machine> Clone for Membership<M> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

pub(super) struct Shared<M: Machine> {
    pub(super) raft: Raft<M>,
    pub(super) network: Network,
    pub(super) id: u64,
    pub(super) me: Peer,
    /// Sorted. For the first bootstrap, and to find the registry.
    pub(super) listed: Vec<String>,
    pub(super) formats: Formats,
    pub(super) disk: DiskGuard,
    /// As the leader: what is known of the voters' disks, as of the last look.
    pub(super) room: Mutex<Room>,
    /// One change of members at a time.
    pub(super) changing: Arc<tokio::sync::Mutex<()>>,
}

impl<M: Machine> Membership<M> {
    pub(crate) fn new(
        raft: Raft<M>,
        network: Network,
        id: u64,
        me: Peer,
        listed: Vec<String>,
        formats: Formats,
        disk: DiskGuard,
    ) -> Self {
        let (room, changing) = Default::default();
        Self { shared: Arc::new(Shared { raft, network, id, me, listed, formats, disk, room, changing }) }
    }

    /// The membership in force here, committed or not.
    pub(super) fn effective(&self) -> Arc<StoredMembership> {
        Arc::clone(&self.shared.raft.metrics().borrow_watched().membership_config)
    }

    pub(super) async fn greet(&self, address: &str) -> Option<proto::HelloReply> {
        let mut client = self.shared.network.client(Use::Control, address).ok()?;
        let answer = tokio::time::timeout(HELLO_TIMEOUT, client.hello(proto::HelloRequest {})).await;
        answer.ok()?.ok().map(tonic::Response::into_inner)
    }

    /// Answers another member's hello.
    pub(crate) async fn hello(&self) -> Result<proto::HelloReply, Status> {
        let shared = &self.shared;
        let initialised = shared.raft.is_initialized().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let committed = Arc::clone(&shared.raft.metrics().borrow_watched().committed_membership_config);
        Ok(proto::HelloReply {
            member: Some(wire::member_to(shared.id, &shared.me)),
            initialised,
            leader: self.leader(),
            format: shared.formats.newest,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            membership_index: committed.log_id().as_ref().map_or(0, |id| id.index),
            member_ids: committed.nodes().map(|(id, _)| *id).collect(),
            no_room: shared.disk.is_full(),
            no_room_why: shared.disk.why_full().unwrap_or_default(),
        })
    }

    pub(super) fn leader(&self) -> Option<proto::Member> {
        let metrics = self.shared.raft.metrics();
        let metrics = metrics.borrow_watched();
        let id = metrics.current_leader?;
        metrics.membership_config.get_node(&id).map(|peer| wire::member_to(id, peer))
    }

    /// Keeps the members as they are for as long as the guard lives.
    pub(crate) async fn hold(&self) -> tokio::sync::OwnedMutexGuard<()> {
        Arc::clone(&self.shared.changing).lock_owned().await
    }

    /// What every member says of itself; one that does not answer, or whose address another one has, is left out.
    pub(crate) async fn greetings(&self) -> BTreeMap<u64, Greeting> {
        let membership = self.effective();
        let asked = membership.nodes().map(|(id, peer)| async move {
            if *id == self.shared.id {
                let (format, version) = (self.shared.formats.newest, env!("CARGO_PKG_VERSION").to_owned());
                return Some(Greeting { id: *id, format, version, no_room: self.shared.disk.why_full() });
            }
            let reply = self.greet(&peer.address).await?;
            // Builds that knew the first format only did not say so.
            let format = reply.format.max(1);
            let why = if reply.no_room_why.is_empty() { "its disk is full".to_owned() } else { reply.no_room_why };
            let no_room = reply.no_room.then_some(why);
            let greeting = Greeting { id: *id, format, version: reply.version, no_room };
            reply.member.is_some_and(|member| member.id == *id).then_some(greeting)
        });
        join_all(asked).await.into_iter().flatten().map(|greeting| (greeting.id, greeting)).collect()
    }

    /// What this member has heard of the others as their leader; `None` when it does not lead.
    pub(crate) fn contacts(&self) -> Option<Contacts> {
        let metrics = self.shared.raft.metrics();
        let metrics = metrics.borrow_watched();
        let (heard, matched) = metrics.heartbeat.as_ref().zip(metrics.replication.as_ref())?;
        let membership = metrics.membership_config.membership();
        let last = metrics.last_log_index.unwrap_or_default();
        let contact = |id: u64| {
            if id == self.shared.id {
                return Contact { silent: Some(Duration::ZERO), matched: Some(last) };
            }
            Contact {
                silent: heard.get(&id).copied().flatten().map(|at| at.elapsed()),
                matched: matched.get(&id).copied().flatten().map(|id| id.index),
            }
        };
        Some(Contacts {
            term: metrics.current_term,
            last,
            joint: membership.get_joint_config().len() > 1,
            members: membership.nodes().map(|(id, _)| (*id, contact(*id))).collect(),
        })
    }

    /// As the leader: lets an empty member in, in the place of whoever had its address.
    pub(crate) async fn admit(&self, member: proto::Member) -> Result<proto::JoinReply, Status> {
        let refuse = |reason: String| Ok(proto::JoinReply { accepted: false, leader: self.leader(), reason });
        let shared = &self.shared;
        if !shared.raft.is_leader() {
            return refuse("this member does not lead; ask the leader".into());
        }
        // The address must lead to the one that asks: else its old tenant is still alive, and would be voted out.
        let greeted =
            self.greet(&member.address).await.filter(|reply| reply.member.as_ref().is_some_and(|m| m.id == member.id));
        let Some(greeted) = greeted else {
            return refuse(format!("another member answers at {:?}", member.address));
        };
        let _one = shared.changing.lock().await;
        let now = self.effective();
        let voters: BTreeSet<u64> = now.voter_ids().collect();
        if voters.contains(&member.id) {
            return Ok(proto::JoinReply { accepted: true, ..Default::default() });
        }
        if greeted.initialised && now.get_node(&member.id).is_none() {
            // Of this registry before it was recovered without it, say.
            return refuse(
                "it holds the log of another registry, or of another time of this one: empty its data folder".into(),
            );
        }
        let tenants = now.nodes().filter(|(id, peer)| **id != member.id && peer.address == member.address);
        let before: Vec<(u64, bool)> = tenants.map(|(id, peer)| (*id, peer.read_only)).collect();
        if now.get_node(&member.id).is_some() && before.is_empty() {
            // It was added by command meanwhile, and gets its vote when it is time.
            return Ok(proto::JoinReply { accepted: true, ..Default::default() });
        }
        if !shared.listed.contains(&member.address) && before.is_empty() {
            let (address, me) = (&member.address, &shared.me);
            return refuse(format!(
                "{address:?} is not in the `members` of {me}: add it by `muster registry add {address}`"
            ));
        }
        let in_force = (shared.formats.in_force)();
        if greeted.format.max(1) < in_force {
            return refuse(too_old(&greeted, in_force));
        }
        // A reader stays one on its new disk.
        let read_only = before.iter().any(|(_, read_only)| *read_only);
        let gone: BTreeSet<u64> = before.into_iter().map(|(id, _)| id).collect();
        let peer = Peer { name: member.name, address: member.address, read_only };
        warn!(id = member.id, %peer, replaced = ?gone, "a new member joins");
        let failed = |error: String| Status::aborted(format!("the change of members failed: {error}"));
        shared.raft.add_learner(member.id, peer, true).await.map_err(|error| failed(error.to_string()))?;
        let change = if read_only {
            ChangeMembers::RemoveNodes(gone)
        } else {
            let next = voters.into_iter().filter(|id| !gone.contains(id)).chain([member.id]).collect();
            let learners = gone.into_iter().filter(|id| now.voter_ids().all(|voter| voter != *id)).collect();
            ChangeMembers::Batch(vec![ChangeMembers::RemoveNodes(learners), ChangeMembers::ReplaceAllVoters(next)])
        };
        shared.raft.change_membership(change, false).await.map_err(|error| failed(error.to_string()))?;
        Ok(proto::JoinReply { accepted: true, ..Default::default() })
    }
}

/// Why a member of an older build cannot come in any more.
pub(super) fn too_old(greeted: &proto::HelloReply, in_force: u32) -> String {
    let name = greeted.member.as_ref().map_or("it", |member| member.name.as_str());
    format!(
        "{name} runs a build that knows catalog format {}, and this registry has raised its catalog to format {in_force}: \
         start it with a build as new as the other members'",
        greeted.format.max(1)
    )
}
