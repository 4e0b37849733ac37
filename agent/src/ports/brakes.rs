//! The brakes behind the HTTP room's port: this agent's own on its services directory, and the registry's on nodes.

use std::{sync::Arc, time::Duration};

use muster_catalog::port::{BoxFuture, SubmitError};
use muster_http::port::{BrakeDecision, BrakeKind, BrakeListing, Brakes, HeldBrake, HeldItem};
use muster_registry::{
    Decision,
    client::{Client, HeldExpiry, HeldNode, SharedTrait},
};
use tokio::{sync::oneshot, time::Instant};

use crate::definitions::{Decide, RemovalHandle, brake::RemovalHold};

/// How long the registry may take to say what it holds: an election is ridden out, an outage is not.
const PATIENCE: Duration = Duration::from_secs(2);

/// This agent's brake and the way to the registry's.
pub(crate) struct BrakesPort {
    pub(crate) client: Arc<Client>,
    pub(crate) removals: RemovalHandle,
}

impl BrakesPort {
    async fn decide_removal(&self, id: String, decision: Decision) -> Result<u64, SubmitError> {
        let stopping = |_| SubmitError::Unavailable("the agent is stopping".to_owned());
        let stale = format!("nothing is held back under {id:?}: it is over; see `muster brakes`");
        let (reply, answer) = oneshot::channel();
        let sent = self.removals.decisions.send(Decide { id, decision, reply }).await;
        sent.map_err(|_| SubmitError::Unavailable("the agent is stopping".to_owned()))?;
        answer.await.map_err(stopping)?.map(|count| count as u64).ok_or(SubmitError::Refused(stale))
    }
}

impl Brakes for BrakesPort {
    fn list(&self) -> BoxFuture<'_, BrakeListing> {
        Box::pin(async {
            let removal = self.removals.held.borrow().as_deref().map(held_removal);
            let (expiry, problem) = match tokio::time::timeout(PATIENCE, self.client.held_expiry()).await {
                Ok(Ok(held)) => (held.map(held_expiry), None),
                Ok(Err(error)) => (None, Some(error.to_string())),
                Err(_) => (None, Some("no member of the registry answered in time".to_owned())),
            };
            BrakeListing { held: removal.into_iter().chain(expiry).collect(), problem }
        })
    }

    fn decide(&self, id: String, decision: BrakeDecision) -> BoxFuture<'_, Result<u64, SubmitError>> {
        let decision = match decision {
            BrakeDecision::Commit => Decision::Commit,
            BrakeDecision::Release => Decision::Release,
        };
        Box::pin(async move {
            // Each kind of id begins with its own word.
            if id.starts_with("removal-") {
                return self.decide_removal(id, decision).await;
            }
            self.client.decide_brake(&id, decision).await
        })
    }
}

fn held_removal(hold: &RemovalHold) -> HeldBrake {
    let now = Instant::now();
    let item = |service: &crate::local::FileService| HeldItem {
        name: service.definition.id.to_string(),
        detail: service.path.display().to_string(),
    };
    HeldBrake {
        id: hold.id.clone(),
        kind: BrakeKind::MassRemoval,
        reason: format!("of {} services in the services directory, files still define {}", hold.before, hold.left),
        shared: Vec::new(),
        count: hold.services.len() as u64,
        items: hold.services.iter().map(item).collect(),
        held_for: now.saturating_duration_since(hold.since),
        remaining: hold.until.saturating_duration_since(now),
        on_commit: "deregisters them now",
        on_release: "keeps them for the whole time anew; putting the files back ends it",
    }
}

fn held_expiry(held: HeldExpiry) -> HeldBrake {
    let HeldExpiry { together, living, percent, least, window, .. } = held;
    let item = |node: HeldNode| {
        let member = if node.member.is_empty() { "no member since the election" } else { &node.member };
        let how = if node.broken { "its stream broke at" } else { "last heard by" };
        let place: Vec<&str> = [&*node.region, &*node.zone].into_iter().filter(|part| !part.is_empty()).collect();
        let place = if place.is_empty() { String::new() } else { format!(", {}", place.join("/")) };
        HeldItem { name: node.name, detail: format!("{how} {member}{place}") }
    };
    let others = living.saturating_sub(held.count);
    let shared = held.shared.iter().map(|one| describe(one, held.count, others));
    HeldBrake {
        id: held.id,
        kind: BrakeKind::MassExpiry,
        reason: format!(
            "{together} of {living} nodes went silent within {window:?}; over {percent} % and at least {least} are held"
        ),
        shared: shared.collect(),
        count: held.count,
        items: held.nodes.into_iter().map(item).collect(),
        held_for: held.held_for,
        remaining: held.remaining,
        on_commit: "they are lost: their instances turn critical now",
        on_release: "they live: each gets a full lease anew",
    }
}

fn describe(shared: &SharedTrait, count: u64, others: u64) -> String {
    let SharedTrait { kind, value, held, others: other } = shared;
    let what = match kind.as_str() {
        "member" => format!("heard last by member {value}"),
        "stream" => format!("their streams {value}"),
        kind => format!("{kind} {value}"),
    };
    format!("{what} ({held} of these {count}, {other} of the other {others})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expiry_is_told_in_words() {
        let shared = SharedTrait { kind: "zone".into(), value: "eu-1a".into(), held: 24, others: 1 };
        let node = HeldNode {
            name: "web-1".into(),
            member: "registry-2".into(),
            broken: true,
            region: "eu-1".into(),
            zone: "eu-1a".into(),
        };
        let told = held_expiry(HeldExpiry {
            id: "expiry-7-1".into(),
            held_for: Duration::from_secs(3),
            remaining: Duration::from_secs(27),
            together: 25,
            living: 40,
            percent: 30,
            least: 10,
            window: Duration::from_secs(15),
            count: 25,
            nodes: vec![node],
            shared: vec![shared],
        });
        assert_eq!(told.reason, "25 of 40 nodes went silent within 15s; over 30 % and at least 10 are held");
        assert_eq!(told.shared, ["zone eu-1a (24 of these 25, 1 of the other 15)"]);
        assert_eq!(told.items[0].detail, "its stream broke at registry-2, eu-1/eu-1a");
    }
}
