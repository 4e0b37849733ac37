//! The instances of a service as endpoints: health, weight and locality.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use envoy_types::pb::envoy::config::{
    core::v3::{HealthStatus, Locality},
    endpoint::v3::{ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier},
};
use muster_catalog::{InstanceEntry, NodeEntry, ServiceSet, Snapshot, Status, Text, health};

use super::{ServiceResources, number, socket_address};
use crate::resource::{Digest, Resource, ResourceSet, Version};

/// Whether an endpoint gets traffic, best first: the order decides between instances of one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Health {
    Healthy,
    Draining,
    Unhealthy,
}

impl Health {
    fn status(self) -> HealthStatus {
        match self {
            Self::Healthy => HealthStatus::Healthy,
            Self::Draining => HealthStatus::Draining,
            Self::Unhealthy => HealthStatus::Unhealthy,
        }
    }
}

/// An instance as the data plane sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    region: Text,
    zone: Text,
    health: Health,
    weight: u32,
}

/// The endpoints of these services, each had by name.
pub(super) fn set<'a>(services: impl Iterator<Item = &'a Arc<ServiceResources>>) -> ResourceSet {
    let named = services.map(|service| (service.cluster.name.clone(), service.endpoints.clone()));
    ResourceSet { named: named.collect(), ..Default::default() }
}

/// The endpoints of a service, explicitly none when it has none.
pub(super) fn endpoints(
    name: Text,
    snapshot: &Snapshot,
    set: &ServiceSet,
    near: Option<&muster_catalog::Locality>,
) -> Arc<Resource> {
    assign(name, rows(snapshot, set), near)
}

/// No endpoints: what empties a cluster. Removing the resource would leave the last ones in place.
pub(crate) fn empty_endpoints(name: Text) -> Arc<Resource> {
    assign(name, BTreeMap::new(), None)
}

/// One row per address and port: gRPC rejects duplicates. The healthiest instance speaks for an address that several
/// claim, then the heaviest, then the first in order of locality.
fn rows(snapshot: &Snapshot, set: &ServiceSet) -> BTreeMap<SocketAddr, Row> {
    let mut rows: BTreeMap<SocketAddr, Row> = BTreeMap::new();
    for entry in &set.instances {
        let Some(node) = snapshot.find_node(&entry.instance.value.node) else { continue };
        let Some((address, row)) = find_row(node, entry) else { continue };
        let rank = |row: &Row| (row.health, Reverse(row.weight), row.region.clone(), row.zone.clone());
        match rows.get(&address) {
            Some(other) if rank(other) <= rank(&row) => {}
            _ => {
                rows.insert(address, row);
            }
        }
    }
    rows
}

/// `None` for what EDS cannot carry: host names, and instances without a port.
fn find_row(node: &NodeEntry, entry: &InstanceEntry) -> Option<(SocketAddr, Row)> {
    let instance = &entry.instance.value;
    let ip: IpAddr = instance.address.as_ref().unwrap_or(&node.node.value.address).ip()?;
    let port = instance.default_port().filter(|port| *port != 0)?;
    let locality = instance.locality.as_ref().or(node.node.value.locality.as_ref());
    let (region, zone) = locality.map(|at| (at.region.clone(), at.zone.clone())).unwrap_or_default();
    let status = health::status(node, entry);
    let weight = health::weight(node, entry);
    let health = match status {
        _ if instance.maintenance.is_some() => Health::Unhealthy,
        Status::Critical => Health::Unhealthy,
        _ if instance.draining => Health::Draining,
        // A weight of nothing takes it out, and xDS has no weight of nothing.
        _ if weight == 0 => Health::Unhealthy,
        Status::Passing | Status::Warning => Health::Healthy,
    };
    let weight = if weight == 0 { instance.weights.passing } else { weight };
    Some((SocketAddr::new(ip, port), Row { region, zone, health, weight: u32::from(weight.max(1)) }))
}

/// How far a place is from where the callers are: their zone, their region, elsewhere. Without a preference nothing is.
fn distance(near: Option<&muster_catalog::Locality>, region: &str, zone: &str) -> u32 {
    match near {
        None => 0,
        Some(near) if *near.region != *region => 2,
        Some(near) if *near.zone != *zone => 1,
        Some(_) => 0,
    }
}

/// The priority of each distance that occurs: without gaps, which gRPC rejects.
fn priorities(rows: &BTreeMap<SocketAddr, Row>, near: Option<&muster_catalog::Locality>) -> BTreeMap<u32, u32> {
    let distances: BTreeSet<u32> = rows.values().map(|row| distance(near, &row.region, &row.zone)).collect();
    distances.into_iter().zip(0..).collect()
}

fn assign(name: Text, rows: BTreeMap<SocketAddr, Row>, near: Option<&muster_catalog::Locality>) -> Arc<Resource> {
    let priorities = priorities(&rows, near);
    let priority = |region: &str, zone: &str| priorities.get(&distance(near, region, zone)).copied().unwrap_or(0);
    let version = version(&name, &rows, priority);
    let mut localities: BTreeMap<(Text, Text), Vec<(SocketAddr, Row)>> = BTreeMap::new();
    for (address, row) in rows {
        localities.entry((row.region.clone(), row.zone.clone())).or_default().push((address, row));
    }
    let endpoints = localities
        .into_iter()
        .map(|((region, zone), rows)| locality(&region, &zone, &rows, priority(&region, &zone)))
        .collect();
    // The name must equal the resource's, or the endpoints are ignored without a word.
    let assignment = ClusterLoadAssignment { cluster_name: name.to_string(), endpoints, ..Default::default() };
    Resource::new(name, version, &assignment)
}

/// Always with a locality and a weight, which gRPC demands.
fn locality(region: &str, zone: &str, rows: &[(SocketAddr, Row)], priority: u32) -> LocalityLbEndpoints {
    let healthy = rows.iter().filter(|(_, row)| row.health == Health::Healthy);
    let weight = healthy.fold(0u32, |sum, (_, row)| sum.saturating_add(row.weight)).max(1);
    LocalityLbEndpoints {
        locality: Some(Locality { region: region.to_owned(), zone: zone.to_owned(), ..Default::default() }),
        lb_endpoints: rows.iter().map(|(address, row)| lb_endpoint(*address, row)).collect(),
        load_balancing_weight: number(weight),
        priority,
        ..Default::default()
    }
}

fn lb_endpoint(address: SocketAddr, row: &Row) -> LbEndpoint {
    let address = Some(socket_address(address.ip().to_string(), address.port()));
    LbEndpoint {
        health_status: row.health.status().into(),
        load_balancing_weight: number(row.weight),
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint { address, ..Default::default() })),
        ..Default::default()
    }
}

fn version(name: &str, rows: &BTreeMap<SocketAddr, Row>, priority: impl Fn(&str, &str) -> u32) -> Version {
    let mut digest = Digest::new("endpoint");
    digest.text(name);
    for (address, row) in rows {
        digest.text(&address.to_string()).text(&row.region).text(&row.zone);
        digest.number(row.health as u64).number(u64::from(row.weight));
        digest.number(u64::from(priority(&row.region, &row.zone)));
    }
    digest.finish()
}
