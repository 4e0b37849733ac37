//! Which Host goes to which cluster.

use std::{collections::BTreeSet, sync::Arc};

use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::{DataSource, data_source},
            route::v3::{
                DirectResponseAction, RetryPolicy, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost,
                retry_policy::{RetryHostPredicate, RetryPriority, retry_host_predicate, retry_priority},
                route,
                route_action::ClusterSpecifier,
                route_match::PathSpecifier,
            },
        },
        extensions::retry::{
            host::previous_hosts::v3::PreviousHostsPredicate,
            priority::previous_priorities::v3::PreviousPrioritiesConfig,
        },
    },
    google::protobuf,
};
use muster_catalog::Text;

use super::{names::HTTP, number};
use crate::{
    config::XdsConfig,
    resource::{Digest, Resource, ResourceSet, pack},
};

/// Only what never reached the service is tried again, so it is safe for every method.
const RETRY_ON: &str = "connect-failure,refused-stream,reset-before-request";

/// Two more endpoints are tried: enough for one that just died and one more, without multiplying an outage.
const RETRIES: u32 = 2;

/// How often another endpoint is drawn when the one drawn was tried already.
const RETRY_DRAWS: i64 = 5;

/// Each retry leaves the priority that was tried: where near instances go first, the nearest may be a single one.
const TRIES_PER_PRIORITY: i32 = 1;

/// The answer to a Host that no service has.
const NO_SERVICE: &str = "no service has this Host: ask for <service> or <service>.service.<zone>\n";

/// The routes of the HTTP listener, had by name.
pub(super) fn set(routes: &Arc<Resource>) -> ResourceSet {
    ResourceSet { named: [(routes.name.clone(), Some(routes.clone()))].into(), ..Default::default() }
}

/// The routes of the HTTP listener: one virtual host per service, and a word for everything else.
pub(super) fn http_routes<'a>(services: impl Iterator<Item = &'a Text>, config: &XdsConfig) -> Arc<Resource> {
    let suffixes = suffixes(config);
    let mut digest = Digest::new("http-routes");
    digest.number(suffixes.len() as u64);
    for suffix in &suffixes {
        digest.text(suffix);
    }
    let mut virtual_hosts = Vec::new();
    for name in services {
        digest.text(name);
        let full = suffixes.iter().map(|suffix| format!("{name}.{suffix}"));
        let domains = std::iter::once(name.to_string()).chain(full).collect();
        virtual_hosts.push(VirtualHost {
            name: name.to_string(),
            domains,
            routes: vec![to_cluster(name, Some(retries()))],
            ..Default::default()
        });
    }
    virtual_hosts.push(no_service());
    let routes = RouteConfiguration {
        name: HTTP.to_owned(),
        virtual_hosts,
        ignore_port_in_host_matching: true,
        ..Default::default()
    };
    Resource::new(HTTP.into(), digest.finish(), &routes)
}

/// The routes of a gRPC client: all calls of the channel go to the one service.
pub(super) fn grpc_routes(name: &str) -> RouteConfiguration {
    let host = VirtualHost {
        name: name.to_owned(),
        domains: vec!["*".to_owned()],
        routes: vec![to_cluster(name, None)],
        ..Default::default()
    };
    RouteConfiguration { name: name.to_owned(), virtual_hosts: vec![host], ..Default::default() }
}

/// The routes of a listener that leads to one cluster.
pub(super) fn all_to(name: &str, cluster: &str) -> RouteConfiguration {
    let host = VirtualHost {
        name: cluster.to_owned(),
        domains: vec!["*".to_owned()],
        routes: vec![to_cluster(cluster, Some(retries()))],
        ..Default::default()
    };
    RouteConfiguration { name: name.to_owned(), virtual_hosts: vec![host], ..Default::default() }
}

/// What follows a service's name in a full name; each once, since Envoy rejects a domain that is there twice.
fn suffixes(config: &XdsConfig) -> BTreeSet<String> {
    let datacenter = config.datacenter.as_key();
    let of_zone = |zone: &str| [format!("service.{zone}"), format!("service.{datacenter}.{zone}")];
    config.zones.iter().flat_map(|zone| of_zone(zone.as_key())).collect()
}

fn everything() -> Option<RouteMatch> {
    Some(RouteMatch { path_specifier: Some(PathSpecifier::Prefix("/".to_owned())), ..Default::default() })
}

/// No limit on the time of a request: the client knows how long it wants to wait, streams and long polls have no end.
fn to_cluster(name: &str, retry_policy: Option<RetryPolicy>) -> Route {
    let action = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(name.to_owned())),
        timeout: Some(protobuf::Duration::default()),
        retry_policy,
        ..Default::default()
    };
    Route { r#match: everything(), action: Some(route::Action::Route(action)), ..Default::default() }
}

fn retries() -> RetryPolicy {
    let other_hosts = RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
        config_type: Some(retry_host_predicate::ConfigType::TypedConfig(pack(&PreviousHostsPredicate {}))),
    };
    let config = PreviousPrioritiesConfig { update_frequency: TRIES_PER_PRIORITY };
    let other_priorities = RetryPriority {
        name: "envoy.retry_priorities.previous_priorities".to_owned(),
        config_type: Some(retry_priority::ConfigType::TypedConfig(pack(&config))),
    };
    RetryPolicy {
        retry_on: RETRY_ON.to_owned(),
        num_retries: number(RETRIES),
        retry_host_predicate: vec![other_hosts],
        retry_priority: Some(other_priorities),
        host_selection_retry_max_attempts: RETRY_DRAWS,
        ..Default::default()
    }
}

fn no_service() -> VirtualHost {
    let body = DataSource {
        specifier: Some(data_source::Specifier::InlineString(NO_SERVICE.to_owned())),
        ..Default::default()
    };
    let action = DirectResponseAction { status: 404, body: Some(body), ..Default::default() };
    let route =
        Route { r#match: everything(), action: Some(route::Action::DirectResponse(action)), ..Default::default() };
    VirtualHost {
        name: "no.service".to_owned(),
        domains: vec!["*".to_owned()],
        routes: vec![route],
        ..Default::default()
    }
}
