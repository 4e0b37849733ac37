//! Writing: the leader stamps and proposes, any other member hands on, once. What was surely not proposed is told apart
//! from what may have been, all the way.
//!
//! Writes that came in one message stay together on their way to the log, and are nothing more than neighbours there:
//! each has its own entry and its own outcome.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use muster_catalog::{Command, Name, Proposal, Snapshot, strip_command};
use prost::Message;
use tokio::time::{Instant, sleep_until};
use tonic::Code;

use super::{
    Core, door,
    peers::surely_not_sent,
    renewals::Pulse,
    tags::{Reserved, TagRoom},
};
use crate::{
    log::Outcome,
    machine::{Answer, encode_proposal},
    proto::{
        catalog,
        registry::{self as pb, write_reply::Outcome as Reply},
    },
    raft::{Member, ProposeError},
};

/// How long a member waits for the leader's answer to what it handed on.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(8);
/// How long a write waits here for a leader, so that it is proposed as soon as there is one: well below what a client
/// gives its shortest attempt, or it would take the outcome as unknown.
const ELECTION_PATIENCE: Duration = Duration::from_millis(500);
/// Between two looks for one when no leadership change wakes it: the leader may be the same, and have just not answered.
const RETRY: Duration = Duration::from_millis(50);
/// Writes in one message. Far more than gather while another message is under way, and few enough to count the outcomes.
pub(crate) const MAX_BATCH: usize = 1024;

/// A write that passed the door.
struct Admitted {
    payload: Bytes,
    /// The agent that lives, as its push shows.
    alive: Option<(Name, u64)>,
    /// Held until the outcome is known.
    _tags: Option<Reserved>,
}

impl Core {
    /// Stamps and proposes.
    pub(crate) async fn propose(&self, command: Command) -> Outcome {
        if let Some(why) = self.disagreement() {
            return Err(ProposeError::Refused(why.to_string()));
        }
        let proposal = Proposal { at: self.stamp(), command };
        let outcome = self.log.propose_many(vec![encode_proposal(&proposal)]).await.pop();
        outcome.unwrap_or_else(|| Err(ProposeError::UnknownOutcome("the log gave no outcome".to_owned())))
    }

    /// Writes one Command from outside.
    pub(crate) async fn write(&self, request: pb::WriteRequest) -> pb::WriteReply {
        // One without a kind is refused where it is read.
        let command = request.command.unwrap_or_default().encode_to_vec().into();
        let pb::WriteBatchReply { mut replies, leader } = self.write_many(vec![command], request.forwarded).await;
        pb::WriteReply { leader, ..replies.pop().unwrap_or_default() }
    }

    /// Writes Commands from outside, each for itself.
    pub(crate) async fn write_many(&self, commands: Vec<Bytes>, forwarded: bool) -> pb::WriteBatchReply {
        let begun = Instant::now();
        let outcomes = self.outcomes(&commands, forwarded).await;
        let taken = begun.elapsed();
        for outcome in &outcomes {
            let counter = match outcome {
                Reply::Index(_) => &self.meters.committed,
                Reply::Refused(_) => &self.meters.refused,
                Reply::NotProposed(_) | Reply::NoRoom(_) => &self.meters.not_proposed,
                Reply::UnknownOutcome(_) => &self.meters.unknown_outcome,
            };
            counter.increment(1);
            self.meters.seconds.record(taken);
        }
        let reply = |outcome| pb::WriteReply { outcome: Some(outcome), leader: String::new() };
        let replies = outcomes.into_iter().map(reply).collect();
        pb::WriteBatchReply { replies, leader: self.other_leader().map(|leader| leader.address).unwrap_or_default() }
    }

