//! Scopes.

use muster_catalog::{Name, Scope};

use crate::proto::registry as pb;

impl From<&Scope> for pb::Scope {
    fn from(scope: &Scope) -> Self {
        match scope {
            Scope::All => Self { all: true, services: Vec::new(), node: None },
            Scope::Services { names, node } => Self {
                all: false,
                services: names.iter().map(ToString::to_string).collect(),
                node: node.as_ref().map(ToString::to_string),
            },
        }
    }
}

impl From<&pb::Scope> for Scope {
    fn from(scope: &pb::Scope) -> Self {
        if scope.all {
            return Self::All;
        }
        let names = scope.services.iter().map(|name| Name::lookup(name)).collect();
        Self::Services { names, node: scope.node.as_deref().map(Name::lookup) }
    }
}
