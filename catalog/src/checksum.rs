//! A checksum of all rows of a catalog, by which the registry's members find out that theirs differ.
//!
//! It is the sum, modulo 2^128, of a hash of each row: of nodes, instances and checks with the indexes that made and
//! changed them, and of the order of each node's writes. So it does not depend on the order in which rows came, `fold`
//! keeps it for the price of hashing what comes and goes, and whoever loads a catalog comes to the same by hashing all
//! of it. What follows from the rows (services with their tags, blocking indexes) is not in it. Members alone keep it.
//!
//! The hash of a row is the state after these words of 64 bits, from the state 0: for each word `state = (state XOR
//! word) × MULTIPLIER`, then `state = state XOR (state >> 64)`; two words of 0 come last. A row begins with its kind. A
//! number is a word; a text is its length in bytes and its bytes, eight to a word, the first one lowest, filled up with
//! zeros; a list is its length and its items; what may be absent is 0, or 1 and its value.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use crate::{
    Address, Check, CheckKind, Inbound, Instance, InstanceEntry, Locality, Meta, Name, Node, NodeEntry, Origin,
    OutlierDetection, Port, Protocol, Proxy, Row, ServiceAddress, Snapshot, Status, Traffic, Upstream, Weights, Writer,
};

/// What a checksum covers and how. Members of builds that differ in it do not compare theirs.
///
/// A field that comes to a row raises it, unless rows without the field keep the hash they had: then it is hashed behind
/// the others, and only where it is set.
pub const CHECKSUM_VERSION: u32 = 1;

/// Odd, so that multiplying by it loses nothing, and otherwise without meaning: digits of the golden ratio.
const MULTIPLIER: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;

/// The checksum of a catalog's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Checksum(pub u128);

/// The checksum that a Snapshot keeps, where it keeps one. It says nothing that the rows do not say, so Snapshots with
/// equal rows are equal with and without it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Kept(Option<u128>);

impl PartialEq for Kept {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Kept {}

impl Kept {
    /// A row came.
    pub(crate) fn comes(&mut self, row: &impl Hashed) {
        if let Some(sum) = &mut self.0 {
            *sum = sum.wrapping_add(hash(row));
        }
    }

    /// A row went.
    pub(crate) fn goes(&mut self, row: &impl Hashed) {
        if let Some(sum) = &mut self.0 {
            *sum = sum.wrapping_sub(hash(row));
        }
    }

    /// An instance went with its checks.
    pub(crate) fn instance_goes(&mut self, entry: &InstanceEntry) {
        self.goes(&entry.instance);
        entry.checks.iter().for_each(|check| self.goes(check));
    }

    /// A node went with all that stood on it.
    pub(crate) fn node_goes(&mut self, entry: &NodeEntry) {
        self.goes(&entry.node);
        entry.checks.iter().for_each(|check| self.goes(check));
        entry.instances.iter().for_each(|instance| self.instance_goes(instance));
    }
}

impl Snapshot {
    /// Keeps the checksum of the rows from now on; hashes those that there are.
    pub fn keep_checksum(&mut self) {
        let mut sum = Kept(Some(0));
        for node in self.nodes.values() {
            sum.comes(&node.node);
            node.checks.iter().for_each(|check| sum.comes(check));
            for entry in &node.instances {
                sum.comes(&entry.instance);
                entry.checks.iter().for_each(|check| sum.comes(check));
            }
        }
        for (node, writer) in &self.writers {
            sum.comes(&(node, *writer));
        }
        self.checksum = sum;
    }

