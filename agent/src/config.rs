//! The configuration file: one TOML, one section per room, every key with its default and unit.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use muster_registry::store::EngineKind;
use serde::{Deserialize, Serialize};

mod autopilot;
mod brakes;
mod changes;
mod duration;
mod listen;
mod refusals;
mod rooms;
mod word;

pub use autopilot::AutopilotConfig;
pub use brakes::{MassExpiryConfig, MassRemovalConfig};
pub(crate) use changes::find_changes;
pub(crate) use duration::Seconds;
pub(crate) use listen::parse as parse_listen;
pub(crate) use rooms::{dns_config, http_config, replica_width, xds_config};

use crate::{host, sync::SHORTEST_LEASE};

/// The whole file. Unknown keys are an error that names them.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Who this host is.
    pub node: NodeConfig,
    /// The registry's members, and how this member serves when it is one.
    pub registry: RegistryConfig,
    /// How the agent checks and pushes.
    pub agent: AgentConfig,
    /// What checks may do.
    pub checks: ChecksConfig,
    /// The v1 HTTP API.
    pub http: HttpConfig,
    /// DNS.
    pub dns: DnsConfig,
    /// xDS.
    pub xds: XdsConfig,
    /// What is logged.
    pub log: LogConfig,
}

/// `[node]`: who this host is.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeConfig {
    /// The node's name; the host's name unless given, which must not be `localhost` then.
    pub name: Option<String>,
    /// The address that instances without one of their own are reached at. Default: that of the interface with the
    /// default route, in `dev` 127.0.0.1.
    pub address: Option<String>,
    /// The datacenter's name, one DNS label. Default `dc1`.
    pub datacenter: String,
    /// Free key–value data of the node.
    pub meta: std::collections::BTreeMap<String, String>,
    /// The region the host stands in.
    pub region: Option<String>,
    /// The zone within the region.
    pub zone: Option<String>,
    /// Where identity, registrations, results and the replica are kept. Default `/var/lib/muster`.
    pub data_dir: PathBuf,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            name: None,
            address: None,
            datacenter: "dc1".into(),
            meta: std::collections::BTreeMap::new(),
            region: None,
            zone: None,
            data_dir: "/var/lib/muster".into(),
        }
    }
}

/// `[registry]`: the members, and how this one serves.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistryConfig {
    /// Where this member serves. Default 127.0.0.1:8300.
    #[serde(deserialize_with = "listen::one")]
    pub listen: SocketAddr,
    /// Where a member that runs alone serves `/metrics`, `/livez` and `/readyz`. Default 127.0.0.1:8301.
    #[serde(deserialize_with = "listen::one")]
    pub metrics_listen: SocketAddr,
    /// `host:port` that the other members and the agents reach it at; `listen` unless given.
    pub advertise: Option<String>,
    /// Members as `host:port`: names are resolved again and again. All of them for the first start of a registry; later
    /// some, to find it by. Default `["127.0.0.1:8300"]`.
    pub members: Vec<String>,
    /// What keeps this member's log on disk. Default `raft-log`; `sled` in builds with that feature.
    #[serde(deserialize_with = "word::deserialize")]
    pub log_engine: LogEngine,
    /// How long a node lives without renewal. Default 10s.
    pub lease_ttl: Seconds,
    /// What a node gets on top before it is critical. Default 1s.
    pub lease_grace: Seconds,
    /// When the loss of many nodes at once is held.
    pub mass_expiry: MassExpiryConfig,
    /// The shortest time without a leader before an election. Default 300ms.
    pub election_timeout_min: Seconds,
    /// The longest. Default 600ms.
    pub election_timeout_max: Seconds,
    /// What the leader does about members by itself.
    pub autopilot: AutopilotConfig,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            listen: loopback(8300),
            metrics_listen: loopback(8301),
            advertise: None,
            members: vec!["127.0.0.1:8300".into()],
            log_engine: LogEngine::RaftLog,
            lease_ttl: Seconds(Duration::from_secs(10)),
            lease_grace: Seconds(Duration::from_secs(1)),
            mass_expiry: MassExpiryConfig::default(),
            election_timeout_min: Seconds(Duration::from_millis(300)),
            election_timeout_max: Seconds(Duration::from_millis(600)),
            autopilot: AutopilotConfig::default(),
        }
    }
}

