//! `agent/health/service/{id/:id,name/:name}`: the health of this agent's own instances, for load balancers that look
//! at the status code alone.

use std::collections::BTreeMap;

use axum::{
    extract::{Path, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use muster_catalog::{Instance, Name};
use serde::Serialize;

use super::{ApiState, HandlerResult};
use crate::{
    api::Api,
    ask::Ask,
    error::HttpError,
    json::{AgentService, Check, agent_service, local_checks},
    reading::large_json,
};

/// The status in words, beside the status code.
const REASON: HeaderName = HeaderName::from_static("x-consul-reason");

/// How an instance is, from the best to the worst: its own checks and its node's taken together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Aggregated {
    Passing,
    Warning,
    Critical,
    Maintenance,
}

impl Aggregated {
    fn of(checks: &[&Check<'_>]) -> Self {
        let each = checks.iter().map(|check| match check.status() {
            _ if check.is_maintenance() => Self::Maintenance,
            "passing" => Self::Passing,
            "warning" => Self::Warning,
            _ => Self::Critical,
        });
        each.max().unwrap_or(Self::Passing)
    }

    fn word(self) -> &'static str {
        match self {
            Self::Passing => "passing",
            Self::Warning => "warning",
            Self::Critical => "critical",
            Self::Maintenance => "maintenance",
        }
    }

    fn code(self) -> StatusCode {
        match self {
            Self::Passing => StatusCode::OK,
            Self::Warning => StatusCode::TOO_MANY_REQUESTS,
            Self::Critical | Self::Maintenance => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ServiceHealth<'a> {
    aggregated_status: &'static str,
    service: Option<AgentService<'a>>,
    checks: Option<Vec<&'a Check<'a>>>,
}

/// One instance of this agent.
pub(crate) async fn show_by_id(
    State(api): ApiState,
    Path(id): Path<String>,
    headers: HeaderMap,
    ask: Ask,
) -> HandlerResult {
    let text = wants_text(&ask, &headers)?;
    let (instances, checks) = (api.ports.local.instances(), api.ports.local.checks());
    let Some(instance) = instances.iter().find(|instance| *instance.id == *id) else {
        let reason = format!("ServiceId {id} not found");
        let nothing = ServiceHealth { aggregated_status: Aggregated::Critical.word(), service: None, checks: None };
        return answer(&ask, text, StatusCode::NOT_FOUND, &reason, &nothing).await;
    };
    let checks = local_checks(&checks, &instances);
    let (aggregated, health) = Deciding::new(&checks).health_of(&api, instance);
    answer(&ask, text, aggregated.code(), aggregated.word(), &health).await
}

/// Every instance that this agent has of a service; the worst of them gives the status code.
pub(crate) async fn list_by_name(
    State(api): ApiState,
    Path(name): Path<String>,
    headers: HeaderMap,
    ask: Ask,
) -> HandlerResult {
    let text = wants_text(&ask, &headers)?;
    let wanted = Name::lookup(&name);
    let (instances, checks) = (api.ports.local.instances(), api.ports.local.checks());
    let of_service = instances.iter().filter(|instance| instance.service == wanted);
    let checks = local_checks(&checks, &instances);
    let deciding = Deciding::new(&checks);
    let all: Vec<_> = of_service.map(|instance| deciding.health_of(&api, instance)).collect();
    let worst = all.iter().map(|(aggregated, _)| *aggregated).max();
    let (code, reason) = match worst {
        Some(worst) => (worst.code(), worst.word().to_owned()),
        None => (StatusCode::NOT_FOUND, format!("ServiceName {name} Not Found")),
    };
    let body: Vec<ServiceHealth<'_>> = all.into_iter().map(|(_, health)| health).collect();
    answer(&ask, text, code, &reason, &body).await
}

/// The agent's checks by the instance that they speak for; under no name those of the whole node.
struct Deciding<'a>(BTreeMap<&'a str, Vec<&'a Check<'a>>>);

impl<'a> Deciding<'a> {
    fn new(checks: &'a BTreeMap<String, Check<'a>>) -> Self {
        let mut of: BTreeMap<&str, Vec<&Check<'_>>> = BTreeMap::new();
        for check in checks.values() {
            of.entry(check.instance()).or_default().push(check);
        }
        Self(of)
    }

    fn health_of(&self, api: &'a Api, instance: &'a Instance) -> (Aggregated, ServiceHealth<'a>) {
        let of = |id: &str| self.0.get(id).into_iter().flatten().copied();
        let mut checks: Vec<&Check<'a>> = of("").chain(of(&instance.id)).collect();
        checks.sort_by_key(|check| check.id());
        let aggregated = Aggregated::of(&checks);
        let service = Some(agent_service(instance, &api.datacenter, None));
        (aggregated, ServiceHealth { aggregated_status: aggregated.word(), service, checks: Some(checks) })
    }
}

fn wants_text(ask: &Ask, headers: &HeaderMap) -> Result<bool, HttpError> {
    match ask.find("format") {
        Some("text") => return Ok(true),
        None | Some("" | "json") => {}
        Some(other) => {
            return Err(HttpError::BadRequest(format!("Invalid value for ?format: {other:?}, give text or json")));
        }
    }
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    Ok(ask.find("format").is_none() && accepted.into_iter().any(|value| value.starts_with("text/plain")))
}

async fn answer(ask: &Ask, text: bool, code: StatusCode, reason: &str, body: &impl Serialize) -> HandlerResult {
    let mut response: Response =
        if text { reason.to_owned().into_response() } else { large_json(ask, || body).await? };
    *response.status_mut() = code;
    if let Ok(value) = HeaderValue::from_str(reason) {
        response.headers_mut().insert(REASON, value);
    }
    Ok(response)
}
