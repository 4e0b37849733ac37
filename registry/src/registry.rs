//! One member of the registry, wired and supervised.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use muster_catalog::{FORMAT, Snapshot};
use tokio::{net::TcpListener, sync::watch, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    agreement::{self, Agreement},
    autopilot::{self, AutopilotConfig},
    client::RegistryStatus,
    leader,
    leases::LeaseConfig,
    machine::{Catalog, CatalogMachine, Fault},
    raft::{self, Ahead, Consensus, ConsensusConfig, Formats, Leadership, Removed},
    server,
    service::{Core, contact, renewals},
    store::directory,
};

/// How long a member that stops tries to hand its leadership on: more would only delay the election.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(1);
/// How long open calls and streams may take to end when the member stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// What a member is started with.
#[derive(Clone)]
pub struct RegistryConfig {
    /// The replicated log: names, addresses, timings, data folder.
    pub consensus: ConsensusConfig,
    /// How long nodes live without a word.
    pub leases: LeaseConfig,
    /// What the leader does about its members by itself.
    pub autopilot: AutopilotConfig,
    /// Connections at once; others wait. Default 16,384: an agent has one or two, so this is for ten thousand of them.
    pub max_connections: usize,
}

impl RegistryConfig {
    /// The defaults over a log's configuration.
    pub fn new(consensus: ConsensusConfig) -> Self {
        let (leases, autopilot) = (LeaseConfig::default(), AutopilotConfig::default());
        Self { consensus, leases, autopilot, max_connections: 16_384 }
    }
}

/// Why a member did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no identity yet, so nobody can be told from anybody.
    #[error(
        "registry.bind {0} is not a loopback address, and members do not prove who they are yet (no mTLS): anyone who \
         reaches it could write the catalog; bind it to 127.0.0.1 or [::1]"
    )]
    NotLoopback(SocketAddr),
    /// The socket is not usable.
    #[error("the registry's socket has no address: {0}")]
    Socket(#[from] std::io::Error),
    /// The log did not start.
    #[error(transparent)]
    Log(#[from] raft::StartError),
}

impl StartError {
    /// Whether it stays so until an operator does something about the data folder: to start it again changes nothing.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Log(raft::StartError::Directory(error)) => error.is_final(),
            _ => false,
        }
    }
}

/// Why a member stopped.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StopReason {
    /// It was told to.
    #[error("it was asked to stop")]
    Asked,
    /// A committed entry cannot be applied by this build.
    #[error(transparent)]
    Fault(Fault),
    /// It was taken out of the registry.
    #[error(transparent)]
    Removed(#[from] Removed),
    /// It has committed what its leader lacks.
    #[error(transparent)]
    Ahead(#[from] Ahead),
    /// One of its tasks ended, which none may.
    #[error("its task {task} ended: {reason}")]
    Task {
        /// The task.
        task: &'static str,
        /// How.
        reason: String,
    },
}

impl StopReason {
    /// Whether it stays so until an operator does something: to start the member again changes nothing.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Removed(_) | Self::Ahead(_) => true,
            // A build that can apply the entry may be in place by the next start.
            Self::Asked | Self::Fault(_) | Self::Task { .. } => false,
        }
    }
}

/// A running member.
pub struct Registry {
    address: SocketAddr,
    core: Arc<Core>,
    stopped: watch::Receiver<Option<StopReason>>,
}

