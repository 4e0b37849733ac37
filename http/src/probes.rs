//! `/metrics`, `/livez`, `/readyz`: for what runs and watches the process.

use std::sync::Arc;

use axum::{
    Json,
    extract::{FromRef, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use crate::{
    api::Api,
    budget::Answers,
    error::HttpError,
    port::{Pending, Readiness, RenderMetrics},
};

/// What the probes read: a process without the v1 API has them too.
#[derive(Clone)]
pub(crate) struct Probes {
    pub(crate) readiness: Arc<dyn Readiness>,
    pub(crate) metrics: RenderMetrics,
    pub(crate) answers: Arc<Answers>,
}

impl FromRef<Arc<Api>> for Probes {
    fn from_ref(api: &Arc<Api>) -> Self {
        Self {
            readiness: api.ports.readiness.clone(),
            metrics: api.ports.metrics.clone(),
            answers: api.answers.clone(),
        }
    }
}

/// Every metric as Prometheus text.
pub(crate) async fn show_metrics(State(probes): State<Probes>) -> Response {
    match probes.answers.count((probes.metrics)().into_bytes()) {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response(),
        Err(no_room) => HttpError::CrowdedAnswers(no_room).into_response(),
    }
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
    /// What an operator should look at; it makes nothing unready.
    notices: Vec<Pending>,
}

/// Whether everything is up, and what is not.
pub(crate) async fn show_ready(State(probes): State<Probes>) -> Response {
    let pending = probes.readiness.pending();
    let (ready, notices) = (pending.is_empty(), probes.readiness.notices());
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Ready { ready, pending, notices })).into_response()
}
