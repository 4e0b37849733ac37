//! `/metrics`, `/livez`, `/readyz`: for what runs and watches the process.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use crate::{api::Api, port::Pending};

/// Every metric as Prometheus text.
pub(crate) async fn show_metrics(State(api): State<Arc<Api>>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], (api.ports.metrics)()).into_response()
}

/// The process answers, so it lives.
pub(crate) async fn show_live() -> &'static str {
    "ok\n"
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Ready {
    ready: bool,
    pending: Vec<Pending>,
}

/// Whether everything is up, and what is not.
pub(crate) async fn show_ready(State(api): State<Arc<Api>>) -> Response {
    let pending = api.ports.readiness.pending();
    let ready = pending.is_empty();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Ready { ready, pending })).into_response()
}
