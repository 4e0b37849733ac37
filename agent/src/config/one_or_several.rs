//! One address, or a list of them.

use std::net::SocketAddr;

use serde::{Deserialize, Deserializer, de::Error};

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    One(String),
    Several(Vec<String>),
}

/// Reads `"127.0.0.1:53"` as a list of one.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<SocketAddr>, D::Error> {
    let refused = |given: &str| D::Error::custom(format!("{given} is no address: give ip:port, or a list of them"));
    let written = Written::deserialize(deserializer).map_err(|_| refused("this"))?;
    let written = match written {
        Written::One(address) => vec![address],
        Written::Several(addresses) => addresses,
    };
    written.iter().map(|address| address.parse().map_err(|_| refused(&format!("{address:?}")))).collect()
}
