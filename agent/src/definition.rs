//! What an operator writes about a service, validated.
//!
//! One written form ([`ServiceText`], [`CheckText`]) serves TOML files, API registrations and what the agent keeps on
//! disk; [`ServiceText::validate`] is the one door from it to a [`ServiceDefinition`]. [`parse`] adds the TOML file
//! around it and turns the key of an error into a line.

mod check;
mod duration;
mod file;
mod mesh;
mod probe;
mod service;
#[cfg(test)]
mod tests;
mod written;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use muster_catalog::{
    Address, Check, CheckId, CheckKind, Instance, InstanceId, Locality, Meta, Name, Origin, Port, Proxy,
    ServiceAddress, Status, Text, Traffic, Weights,
};

pub(crate) use check::is_reserved;
pub use check::{DEFAULT_FALL, DEFAULT_INTERVAL, DEFAULT_RISE, DEFAULT_SCRIPT_TIMEOUT, DEFAULT_TIMEOUT};
pub use duration::{format_duration, parse_duration};
pub(crate) use file::open_regular;
pub use file::{FileError, MAX_SERVICES_PER_FILE, parse, read, read_regular};
pub use mesh::{OutlierText, ProxyText, TrafficText, UpstreamText};
pub use probe::{ExpectedIdentity, HttpProbe, Probe, SocketProbe, Talk, TlsOptions};
pub use written::{AddressText, CheckText, IdentityText, LocalityText, ServiceText, WeightsText};

/// A service as its operator defined it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceDefinition {
    /// Unique on the node.
    pub id: InstanceId,
    /// What clients ask for.
    pub name: Name,
    /// In the order given, without duplicates.
    pub tags: Vec<Text>,
    /// Its own address; the node's when absent.
    pub address: Option<Address>,
    /// Further addresses by label.
    pub tagged_addresses: BTreeMap<Text, ServiceAddress>,
    /// Named ports, the default first.
    pub ports: Vec<Port>,
    /// Free data.
    pub meta: Meta,
    /// How much traffic it takes.
    pub weights: Weights,
    /// Where it stands; the node's when absent.
    pub locality: Option<Locality>,
    /// Whether tags edited in the catalog survive the agent's sync.
    pub enable_tag_override: bool,
    /// What it carries, when it is a proxy.
    pub proxy: Option<Arc<Proxy>>,
    /// How its service wants to be called.
    pub traffic: Option<Arc<Traffic>>,
    /// Its checks, each with this service's id.
    pub checks: Vec<CheckDefinition>,
}

impl ServiceDefinition {
    /// The catalog's row for it on `node`.
    pub fn to_instance(&self, node: &Name, draining: bool, maintenance: Option<Text>) -> Instance {
        Instance {
            node: node.clone(),
            id: self.id.clone(),
            service: self.name.clone(),
            tags: self.tags.clone(),
            address: self.address.clone(),
            tagged_addresses: self.tagged_addresses.clone(),
            ports: self.ports.clone(),
            meta: self.meta.clone(),
            weights: self.weights,
            locality: self.locality.clone(),
            draining,
            maintenance,
            enable_tag_override: self.enable_tag_override,
            proxy: self.proxy.clone(),
            traffic: self.traffic.clone(),
            origin: Origin::Agent,
        }
    }
}

/// A check as its operator defined it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckDefinition {
    /// Unique on the node.
    pub id: CheckId,
    /// The instance it speaks for; `None` speaks for the node.
    pub instance: Option<InstanceId>,
    /// For people.
    pub name: Text,
    /// What the operator wrote about it.
    pub notes: Text,
    /// What it does.
    pub probe: Probe,
    /// From the start of one probe to the start of the next; zero for TTL and alias checks.
    pub interval: Duration,
    /// How long one probe may take; zero for TTL and alias checks.
    pub timeout: Duration,
    /// How many results turn a status.
    pub thresholds: Thresholds,
    /// How flapping is damped; `None` does not.
    pub flaps: Option<FlapRules>,
    /// The status until the first result.
    pub initial: Status,
    /// How long it may be critical before its service is taken out of the catalog.
    pub deregister_critical_after: Option<Duration>,
}

impl CheckDefinition {
    /// The catalog's row for it on `node`.
    pub fn to_check(&self, node: &Name, status: Status, output: Text) -> Check {
        let (interval, timeout) = match self.probe {
            Probe::Ttl { ttl } => (ttl, Duration::ZERO),
            _ => (self.interval, self.timeout),
        };
        Check {
            node: node.clone(),
            id: self.id.clone(),
            instance: self.instance.clone(),
            name: self.name.clone(),
            status,
            notes: self.notes.clone(),
            output,
            kind: CheckKind { kind: self.probe.kind().into(), target: self.probe.target(), interval, timeout },
            origin: Origin::Agent,
        }
    }
}

/// How many consecutive results turn a check's status. They hold for every result, timeouts too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// Good results that end critical. At least 1.
    pub rise: u32,
    /// Bad results that end passing. At least 1.
    pub fall: u32,
    /// Critical results after which a passing check warns, before `fall` makes it critical.
    pub warn_after: Option<u32>,
}

/// When a check that falls again and again is not believed when it recovers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlapRules {
    /// More falls than this in quick succession are flapping. At least 2.
    pub falls: u32,
    /// A fall counts half after this.
    pub half_life: Duration,
    /// The longest that a recovery is held back after the last fall. Longer than the half-life.
    pub max_hold: Duration,
}

impl Default for FlapRules {
    /// Gentle: four falls within two minutes, as no service that is merely restarted has, and about two minutes for it.
    fn default() -> Self {
        Self { falls: 3, half_life: Duration::from_secs(120), max_hold: Duration::from_secs(300) }
    }
}

impl FlapRules {
    /// Recoveries count again once the penalty has fallen to this.
    pub(crate) fn reuse(&self) -> f64 {
        f64::from(self.falls) / 2.0
    }

    /// The largest penalty: it takes the longest hold to fall from it to [`Self::reuse`].
    pub(crate) fn ceiling(&self) -> f64 {
        self.reuse() * (self.max_hold.as_secs_f64() / self.half_life.as_secs_f64()).exp2()
    }
}

/// A definition that breaks a rule: the key, what is wrong with its value, and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {message}")]
pub struct InvalidDefinition {
    /// Where, as a path of keys: `service.checks[0].interval`.
    pub key: String,
    /// The value, the offence and the remedy.
    pub message: String,
}

impl InvalidDefinition {
    fn new(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { key: key.into(), message: message.into() }
    }
}
