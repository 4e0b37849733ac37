//! Asking what is held back, and deciding about it: the leader knows, any other member hands on, once.

use std::time::{Duration, Instant};

use tokio::{sync::oneshot, time::timeout};
use tonic::Status;

use super::{Core, peers::surely_not_sent};
use crate::{
    leases::brake::Decision,
    proto::registry::{self as pb, decide_brake_reply::Outcome},
    raft::Member,
};

/// How long a member waits for the leader's answer to what it handed on.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(2);

/// A decision on its way to the leader's task. The answer is how many nodes it was about; `None` when nothing is held
/// under the id.
#[derive(Debug)]
pub(crate) struct Decide {
    pub(crate) id: String,
    pub(crate) decision: Decision,
    pub(crate) reply: oneshot::Sender<Option<usize>>,
}

impl Core {
    /// What the leader holds back.
    pub(crate) async fn brakes(&self, request: pb::BrakesRequest) -> Result<pb::BrakesReply, Status> {
        let leadership = self.log.leadership().borrow().clone();
        if leadership.is_leader {
            let expiry = self.held.borrow().as_ref().map(|shown| shown.to_message(Instant::now()));
            return Ok(pb::BrakesReply { expiry });
        }
        let leader = self.find_leader(leadership.leader, request.forwarded).map_err(Status::unavailable)?;
        let mut client = self.peers.client(&leader.address)?;
        let asked = client.brakes(pb::BrakesRequest { forwarded: true });
        let late = |_| Status::unavailable(format!("leader {} did not answer in time", leader.name));
        Ok(timeout(FORWARD_TIMEOUT, asked).await.map_err(late)??.into_inner())
    }

    /// Does as an operator decided.
    pub(crate) async fn decide_brake(&self, request: pb::DecideBrakeRequest) -> pb::DecideBrakeReply {
        pb::DecideBrakeReply { outcome: Some(self.decide_outcome(request).await) }
    }

    async fn decide_outcome(&self, request: pb::DecideBrakeRequest) -> Outcome {
        let decision = match request.decision() {
            pb::BrakeDecision::Commit => Decision::Commit,
            pb::BrakeDecision::Release => Decision::Release,
            pb::BrakeDecision::Unspecified => return Outcome::Refused("a decision is commit or release".to_owned()),
        };
        let leadership = self.log.leadership().borrow().clone();
        if !leadership.is_leader {
            return match self.find_leader(leadership.leader, request.forwarded) {
                Ok(leader) => self.forward_decision(&leader, request).await,
                Err(why) => Outcome::NotDone(why),
            };
        }
        let (reply, answer) = oneshot::channel();
        let decide = Decide { id: request.id.clone(), decision, reply };
        if self.decisions.send(decide).await.is_err() {
            return Outcome::NotDone("this member is stopping".to_owned());
        }
        match answer.await {
            Ok(Some(nodes)) => Outcome::Nodes(nodes as u64),
            Ok(None) => Outcome::Refused(self.stale(&request.id)),
            Err(_) => Outcome::UnknownOutcome("this member is stopping".to_owned()),
        }
    }

    fn stale(&self, id: &str) -> String {
        match &*self.held.borrow() {
            None => format!("nothing is held back under {id:?}, nor at all: it is over, or was another leader's"),
            Some(_) => format!("{id:?} is over; something else is held back now: see `muster brakes` and decide anew"),
        }
    }

    /// Whom to hand on to.
    fn find_leader(&self, leader: Option<Member>, forwarded: bool) -> Result<Member, String> {
        if forwarded {
            return Err("the leader just changed".to_owned());
        }
        let leader = leader.filter(|leader| leader.id != self.log.id());
        leader.ok_or_else(|| "no member leads at the moment".to_owned())
    }

    async fn forward_decision(&self, leader: &Member, request: pb::DecideBrakeRequest) -> Outcome {
        let mut client = match self.peers.client(&leader.address) {
            Ok(client) => client,
            Err(status) => return Outcome::NotDone(status.message().to_owned()),
        };
        let to = format!("leader {} at {}", leader.name, leader.address);
        let asked = client.decide_brake(pb::DecideBrakeRequest { forwarded: true, ..request });
        match timeout(FORWARD_TIMEOUT, asked).await {
            Ok(Ok(reply)) => {
                let outcome = reply.into_inner().outcome;
                outcome.unwrap_or_else(|| Outcome::UnknownOutcome(format!("{to} gave no outcome")))
            }
            Ok(Err(status)) if surely_not_sent(&status) => Outcome::NotDone(format!("{to}: {}", status.message())),
            Ok(Err(status)) => Outcome::UnknownOutcome(format!("{to}: {}", status.message())),
            Err(_) => Outcome::UnknownOutcome(format!("{to} did not answer within {FORWARD_TIMEOUT:?}")),
        }
    }
}
