//! The v1 endpoints, one file per group.

pub(crate) mod agent;
pub(crate) mod agent_check;
pub(crate) mod agent_health;
pub(crate) mod agent_service;
pub(crate) mod brakes;
pub(crate) mod catalog;
pub(crate) mod health;
pub(crate) mod muster;
pub(crate) mod status;
pub(crate) mod unbuilt;

use std::sync::Arc;

use axum::{extract::State, response::Response};

use crate::{api::Api, error::HttpError};

/// The api, as every handler is given it.
pub(crate) type ApiState = State<Arc<Api>>;
/// Every handler's result.
pub(crate) type HandlerResult = Result<Response, HttpError>;
