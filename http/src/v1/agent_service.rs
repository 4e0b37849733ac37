//! `agent/service/{register,deregister/:id,maintenance/:id}`: writes to this agent's instances.

use axum::{
    extract::{Path, State},
    http::StatusCode,
    response::IntoResponse,
};
use muster_catalog::Text;

use super::{ApiState, HandlerResult};
use crate::{api::Body, ask::Ask, decode, error::HttpError};

/// The longest reason kept, as long as a value of free data.
const MAX_REASON: usize = 512;
/// What stands there when nobody said why.
const DEFAULT_REASON: &str = "in maintenance; no reason was given";

/// Takes up an instance with its checks.
pub(crate) async fn register(State(api): ApiState, ask: Ask, Body(body): Body) -> HandlerResult {
    let node = api.ports.local.identity().name.clone();
    let mut registration = decode::decode_service(&body, &node)?;
    registration.replace_existing_checks = ask.flag("replace-existing-checks")?;
    api.ports.local.register_service(registration).await?;
    Ok(StatusCode::OK.into_response())
}

/// Drops an instance and its checks.
pub(crate) async fn deregister(State(api): ApiState, Path(id): Path<String>, _ask: Ask) -> HandlerResult {
    api.ports.local.deregister_service(Text::from(id)).await?;
    Ok(StatusCode::OK.into_response())
}

/// Takes an instance out, or back in.
pub(crate) async fn set_maintenance(State(api): ApiState, Path(id): Path<String>, ask: Ask) -> HandlerResult {
    if !ask.has("enable") {
        return Err(HttpError::BadRequest("Missing value for enable: give ?enable=true or ?enable=false".into()));
    }
    let reason = match ask.find("reason") {
        None | Some("") => DEFAULT_REASON,
        Some(reason) if reason.len() <= MAX_REASON => reason,
        Some(reason) => {
            let text = format!("?reason has {} bytes: at most {MAX_REASON} are kept", reason.len());
            return Err(HttpError::BadRequest(text));
        }
    };
    let reason = ask.flag("enable")?.then(|| Text::from(reason));
    api.ports.local.set_maintenance(Text::from(id), reason).await?;
    Ok(StatusCode::OK.into_response())
}
