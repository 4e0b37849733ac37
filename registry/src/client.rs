//! The registry as an agent sees it: one connection to some member, and another one when that fails, for ever.
//!
//! Nothing is learnt for good: member names are resolved at each connection, and any member takes any call. A client that
//! writes much keeps a second connection, to the leader, for as long as it does.

mod backup;
mod batch;
mod brakes;
mod connection;
mod members;
mod read;
mod room;
mod size;
pub(crate) mod watch;
mod write;

use std::{future::Future, sync::Arc, time::Duration};

use muster_catalog::Name;
use tokio::time::timeout;
use tonic::Status;

pub use backup::TakeError;
pub use brakes::{HeldExpiry, HeldNode, SharedTrait};
pub use connection::ConnectError;
pub use members::{MemberHealth, RegistryStatus};
pub use read::WideRows;
pub use room::Held;
pub use size::{check_bytes, instance_bytes};
pub use watch::{Hello, WatchError, WatchEvent, WatchSender, WatchStream};

use crate::{proto::registry as pb, resolve::Resolve};
use connection::{Connection, Connections};

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
    /// How the names of members become addresses.
    pub resolve: Resolve,
}

impl ClientConfig {
    /// The defaults for these members.
    pub fn new(members: Vec<String>) -> Self {
        Self {
            members,
            connect_timeout: Duration::from_secs(1),
            request_timeout: Duration::from_secs(3),
            write_deadline: Duration::from_secs(10),
            resolve: Resolve::default(),
        }
    }
}

/// A client of the registry. Cloning it shares the connection, the messages that writes travel in, and the room for answers.
#[derive(Debug, Clone)]
pub struct Client {
    connections: Arc<Connections>,
    writes: Arc<batch::Writes>,
    room: Arc<room::Room>,
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

impl CallError {
    /// Whether some member was reached.
    fn reached(&self) -> bool {
        !matches!(self, Self::Connect(_))
    }
}

impl Client {
    /// A client that connects when it is first used.
    pub fn new(config: ClientConfig) -> Self {
        Self { connections: Arc::new(Connections::new(config)), writes: Arc::default(), room: room::Room::new() }
    }

    /// With so much room for answers, in bytes, and so much patience for it.
    #[cfg(test)]
    pub(crate) fn with_room(self, limit: usize, patience: Duration) -> Self {
        Self { room: room::Room::with(limit, patience), ..self }
    }

    /// Looks for the registry at these members too, besides the configured ones: it named them itself.
    pub fn learn(&self, members: Vec<String>) {
        self.connections.learn(members);
    }

    /// Looks for the registry at these members from the next connection on; the present one stays while it works.
    pub fn set_members(&self, members: Vec<String>) {
        self.connections.set_members(members);
    }

    /// Where the next write goes, as far as that is known.
    #[cfg(test)]
    pub(crate) async fn writes_to(&self) -> Option<std::net::SocketAddr> {
        Some(self.connections.for_writes().await.ok()?.address)
    }

    /// Says that an agent lives; returns once the leader has it. One attempt: the next one goes to another member.
    pub async fn renew(&self, node: &Name, agent: &str, incarnation: u64) -> Result<Renewed, CallError> {
        let connection = self.connections.connection().await?;
        let request = pb::RenewRequest { node: node.to_string(), agent: agent.to_owned(), incarnation };
        let mut client = connection.client.clone();
        let reply = self.call(&connection, client.renew(request)).await?;
        Ok(Renewed { known: reply.known, term: reply.term })
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
        self.connections.leave(connection);
        Err(connection.failed(message))
    }
}
