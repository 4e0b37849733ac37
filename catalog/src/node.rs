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
    /// Reads an IP address or host name; `None` for empty text, spaces, ports or unspecified addresses. An IPv4 address
    /// written as IPv6 (`::ffff:10.0.0.1`) is the IPv4 address: that is what clients can ask for.
    pub fn parse(text: &str) -> Option<Self> {
        if let Ok(ip) = text.parse::<IpAddr>() {
            let ip = ip.to_canonical();
            return (!ip.is_unspecified()).then_some(Self::Ip(ip));
        }
        let host = text.strip_suffix('.').unwrap_or(text);
        let label_ok = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        // No top-level domain is a number: `10.0.0.256` is a slip of the pen, and no name that anybody can resolve.
        let number = host.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
        (host.len() <= 253 && !number && host.split('.').all(label_ok)).then(|| Self::Host(Text::from(host)))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_meant_as_an_address_is_one_or_is_refused() {
        for (text, expected) in [
            ("10.0.0.1", Some("10.0.0.1")),
            ("::ffff:10.0.0.1", Some("10.0.0.1")),
            ("2001:db8::1", Some("2001:db8::1")),
            ("db-1.internal.", Some("db-1.internal")),
            ("1and1.example", Some("1and1.example")),
            ("10.0.0.256", None),
            ("10.0.0", None),
            ("::ffff:0.0.0.0", None),
            ("0.0.0.0", None),
            ("a b", None),
            ("", None),
        ] {
            let found = Address::parse(text).map(|address| address.to_string());
            assert_eq!(found.as_deref(), expected, "{text:?}");
        }
    }
}
