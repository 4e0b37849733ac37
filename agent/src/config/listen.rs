//! Addresses to listen on: one, or a list of them.

use std::net::SocketAddr;

use serde::{
    Deserialize, Deserializer,
    de::{Error, IgnoredAny},
};

/// The ports of the examples, where what was given has none.
const HTTP: u16 = 8500;
const DNS: u16 = 53;

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    One(String),
    Several(Vec<String>),
    Port(u16),
    Other(IgnoredAny),
}

/// Reads `127.0.0.1:53`; what is none is answered with one that is.
pub(crate) fn parse(text: &str) -> Result<SocketAddr, String> {
    parse_for(text, HTTP)
}

fn parse_for(text: &str, usual: u16) -> Result<SocketAddr, String> {
    let written = || text.rsplit(':').next().and_then(|port| port.parse().ok());
    text.parse().map_err(|_| refuse(&format!("{text:?}"), written().unwrap_or(usual)))
}

fn refuse(given: &str, port: u16) -> String {
    format!("{given} is no address: give ip:port, for example \"127.0.0.1:{port}\"")
}

/// Reads one address.
pub(super) fn one<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let read = match Written::deserialize(deserializer)? {
        Written::One(address) => parse(&address),
        Written::Port(port) => Err(refuse(&port.to_string(), port)),
        Written::Several(_) | Written::Other(_) => Err(refuse("this", HTTP)),
    };
    read.map_err(D::Error::custom)
}

/// Reads `"127.0.0.1:53"` as a list of one.
pub(super) fn one_or_several<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<SocketAddr>, D::Error> {
    let read = match Written::deserialize(deserializer)? {
        Written::One(address) => parse_for(&address, DNS).map(|address| vec![address]),
        Written::Several(addresses) => addresses.iter().map(|address| parse_for(address, DNS)).collect(),
        Written::Port(port) => Err(refuse(&port.to_string(), port)),
        Written::Other(_) => Err(refuse("this", DNS)),
    };
    read.map_err(|why| D::Error::custom(format!("{why}, or a list of them")))
}
