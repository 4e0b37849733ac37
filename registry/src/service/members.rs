//! The members: who they are, how they do, and changing them. The leader knows and decides; others hand on, once.

use std::time::Duration;

use super::Core;
use crate::{
    client::RegistryStatus,
    proto::registry::{self as pb, change_members_reply::Outcome, change_members_request::Change},
    raft::{ChangeError, Member, MemberChange},
    service::peers::surely_not_sent,
};

/// How long the leader may take to say how the members do: who asked gets what is known here otherwise.
const STATUS_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the leader may take for a change: a new member has a minute to catch up, and each commit its own limit.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(110);

impl Core {
    /// Who the members are, as this one knows it.
    pub(crate) fn status(&self) -> RegistryStatus {
        let snapshot = self.catalog.now();
        let leading = self.autopilot.borrow().clone();
        let mut faults = self.agreement.borrow().others.clone();
        faults.extend(self.disagreement().map(|why| (self.log.id(), why.to_string())));
        RegistryStatus {
            faults,
            members: self.log.members(),
            answered_by: self.log.id(),
            term: self.log.leadership().borrow().term,
            index: snapshot.index(),
            cluster: snapshot.cluster().clone(),
            held_expiries: self.held.borrow().as_ref().map_or(0, |shown| shown.count() as u64),
            format: snapshot.format(),
            failure_tolerance: leading.as_ref().map(|status| status.failure_tolerance),
            health: leading.map(|status| status.members.clone()).unwrap_or_default(),
        }
    }

    /// Who the members are; as the leader knows it where that is asked for and there is one.
    pub(crate) async fn members(&self, request: pb::MembersRequest) -> pb::MembersReply {
        let leader = self.other_leader().filter(|_| request.from_leader);
        if let Some(mut client) = leader.and_then(|leader| self.peers.client(&leader.address).ok()) {
            let asked = client.members(pb::MembersRequest { from_leader: false });
            if let Ok(Ok(reply)) = tokio::time::timeout(STATUS_TIMEOUT, asked).await {
                return reply.into_inner();
            }
        }
        (&self.status()).into()
    }

    /// The leader, where it is known and another one.
    pub(super) fn other_leader(&self) -> Option<Member> {
        self.log.leadership().borrow().leader.clone().filter(|leader| leader.id != self.log.id())
    }

    /// Changes the members, or hands it on.
    pub(crate) async fn change_members(&self, request: pb::ChangeMembersRequest) -> pb::ChangeMembersReply {
        let outcome = match request.change.clone() {
            None => Outcome::Refused("the change is missing, or of a kind that this build does not know".to_owned()),
            Some(change) => match self.log.change_members(change.into()).await {
                Ok(done) => Outcome::Done(done),
                Err(ChangeError::Refused(why)) => Outcome::Refused(why),
                Err(ChangeError::Unknown(why)) => Outcome::UnknownOutcome(why),
                Err(ChangeError::NotLeader { leader: Some(leader) }) if !request.forwarded => {
                    self.hand_on(leader, request).await
                }
                Err(ChangeError::NotLeader { .. }) => Outcome::NotDone("no member leads at the moment".to_owned()),
            },
        };
        pb::ChangeMembersReply { outcome: Some(outcome) }
    }

    async fn hand_on(&self, leader: Member, request: pb::ChangeMembersRequest) -> Outcome {
        let to = format!("leader {} at {}", leader.name, leader.address);
        let mut client = match self.peers.client(&leader.address) {
            Ok(client) => client,
            Err(status) => return Outcome::NotDone(status.message().to_owned()),
        };
        let request = pb::ChangeMembersRequest { forwarded: true, ..request };
        match tokio::time::timeout(CHANGE_TIMEOUT, client.change_members(request)).await {
            Ok(Ok(reply)) => {
                let outcome = reply.into_inner().outcome;
                outcome.unwrap_or_else(|| Outcome::UnknownOutcome(format!("{to} gave no outcome")))
            }
            Ok(Err(status)) if status.code() == tonic::Code::Unimplemented => {
                Outcome::Refused(format!("{to} runs a build that cannot change members: upgrade it first"))
            }
            Ok(Err(status)) if surely_not_sent(&status) => Outcome::NotDone(format!("{to}: {}", status.message())),
            Ok(Err(status)) => Outcome::UnknownOutcome(format!("{to}: {}", status.message())),
            Err(_) => Outcome::UnknownOutcome(format!("{to} did not answer within {CHANGE_TIMEOUT:?}")),
        }
    }
}

impl From<Change> for MemberChange {
    fn from(change: Change) -> Self {
        match change {
            Change::Add(pb::AddMember { address, read_only }) => Self::Add { address, read_only },
            Change::Promote(member) => Self::Promote(member),
            Change::Remove(member) => Self::Remove(member),
            Change::Replace(pb::ReplaceMember { member, address }) => Self::Replace { member, address },
            Change::Transfer(pb::TransferLeader { to }) => Self::Transfer(to),
        }
    }
}

/// What a client may ask for; the rest is the leader's own.
pub(crate) fn request(change: MemberChange) -> Option<pb::ChangeMembersRequest> {
    let change = match change {
        MemberChange::Add { address, read_only } => Change::Add(pb::AddMember { address, read_only }),
        MemberChange::Promote(member) => Change::Promote(member),
        MemberChange::Remove(member) => Change::Remove(member),
        MemberChange::Replace { member, address } => Change::Replace(pb::ReplaceMember { member, address }),
        MemberChange::Transfer(to) => Change::Transfer(pb::TransferLeader { to }),
        MemberChange::Complete => return None,
    };
    Some(pb::ChangeMembersRequest { change: Some(change), forwarded: false })
}
