//! What the operator sets, and why it may be refused.

use std::{net::IpAddr, time::Duration};

use muster_catalog::NameError;

/// The shortest UDP answer that every client takes (RFC 1035 §2.3.4).
pub(crate) const MIN_UDP_SIZE: u16 = 512;
/// The largest UDP answer worth sending: fragments begin far below it, and it is what queries are received into.
pub(crate) const MAX_UDP_SIZE: u16 = 4096;
/// The largest UDP answer to a client on this host: what loopback carries in one piece, whose MTU is 65,536.
pub(crate) const MAX_LOOPBACK_SIZE: u16 = 65_507;
/// A week: what is cached longer outlives every repair (and RFC 8767 §4 caps caches there).
const MAX_TTL: Duration = Duration::from_secs(7 * 24 * 3600);
/// More zones than anyone has names for the same data; every question is matched against each.
const MAX_ZONES: usize = 16;
/// The glue of the one name server must fit in every answer that carries it.
const MAX_NS_ADDRESSES: usize = 8;
/// Every connection costs a descriptor and a task; beyond this an agent is not the right server.
const MAX_TCP_CONNECTIONS: usize = 65_536;
/// Longer than any client keeps a silent connection, shorter than for ever.
const MAX_TCP_IDLE: Duration = Duration::from_secs(3600);

/// How the catalog is served as DNS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsConfig {
    /// This datacenter's name, as it may stand in names.
    pub datacenter: String,
    /// The zone that names stand in. Default `mesh.internal`.
    pub zone: String,
    /// Further zones with the same names, for example `consul`. Default none.
    pub alt_zones: Vec<String>,
    /// How long clients may keep a node's address. Default 0.
    pub node_ttl: Duration,
    /// How long clients may keep a service's instances. Default 0.
    pub service_ttl: Duration,
    /// How long clients may keep "there is none" (the SOA's minimum). Default 5 s.
    pub negative_ttl: Duration,
    /// The largest UDP answer to another host, whatever larger size its client offers. Default 1232, 512 to 4096.
    pub max_udp_size: u16,
    /// The most addresses or SRV records in one answer; 0 sets no limit. Default 0.
    pub answer_limit: usize,
    /// Where `ns.<zone>` is, for resolvers that ask a delegation's name server. Default none.
    pub ns_addresses: Vec<IpAddr>,
    /// How many TCP connections may be open at once, over all listeners. Default 1024.
    pub tcp_connections: usize,
    /// How long a TCP connection may be silent. Default 10 s.
    pub tcp_idle_timeout: Duration,
}

impl Default for DnsConfig {
    fn default() -> Self {
        Self {
            datacenter: "dc1".to_owned(),
            zone: "mesh.internal".to_owned(),
            alt_zones: Vec::new(),
            node_ttl: Duration::ZERO,
            service_ttl: Duration::ZERO,
            negative_ttl: Duration::from_secs(5),
            // What passes every path of IPv6's least MTU unfragmented (the DNS flag day of 2020).
            max_udp_size: 1232,
            answer_limit: 0,
            ns_addresses: Vec::new(),
            tcp_connections: 1024,
            tcp_idle_timeout: Duration::from_secs(10),
        }
    }
}

/// Why a [`DnsConfig`] was refused. Each message names the field, the value and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A zone or datacenter that is no DNS name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A datacenter whose name has a meaning of its own in names.
    #[error("datacenter {value:?} is a word of the name forms (service, node, addr, dc, ns): choose another name")]
    ReservedDatacenter {
        /// What was given.
        value: String,
    },
    /// A zone that does not leave room for the names in it.
    #[error("dns.zone {zone:?} is too long for names such as node.<datacenter>.{zone}: choose a shorter one")]
    ZoneTooLong {
        /// What was given.
        zone: String,
    },
    /// One zone given twice.
    #[error("dns.alt_zones has {zone:?}, which is given already: remove one of them")]
    DuplicateZone {
        /// What was given.
        zone: String,
    },
    /// A value beyond its limits.
    #[error("{field} is {value}: give {remedy}")]
    OutOfRange {
        /// The field.
        field: &'static str,
        /// What was given.
        value: String,
        /// What is permitted.
        remedy: String,
    },
}

