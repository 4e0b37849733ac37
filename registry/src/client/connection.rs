//! One connection to some member, found anew whenever it fails, and one to the leader while much is written.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use rand::{Rng, seq::SliceRandom};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep, timeout},
};
use tonic::transport::Channel;

use super::{CallError, ClientConfig};
use crate::{proto::registry::registry_client::RegistryClient, raft, service::peers::client};

/// The first pause after a failure: an election is over in a few of them.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest: thousands of agents that lost the registry do not storm it, and find it soon after it is back.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// So many writes between two looks pay for a connection to the leader. Thousands of agents that write now and then have
/// none: idle ones cost the leader a ping each every few seconds.
const MUCH: usize = 64;
/// How often it is looked at whether it still pays.
const LEADER_LOOK: Duration = Duration::from_secs(10);
/// How long after a failure the leader is not tried again: where it is out of reach it mostly stays so.
const LEADER_PAUSE: Duration = Duration::from_secs(30);
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
    /// Where the registry is looked for: those of `config` until others are set.
    members: std::sync::Mutex<Vec<String>>,
    /// Members that the registry named, besides those.
    learned: std::sync::Mutex<Vec<String>>,
    state: Mutex<State>,
    traffic: std::sync::Mutex<Traffic>,
}

#[derive(Debug, Default)]
struct State {
    current: Option<Connection>,
    /// Tried last in the next round.
    left: Option<SocketAddr>,
    /// For writes, where the leader is another member than the current one.
    leader: Option<Connection>,
    generation: u64,
}

/// What says whether a connection to the leader pays.
#[derive(Debug, Default)]
struct Traffic {
    /// Writes that went through another member than the leader since the last look.
    handed_on: usize,
    /// Writes that went to the leader since the last look.
    straight: usize,
    /// Whether a connection to the leader is on its way.
    connecting: bool,
    /// When it may be tried again.
    not_before: Option<Instant>,
}

impl State {
    fn number(&mut self, address: SocketAddr, channel: Channel) -> Connection {
        self.generation += 1;
        Connection { address, client: client(channel), generation: self.generation }
    }
}

impl Connections {
    pub(super) fn new(config: ClientConfig) -> Self {
        let members = std::sync::Mutex::new(config.members.clone());
        let learned = Default::default();
        Self { config, members, learned, state: Mutex::default(), traffic: Default::default() }
    }

    /// Takes these in the place of what was learnt before.
    pub(super) fn learn(&self, members: Vec<String>) {
        *self.learned.lock().unwrap_or_else(PoisonError::into_inner) = members;
    }

    /// Looks for the registry at these members from the next connection on.
    pub(super) fn set_members(&self, members: Vec<String>) {
        *self.members.lock().unwrap_or_else(PoisonError::into_inner) = members;
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
                    let connection = state.number(address, channel);
                    state.current = Some(connection.clone());
                    return Ok(connection);
                }
                Err(reason) => reasons.push(format!("{address}: {reason}")),
            }
        }
        Err(ConnectError::Unreachable(reasons.join("; ")))
    }

    /// The connection for a write: to the leader where there is one, else as for anything else.
    pub(super) async fn for_writes(&self) -> Result<Connection, ConnectError> {
        let leader = self.state.lock().await.leader.clone();
        match leader {
            Some(leader) => Ok(leader),
            None => self.connection().await,
        }
    }

    /// Takes note that so many writes were answered, and of where the leader is when another member answered them.
    pub(super) fn wrote(self: &Arc<Self>, writes: usize, leader: &str) {
        let mut traffic = self.traffic();
        if leader.is_empty() {
            traffic.straight += writes;
            return;
        }
        traffic.handed_on += writes;
        let soon = traffic.not_before.is_none_or(|not_before| not_before <= Instant::now());
        if traffic.handed_on >= MUCH && soon && !traffic.connecting {
            traffic.connecting = true;
            tokio::spawn(self.clone().keep_leader(leader.to_owned()));
        }
    }

    /// Connects to the leader, and lets the connection go when little is written.
    async fn keep_leader(self: Arc<Self>, leader: String) {
        let connected = self.connect_to_name(&leader).await;
        let not_before = connected.is_err().then(|| Instant::now() + LEADER_PAUSE);
        *self.traffic() = Traffic { not_before, ..Traffic::default() };
        let (address, channel) = match connected {
            Ok(connected) => connected,
            Err(reason) => {
                tracing::debug!(%leader, %reason, "the leader is not reached: other members hand writes on");
                return;
            }
        };
        tracing::debug!(%leader, "writing to the leader itself");
        let generation = {
            let mut state = self.state.lock().await;
            let connection = state.number(address, channel);
            state.leader = Some(connection.clone());
            connection.generation
        };
        loop {
            sleep(LEADER_LOOK).await;
            let straight = std::mem::take(&mut self.traffic().straight);
            let mut state = self.state.lock().await;
            if state.leader.as_ref().is_none_or(|leader| leader.generation != generation) {
                return;
            }
            if straight < MUCH {
                state.leader = None;
                return;
            }
        }
    }

    fn traffic(&self) -> MutexGuard<'_, Traffic> {
        self.traffic.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves a connection: the next call goes to another member, if there is one.
    pub(super) async fn leave(&self, connection: &Connection) {
        let mut state = self.state.lock().await;
        let is_it =
            |kept: &Option<Connection>| kept.as_ref().is_some_and(|kept| kept.generation == connection.generation);
        // Somebody else may have left it already.
        if is_it(&state.leader) {
            tracing::debug!(member = %connection.address, "leaving the leader");
            state.leader = None;
        } else if is_it(&state.current) {
            tracing::debug!(member = %connection.address, "leaving the registry member for another");
            state.current = None;
            state.left = Some(connection.address);
        }
    }

    async fn resolve(&self) -> Result<Vec<SocketAddr>, ConnectError> {
        let members = self.members.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if members.is_empty() {
            return Err(ConnectError::NoMembers);
        }
        let (mut addresses, mut reasons) = (BTreeSet::new(), Vec::new());
        let learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let members: BTreeSet<String> = members.into_iter().chain(learned).collect();
        for member in &members {
            match timeout(self.config.connect_timeout, self.config.resolve.resolve(member)).await {
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

    async fn connect_to_name(&self, name: &str) -> Result<(SocketAddr, Channel), String> {
        let found = timeout(self.config.connect_timeout, self.config.resolve.resolve(name)).await;
        let address = *found.map_err(|_| "no address in time".to_owned())??.first().ok_or("no address")?;
        Ok((address, self.connect(address).await?))
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
