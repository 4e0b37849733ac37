//! The wiring: binds what a process serves, starts its tasks, and stops them in order.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use muster_catalog::{Address, Locality, Node, Origin, Text};
use muster_dns::Dns;
use muster_http::{Http, HttpHandle, Ports};
use muster_registry::{
    LeaseConfig, Registry, RegistryConfig,
    client::{Client, ClientConfig},
    raft::{self, ConsensusConfig},
};
use muster_xds::Xds;
use tokio::{
    net::{TcpListener, UdpSocket},
    sync::{Notify, watch},
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Config, ConfigError, dns_config, http_config, replica_width, xds_config},
    definitions::{Problem, RemovalHandle, RemovalSeat},
    host,
    identity::{DataDirectory, Identity, IdentityError, now},
    local::{LocalHandle, LocalState},
    metrics::Metrics,
    ports::{AgentPort, BrakesPort, MemberReadiness, OperatorPort, ReadinessPort},
    replica::{DiskError, Replica, ReplicaConfig},
    resolver::Resolver,
    supervisor::{Died, Supervisor},
    sync::{LeaseTask, Pusher, SyncStatus, SyncTask},
};

mod leaving;
mod sockets;

use leaving::Leaving;
use sockets::{Sockets, bind_tcp};

/// How a process stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// For good: the instances drain, and the node goes.
    Leave,
    /// To be started anew at once: node and instances stay for as long as the lease runs.
    Restart,
}

/// What listens where.
#[derive(Debug, Clone, Default)]
pub struct Bound {
    /// The registry's RPC.
    pub registry: Option<SocketAddr>,
    /// The v1 API.
    pub http: Option<SocketAddr>,
    /// DNS, UDP and TCP; the first of several.
    pub dns: Option<SocketAddr>,
    /// xDS.
    pub xds: Option<SocketAddr>,
}

/// Why a process did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An address cannot be had.
    #[error("cannot listen on {address} for {what}: {source}; {}", sockets::remedy(.source, .key))]
    Bind {
        /// What for.
        what: &'static str,
        /// The address.
        address: SocketAddr,
        /// The key that sets it.
        key: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// The agent's identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The kept replica.
    #[error(transparent)]
    Replica(#[from] DiskError),
    /// The member's data folder, or what the configuration says of it, has to be put right: to start it again changes
    /// nothing.
    #[error("{0}")]
    Final(String),
    /// A room did not start; its message says what to do.
    #[error(transparent)]
    Room(anyhow::Error),
}

/// Why a process ends by itself.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// To start it again is the remedy.
    #[error(transparent)]
    Died(Died),
    /// To start it again changes nothing.
    #[error("{0}")]
    Final(String),
}

/// What of an agent takes up a new configuration while it runs.
struct Changeable {
    client: Arc<Client>,
    definitions: RemovalHandle,
}

/// A running process.
pub struct App {
    /// What listens where.
    pub bound: Bound,
    supervisor: Supervisor,
    local: Option<LocalHandle>,
    changeable: Option<Changeable>,
    leaving: CancellationToken,
    restarting: CancellationToken,
    replica: Option<Arc<Replica>>,
    /// Kept until all is written.
    data: Option<Arc<DataDirectory>>,
    left: Option<Leaving>,
    closing: CancellationToken,
    ending: CancellationToken,
    stop_timeout: Duration,
    final_reason: Option<watch::Receiver<Option<String>>>,
}

impl App {
    /// A member of the registry.
    pub async fn registry(config: &Config) -> Result<Self, StartError> {
        let mut app = Self::new(config)?;
        let metrics = Metrics::install().map_err(|error| StartError::Room(error.into()))?;
        let listener = bind_tcp("the registry", "registry.listen", config.registry.listen).await?;
        let probes = bind_tcp("metrics", "registry.metrics_listen", config.registry.metrics_listen).await?;
        let readiness = app.start_registry(config, listener, config.registry.members.clone()).await?;
        app.start_probes(config, probes, readiness, metrics)?;
        Ok(app)
    }

    /// The agent of a host.
    pub async fn agent(config: &Config) -> Result<Self, StartError> {
        let mut app = Self::new(config)?;
        app.start_agent(config, config.registry.members.clone(), false).await?;
        Ok(app)
    }

    /// Registry and agent in one process.
    pub async fn dev(config: &Config) -> Result<Self, StartError> {
        let mut app = Self::new(config)?;
        let listener = bind_tcp("the registry", "--registry", config.registry.listen).await?;
        let own = listener.local_addr().map_err(|error| StartError::Room(error.into()))?.to_string();
        let mut member = config.clone();
        member.registry.advertise = Some(own.clone());
        // The agent's readiness covers the member: it cannot register without a leader.
        let _ = app.start_registry(&member, listener, vec![own.clone()]).await?;
        app.start_agent(config, vec![own], true).await?;
        Ok(app)
    }

