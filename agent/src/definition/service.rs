//! The rules for a service: each refusal names the key, the value and the remedy.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use muster_catalog::{Address, InstanceId, Locality, Meta, Name, Port, ServiceAddress, Text, Weights};

use super::{CheckDefinition, InvalidDefinition, ServiceDefinition, ServiceText};

/// Ids are keys in logs, URLs and the catalog; longer ones are accidents.
const MAX_ID: usize = 256;
/// Tags are sent to every replica with their instance.
const MAX_TAGS: usize = 64;
/// One TXT string.
const MAX_TAG: usize = 255;
/// The limits that tools of the v1 dialect know: pairs, key and value lengths.
const MAX_META: usize = 64;
const MAX_META_KEY: usize = 128;
const MAX_META_VALUE: usize = 512;
/// A process with more listening ports than this should be several services.
const MAX_PORTS: usize = 32;
/// Labels such as lan and wan.
const MAX_TAGGED_ADDRESSES: usize = 16;
/// Each costs a task and a probe per interval.
const MAX_CHECKS: usize = 32;
/// The name of the port of a service that gave only a number.
const ONLY_PORT: &str = "default";

type Invalid = InvalidDefinition;

impl ServiceText {
    /// Checks every rule; `at` is the key it stands under, for errors.
    pub fn validate(&self, at: &str) -> Result<ServiceDefinition, InvalidDefinition> {
        let name = Name::label("name", &self.name).map_err(|error| Invalid::new(key(at, "name"), error.to_string()))?;
        let id = validate_id(&key(at, "id"), self.id.as_deref().unwrap_or(name.as_str()))?;
        let ports = self.ports(at)?;
        let proxy = self.proxy.as_ref().map(|proxy| proxy.validate(&key(at, "proxy"), &ports));
        let traffic = self.traffic.as_ref().map(|traffic| traffic.validate(&key(at, "traffic")));
        Ok(ServiceDefinition {
            tags: self.tags(at)?,
            address: self.address(at)?,
            tagged_addresses: self.tagged_addresses(at)?,
            ports,
            meta: self.meta(at)?,
            weights: self.weights(at)?,
            locality: self.locality(),
            enable_tag_override: self.enable_tag_override.unwrap_or(false),
            proxy: proxy.transpose()?.map(Arc::new),
            traffic: traffic.transpose()?.map(Arc::new),
            checks: self.checks(at, &id, &name)?,
            id,
            name,
        })
    }

    fn tags(&self, at: &str) -> Result<Vec<Text>, Invalid> {
        limit(&key(at, "tags"), "tags", self.tags.len(), MAX_TAGS)?;
        let mut seen = BTreeSet::new();
        let mut tags = Vec::with_capacity(self.tags.len());
        for (index, tag) in self.tags.iter().enumerate() {
            validate_text(&format!("{}[{index}]", key(at, "tags")), tag, MAX_TAG)?;
            if seen.insert(tag.as_str()) {
                tags.push(Text::from(tag.as_str()));
            }
        }
        Ok(tags)
    }

    fn address(&self, at: &str) -> Result<Option<Address>, Invalid> {
        let Some(text) = self.address.as_deref().filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        parse_address(&key(at, "address"), text).map(Some)
    }

    fn tagged_addresses(&self, at: &str) -> Result<BTreeMap<Text, ServiceAddress>, Invalid> {
        let at = key(at, "tagged_addresses");
        limit(&at, "tagged addresses", self.tagged_addresses.len(), MAX_TAGGED_ADDRESSES)?;
        let mut addresses = BTreeMap::new();
        for (label, written) in &self.tagged_addresses {
            let at = format!("{at}.{label}");
            validate_text(&at, label, MAX_META_KEY)?;
            let address = Text::from(parse_address(&at, &written.address)?.to_string());
            addresses.insert(Text::from(label.as_str()), ServiceAddress { address, port: written.port });
        }
        Ok(addresses)
    }

    fn ports(&self, at: &str) -> Result<Vec<Port>, Invalid> {
        let at_ports = key(at, "ports");
        if let Some(number) = self.port {
            if !self.ports.is_empty() {
                return Err(Invalid::new(
                    key(at, "port"),
                    format!("{number} stands beside `ports`: write one of them"),
                ));
            }
            return Ok(vec![port(&key(at, "port"), self.default_port.as_deref().unwrap_or(ONLY_PORT), number)?]);
        }
        limit(&at_ports, "ports", self.ports.len(), MAX_PORTS)?;
        let named = |(name, number): (&String, &u16)| port(&format!("{at_ports}.{name}"), name, *number);
        let mut ports = self.ports.iter().map(named).collect::<Result<Vec<_>, _>>()?;
        let folded: BTreeSet<_> = ports.iter().map(|port| port.name.to_ascii_lowercase()).collect();
        if folded.len() < ports.len() {
            return Err(Invalid::new(
                at_ports,
                "two names differ in case only: port names are found without regard to it",
            ));
        }
        let Some(default) = self.default_port.as_deref() else {
            if ports.len() > 1 {
                let first = &ports[0].name;
                let remedy =
                    format!("{} ports and no default_port: add for example `default_port = {first:?}`", ports.len());
                return Err(Invalid::new(at_ports, remedy));
            }
            return Ok(ports);
        };
        let Some(position) = ports.iter().position(|port| &*port.name == default) else {
            let message = format!("{default:?} is none of the ports: name one of them");
            return Err(Invalid::new(key(at, "default_port"), message));
        };
        ports[..=position].rotate_right(1);
        Ok(ports)
    }

