//! What is listened on: HTTP for upstreams by their Host, a proxy's other listeners, and API listeners for proxyless gRPC.

use std::{net::SocketAddr, sync::Arc};

use envoy_types::pb::envoy::{
    config::listener::v3::{ApiListener, Filter, FilterChain, Listener, filter},
    extensions::filters::{
        http::router::v3::Router,
        network::{
            http_connection_manager::v3::{
                HttpConnectionManager, HttpFilter, Rds, http_connection_manager::RouteSpecifier, http_filter,
            },
            tcp_proxy::v3::{TcpProxy, tcp_proxy::ClusterSpecifier},
        },
    },
};
use muster_catalog::{Inbound, Protocol, Text, Upstream};

use super::{
    ServiceResources,
    names::{HTTP, INBOUND, LOCAL},
    number, over_ads, route, socket_address,
};
use crate::resource::{Digest, Resource, ResourceSet, Version, pack};

/// How often a connection is tried, each time at the next endpoint in turn. Other connections take turns too, so that a
/// dead endpoint of two may come up again; it mostly refuses at once, and a try costs little.
const CONNECT_ATTEMPTS: u32 = 10;

/// These listeners, and those of proxyless gRPC for these services, which are had by name: an Envoy would reject them.
pub(super) fn set<'a>(
    listeners: impl Iterator<Item = &'a Arc<Resource>>,
    services: impl Iterator<Item = &'a Arc<ServiceResources>>,
) -> ResourceSet {
    let listed = listeners.map(|listener| (listener.name.clone(), listener.clone()));
    let api = services.map(|service| &service.api_listener);
    let named = api.map(|listener| (listener.name.clone(), Some(listener.clone())));
    ResourceSet { listed: listed.collect(), named: named.collect() }
}

/// The listener for services by the Host header: all, of an Envoy without a registration.
pub(super) fn http_listener(address: SocketAddr) -> Arc<Resource> {
    let routes = Rds { config_source: Some(over_ads()), route_config_name: HTTP.to_owned() };
    let manager = HttpConnectionManager {
        strip_trailing_host_dot: true,
        ..connection_manager(HTTP, RouteSpecifier::Rds(routes))
    };
    let version = Digest::new("http-listener").text(&address.to_string()).finish();
    listener(HTTP.into(), version, address, http_filter(&manager))
}

/// A proxy's listener for one upstream. Its name is its place, so that another upstream there is a change of it.
pub(super) fn upstream_listener(upstream: &Upstream, address: SocketAddr) -> Arc<Resource> {
    to_cluster(format!("mesh.upstream.{address}").into(), address, upstream.protocol, upstream.service.as_key())
}

/// A proxy's listener for its own service.
pub(super) fn inbound_listener(inbound: &Inbound) -> Arc<Resource> {
    to_cluster(INBOUND.into(), inbound.listen, inbound.protocol, LOCAL)
}

/// All that comes goes to one cluster. Routes are inlined: the listener needs nothing more to open.
fn to_cluster(name: Text, address: SocketAddr, protocol: Protocol, cluster: &str) -> Arc<Resource> {
    let mut digest = Digest::new("listener");
    let version = digest.text(&name).text(&address.to_string()).text(protocol.as_str()).text(cluster).finish();
    let filter = match protocol {
        Protocol::Http => {
            http_filter(&connection_manager(&name, RouteSpecifier::RouteConfig(route::all_to(&name, cluster))))
        }
        Protocol::Tcp => {
            let proxy = TcpProxy {
                stat_prefix: name.to_string(),
                cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
                max_connect_attempts: number(CONNECT_ATTEMPTS),
                ..Default::default()
            };
            Filter {
                name: "envoy.filters.network.tcp_proxy".to_owned(),
                config_type: Some(filter::ConfigType::TypedConfig(pack(&proxy))),
            }
        }
    };
    listener(name, version, address, filter)
}

fn http_filter(manager: &HttpConnectionManager) -> Filter {
    Filter {
        name: "envoy.filters.network.http_connection_manager".to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(pack(manager))),
    }
}

fn listener(name: Text, version: Version, address: SocketAddr, filter: Filter) -> Arc<Resource> {
    let listener = Listener {
        name: name.to_string(),
        address: Some(socket_address(address.ip().to_string(), address.port())),
        filter_chains: vec![FilterChain { filters: vec![filter], ..Default::default() }],
        ..Default::default()
    };
    Resource::new(name, version, &listener)
}

/// The listener that a gRPC client asks for with `xds:///<service>`: its routes are inlined, its cluster is the service.
pub(super) fn api_listener(name: Text) -> Arc<Resource> {
    let manager = connection_manager(&name, RouteSpecifier::RouteConfig(route::grpc_routes(&name)));
    let api_listener = ApiListener { api_listener: Some(pack(&manager)) };
    let listener = Listener { name: name.to_string(), api_listener: Some(api_listener), ..Default::default() };
    let version = Digest::new("api-listener").text(&name).finish();
    Resource::new(name, version, &listener)
}

fn connection_manager(stat_prefix: &str, routes: RouteSpecifier) -> HttpConnectionManager {
    let router = HttpFilter {
        name: "envoy.filters.http.router".to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(pack(&Router::default()))),
        ..Default::default()
    };
    HttpConnectionManager {
        stat_prefix: stat_prefix.to_owned(),
        http_filters: vec![router],
        route_specifier: Some(routes),
        ..Default::default()
    }
}
