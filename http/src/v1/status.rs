//! `status/*`: who leads the registry, and who votes.

use axum::extract::State;

use super::{ApiState, HandlerResult};
use crate::{ask::Ask, reading::json};

/// The leader's address; empty without one.
pub(crate) async fn show_leader(State(api): ApiState, ask: Ask) -> HandlerResult {
    json(&ask, &api.ports.operator.leader().await.unwrap_or_default())
}

/// The members' addresses.
pub(crate) async fn list_peers(State(api): ApiState, ask: Ask) -> HandlerResult {
    json(&ask, &api.ports.operator.peers().await)
}
