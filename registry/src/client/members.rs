//! Members: who they are, how they do, and changing them.

use std::{collections::BTreeMap, time::Duration};

use muster_catalog::{ClusterId, port::SubmitError};
use tokio::time::timeout;

use super::{CallError, Client, ConnectError, connection::Tries};
use crate::{
    convert::{ConvertError, required},
    proto::registry::{self as pb, change_members_reply::Outcome},
    raft::{Member, MemberChange},
    service::{members::request, peers::surely_not_sent},
};

/// For one change of members: a new one has a minute to catch up, then the change is committed.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(120);

/// The members of the registry, as one of them knows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryStatus {
    /// All members.
    pub members: Vec<Member>,
    /// The id of the one that answered.
    pub answered_by: u64,
    /// Its term.
    pub term: u64,
    /// The last index it applied.
    pub index: u64,
    /// The registry.
    pub cluster: ClusterId,
    /// Nodes whose loss the leader holds back; 0 from others.
    pub held_expiries: u64,
    /// The catalog format in force.
    pub format: u32,
    /// How many more voters may be lost; `None` unless the leader answered.
    pub failure_tolerance: Option<u32>,
    /// How the members do, by their ids; empty unless the leader answered.
    pub health: BTreeMap<u64, MemberHealth>,
    /// Why members serve nothing though they run, by their ids.
    pub faults: BTreeMap<u64, String>,
}

/// How a member does, in the eyes of the leader.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MemberHealth {
    /// It answers and is not far behind.
    pub healthy: bool,
    /// How long ago it answered; `None` when it never did in this term.
    pub silent: Option<Duration>,
    /// The last entry that it is known to have.
    pub matched: u64,
    /// For how long it has been as `healthy` says.
    pub since: Duration,
    /// The newest catalog format that its build knows; 0 while it did not say.
    pub format: u32,
    /// Its build's version; empty while it did not say.
    pub version: String,
    /// What autopilot is about to do with it, or why it does not.
    pub note: String,
}

impl Client {
    /// Who the members are, as whoever answers knows it. Asks member after member until one answers or the deadline of
    /// writes has passed.
    pub async fn members(&self) -> Result<RegistryStatus, CallError> {
        self.members_as_known(false).await
    }

    /// Who the members are and how they do: the leader's answer where there is a leader, else anybody's.
    pub async fn members_by_leader(&self) -> Result<RegistryStatus, CallError> {
        self.members_as_known(true).await
    }

    async fn members_as_known(&self, from_leader: bool) -> Result<RegistryStatus, CallError> {
        let mut tries = Tries::within(self.connections.config.write_deadline);
        loop {
            match self.try_members(from_leader).await {
                Ok(status) => return Ok(status),
                Err(error) if !tries.again(error.reached()).await => return Err(error),
                Err(_) => {}
            }
        }
    }

    async fn try_members(&self, from_leader: bool) -> Result<RegistryStatus, CallError> {
        let connection = self.connections.connection().await?;
        let mut client = connection.client.clone();
        let reply = self.call(&connection, client.members(pb::MembersRequest { from_leader })).await?;
        RegistryStatus::try_from(reply).map_err(|error| connection.failed(error.to_string()))
    }

    /// Changes the members and says what was done. Repeated only while nothing was done for sure.
    pub async fn change_members(&self, change: MemberChange) -> Result<String, SubmitError> {
        let Some(request) = request(change) else {
            return Err(SubmitError::Refused("only the leader completes a change of members".to_owned()));
        };
        let mut tries = Tries::within(self.connections.config.write_deadline);
        loop {
            let (why, reached) = match self.try_change(request.clone()).await {
                Ok(Outcome::Done(done)) => return Ok(done),
                Ok(Outcome::Refused(why)) => return Err(SubmitError::Refused(why)),
                Ok(Outcome::UnknownOutcome(why)) => return Err(SubmitError::UnknownOutcome(why)),
                Ok(Outcome::NotDone(why)) => (why, true),
                Err(error) => (error.to_string(), false),
            };
            if !tries.again(reached).await {
                return Err(SubmitError::Unavailable(why));
            }
        }
    }

