//! What a name asks for. Pure: a name and the zones in, a [`Question`] out, whatever the bytes are.
//!
//! ```text
//! [<tag>.]<service>.service            instances, of one tag; the tag may have dots
//! <port>.port.<service>.service        instances, with that named port
//! _<service>._<tcp|port|tag>[.service] RFC 2782
//! <node>.node                          a node; its name may have dots
//! <hex>.addr                           an address, as SRV targets name it
//! ns                                   the name server
//! ```
//!
//! Each but the last may be followed by `.<datacenter>` or `.<datacenter>.dc`, then the zone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::Name as DnsName;
use muster_catalog::Name;

use crate::{Zone, Zones};

/// A name of the longest permitted length has 127 labels; no form needs as many, and a stack array holds them.
const MAX_LABELS: usize = 128;

/// What a name asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question<'z> {
    /// It stands in no zone that is served here.
    Outside,
    /// It stands in a zone.
    Inside {
        /// The zone.
        zone: &'z Zone,
        /// What in it is asked for.
        subject: Subject,
    },
}

/// What in a zone is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// The zone itself.
    Apex,
    /// A name without records of its own, with names below it (`service.<zone>`, `<datacenter>.<zone>`).
    Subtree,
    /// `ns.<zone>`.
    NameServer,
    /// Instances of a service.
    Service {
        /// The service.
        service: Name,
        /// Which of its instances.
        selector: Selector,
    },
    /// A node.
    Node(Name),
    /// An address, spelt in hexadecimal.
    Addr(IpAddr),
    /// No form of name, another datacenter, or not made of text: there is no such name.
    Nothing,
}

/// Which instances of a service are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// All.
    All,
    /// Those that carry the tag.
    Tag(String),
    /// Those that have the named port, which SRV then names.
    Port(String),
    /// RFC 2782's second label: a named port if any instance has it, else a tag.
    PortOrTag(String),
}

/// Reads a name. Never fails: what is no name form asks for nothing.
pub fn parse<'z>(name: &DnsName, zones: &'z Zones) -> Question<'z> {
    let mut labels: [&[u8]; MAX_LABELS] = [&[]; MAX_LABELS];
    let mut count = 0;
    for label in name.iter() {
        let Some(slot) = labels.get_mut(count) else { return Question::Outside };
        *slot = label;
        count += 1;
    }
    let Some((zone, left)) = zones.find(&labels[..count]) else { return Question::Outside };
    let mut words: [&str; MAX_LABELS] = [""; MAX_LABELS];
    for (word, label) in words.iter_mut().zip(left) {
        match find_word(label) {
            Some(text) => *word = text,
            None => return Question::Inside { zone, subject: Subject::Nothing },
        }
    }
    Question::Inside { zone, subject: parse_subject(&words[..left.len()], zones.datacenter.as_key()) }
}

/// A label as text; `None` for bytes that no name here has. A dot within a label is not the dot between two.
fn find_word(label: &[u8]) -> Option<&str> {
    let plain = |byte: &u8| byte.is_ascii_graphic() && *byte != b'.';
    if label.iter().all(plain) { std::str::from_utf8(label).ok() } else { None }
}

fn parse_subject(words: &[&str], datacenter: &str) -> Subject {
    let is = |word: &str, keyword: &str| word.eq_ignore_ascii_case(keyword);
    let (words, in_datacenter) = match words {
        [left @ .., own, dc] if is(dc, "dc") && is(own, datacenter) => (left, true),
        [left @ .., own] if is(own, datacenter) => (left, true),
        all => (all, false),
    };
    match words {
        [] if in_datacenter => Subject::Subtree,
        [] => Subject::Apex,
        [ns] if is(ns, "ns") && !in_datacenter => Subject::NameServer,
        [dc] if is(dc, "dc") && !in_datacenter => Subject::Subtree,
        [keyword] if ["service", "node", "addr"].iter().any(|known| is(keyword, known)) => Subject::Subtree,
        [left @ .., keyword] if is(keyword, "service") => parse_service(left),
        [left @ .., keyword] if is(keyword, "node") => Subject::Node(Name::lookup(&left.join("."))),
        [hex, keyword] if is(keyword, "addr") => find_address(hex).map_or(Subject::Nothing, Subject::Addr),
        // RFC 2782 names may go without the `service` label; nothing else may.
        [protocol] | [_, protocol] if protocol.starts_with('_') => parse_service(words),
        _ => Subject::Nothing,
    }
}

fn parse_service(words: &[&str]) -> Subject {
    let all = |service: &str| Subject::Service { service: Name::lookup(service), selector: Selector::All };
    let some = |service: &str, selector| Subject::Service { service: Name::lookup(service), selector };
    match words {
        // No service's name begins so. Which ports and tags there are is not looked up: it would be a look at every instance.
        [second] if second.starts_with('_') => Subject::Subtree,
        [service] => all(service),
        [service, second] if service.starts_with('_') && second.starts_with('_') => {
            let (service, second) = (&service[1..], &second[1..]);
            if second.eq_ignore_ascii_case("tcp") {
                all(service)
            } else {
                some(service, Selector::PortOrTag(second.to_owned()))
            }
        }
        [port, keyword, service] if keyword.eq_ignore_ascii_case("port") => {
            some(service, Selector::Port((*port).to_owned()))
        }
        [tag @ .., service] => some(service, Selector::Tag(tag.join("."))),
        [] => Subject::Subtree,
    }
}

/// Reads 8 hexadecimal digits as IPv4, 32 as IPv6.
fn find_address(hex: &str) -> Option<IpAddr> {
    // The standard parser takes a sign, which is no digit here.
    if !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    match hex.len() {
        8 => u32::from_str_radix(hex, 16).ok().map(|bits| Ipv4Addr::from_bits(bits).into()),
        32 => u128::from_str_radix(hex, 16).ok().map(|bits| Ipv6Addr::from_bits(bits).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
