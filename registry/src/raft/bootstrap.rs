//! How a registry begins, and how a member comes into one that exists.
//!
//! A registry begins once: when every listed member answers and every one is empty, the one with the lowest address
//! initialises all of them. Nobody else ever does, and not while a single member is silent: a silent one may hold the
//! log. From then on an empty member only joins: it asks the leader, which catches it up and lets it take the place of
//! the member that had its address before.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Machine;
use super::membership::Membership;
use super::network::Use;
use super::wire::{self, proto};

/// How long the leader may take to catch a new member up; the asker tries again after it.
const JOIN_TIMEOUT: Duration = Duration::from_secs(120);
/// First pause between two rounds, doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// A member that is in no registry for so long is mostly set up wrongly: somebody has to look at it.
const LONG: Duration = Duration::from_secs(30);

/// What one round came to.
enum Round {
    /// This member belongs to the registry.
    Settled,
    /// Not yet; why, for the log.
    Waiting(String),
}

impl<M: Machine> Membership<M> {
    /// Goes on until this member is in the registry. The registry may come up in any order and at any time.
    pub(crate) async fn settle(&self, stop: CancellationToken) {
        let mut pause = FIRST_PAUSE;
        let (mut said, begun, mut warned) = (String::new(), Instant::now(), false);
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
                Round::Waiting(why) if !warned && begun.elapsed() > LONG => {
                    warn!(why, "still not in a registry: this member serves nothing until it is");
                    warned = true;
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
        // Asked of the log itself: what is known of it is told a moment after it was opened.
        let initialised = shared.raft.is_initialized().await.unwrap_or_default();
        if let Some(round) = self.standing(initialised) {
            return round;
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
        if !shared.listed.contains(&shared.me.address) {
            return Round::Waiting(format!(
                "`members` does not list {:?}, so it begins no registry: it waits for one to exist and to add it",
                shared.me.address
            ));
        }
        match shared.listed.first() {
            Some(first) if *first == shared.me.address => self.initialise(&found).await,
            first => Round::Waiting(format!("waiting for {} to begin the registry", first.map_or("", |f| f.as_str()))),
        }
    }

    /// Whether the log here, or what is known of it, already says what becomes of this member.
    fn standing(&self, initialised: bool) -> Option<Round> {
        let (membership, shared) = (self.effective(), &self.shared);
        if membership.voter_ids().any(|id| id == shared.id) {
            return Some(Round::Settled);
        }
        let others = membership.nodes().filter(|(id, _)| **id != shared.id);
        let replaces = others.into_iter().any(|(_, peer)| peer.address == shared.me.address);
        if membership.get_node(&shared.id).is_some() {
            // A learner is made a voter when it is time, unless it comes in the place of another.
            return (!replaces).then_some(Round::Settled);
        }
        if initialised && membership.nodes().next().is_none() {
            return Some(Round::Waiting("the log is being opened".to_owned()));
        }
        initialised.then(|| {
            Round::Waiting(
                "the log in the data folder belongs to a registry that does not list this member: unless it is just \
                 being added, or its file `node-id` was changed and can be restored, empty the data folder and add it by \
                 `muster registry add`"
                    .to_owned(),
            )
        })
    }

    async fn initialise(&self, others: &[&proto::Member]) -> Round {
        let shared = &self.shared;
        let mut members = BTreeMap::from([(shared.id, shared.me.clone())]);
        for member in others {
            let (id, peer) = wire::member_from((*member).clone());
            members.insert(id, peer);
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
}