    fn new(config: &Config) -> Result<Self, StartError> {
        config.validate()?;
        crate::install_crypto();
        Ok(Self {
            bound: Bound::default(),
            supervisor: Supervisor::default(),
            local: None,
            changeable: None,
            leaving: CancellationToken::new(),
            restarting: CancellationToken::new(),
            replica: None,
            data: None,
            left: None,
            closing: CancellationToken::new(),
            ending: CancellationToken::new(),
            stop_timeout: config.agent.stop_timeout.0,
            final_reason: None,
        })
    }

    /// Waits until a task ends by itself: then the process has to end too.
    pub async fn died(&mut self) -> Ended {
        let died = self.supervisor.died().await;
        let why = self.final_reason.as_ref().and_then(|why| why.borrow().clone());
        why.map_or(Ended::Died(died), Ended::Final)
    }

    /// Takes up what can change in a running process (see [`crate::reload`]), and looks at the definitions now.
    pub(crate) fn reload(&mut self, config: &Config) {
        self.stop_timeout = config.agent.stop_timeout.0;
        if let Some(changeable) = &self.changeable {
            changeable.client.set_members(config.registry.members.clone());
            changeable.definitions.rescan.notify_one();
        }
    }

    async fn start_registry(
        &mut self,
        config: &Config,
        listener: TcpListener,
        members: Vec<String>,
    ) -> Result<MemberReadiness, StartError> {
        let name = config.node_name()?;
        let advertise = config.registry.advertise.clone().unwrap_or_else(|| config.registry.listen.to_string());
        let consensus = ConsensusConfig {
            members,
            log_engine: config.registry.log_engine.into(),
            election_timeout_min: config.registry.election_timeout_min.0,
            election_timeout_max: config.registry.election_timeout_max.0,
            dial: raft::plaintext_by(Resolver::default().for_members()),
            ..ConsensusConfig::new(name.to_string(), advertise, config.node.data_dir.join("registry"))
        };
        let leases = LeaseConfig {
            ttl: config.registry.lease_ttl.0,
            grace: config.registry.lease_grace.0,
            mass: config.registry.mass_expiry.to_room(),
        };
        let autopilot = config.registry.autopilot.room();
        let registry = RegistryConfig { leases, autopilot, ..RegistryConfig::new(consensus) };
        let started = Registry::start(registry, listener, self.ending.child_token()).await;
        let registry = started.map_err(|error| match error {
            error if error.is_final() => StartError::Final(error.to_string()),
            error => StartError::Room(error.into()),
        })?;
        self.bound.registry = Some(registry.address());
        let readiness = MemberReadiness { leadership: registry.leadership(), agreement: registry.agreement() };
        let (final_sender, final_reason) = watch::channel(None);
        self.final_reason = Some(final_reason);
        self.supervisor.spawn("registry", async move {
            match registry.stopped().await {
                reason if reason.is_final() => drop(final_sender.send_replace(Some(reason.to_string()))),
                reason => tracing::debug!(%reason, "the registry member has stopped"),
            }
        });
        Ok(readiness)
    }

