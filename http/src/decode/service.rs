//! Service definitions, as `agent/service/register` takes them, and the fields they share with the catalog's.

use std::collections::BTreeMap;

use muster_catalog::{Address, Instance, Locality, Name, Origin, Port, ServiceAddress, Text, Weights};
use serde_json::Value;

use super::{
    DecodeError,
    check::{Defaults, decode_nested},
    mesh::{read_proxy, read_traffic},
    object::Object,
};
use crate::port::ServiceRegistration;

/// What a port is called that has no name.
const DEFAULT_PORT: &str = "default";
/// An instance has at most so many named ports: each is a DNS name and an endpoint.
const MAX_PORTS: usize = 64;
/// An instance has at most so many checks: each is a task on its host.
const MAX_CHECKS: usize = 64;

/// The body of `agent/service/register`, for the agent's own node.
pub(crate) fn decode_service(body: &[u8], node: &Name) -> Result<ServiceRegistration, DecodeError> {
    let mut object = Object::parse(body)?;
    let name = object.find_text("Name")?.ok_or_else(|| DecodeError::Rule("Missing service name".into()))?;
    let instance = read_instance(&mut object, node, &name, Origin::Agent)?;
    let checks = read_checks(&mut object, &instance)?;
    object.finish()?;
    Ok(ServiceRegistration { instance, checks, replace_existing_checks: false })
}

/// The fields that every instance has; its service's name is taken already.
pub(super) fn read_instance(
    object: &mut Object,
    node: &Name,
    name: &str,
    origin: Origin,
) -> Result<Instance, DecodeError> {
    refuse_unbuilt(object)?;
    let service = Name::label("Name", name).map_err(|error| object.broken("Name", error.to_string()))?;
    let (address, ports) = (read_address(object)?, read_ports(object)?);
    let proxy = read_proxy(object, &ports)?;
    Ok(Instance {
        node: node.clone(),
        id: object.find_text("ID")?.unwrap_or_else(|| Text::from(name)),
        service,
        tags: object.texts("Tags")?,
        address,
        tagged_addresses: read_tagged_addresses(object)?,
        ports,
        meta: object.meta("Meta")?,
        weights: read_weights(object, origin)?,
        locality: read_locality(object)?,
        draining: false,
        maintenance: None,
        enable_tag_override: object.flag("EnableTagOverride")?,
        proxy,
        traffic: read_traffic(object)?,
        origin,
    })
}

fn refuse_unbuilt(object: &mut Object) -> Result<(), DecodeError> {
    object.refuse("SocketPath", "Unix sockets are")?;
    refuse_connect(object)?;
    object.refuse("Token", "tokens are")?;
    object.refuse("Namespace", "namespaces are")?;
    object.refuse("Partition", "partitions are")?;
    object.refuse("PeerName", "writes for a peer are")
}

/// `Connect`: a sidecar is asked for by an object that may be empty, so that it being there is what counts.
fn refuse_connect(object: &mut Object) -> Result<(), DecodeError> {
    let Some(mut connect) = object.object("Connect")? else { return Ok(()) };
    if connect.take("SidecarService").is_some() {
        let field = connect.path("SidecarService");
        let what = "sidecars are (register one as a service of Kind \"connect-proxy\")";
        return Err(DecodeError::Unsupported { field, what });
    }
    connect.refuse("Native", "services that speak mTLS by themselves are")?;
    connect.refuse("PeerMeta", "writes for a peer are")?;
    connect.finish()
}

fn read_address(object: &mut Object) -> Result<Option<Address>, DecodeError> {
    let Some(text) = object.find_text("Address")? else { return Ok(None) };
    let address = Address::parse(&text).ok_or_else(|| {
        object.broken(
            "Address",
            format!("Invalid service address {text:?}: give an IP address or a host name that clients can reach"),
        )
    })?;
    Ok(Some(address))
}

