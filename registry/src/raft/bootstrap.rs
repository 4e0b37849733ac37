//! How a registry begins, and how a member comes into one that exists.
//!
//! A registry begins once: when every listed member answers and every one is empty, the one with the lowest address
//! initialises all of them. Nobody else ever does, and not while a single member is silent: a silent one may hold the
//! log. From then on an empty member only joins: it asks the leader, which catches it up and lets it take the place of
//! the member that had its address before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use openraft::ChangeMembers;
use openraft::async_runtime::watch::WatchReceiver;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::{info, warn};

use super::network::{Network, Use};
use super::wire::{self, proto};
use super::{Machine, Peer, Raft};

/// How long a member may take to say hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the leader may take to catch a new member up; the asker tries again after it.
const JOIN_TIMEOUT: Duration = Duration::from_secs(120);
/// First pause between two rounds, doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// This member's part in the membership. Clones share it.
pub(crate) struct Membership<M: Machine> {
    shared: Arc<Shared<M>>,
}

impl<M: Machine> Clone for Membership<M> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

struct Shared<M: Machine> {
    raft: Raft<M>,
    network: Network,
    id: u64,
    me: Peer,
    /// Sorted; holds this member's own address.
    listed: Vec<String>,
    /// One change of members at a time.
    changing: tokio::sync::Mutex<()>,
}

/// What one round came to.
enum Round {
    /// This member belongs to the registry.
    Settled,
    /// Not yet; why, for the log.
    Waiting(String),
}

impl<M: Machine> Membership<M> {
    pub(crate) fn new(raft: Raft<M>, network: Network, id: u64, me: Peer, listed: Vec<String>) -> Self {
        let changing = tokio::sync::Mutex::new(());
        Self { shared: Arc::new(Shared { raft, network, id, me, listed, changing }) }
    }

