//! What the registry holds back, and deciding about it.

use std::time::Duration;

use muster_catalog::port::SubmitError;

use super::{CallError, Client, connection::Tries};
use crate::{
    leases::brake::Decision,
    proto::registry::{self as pb, decide_brake_reply::Outcome},
};

/// Many nodes went silent at once: nobody learns of it until somebody decides or the time is up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldExpiry {
    /// What a decision has to name.
    pub id: String,
    /// How long it is held already.
    pub held_for: Duration,
    /// How long it will be without a decision.
    pub remaining: Duration,
    /// When it began, so many were silent or lost …
    pub together: u64,
    /// … of so many that lived, …
    pub living: u64,
    /// … which is over this share …
    pub percent: u32,
    /// … and this number …
    pub least: u64,
    /// … within this time.
    pub window: Duration,
    /// How many are silent still.
    pub count: u64,
    /// The first of them.
    pub nodes: Vec<HeldNode>,
    /// What they have in common, and the others have not.
    pub shared: Vec<SharedTrait>,
}

/// A node whose loss is held back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldNode {
    /// Its name.
    pub name: String,
    /// The member that heard it last; empty where none has since the election.
    pub member: String,
    /// Whether its stream to that member broke; it fell silent otherwise.
    pub broken: bool,
    /// Where it stands.
    pub region: String,
    /// Where it stands.
    pub zone: String,
}

/// A trait that most of the held nodes have, and few of the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedTrait {
    /// `member`, `stream`, `region` or `zone`.
    pub kind: String,
    /// Its value.
    pub value: String,
    /// How many of the held nodes have it.
    pub held: u64,
    /// How many of the others that live.
    pub others: u64,
}

impl Client {
    /// What the leader holds back. Asks member after member until one answers or the deadline of writes has passed.
    pub async fn held_expiry(&self) -> Result<Option<HeldExpiry>, CallError> {
        let mut tries = Tries::within(self.connections.config.write_deadline);
        loop {
            match self.try_held_expiry().await {
                Ok(held) => return Ok(held),
                Err(error) if !tries.again(error.reached()).await => return Err(error),
                Err(_) => {}
            }
        }
    }

    async fn try_held_expiry(&self) -> Result<Option<HeldExpiry>, CallError> {
        let connection = self.connections.connection().await?;
        let mut client = connection.client.clone();
        let reply = self.call(&connection, client.brakes(pb::BrakesRequest { forwarded: false })).await?;
        Ok(reply.expiry.map(HeldExpiry::from))
    }

    /// Decides on what is held under this id; returns how many nodes that were. Repeated while it is surely not done,
    /// within the deadline of writes.
    pub async fn decide_brake(&self, id: &str, decision: Decision) -> Result<u64, SubmitError> {
        let mut tries = Tries::within(self.connections.config.write_deadline);
        loop {
            let (why, reached) = match self.try_decide_brake(id, decision).await {
                Ok(Outcome::Nodes(nodes)) => return Ok(nodes),
                Ok(Outcome::Refused(why)) => return Err(SubmitError::Refused(why)),
                Ok(Outcome::UnknownOutcome(why)) => return Err(SubmitError::UnknownOutcome(why)),
                Ok(Outcome::NotDone(why)) => (why, true),
                Err(error @ CallError::Connect(_)) => (error.to_string(), false),
                Err(error) => return Err(SubmitError::UnknownOutcome(error.to_string())),
            };
            if !tries.again(reached).await {
                return Err(SubmitError::Unavailable(why));
            }
        }
    }

    async fn try_decide_brake(&self, id: &str, decision: Decision) -> Result<Outcome, CallError> {
        let connection = self.connections.connection().await?;
        let mut client = connection.client.clone();
        let word = match decision {
            Decision::Commit => pb::BrakeDecision::Commit,
            Decision::Release => pb::BrakeDecision::Release,
        };
        let request = pb::DecideBrakeRequest { id: id.to_owned(), decision: word.into(), forwarded: false };
        let reply = self.call(&connection, client.decide_brake(request)).await?;
        reply.outcome.ok_or_else(|| connection.failed("it gave no outcome".to_owned()))
    }
}

impl From<pb::HeldExpiry> for HeldExpiry {
    fn from(held: pb::HeldExpiry) -> Self {
        let node = |node: pb::HeldNode| HeldNode {
            name: node.name,
            member: node.member,
            broken: node.broken,
            region: node.region,
            zone: node.zone,
        };
        let shared =
            |one: pb::SharedTrait| SharedTrait { kind: one.kind, value: one.value, held: one.held, others: one.others };
        Self {
            id: held.id,
            held_for: Duration::from_millis(held.held_milliseconds),
            remaining: Duration::from_millis(held.remaining_milliseconds),
            together: held.together,
            living: held.living,
            percent: held.percent,
            least: held.least,
            window: Duration::from_millis(held.window_milliseconds),
            count: held.count,
            nodes: held.nodes.into_iter().map(node).collect(),
            shared: held.shared.into_iter().map(shared).collect(),
        }
    }
}