/// The engines of the log by their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogEngine {
    /// Made for this.
    RaftLog,
    /// A database, for those who want it.
    Sled,
}

impl From<LogEngine> for EngineKind {
    fn from(engine: LogEngine) -> Self {
        match engine {
            LogEngine::RaftLog => Self::RaftLog,
            LogEngine::Sled => Self::Sled,
        }
    }
}

/// `[agent]`: definitions, and how the agent stops.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentConfig {
    /// The directory of service definitions, taken up live. Default `/etc/muster/services.d`.
    pub services_dir: PathBuf,
    /// How long a stop may take altogether. Default 10s.
    pub stop_timeout: Seconds,
    /// How long instances stay draining before they are deregistered at a stop; below `stop_timeout`. Default 0s.
    pub drain_time: Seconds,
    /// Whether SIGTERM is a stop for good, which takes this node and its instances out of the catalog, or one before a
    /// start: then they stay for as long as the node's lease runs. SIGINT always leaves, SIGUSR1 always stays.
    /// Default true.
    pub leave_on_terminate: bool,
    /// What this agent holds of the catalog: `scope`, the services that are used here, or `all`. Default `scope`;
    /// with `xds.unregistered = "all"` it is always all.
    #[serde(deserialize_with = "word::deserialize")]
    pub replica: ReplicaScope,
    /// How many services a scope holds at most, 1 to 10000. Default 2000.
    pub replica_services: usize,
    /// How long the instances of a service stay that nobody asked for, at least 10s. Default 1h.
    pub replica_idle: Seconds,
    /// When the removal of many definitions at once is held.
    pub mass_removal: MassRemovalConfig,
}

/// What an agent holds of the catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ReplicaScope {
    /// The services that are used, the own node, and the names of all others.
    Scope,
    /// Everything.
    All,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            services_dir: "/etc/muster/services.d".into(),
            stop_timeout: Seconds(Duration::from_secs(10)),
            drain_time: Seconds(Duration::ZERO),
            leave_on_terminate: true,
            replica: ReplicaScope::Scope,
            replica_services: 2_000,
            replica_idle: Seconds(Duration::from_secs(3_600)),
            mass_removal: MassRemovalConfig::default(),
        }
    }
}

impl AgentConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        // A member takes no wider scope.
        if !(1..=10_000).contains(&self.replica_services) {
            let why = "give 1 to 10000, or hold everything with agent.replica = \"all\"";
            return Err(bad("agent.replica_services", self.replica_services, why));
        }
        if self.replica_idle.0 < Duration::from_secs(10) {
            let value = format!("{:?}", self.replica_idle.0);
            return Err(bad("agent.replica_idle", value, "at least 10s: each first question after it waits"));
        }
        if self.drain_time.0 >= self.stop_timeout.0 {
            let (drain, stop) = (self.drain_time.0, self.stop_timeout.0);
            let why = format!(
                "agent.stop_timeout, {stop:?}, ends a stop before the instances are deregistered: raise it above \
                 agent.drain_time, or drain for a shorter time"
            );
            return Err(bad("agent.drain_time", format!("{drain:?}"), why));
        }
        self.mass_removal.validate()
    }
}

/// `[checks]`: what checks may do.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ChecksConfig {
    /// Whose scripts are run: `off`, or `files` for those of definition files; never the API's. Default `off`.
    #[serde(deserialize_with = "word::deserialize")]
    pub scripts: crate::checks::Scripts,
}

