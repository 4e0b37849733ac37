//! The registry as an agent sees it: one connection to some member, and another one when that fails, for ever.
//!
//! Nothing is learnt for good: member names are resolved at each connection, and any member takes any call.

mod connection;
mod watch;
mod write;

use std::{future::Future, sync::Arc, time::Duration};

use muster_catalog::{ClusterId, Name};
use tokio::time::{Instant, sleep, timeout};
use tonic::Status;

pub use connection::ConnectError;
pub use watch::{Hello, WatchError, WatchEvent, WatchSender, WatchStream};

use crate::{
    convert::{ConvertError, required},
    proto::registry as pb,
    raft::Member,
};
use connection::{Backoff, Connection, Connections};

/// Where the registry is and how long to wait for it.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Members as `host:port`; a name may stand for several. One is enough, more survive more.
    pub members: Vec<String>,
    /// For one connection attempt.
    pub connect_timeout: Duration,
    /// For one renewal or read: well below a lease, so that another member can be tried within it.
    pub request_timeout: Duration,
    /// For one write with all its attempts: rides out an election, which takes about a second.
    pub write_deadline: Duration,
}

impl ClientConfig {
    /// The defaults for these members.
    pub fn new(members: Vec<String>) -> Self {
        Self {
            members,
            connect_timeout: Duration::from_secs(1),
            request_timeout: Duration::from_secs(3),
            write_deadline: Duration::from_secs(10),
        }
    }
}

/// A client of the registry. Cloning it shares the connection.
#[derive(Debug, Clone)]
pub struct Client {
    connections: Arc<Connections>,
}

/// What the leader said to a renewal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Renewed {
    /// False asks the agent to push all it has.
    pub known: bool,
    /// The leader's term.
    pub term: u64,
}

/// Why a call that may be repeated had no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// No member could be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A member answered, but not as asked; the next call goes to another.
    #[error("registry member {member}: {message}")]
    Failed {
        /// The member.
        member: String,
        /// What it said.
        message: String,
    },
}

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
}

impl Client {
    /// A client that connects when it is first used.
    pub fn new(config: ClientConfig) -> Self {
        Self { connections: Arc::new(Connections::new(config)) }
    }

    /// Says that an agent lives; returns once the leader has it. One attempt: the next one goes to another member.
    pub async fn renew(&self, node: &Name, agent: &str, incarnation: u64) -> Result<Renewed, CallError> {
        let connection = self.connections.connection().await?;
        let request = pb::RenewRequest { node: node.to_string(), agent: agent.to_owned(), incarnation };
        let mut client = connection.client.clone();
        let reply = self.call(&connection, client.renew(request)).await?;
        Ok(Renewed { known: reply.known, term: reply.term })
    }

    /// Who the members are. Asks member after member until one answers or the deadline of writes has passed.
    pub async fn members(&self) -> Result<RegistryStatus, CallError> {
        let deadline = Instant::now() + self.connections.config.write_deadline;
        let mut backoff = Backoff::default();
        loop {
            let error = match self.try_members().await {
                Ok(status) => return Ok(status),
                Err(error) => error,
            };
            let delay = backoff.next_delay();
            if Instant::now() + delay >= deadline {
                return Err(error);
            }
            sleep(delay).await;
        }
    }

    async fn try_members(&self) -> Result<RegistryStatus, CallError> {
        let connection = self.connections.connection().await?;
        let mut client = connection.client.clone();
        let reply = self.call(&connection, client.members(pb::MembersRequest {})).await?;
        RegistryStatus::try_from(reply).map_err(|error| connection.failed(error.to_string()))
    }

    /// One call within the request timeout; a failure makes the next call go elsewhere.
    async fn call<T>(
        &self,
        connection: &Connection,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, CallError> {
        let limit = self.connections.config.request_timeout;
        let message = match timeout(limit, call).await {
            Ok(Ok(reply)) => return Ok(reply.into_inner()),
            Ok(Err(status)) => status.message().to_owned(),
            Err(_) => format!("no answer within {limit:?}"),
        };
        self.connections.leave(connection).await;
        Err(connection.failed(message))
    }
}

impl From<&RegistryStatus> for pb::MembersReply {
    fn from(status: &RegistryStatus) -> Self {
        let members = status.members.iter().map(|member| pb::Member {
            id: member.id,
            name: member.name.clone(),
            address: member.address.clone(),
            leader: member.is_leader,
            voter: member.voter,
        });
        Self {
            members: members.collect(),
            answered_by: status.answered_by,
            term: status.term,
            index: status.index,
            cluster: Some((&status.cluster).into()),
            held_expiries: status.held_expiries,
        }
    }
}

impl TryFrom<pb::MembersReply> for RegistryStatus {
    type Error = ConvertError;

    fn try_from(reply: pb::MembersReply) -> Result<Self, ConvertError> {
        let members = reply.members.into_iter().map(|member| Member {
            id: member.id,
            name: member.name,
            address: member.address,
            voter: member.voter,
            is_leader: member.leader,
        });
        Ok(Self {
            members: members.collect(),
            answered_by: reply.answered_by,
            term: reply.term,
            index: reply.index,
            cluster: required("members.cluster", reply.cluster)?.into(),
            held_expiries: reply.held_expiries,
        })
    }
}