impl Registry {
    /// Starts a member on a bound socket; it bootstraps or joins by itself and runs until `stop`.
    pub async fn start(
        config: RegistryConfig,
        listener: TcpListener,
        stop: CancellationToken,
    ) -> Result<Self, StartError> {
        let address = listener.local_addr()?;
        if !address.ip().is_loopback() {
            return Err(StartError::NotLoopback(address));
        }
        let dial = config.consensus.dial.clone();
        let (machine, catalog) = CatalogMachine::new();
        let read = catalog.clone();
        let formats = Formats { newest: FORMAT, in_force: Arc::new(move || read.now().format()) };
        let folder = config.consensus.data_dir.clone();
        let consensus = ConsensusConfig { formats, ..config.consensus };
        let consensus = Arc::new(Consensus::start(consensus, machine).await?);
        // Ends after the leadership was handed on; `stop` only begins that.
        let halt = CancellationToken::new();
        let (core, queues) = Core::new(consensus.clone(), catalog.clone(), dial, halt.clone());
        if let Some(why) = directory::differing(&folder).map_err(raft::StartError::from)? {
            queues.agreement.send_replace(agreement::task::marked(why));
            queues.contact.send_replace(false);
        }
        let mut tasks = JoinSet::new();
        let routes = server::routes(core.clone()).add_service(consensus.service());
        let serving = server::serve(routes, listener, config.max_connections, halt.clone());
        tasks.spawn(async move { ("server", serving.await.err().map(|error| error.to_string())) });
        let leading =
            leader::run(core.clone(), config.leases, queues.signs, queues.decisions, queues.held, halt.clone());
        tasks.spawn(async move { (leading.await, ("leader", None)).1 });
        let gathering = renewals::run(core.clone(), queues.pulses, halt.clone());
        tasks.spawn(async move { (gathering.await, ("renewals", None)).1 });
        let listening = contact::run(core.clone(), queues.contact, halt.clone());
        tasks.spawn(async move { (listening.await, ("contact", None)).1 });
        let piloting = autopilot::task::run(core.clone(), config.autopilot, queues.autopilot, halt.clone());
        tasks.spawn(async move { (piloting.await, ("autopilot", None)).1 });
        let comparing = agreement::task::run(core.clone(), Some(folder), queues.agreement, halt.clone());
        tasks.spawn(async move { (comparing.await, ("agreement", None)).1 });
        consensus.bootstrap_or_join();
        let (stopped_sender, stopped) = watch::channel(None);
        tokio::spawn(supervise(Supervised {
            consensus,
            catalog,
            core: core.clone(),
            tasks,
            stop,
            halt,
            stopped_sender,
        }));
        tracing::info!(%address, "the registry member serves");
        Ok(Self { address, core, stopped })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Who leads, and every change of it.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.core.log.leadership()
    }

    /// The newest Snapshot this member has applied, and every later one.
    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.core.catalog.snapshot.clone()
    }

    /// Whether its catalog is that of the others, and every change of that.
    pub fn agreement(&self) -> watch::Receiver<Agreement> {
        self.core.agreement.clone()
    }

    /// The members, as this one knows them.
    pub fn status(&self) -> RegistryStatus {
        self.core.status()
    }

    /// Returns when the member has stopped and let go of its data folder.
    pub async fn stopped(&self) -> StopReason {
        let mut stopped = self.stopped.clone();
        let reason = stopped.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        reason.unwrap_or_else(|| StopReason::Task { task: "supervisor", reason: "it vanished".to_owned() })
    }
}

struct Supervised {
    consensus: Arc<Consensus<CatalogMachine>>,
    catalog: Catalog,
    core: Arc<Core>,
    tasks: JoinSet<(&'static str, Option<String>)>,
    stop: CancellationToken,
    halt: CancellationToken,
    stopped_sender: watch::Sender<Option<StopReason>>,
}

/// Waits for a reason to stop, and then stops in order.
async fn supervise(mut member: Supervised) {
    let mut fault = member.catalog.fault.clone();
    let mut removed = member.consensus.removed();
    let (mut sent, mut told) = (member.consensus.ahead(), member.core.ahead.subscribe());
    let reason = tokio::select! {
        Ok(removed) = removed.wait_for(Option::is_some) => match removed.as_ref() {
            Some(removed) => StopReason::Removed(removed.clone()),
            None => StopReason::Asked,
        },
        Ok(ahead) = sent.wait_for(Option::is_some) => ahead.map_or(StopReason::Asked, StopReason::Ahead),
        Ok(ahead) = told.wait_for(Option::is_some) => ahead.map_or(StopReason::Asked, StopReason::Ahead),
        () = member.stop.cancelled() => StopReason::Asked,
        Ok(fault) = fault.wait_for(Option::is_some) => match fault.as_deref() {
            Some(fault) => StopReason::Fault(fault.clone()),
            None => StopReason::Asked,
        },
        Some(ended) = member.tasks.join_next() => match ended {
            Ok((task, reason)) => {
                let reason = reason.unwrap_or_else(|| "it returned".to_owned());
                StopReason::Task { task, reason }
            }
            Err(error) => StopReason::Task { task: "unnamed", reason: error.to_string() },
        },
    };
    match &reason {
        StopReason::Asked => tracing::info!("the registry member stops"),
        other => tracing::error!(reason = %other, "the registry member stops"),
    }
    match timeout(HAND_OVER_TIMEOUT, member.consensus.hand_over()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "the lead was not handed on"),
        Err(_) => tracing::debug!("nobody took the lead in time"),
    }
    member.halt.cancel();
    member.core.tasks.close();
    let drained = async {
        while member.tasks.join_next().await.is_some() {}
        member.core.tasks.wait().await;
    };
    if timeout(DRAIN_TIMEOUT, drained).await.is_err() {
        tracing::warn!("calls were still open {DRAIN_TIMEOUT:?} after the member began to stop; they are cut off");
        member.tasks.shutdown().await;
    }
    member.consensus.shutdown().await;
    // Nobody may be left to hear of it.
    member.stopped_sender.send_replace(Some(reason));
}
