//! The zones that are served, with the names that answers in them need.

use hickory_proto::rr::Name as DnsName;
use muster_catalog::Name;

use crate::{ConfigError, DnsConfig};

/// Words that stand where a datacenter's name may stand.
const RESERVED: [&str; 5] = ["service", "node", "addr", "dc", "ns"];

/// How long each kind of record may be kept, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ttls {
    /// Of a node's address.
    pub node: u32,
    /// Of a service's instances.
    pub service: u32,
    /// Of "there is none".
    pub negative: u32,
}

/// One zone, and names in it that answers are made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone {
    /// Its labels in lower case, left to right.
    pub(crate) labels: Vec<Box<[u8]>>,
    /// Its name.
    pub(crate) apex: DnsName,
    /// `node.<datacenter>.<zone>`.
    pub(crate) nodes: DnsName,
    /// `addr.<datacenter>.<zone>`.
    pub(crate) addresses: DnsName,
    /// `ns.<zone>`.
    pub(crate) ns: DnsName,
    /// `hostmaster.<zone>`.
    pub(crate) hostmaster: DnsName,
}

impl Zone {
    fn new(field: &'static str, text: &str, datacenter: &Name) -> Result<Self, ConfigError> {
        let text = text.strip_suffix('.').unwrap_or(text);
        let name = Name::host(field, text)?;
        let under = |prefix: &str| {
            DnsName::from_ascii(format!("{prefix}{}.", name.as_key()))
                .map_err(|_| ConfigError::ZoneTooLong { zone: text.to_owned() })
        };
        Ok(Self {
            labels: name.as_key().split('.').map(|label| label.as_bytes().into()).collect(),
            apex: under("")?,
            nodes: under(&format!("node.{}.", datacenter.as_key()))?,
            addresses: under(&format!("addr.{}.", datacenter.as_key()))?,
            ns: under("ns.")?,
            hostmaster: under("hostmaster.")?,
        })
    }

    /// The labels left of the zone; `None` for names outside it.
    fn strip<'l, 'n>(&self, labels: &'l [&'n [u8]]) -> Option<&'l [&'n [u8]]> {
        let (left, right) = labels.split_at_checked(labels.len().checked_sub(self.labels.len())?)?;
        let same = right.iter().zip(&self.labels).all(|(label, own)| label.eq_ignore_ascii_case(own));
        same.then_some(left)
    }
}

/// All that names and answers depend on beside the catalog: zones, datacenter, TTLs, the name server's addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zones {
    /// This datacenter, in lower case.
    pub(crate) datacenter: Name,
    /// The longest first, so that a zone within a zone is found.
    zones: Vec<Zone>,
    /// How long records may be kept.
    pub(crate) ttls: Ttls,
    /// Where `ns.<zone>` is.
    pub(crate) ns_addresses: Vec<std::net::IpAddr>,
    /// The most records of an answer; 0 is no limit.
    pub(crate) answer_limit: usize,
}

impl Zones {
    /// Checks a configuration and makes its zones.
    pub fn new(config: &DnsConfig) -> Result<Self, ConfigError> {
        config.check()?;
        let datacenter = Name::label("datacenter", &config.datacenter)?;
        if RESERVED.contains(&datacenter.as_key()) {
            return Err(ConfigError::ReservedDatacenter { value: config.datacenter.clone() });
        }
        let mut zones = vec![Zone::new("dns.zone", &config.zone, &datacenter)?];
        for text in &config.alt_zones {
            let zone = Zone::new("dns.alt_zones", text, &datacenter)?;
            if zones.contains(&zone) {
                return Err(ConfigError::DuplicateZone { zone: text.clone() });
            }
            zones.push(zone);
        }
        zones.sort_by_key(|zone| std::cmp::Reverse(zone.labels.len()));
        let seconds = |ttl: std::time::Duration| u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX);
        let (node, service) = (seconds(config.node_ttl), seconds(config.service_ttl));
        Ok(Self {
            datacenter,
            zones,
            ttls: Ttls { node, service, negative: seconds(config.negative_ttl) },
            ns_addresses: config.ns_addresses.clone(),
            answer_limit: config.answer_limit,
        })
    }

    /// The zone that the name stands in, and the labels left of it.
    pub(crate) fn find<'l, 'n>(&self, labels: &'l [&'n [u8]]) -> Option<(&Zone, &'l [&'n [u8]])> {
        self.zones.iter().find_map(|zone| Some((zone, zone.strip(labels)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: fn(&mut DnsConfig)) -> String {
        let mut config = DnsConfig::default();
        change(&mut config);
        Zones::new(&config).unwrap_err().to_string()
    }

    #[test]
    fn bad_zones_are_refused_with_a_remedy() {
        assert!(refused(|c| c.zone = "mesh_.internal".to_owned()).starts_with("dns.zone \"mesh_.internal\" has '_'"));
        assert!(refused(|c| c.zone = String::new()).starts_with("dns.zone is empty"));
        assert!(refused(|c| c.datacenter = "node".to_owned()).contains("choose another name"));
        assert!(refused(|c| c.alt_zones = vec!["Mesh.Internal.".to_owned()]).contains("given already"));
    }

    #[test]
    fn the_longest_zone_wins() {
        let config = DnsConfig { alt_zones: vec!["internal".to_owned()], ..DnsConfig::default() };
        let zones = Zones::new(&config).unwrap();
        let labels: Vec<&[u8]> = vec![b"web", b"MESH", b"internal"];
        let (zone, left) = zones.find(&labels).unwrap();
        assert_eq!((zone.labels.len(), left.len()), (2, 1));
        assert!(zones.find(&[b"example"]).is_none());
        assert!(zones.find(&[]).is_none());
    }
}
