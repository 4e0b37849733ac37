//! Writing: the leader stamps and proposes, any other member hands on, once. What was surely not proposed is told apart
//! from what may have been, all the way.

use std::time::{Duration, Instant};

use muster_catalog::{Command, Proposal, strip_command};
use prost::Message;

use super::{Core, door, peers::surely_not_sent, renewals::Pulse};
use crate::{
    machine::{Answer, encode_proposal},
    proto::{
        catalog,
        registry::{self as pb, write_reply::Outcome as Reply},
    },
    raft::{Member, ProposeError},
};

/// How long a member waits for the leader's answer to what it handed on.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(8);

impl Core {
    /// Stamps and proposes.
    pub(crate) async fn propose(&self, command: Command) -> Result<(u64, Answer), ProposeError> {
        let proposal = Proposal { at: self.stamp(), command };
        self.log.propose(encode_proposal(&proposal)).await
    }

    /// Writes what came from outside.
    pub(crate) async fn write(&self, request: pb::WriteRequest) -> pb::WriteReply {
        let begun = Instant::now();
        let outcome = self.write_outcome(request).await;
        let result = match &outcome {
            Reply::Index(_) => "committed",
            Reply::Refused(_) => "refused",
            Reply::NotProposed(_) => "not_proposed",
            Reply::UnknownOutcome(_) => "unknown_outcome",
        };
        metrics::counter!("muster_registry_writes_total", "result" => result).increment(1);
        metrics::histogram!("muster_registry_write_seconds").record(begun.elapsed().as_secs_f64());
        pb::WriteReply { outcome: Some(outcome) }
    }

    async fn write_outcome(&self, request: pb::WriteRequest) -> Reply {
        let Some(encoded) = request.command else {
            return Reply::Refused("command is missing".to_owned());
        };
        if !self.log.leadership().borrow().is_leader && !request.forwarded {
            let leader = self.log.leadership().borrow().leader.clone();
            return self.forward(leader, Some(encoded)).await;
        }
        let length = encoded.encoded_len();
        let mut command = match Command::try_from(encoded.clone()) {
            Ok(command) => command,
            Err(error) => return Reply::Refused(error.to_string()),
        };
        if let Err(error) = door::check(&command, length) {
            return Reply::Refused(error.to_string());
        }
        let encoded = fit(self.catalog.snapshot.borrow().format(), &mut command, encoded);
        let alive = match &command {
            Command::Sync(sync) => Some((sync.node.name.clone(), sync.writer.incarnation)),
            _ => None,
        };
        // What came is what is logged: it was read above, and is not written out a second time.
        let proposal = catalog::Proposal { at_milliseconds: self.stamp().0, command: Some(encoded) };
        match self.log.propose(proposal.encode_to_vec().into()).await {
            Ok((index, answer)) => {
                if let (Some((node, incarnation)), Answer::Applied) = (alive, &answer) {
                    // A push is a sign of life.
                    self.pulse(Pulse::sign_of_life(node, incarnation));
                }
                committed(index, answer)
            }
            Err(ProposeError::NotLeader { leader }) if !request.forwarded => {
                self.forward(leader, proposal.command).await
            }
            Err(ProposeError::NotLeader { .. }) => Reply::NotProposed("the leader just changed".to_owned()),
            Err(ProposeError::UnknownOutcome(why)) => Reply::UnknownOutcome(why),
            Err(error @ ProposeError::Stopped(_)) => Reply::UnknownOutcome(error.to_string()),
            Err(error @ ProposeError::Refused(_)) => Reply::NotProposed(error.to_string()),
        }
    }

    async fn forward(&self, leader: Option<Member>, command: Option<catalog::Command>) -> Reply {
        let Some(leader) = leader.filter(|leader| leader.id != self.log.id()) else {
            return Reply::NotProposed("no member leads at the moment".to_owned());
        };
        let mut client = match self.peers.client(&leader.address) {
            Ok(client) => client,
            Err(status) => return Reply::NotProposed(status.message().to_owned()),
        };
        let request = pb::WriteRequest { command, forwarded: true };
        let to = format!("leader {} at {}", leader.name, leader.address);
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

/// The Command as a catalog of that format can hold it, and what is logged of it: what came, unless something had to be
/// taken out. The writer may be of a newer build than some member, which would fold another row.
fn fit(format: u32, command: &mut Command, encoded: catalog::Command) -> catalog::Command {
    if strip_command(format, command) { (&*command).into() } else { encoded }
}

fn committed(index: u64, answer: Answer) -> Reply {
    match answer {
        Answer::Applied => Reply::Index(index),
        Answer::Rejected(rejection) => Reply::Refused(rejection.to_string()),
        Answer::Unapplied => Reply::UnknownOutcome("the leader stopped before it applied the write".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use muster_catalog::{FIRST_FORMAT, FORMAT, Traffic};

    use super::*;
    use crate::service::tests::push;

    #[test]
    fn what_the_catalog_cannot_hold_is_not_logged() {
        let plain = push("n1", 1, &["web"]);
        let Command::Sync(mut sync) = plain.clone() else { panic!("no push") };
        sync.instances[0].traffic = Some(Traffic::default().into());
        let newer = Command::Sync(sync);
        let fitted = |format| {
            let mut command = newer.clone();
            let logged = fit(format, &mut command, (&newer).into());
            assert_eq!(logged, catalog::Command::from(&command), "what is decided is what is logged");
            command
        };
        assert_eq!(fitted(FIRST_FORMAT), plain);
        assert_eq!(fitted(FORMAT), newer);
    }
}