    /// One for each command, in order. What was surely not proposed is tried again while an election may be under way.
    async fn outcomes(&self, commands: &[Bytes], forwarded: bool) -> Vec<Reply> {
        if let Some(why) = self.disagreement() {
            return vec![Reply::NotProposed(why.to_string()); commands.len()];
        }
        let deadline = Instant::now() + ELECTION_PATIENCE;
        let mut leadership = self.log.leadership();
        loop {
            leadership.mark_unchanged();
            let leads = leadership.borrow().is_leader;
            let attempt = if leads || forwarded { self.lead(commands).await } else { self.forward(commands).await };
            let reason = match attempt {
                Ok(outcomes) => return outcomes,
                Err(reason) => reason,
            };
            let again = Instant::now() + RETRY;
            // Whoever handed them on waits itself.
            if forwarded || again >= deadline {
                return vec![Reply::NotProposed(reason); commands.len()];
            }
            tokio::select! {
                _ = leadership.changed() => {}
                () = sleep_until(again) => {}
                () = self.stop.cancelled() => return vec![Reply::NotProposed(reason); commands.len()],
            }
        }
    }

    /// Proposes. The error says why nothing was.
    async fn lead(&self, commands: &[Bytes]) -> Result<Vec<Reply>, String> {
        let (at, snapshot) = (self.stamp().0, self.catalog.snapshot.borrow().clone());
        let mut admitted: Vec<_> = commands.iter().map(|command| admit(&snapshot, &self.tags, at, command)).collect();
        let payloads: Vec<Bytes> =
            admitted.iter_mut().flatten().map(|write| std::mem::take(&mut write.payload)).collect();
        let proposed = if payloads.is_empty() { Vec::new() } else { self.log.propose_many(payloads).await };
        if !proposed.is_empty() && proposed.iter().all(|outcome| matches!(outcome, Err(ProposeError::NotLeader { .. })))
        {
            return Err("the leader just changed".to_owned());
        }
        let mut proposed = proposed.into_iter();
        let replies = admitted.into_iter().map(|write| {
            let Admitted { alive, _tags, .. } = match write {
                Ok(admitted) => admitted,
                Err(refused) => return Reply::Refused(refused),
            };
            match proposed.next() {
                Some(Ok((index, answer))) => {
                    if let (Some((node, incarnation)), Answer::Applied) = (alive, &answer) {
                        // A push is a sign of life.
                        self.pulse(Pulse::sign_of_life(node, incarnation));
                    }
                    committed(index, answer)
                }
                Some(Err(ProposeError::NotLeader { .. })) => Reply::NotProposed("the leader just changed".to_owned()),
                Some(Err(ProposeError::UnknownOutcome(why))) => Reply::UnknownOutcome(why),
                Some(Err(error @ ProposeError::Stopped(_))) => Reply::UnknownOutcome(error.to_string()),
                Some(Err(error @ ProposeError::Refused(_))) => Reply::Refused(error.to_string()),
                Some(Err(ProposeError::NoRoom(why))) => Reply::NoRoom(why),
                None => Reply::UnknownOutcome("the log gave no outcome".to_owned()),
            }
        });
        Ok(replies.collect())
    }

    /// Hands on to the leader. The error says why surely nothing arrived there.
    async fn forward(&self, commands: &[Bytes]) -> Result<Vec<Reply>, String> {
        let leader = self.other_leader().ok_or("no member leads at the moment")?;
        let mut client = self.peers.client(&leader.address).map_err(|status| status.message().to_owned())?;
        let to = format!("leader {} at {}", leader.name, leader.address);
        let unknown = |why: String| vec![Reply::UnknownOutcome(why); commands.len()];
        let request = pb::WriteBatchRequest { commands: commands.to_vec(), forwarded: true };
        match tokio::time::timeout(FORWARD_TIMEOUT, client.write_batch(request)).await {
            Ok(Ok(reply)) => {
                let none = || Reply::UnknownOutcome(format!("{to} gave no outcome"));
                let mut replies = reply.into_inner().replies.into_iter();
                let outcomes =
                    commands.iter().map(|_| replies.next().and_then(|reply| reply.outcome).unwrap_or_else(none));
                Ok(outcomes.collect())
            }
            Ok(Err(status)) if status.code() == Code::Unimplemented => {
                Ok(join_all(commands.iter().map(|command| self.forward_alone(&leader, command))).await)
            }
            Ok(Err(status)) if surely_not_sent(&status) => Err(format!("{to}: {}", status.message())),
            Ok(Err(status)) => Ok(unknown(format!("{to}: {}", status.message()))),
            Err(_) => Ok(unknown(format!("{to} did not answer within {FORWARD_TIMEOUT:?}"))),
        }
    }

