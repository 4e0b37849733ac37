//! View → resources: pure, and once per changed service however many streams there are.

mod cluster;
mod endpoint;
mod listener;
mod names;
mod proxies;
mod route;

use std::{collections::BTreeMap, sync::Arc};

use envoy_types::pb::{
    envoy::config::core::v3::{
        Address, AggregatedConfigSource, ApiVersion, ConfigSource, SocketAddress, address, config_source,
        socket_address::PortSpecifier,
    },
    google::protobuf,
};
use muster_catalog::{AgreedTraffic, Locality, Name, ServiceSet, ServiceSlot, Text, View};

pub(crate) use endpoint::empty_endpoints;
pub(crate) use names::HTTP;
pub(crate) use proxies::{Audience, Proxies};

use crate::{
    config::XdsConfig,
    kind::{KindMap, ResourceKind},
    resource::{Resource, ResourceSet, Resources},
};

/// What is made of one service.
#[derive(Debug)]
pub(crate) struct ServiceResources {
    cluster: Arc<Resource>,
    /// `None` while the service's instances are not held: then nothing may be said of them.
    endpoints: Option<Arc<Resource>>,
    /// For proxyless gRPC, by name only: an Envoy would reject it.
    api_listener: Arc<Resource>,
}

/// What the resources of a client are put together from.
struct Parts<'a, S> {
    services: S,
    /// The way to a proxy's own service.
    own_cluster: Option<&'a Arc<Resource>>,
    listeners: &'a [Arc<Resource>],
    http_routes: &'a Arc<Resource>,
}

impl<'a, S: Iterator<Item = &'a Arc<ServiceResources>> + Clone> Parts<'a, S> {
    /// The resources of a kind: a new kind is an arm here, and a file beside this one.
    fn set(&self, kind: ResourceKind) -> ResourceSet {
        let services = self.services.clone();
        match kind {
            ResourceKind::Cluster => cluster::set(services, self.own_cluster),
            ResourceKind::Endpoint => endpoint::set(services),
            ResourceKind::Listener => listener::set(self.listeners.iter(), services),
            ResourceKind::Route => route::set(self.http_routes),
        }
    }
}

/// Translates Views, and keeps what did not change since the last one.
pub(crate) struct Translator {
    config: XdsConfig,
    http_listener: [Arc<Resource>; 1],
    http_routes: Arc<Resource>,
    kept: BTreeMap<Text, Kept>,
    /// Where the callers stand for whom `kept` was made.
    near: Option<Locality>,
    last: Option<Arc<Resources>>,
}

/// A service as it was translated. The set is held so that its address stays its identity.
struct Kept {
    index: u64,
    set: Option<Arc<ServiceSet>>,
    traffic: AgreedTraffic,
    resources: Arc<ServiceResources>,
}

impl Kept {
    /// The index moves with everything that is said of the service, its nodes included; a resync may repeat an index,
    /// but not with the same set.
    fn is_current(&self, slot: &ServiceSlot) -> bool {
        let same_set = match (&self.set, &slot.set) {
            (Some(own), Some(other)) => Arc::ptr_eq(own, other),
            (own, other) => own.is_none() && other.is_none(),
        };
        self.index == slot.index && same_set
    }
}

/// What a translation came to.
pub(crate) struct Translation {
    pub(crate) resources: Arc<Resources>,
    /// Services that exist but whose instances are not held here.
    pub(crate) not_held: Vec<Name>,
    /// How many services had to be translated.
    pub(crate) translated: u64,
    /// How many services have instances that disagree on their traffic settings.
    pub(crate) disagreements: usize,
}

impl Translator {
    pub(crate) fn new(config: XdsConfig) -> Self {
        let http_listener = [listener::http_listener(config.http_listener)];
        let http_routes = route::http_routes(std::iter::empty(), &config);
        Self { config, http_listener, http_routes, kept: BTreeMap::new(), near: None, last: None }
    }

