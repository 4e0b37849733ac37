//! `catalog/*`: what the registry knows, and registrations of what has no agent.

use std::collections::{BTreeMap, BTreeSet};

use axum::extract::{Path, State};
use muster_catalog::{Command, Name, NodeEntry, ServiceLookup, Snapshot, Text, Topic, Wide};
use serde::Serialize;

use super::{ApiState, HandlerResult};
use crate::{
    api::Body,
    ask::Ask,
    decode,
    json::{CatalogService, Node, NodeService},
    reading::json,
};

/// The datacenters that can be asked for: this one.
pub(crate) async fn list_datacenters(State(api): ApiState, ask: Ask) -> HandlerResult {
    json(&ask, &[&api.datacenter])
}

/// All nodes.
pub(crate) async fn list_nodes(State(api): ApiState, ask: Ask) -> HandlerResult {
    let reading = api.read(&ask, Topic::Nodes, Snapshot::nodes_index).await?;
    let nodes = || {
        let nodes = reading.view.local.nodes().filter(|entry| ask.wants_node(&entry.node.value));
        nodes.map(|entry| Node::new(&entry.node, &api.datacenter)).collect::<Vec<Node<'_>>>()
    };
    reading.answer(&ask, nodes).await
}

/// All services with the union of their tags.
pub(crate) async fn list_services(State(api): ApiState, ask: Ask) -> HandlerResult {
    if !ask.has("node-meta") {
        let reading = api.read(&ask, Topic::Services, Snapshot::services_index).await?;
        let services = || {
            let services = reading.view.local.services();
            services.map(|slot| (slot.name.as_str(), &*slot.tags)).collect::<BTreeMap<&str, &[Text]>>()
        };
        return reading.answer(&ask, services).await;
    }
    let meta = ask.node_meta().map(|(key, value)| (key.into(), value.into())).collect();
    let reading = api.read_wide(&ask, Topic::Services, Wide::Instances(meta)).await?;
    reading
        .answer(&ask, || {
            let mut services: BTreeMap<&str, BTreeSet<&Text>> = BTreeMap::new();
            for entry in reading.view.local.nodes().filter(|entry| ask.wants_node(&entry.node.value)) {
                for instance in entry.instances.iter().map(|entry| &entry.instance.value) {
                    services.entry(instance.service.as_str()).or_default().extend(&instance.tags);
                }
            }
            services
        })
        .await
}

/// The instances of a service, whatever their health.
pub(crate) async fn list_instances(State(api): ApiState, Path(name): Path<String>, ask: Ask) -> HandlerResult {
    let name = Name::lookup(&name);
    let reading = api.read_service(&ask, &name).await?;
    let local = &reading.view.local;
    let ServiceLookup::Held(_, set) = local.service(&name) else { return reading.answer(&ask, || [(); 0]).await };
    let instances = || {
        let wanted = set.instances.iter().filter(|entry| ask.wants_tags(&entry.instance.value));
        wanted
            .filter_map(|entry| Some((local.find_node(&entry.instance.value.node)?, entry)))
            .filter(|(node, _)| ask.wants_node(&node.node.value))
            .map(|(node, entry)| CatalogService::new(&node.node.value, &entry.instance, &api.datacenter))
            .collect::<Vec<CatalogService<'_>>>()
    };
    reading.answer(&ask, instances).await
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct NodeServices<'a, S> {
    node: Option<Node<'a>>,
    services: S,
}

/// A node with its instances by id; `null` for one that does not exist.
pub(crate) async fn show_node(State(api): ApiState, Path(name): Path<String>, ask: Ask) -> HandlerResult {
    let name = Name::lookup(&name);
    let reading = api.read_wide(&ask, Topic::Node(name.clone()), Wide::Node(name.clone())).await?;
    let entry = reading.view.local.find_node(&name);
    reading
        .answer(&ask, || {
            entry.map(|entry| NodeServices {
                node: Some(Node::new(&entry.node, &api.datacenter)),
                services: instances(entry).collect::<BTreeMap<_, _>>(),
            })
        })
        .await
}

/// A node with its instances in a list.
pub(crate) async fn list_node_services(State(api): ApiState, Path(name): Path<String>, ask: Ask) -> HandlerResult {
    let name = Name::lookup(&name);
    let reading = api.read_wide(&ask, Topic::Node(name.clone()), Wide::Node(name.clone())).await?;
    let entry = reading.view.local.find_node(&name);
    reading
        .answer(&ask, || NodeServices {
            node: entry.map(|entry| Node::new(&entry.node, &api.datacenter)),
            services: entry.into_iter().flat_map(|e| instances(e)).map(|(_, service)| service).collect::<Vec<_>>(),
        })
        .await
}

fn instances(entry: &NodeEntry) -> impl Iterator<Item = (&str, NodeService<'_>)> {
    entry.instances.iter().map(|entry| (&*entry.instance.value.id, NodeService::new(&entry.instance)))
}

/// Registers a node, an instance, checks: of what has no agent.
pub(crate) async fn register(State(api): ApiState, ask: Ask, Body(body): Body) -> HandlerResult {
    let (registration, datacenter) = decode::decode_registration(&body)?;
    api.check_datacenter(datacenter.as_deref())?;
    api.write(Command::Register(registration)).await?;
    json(&ask, &true)
}

/// Removes a node, an instance or a check.
pub(crate) async fn deregister(State(api): ApiState, ask: Ask, Body(body): Body) -> HandlerResult {
    let (removal, datacenter) = decode::decode_deregistration(&body)?;
    api.check_datacenter(datacenter.as_deref())?;
    api.write(Command::Deregister(removal)).await?;
    json(&ask, &true)
}
