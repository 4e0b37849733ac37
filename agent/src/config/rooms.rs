//! Each room's own configuration, made from the file's section: once to check it, once to start the room.

use muster_catalog::Name;
use muster_dns::{DnsConfig, Zones};
use muster_http::HttpConfig;
use muster_xds::XdsConfig;

use super::{Config, ReplicaScope, Unregistered};
use crate::replica::Width;

/// What DNS is started with.
pub(crate) fn dns_config(config: &Config) -> DnsConfig {
    DnsConfig {
        datacenter: config.node.datacenter.clone(),
        zone: config.dns.zone.clone(),
        alt_zones: config.dns.alt_zones.clone(),
        node_ttl: config.dns.node_ttl.0,
        service_ttl: config.dns.service_ttl.0,
        negative_ttl: config.dns.negative_ttl.0,
        max_udp_size: config.dns.max_udp_size,
        answer_limit: config.dns.answer_limit,
        ns_addresses: config.dns.ns_addresses.clone(),
        tcp_connections: config.dns.tcp_connections,
        tcp_idle_timeout: config.dns.tcp_idle_timeout.0,
    }
}

/// What HTTP is started with.
pub(crate) fn http_config(config: &Config) -> HttpConfig {
    let zones = std::iter::once(&config.dns.zone).chain(&config.dns.alt_zones).map(|zone| format!(".{zone}"));
    // A name that cannot be had is refused by who starts the agent.
    let node = config.node_name().ok().map(|name| name.as_str().to_owned());
    HttpConfig {
        max_connections: config.http.max_connections,
        allowed_hosts: config.http.allowed_hosts.iter().cloned().chain(zones).chain(node).collect(),
        ..HttpConfig::new(config.node.datacenter.clone())
    }
}

/// What xDS is started with.
pub(crate) fn xds_config(config: &Config) -> XdsConfig {
    let zones = std::iter::once(&config.dns.zone).chain(&config.dns.alt_zones);
    XdsConfig {
        zones: zones.map(|zone| Name::lookup(zone)).collect(),
        datacenter: Name::lookup(&config.node.datacenter),
        // A name that cannot be had is refused by who starts the agent.
        node: config.node_name().ok(),
        unregistered: match config.xds.unregistered {
            Unregistered::All => muster_xds::Unregistered::All,
            Unregistered::None => muster_xds::Unregistered::None,
        },
        http_listener: config.xds.http_listener,
        healthy_panic_threshold: config.xds.healthy_panic_threshold,
        connect_timeout: config.xds.connect_timeout.0,
    }
}

/// How much the agent holds: proxies that are served every service need every set.
pub(crate) fn replica_width(config: &Config) -> Width {
    let agent = &config.agent;
    if agent.replica == ReplicaScope::All || config.xds.unregistered == Unregistered::All {
        return Width::All;
    }
    Width::Scope { services: agent.replica_services, idle: agent.replica_idle.0 }
}

/// Lets each room say what it would refuse at its start.
pub(super) fn check(config: &Config) -> Result<(), String> {
    Zones::new(&dns_config(config)).map_err(|error| error.to_string())?;
    xds_config(config).validate().map_err(|error| error.to_string())
}
