//! A service as a cluster: its endpoints come over the same stream.

use std::sync::Arc;

use envoy_types::pb::envoy::{
    config::cluster::v3::{
        Cluster,
        cluster::{ClusterDiscoveryType, CommonLbConfig, DiscoveryType, EdsClusterConfig, LbPolicy},
    },
    r#type::v3::Percent,
};
use muster_catalog::Text;

use super::{duration, over_ads};
use crate::{
    config::XdsConfig,
    resource::{Digest, Resource, Version},
};

/// The cluster of a service. ROUND_ROBIN is the one policy that both Envoy and gRPC take without more.
pub(super) fn cluster(name: Text, config: &XdsConfig) -> Arc<Resource> {
    let version = version(&name, config);
    let panic = Percent { value: config.healthy_panic_threshold };
    let cluster = Cluster {
        name: name.to_string(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig { eds_config: Some(over_ads()), service_name: String::new() }),
        connect_timeout: Some(duration(config.connect_timeout)),
        lb_policy: LbPolicy::RoundRobin.into(),
        common_lb_config: Some(CommonLbConfig { healthy_panic_threshold: Some(panic), ..Default::default() }),
        ..Default::default()
    };
    Resource::new(name, version, &cluster)
}

fn version(name: &str, config: &XdsConfig) -> Version {
    let mut digest = Digest::new("cluster");
    digest.text(name).number(config.connect_timeout.as_secs());
    digest.number(u64::from(config.connect_timeout.subsec_nanos())).number(config.healthy_panic_threshold.to_bits());
    digest.finish()
}
