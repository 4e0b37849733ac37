//! A service as a cluster: its endpoints come over the same stream. A proxy's own service as one: its place is known.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{
                CircuitBreakers, Cluster, OutlierDetection as PbOutlier,
                circuit_breakers::Thresholds,
                cluster::{ClusterDiscoveryType, CommonLbConfig, DiscoveryType, EdsClusterConfig, LbPolicy},
            },
            endpoint::v3::{
                ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
            },
        },
        r#type::v3::Percent,
    },
    google::protobuf,
};
use muster_catalog::{OutlierDetection, Text, Traffic};

use super::{ServiceResources, duration, names::LOCAL, number, over_ads, socket_address};
use crate::{
    config::XdsConfig,
    resource::{Digest, Resource, ResourceSet, Version},
};

/// No limit of calls at a time: one that nobody set turns calls away under load, as the defaults would, which are 1,024 of
/// each kind and 3 retries. Retries are bounded by the calls that they belong to.
const UNLIMITED: u32 = u32::MAX;

/// How a service is called: its own word, else the agent's.
#[derive(Debug, Clone, PartialEq)]
struct Settings<'a> {
    connect_timeout: Duration,
    panic_threshold: f64,
    outlier: Option<&'a OutlierDetection>,
}

/// The clusters of these services, and that of a proxy's own.
pub(super) fn set<'a>(
    services: impl Iterator<Item = &'a Arc<ServiceResources>>,
    own: Option<&'a Arc<Resource>>,
) -> ResourceSet {
    let all = services.map(|service| &service.cluster).chain(own);
    ResourceSet { listed: all.map(|one| (one.name.clone(), one.clone())).collect(), ..Default::default() }
}

/// The cluster of a service; `connect_timeout` is the word of the proxy that calls it. ROUND_ROBIN is the one policy that
/// both Envoy and gRPC take without more.
pub(super) fn cluster(
    name: Text,
    config: &XdsConfig,
    traffic: &Traffic,
    connect_timeout: Option<Duration>,
) -> Arc<Resource> {
    let settings = Settings {
        connect_timeout: connect_timeout.or(traffic.connect_timeout).unwrap_or(config.connect_timeout),
        panic_threshold: traffic.panic_threshold.map_or(config.healthy_panic_threshold, f64::from),
        outlier: traffic.outlier_detection.as_ref(),
    };
    let version = version(&name, &settings);
    let panic = Percent { value: settings.panic_threshold };
    let cluster = Cluster {
        name: name.to_string(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig { eds_config: Some(over_ads()), service_name: String::new() }),
        connect_timeout: Some(duration(settings.connect_timeout)),
        lb_policy: LbPolicy::RoundRobin.into(),
        common_lb_config: Some(CommonLbConfig { healthy_panic_threshold: Some(panic), ..Default::default() }),
        outlier_detection: settings.outlier.map(outlier),
        circuit_breakers: Some(circuit_breakers()),
        ..Default::default()
    };
    Resource::new(name, version, &cluster)
}

/// The cluster of a proxy's own service.
pub(super) fn local(address: SocketAddr, config: &XdsConfig) -> Arc<Resource> {
    let place =
        Endpoint { address: Some(socket_address(address.ip().to_string(), address.port())), ..Default::default() };
    let endpoint = LbEndpoint { host_identifier: Some(HostIdentifier::Endpoint(place)), ..Default::default() };
    let endpoints = vec![LocalityLbEndpoints { lb_endpoints: vec![endpoint], ..Default::default() }];
    let cluster = Cluster {
        name: LOCAL.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into())),
        connect_timeout: Some(duration(config.connect_timeout)),
        circuit_breakers: Some(circuit_breakers()),
        load_assignment: Some(ClusterLoadAssignment {
            cluster_name: LOCAL.to_owned(),
            endpoints,
            ..Default::default()
        }),
        ..Default::default()
    };
    let mut digest = Digest::new("local-cluster");
    digest.text(&address.to_string()).number(millis(config.connect_timeout));
    Resource::new(LOCAL.into(), digest.finish(), &cluster)
}

/// What may be under way to a cluster. gRPC takes its number of requests from here too.
fn circuit_breakers() -> CircuitBreakers {
    let thresholds = Thresholds {
        max_connections: number(UNLIMITED),
        max_pending_requests: number(UNLIMITED),
        max_requests: number(UNLIMITED),
        max_retries: number(UNLIMITED),
        ..Default::default()
    };
    CircuitBreakers { thresholds: vec![thresholds], ..Default::default() }
}

/// Only what was declared ejects: the judgement by comparison that Envoy adds by itself is off. A host that is alone is
/// ejected too if the share allows it.
fn outlier(outlier: &OutlierDetection) -> PbOutlier {
    let off = || Some(protobuf::UInt32Value { value: 0 });
    PbOutlier {
        consecutive_5xx: number(outlier.consecutive_failures),
        enforcing_consecutive_5xx: number(100),
        enforcing_consecutive_gateway_failure: off(),
        enforcing_success_rate: off(),
        enforcing_failure_percentage: off(),
        interval: Some(duration(outlier.interval)),
        base_ejection_time: Some(duration(outlier.ejection_time)),
        max_ejection_percent: number(u32::from(outlier.max_ejected_percent)),
        ..Default::default()
    }
}

fn version(name: &str, settings: &Settings<'_>) -> Version {
    let mut digest = Digest::new("cluster");
    digest.text(name).number(settings.connect_timeout.as_secs());
    digest.number(u64::from(settings.connect_timeout.subsec_nanos())).number(settings.panic_threshold.to_bits());
    if let Some(outlier) = settings.outlier {
        digest.text("outlier").number(u64::from(outlier.consecutive_failures));
        digest.number(millis(outlier.interval)).number(millis(outlier.ejection_time));
        digest.number(u64::from(outlier.max_ejected_percent));
    }
    digest.finish()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
