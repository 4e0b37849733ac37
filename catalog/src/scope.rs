//! What a replica holds, and the projection of the catalog to it.
//!
//! Every replica holds the Directory: all nodes with their own checks, and each service's name, index and tags.
//! A Scope adds the instances of the services it names, and those of one node (the agent's own).
//! Projection commutes with folding: `project(fold(S, e)) == fold(project(S), project(e))`.

use std::sync::Arc;

use imbl::OrdSet;

use crate::{Change, DirectoryRow, Entry, Name, Snapshot, Topic, snapshot::ServiceSlot};

/// What a replica holds beyond the Directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// All services.
    All,
    /// These services, and all that stands on one node.
    Services {
        /// The services.
        names: OrdSet<Name>,
        /// The node whose instances are always held.
        node: Option<Name>,
    },
}

impl Scope {
    /// Whether the service's instances are held.
    pub fn holds_service(&self, service: &Name) -> bool {
        match self {
            Self::All => true,
            Self::Services { names, .. } => names.contains(service),
        }
    }

    /// Whether all of the node's instances are held.
    pub fn holds_node(&self, name: &Name) -> bool {
        match self {
            Self::All => true,
            Self::Services { node, .. } => node.as_ref() == Some(name),
        }
    }

    /// Whether an instance of that service on that node is held.
    pub fn holds(&self, service: &Name, node: &Name) -> bool {
        self.holds_service(service) || self.holds_node(node)
    }
}

/// What a replica of that Scope would hold of a full Snapshot.
pub fn project_snapshot(scope: &Scope, full: &Snapshot) -> Snapshot {
    let mut projected = full.clone();
    projected.scope = scope.clone();
    projected.writers = imbl::OrdMap::new();
    if *scope == Scope::All {
        return projected;
    }
    projected.checks_index = 0;
    projected.instance_count = 0;
    for entry in full.nodes() {
        let node = &entry.node.value.name;
        let mut kept = (**entry).clone();
        kept.instances.retain(|instance| scope.holds(&instance.instance.value.service, node));
        if !scope.holds_node(node) {
            kept.index = 0;
        }
        projected.instance_count += kept.instances.len();
        projected.nodes.insert(node.clone(), Arc::new(kept));
    }
    let outside = full.services().filter(|slot| !scope.holds_service(&slot.name));
    for slot in outside {
        projected.services.insert(slot.name.clone(), ServiceSlot { set: None, ..slot.clone() });
    }
    projected
}

/// The Changes that bring a replica of that Scope from `project(before)` to `project(after)`.
/// `touched` is what folding the entry into the full Snapshot returned.
pub fn project_changes(
    scope: &Scope,
    before: &Snapshot,
    after: &Snapshot,
    entry: &Entry,
    touched: &[Topic],
) -> Vec<Change> {
    let watched = |change: &&Change| !matches!(change, Change::PutWriter { .. });
    if *scope == Scope::All {
        return entry.changes.iter().filter(watched).cloned().collect();
    }
    let mut changes: Vec<Change> =
        entry.changes.iter().filter(watched).flat_map(|change| project_change(scope, before, after, change)).collect();
    for topic in touched {
        let Topic::Service(service) = topic else { continue };
        if scope.holds_service(service) {
            continue;
        }
        changes.push(match after.services.get(service) {
            Some(slot) => Change::PutDirectory(DirectoryRow {
                service: slot.name.clone(),
                index: slot.index,
                tags: slot.tags.to_vec(),
            }),
            None => Change::DeleteDirectory(service.clone()),
        });
    }
    changes
}

fn project_change(scope: &Scope, before: &Snapshot, after: &Snapshot, change: &Change) -> Vec<Change> {
    let held = |snapshot: &Snapshot, node: &Name, id: &str| {
        let instance = snapshot.find_node(node).and_then(|entry| entry.find_instance(id));
        instance.is_some_and(|instance| scope.holds(&instance.instance.value.service, node))
    };
    match change {
        Change::PutInstance(instance) => {
            let (node, id) = (&instance.node, &instance.id);
            match (held(before, node, id), scope.holds(&instance.service, node)) {
                (true, true) => vec![change.clone()],
                (false, false) => Vec::new(),
                // It moved to a service that is not held.
                (true, false) => vec![Change::DeleteInstance { node: node.clone(), id: id.clone() }],
                // It is new, or moved here from a service that is not held: then its checks come with it.
                (false, true) => {
                    let entry = after.find_node(node).and_then(|entry| entry.find_instance(id));
                    let checks = entry.into_iter().flat_map(|entry| &entry.checks);
                    let checks = checks.map(|check| Change::PutCheck(check.value.clone()));
                    std::iter::once(change.clone()).chain(checks).collect()
                }
            }
        }
        Change::DeleteInstance { node, id } if !held(before, node, id) => Vec::new(),
        Change::PutCheck(check) => match &check.instance {
            Some(id) if !held(after, &check.node, id) => {
                // It may have moved here from what is held; if not, this folds to nothing.
                vec![Change::DeleteCheck { node: check.node.clone(), id: check.id.clone() }]
            }
            _ => vec![change.clone()],
        },
        // Deleting what is not held folds to nothing, so it need not be looked up.
        _ => vec![change.clone()],
    }
}
