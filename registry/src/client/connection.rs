//! One connection to some member, found anew whenever it fails, and one to the leader while much is written.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{
    FutureExt, StreamExt,
    future::{BoxFuture, Shared, join_all},
    stream::FuturesUnordered,
};
use rand::{RngExt, seq::SliceRandom};
use tokio::time::{Instant, sleep, timeout};
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
/// Where no member is reached at all a call is given up after this: whoever gave a wrong address learns it at once, and
/// the restart of a member is over by then.
const UNREACHED: Duration = Duration::from_secs(1);
/// Addresses tried in one round.
const MAX_ADDRESSES: usize = 32;
/// How often a connection over which nothing comes is probed: reads that wait at a member which vanished end two seconds
/// after that. All else has a shorter patience of its own, and each look at the clock wakes an idle agent.
const PROBE_INTERVAL: Duration = Duration::from_secs(3);
/// An address that has not answered for so long is tried beside the next one: with all of them dead but one, a round takes
/// some three seconds and not half a minute.
const STAGGER: Duration = Duration::from_millis(100);

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
    /// For one renewal or read: as configured, or less for a short lease.
    request_timeout: std::sync::Mutex<Duration>,
    state: std::sync::Mutex<State>,
    traffic: std::sync::Mutex<Traffic>,
}

/// One look for a member, which all wait for that need one.
type Round = Shared<BoxFuture<'static, Result<Connection, ConnectError>>>;

