//! An instance: one process of a service on a node.

use std::{collections::BTreeMap, sync::Arc};

use crate::{Address, Meta, Name, Origin, Proxy, Text, Traffic};

/// An instance's id, unique on its node; the service's name unless the operator chose another.
pub type InstanceId = Text;

/// One process of a service on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// The node it runs on.
    pub node: Name,
    /// Unique on the node.
    pub id: InstanceId,
    /// The service that clients ask for.
    pub service: Name,
    /// In the order given, without duplicates.
    pub tags: Vec<Text>,
    /// Its own address; the node's when absent.
    pub address: Option<Address>,
    /// Further addresses by label (`lan`, `wan`, …).
    pub tagged_addresses: BTreeMap<Text, ServiceAddress>,
    /// Named ports; the first is the default.
    pub ports: Vec<Port>,
    /// Free data.
    pub meta: Meta,
    /// How much traffic it takes, relative to the others.
    pub weights: Weights,
    /// Where it stands; the node's when absent.
    pub locality: Option<Locality>,
    /// Existing connections may finish, new ones go elsewhere.
    pub draining: bool,
    /// Taken out on purpose, with the reason.
    pub maintenance: Option<Text>,
    /// Whether tags edited in the catalog survive the agent's sync (kept for the v1 dialect).
    pub enable_tag_override: bool,
    /// What it carries, when it is a proxy. From catalog format 2.
    pub proxy: Option<Arc<Proxy>>,
    /// How its service wants to be called. From catalog format 2.
    pub traffic: Option<Arc<Traffic>>,
    /// Who may remove the row.
    pub origin: Origin,
}

impl Instance {
    /// The port that a client gets who names none; `None` for a service without ports.
    pub fn default_port(&self) -> Option<u16> {
        self.ports.first().map(|port| port.number)
    }

    /// The number of the named port, without regard to case.
    pub fn find_port(&self, name: &str) -> Option<u16> {
        self.ports.iter().find(|port| port.name.eq_ignore_ascii_case(name)).map(|port| port.number)
    }

    /// Whether it carries the tag, without regard to case.
    pub fn has_tag(&self, tag: &str) -> bool {
        self.tags.iter().any(|own| own.eq_ignore_ascii_case(tag))
    }
}

/// A named port of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// A DNS label, `default` when the operator gave none.
    pub name: Text,
    /// The number.
    pub number: u16,
}

/// An address and port under a label, as the v1 dialect's `TaggedAddresses` hold them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAddress {
    /// The address.
    pub address: Text,
    /// The port, 0 when the default port is meant.
    pub port: u16,
}

/// How much traffic an instance takes in each state, relative to the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weights {
    /// 1 to 65535.
    pub passing: u16,
    /// 0 to 65535; 0 takes a warning instance out.
    pub warning: u16,
}

impl Default for Weights {
    fn default() -> Self {
        Self { passing: 1, warning: 1 }
    }
}

/// Where something stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Locality {
    /// For example `eu-west`.
    pub region: Text,
    /// For example `eu-west-1a`; may be empty.
    pub zone: Text,
}
