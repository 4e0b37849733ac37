//! What a replica holds, and the projection of the catalog to it.
//!
//! Every replica holds the Directory: all nodes with their own checks, and each service's name, index and tags.
//! A Scope adds the instances of the services it names, and those of one node (the agent's own).
//! Projection commutes with folding: `project(fold(S, e)) == fold(project(S), project(e))`. How a Scope grows and
//! shrinks between two entries is told in [`crate::Splice`].

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use imbl::OrdSet;

use crate::{
    Change, CheckId, DirectoryRow, Entry, InstanceEntry, InstanceId, Name, NodeEntry, ServiceSlot, Snapshot, Text,
    Topic,
};

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

    /// Whether a replica of this Scope holds all that one of the other does.
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::All, _) => true,
            (_, Self::All) => false,
            (Self::Services { names, node }, Self::Services { names: others, node: other }) => {
                (other.is_none() || node == other) && others.is_subset(names)
            }
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
    projected.checksum = Default::default();
    if *scope == Scope::All {
        return projected;
    }
    projected.checks_index = 0;
    projected.instance_count = 0;
    for entry in full.nodes() {
        let node = &entry.node.value.name;
        let index = if scope.holds_node(node) { entry.index } else { 0 };
        let mut kept = NodeEntry { checks: entry.checks.clone(), ..NodeEntry::new(entry.node.clone(), index) };
        for held in entry.instances.iter().filter(|entry| scope.holds(&entry.instance.value.service, node)) {
            kept.put_instance(held);
        }
        projected.instance_count += kept.instances.len();
        projected.nodes.insert(node.clone(), Arc::new(kept));
    }
    let outside = full.services().filter(|slot| !scope.holds_service(&slot.name));
    for slot in outside {
        projected.services.insert(slot.name.clone(), ServiceSlot { set: None, ..slot.clone() }.into());
    }
    projected
}

/// What projecting an entry has to know of the catalog around it. It is kept with the entry: two whole Snapshots in its
/// place would keep alive all that later entries replace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Footprint {
    instances: BTreeMap<(Name, InstanceId), Trace>,
    services: Vec<Listed>,
    nodes: Vec<Name>,
    /// The checks that the entry names and that spoke for a whole node before it.
    node_checks: BTreeSet<(Name, CheckId)>,
    moves_directory: bool,
}

/// A service that the entry touched, as the Directory has it afterwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) service: Name,
    /// `None` for one that is gone.
    row: Option<(u64, Arc<[Text]>)>,
}

impl Listed {
    /// What a replica that does not hold the service is told of it.
    pub(crate) fn change(&self) -> Change {
        let service = self.service.clone();
        match &self.row {
            Some((index, tags)) => Change::PutDirectory(DirectoryRow { service, index: *index, tags: tags.to_vec() }),
            None => Change::DeleteDirectory(service),
        }
    }
}

/// An instance that the entry names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Trace {
    /// The service it stood in before.
    before: Option<Name>,
    /// What it is afterwards.
    after: Option<Arc<InstanceEntry>>,
}

impl Footprint {
    /// Takes note of the catalog as it is before these Changes are folded.
    pub fn before(snapshot: &Snapshot, changes: &[Change]) -> Self {
        let named = changes.iter().filter_map(|change| match change {
            Change::PutInstance(instance) => Some((instance.node.clone(), instance.id.clone())),
            Change::DeleteInstance { node, id } => Some((node.clone(), id.clone())),
            Change::PutCheck(check) => check.instance.as_ref().map(|id| (check.node.clone(), id.clone())),
            _ => None,
        });
        let traces = named.map(|(node, id)| {
            let before = find_instance(snapshot, &node, &id).map(|found| found.instance.value.service.clone());
            ((node, id), Trace { before, after: None })
        });
        let mut footprint = Self { instances: traces.collect(), ..Self::default() };
        for change in changes {
            footprint.note(snapshot, change);
        }
        footprint
    }

    fn note(&mut self, snapshot: &Snapshot, change: &Change) {
        let (node, id, of_instance) = match change {
            Change::PutCheck(check) => (&check.node, &check.id, check.instance.is_some()),
            Change::DeleteCheck { node, id } => (node, id, true),
            Change::PutWriter { .. } | Change::PutInstance(_) | Change::DeleteInstance { .. } => return,
            _ => return self.moves_directory = true,
        };
        let spoke_for_node = snapshot.find_node(node).is_some_and(|entry| entry.find_check_at(None, id).is_some());
        if spoke_for_node {
            self.node_checks.insert((node.clone(), id.clone()));
        }
        self.moves_directory |= spoke_for_node || !of_instance;
    }

