//! The written form: what stands in a file, before anything is believed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{CheckDefinition, ProxyText, ServiceDefinition, Thresholds, TrafficText, format_duration};
use muster_catalog::{Status, Text};

mod port_number;

/// A service as written.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServiceText {
    /// The service's name: a DNS label.
    pub name: String,
    /// Unique on the node; the name when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Tags.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Its own address; the node's when absent or empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Further addresses by label.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tagged_addresses: BTreeMap<String, AddressText>,
    /// The only port.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[serde(deserialize_with = "port_number::one")]
    pub port: Option<u16>,
    /// Several named ports, instead of `port`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[serde(deserialize_with = "port_number::named")]
    pub ports: BTreeMap<String, u16>,
    /// Which of several ports a client gets who names none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_port: Option<String>,
    /// Free data.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<String, String>,
    /// How much traffic it takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<WeightsText>,
    /// Where it stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locality: Option<LocalityText>,
    /// Whether tags edited in the catalog survive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enable_tag_override: Option<bool>,
    /// What it carries, when it is a proxy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<ProxyText>,
    /// How it wants to be called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic: Option<TrafficText>,
    /// Its checks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckText>,
}

/// An address as written.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddressText {
    /// The address.
    pub address: String,
    /// The port, 0 when the default port is meant.
    #[serde(default)]
    pub port: u16,
}

/// Weights as written.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WeightsText {
    /// 1 to 65535.
    pub passing: u16,
    /// 0 to 65535.
    pub warning: u16,
}

impl Default for WeightsText {
    fn default() -> Self {
        Self { passing: 1, warning: 1 }
    }
}

/// A locality as written.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LocalityText {
    /// For example `eu-west`.
    pub region: String,
    /// For example `eu-west-1a`.
    pub zone: String,
}

/// A check as written. Exactly one of the keys that say what it does is set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckText {
    /// Unique on the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notes: Option<String>,
    /// A URL to ask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// A `host:port` to connect to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<String>,
    /// A `host:port` that answers datagrams.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub udp: Option<String>,
    /// A `host:port` or `host:port/service` that serves `grpc.health.v1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc: Option<String>,
    /// A `host:port` that speaks HTTP/2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub h2ping: Option<String>,
    /// A `host:port` of a Redis.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redis: Option<String>,
    /// A `host:port` of a PostgreSQL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub postgres: Option<String>,
    /// A `host:port` of a MySQL or MariaDB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mysql: Option<String>,
    /// A systemd unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub systemd: Option<String>,
    /// A program and its arguments.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// The id of another service of this node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alias_service: Option<String>,
    /// True: the checks of the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alias_node: Option<bool>,
    /// How long an update by the API holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
    /// From start to start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<String>,
    /// For one probe.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// Good results that end critical.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rise: Option<u32>,
    /// Bad results that end passing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fall: Option<u32>,
    /// Critical results after which a passing check warns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warn_after: Option<u32>,
    /// Whether recoveries are held back while it flaps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flap_damping: Option<bool>,
    /// More falls than this in quick succession are flapping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flap_failures: Option<u32>,
    /// How fast a fall is forgotten.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flap_half_life: Option<String>,
    /// The longest that a recovery is held back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flap_max_hold: Option<String>,
    /// The status until the first result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// HTTP method.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// HTTP headers.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// HTTP request body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// Whether redirects are followed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub follow_redirects: Option<bool>,
    /// The datagram that is sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub send: Option<String>,
    /// What its answer must hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expect: Option<String>,
    /// Whether it speaks TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<bool>,
    /// A PEM file of roots, instead of the host's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<String>,
    /// The name asked for and verified.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_server_name: Option<String>,
    /// Whether the server's certificate goes unverified.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_skip_verify: Option<bool>,
    /// Who has to answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expect_identity: Option<IdentityText>,
    /// Whether it may go to link-local and metadata addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_link_local: Option<bool>,
    /// How long it may be critical before its service leaves the catalog.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deregister_critical_after: Option<String>,
}

/// Who has to answer, as written: a header with its value, or a name in the certificate.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IdentityText {
    /// The header's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// The header's value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// A DNS name or URI of the certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
}

impl From<&ServiceDefinition> for ServiceText {
    fn from(definition: &ServiceDefinition) -> Self {
        let text = |value: &Text| value.to_string();
        let pair = |(key, value): (&Text, &Text)| (key.to_string(), value.to_string());
        let address = |(label, at): (&Text, &muster_catalog::ServiceAddress)| {
            (label.to_string(), AddressText { address: at.address.to_string(), port: at.port })
        };
        Self {
            name: definition.name.as_str().to_owned(),
            id: Some(definition.id.to_string()),
            tags: definition.tags.iter().map(text).collect(),
            address: definition.address.as_ref().map(ToString::to_string),
            tagged_addresses: definition.tagged_addresses.iter().map(address).collect(),
            port: None,
            ports: definition.ports.iter().map(|port| (port.name.to_string(), port.number)).collect(),
            default_port: definition.ports.first().map(|port| port.name.to_string()),
            meta: definition.meta.iter().map(pair).collect(),
            weights: Some(WeightsText { passing: definition.weights.passing, warning: definition.weights.warning }),
            locality: definition
                .locality
                .as_ref()
                .map(|at| LocalityText { region: at.region.to_string(), zone: at.zone.to_string() }),
            enable_tag_override: Some(definition.enable_tag_override),
            proxy: definition.proxy.as_deref().map(ProxyText::from),
            traffic: definition.traffic.as_deref().map(TrafficText::from),
            checks: definition.checks.iter().map(CheckText::from).collect(),
        }
    }
}

impl From<&CheckDefinition> for CheckText {
    fn from(definition: &CheckDefinition) -> Self {
        let Thresholds { rise, fall, warn_after } = definition.thresholds;
        let mut text = Self {
            id: Some(definition.id.to_string()),
            name: Some(definition.name.to_string()),
            notes: (!definition.notes.is_empty()).then(|| definition.notes.to_string()),
            status: (definition.initial != Status::Critical).then(|| definition.initial.to_string()),
            deregister_critical_after: definition.deregister_critical_after.map(format_duration),
            ..Self::default()
        };
        text.write_probe(&definition.probe);
        text.write_flaps(definition);
        if definition.probe.is_told() {
            return text;
        }
        text.interval = Some(format_duration(definition.interval));
        text.timeout = Some(format_duration(definition.timeout));
        (text.rise, text.fall, text.warn_after) = (Some(rise), Some(fall), warn_after);
        text
    }
}