    /// Hands one on to a leader of an earlier version, which takes them one by one.
    async fn forward_alone(&self, leader: &Member, command: &Bytes) -> Reply {
        let command = match catalog::Command::decode(command.clone()) {
            Ok(command) => Some(command),
            Err(error) => return Reply::Refused(error.to_string()),
        };
        let mut client = match self.peers.client(&leader.address) {
            Ok(client) => client,
            Err(status) => return Reply::NotProposed(status.message().to_owned()),
        };
        let to = format!("leader {} at {}", leader.name, leader.address);
        let request = pb::WriteRequest { command, forwarded: true };
        match tokio::time::timeout(FORWARD_TIMEOUT, client.write(request)).await {
            Ok(Ok(reply)) => {
                let outcome = reply.into_inner().outcome;
                outcome.unwrap_or_else(|| Reply::UnknownOutcome(format!("{to} gave no outcome")))
            }
            Ok(Err(status)) if surely_not_sent(&status) => Reply::NotProposed(format!("{to}: {}", status.message())),
            Ok(Err(status)) => Reply::UnknownOutcome(format!("{to}: {}", status.message())),
            Err(_) => Reply::UnknownOutcome(format!("{to} did not answer within {FORWARD_TIMEOUT:?}")),
        }
    }
}

/// Reads a Command from outside and makes a proposal of it; the error says why it is refused.
fn admit(snapshot: &Snapshot, tags: &TagRoom, at_milliseconds: u64, encoded: &Bytes) -> Result<Admitted, String> {
    let command = catalog::Command::decode(encoded.clone()).map_err(|error| error.to_string())?;
    let proposal = catalog::Proposal { at_milliseconds, command: Some(command), restore: None };
    // Written anew, and not logged as it came: fields that this build does not know go no further, or members of a
    // newer one would apply what others do not.
    let mut payload = Bytes::from(proposal.encode_to_vec());
    let command = proposal.command.ok_or("command is missing")?;
    let mut command = Command::try_from(command).map_err(|error| error.to_string())?;
    door::check(&command, encoded.len()).map_err(|error| error.to_string())?;
    // A writer of a newer build than some member: what that one cannot hold stays outside.
    if strip_command(snapshot.format(), &mut command) {
        let command = Some((&command).into());
        payload = catalog::Proposal { at_milliseconds, command, restore: None }.encode_to_vec().into();
    }
    let reserved = tags.reserve(snapshot, &command)?;
    let alive = match command {
        Command::Sync(sync) => Some((sync.node.name, sync.writer.incarnation)),
        _ => None,
    };
    Ok(Admitted { payload, alive, _tags: reserved })
}

fn committed(index: u64, answer: Answer) -> Reply {
    match answer {
        Answer::Applied => Reply::Index(index),
        Answer::Rejected(rejection) => Reply::Refused(rejection.to_string()),
        Answer::RestoreRefused(why) => Reply::Refused(why),
        Answer::Unapplied => Reply::UnknownOutcome("the leader stopped before it applied the write".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use muster_catalog::{Change, Entry, FIRST_FORMAT, FORMAT, Timestamp, Traffic};

    use super::*;
    use crate::service::tests::push;

    #[test]
    fn what_the_catalog_cannot_hold_is_not_logged() {
        let plain = push("n1", 1, &["web"]);
        let Command::Sync(mut sync) = plain.clone() else { panic!("no push") };
        sync.instances[0].traffic = Some(Traffic::default().into());
        let newer = Command::Sync(sync);
        let encoded = Bytes::from(catalog::Command::from(&newer).encode_to_vec());
        let logged = |format| {
            let mut snapshot = Snapshot::default();
            snapshot.fold(&Entry { index: 1, at: Timestamp(1), changes: vec![Change::SetFormat(format)] });
            let payload = admit(&snapshot, &TagRoom::default(), 1, &encoded).unwrap().payload;
            let logged = catalog::Proposal::decode(payload).unwrap().command.unwrap();
            Command::try_from(logged).unwrap()
        };
        assert_eq!(logged(FIRST_FORMAT), plain);
        assert_eq!(logged(FORMAT), newer);
    }
}