    async fn start_agent(&mut self, config: &Config, members: Vec<String>, dev: bool) -> Result<(), StartError> {
        let metrics = Metrics::install().map_err(|error| StartError::Room(error.into()))?;
        let sockets = Sockets::bind(config).await?;
        let data_dir = config.node.data_dir.join("agent");
        let data = Arc::new(DataDirectory::lock(&data_dir)?);
        let identity = Identity::load(&data_dir, now())?;
        let node = node_row(config, &identity, &data_dir)?;

        let mut client_config = ClientConfig::new(members);
        client_config.resolve = Resolver::default().for_members();
        let client = Arc::new(Client::new(client_config));
        // Until the registry says what it is.
        client.set_lease(config.registry.lease_ttl.0);
        let replica_config = ReplicaConfig {
            node: node.name.clone(),
            incarnation: identity.incarnation,
            accept_any_cluster: dev,
            file: data_dir.join("replica"),
            width: replica_width(config),
            restarting: self.restarting.clone(),
        };
        let replica = self.start_replica(replica_config, &client, data_dir.join("members.json"))?;

        let scripts = config.checks.scripts;
        let local_config = crate::local::LocalConfig { node: node.name.clone(), data_dir: Some(data_dir), scripts };
        let opened = LocalState::open(local_config);
        let (state, local) = opened.map_err(|error| StartError::Room(error.into()))?;
        // Of the same directory: what another one held is not missed in this one.
        let services_dir = config.agent.services_dir.clone();
        let mut last = state.last_file_services().to_vec();
        last.retain(|service| service.path.parent() == Some(&services_dir));
        let closing = self.closing.clone();
        self.supervisor.spawn("local state", async move {
            if let Err(error) = state.run(closing).await {
                tracing::error!(%error, "LocalState ended");
            }
        });
        let (seat, removals) = RemovalSeat::new(config.agent.mass_removal.to_room(), identity.incarnation, last);
        let own = replica.clone().follow_own(node.clone(), local.watch(), self.closing.clone());
        self.supervisor.spawn("own rows", own);
        let problems = self.start_definitions(services_dir, local.clone(), seat);
        let status = self.start_sync(config, &node, &identity, &client, &replica, &local);

        let xds = self.start_xds(config, sockets.xds, &replica)?;
        self.start_dns(config, sockets.dns, &replica)?;
        let readiness = ReadinessPort {
            replica: replica.clone(),
            status,
            leaving: self.leaving.clone(),
            removals: removals.clone(),
            problems,
            data: data.clone(),
            local: local.clone(),
        };
        self.changeable = Some(Changeable { client: client.clone(), definitions: removals.clone() });
        let ports = Ports {
            source: replica.clone(),
            sink: client.clone(),
            local: Arc::new(AgentPort::new(&config.node.datacenter, node, local.clone(), replica.clone())),
            brakes: Arc::new(BrakesPort { client: client.clone(), removals }),
            operator: Arc::new(OperatorPort { client, proxies: xds }),
            readiness: Arc::new(readiness),
            metrics: {
                let (metrics, replica) = (metrics.clone(), replica.clone());
                Arc::new(move || {
                    replica.record_age(now());
                    metrics.render()
                })
            },
        };
        self.start_http(config, sockets.http, ports)?;
        self.start_upkeep(metrics);
        (self.local, self.replica, self.data) = (Some(local), Some(replica), Some(data));
        Ok(())
    }

    fn start_replica(
        &mut self,
        config: ReplicaConfig,
        client: &Arc<Client>,
        members: PathBuf,
    ) -> Result<Arc<Replica>, DiskError> {
        let (replica, task) = Replica::open(config, client.clone(), now)?;
        crate::members::recall(client, &replica, &members);
        let learning = crate::members::follow(client.clone(), replica.clone(), members, self.closing.clone());
        self.supervisor.spawn("members", learning);
        self.supervisor.spawn("replica", task.run(self.closing.clone()));
        Ok(replica)
    }

    fn start_definitions(
        &mut self,
        directory: PathBuf,
        local: LocalHandle,
        seat: RemovalSeat,
    ) -> watch::Receiver<Arc<Vec<Problem>>> {
        let (problems, shown) = watch::channel(Arc::default());
        // From here on the instances stay as they are: a file that changes during a stop changes nothing.
        let leaving = self.leaving.clone();
        let closing = self.closing.clone();
        self.supervisor.spawn("definitions", async move {
            let following = crate::definitions::follow(directory, local, problems, seat, leaving);
            let ended = tokio::select! {
                ended = following => ended,
                () = closing.cancelled() => return,
            };
            match ended {
                Ok(()) => closing.cancelled().await,
                Err(error) => tracing::error!(%error, "following the services directory ended"),
            }
        });
        shown
    }

    fn start_sync(
        &mut self,
        config: &Config,
        node: &Node,
        identity: &Identity,
        client: &Arc<Client>,
        replica: &Arc<Replica>,
        local: &LocalHandle,
    ) -> watch::Receiver<SyncStatus> {
        let pusher = Pusher::new(node.clone(), identity.incarnation);
        let unknown = Arc::new(Notify::new());
        let (task, status) = SyncTask::new(
            pusher.clone(),
            client.clone(),
            replica.clone(),
            local.watch(),
            unknown.clone(),
            config.agent.drain_time.0,
        );
        let (has_left, left) = watch::channel(false);
        self.left = Some(Leaving { node: node.name.clone(), status: status.clone(), done: left });
        // A node that drains is alive: its lease is renewed until it has left.
        let renewing = self.closing.child_token();
        let (leaving, closing, gone) = (self.leaving.clone(), self.closing.clone(), renewing.clone());
        let restarting = self.restarting.clone();
        self.supervisor.spawn("sync", async move {
            tokio::select! {
                () = task.run(leaving, restarting) => {
                    gone.cancel();
                    // Whoever waits may have run out of patience.
                    let _ = has_left.send(true);
                    closing.cancelled().await;
                }
                () = closing.cancelled() => {}
            }
        });
        let lease = LeaseTask {
            pusher,
            client: client.clone(),
            unknown,
            status: status.clone(),
            ttl: config.registry.lease_ttl.0,
        };
        let closing = self.closing.clone();
        self.supervisor.spawn("lease", async move {
            lease.run(renewing).await;
            closing.cancelled().await;
        });
        status
    }

