//! Changes of a stream's Scope that were asked and not made yet.

use std::collections::BTreeMap;

use muster_catalog::Name;

use super::stream::MAX_SCOPE;

/// What is to join and what is to leave; of a service that was asked for twice, what was asked last.
#[derive(Debug, Default)]
pub(super) struct Rescopes {
    joins: BTreeMap<Name, bool>,
}

impl Rescopes {
    /// Notes that a service is to join, or to leave; false when more wait than any Scope may hold.
    pub(super) fn ask(&mut self, service: Name, joins: bool) -> bool {
        self.joins.insert(service, joins);
        self.joins.len() <= MAX_SCOPE
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.joins.is_empty()
    }

    /// The services that join, and those that leave.
    pub(super) fn take(&mut self) -> (Vec<Name>, Vec<Name>) {
        let (joined, left): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.joins).into_iter().partition(|(_, joins)| *joins);
        let names = |named: Vec<(Name, bool)>| named.into_iter().map(|(service, _)| service).collect();
        (names(joined), names(left))
    }
}
