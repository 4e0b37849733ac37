//! The kinds of resources, what is special about each, and maps that have a value for every kind.

use std::{
    fmt,
    ops::{Index, IndexMut},
};

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

/// What is special about a kind.
struct Facts {
    type_url: &'static str,
    word: &'static str,
    is_whole: bool,
    names_clusters: bool,
}

impl ResourceKind {
    /// All, in the order in which a change is told: what is routed to before what routes to it.
    pub const ALL: [Self; 4] = [Self::Cluster, Self::Endpoint, Self::Listener, Self::Route];

    /// The one place that says how kinds differ; what they hold is one file each in `translate`.
    const fn facts(self) -> Facts {
        match self {
            Self::Cluster => Facts {
                type_url: "type.googleapis.com/envoy.config.cluster.v3.Cluster",
                word: "cluster",
                is_whole: true,
                names_clusters: false,
            },
            Self::Endpoint => Facts {
                type_url: "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
                word: "endpoint",
                is_whole: false,
                names_clusters: false,
            },
            Self::Listener => Facts {
                type_url: "type.googleapis.com/envoy.config.listener.v3.Listener",
                word: "listener",
                is_whole: true,
                names_clusters: true,
            },
            Self::Route => Facts {
                type_url: "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
                word: "route",
                is_whole: false,
                names_clusters: true,
            },
        }
    }

    /// The type URL on the wire.
    pub fn type_url(self) -> &'static str {
        self.facts().type_url
    }

    /// The word for it in metrics and messages.
    pub fn as_str(self) -> &'static str {
        self.facts().word
    }

    /// The type of that URL, when it is served.
    pub fn find(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == type_url)
    }

    /// Whether an answer is the whole truth (what it leaves out is gone), and an empty list of names means all.
    pub(crate) fn is_whole(self) -> bool {
        self.facts().is_whole
    }

    /// Whether its resources lead to clusters: those come before it, and go after it.
    pub(crate) fn names_clusters(self) -> bool {
        self.facts().names_clusters
    }
}

impl fmt::Display for ResourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A value for every kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct KindMap<T>([T; ResourceKind::ALL.len()]);

impl<T> KindMap<T> {
    /// The value of each kind.
    pub(crate) fn from_fn(value: impl FnMut(ResourceKind) -> T) -> Self {
        Self(ResourceKind::ALL.map(value))
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &T> {
        self.0.iter()
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.0.iter_mut()
    }
}

impl<T> Index<ResourceKind> for KindMap<T> {
    type Output = T;

    fn index(&self, kind: ResourceKind) -> &T {
        &self.0[kind as usize]
    }
}

impl<T> IndexMut<ResourceKind> for KindMap<T> {
    fn index_mut(&mut self, kind: ResourceKind) -> &mut T {
        &mut self.0[kind as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_found_by_type_url() {
        for kind in ResourceKind::ALL {
            assert_eq!(ResourceKind::find(kind.type_url()), Some(kind));
        }
        assert_eq!(ResourceKind::find("type.googleapis.com/other"), None);
    }

    #[test]
    fn every_kind_has_a_value_of_its_own() {
        let map = KindMap::from_fn(|kind| kind);
        for kind in ResourceKind::ALL {
            assert_eq!(map[kind], kind);
        }
        assert_eq!(map.values().count(), ResourceKind::ALL.len());
    }
}
