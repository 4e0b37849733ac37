//! `health/*`: instances and checks by health.

use axum::extract::{Path, State};
use muster_catalog::{Name, NodeEntry, ServiceLookup, Status, Topic, Wide, health};
use serde::Serialize;

use super::{ApiState, HandlerResult};
use crate::{
    ask::Ask,
    error::HttpError,
    json::{Check, Node, NodeService, entry_checks, service_checks},
};

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ServiceEntry<'a> {
    node: Node<'a>,
    service: NodeService<'a>,
    checks: Vec<Check<'a>>,
}

/// The instances of a service with their nodes and checks.
pub(crate) async fn list_instances(State(api): ApiState, Path(name): Path<String>, ask: Ask) -> HandlerResult {
    let name = Name::lookup(&name);
    let only_passing = ask.flag("passing")?;
    let reading = api.read_service(&ask, &name).await?;
    let local = &reading.view.local;
    let ServiceLookup::Held(_, set) = local.service(&name) else { return reading.answer(&ask, || [(); 0]).await };
    let entries = || {
        let wanted = set.instances.iter().filter(|entry| ask.wants_tags(&entry.instance.value));
        wanted
            .filter_map(|entry| Some((local.find_node(&entry.instance.value.node)?, entry)))
            .filter(|(node, _)| ask.wants_node(&node.node.value))
            .filter(|(node, entry)| !only_passing || health::is_passing(node, entry))
            .map(|(node, entry)| ServiceEntry {
                node: Node::new(&node.node, &api.datacenter),
                service: NodeService::new(&entry.instance),
                checks: entry_checks(node, entry),
            })
            .collect::<Vec<ServiceEntry<'_>>>()
    };
    reading.answer(&ask, entries).await
}

/// The checks of a service's instances, without their nodes'.
pub(crate) async fn list_service_checks(State(api): ApiState, Path(name): Path<String>, ask: Ask) -> HandlerResult {
    let name = Name::lookup(&name);
    let reading = api.read_service(&ask, &name).await?;
    let local = &reading.view.local;
    let ServiceLookup::Held(_, set) = local.service(&name) else { return reading.answer(&ask, || [(); 0]).await };
    let wanted = |node: &Name| local.find_node(node).is_some_and(|node| ask.wants_node(&node.node.value));
    let checks = || {
        let entries = set.instances.iter().filter(|entry| wanted(&entry.instance.value.node));
        entries.flat_map(|entry| service_checks(entry)).collect::<Vec<Check<'_>>>()
    };
    reading.answer(&ask, checks).await
}

/// All checks on a node.
pub(crate) async fn list_node_checks(State(api): ApiState, Path(name): Path<String>, ask: Ask) -> HandlerResult {
    let name = Name::lookup(&name);
    let reading = api.read_wide(&ask, Topic::Node(name.clone()), Wide::Node(name.clone())).await?;
    let node = reading.view.local.find_node(&name);
    reading.answer(&ask, || node.into_iter().flat_map(|node| node_checks(node)).collect::<Vec<Check<'_>>>()).await
}

fn node_checks(node: &NodeEntry) -> impl Iterator<Item = Check<'_>> {
    let own = node.checks.iter().map(|check| Check::new(check, None));
    own.chain(node.instances.iter().flat_map(|entry| service_checks(entry)))
}

/// All checks in a state. Maintenance is no check row, so it does not show here.
pub(crate) async fn list_state(State(api): ApiState, Path(state): Path<String>, ask: Ask) -> HandlerResult {
    let wanted = match &*state {
        "any" => None,
        other => Some(Status::parse(other).ok_or_else(|| {
            HttpError::BadRequest(format!("Invalid state {other:?}: it must be any, passing, warning or critical"))
        })?),
    };
    let reading = api.read_wide(&ask, Topic::Checks, Wide::Checks(wanted)).await?;
    let checks = || {
        let nodes = reading.view.local.nodes().filter(|entry| ask.wants_node(&entry.node.value));
        let rows = nodes.flat_map(|node| {
            let own = node.checks.iter().map(|check| (check, None));
            own.chain(
                node.instances
                    .iter()
                    .flat_map(|entry| entry.checks.iter().map(|check| (check, Some(&*entry.instance.value)))),
            )
        });
        rows.filter(|(check, _)| wanted.is_none_or(|wanted| check.value.status == wanted))
            .map(|(check, instance)| Check::new(check, instance))
            .collect::<Vec<Check<'_>>>()
    };
    reading.answer(&ask, checks).await
}
