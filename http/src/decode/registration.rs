//! The bodies of `catalog/register` and `catalog/deregister`.

use muster_catalog::{Address, Check, CheckKind, Instance, Name, Node, Origin, Registration, Removal, Status, Text};
use serde_json::Value;

use super::{
    DecodeError,
    check::invalid_status,
    object::{Object, clean_output},
    service::{read_instance, read_locality},
};
use crate::error::HttpError;

/// A catalog registration has at most so many checks: one write is one log entry.
const MAX_CHECKS: usize = 256;

/// The body of `catalog/register`, and the datacenter that it names.
pub(crate) fn decode_registration(body: &[u8]) -> Result<(Registration, Option<Text>), HttpError> {
    let mut object = Object::parse(body)?;
    let datacenter = object.find_text("Datacenter")?;
    let name = object.find_text("Node")?.ok_or(HttpError::Missing("Must provide node"))?;
    let name = Name::host("Node", &name).map_err(|error| object.broken("Node", error.to_string()))?;
    let skip = object.flag("SkipNodeUpdate")?;
    let node = read_node(&mut object, &name)?;
    if node.is_none() && !skip {
        return Err(HttpError::Missing("Must provide address if SkipNodeUpdate is not set"));
    }
    let service = object.object("Service")?;
    let instances: Vec<Instance> =
        service.map(|service| read_service(service, &name)).transpose()?.into_iter().collect();
    let checks = read_checks(&mut object, &name)?;
    object.refuse("Partition", "partitions are")?;
    object.refuse("PeerName", "writes for a peer are")?;
    object.finish()?;
    let node = node.filter(|_| !skip);
    Ok((Registration { name, node, instances, checks }, datacenter))
}

/// The body of `catalog/deregister`, and the datacenter that it names.
pub(crate) fn decode_deregistration(body: &[u8]) -> Result<(Removal, Option<Text>), HttpError> {
    let mut object = Object::parse(body)?;
    let datacenter = object.find_text("Datacenter")?;
    let node = object.find_text("Node")?.ok_or(HttpError::Missing("Must provide node"))?;
    let (service, check) = (object.find_text("ServiceID")?, object.find_text("CheckID")?);
    object.pass_over(&["Address"]);
    object.refuse("Namespace", "namespaces are")?;
    object.refuse("Partition", "partitions are")?;
    object.finish()?;
    let node = Name::lookup(&node);
    let removal = match (service, check) {
        (None, None) => Removal::Node(node),
        (Some(id), None) => Removal::Instance { node, id },
        (None, Some(id)) => Removal::Check { node, id },
        (Some(_), Some(_)) => {
            let reason = "CheckID and ServiceID are both given: remove one after the other".to_owned();
            return Err(DecodeError::Rule(reason).into());
        }
    };
    Ok((removal, datacenter))
}

fn read_node(object: &mut Object, name: &Name) -> Result<Option<Node>, DecodeError> {
    let (id, address) = (object.text("ID")?, object.find_text("Address")?);
    let (tagged_addresses, meta) = (object.meta("TaggedAddresses")?, object.meta("NodeMeta")?);
    let locality = read_locality(object)?;
    let Some(address) = address else { return Ok(None) };
    let address = Address::parse(&address).ok_or_else(|| {
        object.broken("Address", format!("{address:?} is not an IP address or host name that clients can reach"))
    })?;
    let origin = Origin::Catalog;
    Ok(Some(Node { name: name.clone(), id, address, tagged_addresses, meta, locality, origin }))
}

fn read_service(mut object: Object, node: &Name) -> Result<Instance, HttpError> {
    let name = object
        .find_text("Service")?
        .ok_or(HttpError::Missing("Must provide service name (Service.Service) when service ID is provided"))?;
    object.pass_over(&["CreateIndex", "ModifyIndex", "ContentHash", "Datacenter"]);
    let instance = read_instance(&mut object, node, &name, Origin::Catalog)?;
    object.finish()?;
    Ok(instance)
}

