//! What each registered proxy is served: its upstreams and its own service, made of what all share.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use muster_catalog::{Name, Proxy, ServiceLookup, Text, Traffic, Upstream, View};

use super::{Parts, ServiceResources, Translator, cluster, empty_endpoints, listener, route};
use crate::resource::{Resource, Resources};

/// How long the cluster of an upstream outlives its listener: a listener that goes drains as long, by Envoy's default,
/// and what runs over it would break off with the cluster.
const DRAIN: Duration = Duration::from_secs(600);

/// How long a proxy that was not served before waits for upstreams that are not held yet. An Envoy that comes back from
/// another agent, or from before a restart, would otherwise be told for a moment that they are gone.
const PATIENCE: Duration = Duration::from_secs(5);

/// The registered proxies of the agent's node, each with what it is served.
pub(crate) type Audience = BTreeMap<Text, Arc<Resources>>;

/// What is kept of the proxies between two Views.
#[derive(Default)]
pub(crate) struct Proxies {
    states: BTreeMap<Text, ProxyState>,
    /// Proxies that wait for their upstreams, and since when.
    waiting: BTreeMap<Text, Instant>,
}

/// What is kept of a proxy.
struct ProxyState {
    row: Arc<Proxy>,
    /// Upstreams that were removed, and when their clusters go.
    leaving: BTreeMap<Name, Instant>,
    made: ProxyResources,
}

/// What is made for a proxy.
struct ProxyResources {
    /// What it is served is put together from these services …
    services: BTreeMap<Text, Arc<ServiceResources>>,
    /// … and from what it shares with nobody.
    own: Own,
    resources: Arc<Resources>,
}

/// What a proxy does not share with others: it follows from its definition and from which services it is served.
struct Own {
    own_cluster: Option<Arc<Resource>>,
    listeners: Vec<Arc<Resource>>,
    http_routes: Arc<Resource>,
}

/// What came of the proxies in a View.
#[derive(Default)]
pub(crate) struct ProxyUpdate {
    pub(crate) audience: Audience,
    /// Registered proxies that are not served yet.
    pub(crate) expected: BTreeSet<Text>,
    /// Services that some proxy carries traffic to.
    pub(crate) used: BTreeSet<Name>,
    /// Those of them that exist but are not held here.
    pub(crate) not_held: BTreeSet<Name>,
    /// When a cluster goes, or the patience of a proxy ends, next.
    pub(crate) next: Option<Instant>,
}

impl Proxies {
    /// Serves the proxies of a View that `translator` has just translated.
    pub(crate) fn update(&mut self, translator: &Translator, view: &View, now: Instant) -> ProxyUpdate {
        let mut update = ProxyUpdate::default();
        let (mut old, mut waiting) = (std::mem::take(&mut self.states), std::mem::take(&mut self.waiting));
        let node = translator.config.node.as_ref().and_then(|node| view.local.find_node(node));
        for entry in node.iter().flat_map(|node| &node.instances) {
            let instance = &entry.instance.value;
            let Some(row) = &instance.proxy else { continue };
            let before = old.remove(&instance.id);
            let mut leaving = before.as_ref().map(|state| state.leaving.clone()).unwrap_or_default();
            let stays = |service: &Name| row.upstreams.iter().any(|upstream| upstream.service == *service);
            for upstream in before.iter().flat_map(|state| &state.row.upstreams) {
                leaving.entry(upstream.service.clone()).or_insert(now + DRAIN);
            }
            leaving.retain(|service, until| !stays(service) && *until > now);
            let is_new = before.is_none();
            let (made, is_whole) = translator.proxy(view, row, leaving.keys(), before, &mut update);
            if is_new && !is_whole {
                let since = waiting.remove(&instance.id).unwrap_or(now);
                if now < since + PATIENCE {
                    update.next = update.next.into_iter().chain([since + PATIENCE]).min();
                    update.expected.insert(instance.id.clone());
                    self.waiting.insert(instance.id.clone(), since);
                    continue;
                }
            }
            update.next = update.next.into_iter().chain(leaving.values().copied()).min();
            update.audience.insert(instance.id.clone(), made.resources.clone());
            self.states.insert(instance.id.clone(), ProxyState { row: row.clone(), leaving, made });
        }
        update
    }
}

