//! An instance, in its two shapes: beside its node (`health/service`) and flattened with it (`catalog/service`).

use std::{borrow::Cow, collections::BTreeMap};

use muster_catalog::{Address, Instance, Meta, Node as NodeRow, Row, Text};
use serde::Serialize;

use super::{
    mesh::{Empty, Proxy, Traffic, kind, proxy, traffic},
    node::{Place, address_text, node_addresses, place},
};

/// A node's service as `health/service` and `catalog/node` show it.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct NodeService<'a> {
    #[serde(flatten)]
    parts: NodeServiceParts<'a>,
    create_index: u64,
    modify_index: u64,
}

impl<'a> NodeService<'a> {
    /// The row of an instance.
    pub(crate) fn new(row: &'a Row<Instance>) -> Self {
        Self { parts: NodeServiceParts::new(&row.value), create_index: row.created, modify_index: row.modified }
    }
}

/// What the catalog and the agent both say of an instance.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct NodeServiceParts<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    kind: &'static str,
    #[serde(rename = "ID")]
    id: &'a str,
    service: &'a str,
    tags: &'a [Text],
    address: Cow<'a, str>,
    tagged_addresses: BTreeMap<&'a str, TaggedAddress<'a>>,
    meta: &'a Meta,
    port: u16,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ports: Vec<NamedPort<'a>>,
    weights: Weights,
    enable_tag_override: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    locality: Option<Place<'a>>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    draining: bool,
    proxy: Proxy<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    traffic: Option<Traffic>,
    connect: Empty,
    peer_name: &'static str,
}

impl<'a> NodeServiceParts<'a> {
    /// An instance without its indexes.
    pub(crate) fn new(instance: &'a Instance) -> Self {
        Self {
            kind: kind(instance),
            id: &instance.id,
            service: instance.service.as_str(),
            tags: &instance.tags,
            address: own_address(instance),
            tagged_addresses: tagged_addresses(instance),
            meta: &instance.meta,
            port: instance.default_port().unwrap_or(0),
            ports: named_ports(instance),
            weights: weights(instance),
            enable_tag_override: instance.enable_tag_override,
            locality: instance.locality.as_ref().map(place),
            draining: instance.draining,
            proxy: proxy(instance),
            traffic: instance.traffic.as_deref().map(traffic),
            connect: Empty {},
            peer_name: "",
        }
    }
}

/// An instance flattened with its node, as `catalog/service` shows it.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct CatalogService<'a> {
    #[serde(rename = "ID")]
    id: &'a str,
    node: &'a str,
    address: Cow<'a, str>,
    datacenter: &'a str,
    tagged_addresses: BTreeMap<&'a str, Cow<'a, str>>,
    node_meta: &'a Meta,
    service_kind: &'static str,
    #[serde(rename = "ServiceID")]
    service_id: &'a str,
    service_name: &'a str,
    service_tags: &'a [Text],
    service_address: Cow<'a, str>,
    service_tagged_addresses: BTreeMap<&'a str, TaggedAddress<'a>>,
    service_weights: Weights,
    service_meta: &'a Meta,
    service_port: u16,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    service_ports: Vec<NamedPort<'a>>,
    service_socket_path: &'static str,
    service_enable_tag_override: bool,
    service_proxy: Proxy<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_traffic: Option<Traffic>,
    service_connect: Empty,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_locality: Option<Place<'a>>,
    create_index: u64,
    modify_index: u64,
}

impl<'a> CatalogService<'a> {
    /// The row of an instance with its node of that datacenter.
    pub(crate) fn new(node: &'a NodeRow, row: &'a Row<Instance>, datacenter: &'a str) -> Self {
        let instance = &*row.value;
        Self {
            id: &node.id,
            node: node.name.as_str(),
            address: address_text(&node.address),
            datacenter,
            tagged_addresses: node_addresses(node),
            node_meta: &node.meta,
            service_kind: kind(instance),
            service_id: &instance.id,
            service_name: instance.service.as_str(),
            service_tags: &instance.tags,
            service_address: own_address(instance),
            service_tagged_addresses: tagged_addresses(instance),
            service_weights: weights(instance),
            service_meta: &instance.meta,
            service_port: instance.default_port().unwrap_or(0),
            service_ports: named_ports(instance),
            service_socket_path: "",
            service_enable_tag_override: instance.enable_tag_override,
            service_proxy: proxy(instance),
            service_traffic: instance.traffic.as_deref().map(traffic),
            service_connect: Empty {},
            service_locality: instance.locality.as_ref().map(place),
            create_index: row.created,
            modify_index: row.modified,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct TaggedAddress<'a> {
    address: Cow<'a, str>,
    port: u16,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct NamedPort<'a> {
    name: &'a str,
    port: u16,
    default: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Weights {
    passing: u16,
    warning: u16,
}

/// Empty where the node's address holds: clients of the dialect know to look there.
fn own_address(instance: &Instance) -> Cow<'_, str> {
    instance.address.as_ref().map_or(Cow::Borrowed(""), address_text)
}

/// An instance with an IP address of its own carries it under the labels of its kind, as the dialect's agents do.
fn tagged_addresses(instance: &Instance) -> BTreeMap<&str, TaggedAddress<'_>> {
    let default_port = instance.default_port().unwrap_or(0);
    let mut addresses = BTreeMap::new();
    if let Some(Address::Ip(ip)) = &instance.address {
        let labels = if ip.is_ipv4() { ["lan_ipv4", "wan_ipv4"] } else { ["lan_ipv6", "wan_ipv6"] };
        for label in labels {
            addresses.insert(label, TaggedAddress { address: Cow::Owned(ip.to_string()), port: default_port });
        }
    }
    for (label, own) in &instance.tagged_addresses {
        let port = if own.port == 0 { default_port } else { own.port };
        addresses.insert(label, TaggedAddress { address: Cow::Borrowed(&own.address), port });
    }
    addresses
}

/// The named ports, the default first; none where there is a single one without a name of its own.
fn named_ports(instance: &Instance) -> Vec<NamedPort<'_>> {
    if let [only] = &*instance.ports
        && &*only.name == "default"
    {
        return Vec::new();
    }
    let ports = instance.ports.iter().enumerate();
    ports.map(|(at, port)| NamedPort { name: &port.name, port: port.number, default: at == 0 }).collect()
}

fn weights(instance: &Instance) -> Weights {
    Weights { passing: instance.weights.passing, warning: instance.weights.warning }
}