/// `[http]`: the v1 API.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpConfig {
    /// Default 127.0.0.1:8500.
    #[serde(deserialize_with = "listen::one")]
    pub listen: SocketAddr,
    /// How many connections there may be; each blocking read holds one. Default 20000.
    pub max_connections: usize,
    /// Names that clients may call the agent by in `Host`, beside IP addresses, `localhost`, the node's name and names
    /// in the DNS zones; one that begins with a dot stands for all names below it. Default none.
    pub allowed_hosts: Vec<String>,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self { listen: loopback(8500), max_connections: 20_000, allowed_hosts: Vec::new() }
    }
}

/// `[dns]`: names.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct DnsConfig {
    /// One address for UDP and TCP, or a list of up to 16. Default 127.0.0.1:8600.
    #[serde(deserialize_with = "listen::one_or_several")]
    pub listen: Vec<SocketAddr>,
    /// The zone that is answered with authority. Default `mesh.internal`.
    pub zone: String,
    /// More zones with the same answers, for example `consul`.
    pub alt_zones: Vec<String>,
    /// Time to live of node answers. Default 0s.
    pub node_ttl: Seconds,
    /// Time to live of service answers. Default 0s.
    pub service_ttl: Seconds,
    /// Time to live of negative answers. Default 5s.
    pub negative_ttl: Seconds,
    /// The largest UDP answer in bytes, 512 to 4096. Default 1232.
    pub max_udp_size: u16,
    /// The most addresses or SRV records in one answer; 0 is no limit. Default 0.
    pub answer_limit: usize,
    /// Where `ns.<zone>` is, if the zone is delegated to this server. Default none.
    pub ns_addresses: Vec<IpAddr>,
    /// How many TCP connections may be open at once. Default 1024.
    pub tcp_connections: usize,
    /// How long a TCP connection may be silent. Default 10s.
    pub tcp_idle_timeout: Seconds,
}

/// Each address costs two sockets; a host with more addresses than this listens on a wildcard.
const MAX_DNS_LISTENERS: usize = 16;

impl DnsConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        let shown = || format!("{:?}", self.listen);
        if !(1..=MAX_DNS_LISTENERS).contains(&self.listen.len()) {
            return Err(bad("dns.listen", shown(), format!("give one address or a list of 1 to {MAX_DNS_LISTENERS}")));
        }
        let mut seen = std::collections::BTreeSet::new();
        match self.listen.iter().find(|address| address.port() != 0 && !seen.insert(**address)) {
            Some(twice) => Err(bad("dns.listen", shown(), format!("{twice} is there twice: leave one out"))),
            None => Ok(()),
        }
    }
}

impl Default for DnsConfig {
    fn default() -> Self {
        Self {
            listen: vec![loopback(8600)],
            zone: "mesh.internal".into(),
            alt_zones: Vec::new(),
            node_ttl: Seconds(Duration::ZERO),
            service_ttl: Seconds(Duration::ZERO),
            negative_ttl: Seconds(Duration::from_secs(5)),
            max_udp_size: 1232,
            answer_limit: 0,
            ns_addresses: Vec::new(),
            tcp_connections: 1024,
            tcp_idle_timeout: Seconds(Duration::from_secs(10)),
        }
    }
}

/// `[xds]`: Envoy and gRPC.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct XdsConfig {
    /// Default 127.0.0.1:8502.
    #[serde(deserialize_with = "listen::one")]
    pub listen: SocketAddr,
    /// What an Envoy gets whose node id is no registered proxy: `none` or `all`. Default `none`, in `dev` `all`.
    #[serde(deserialize_with = "word::deserialize")]
    pub unregistered: Unregistered,
    /// The HTTP listener that such an Envoy opens. Default 127.0.0.1:10000.
    #[serde(deserialize_with = "listen::one")]
    pub http_listener: SocketAddr,
    /// Below this percentage of healthy endpoints Envoy routes to unhealthy ones too. Default 0: never.
    pub healthy_panic_threshold: f64,
    /// How long Envoy tries to connect to an endpoint. Default 1s.
    pub connect_timeout: Seconds,
}

