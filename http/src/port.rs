//! What this room asks of others beside the catalog's `Source` and `Sink`: the agent it stands in, the operator's
//! facts about the registry and the proxies, and what the process still waits for.

mod brakes;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use muster_catalog::{
    Address, Check, CheckId, Instance, InstanceId, Meta, Name, Status, Text,
    port::{BoxFuture, Sink, Source},
};
use serde::Serialize;

pub use brakes::{BrakeDecision, BrakeKind, BrakeListing, Brakes, HeldBrake, HeldItem};

/// Where the answers come from and where the writes go.
#[derive(Clone)]
pub struct Ports {
    /// The catalog.
    pub source: Arc<dyn Source>,
    /// The registry.
    pub sink: Arc<dyn Sink>,
    /// The agent on this host.
    pub local: Arc<dyn LocalAgent>,
    /// The registry's and the proxies' state.
    pub operator: Arc<dyn Operator>,
    /// What is held back.
    pub brakes: Arc<dyn Brakes>,
    /// What the process still waits for.
    pub readiness: Arc<dyn Readiness>,
    /// The metrics as text.
    pub metrics: RenderMetrics,
}

/// Who the agent is that answers here.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The node's name.
    pub name: Name,
    /// The agent's id: random, kept on its disk.
    pub id: Text,
    /// The node's address.
    pub address: Address,
    /// The datacenter it stands in.
    pub datacenter: Text,
    /// The version of the program.
    pub version: Text,
    /// The node's free data.
    pub meta: Meta,
}

/// The agent on this host: the truth for its own node, whether or not the registry can be reached.
pub trait LocalAgent: Send + Sync + 'static {
    /// Who it is.
    fn identity(&self) -> Arc<Identity>;

    /// Every instance it has, in order of their ids.
    fn instances(&self) -> Vec<Arc<Instance>>;

    /// Every check it has with its last output, in order of their ids.
    fn checks(&self) -> Vec<Arc<Check>>;

    /// Takes up an instance with its checks, or changes them; returns once it is kept on disk.
    fn register_service(&self, registration: ServiceRegistration) -> BoxFuture<'_, Result<(), LocalError>>;

    /// Drops an instance and its checks.
    fn deregister_service(&self, id: InstanceId) -> BoxFuture<'_, Result<(), LocalError>>;

    /// Takes up a check, or changes it.
    fn register_check(&self, check: CheckDefinition) -> BoxFuture<'_, Result<(), LocalError>>;

    /// Drops a check.
    fn deregister_check(&self, id: CheckId) -> BoxFuture<'_, Result<(), LocalError>>;

    /// Takes a result for a TTL check and starts its term anew.
    fn update_ttl(&self, id: CheckId, status: Status, output: Text) -> BoxFuture<'_, Result<(), LocalError>>;

    /// Takes an instance out with a reason, or back in with `None`.
    fn set_maintenance(&self, id: InstanceId, reason: Option<Text>) -> BoxFuture<'_, Result<(), LocalError>>;
}

/// Why the agent did not do what it was asked. Each text says what to do next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LocalError {
    /// There is no such instance or check.
    #[error("{0}")]
    NotFound(String),
    /// The definition breaks a rule.
    #[error("{0}")]
    Invalid(String),
    /// A file defines it, and files win over this API.
    #[error("{0}")]
    OwnedByFile(String),
    /// It could not be kept on disk, so it was not taken up.
    #[error("{0}")]
    Storage(String),
}

/// An instance with its checks, as `agent/service/register` takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceRegistration {
    /// The instance.
    pub instance: Instance,
    /// Its checks; ids and names are filled in.
    pub checks: Vec<CheckDefinition>,
    /// Whether checks of the instance that are not named here go.
    pub replace_existing_checks: bool,
}

/// A check as a client defines it. Plain data: the agent turns it into its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckDefinition {
    /// Unique on the node.
    pub id: CheckId,
    /// For people.
    pub name: Text,
    /// The instance it speaks for; `None` speaks for the node.
    pub instance: Option<InstanceId>,
    /// What the operator wrote about it.
    pub notes: Text,
    /// The status before the first result; the agent's default when absent.
    pub initial: Option<Status>,
    /// How it probes.
    pub probe: Probe,
    /// How often; zero for TTL checks.
    pub interval: Duration,
    /// How long one probe may take; zero for TTL checks.
    pub timeout: Duration,
    /// Results in a row that make it passing; at least 1.
    pub rise: u32,
    /// Failures in a row that make it critical; at least 1.
    pub fall: u32,
    /// Failures in a row that make it warning; at least 1 and at most `fall`.
    pub failures_before_warning: u32,
    /// Whether recoveries are held back while it flaps; the agent's default when absent. Never set for an alias.
    pub flap_damping: Option<bool>,
    /// How long it may be critical before its instance is deregistered.
    pub deregister_critical_after: Option<Duration>,
    /// How many bytes of output are kept, where the client asks for fewer than the agent keeps.
    pub output_limit: Option<u32>,
}