/// `Port` is a single port without a name; `Ports` are several, the default first.
fn read_ports(object: &mut Object) -> Result<Vec<Port>, DecodeError> {
    let single = object.short("Port")?.filter(|port| *port > 0);
    let several = object.list("Ports")?;
    if several.len() > MAX_PORTS {
        return Err(object.broken("Ports", format!("{} ports: at most {MAX_PORTS}", several.len())));
    }
    if several.is_empty() {
        return Ok(single.map(|number| Port { name: DEFAULT_PORT.into(), number }).into_iter().collect());
    }
    let mut ports: Vec<(Port, bool)> = Vec::new();
    for (at, value) in several.into_iter().enumerate() {
        let mut item = Object::new(format!("{}[{at}]", object.path("Ports")), value)?;
        let (name, default) = (item.text("Name")?, item.flag("Default")?);
        let number = item.short("Port")?.filter(|port| *port > 0);
        let number = number.ok_or_else(|| item.broken("Port", "missing: give a number from 1 to 65535"))?;
        Name::label("Name", &name).map_err(|error| item.broken("Name", error.to_string()))?;
        if ports.iter().any(|(port, _)| port.name.eq_ignore_ascii_case(&name)) {
            return Err(item.broken("Name", format!("{name:?} is given twice: names tell ports apart")));
        }
        item.finish()?;
        ports.push((Port { name, number }, default));
    }
    match ports.iter().filter(|(_, default)| *default).count() {
        0 if ports.len() > 1 => Err(object.broken("Ports", "none is the default: set Default on one of them")),
        0 | 1 => {
            // Stable: the others stay in the order given.
            ports.sort_by_key(|(_, default)| !default);
            let ports: Vec<Port> = ports.into_iter().map(|(port, _)| port).collect();
            match single {
                // A client that writes back what it read gives both, and they agree.
                Some(number) if ports.first().is_none_or(|port| port.number != number) => {
                    Err(object.broken("Port", "Port and Ports are both given: give one of them"))
                }
                _ => Ok(ports),
            }
        }
        count => Err(object.broken("Ports", format!("{count} are the default: set Default on one of them"))),
    }
}

fn read_tagged_addresses(object: &mut Object) -> Result<BTreeMap<Text, ServiceAddress>, DecodeError> {
    let path = object.path("TaggedAddresses");
    let mut addresses = BTreeMap::new();
    for (label, value) in object.map("TaggedAddresses")? {
        let mut item = Object::new(format!("{path}.{label}"), value)?;
        let (address, port) = (item.text("Address")?, item.short("Port")?.unwrap_or(0));
        if Address::parse(&address).is_none() {
            return Err(item.broken("Address", format!("{address:?} is not an IP address or host name")));
        }
        item.finish()?;
        addresses.insert(Text::from(label), ServiceAddress { address, port });
    }
    Ok(addresses)
}

/// Clients write weights of 0 into the catalog for none, since their structure has no way to leave them out.
fn read_weights(object: &mut Object, origin: Origin) -> Result<Weights, DecodeError> {
    let Some(mut item) = object.object("Weights")? else { return Ok(Weights::default()) };
    if origin == Origin::Catalog && item.says_nothing() {
        return Ok(Weights::default());
    }
    let default = Weights::default();
    let passing = item.short("Passing")?.unwrap_or(default.passing);
    let warning = item.short("Warning")?.unwrap_or(default.warning);
    if passing == 0 {
        return Err(item.broken("Passing", "0: give a number from 1 to 65535"));
    }
    item.finish()?;
    Ok(Weights { passing, warning })
}

/// Where it stands, of an instance or a node.
pub(super) fn read_locality(object: &mut Object) -> Result<Option<Locality>, DecodeError> {
    let Some(mut item) = object.object("Locality")? else { return Ok(None) };
    let (region, zone) = (item.text("Region")?, item.text("Zone")?);
    if region.is_empty() && !zone.is_empty() {
        return Err(item.broken("Region", "empty while Zone is given: a zone lies in a region"));
    }
    item.finish()?;
    Ok((!region.is_empty()).then_some(Locality { region, zone }))
}

fn read_checks(object: &mut Object, instance: &Instance) -> Result<Vec<crate::port::CheckDefinition>, DecodeError> {
    let single = object.object("Check")?.filter(|check| !check.says_nothing());
    let mut objects: Vec<Object> = single.into_iter().collect();
    let path = object.path("Checks");
    let several = object.list("Checks")?;
    if several.len() + objects.len() > MAX_CHECKS {
        return Err(object.broken("Checks", format!("{} checks: at most {MAX_CHECKS}", several.len())));
    }
    for (at, value) in several.into_iter().enumerate().filter(|(_, value)| !matches!(value, Value::Null)) {
        objects.push(Object::new(format!("{path}[{at}]"), value)?);
    }
    let alone = objects.len() == 1;
    let mut checks: Vec<crate::port::CheckDefinition> = Vec::with_capacity(objects.len());
    for (at, item) in objects.into_iter().enumerate() {
        let id = &instance.id;
        let id = if alone { format!("service:{id}") } else { format!("service:{id}:{}", at + 1) };
        let name = format!("Service '{}' check", instance.service);
        let defaults = Defaults { id: id.into(), name: name.into(), instance: instance.id.clone() };
        let check = decode_nested(item, defaults)?;
        if checks.iter().any(|other| other.id == check.id) {
            return Err(object.broken("Checks", format!("check id {:?} is given twice", check.id)));
        }
        checks.push(check);
    }
    Ok(checks)
}
