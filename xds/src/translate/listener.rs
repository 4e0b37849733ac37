//! What is listened on: one HTTP listener for an Envoy without a registration, and API listeners for proxyless gRPC.

use std::{net::SocketAddr, sync::Arc};

use envoy_types::pb::envoy::{
    config::listener::v3::{ApiListener, Filter, FilterChain, Listener, filter},
    extensions::filters::{
        http::router::v3::Router,
        network::http_connection_manager::v3::{
            HttpConnectionManager, HttpFilter, Rds, http_connection_manager::RouteSpecifier, http_filter,
        },
    },
};
use muster_catalog::Text;

use super::{over_ads, route, socket_address};
use crate::resource::{Digest, Resource, pack};

/// The name of the HTTP listener and of its routes. Services are DNS labels, so the dot keeps it apart from theirs.
pub(super) const HTTP: &str = "mesh.http";

/// The listener of an Envoy without a registration: any service, by the Host header.
pub(super) fn http_listener(address: SocketAddr) -> Arc<Resource> {
    let routes = Rds { config_source: Some(over_ads()), route_config_name: HTTP.to_owned() };
    let manager = HttpConnectionManager {
        strip_trailing_host_dot: true,
        ..connection_manager(HTTP, RouteSpecifier::Rds(routes))
    };
    let filter = Filter {
        name: "envoy.filters.network.http_connection_manager".to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(pack(&manager))),
    };
    let listener = Listener {
        name: HTTP.to_owned(),
        address: Some(socket_address(address.ip().to_string(), address.port())),
        filter_chains: vec![FilterChain { filters: vec![filter], ..Default::default() }],
        ..Default::default()
    };
    let version = Digest::new("http-listener").text(&address.to_string()).finish();
    Resource::new(HTTP.into(), version, &listener)
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