#[derive(Debug, Default)]
struct State {
    current: Option<Connection>,
    /// Under way.
    round: Option<Round>,
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
        let request_timeout = std::sync::Mutex::new(config.request_timeout);
        let learned = Default::default();
        Self { config, members, learned, request_timeout, state: Default::default(), traffic: Default::default() }
    }

    pub(super) fn request_timeout(&self) -> Duration {
        *self.request_timeout.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for an answer no longer than a third of such a lease.
    pub(super) fn set_lease(&self, lease: Duration) {
        let limit = self.config.request_timeout.min(lease / 3);
        *self.request_timeout.lock().unwrap_or_else(PoisonError::into_inner) = limit;
    }

    /// Takes these in the place of what was learnt before.
    pub(super) fn learn(&self, members: Vec<String>) {
        *self.learned.lock().unwrap_or_else(PoisonError::into_inner) = members;
    }

    /// Looks for the registry at these members from the next connection on.
    pub(super) fn set_members(&self, members: Vec<String>) {
        *self.members.lock().unwrap_or_else(PoisonError::into_inner) = members;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection, or a new one to some member, waited for no longer than for an answer. All who wait share one round
    /// over the members, and it goes on when they give up: the next caller has what it found.
    pub(super) async fn connection(self: &Arc<Self>) -> Result<Connection, ConnectError> {
        let limit = self.request_timeout();
        let round = {
            let mut state = self.state();
            if let Some(current) = &state.current {
                return Ok(current.clone());
            }
            state.round.get_or_insert_with(|| self.clone().begin_round()).clone()
        };
        let late =
            |_| Err(ConnectError::Unreachable(format!("none was reached within {limit:?}, and they are tried on")));
        timeout(limit, round).await.unwrap_or_else(late)
    }

    fn begin_round(self: Arc<Self>) -> Round {
        let round = tokio::spawn(async move {
            let found = self.find_member().await;
            let mut state = self.state();
            // At once, whether or not somebody still waits for it: what it found may be left soon.
            state.round = None;
            let (address, channel) = found?;
            let connection = state.number(address, channel);
            state.current = Some(connection.clone());
            Ok(connection)
        });
        let ended = |ended: Result<_, tokio::task::JoinError>| {
            ended.unwrap_or_else(|error| Err(ConnectError::Unreachable(error.to_string())))
        };
        round.map(ended).boxed().shared()
    }

    /// One round over all members, in random order: the first that answers.
    async fn find_member(&self) -> Result<(SocketAddr, Channel), ConnectError> {
        let mut addresses = self.resolve().await?;
        addresses.shuffle(&mut rand::rng());
        addresses.truncate(MAX_ADDRESSES);
        let left = self.state().left;
        // The sort is stable: all others come before the one that was just left.
        addresses.sort_by_key(|address| left == Some(*address));
        let (mut waiting, mut trying, mut reasons) = (addresses.into_iter(), FuturesUnordered::new(), Vec::new());
        loop {
            if let Some(address) = waiting.next() {
                trying.push(self.connect(address).map(move |connected| (address, connected)));
            }
            // With nobody left to try, those under way have all the time there is.
            let patience = if waiting.len() == 0 { self.config.connect_timeout } else { STAGGER };
            match timeout(patience, trying.next()).await {
                Ok(Some((address, Ok(channel)))) => return Ok((address, channel)),
                Ok(Some((address, Err(reason)))) => reasons.push(format!("{address}: {reason}")),
                Ok(None) => return Err(ConnectError::Unreachable(reasons.join("; "))),
                Err(_) => {}
            }
        }
    }

    /// The connection for a write: to the leader where there is one, else as for anything else.
    pub(super) async fn for_writes(self: &Arc<Self>) -> Result<Connection, ConnectError> {
        let leader = self.state().leader.clone();
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
            let mut state = self.state();
            let connection = state.number(address, channel);
            state.leader = Some(connection.clone());
            connection.generation
        };
        loop {
            sleep(LEADER_LOOK).await;
            let straight = std::mem::take(&mut self.traffic().straight);
            let mut state = self.state();
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
    pub(super) fn leave(&self, connection: &Connection) {
        let mut state = self.state();
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
        let limit = self.config.connect_timeout;
        let asked = members.iter().map(|member| timeout(limit, self.config.resolve.resolve(member)));
        // Together: a name server that is silent costs one patience, not one for each name.
        for (member, found) in members.iter().zip(join_all(asked).await) {
            match found {
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
        let endpoint = endpoint.http2_keep_alive_interval(PROBE_INTERVAL);
        let limit = self.config.connect_timeout;
        // The endpoint's own limit says less, and is for when it connects again by itself.
        match timeout(limit, endpoint.connect_timeout(limit * 2).connect()).await {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(error)) => Err(root_cause(&error)),
            Err(_) => Err(format!("no connection within {limit:?}")),
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

/// The tries of one call that a person or a task waits for.
#[derive(Debug)]
pub(super) struct Tries {
    begun: Instant,
    deadline: Duration,
    backoff: Backoff,
}

impl Tries {
    /// The first is made at once, the last before the deadline.
    pub(super) fn within(deadline: Duration) -> Self {
        Self { begun: Instant::now(), deadline, backoff: Backoff::default() }
    }

    /// Pauses before the next try; false when there is none.
    pub(super) async fn again(&mut self, reached: bool) -> bool {
        let limit = if reached { self.deadline } else { self.deadline.min(UNREACHED) };
        let delay = self.backoff.next_delay();
        let more = self.begun.elapsed() + delay < limit;
        if more {
            sleep(delay).await;
        }
        more
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpSocket, TcpStream};

    use super::*;

    /// An address that takes no connection and refuses none: the backlog of its listener is full.
    async fn dead() -> (SocketAddr, TcpListener, Vec<TcpStream>) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let (address, mut held) = (listener.local_addr().unwrap(), Vec::new());
        while let Ok(stream) = timeout(Duration::from_millis(50), TcpStream::connect(address)).await {
            held.push(stream.unwrap());
        }
        (address, listener, held)
    }

    fn connections(members: Vec<SocketAddr>, limit: Duration) -> Arc<Connections> {
        let config = ClientConfig::new(members.iter().map(ToString::to_string).collect());
        Arc::new(Connections::new(ClientConfig { request_timeout: limit, ..config }))
    }

    #[tokio::test]
    async fn one_that_lives_is_found_among_the_dead_and_who_gives_up_finds_it_next() {
        let (dead, live) = (join_all((0..8).map(|_| dead())).await, TcpListener::bind("127.0.0.1:0").await.unwrap());
        let live = live.local_addr().unwrap();
        let members = dead.iter().map(|(address, ..)| *address).chain([live]).collect();
        let connections = connections(members, Duration::from_millis(20));
        // Tried last, so that nobody has it in time.
        connections.state().left = Some(live);
        let begun = Instant::now();
        let all = join_all((0..100).map(|_| connections.connection())).await;
        assert!(all.iter().all(|one| matches!(one, Err(ConnectError::Unreachable(_)))), "{all:?}");
        assert!(begun.elapsed() < Duration::from_millis(500), "they waited for {:?}", begun.elapsed());
        let found = loop {
            if let Ok(found) = connections.connection().await {
                break found;
            }
        };
        assert_eq!(found.address, live);
        assert!(begun.elapsed() < Duration::from_secs(3), "one address after the other: {:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn a_round_over_nobody_ends_and_the_next_one_is_another() {
        let (gone, dead) = (TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap(), dead().await);
        let connections = connections(vec![gone, dead.0], Duration::from_secs(10));
        let reason = connections.connection().await.unwrap_err().to_string();
        assert!(reason.contains("refused") && reason.contains("no connection within"), "{reason}");
        let live = TcpListener::bind("127.0.0.1:0").await.unwrap();
        connections.set_members(vec![live.local_addr().unwrap().to_string()]);
        assert!(connections.connection().await.is_ok(), "the end of the last round is passed off as this one's");
    }

    #[tokio::test]
    async fn what_was_found_for_those_who_gave_up_is_not_handed_out_once_it_was_left() {
        let live = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connections = connections(vec![live.local_addr().unwrap()], Duration::from_secs(10));
        assert!(connections.connection().now_or_never().is_none());
        let found = loop {
            tokio::task::yield_now().await;
            if let Some(found) = connections.state().current.clone() {
                break found;
            }
        };
        connections.leave(&found);
        let next = connections.connection().await.unwrap();
        assert_ne!(next.generation, found.generation, "the one that was left comes back");
    }

    #[tokio::test]
    async fn a_call_that_reaches_nobody_is_given_up_sooner() {
        let mut tries = Tries::within(Duration::from_secs(10));
        while tries.again(false).await {}
        assert!(tries.begun.elapsed() < UNREACHED, "{:?}", tries.begun.elapsed());
        assert!(tries.again(true).await, "a member that was reached may have no leader for a while");
    }
}