/// How a check probes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// A request; the status code decides.
    Http {
        /// Where to.
        url: Text,
        /// `GET` unless the client chose another.
        method: Text,
        /// Headers to send; `Host` is one of them.
        headers: BTreeMap<Text, Vec<Text>>,
        /// What to send.
        body: Text,
        /// Whether a redirect is the answer, rather than followed.
        disable_redirects: bool,
        /// How `https` is verified.
        tls: Tls,
        /// Who has to answer.
        identity: Option<ExpectedIdentity>,
    },
    /// A conversation with a port.
    Socket {
        /// Host and port.
        address: Text,
        /// What is said.
        talk: Talk,
        /// How TLS is verified; `None` speaks without.
        tls: Option<Tls>,
        /// Who has to answer.
        identity: Option<ExpectedIdentity>,
    },
    /// The checks of another service of a node, or of the node alone.
    Alias {
        /// The service's id.
        service: Option<InstanceId>,
        /// The node; this one when absent.
        node: Option<Text>,
    },
    /// A unit of the service manager.
    Unit {
        /// Its full name.
        name: Text,
    },
    /// The service reports by itself, at least this often.
    Ttl {
        /// The longest silence.
        ttl: Duration,
    },
}

/// What is said to a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Talk {
    /// Nothing; that the connection opens is enough.
    Tcp,
    /// A datagram, which must be answered.
    Udp {
        /// What is sent.
        send: Text,
        /// What the answer must hold.
        expect: Text,
    },
    /// `grpc.health.v1`.
    Grpc {
        /// The service asked for; empty asks for the server.
        service: Text,
    },
    /// An HTTP/2 PING.
    H2Ping,
    /// Redis' PING.
    Redis,
    /// PostgreSQL's start of a session.
    Postgres,
    /// MySQL's greeting.
    Mysql,
}

/// How a server's certificate is verified.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// The name to ask for; the target's host when empty.
    pub server_name: Text,
    /// Whether any certificate will do.
    pub skip_verify: bool,
}

/// Who has to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExpectedIdentity {
    /// A header of the answer with exactly this value.
    Header {
        /// Its name.
        name: Text,
        /// Its value.
        value: Text,
    },
    /// A DNS name or URI of the server's certificate.
    Certificate(Text),
}

/// What an operator asks of the registry and of the proxies, as this agent knows it.
pub trait Operator: Send + Sync + 'static {
    /// The address of the registry's leader.
    fn leader(&self) -> BoxFuture<'_, Option<String>>;

    /// The addresses of the registry's members.
    fn peers(&self) -> BoxFuture<'_, Vec<String>>;

    /// The registry's members.
    fn members(&self) -> BoxFuture<'_, Vec<MemberInfo>>;

    /// Every proxy that is connected to this agent, with what it took and what it refused.
    fn xds_proxies(&self) -> Vec<ProxyStatus>;
}

/// A member of the registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct MemberInfo {
    /// Its name, or its id where it has none.
    pub name: String,
    /// Where members reach it, with the port.
    pub address: String,
    /// What it does.
    pub role: MemberRole,
    /// Whether this agent can reach it.
    pub alive: bool,
}

/// What a member of the registry does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberRole {
    /// It leads.
    Leader,
    /// It votes.
    Voter,
    /// It learns, and does not vote yet.
    Learner,
}

/// A connected proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ProxyStatus {
    /// The node id it gave.
    pub id: String,
    /// The cluster it gave; may be empty.
    pub cluster: String,
    /// Where it connected from.
    pub address: String,
    /// `sotw` or `delta`.
    pub protocol: String,
    /// Each kind of resource it subscribed to.
    pub resources: Vec<ProxyResources>,
}

/// How a proxy stands with one kind of resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ProxyResources {
    /// The kind, as its type URL.
    pub type_url: String,
    /// The version that it accepted last (ACK).
    pub acknowledged: Option<String>,
    /// What it refused last and why (NACK); `None` once it accepted a later one.
    pub refused: Option<ProxyRefusal>,
}

/// What a proxy refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ProxyRefusal {
    /// The version that it refused.
    pub version: String,
    /// Its words.
    pub error: String,
}

/// What the process still waits for before it is ready.
pub trait Readiness: Send + Sync + 'static {
    /// Empty once ready; else each part that is not, with the reason.
    fn pending(&self) -> Vec<Pending>;

    /// What an operator should look at, although the process is ready.
    fn notices(&self) -> Vec<Pending> {
        Vec::new()
    }
}

/// A part that is not ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Pending {
    /// The part, for example `replica`.
    pub part: String,
    /// What it waits for.
    pub reason: String,
}

/// Renders every metric of the process as Prometheus text.
pub type RenderMetrics = Arc<dyn Fn() -> String + Send + Sync>;