impl Translator {
    /// What a proxy is served, and whether all of its upstreams are in it.
    fn proxy<'a>(
        &self,
        view: &View,
        row: &Proxy,
        leaving: impl Iterator<Item = &'a Name>,
        before: Option<ProxyState>,
        update: &mut ProxyUpdate,
    ) -> (ProxyResources, bool) {
        let (mut services, mut is_whole) = (BTreeMap::new(), true);
        let named = row.upstreams.iter().map(|upstream| (&upstream.service, upstream.connect_timeout));
        for (service, connect_timeout) in named.chain(leaving.map(|service| (service, None))) {
            update.used.insert(service.clone());
            // What is served as it was last known is asked for too: it may have left the scope since.
            if let ServiceLookup::NotHeld(_) = view.local.service(service) {
                update.not_held.insert(service.clone());
            }
            match self.upstream(view, service, connect_timeout) {
                Some(resources) => {
                    services.insert(Text::from(service.as_key()), resources);
                }
                None => is_whole = false,
            }
        }
        let is_as_before = |state: &ProxyState| *state.row == *row && services.keys().eq(state.made.services.keys());
        let is_same_way = before.as_ref().is_some_and(is_as_before);
        let (last, own) = before.map(|state| (state.made.resources, state.made.own)).unzip();
        // Most changes are of endpoints: what leads to them is not made anew for each proxy.
        let own = own.filter(|_| is_same_way).unwrap_or_else(|| self.own(row, &services));
        let parts = Parts {
            services: services.values(),
            own_cluster: own.own_cluster.as_ref(),
            listeners: &own.listeners,
            http_routes: &own.http_routes,
        };
        let resources = Resources::follow(last, |kind, last| {
            let next = parts.set(kind);
            (last != Some(&next)).then_some(next)
        });
        (ProxyResources { services, own, resources }, is_whole)
    }

    /// What a proxy does not share, when these are the services that it is served.
    fn own(&self, row: &Proxy, services: &BTreeMap<Text, Arc<ServiceResources>>) -> Own {
        // Nothing leads to a service of which nothing can be said yet.
        let is_known = |upstream: &&Upstream| services.contains_key(upstream.service.as_key());
        let hosts: BTreeSet<Text> =
            row.hosts().filter(is_known).map(|upstream| Text::from(upstream.service.as_key())).collect();
        let known = row.upstreams.iter().filter(is_known);
        let mut listeners: Vec<Arc<Resource>> =
            known.filter_map(|upstream| Some(listener::upstream_listener(upstream, upstream.listen?))).collect();
        if row.hosts().next().is_some() {
            let address = row.http_listener.unwrap_or(self.config.http_listener);
            listeners.push(listener::http_listener(address));
        }
        listeners.extend(row.inbound.as_ref().map(listener::inbound_listener));
        Own {
            own_cluster: row.inbound.as_ref().map(|inbound| cluster::local(inbound.local, &self.config)),
            listeners,
            // There with nobody in it too: a listener that drains still asks for its routes.
            http_routes: route::http_routes(hosts.iter(), &self.config),
        }
    }

    /// A service as one proxy calls it; `None` while nothing can be said of it.
    fn upstream(&self, view: &View, service: &Name, timeout: Option<Duration>) -> Option<Arc<ServiceResources>> {
        let name = Text::from(service.as_key());
        let kept = self.kept.get(&name);
        let shared = kept.map(|kept| &kept.resources).filter(|resources| resources.endpoints.is_some());
        if shared.is_none() && matches!(view.local.service(service), ServiceLookup::NotHeld(_)) {
            return None;
        }
        match (shared, timeout) {
            (Some(shared), None) => Some(shared.clone()),
            (shared, timeout) => {
                let traffic = kept.map_or_else(Traffic::default, |kept| kept.traffic.traffic.clone());
                // A service that does not exist has no endpoints; what calls it is there already.
                let endpoints = shared.and_then(|shared| shared.endpoints.clone());
                Some(Arc::new(ServiceResources {
                    cluster: cluster::cluster(name.clone(), &self.config, &traffic, timeout),
                    endpoints: Some(endpoints.unwrap_or_else(|| empty_endpoints(name.clone()))),
                    api_listener: listener::api_listener(name),
                }))
            }
        }
    }
}

#[cfg(test)]
mod tests;
