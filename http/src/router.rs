//! The table of paths, and what happens around every request.

use std::{sync::Arc, time::Instant};

use axum::{
    Router,
    extract::{MatchedPath, Request, State},
    handler::Handler,
    http::{HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{MethodRouter, get, put},
};

use crate::{
    api::Api,
    error::HttpError,
    host::{self, AllowedHosts},
    probes::{self, Probes},
    reading::Parked,
    v1,
};

/// What clients of the dialect may do without a token.
const DEFAULT_ACL_POLICY: HeaderName = HeaderName::from_static("x-consul-default-acl-policy");

/// Every path that is answered.
pub(crate) fn router(api: Arc<Api>, hosts: Arc<AllowedHosts>) -> Router {
    Router::new()
        .route("/v1/agent/self", read(v1::agent::show_self))
        .route("/v1/agent/services", read(v1::agent::list_services))
        .route("/v1/agent/service/{id}", read(v1::agent::show_service))
        .route("/v1/agent/checks", read(v1::agent::list_checks))
        .route("/v1/agent/members", read(v1::agent::list_members))
        .route("/v1/agent/health/service/id/{id}", read(v1::agent_health::show_by_id))
        .route("/v1/agent/health/service/name/{name}", read(v1::agent_health::list_by_name))
        .route("/v1/agent/service/register", write(v1::agent_service::register))
        .route("/v1/agent/service/deregister/{id}", write(v1::agent_service::deregister))
        .route("/v1/agent/service/maintenance/{id}", write(v1::agent_service::set_maintenance))
        .route("/v1/agent/check/register", write(v1::agent_check::register))
        .route("/v1/agent/check/deregister/{id}", write(v1::agent_check::deregister))
        .route("/v1/agent/check/pass/{id}", write(v1::agent_check::pass))
        .route("/v1/agent/check/warn/{id}", write(v1::agent_check::warn))
        .route("/v1/agent/check/fail/{id}", write(v1::agent_check::fail))
        .route("/v1/agent/check/update/{id}", write(v1::agent_check::update))
        .route("/v1/catalog/datacenters", read(v1::catalog::list_datacenters))
        .route("/v1/catalog/nodes", read(v1::catalog::list_nodes))
        .route("/v1/catalog/services", read(v1::catalog::list_services))
        .route("/v1/catalog/service/{name}", read(v1::catalog::list_instances))
        .route("/v1/catalog/node/{name}", read(v1::catalog::show_node))
        .route("/v1/catalog/node-services/{name}", read(v1::catalog::list_node_services))
        .route("/v1/catalog/register", write(v1::catalog::register))
        .route("/v1/catalog/deregister", write(v1::catalog::deregister))
        .route("/v1/health/service/{name}", read(v1::health::list_instances))
        .route("/v1/health/checks/{name}", read(v1::health::list_service_checks))
        .route("/v1/health/node/{name}", read(v1::health::list_node_checks))
        .route("/v1/health/state/{state}", read(v1::health::list_state))
        .route("/v1/status/leader", read(v1::status::show_leader))
        .route("/v1/status/peers", read(v1::status::list_peers))
        .route("/v1/muster/members", read(v1::muster::list_members))
        .route("/v1/muster/services", read(v1::muster::list_services))
        .route("/v1/muster/brakes", read(v1::brakes::list))
        .route("/v1/muster/brakes/commit/{id}", write(v1::brakes::commit))
        .route("/v1/muster/brakes/release/{id}", write(v1::brakes::release))
        .route("/v1/muster/xds/proxies", read(v1::muster::list_proxies))
        .route("/metrics", read(probes::show_metrics))
        .route("/livez", read(probes::show_live))
        .route("/readyz", read(probes::show_ready))
        .fallback(v1::unbuilt::refuse_path)
        .layer(from_fn_with_state(hosts, attend))
        .with_state(api)
}

/// Metrics and health alone, for a process that has no v1 API.
pub(crate) fn probes_router(probes: Probes) -> Router {
    Router::new()
        .route("/metrics", read(probes::show_metrics))
        .route("/livez", read(probes::show_live))
        .route("/readyz", read(probes::show_ready))
        .fallback(v1::unbuilt::refuse_path)
        .layer(from_fn_with_state(AllowedHosts::new(&[]), attend))
        .with_state(probes)
}

fn read<S, H, T>(handler: H) -> MethodRouter<S>
where
    S: Clone + Send + Sync + 'static,
    H: Handler<T, S>,
    T: 'static,
{
    get(handler).fallback(|method: Method| async move { refuse_method(&method, "OPTIONS,GET") })
}

fn write<H, T>(handler: H) -> MethodRouter<Arc<Api>>
where
    H: Handler<T, Arc<Api>>,
    T: 'static,
{
    put(handler).fallback(|method: Method| async move { refuse_method(&method, "OPTIONS,PUT") })
}

fn refuse_method(method: &Method, allow: &'static str) -> Response {
    if method == Method::OPTIONS {
        return (StatusCode::OK, [(header::ALLOW, HeaderValue::from_static(allow))]).into_response();
    }
    HttpError::Method { method: method.to_string(), allow }.into_response()
}

/// Refuses what is asked by a foreign name, counts and times every request, and sets the headers that every answer has. One
/// layer: each more costs some thousand instructions a request.
async fn attend(State(hosts): State<Arc<AllowedHosts>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let endpoint =
        request.extensions().get::<MatchedPath>().map_or_else(|| "none".into(), |path| path.as_str().to_owned());
    let method = known_method(request.method());
    let mut response = match host::refusal(&hosts, &request) {
        Some(foreign) => foreign.into_response(),
        None => next.run(request).await,
    };
    let status = response.status().as_str().to_owned();
    tracing::debug!(endpoint, method, status, "http: answered");
    metrics::counter!("muster_http_requests_total", "endpoint" => endpoint.clone(), "method" => method, "status" => status)
        .increment(1);
    if response.extensions().get::<Parked>().is_none() {
        metrics::histogram!("muster_http_request_seconds", "endpoint" => endpoint).record(started.elapsed());
    }
    response.headers_mut().insert(DEFAULT_ACL_POLICY, HeaderValue::from_static("allow"));
    response
}

/// Methods are the client's to invent; labels are not.
fn known_method(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "PUT" => "PUT",
        "POST" => "POST",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}