fn read_checks(object: &mut Object, node: &Name) -> Result<Vec<Check>, DecodeError> {
    let single = object.object("Check")?.filter(|check| !check.says_nothing());
    let mut objects: Vec<Object> = single.into_iter().collect();
    let path = object.path("Checks");
    let several = object.list("Checks")?;
    if several.len() > MAX_CHECKS {
        return Err(object.broken("Checks", format!("{} checks: at most {MAX_CHECKS} at once", several.len())));
    }
    for (at, value) in several.into_iter().enumerate().filter(|(_, value)| !matches!(value, Value::Null)) {
        objects.push(Object::new(format!("{path}[{at}]"), value)?);
    }
    objects.into_iter().map(|object| read_check(object, node)).collect()
}

fn read_check(mut object: Object, node: &Name) -> Result<Check, DecodeError> {
    let named = object.find_text("Node")?;
    if named.is_some_and(|named| Name::lookup(&named) != *node) {
        return Err(object.broken("Node", "names another node than the registration does; leave it out"));
    }
    let (id, name) = (object.find_text("CheckID")?, object.find_text("Name")?);
    let id = id.or_else(|| name.clone()).ok_or_else(|| object.broken("CheckID", "missing: give CheckID or Name"))?;
    let status = match object.find_text("Status")? {
        None => Status::Critical,
        Some(status) => Status::parse(&status).ok_or_else(|| invalid_status(&object.path("Status"), &status))?,
    };
    let service = object.find_text("ServiceID")?;
    let kind = read_kind(&mut object)?;
    let check = Check {
        node: node.clone(),
        id: id.clone(),
        // A check without ServiceID speaks for the node, even beside a service.
        instance: service,
        name: name.unwrap_or(id),
        status,
        notes: object.lines("Notes")?,
        output: clean_output(&object.raw_text("Output")?),
        kind,
        origin: Origin::Catalog,
    };
    object.pass_over(&["ServiceName", "ServiceTags", "CreateIndex", "ModifyIndex", "ExposedPort"]);
    object.refuse("Namespace", "namespaces are")?;
    object.refuse("Partition", "partitions are")?;
    object.refuse("PeerName", "writes for a peer are")?;
    object.finish()?;
    Ok(check)
}

/// How something outside probes: kept for people to read, never run here.
fn read_kind(object: &mut Object) -> Result<CheckKind, DecodeError> {
    let mut kind = CheckKind {
        kind: object.text("Type")?,
        interval: object.duration("Interval")?.unwrap_or_default(),
        timeout: object.duration("Timeout")?.unwrap_or_default(),
        ..CheckKind::default()
    };
    let Some(mut definition) = object.object("Definition")? else { return Ok(kind) };
    for (field, word) in [("HTTP", "http"), ("TCP", "tcp"), ("UDP", "udp"), ("GRPC", "grpc")] {
        let Some(target) = definition.find_text(field)? else { continue };
        if kind.kind.is_empty() {
            kind.kind = word.into();
        }
        kind.target = target;
    }
    for field in ["Interval", "IntervalDuration"] {
        kind.interval = definition.duration(field)?.unwrap_or(kind.interval);
    }
    for field in ["Timeout", "TimeoutDuration"] {
        kind.timeout = definition.duration(field)?.unwrap_or(kind.timeout);
    }
    // The rest says how the outside prober goes about it, which nothing here reads.
    definition.pass_over(&[
        "Header",
        "Method",
        "Body",
        "TLSServerName",
        "TLSSkipVerify",
        "TCPUseTLS",
        "GRPCUseTLS",
        "DisableRedirects",
        "OSService",
        "DeregisterCriticalServiceAfter",
        "DeregisterCriticalServiceAfterDuration",
    ]);
    definition.finish()?;
    Ok(kind)
}