    /// The checksum of the rows, where it is kept.
    pub fn checksum(&self) -> Option<Checksum> {
        self.checksum.0.map(Checksum)
    }
}

/// The state of a hash.
pub(crate) struct Hash(u128);

fn hash(row: &impl Hashed) -> u128 {
    let mut hash = Hash(0);
    row.feed(&mut hash);
    hash.number(0);
    hash.number(0);
    hash.0
}

impl Hash {
    fn number(&mut self, word: u64) {
        self.0 = (self.0 ^ u128::from(word)).wrapping_mul(MULTIPLIER);
        self.0 ^= self.0 >> 64;
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        let (words, rest) = bytes.as_chunks();
        words.iter().for_each(|word| self.number(u64::from_le_bytes(*word)));
        if !rest.is_empty() {
            let mut word = [0; 8];
            word[..rest.len()].copy_from_slice(rest);
            self.number(u64::from_le_bytes(word));
        }
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn option<T>(&mut self, value: Option<T>, feed: impl FnOnce(&mut Self, T)) {
        match value {
            None => self.number(0),
            Some(value) => {
                self.number(1);
                feed(self, value);
            }
        }
    }

    fn list<T>(&mut self, items: impl ExactSizeIterator<Item = T>, mut feed: impl FnMut(&mut Self, T)) {
        self.number(items.len() as u64);
        items.for_each(|item| feed(self, item));
    }

    fn name(&mut self, name: &Name) {
        self.text(name.as_str());
    }

    fn flag(&mut self, flag: bool) {
        self.number(flag.into());
    }

    fn duration(&mut self, duration: Duration) {
        self.number(duration.as_secs());
        self.number(duration.subsec_nanos().into());
    }

    fn meta(&mut self, meta: &Meta) {
        self.list(meta.iter(), |hash, (key, value)| {
            hash.text(key);
            hash.text(value);
        });
    }

    fn origin(&mut self, origin: Origin) {
        self.number(match origin {
            Origin::Agent => 1,
            Origin::Catalog => 2,
            Origin::Registry => 3,
        });
    }

    fn protocol(&mut self, protocol: Protocol) {
        self.text(protocol.as_str());
    }

    fn address(&mut self, address: &Address) {
        match address {
            Address::Ip(std::net::IpAddr::V4(ip)) => self.bytes(&ip.octets()),
            Address::Ip(std::net::IpAddr::V6(ip)) => self.bytes(&ip.octets()),
            Address::Host(host) => {
                self.number(u64::MAX);
                self.text(host);
            }
        }
    }

    fn socket(&mut self, socket: SocketAddr) {
        self.address(&Address::Ip(socket.ip()));
        self.number(socket.port().into());
    }

    fn locality(&mut self, locality: Option<&Locality>) {
        self.option(locality, |hash, Locality { region, zone }| {
            hash.text(region);
            hash.text(zone);
        });
    }

    fn labelled(&mut self, addresses: &BTreeMap<crate::Text, ServiceAddress>) {
        self.list(addresses.iter(), |hash, (label, ServiceAddress { address, port })| {
            hash.text(label);
            hash.text(address);
            hash.number((*port).into());
        });
    }

    fn proxy(&mut self, proxy: &Proxy) {
        let Proxy { service, instance, inbound, http_listener, upstreams } = proxy;
        self.name(service);
        self.option(instance.as_deref(), Self::text);
        self.option(inbound.as_ref(), |hash, Inbound { listen, local, protocol }| {
            hash.socket(*listen);
            hash.socket(*local);
            hash.protocol(*protocol);
        });
        self.option(*http_listener, Self::socket);
        self.list(upstreams.iter(), |hash, Upstream { service, listen, protocol, connect_timeout }| {
            hash.name(service);
            hash.option(*listen, Self::socket);
            hash.protocol(*protocol);
            hash.option(*connect_timeout, Self::duration);
        });
    }

    fn traffic(&mut self, traffic: &Traffic) {
        let Traffic { connect_timeout, panic_threshold, prefer_near, outlier_detection } = traffic;
        self.option(*connect_timeout, Self::duration);
        self.option(*panic_threshold, |hash, percent| hash.number(percent.into()));
        self.option(*prefer_near, Self::flag);
        self.option(outlier_detection.as_ref(), |hash, outlier| {
            let OutlierDetection { consecutive_failures, interval, ejection_time, max_ejected_percent } = outlier;
            hash.number((*consecutive_failures).into());
            hash.duration(*interval);
            hash.duration(*ejection_time);
            hash.number((*max_ejected_percent).into());
        });
    }
}

/// What can be hashed. Every field is named, so that a new one does not compile before it is decided here.
pub(crate) trait Hashed {
    /// Gives itself to the hash.
    fn feed(&self, hash: &mut Hash);
}

impl<T: Hashed> Hashed for Row<T> {
    fn feed(&self, hash: &mut Hash) {
        let Self { created, modified, value } = self;
        value.feed(hash);
        hash.number(*created);
        hash.number(*modified);
    }
}

impl Hashed for Node {
    fn feed(&self, hash: &mut Hash) {
        let Self { name, id, address, tagged_addresses, meta, locality, origin } = self;
        hash.number(1);
        hash.name(name);
        hash.text(id);
        hash.address(address);
        hash.meta(tagged_addresses);
        hash.meta(meta);
        hash.locality(locality.as_ref());
        hash.origin(*origin);
    }
}

impl Hashed for Instance {
    fn feed(&self, hash: &mut Hash) {
        let Self {
            node,
            id,
            service,
            tags,
            address,
            tagged_addresses,
            ports,
            meta,
            weights,
            locality,
            draining,
            maintenance,
            enable_tag_override,
            proxy,
            traffic,
            origin,
        } = self;
        hash.number(2);
        hash.name(node);
        hash.text(id);
        hash.name(service);
        hash.list(tags.iter(), |hash, tag| hash.text(tag));
        hash.option(address.as_ref(), Hash::address);
        hash.labelled(tagged_addresses);
        hash.list(ports.iter(), |hash, Port { name, number }| {
            hash.text(name);
            hash.number((*number).into());
        });
        hash.meta(meta);
        let Weights { passing, warning } = *weights;
        hash.number(passing.into());
        hash.number(warning.into());
        hash.locality(locality.as_ref());
        hash.flag(*draining);
        hash.option(maintenance.as_deref(), Hash::text);
        hash.flag(*enable_tag_override);
        hash.option(proxy.as_deref(), Hash::proxy);
        hash.option(traffic.as_deref(), Hash::traffic);
        hash.origin(*origin);
    }
}

impl Hashed for Check {
    fn feed(&self, hash: &mut Hash) {
        let Self { node, id, instance, name, status, notes, output, kind, origin } = self;
        let CheckKind { kind, target, interval, timeout } = kind;
        hash.number(3);
        hash.name(node);
        hash.text(id);
        hash.option(instance.as_deref(), Hash::text);
        hash.text(name);
        hash.number(match status {
            Status::Passing => 1,
            Status::Warning => 2,
            Status::Critical => 3,
        });
        hash.text(notes);
        hash.text(output);
        hash.text(kind);
        hash.text(target);
        hash.duration(*interval);
        hash.duration(*timeout);
        hash.origin(*origin);
    }
}

impl Hashed for (&Name, Writer) {
    fn feed(&self, hash: &mut Hash) {
        let (node, Writer { incarnation, sequence }) = self;
        hash.number(4);
        // The name by which it is found: which spelling of it the table keeps is nobody's business.
        hash.text(node.as_key());
        hash.number(*incarnation);
        hash.number(*sequence);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{Change, Entry, Timestamp};

    #[test]
    fn a_version_stands_for_one_way_of_hashing() {
        let (name, ip) = (Name::lookup("Web-1.rack"), std::net::Ipv4Addr::new(192, 0, 2, 1));
        let node = Node {
            name: name.clone(),
            id: "agent".into(),
            address: Address::Ip(ip.into()),
            tagged_addresses: Meta::new(),
            meta: Meta::from([("rack".into(), "nine bytes".into())]),
            locality: Some(Locality { region: "eu".into(), zone: "a".into() }),
            origin: Origin::Agent,
        };
        let writer = Writer { incarnation: 3, sequence: 7 };
        let changes = vec![Change::PutNode(Arc::new(node)), Change::PutWriter { node: name, writer }];
        let mut snapshot = Snapshot::default();
        snapshot.keep_checksum();
        assert_eq!(snapshot.checksum(), Some(Checksum(0)));
        snapshot.fold(&Entry { index: 5, at: Timestamp(1), changes });
        // Computed apart from this code, by the words above.
        let expected = 0xa655_78cb_e930_3942_9b63_d815_5d30_5f28;
        assert_eq!((CHECKSUM_VERSION, snapshot.checksum()), (1, Some(Checksum(expected))));
    }
}