    /// Goes on until this member is in the registry. The registry may come up in any order and at any time.
    pub(crate) async fn settle(&self, stop: CancellationToken) {
        let mut pause = FIRST_PAUSE;
        let mut said = String::new();
        loop {
            let round = tokio::select! {
                () = stop.cancelled() => return,
                round = self.try_settle() => round,
            };
            match round {
                Round::Settled => return,
                Round::Waiting(why) if why != said => {
                    info!(why, "not in a registry yet");
                    said = why;
                }
                Round::Waiting(_) => {}
            }
            // Jitter, so that members started together do not ask in step for ever.
            let jittered = pause.mul_f64(rand::random_range(0.5..1.0));
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(jittered) => {}
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn try_settle(&self) -> Round {
        let shared = &self.shared;
        if self.is_voter() {
            return Round::Settled;
        }
        let others: Vec<&String> = shared.listed.iter().filter(|address| **address != shared.me.address).collect();
        let answers = join_all(others.iter().map(|address| self.greet(address))).await;
        if let Some(there) = answers.iter().flatten().find(|answer| answer.initialised) {
            return self.ask_to_join(there).await;
        }
        let found: Vec<&proto::Member> = answers.iter().flatten().filter_map(|answer| answer.member.as_ref()).collect();
        if found.len() < others.len() {
            let silent = others.iter().zip(&answers).filter(|(_, answer)| answer.is_none());
            let silent: Vec<&str> = silent.map(|(address, _)| address.as_str()).collect();
            return Round::Waiting(format!("waiting for {}", silent.join(", ")));
        }
        match shared.listed.first() {
            Some(first) if *first == shared.me.address => self.initialise(&found).await,
            first => Round::Waiting(format!("waiting for {} to begin the registry", first.map_or("", |f| f.as_str()))),
        }
    }

    fn is_voter(&self) -> bool {
        let metrics = self.shared.raft.metrics();
        let membership = Arc::clone(&metrics.borrow_watched().membership_config);
        membership.voter_ids().any(|id| id == self.shared.id)
    }

    async fn greet(&self, address: &str) -> Option<proto::HelloReply> {
        let mut client = self.shared.network.client(Use::Control, address).ok()?;
        let answer = tokio::time::timeout(HELLO_TIMEOUT, client.hello(proto::HelloRequest {})).await;
        answer.ok()?.ok().map(tonic::Response::into_inner)
    }

    async fn initialise(&self, others: &[&proto::Member]) -> Round {
        let shared = &self.shared;
        let mut members = BTreeMap::from([(shared.id, shared.me.clone())]);
        for member in others {
            members.insert(member.id, Peer { name: member.name.clone(), address: member.address.clone() });
        }
        let addresses: BTreeSet<&String> = members.values().map(|peer| &peer.address).collect();
        if members.len() != shared.listed.len() || !addresses.into_iter().eq(shared.listed.iter()) {
            let found: Vec<String> = members.values().map(ToString::to_string).collect();
            return Round::Waiting(format!("`members` lists {:?}, but there answer {found:?}", shared.listed));
        }
        match shared.raft.initialize(members).await {
            Ok(()) => {
                info!(members = ?shared.listed, "began the registry");
                Round::Settled
            }
            Err(error) => Round::Waiting(format!("could not begin the registry: {error}")),
        }
    }

    async fn ask_to_join(&self, there: &proto::HelloReply) -> Round {
        let leader = there.leader.as_ref().or(there.member.as_ref());
        let Some(leader) = leader else { return Round::Waiting("the registry has no leader".into()) };
        let request = proto::JoinRequest { member: Some(wire::member_to(self.shared.id, &self.shared.me)) };
        let mut client = match self.shared.network.client(Use::Control, &leader.address) {
            Ok(client) => client,
            Err(status) => return Round::Waiting(status.message().to_owned()),
        };
        match tokio::time::timeout(JOIN_TIMEOUT, client.join(request)).await {
            Ok(Ok(reply)) => match reply.into_inner() {
                reply if reply.accepted => Round::Settled,
                reply => Round::Waiting(reply.reason),
            },
            Ok(Err(status)) => Round::Waiting(format!("{}: {}", leader.address, status.message())),
            Err(_) => Round::Waiting(format!("{} did not let us in within {JOIN_TIMEOUT:?}", leader.address)),
        }
    }

    /// Answers another member's hello.
    pub(crate) async fn hello(&self) -> Result<proto::HelloReply, Status> {
        let shared = &self.shared;
        let initialised = shared.raft.is_initialized().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let member = Some(wire::member_to(shared.id, &shared.me));
        Ok(proto::HelloReply { member, initialised, leader: self.leader() })
    }

    fn leader(&self) -> Option<proto::Member> {
        let metrics = self.shared.raft.metrics();
        let metrics = metrics.borrow_watched();
        let id = metrics.current_leader?;
        metrics.membership_config.get_node(&id).map(|peer| wire::member_to(id, peer))
    }

    /// As the leader: lets an empty member in, in the place of whoever had its address.
    pub(crate) async fn admit(&self, member: proto::Member) -> Result<proto::JoinReply, Status> {
        let refuse = |reason: String| Ok(proto::JoinReply { accepted: false, leader: self.leader(), reason });
        let shared = &self.shared;
        if !shared.raft.is_leader() {
            return refuse("this member does not lead; ask the leader".into());
        }
        if !shared.listed.contains(&member.address) {
            return refuse(format!("{:?} is not in the `members` of {}", member.address, shared.me));
        }
        // The address must lead to the one that asks: else its old tenant is still alive, and would be voted out.
        let tenant = self.greet(&member.address).await.and_then(|reply| reply.member);
        if tenant.is_none_or(|tenant| tenant.id != member.id) {
            return refuse(format!("another member answers at {:?}", member.address));
        }
        let _one = shared.changing.lock().await;
        let now = Arc::clone(&shared.raft.metrics().borrow_watched().membership_config);
        let voters: BTreeSet<u64> = now.voter_ids().collect();
        if voters.contains(&member.id) {
            return Ok(proto::JoinReply { accepted: true, ..Default::default() });
        }
        let replaced: Vec<u64> =
            now.nodes().filter(|(_, peer)| peer.address == member.address).map(|(id, _)| *id).collect();
        let peer = Peer { name: member.name, address: member.address };
        warn!(id = member.id, %peer, ?replaced, "a new member joins");
        let failed = |error: String| Status::aborted(format!("the change of members failed: {error}"));
        shared.raft.add_learner(member.id, peer, true).await.map_err(|error| failed(error.to_string()))?;
        let next = voters.into_iter().filter(|id| !replaced.contains(id)).chain([member.id]).collect();
        let change = ChangeMembers::ReplaceAllVoters(next);
        shared.raft.change_membership(change, false).await.map_err(|error| failed(error.to_string()))?;
        Ok(proto::JoinReply { accepted: true, ..Default::default() })
    }
}