    async fn try_change(&self, request: pb::ChangeMembersRequest) -> Result<Outcome, ConnectError> {
        let connection = self.connections.connection().await?;
        let mut client = connection.client.clone();
        let member = connection.address;
        let outcome = match timeout(CHANGE_TIMEOUT, client.change_members(request)).await {
            Ok(Ok(reply)) => {
                let outcome = reply.into_inner().outcome;
                let outcome = outcome.unwrap_or_else(|| Outcome::UnknownOutcome(format!("{member} gave no outcome")));
                if !matches!(outcome, Outcome::NotDone(_)) {
                    return Ok(outcome);
                }
                outcome
            }
            Ok(Err(status)) if status.code() == tonic::Code::Unimplemented => {
                Outcome::NotDone(format!("{member} runs a build that cannot change members"))
            }
            Ok(Err(status)) if surely_not_sent(&status) => Outcome::NotDone(format!("{member}: {}", status.message())),
            Ok(Err(status)) => Outcome::UnknownOutcome(format!("{member}: {}", status.message())),
            Err(_) => Outcome::UnknownOutcome(format!("{member} did not answer within {CHANGE_TIMEOUT:?}")),
        };
        // Another member may know better who leads.
        self.connections.leave(&connection);
        Ok(outcome)
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl From<&RegistryStatus> for pb::MembersReply {
    fn from(status: &RegistryStatus) -> Self {
        let members = status.members.iter().map(|member| {
            let health = status.health.get(&member.id);
            pb::Member {
                id: member.id,
                name: member.name.clone(),
                address: member.address.clone(),
                leader: member.is_leader,
                voter: member.voter,
                read_only: member.read_only,
                format: health.map_or(0, |health| health.format),
                version: health.map(|health| health.version.clone()).unwrap_or_default(),
                health: health.map(|health| pb::MemberHealth {
                    healthy: health.healthy,
                    silent_milliseconds: health.silent.map(milliseconds),
                    matched_index: health.matched,
                    since_milliseconds: milliseconds(health.since),
                    note: health.note.clone(),
                }),
                fault: status.faults.get(&member.id).cloned().unwrap_or_default(),
            }
        });
        Self {
            members: members.collect(),
            answered_by: status.answered_by,
            term: status.term,
            index: status.index,
            cluster: Some((&status.cluster).into()),
            held_expiries: status.held_expiries,
            format: status.format,
            failure_tolerance: status.failure_tolerance,
        }
    }
}

impl TryFrom<pb::MembersReply> for RegistryStatus {
    type Error = ConvertError;

    fn try_from(reply: pb::MembersReply) -> Result<Self, ConvertError> {
        let (mut members, mut known, mut faults) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        for member in reply.members {
            let pb::Member { id, name, address, leader, voter, read_only, format, version, health, fault } = member;
            if !fault.is_empty() {
                faults.insert(id, fault);
            }
            if let Some(health) = health {
                let health = MemberHealth {
                    healthy: health.healthy,
                    silent: health.silent_milliseconds.map(Duration::from_millis),
                    matched: health.matched_index,
                    since: Duration::from_millis(health.since_milliseconds),
                    format,
                    version,
                    note: health.note,
                };
                known.insert(id, health);
            }
            members.push(Member { id, name, address, voter, read_only, is_leader: leader });
        }
        Ok(Self {
            members,
            answered_by: reply.answered_by,
            term: reply.term,
            index: reply.index,
            cluster: required("members.cluster", reply.cluster)?.into(),
            held_expiries: reply.held_expiries,
            // Builds that knew the first format only did not say so.
            format: reply.format.max(1),
            failure_tolerance: reply.failure_tolerance,
            health: known,
            faults,
        })
    }
}