impl Default for XdsConfig {
    fn default() -> Self {
        Self {
            listen: loopback(8502),
            unregistered: Unregistered::None,
            http_listener: loopback(10_000),
            healthy_panic_threshold: 0.0,
            connect_timeout: Seconds(Duration::from_secs(1)),
        }
    }
}

/// What a proxy without a registration gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unregistered {
    /// Nothing.
    None,
    /// Every service.
    All,
}

/// `[log]`: what is logged.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// A filter such as `info` or `info,muster_dns=debug`. Default `info`.
    pub filter: String,
    /// `text` or `json`. Default `text`.
    #[serde(deserialize_with = "word::deserialize")]
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { filter: "info".into(), format: LogFormat::Text }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Why a configuration is not one.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read {path}: {source}; give --config the path of a readable file")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// It is not TOML, or has a key or value that is none of ours.
    #[error("{path}: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, key and value.
        source: Box<toml::de::Error>,
    },
    /// A room's setting that cannot be; its message names the key.
    #[error("{0}")]
    Room(String),
    /// A value that cannot be.
    #[error("{key} = {value}: {why}")]
    Value {
        /// The key with its section.
        key: &'static str,
        /// What was given.
        value: String,
        /// What is wrong and what to do.
        why: String,
    },
}

impl Config {
    /// Reads and validates a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let read = std::fs::read_to_string(path);
        let text = read.map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let config: Self = toml::from_str(&text)
            .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })?;
        config.validate()?;
        Ok(config)
    }

    /// Checks what types cannot: called before anything is bound.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.node_name()?;
        self.node_address()?;
        let datacenter = muster_catalog::Name::label("node.datacenter", &self.node.datacenter);
        datacenter.map_err(|why| bad("node.datacenter", &self.node.datacenter, why))?;
        self.node.validate_row()?;
        refusals::check_directory("node.data_dir", &self.node.data_dir)?;
        refusals::check_directory("agent.services_dir", &self.agent.services_dir)?;
        let registry = &self.registry;
        if registry.members.is_empty() {
            return Err(bad("registry.members", "[]", "name at least one member as host:port"));
        }
        for member in &registry.members {
            refusals::check_host_port("registry.members", member)?;
        }
        if let Some(advertise) = &registry.advertise {
            refusals::check_host_port("registry.advertise", advertise)?;
        }
        let engine = EngineKind::from(registry.log_engine);
        engine.check_built().map_err(|why| bad("registry.log_engine", engine, why))?;
        let (min, max) = (registry.election_timeout_min.0, registry.election_timeout_max.0);
        if min < Duration::from_millis(50) || max <= min {
            let value = format!("{min:?}..{max:?}");
            return Err(bad("registry.election_timeout_min", value, "at least 50ms, and below election_timeout_max"));
        }
        if registry.lease_ttl.0 < SHORTEST_LEASE {
            return Err(bad("registry.lease_ttl", format!("{:?}", registry.lease_ttl.0), "at least 300ms"));
        }
        self.agent.validate()?;
        registry.autopilot.validate()?;
        registry.mass_expiry.validate()?;
        self.dns.validate()?;
        self.refuse_off_loopback()?;
        refusals::check_shared(self)?;
        crate::log::parse_filter(&self.log.filter).map_err(|why| bad("log.filter", &self.log.filter, why))?;
        rooms::check(self).map_err(ConfigError::Room)
    }

    /// Nothing proves who it is yet, so nothing may be reached from elsewhere.
    fn refuse_off_loopback(&self) -> Result<(), ConfigError> {
        let listeners = [
            ("registry.listen", self.registry.listen),
            ("registry.metrics_listen", self.registry.metrics_listen),
            ("http.listen", self.http.listen),
            ("xds.listen", self.xds.listen),
        ];
        let dns = self.dns.listen.iter().map(|address| ("dns.listen", *address));
        match listeners.into_iter().chain(dns).find(|(_, address)| !address.ip().is_loopback()) {
            None => Ok(()),
            Some((key, address)) => Err(bad(
                key,
                address,
                "it is not a loopback address, and nothing proves its identity yet (no mTLS): use 127.0.0.1 or [::1]",
            )),
        }
    }

    /// The node's name.
    pub fn node_name(&self) -> Result<muster_catalog::Name, ConfigError> {
        let given = self.node.name.clone().unwrap_or_else(host::name);
        let usable = host::refuse_name(&given).map_err(str::to_owned);
        let name = usable.and_then(|()| muster_catalog::Name::host("node.name", &given).map_err(|why| why.to_string()));
        name.map_err(|why| {
            let whose = if self.node.name.is_some() { "" } else { " (the host's name, as none is set)" };
            bad("node.name", format!("{given:?}{whose}"), format!("{why}: set a name of its own, for example web-17"))
        })
    }

    /// The node's address, if one is set.
    pub fn node_address(&self) -> Result<Option<muster_catalog::Address>, ConfigError> {
        let Some(given) = &self.node.address else { return Ok(None) };
        let address = muster_catalog::Address::parse(given);
        let refused = || bad("node.address", given, "give an IP address or a host name that others reach");
        address.map(Some).ok_or_else(refused)
    }
}

