//! `muster/*`: what the v1 dialect has no words for.

use axum::extract::State;

use super::{ApiState, HandlerResult};
use crate::{
    ask::Ask,
    reading::{json, large_json},
};

/// The registry's members with their roles.
pub(crate) async fn list_members(State(api): ApiState, ask: Ask) -> HandlerResult {
    json(&ask, &api.ports.operator.members().await)
}

/// The connected proxies: what each took and what it refused.
pub(crate) async fn list_proxies(State(api): ApiState, ask: Ask) -> HandlerResult {
    large_json(&ask, || api.ports.operator.xds_proxies()).await
}