    /// The resources of a View. Unchanged services keep theirs, unchanged Views even the whole.
    pub(crate) fn translate(&mut self, view: &View) -> Translation {
        let mut old = std::mem::take(&mut self.kept);
        let (mut has_changed, mut names_changed) = (KindMap::<bool>::default(), self.last.is_none());
        let (mut not_held, mut translated, mut disagreements) = (Vec::new(), 0, 0);
        let node = self.config.node.as_ref().and_then(|node| view.local.find_node(node));
        let near = node.and_then(|node| node.node.value.locality.clone());
        let has_moved = std::mem::replace(&mut self.near, near) != self.near;
        for slot in view.local.services() {
            if slot.set.is_none() {
                not_held.push(slot.name.clone());
            }
            let kept = match old.remove(slot.name.as_key()) {
                Some(kept) if kept.is_current(slot) && !has_moved => kept,
                before => {
                    names_changed |= before.is_none();
                    let kept = self.service(view, slot, before.as_ref());
                    translated += 1;
                    let before = before.as_ref().map(|before| &before.resources);
                    let same = before.is_some_and(|before| endpoints_equal(before, &kept.resources));
                    has_changed[ResourceKind::Endpoint] |= !same;
                    let same = before.is_some_and(|before| before.cluster.version == kept.resources.cluster.version);
                    has_changed[ResourceKind::Cluster] |= !same;
                    kept
                }
            };
            disagreements += usize::from(kept.traffic.dissenters > 0);
            self.kept.insert(kept.resources.cluster.name.clone(), kept);
        }
        names_changed |= !old.is_empty();
        if names_changed {
            has_changed = KindMap::from_fn(|_| true);
            self.http_routes = route::http_routes(self.kept.keys(), &self.config);
        }
        let parts = Parts {
            services: self.kept.values().map(|kept| &kept.resources),
            own_cluster: None,
            listeners: &self.http_listener,
            http_routes: &self.http_routes,
        };
        let resources = Resources::follow(self.last.take(), |kind, _| has_changed[kind].then(|| parts.set(kind)));
        self.last = Some(resources.clone());
        Translation { resources, not_held, translated, disagreements }
    }

    fn service(&self, view: &View, slot: &ServiceSlot, before: Option<&Kept>) -> Kept {
        let name = before.map_or_else(|| Text::from(slot.name.as_key()), |kept| kept.resources.cluster.name.clone());
        // A set that left the scope says nothing of its instances: the last known stay.
        let traffic = match &slot.set {
            Some(set) => set.agreed_traffic(),
            None => before.map(|kept| kept.traffic.clone()).unwrap_or_default(),
        };
        let endpoints = match &slot.set {
            Some(set) => {
                let near = self.near.as_ref().filter(|_| traffic.traffic.prefer_near != Some(false));
                Some(endpoint::endpoints(name.clone(), &view.local, set, near))
            }
            None => before.and_then(|kept| kept.resources.endpoints.clone()),
        };
        let (cluster, api_listener) = match before {
            Some(kept) if kept.traffic.traffic == traffic.traffic => {
                (kept.resources.cluster.clone(), kept.resources.api_listener.clone())
            }
            _ => (cluster::cluster(name.clone(), &self.config, &traffic.traffic, None), listener::api_listener(name)),
        };
        let resources = Arc::new(ServiceResources { cluster, endpoints, api_listener });
        Kept { index: slot.index, set: slot.set.clone(), traffic, resources }
    }
}

fn endpoints_equal(left: &ServiceResources, right: &ServiceResources) -> bool {
    let version = |resources: &ServiceResources| resources.endpoints.as_ref().map(|endpoints| endpoints.version);
    version(left) == version(right)
}

/// Where resources that name other resources find them: on the same stream.
fn over_ads() -> ConfigSource {
    ConfigSource {
        resource_api_version: ApiVersion::V3.into(),
        config_source_specifier: Some(config_source::ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..Default::default()
    }
}

fn socket_address(address: String, port: u16) -> Address {
    let port_specifier = Some(PortSpecifier::PortValue(u32::from(port)));
    let socket = SocketAddress { address, port_specifier, ..Default::default() };
    Address { address: Some(address::Address::SocketAddress(socket)) }
}

fn duration(duration: std::time::Duration) -> protobuf::Duration {
    // Bounded by the configuration, far below either limit.
    protobuf::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or_default(),
    }
}

fn number(value: u32) -> Option<protobuf::UInt32Value> {
    Some(protobuf::UInt32Value { value })
}

#[cfg(test)]
pub(crate) mod tests;
