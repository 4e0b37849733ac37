//! One connection to some member, found anew whenever it fails.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use rand::{Rng, seq::SliceRandom};
use tokio::{net::lookup_host, sync::Mutex, time::timeout};
use tonic::transport::Channel;

use super::{CallError, ClientConfig};
use crate::{proto::registry::registry_client::RegistryClient, raft, service::peers::client};

/// The first pause after a failure: an election is over in a few of them.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest: thousands of agents that lost the registry do not storm it, and find it soon after it is back.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Addresses tried in one round.
const MAX_ADDRESSES: usize = 32;

/// Why no member could be reached.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConnectError {
    /// None is configured.
    #[error("no registry member is configured: set registry.members to one or more host:port")]
    NoMembers,
    /// None of them has an address.
    #[error("no registry member name could be resolved: {0}")]
    Resolve(String),
    /// None of them answered.
    #[error("no registry member answered: {0}")]
    Unreachable(String),
}

/// A connection and the member it goes to.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    pub(super) address: SocketAddr,
    pub(super) client: RegistryClient<Channel>,
    generation: u64,
}

impl Connection {
    pub(super) fn failed(&self, message: String) -> CallError {
        CallError::Failed { member: self.address.to_string(), message }
    }
}

#[derive(Debug)]
pub(super) struct Connections {
    pub(super) config: ClientConfig,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    current: Option<Connection>,
    /// Tried last in the next round.
    left: Option<SocketAddr>,
    generation: u64,
}

impl Connections {
    pub(super) fn new(config: ClientConfig) -> Self {
        Self { config, state: Mutex::default() }
    }

    /// The connection, or a new one to some member: one round over all of them, in random order.
    pub(super) async fn connection(&self) -> Result<Connection, ConnectError> {
        let mut state = self.state.lock().await;
        if let Some(current) = &state.current {
            return Ok(current.clone());
        }
        let mut addresses = self.resolve().await?;
        addresses.shuffle(&mut rand::rng());
        addresses.truncate(MAX_ADDRESSES);
        // The sort is stable: all others come before the one that was just left.
        addresses.sort_by_key(|address| state.left == Some(*address));
        let mut reasons = Vec::new();
        for address in addresses {
            match self.connect(address).await {
                Ok(channel) => {
                    state.generation += 1;
                    let connection = Connection { address, client: client(channel), generation: state.generation };
                    state.current = Some(connection.clone());
                    return Ok(connection);
                }
                Err(reason) => reasons.push(format!("{address}: {reason}")),
            }
        }
        Err(ConnectError::Unreachable(reasons.join("; ")))
    }

    /// Leaves a connection: the next call goes to another member, if there is one.
    pub(super) async fn leave(&self, connection: &Connection) {
        let mut state = self.state.lock().await;
        // Somebody else may have left it already.
        if state.generation == connection.generation && state.current.is_some() {
            tracing::debug!(member = %connection.address, "leaving the registry member for another");
            state.current = None;
            state.left = Some(connection.address);
        }
    }

    async fn resolve(&self) -> Result<Vec<SocketAddr>, ConnectError> {
        if self.config.members.is_empty() {
            return Err(ConnectError::NoMembers);
        }
        let (mut addresses, mut reasons) = (BTreeSet::new(), Vec::new());
        for member in &self.config.members {
            match timeout(self.config.connect_timeout, lookup_host(member)).await {
                Ok(Ok(found)) => addresses.extend(found),
                Ok(Err(error)) => reasons.push(format!("{member}: {error}")),
                Err(_) => reasons.push(format!("{member}: no answer in time")),
            }
        }
        if addresses.is_empty() {
            return Err(ConnectError::Resolve(reasons.join("; ")));
        }
        Ok(addresses.into_iter().collect())
    }

    async fn connect(&self, address: SocketAddr) -> Result<Channel, String> {
        let endpoint = raft::endpoint(format!("http://{address}")).map_err(|error| root_cause(&error))?;
        match timeout(self.config.connect_timeout, endpoint.connect()).await {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(error)) => Err(root_cause(&error)),
            Err(_) => Err(format!("no connection within {:?}", self.config.connect_timeout)),
        }
    }
}

/// tonic says "transport error"; the reason is at the end of the chain.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Growing pauses with jitter.
#[derive(Debug)]
pub(super) struct Backoff {
    pause: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { pause: FIRST_PAUSE }
    }
}

impl Backoff {
    /// The next pause: between half of and the whole step.
    pub(super) fn next_delay(&mut self) -> Duration {
        let step = self.pause;
        self.pause = (step * 2).min(LONGEST_PAUSE);
        rand::rng().random_range(step / 2..=step)
    }
}
