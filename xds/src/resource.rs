//! Resources as they are kept: encoded once, named, and versioned by what they were made from.

use std::{collections::BTreeMap, fmt, sync::Arc};

use envoy_types::pb::google::protobuf::Any;
use muster_catalog::Text;
use prost::{Message, Name as MessageName};

use crate::kind::{KindMap, ResourceKind};

/// The hash of the rows that a resource was made from: equal on every server, and never of an encoding
/// (protobuf maps have no order).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Version(u128);

impl Version {
    /// Reads a version that a client gives back; one that was never given out matches nothing.
    pub(crate) fn parse(text: &str) -> Self {
        let hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        Self(if hex { u128::from_str_radix(text, 16).unwrap_or_default() } else { 0 })
    }

    /// The version of a set of resources, in order of their names.
    pub(crate) fn of_set<'a>(set: impl IntoIterator<Item = (&'a Text, Version)>) -> Self {
        let mut digest = Digest::new("set");
        for (name, version) in set {
            digest.text(name).bytes(&version.0.to_be_bytes());
        }
        digest.finish()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Raised whenever a translation makes something else of the same rows: servers of neighbouring versions must not
/// give different resources the same version.
const TRANSLATION: u64 = 3;

/// FNV-1a over 128 bits: the same on every machine and in every release, which `std`'s hashers do not promise.
pub(crate) struct Digest(u128);

impl Digest {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;

    pub(crate) fn new(domain: &str) -> Self {
        let mut digest = Self(Self::OFFSET);
        digest.number(TRANSLATION).text(domain);
        digest
    }

    /// Text goes in with its length, so that neighbours cannot run together.
    pub(crate) fn text(&mut self, text: &str) -> &mut Self {
        self.number(text.len() as u64).bytes(text.as_bytes())
    }

    pub(crate) fn number(&mut self, number: u64) -> &mut Self {
        self.bytes(&number.to_be_bytes())
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        for byte in bytes {
            self.0 = (self.0 ^ u128::from(*byte)).wrapping_mul(Self::PRIME);
        }
        self
    }

    pub(crate) fn finish(&self) -> Version {
        Version(self.0)
    }
}

/// A resource, encoded once for all streams.
#[derive(Debug, PartialEq)]
pub(crate) struct Resource {
    pub(crate) name: Text,
    pub(crate) version: Version,
    pub(crate) body: Any,
}

impl Resource {
    pub(crate) fn new<M: MessageName + Message>(name: Text, version: Version, message: &M) -> Arc<Self> {
        Arc::new(Self { name, version, body: pack(message) })
    }
}

/// A message with its type.
pub(crate) fn pack<M: MessageName + Message>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

/// What is known of a name.
#[derive(Debug)]
pub(crate) enum Lookup<'a> {
    Found(&'a Arc<Resource>),
    /// It exists, but what is to be said of it is not known yet.
    Pending,
    Absent,
}

/// The resources of one kind.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct ResourceSet {
    /// What a wildcard covers.
    pub(crate) listed: BTreeMap<Text, Arc<Resource>>,
    /// What is had by name only; `None` where nothing can be said of it yet.
    pub(crate) named: BTreeMap<Text, Option<Arc<Resource>>>,
}

impl ResourceSet {
    fn find(&self, name: &str) -> Lookup<'_> {
        match (self.listed.get(name), self.named.get(name)) {
            (Some(resource), _) | (None, Some(Some(resource))) => Lookup::Found(resource),
            (None, Some(None)) => Lookup::Pending,
            (None, None) => Lookup::Absent,
        }
    }
}

/// Everything that can be asked for, at one moment. Shared by all streams.
#[derive(Debug)]
pub(crate) struct Resources {
    pub(crate) sets: KindMap<Arc<ResourceSet>>,
    /// Raised when anything of that kind changed.
    pub(crate) epochs: KindMap<u64>,
}

impl Resources {
    /// The resources after `last`, which are those themselves where nothing differs. `changed` is given a kind with its last
    /// set, and says what it is now; `None` for the same.
    pub(crate) fn follow(
        last: Option<Arc<Self>>,
        mut changed: impl FnMut(ResourceKind, Option<&ResourceSet>) -> Option<ResourceSet>,
    ) -> Arc<Self> {
        let mut is_same = last.is_some();
        let last_sets = last.as_ref().map(|last| &last.sets);
        let sets = KindMap::from_fn(|kind| {
            let before = last_sets.map(|sets| &sets[kind]);
            let now = changed(kind, before.map(|set| &**set));
            is_same &= now.is_none();
            match (now, before) {
                (None, Some(before)) => before.clone(),
                (now, _) => Arc::new(now.unwrap_or_default()),
            }
        });
        if let (Some(last), true) = (&last, is_same) {
            return last.clone();
        }
        let epochs = KindMap::from_fn(|kind| match &last {
            Some(last) if Arc::ptr_eq(&last.sets[kind], &sets[kind]) => last.epochs[kind],
            Some(last) => last.epochs[kind] + 1,
            None => 1,
        });
        Arc::new(Self { sets, epochs })
    }

    pub(crate) fn epoch(&self, kind: ResourceKind) -> u64 {
        self.epochs[kind]
    }

    pub(crate) fn find(&self, kind: ResourceKind, name: &str) -> Lookup<'_> {
        self.sets[kind].find(name)
    }

    /// What a wildcard covers. Listeners of proxyless gRPC are had by name only.
    pub(crate) fn wildcard(&self, kind: ResourceKind) -> impl Iterator<Item = &Arc<Resource>> {
        self.sets[kind].listed.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_the_same_everywhere_and_do_not_run_together() {
        // Known on purpose: a server of another build or machine must come to the same.
        assert_eq!(Digest::new("web").finish().to_string(), Digest::new("web").finish().to_string());
        assert_ne!(Digest::new("a").text("b").finish(), Digest::new("ab").finish());
        assert_ne!(
            Digest::new("x").text("ab").text("c").finish(),
            Digest::new("x").text("a").text("bc").finish(),
            "neighbouring texts ran together"
        );
        // FNV-1a/128 of "a", from its published test vectors.
        assert_eq!(Digest(Digest::OFFSET).bytes(b"a").finish().to_string(), "d228cb696f1a8caf78912b704e4a8964");
    }

    #[test]
    fn a_version_reads_back_and_foreign_ones_match_nothing() {
        let version = Digest::new("web").finish();
        assert_eq!(Version::parse(&version.to_string()), version);
        for foreign in ["", "7", "+0000000000000000000000000000000", "zz"] {
            assert_eq!(Version::parse(foreign), Version::default());
        }
    }
}