impl DnsConfig {
    /// Checks every number; names are checked where zones are made of them.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        check_ttl("dns.node_ttl", self.node_ttl)?;
        check_ttl("dns.service_ttl", self.service_ttl)?;
        check_ttl("dns.negative_ttl", self.negative_ttl)?;
        let sizes = MIN_UDP_SIZE..=MAX_UDP_SIZE;
        let remedy = || format!("{MIN_UDP_SIZE} to {MAX_UDP_SIZE}; 1232 passes everywhere unfragmented");
        check("dns.max_udp_size", sizes.contains(&self.max_udp_size), self.max_udp_size, remedy)?;
        let zones = 1 + self.alt_zones.len();
        check("dns.alt_zones", zones <= MAX_ZONES, zones - 1, || format!("at most {} of them", MAX_ZONES - 1))?;
        let servers = self.ns_addresses.len();
        check("dns.ns_addresses", servers <= MAX_NS_ADDRESSES, servers, || format!("at most {MAX_NS_ADDRESSES}"))?;
        if let Some(ip) = self.ns_addresses.iter().find(|ip| ip.is_unspecified() || ip.is_multicast()) {
            check("dns.ns_addresses", false, ip, || "addresses that clients can reach".to_owned())?;
        }
        let connections = (1..=MAX_TCP_CONNECTIONS).contains(&self.tcp_connections);
        check("dns.tcp_connections", connections, self.tcp_connections, || format!("1 to {MAX_TCP_CONNECTIONS}"))?;
        let idle = !self.tcp_idle_timeout.is_zero() && self.tcp_idle_timeout <= MAX_TCP_IDLE;
        check("dns.tcp_idle_timeout", idle, format!("{:?}", self.tcp_idle_timeout), || {
            format!("more than 0 and at most {MAX_TCP_IDLE:?}")
        })
    }
}

fn check_ttl(field: &'static str, ttl: Duration) -> Result<(), ConfigError> {
    let whole = ttl.subsec_nanos() == 0;
    check(field, whole && ttl <= MAX_TTL, format!("{ttl:?}"), || "whole seconds, at most a week".to_owned())
}

fn check(
    field: &'static str,
    ok: bool,
    value: impl ToString,
    remedy: impl FnOnce() -> String,
) -> Result<(), ConfigError> {
    if ok { Ok(()) } else { Err(ConfigError::OutOfRange { field, value: value.to_string(), remedy: remedy() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_accepted_and_errors_name_field_value_and_remedy() {
        assert_eq!(DnsConfig::default().check(), Ok(()));
        let refused = |change: fn(&mut DnsConfig)| {
            let mut config = DnsConfig::default();
            change(&mut config);
            config.check().unwrap_err().to_string()
        };
        assert_eq!(
            refused(|c| c.max_udp_size = 100),
            "dns.max_udp_size is 100: give 512 to 4096; 1232 passes everywhere unfragmented"
        );
        assert!(refused(|c| c.service_ttl = Duration::from_millis(1500)).contains("dns.service_ttl is 1.5s"));
        assert!(refused(|c| c.node_ttl = Duration::from_secs(u64::MAX)).contains("at most a week"));
        assert!(refused(|c| c.tcp_connections = 0).contains("dns.tcp_connections is 0"));
        assert!(refused(|c| c.tcp_idle_timeout = Duration::ZERO).contains("dns.tcp_idle_timeout is 0ns"));
        assert!(refused(|c| c.ns_addresses = vec!["0.0.0.0".parse().unwrap()]).contains("0.0.0.0"));
        assert!(refused(|c| c.alt_zones = vec!["a".to_owned(); 99]).contains("dns.alt_zones is 99"));
    }
}
