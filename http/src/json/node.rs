//! A node.

use std::{borrow::Cow, collections::BTreeMap};

use muster_catalog::{Address, Locality, Meta, Node as NodeRow, Row};
use serde::Serialize;

/// A node as `catalog/nodes` and `health/service` show it.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Node<'a> {
    #[serde(rename = "ID")]
    id: &'a str,
    node: &'a str,
    address: Cow<'a, str>,
    datacenter: &'a str,
    tagged_addresses: BTreeMap<&'a str, Cow<'a, str>>,
    meta: &'a Meta,
    #[serde(skip_serializing_if = "Option::is_none")]
    locality: Option<Place<'a>>,
    create_index: u64,
    modify_index: u64,
}

/// Where something stands.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Place<'a> {
    region: &'a str,
    zone: &'a str,
}

impl<'a> Node<'a> {
    /// The row of a node of that datacenter.
    pub(crate) fn new(row: &'a Row<NodeRow>, datacenter: &'a str) -> Self {
        let node = &*row.value;
        Self {
            id: &node.id,
            node: node.name.as_str(),
            address: address_text(&node.address),
            datacenter,
            tagged_addresses: node_addresses(node),
            meta: &node.meta,
            locality: node.locality.as_ref().map(place),
            create_index: row.created,
            modify_index: row.modified,
        }
    }
}

/// The address as text, without a copy for host names.
pub(super) fn address_text(address: &Address) -> Cow<'_, str> {
    match address {
        Address::Ip(ip) => Cow::Owned(ip.to_string()),
        Address::Host(host) => Cow::Borrowed(host),
    }
}

/// The labels that clients of the dialect look up are there even when the operator gave none.
pub(super) fn node_addresses(node: &NodeRow) -> BTreeMap<&str, Cow<'_, str>> {
    let mut addresses: BTreeMap<&str, Cow<'_, str>> = BTreeMap::new();
    for label in well_known_labels(&node.address) {
        addresses.insert(label, address_text(&node.address));
    }
    addresses.extend(node.tagged_addresses.iter().map(|(label, address)| (&**label, Cow::Borrowed(&**address))));
    addresses
}

/// The labels that an address of that kind goes by.
pub(super) fn well_known_labels(address: &Address) -> &'static [&'static str] {
    match address {
        Address::Ip(ip) if ip.is_ipv4() => &["lan", "lan_ipv4", "wan", "wan_ipv4"],
        Address::Ip(_) => &["lan", "lan_ipv6", "wan", "wan_ipv6"],
        Address::Host(_) => &["lan", "wan"],
    }
}

/// Where something stands, as JSON.
pub(super) fn place(locality: &Locality) -> Place<'_> {
    Place { region: &locality.region, zone: &locality.zone }
}