/// A region's or zone's name in bytes: as much as a tag has.
const MAX_PLACE_BYTES: usize = 255;
/// Of all of a node's meta, in bytes: some hundred pairs. A push has 2 MiB for it and all that is pushed with it.
const MAX_NODE_META_BYTES: usize = 64 * 1024;

impl NodeConfig {
    /// The node's row goes with every push, so it has to fit beside the services'.
    fn validate_row(&self) -> Result<(), ConfigError> {
        for (key, place) in [("node.region", &self.region), ("node.zone", &self.zone)] {
            let bytes = place.as_deref().map_or(0, str::len);
            if bytes > MAX_PLACE_BYTES {
                return Err(bad(key, format!("{bytes} bytes"), format!("at most {MAX_PLACE_BYTES} bytes")));
            }
        }
        let bytes: usize = self.meta.iter().map(|(key, value)| key.len() + value.len()).sum();
        if bytes > MAX_NODE_META_BYTES {
            return Err(bad(
                "node.meta",
                format!("{bytes} bytes"),
                format!("at most {MAX_NODE_META_BYTES} bytes together"),
            ));
        }
        Ok(())
    }
}

fn bad(key: &'static str, value: impl ToString, why: impl ToString) -> ConfigError {
    ConfigError::Value { key, value: value.to_string(), why: why.to_string() }
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<(), String> {
        let config: Config = toml::from_str(text).map_err(|error| error.to_string())?;
        config.validate().map_err(|error| error.to_string())
    }

    #[test]
    fn a_mistake_names_the_key_the_value_and_the_remedy() {
        for (text, expected) in [
            ("[node]\nnmae = \"a\"", "unknown field `nmae`"),
            ("[node]\nname = \"a_b\"", "node.name = \"a_b\": node.name \"a_b\" has '_' at position 2"),
            ("[node]\nname = \"localhost\"", "node.name = \"localhost\": every host has this name"),
            ("[node]\nname = \"\"", "node.name = \"\": this host has no name"),
            (&format!("[node]\nname = \"a\"\nzone = \"{}\"", "z".repeat(256)), "node.zone = 256 bytes: at most 255"),
            (&format!("[node]\nname = \"a\"\nmeta.a = \"{}\"", "m".repeat(65_536)), "node.meta = 65537 bytes: at most"),
            ("[dns]\nlisten = []", "dns.listen = []: give one address or a list"),
            ("[dns]\nlisten = [\"127.0.0.1:53\", \"127.0.0.1:53\"]", "127.0.0.1:53 is there twice"),
            ("[dns]\nlisten = [\"127.0.0.1:53\", \"10.0.0.1:53\"]", "dns.listen = 10.0.0.1:53: it is not a loopback"),
            ("[dns]\nlisten = \"everywhere\"", "give ip:port, for example \"127.0.0.1:53\", or a list of them"),
            ("[log]\nfilter = \"muster=loud\"", "log.filter = muster=loud: "),
            ("[node]\naddress = \"0.0.0.0\"", "node.address = 0.0.0.0: give an IP address"),
            ("[registry]\nmembers = [\"one\"]", "registry.members = one: write it as host:port"),
            ("[registry]\nlease_ttl = \"soon\"", "soon"),
            (
                "[agent]\nstop_timeout = \"5s\"\ndrain_time = \"5s\"",
                "agent.drain_time = 5s: agent.stop_timeout, 5s, ends a stop",
            ),
            ("[agent]\nreplica = \"some\"", "unknown variant `some`, expected `scope` or `all`"),
            ("[agent]\nreplica_services = 0", "agent.replica_services = 0: give 1 to 10000"),
            ("[agent]\nreplica_idle = \"1s\"", "agent.replica_idle = 1s: at least 10s"),
            ("[xds]\nhealthy_panic_threshold = 101.0", "xds.healthy_panic_threshold is 101"),
            ("[dns]\nmax_udp_size = 100", "dns.max_udp_size"),
            ("[registry.autopilot]\nlast_contact = \"10ms\"", "registry.autopilot.last_contact = 10ms: at least 200ms"),
            ("[registry.autopilot]\ndead_after = \"1s\"", "registry.autopilot.dead_after = 1s: at least 5s"),
            ("[registry.autopilot]\nmin_voters = 8", "registry.autopilot.min_voters = 8: 1 to 7"),
            ("[http]\nlisten = \"0.0.0.0:8500\"", "http.listen = 0.0.0.0:8500: it is not a loopback address"),
            ("[registry.mass_expiry]\npercent = 0", "registry.mass_expiry.percent = 0: it is a share in percent"),
            ("[registry.mass_expiry]\nhold = \"2days\"", "registry.mass_expiry.hold = 172800s: write at most 24h"),
            ("[agent.mass_removal]\nall_of = 0", "agent.mass_removal.all_of = 0: every single loss would be held"),
            ("[registry]\nlog_engine = \"rocks\"", "unknown variant `rocks`, expected `raft-log` or `sled`"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text:?} gave {error:?}");
        }
        assert_eq!(parse("[node]\nname = \"a\"\n[dns]\nalt_zones = [\"consul\"]"), Ok(()));
        assert_eq!(parse("[dns]\nlisten = [\"127.0.0.1:53\", \"[::1]:53\"]\n[node]\nname = \"a\""), Ok(()));
        assert_eq!(parse("[checks]\nscripts = \"files\""), Ok(()));
        assert_eq!(parse("[registry]\nmass_expiry.hold = \"5s\"\n[agent]\nmass_removal.percent = 100"), Ok(()));
        assert!(parse("[checks]\nscripts = \"api\"").unwrap_err().contains("unknown variant `api`"));
    }
    #[test]
    fn an_engine_that_was_left_out_of_the_build_is_refused() {
        assert_eq!(parse("[registry]\nlog_engine = \"raft-log\""), Ok(()));
        let parsed = parse("[registry]\nlog_engine = \"sled\"");
        if cfg!(feature = "sled") {
            assert_eq!(parsed, Ok(()));
        } else {
            let error = parsed.unwrap_err();
            assert!(error.starts_with("registry.log_engine = sled: this build has no log engine sled"), "{error}");
            assert!(error.contains("--features sled"), "{error}");
        }
    }
}
