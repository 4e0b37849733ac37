//! Nodes, instances, checks and what they are made of.

use std::{net::IpAddr, sync::Arc, time::Duration};

use muster_catalog::{
    Address, Check, CheckKind, DirectoryRow, Instance, Locality, Meta, Node, Origin, Port, ServiceAddress, Status,
    Weights,
};

use super::{ConvertError, from_texts, name, required, short, text, texts};
use crate::proto::catalog as pb;

impl From<&Node> for pb::Node {
    fn from(node: &Node) -> Self {
        Self {
            name: node.name.to_string(),
            id: node.id.to_string(),
            address: node.address.to_string(),
            tagged_addresses: pairs(&node.tagged_addresses),
            meta: pairs(&node.meta),
            locality: node.locality.as_ref().map(Into::into),
            origin: origin(node.origin).into(),
        }
    }
}

impl TryFrom<pb::Node> for Node {
    type Error = ConvertError;

    fn try_from(node: pb::Node) -> Result<Self, ConvertError> {
        Ok(Self {
            name: name("node.name", &node.name)?,
            id: text(&node.id),
            address: address("node.address", &node.address)?,
            tagged_addresses: from_pairs(&node.tagged_addresses),
            meta: from_pairs(&node.meta),
            locality: node.locality.map(Into::into),
            origin: from_origin("node.origin", node.origin)?,
        })
    }
}

impl TryFrom<pb::Node> for Arc<Node> {
    type Error = ConvertError;

    fn try_from(node: pb::Node) -> Result<Self, ConvertError> {
        Node::try_from(node).map(Self::new)
    }
}

impl From<&Instance> for pb::Instance {
    fn from(instance: &Instance) -> Self {
        let tagged = instance.tagged_addresses.iter().map(|(label, tagged)| pb::TaggedAddress {
            label: label.to_string(),
            address: tagged.address.to_string(),
            port: tagged.port.into(),
        });
        let ports = instance.ports.iter();
        Self {
            node: instance.node.to_string(),
            id: instance.id.to_string(),
            service: instance.service.to_string(),
            tags: texts(&instance.tags),
            address: instance.address.as_ref().map(ToString::to_string),
            tagged_addresses: tagged.collect(),
            ports: ports.map(|port| pb::Port { name: port.name.to_string(), number: port.number.into() }).collect(),
            meta: pairs(&instance.meta),
            weights: Some(pb::Weights {
                passing: instance.weights.passing.into(),
                warning: instance.weights.warning.into(),
            }),
            locality: instance.locality.as_ref().map(Into::into),
            draining: instance.draining,
            maintenance: instance.maintenance.as_ref().map(ToString::to_string),
            enable_tag_override: instance.enable_tag_override,
            origin: origin(instance.origin).into(),
            proxy: instance.proxy.as_deref().map(Into::into),
            traffic: instance.traffic.as_deref().map(Into::into),
        }
    }
}

impl TryFrom<pb::Instance> for Instance {
    type Error = ConvertError;

    fn try_from(instance: pb::Instance) -> Result<Self, ConvertError> {
        let tagged = instance.tagged_addresses.iter().map(|tagged| {
            let port = short("instance.tagged_addresses.port", tagged.port)?;
            Ok((text(&tagged.label), ServiceAddress { address: text(&tagged.address), port }))
        });
        let ports = instance
            .ports
            .iter()
            .map(|port| Ok(Port { name: text(&port.name), number: short("instance.ports.number", port.number)? }));
        let weights = required("instance.weights", instance.weights)?;
        Ok(Self {
            node: name("instance.node", &instance.node)?,
            id: text(&instance.id),
            service: name("instance.service", &instance.service)?,
            tags: from_texts(&instance.tags),
            address: instance.address.map(|value| address("instance.address", &value)).transpose()?,
            tagged_addresses: tagged.collect::<Result<_, ConvertError>>()?,
            ports: ports.collect::<Result<_, ConvertError>>()?,
            meta: from_pairs(&instance.meta),
            weights: Weights {
                passing: short("instance.weights.passing", weights.passing)?,
                warning: short("instance.weights.warning", weights.warning)?,
            },
            locality: instance.locality.map(Into::into),
            draining: instance.draining,
            maintenance: instance.maintenance.as_deref().map(text),
            enable_tag_override: instance.enable_tag_override,
            proxy: instance.proxy.map(|proxy| proxy.try_into().map(Arc::new)).transpose()?,
            traffic: instance.traffic.map(|traffic| traffic.try_into().map(Arc::new)).transpose()?,
            origin: from_origin("instance.origin", instance.origin)?,
        })
    }
}

impl TryFrom<pb::Instance> for Arc<Instance> {
    type Error = ConvertError;

    fn try_from(instance: pb::Instance) -> Result<Self, ConvertError> {
        Instance::try_from(instance).map(Self::new)
    }
}

