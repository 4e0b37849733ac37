//! Which proxies are connected, and what each has accepted or rejected.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{kind::ResourceKind, subscription::Variant};

/// How many streams are served at once: an agent serves the proxies and gRPC clients of one host, two streams each
/// during a hot restart.
pub(crate) const MAX_STREAMS: usize = 2_048;

/// How much of a node's id and cluster is kept; longer ones are cut.
const MAX_IDENTITY_CHARS: usize = 256;

/// A connected client. State is per stream: a hot restart has two of one node id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyStatus {
    /// The node id that the client gave.
    pub node_id: String,
    /// The node cluster that the client gave.
    pub cluster: String,
    /// Where it connected from, when known.
    pub peer: Option<SocketAddr>,
    /// The protocol it speaks.
    pub variant: Variant,
    /// Which stream this is, counted from the start of the server: later ones are younger.
    pub stream: u64,
    /// What it says of each type it subscribed to.
    pub kinds: BTreeMap<ResourceKind, KindStatus>,
}

/// What a client says of one type.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KindStatus {
    /// The version that it accepted last.
    pub accepted: Option<String>,
    /// Its last rejection, until it accepts a later push.
    pub rejected: Option<Rejected>,
}

/// A push that the client rejected, in part or as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// The version it rejected.
    pub version: String,
    /// Its reason, in its words.
    pub message: String,
}

/// The list of connected clients. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Roster {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    proxies: BTreeMap<u64, ProxyStatus>,
    /// Streams that were let in, those included that have not said who they are.
    places: usize,
    streams: u64,
}

impl Roster {
    /// Everyone connected, oldest stream first.
    pub fn proxies(&self) -> Vec<ProxyStatus> {
        self.with(|inner| inner.proxies.values().cloned().collect())
    }

    /// A place for a stream; `None` when all are taken.
    pub(crate) fn find_place(&self) -> Option<Place> {
        let stream = self.with(|inner| {
            if inner.places >= MAX_STREAMS {
                return None;
            }
            inner.places += 1;
            inner.streams += 1;
            metrics::gauge!("muster_xds_streams").set(inner.places as f64);
            Some(inner.streams)
        })?;
        Some(Place { roster: self.clone(), stream })
    }

    fn with<T>(&self, edit: impl FnOnce(&mut Inner) -> T) -> T {
        edit(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A stream's place on the roster, given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    roster: Roster,
    stream: u64,
}

impl Place {
    /// Enters the client under its own words.
    pub(crate) fn enter(&self, node_id: &str, cluster: &str, peer: Option<SocketAddr>, variant: Variant) {
        let cut = |text: &str| text.chars().take(MAX_IDENTITY_CHARS).collect::<String>();
        let (node_id, cluster, stream) = (cut(node_id), cut(cluster), self.stream);
        let status = ProxyStatus { node_id, cluster, peer, variant, stream, kinds: BTreeMap::new() };
        self.roster.with(|inner| inner.proxies.insert(stream, status));
    }

    /// Notes what the client says of a type.
    pub(crate) fn edit(&self, kind: ResourceKind, edit: impl FnOnce(&mut KindStatus)) {
        self.roster.with(|inner| {
            if let Some(status) = inner.proxies.get_mut(&self.stream) {
                edit(status.kinds.entry(kind).or_default());
            }
        });
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.roster.with(|inner| {
            inner.places -= 1;
            inner.proxies.remove(&self.stream);
            metrics::gauge!("muster_xds_streams").set(inner.places as f64);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_and_given_back() {
        let roster = Roster::default();
        let mut places: Vec<Place> = (0..MAX_STREAMS).map(|_| roster.find_place().unwrap()).collect();
        assert!(roster.find_place().is_none());
        places[0].enter(&"x".repeat(10_000), "c", None, Variant::Delta);
        assert_eq!(roster.proxies()[0].node_id.len(), MAX_IDENTITY_CHARS);
        places.remove(0);
        assert_eq!(roster.proxies(), []);
        assert!(roster.find_place().is_some());
    }
}