    fn meta(&self, at: &str) -> Result<Meta, Invalid> {
        let at = key(at, "meta");
        limit(&at, "pairs", self.meta.len(), MAX_META)?;
        let mut meta = Meta::new();
        for (name, value) in &self.meta {
            let at = format!("{at}.{name}");
            let key_ok = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
            if name.is_empty() || name.len() > MAX_META_KEY || !key_ok {
                let rule = format!("a key is 1 to {MAX_META_KEY} letters, digits, hyphens and underscores");
                return Err(Invalid::new(at, format!("{:?} is not a meta key: {rule}", shorten(name))));
            }
            if value.len() > MAX_META_VALUE {
                let message = format!("the value is {} bytes long: at most {MAX_META_VALUE} are kept", value.len());
                return Err(Invalid::new(at, message));
            }
            meta.insert(Text::from(name.as_str()), Text::from(value.as_str()));
        }
        Ok(meta)
    }

    fn weights(&self, at: &str) -> Result<Weights, Invalid> {
        let written = self.weights.unwrap_or_default();
        if written.passing == 0 {
            let message = "0 would take no traffic even when all is well: write 1 to 65535, or use maintenance";
            return Err(Invalid::new(key(at, "weights.passing"), message));
        }
        Ok(Weights { passing: written.passing, warning: written.warning })
    }

    fn locality(&self) -> Option<Locality> {
        let written = self.locality.as_ref()?;
        let empty = written.region.is_empty() && written.zone.is_empty();
        (!empty).then(|| Locality { region: Text::from(&*written.region), zone: Text::from(&*written.zone) })
    }

    fn checks(&self, at: &str, id: &InstanceId, name: &Name) -> Result<Vec<CheckDefinition>, Invalid> {
        let at = key(at, "checks");
        limit(&at, "checks", self.checks.len(), MAX_CHECKS)?;
        let mut seen = BTreeSet::new();
        let mut checks = Vec::with_capacity(self.checks.len());
        for (index, written) in self.checks.iter().enumerate() {
            let default_id = match self.checks.len() {
                1 => format!("service:{id}"),
                _ => format!("service:{id}:{}", index + 1),
            };
            let at = format!("{at}[{index}]");
            let check = written.validate(&at, &default_id, &format!("Service '{name}' check"), Some(id.clone()))?;
            if !seen.insert(check.id.clone()) {
                let message = format!("{:?} is the id of an earlier check: give each its own", check.id);
                return Err(Invalid::new(format!("{at}.id"), message));
            }
            checks.push(check);
        }
        Ok(checks)
    }
}

fn port(at: &str, name: &str, number: u16) -> Result<Port, Invalid> {
    if number == 0 {
        return Err(Invalid::new(at, "0 is no port: write 1 to 65535, or leave it out for a service without ports"));
    }
    let name = Name::label("port name", name).map_err(|error| Invalid::new(at, error.to_string()))?;
    Ok(Port { name: Text::from(name.as_str()), number })
}

fn parse_address(at: &str, text: &str) -> Result<Address, Invalid> {
    Address::parse(text).ok_or_else(|| {
        let text = shorten(text);
        let remedy = "write an IP address or host name without a port; 0.0.0.0 and :: are no addresses to reach";
        Invalid::new(at, format!("{text:?} is no address: {remedy}"))
    })
}

pub(super) fn validate_id(at: &str, id: &str) -> Result<Text, Invalid> {
    if id.is_empty() {
        return Err(Invalid::new(at, "it is empty: leave it out, or give it an id that is unique on this node"));
    }
    validate_text(at, id, MAX_ID)?;
    Ok(Text::from(id))
}

pub(super) fn validate_text(at: &str, text: &str, longest: usize) -> Result<(), Invalid> {
    if text.len() > longest {
        return Err(Invalid::new(
            at,
            format!("{:?} is {} bytes long: at most {longest} fit", shorten(text), text.len()),
        ));
    }
    if text.chars().any(char::is_control) {
        let message = format!("{:?} has a control character: write printable text", shorten(text));
        return Err(Invalid::new(at, message));
    }
    Ok(())
}

pub(super) fn limit(at: &str, what: &str, count: usize, most: usize) -> Result<(), Invalid> {
    if count <= most {
        return Ok(());
    }
    Err(Invalid::new(at, format!("{count} {what} are too many: at most {most} are kept")))
}

pub(super) fn key(at: &str, name: &str) -> String {
    if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") }
}

/// What is shown of a value in a message.
pub(super) fn shorten(text: &str) -> String {
    text.chars().take(80).collect()
}
