//! Resources as they are kept: encoded once, named, and versioned by what they were made from.

use std::{collections::BTreeMap, fmt, sync::Arc};

use envoy_types::pb::google::protobuf::Any;
use muster_catalog::Text;
use prost::{Message, Name as MessageName};

/// The types of resources that are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceKind {
    /// CDS: a service as something to route to.
    Cluster,
    /// EDS: the endpoints of a cluster.
    Endpoint,
    /// LDS: what is listened on.
    Listener,
    /// RDS: which host goes to which cluster.
    Route,
}

impl ResourceKind {
    /// All, in the order in which a change is told: what is routed to before what routes to it.
    pub const ALL: [Self; 4] = [Self::Cluster, Self::Endpoint, Self::Listener, Self::Route];

    /// The type URL on the wire.
    pub fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoint => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        }
    }

    /// The word for it in metrics and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Endpoint => "endpoint",
            Self::Listener => "listener",
            Self::Route => "route",
        }
    }

    /// The type of that URL, when it is served.
    pub fn find(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == type_url)
    }

    /// Whether an answer is the whole truth (what it leaves out is gone), and an empty list of names means all.
    pub(crate) fn is_whole(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener)
    }
}

impl fmt::Display for ResourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

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

/// What is made of one service.
#[derive(Debug)]
pub(crate) struct ServiceResources {
    pub(crate) cluster: Arc<Resource>,
    /// `None` while the service's instances are not held: then nothing may be said of them.
    pub(crate) endpoints: Option<Arc<Resource>>,
    /// For proxyless gRPC, by name only: an Envoy would reject it.
    pub(crate) api_listener: Arc<Resource>,
}

/// What is known of a name.
#[derive(Debug)]
pub(crate) enum Lookup<'a> {
    Found(&'a Arc<Resource>),
    /// It exists, but what is to be said of it is not known yet.
    Pending,
    Absent,
}

/// Everything that can be asked for, at one moment. Shared by all streams.
#[derive(Debug)]
pub(crate) struct Resources {
    pub(crate) services: BTreeMap<Text, Arc<ServiceResources>>,
    /// The way to a proxy's own service.
    pub(crate) own_cluster: Option<Arc<Resource>>,
    pub(crate) listeners: BTreeMap<Text, Arc<Resource>>,
    pub(crate) http_routes: Arc<Resource>,
    /// Raised when anything of that kind changed, in order of [`ResourceKind::ALL`].
    pub(crate) epochs: [u64; 4],
}

impl Resources {
    pub(crate) fn epoch(&self, kind: ResourceKind) -> u64 {
        self.epochs[kind as usize]
    }

    pub(crate) fn find(&self, kind: ResourceKind, name: &str) -> Lookup<'_> {
        let single = match kind {
            ResourceKind::Listener => self.listeners.get(name),
            ResourceKind::Route => Some(&self.http_routes),
            ResourceKind::Cluster => self.own_cluster.as_ref(),
            ResourceKind::Endpoint => None,
        };
        if let Some(resource) = single.filter(|resource| *resource.name == *name) {
            return Lookup::Found(resource);
        }
        let Some(service) = self.services.get(name) else { return Lookup::Absent };
        match kind {
            ResourceKind::Cluster => Lookup::Found(&service.cluster),
            ResourceKind::Endpoint => service.endpoints.as_ref().map_or(Lookup::Pending, Lookup::Found),
            ResourceKind::Listener => Lookup::Found(&service.api_listener),
            ResourceKind::Route => Lookup::Absent,
        }
    }

    /// What a wildcard covers. Listeners of proxyless gRPC are had by name only.
    pub(crate) fn wildcard(&self, kind: ResourceKind) -> Box<dyn Iterator<Item = &Arc<Resource>> + '_> {
        match kind {
            ResourceKind::Cluster => {
                Box::new(self.services.values().map(|service| &service.cluster).chain(&self.own_cluster))
            }
            ResourceKind::Listener => Box::new(self.listeners.values()),
            ResourceKind::Endpoint | ResourceKind::Route => Box::new(std::iter::empty()),
        }
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

    #[test]
    fn kinds_are_found_by_type_url() {
        for kind in ResourceKind::ALL {
            assert_eq!(ResourceKind::find(kind.type_url()), Some(kind));
        }
        assert_eq!(ResourceKind::find("type.googleapis.com/other"), None);
    }
}
