//! `agent/check/{register,deregister,pass,warn,fail,update}`: writes to this agent's checks.

use std::sync::Arc;

use axum::{
    extract::{Path, State},
    http::StatusCode,
    response::IntoResponse,
};
use muster_catalog::{Status, Text};

use super::{ApiState, HandlerResult};
use crate::{
    api::{Api, Body},
    ask::Ask,
    decode,
    error::HttpError,
};

/// Takes up a check.
pub(crate) async fn register(State(api): ApiState, _ask: Ask, Body(body): Body) -> HandlerResult {
    let check = decode::decode_check(&body)?;
    if let Some(id) = &check.instance
        && !api.ports.local.instances().iter().any(|instance| instance.id == *id)
    {
        return Err(HttpError::NotFound(format!("ServiceID {id:?} does not exist")));
    }
    api.ports.local.register_check(check).await?;
    Ok(StatusCode::OK.into_response())
}

/// Drops a check.
pub(crate) async fn deregister(State(api): ApiState, Path(id): Path<String>, _ask: Ask) -> HandlerResult {
    api.ports.local.deregister_check(Text::from(id)).await?;
    Ok(StatusCode::OK.into_response())
}

/// Reports a TTL check passing.
pub(crate) async fn pass(State(api): ApiState, Path(id): Path<String>, ask: Ask) -> HandlerResult {
    report(&api, id, Status::Passing, &ask).await
}

/// Reports a TTL check warning.
pub(crate) async fn warn(State(api): ApiState, Path(id): Path<String>, ask: Ask) -> HandlerResult {
    report(&api, id, Status::Warning, &ask).await
}

/// Reports a TTL check critical.
pub(crate) async fn fail(State(api): ApiState, Path(id): Path<String>, ask: Ask) -> HandlerResult {
    report(&api, id, Status::Critical, &ask).await
}

/// Reports a TTL check with the status and output of the body.
pub(crate) async fn update(State(api): ApiState, Path(id): Path<String>, _ask: Ask, Body(body): Body) -> HandlerResult {
    let (status, output) = decode::decode_ttl_update(&body)?;
    api.ports.local.update_ttl(Text::from(id), status, output).await?;
    Ok(StatusCode::OK.into_response())
}

async fn report(api: &Arc<Api>, id: String, status: Status, ask: &Ask) -> HandlerResult {
    let note = decode::clean_output(ask.find("note").unwrap_or(""));
    api.ports.local.update_ttl(Text::from(id), status, note).await?;
    Ok(StatusCode::OK.into_response())
}
