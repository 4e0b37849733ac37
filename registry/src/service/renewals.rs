//! Signs of life on their way to the leader: gathered here, handed on together, answered once the leader has them.

use std::{sync::Arc, time::Duration};

use muster_catalog::Name;
use tokio::{
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::Core;
use crate::proto::registry as pb;

/// How long a member that does not lead gathers: a hundredth of a lease, and ten calls a second whatever the agents.
const GATHER: Duration = Duration::from_millis(100);
/// Signs handed on at once.
const MAX_BATCH: usize = 4096;
/// Signs that may wait here: those of 8 192 agents at once; more are told to come again.
pub(crate) const MAX_WAITING: usize = 8192;
/// A leader that does not answer within this does not have it.
const DELIVER_TIMEOUT: Duration = Duration::from_secs(2);

/// What the leader says to a renewal.
pub(crate) type Heard = Result<pb::RenewReply, Status>;

/// One sign of life, or of its end.
#[derive(Debug)]
pub(crate) enum Pulse {
    /// An agent lives.
    Renew(pb::Renewal, Option<oneshot::Sender<Heard>>),
    /// An agent's stream broke.
    Suspect(pb::Suspicion),
}

impl Pulse {
    /// A sign that nobody waits to hear of.
    pub(crate) fn sign_of_life(node: Name, incarnation: u64) -> Self {
        Self::Renew(pb::Renewal { node: node.to_string(), incarnation, stream: 0, agent: String::new() }, None)
    }
}

/// What the leader's task is handed.
#[derive(Debug)]
pub(crate) struct Signs {
    pub(crate) batch: pb::RenewBatchRequest,
    pub(crate) reply: oneshot::Sender<Result<pb::RenewBatchReply, Status>>,
}

impl Core {
    /// Takes a sign of life on its way; one too many is dropped, the agent comes again.
    pub(crate) fn pulse(&self, pulse: Pulse) {
        if self.pulses.try_send(pulse).is_err() {
            tracing::debug!("a sign of life was dropped: too many wait");
        }
    }

    /// An agent lives. Returns once the leader has it.
    pub(crate) async fn renew(&self, request: pb::RenewRequest) -> Heard {
        let pb::RenewRequest { node, agent, incarnation } = request;
        let (reply, heard) = oneshot::channel();
        let renewal = pb::Renewal { node, incarnation, stream: 0, agent };
        let full = |_| Status::resource_exhausted("too many renewals wait at this member: try another");
        self.pulses.try_send(Pulse::Renew(renewal, Some(reply))).map_err(full)?;
        heard.await.map_err(|_| Status::unavailable("this member is stopping"))?
    }

    /// Hands signs of life to this member's own leader task.
    pub(crate) async fn hear(&self, batch: pb::RenewBatchRequest) -> Result<pb::RenewBatchReply, Status> {
        let (reply, answer) = oneshot::channel();
        let stopping = || Status::unavailable("this member is stopping");
        self.signs.send(Signs { batch, reply }).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?
    }
}

/// Gathers and hands on until the member stops.
pub(crate) async fn run(core: Arc<Core>, mut pulses: mpsc::Receiver<Pulse>, stop: CancellationToken) {
    loop {
        let first = tokio::select! {
            () = stop.cancelled() => return,
            pulse = pulses.recv() => pulse,
        };
        let Some(first) = first else { return };
        if !core.log.leadership().borrow().is_leader {
            sleep(GATHER).await;
        }
        let mut batch = pb::RenewBatchRequest { member: core.log.id(), ..pb::RenewBatchRequest::default() };
        let mut replies = Vec::new();
        let mut take = |pulse| match pulse {
            Pulse::Renew(renewal, reply) => {
                batch.renewals.push(renewal);
                replies.push(reply);
            }
            Pulse::Suspect(suspicion) => batch.suspicions.push(suspicion),
        };
        take(first);
        for _ in 1..MAX_BATCH {
            let Ok(pulse) = pulses.try_recv() else { break };
            take(pulse);
        }
        let late = |_| Err(Status::unavailable("the leader did not answer in time"));
        let answer = timeout(DELIVER_TIMEOUT, deliver(&core, batch)).await.unwrap_or_else(late);
        for (at, reply) in replies.into_iter().enumerate() {
            let heard = match &answer {
                Ok(pb::RenewBatchReply { known, term, lease_milliseconds }) => {
                    let known = known.get(at).copied().unwrap_or(false);
                    Ok(pb::RenewReply { known, term: *term, lease_milliseconds: *lease_milliseconds })
                }
                Err(status) => Err(status.clone()),
            };
            // Whoever does not wait any more needs no answer.
            reply.map(|reply| reply.send(heard).ok());
        }
    }
}

async fn deliver(core: &Core, batch: pb::RenewBatchRequest) -> Result<pb::RenewBatchReply, Status> {
    let leadership = core.log.leadership().borrow().clone();
    if leadership.is_leader {
        return core.hear(batch).await;
    }
    let Some(leader) = leadership.leader else {
        return Err(Status::unavailable("no member leads at the moment"));
    };
    Ok(core.peers.client(&leader.address)?.renew_batch(batch).await?.into_inner())
}
