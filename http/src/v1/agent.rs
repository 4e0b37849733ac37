//! `agent/self`, `agent/services`, `agent/service/:id`, `agent/checks`, `agent/members`: this agent's own state.

use std::collections::BTreeMap;

use axum::{
    extract::{Path, State},
    http::HeaderValue,
};

use super::{ApiState, HandlerResult};
use crate::{
    ask::Ask,
    error::HttpError,
    json::{AgentSelf, Member, agent_member, agent_service, content_hash, local_checks, registry_member},
    reading::{json, large_json},
};

/// Who answers here.
pub(crate) async fn show_self(State(api): ApiState, ask: Ask) -> HandlerResult {
    let local = &api.ports.local;
    let identity = local.identity();
    let name = identity.name.as_str();
    let member = Member::agent(name, &identity.address, &identity.id, &identity.datacenter, true);
    json(&ask, &AgentSelf::new(&identity, member, local.instances().len(), local.checks().len()))
}

/// The agent's instances by id.
pub(crate) async fn list_services(State(api): ApiState, ask: Ask) -> HandlerResult {
    let instances = api.ports.local.instances();
    let by_id = instances.iter().map(|instance| (&*instance.id, agent_service(instance, &api.datacenter, None)));
    large_json(&ask, || by_id.clone().collect::<BTreeMap<&str, _>>()).await
}

/// One instance, with its content hash.
pub(crate) async fn show_service(State(api): ApiState, Path(id): Path<String>, ask: Ask) -> HandlerResult {
    let instances = api.ports.local.instances();
    let instance = instances.iter().find(|instance| *instance.id == *id);
    let instance = instance.ok_or_else(|| HttpError::NotFound(format!("unknown service ID: {id}")))?;
    let hash = content_hash(instance)?;
    let mut response = json(&ask, &agent_service(instance, &api.datacenter, Some(hash.clone())))?;
    if let Ok(value) = HeaderValue::from_str(&hash) {
        response.headers_mut().insert("x-consul-contenthash", value);
    }
    Ok(response)
}

/// The agent's checks by id.
pub(crate) async fn list_checks(State(api): ApiState, ask: Ask) -> HandlerResult {
    let (checks, instances) = (api.ports.local.checks(), api.ports.local.instances());
    large_json(&ask, || local_checks(&checks, &instances)).await
}

/// The agents that the catalog knows, and the registry's members.
pub(crate) async fn list_members(State(api): ApiState, ask: Ask) -> HandlerResult {
    let view = api.ports.source.view();
    let servers = api.ports.operator.members().await;
    let members = || {
        let agents = view.local.nodes().filter_map(|entry| agent_member(entry, &api.datacenter));
        agents.chain(servers.iter().map(|server| registry_member(server, &api.datacenter))).collect::<Vec<Member>>()
    };
    large_json(&ask, members).await
}