    /// Takes note of the catalog after they were folded, and of what folding them touched.
    pub fn after(mut self, snapshot: &Snapshot, touched: &[Topic]) -> Self {
        for ((node, id), trace) in &mut self.instances {
            trace.after = find_instance(snapshot, node, id).cloned();
        }
        let services = touched.iter().filter_map(|topic| match topic {
            Topic::Service(service) => Some(service),
            _ => None,
        });
        let services = services.map(|service| match snapshot.services.get(service) {
            Some(slot) => Listed { service: slot.name.clone(), row: Some((slot.index, slot.tags.clone())) },
            None => Listed { service: service.clone(), row: None },
        });
        self.services = services.collect();
        let nodes = touched.iter().filter_map(|topic| match topic {
            Topic::Node(node) => Some(node.clone()),
            _ => None,
        });
        self.nodes = nodes.collect();
        let tables = [Topic::Services, Topic::Nodes, Topic::Format];
        self.moves_directory |= tables.iter().any(|table| touched.contains(table));
        self
    }

    /// Whether a replica of this Scope holds a service or the node's rows that the entry touched. One that does not hears
    /// of the entry through the Directory alone, and so does every other: see [`crate::Gathered`].
    pub fn touches(&self, scope: &Scope) -> bool {
        match scope {
            Scope::All => true,
            Scope::Services { names, node } => {
                self.services().any(|service| names.contains(service))
                    || node.as_ref().is_some_and(|own| self.nodes.contains(own))
            }
        }
    }

    /// The services that the entry touched.
    pub fn services(&self) -> impl Iterator<Item = &Name> {
        self.services.iter().map(|listed| &listed.service)
    }

    /// The nodes that the entry touched.
    pub fn nodes(&self) -> &[Name] {
        &self.nodes
    }

    /// Whether it changed more of the Directory than the indexes of services.
    pub fn moves_directory(&self) -> bool {
        self.moves_directory
    }

    pub(crate) fn listed(&self) -> &[Listed] {
        &self.services
    }

    pub(crate) fn spoke_for_node(&self, node: &Name, check: &CheckId) -> bool {
        self.node_checks.contains(&(node.clone(), check.clone()))
    }

    fn held_before(&self, scope: &Scope, node: &Name, id: &InstanceId) -> bool {
        let service = self.find(node, id).and_then(|trace| trace.before.as_ref());
        service.is_some_and(|service| scope.holds(service, node))
    }

    fn held_after(&self, scope: &Scope, node: &Name, id: &InstanceId) -> bool {
        let after = self.find(node, id).and_then(|trace| trace.after.as_ref());
        after.is_some_and(|after| scope.holds(&after.instance.value.service, node))
    }

    fn find(&self, node: &Name, id: &InstanceId) -> Option<&Trace> {
        self.instances.get(&(node.clone(), id.clone()))
    }
}

fn find_instance<'a>(snapshot: &'a Snapshot, node: &Name, id: &str) -> Option<&'a Arc<InstanceEntry>> {
    snapshot.find_node(node)?.find_instance(id)
}

/// The Changes that bring a replica of that Scope from before the entry to after it.
pub fn project_changes(scope: &Scope, entry: &Entry, footprint: &Footprint) -> Vec<Change> {
    let watched = |change: &&Change| !matches!(change, Change::PutWriter { .. });
    if *scope == Scope::All {
        return entry.changes.iter().filter(watched).cloned().collect();
    }
    let mut changes: Vec<Change> =
        entry.changes.iter().filter(watched).flat_map(|change| project_change(scope, footprint, change)).collect();
    let outside = footprint.services.iter().filter(|listed| !scope.holds_service(&listed.service));
    changes.extend(outside.map(Listed::change));
    changes
}

fn project_change(scope: &Scope, footprint: &Footprint, change: &Change) -> Vec<Change> {
    match change {
        Change::PutInstance(instance) => {
            let (node, id) = (&instance.node, &instance.id);
            match (footprint.held_before(scope, node, id), scope.holds(&instance.service, node)) {
                (true, true) => vec![change.clone()],
                (false, false) => Vec::new(),
                // It moved to a service that is not held.
                (true, false) => vec![Change::DeleteInstance { node: node.clone(), id: id.clone() }],
                // It is new, or moved here from a service that is not held: then its checks come with it.
                (false, true) => {
                    let entry = footprint.find(node, id).and_then(|trace| trace.after.as_ref());
                    let checks = entry.into_iter().flat_map(|entry| &entry.checks);
                    let checks = checks.map(|check| Change::PutCheck(check.value.clone()));
                    std::iter::once(change.clone()).chain(checks).collect()
                }
            }
        }
        Change::DeleteInstance { node, id } if !footprint.held_before(scope, node, id) => Vec::new(),
        Change::PutCheck(check) => match &check.instance {
            Some(id) if !footprint.held_after(scope, &check.node, id) => {
                // It may have moved here from what is held; if not, this folds to nothing.
                vec![Change::DeleteCheck { node: check.node.clone(), id: check.id.clone() }]
            }
            _ => vec![change.clone()],
        },
        // Deleting what is not held folds to nothing, so it need not be looked up.
        _ => vec![change.clone()],
    }
}