    fn start_dns(
        &mut self,
        config: &Config,
        sockets: Vec<(TcpListener, UdpSocket)>,
        replica: &Arc<Replica>,
    ) -> Result<(), StartError> {
        let (tcp, udp) = sockets.into_iter().unzip();
        let started = Dns::start(dns_config(config), udp, tcp, replica.clone(), Arc::new(now), self.closing.clone());
        let dns = started.map_err(|error| StartError::Room(error.into()))?;
        self.bound.dns = dns.udp_addresses().first().copied();
        self.supervisor.spawn("dns", async move {
            if let Err(error) = dns.finished().await {
                tracing::error!(%error, "DNS ended");
            }
        });
        Ok(())
    }

    fn start_xds(
        &mut self,
        config: &Config,
        listener: TcpListener,
        replica: &Arc<Replica>,
    ) -> Result<muster_xds::Roster, StartError> {
        let started = Xds::start(xds_config(config), listener, replica.clone(), self.closing.clone());
        let xds = started.map_err(|error| StartError::Room(error.into()))?;
        self.bound.xds = Some(xds.local_addr());
        let roster = xds.roster();
        self.supervisor.spawn("xds", async move {
            if let Err(error) = xds.join().await {
                tracing::error!(%error, "xDS ended");
            }
        });
        Ok(roster)
    }

    fn start_http(&mut self, config: &Config, listener: TcpListener, ports: Ports) -> Result<(), StartError> {
        let started = Http::start(http_config(config), listener, ports, self.closing.clone());
        self.supervise_http(started)
    }

    /// A member that runs alone has metrics and health, and no v1 API.
    fn start_probes(
        &mut self,
        config: &Config,
        listener: TcpListener,
        readiness: MemberReadiness,
        metrics: Metrics,
    ) -> Result<(), StartError> {
        let readiness = Arc::new(readiness);
        let render = {
            let metrics = metrics.clone();
            Arc::new(move || metrics.render())
        };
        let started = Http::start_probes(http_config(config), listener, readiness, render, self.closing.clone());
        self.start_upkeep(metrics);
        self.supervise_http(started)
    }

    fn supervise_http(&mut self, started: std::io::Result<HttpHandle>) -> Result<(), StartError> {
        let http = started.map_err(|error| StartError::Room(error.into()))?;
        self.bound.http = Some(http.address);
        self.supervisor.spawn("http", async move {
            if let Err(error) = http.task.await {
                tracing::error!(%error, "HTTP ended");
            }
        });
        Ok(())
    }

    fn start_upkeep(&mut self, metrics: Metrics) {
        let closing = self.closing.clone();
        self.supervisor.spawn("metrics upkeep", async move {
            let mut tick = tokio::time::interval(Duration::from_secs(5));
            loop {
                tokio::select! {
                    _ = tick.tick() => metrics.upkeep(),
                    () = closing.cancelled() => return,
                }
            }
        });
    }
}

fn node_row(config: &Config, identity: &Identity, data_dir: &Path) -> Result<Node, StartError> {
    let name = config.node_name()?;
    let address = config.node_address()?.unwrap_or_else(|| found_address(data_dir));
    tell_who_cannot_come(config, &address);
    let text = |value: &Option<String>| Text::from(value.as_deref().unwrap_or_default());
    let placed = config.node.region.is_some() || config.node.zone.is_some();
    let locality = placed.then(|| Locality { region: text(&config.node.region), zone: text(&config.node.zone) });
    Ok(Node {
        name,
        id: identity.id.clone(),
        address,
        tagged_addresses: Default::default(),
        meta: config.node.meta.iter().map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect(),
        locality,
        origin: Origin::Agent,
    })
}

/// The node's address where none is set.
fn found_address(data_dir: &Path) -> Address {
    let (address, found) = host::find_address(data_dir);
    match found {
        host::Found::Route => tracing::info!(%address, "node.address is that of the interface with the default route"),
        host::Found::Kept => {
            tracing::warn!(%address, "there is no default route now: node.address is that of an earlier start");
        }
        host::Found::Nothing => tracing::info!(%address, "there is no default route: node.address is loopback"),
    }
    Address::Ip(address)
}

/// Instances at loopback are of no use to the hosts that share a registry on another host.
fn tell_who_cannot_come(config: &Config, address: &Address) {
    let elsewhere = config.registry.members.iter().find(|member| !host::is_here(member));
    if let (Some(member), true) = (elsewhere, host::is_here(&format!("{address}:0"))) {
        tracing::warn!(
            %address, %member,
            "no other host reaches the instances of this one, though a member of the registry is on another host: \
             set node.address to an address that others reach, or start again once the network is up"
        );
    }
}
