//! `muster/brakes`: what is held back, and an operator's decision about it.

use axum::extract::{Path, State};
use serde::Serialize;

use super::{ApiState, HandlerResult};
use crate::{api::Api, ask::Ask, port::BrakeDecision, reading::json};

/// All that is held back, here and at the registry.
pub(crate) async fn list(State(api): ApiState, ask: Ask) -> HandlerResult {
    json(&ask, &api.ports.brakes.list().await)
}

/// Lets what is held under an id happen now.
pub(crate) async fn commit(State(api): ApiState, Path(id): Path<String>, ask: Ask) -> HandlerResult {
    decide(&api, id, BrakeDecision::Commit, &ask).await
}

/// Gives what is held under an id its whole time anew.
pub(crate) async fn release(State(api): ApiState, Path(id): Path<String>, ask: Ask) -> HandlerResult {
    decide(&api, id, BrakeDecision::Release, &ask).await
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Decided {
    count: u64,
}

async fn decide(api: &Api, id: String, decision: BrakeDecision, ask: &Ask) -> HandlerResult {
    let count = api.ports.brakes.decide(id, decision).await?;
    json(ask, &Decided { count })
}