impl From<&Check> for pb::Check {
    fn from(check: &Check) -> Self {
        Self {
            node: check.node.to_string(),
            id: check.id.to_string(),
            instance: check.instance.as_ref().map(ToString::to_string),
            name: check.name.to_string(),
            status: status(check.status).into(),
            notes: check.notes.to_string(),
            output: check.output.to_string(),
            kind: Some(pb::CheckKind {
                kind: check.kind.kind.to_string(),
                target: check.kind.target.to_string(),
                interval_milliseconds: milliseconds(check.kind.interval),
                timeout_milliseconds: milliseconds(check.kind.timeout),
            }),
            origin: origin(check.origin).into(),
        }
    }
}

impl TryFrom<pb::Check> for Check {
    type Error = ConvertError;

    fn try_from(check: pb::Check) -> Result<Self, ConvertError> {
        let kind = required("check.kind", check.kind)?;
        Ok(Self {
            node: name("check.node", &check.node)?,
            id: text(&check.id),
            instance: check.instance.as_deref().map(text),
            name: text(&check.name),
            status: from_status("check.status", check.status)?,
            notes: text(&check.notes),
            output: text(&check.output),
            kind: CheckKind {
                kind: text(&kind.kind),
                target: text(&kind.target),
                interval: Duration::from_millis(kind.interval_milliseconds),
                timeout: Duration::from_millis(kind.timeout_milliseconds),
            },
            origin: from_origin("check.origin", check.origin)?,
        })
    }
}

impl TryFrom<pb::Check> for Arc<Check> {
    type Error = ConvertError;

    fn try_from(check: pb::Check) -> Result<Self, ConvertError> {
        Check::try_from(check).map(Self::new)
    }
}

impl From<&DirectoryRow> for pb::DirectoryRow {
    fn from(row: &DirectoryRow) -> Self {
        Self { service: row.service.to_string(), index: row.index, tags: texts(&row.tags) }
    }
}

impl TryFrom<pb::DirectoryRow> for DirectoryRow {
    type Error = ConvertError;

    fn try_from(row: pb::DirectoryRow) -> Result<Self, ConvertError> {
        let service = name("directory.service", &row.service)?;
        Ok(Self { service, index: row.index, tags: from_texts(&row.tags) })
    }
}

impl From<&Locality> for pb::Locality {
    fn from(locality: &Locality) -> Self {
        Self { region: locality.region.to_string(), zone: locality.zone.to_string() }
    }
}

impl From<pb::Locality> for Locality {
    fn from(locality: pb::Locality) -> Self {
        Self { region: text(&locality.region), zone: text(&locality.zone) }
    }
}

fn pairs(meta: &Meta) -> Vec<pb::Pair> {
    meta.iter().map(|(key, value)| pb::Pair { key: key.to_string(), value: value.to_string() }).collect()
}

fn from_pairs(pairs: &[pb::Pair]) -> Meta {
    pairs.iter().map(|pair| (text(&pair.key), text(&pair.value))).collect()
}

fn address(field: &'static str, value: &str) -> Result<Address, ConvertError> {
    if value.is_empty() {
        return Err(ConvertError::Missing(field));
    }
    Ok(value.parse::<IpAddr>().map_or_else(|_| Address::Host(text(value)), Address::Ip))
}

pub(super) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn origin(origin: Origin) -> pb::Origin {
    match origin {
        Origin::Agent => pb::Origin::Agent,
        Origin::Catalog => pb::Origin::Catalog,
        Origin::Registry => pb::Origin::Registry,
    }
}

fn from_origin(field: &'static str, value: i32) -> Result<Origin, ConvertError> {
    match pb::Origin::try_from(value) {
        Ok(pb::Origin::Agent) => Ok(Origin::Agent),
        Ok(pb::Origin::Catalog) => Ok(Origin::Catalog),
        Ok(pb::Origin::Registry) => Ok(Origin::Registry),
        Ok(pb::Origin::Unspecified) => Err(ConvertError::Missing(field)),
        Err(_) => Err(ConvertError::Unknown { field, value }),
    }
}

pub(super) fn status(status: Status) -> pb::CheckStatus {
    match status {
        Status::Passing => pb::CheckStatus::Passing,
        Status::Warning => pb::CheckStatus::Warning,
        Status::Critical => pb::CheckStatus::Critical,
    }
}

pub(super) fn from_status(field: &'static str, value: i32) -> Result<Status, ConvertError> {
    match pb::CheckStatus::try_from(value) {
        Ok(pb::CheckStatus::Passing) => Ok(Status::Passing),
        Ok(pb::CheckStatus::Warning) => Ok(Status::Warning),
        Ok(pb::CheckStatus::Critical) => Ok(Status::Critical),
        Ok(pb::CheckStatus::Unspecified) => Err(ConvertError::Missing(field)),
        Err(_) => Err(ConvertError::Unknown { field, value }),
    }
}
