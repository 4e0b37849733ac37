//! A node: a host running an agent, or one that the catalog API registered from outside.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use crate::{Locality, Name, Text};

/// Free key–value data of a node or an instance, in key order.
pub type Meta = BTreeMap<Text, Text>;

/// A host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What clients call it.
    pub name: Name,
    /// The identity of the host's agent, random and kept on its disk; empty for nodes without an agent.
    pub id: Text,
    /// Where instances without an address of their own are reached.
    pub address: Address,
    /// Further addresses by label (`lan`, `wan`, …).
    pub tagged_addresses: Meta,
    /// Free data.
    pub meta: Meta,
    /// Where it stands.
    pub locality: Option<Locality>,
    /// Who may remove the row.
    pub origin: Origin,
}

/// Who owns a row. Sync removes only rows of its own origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// The agent on the row's node.
    Agent,
    /// The catalog API (`/v1/catalog/register`).
    Catalog,
    /// The registry itself (node liveness).
    Registry,
}

/// Where something is reached: an IP address, or a host name that the client resolves.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// An IPv4 or IPv6 address.
    Ip(IpAddr),
    /// A host name.
    Host(Text),
}

impl Address {
    /// Reads an IP address or host name; `None` for empty text, spaces, ports or unspecified addresses.
    pub fn parse(text: &str) -> Option<Self> {
        if let Ok(ip) = text.parse::<IpAddr>() {
            return (!ip.is_unspecified()).then_some(Self::Ip(ip));
        }
        let host = text.strip_suffix('.').unwrap_or(text);
        let label_ok = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        (host.len() <= 253 && host.split('.').all(label_ok)).then(|| Self::Host(Text::from(host)))
    }

    /// The IP address, if it is one.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Ip(ip) => Some(*ip),
            Self::Host(_) => None,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Host(host) => f.write_str(host),
        }
    }
}
