//! The immutable read view at an index, with the indexes that DNS, HTTP and xDS read by.

use std::{collections::BTreeSet, sync::Arc};

use imbl::{OrdMap, ordmap::DiffItem};

use crate::{
    Check, Checks, ClusterId, FIRST_FORMAT, Instance, Instances, NODE_LIVENESS_CHECK, Name, Node, Origin, Scope,
    ServiceSet, ServiceSlot, Text, Timestamp, Writer, checks::Place, checksum::Kept, ends::NameEnds, sorted::Sorted,
};

/// A row with the log indexes that made it and changed it last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row<T> {
    /// The index that created it.
    pub created: u64,
    /// The index that changed it last.
    pub modified: u64,
    /// The row.
    pub value: Arc<T>,
}

/// An instance with its own checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceEntry {
    /// The instance.
    pub instance: Row<Instance>,
    /// Its checks.
    pub checks: Checks,
}

/// A node with its checks and its instances.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeEntry {
    /// The node.
    pub node: Row<Node>,
    /// The blocking index of all that stands on the node.
    pub index: u64,
    /// The node's own checks.
    pub checks: Checks,
    /// Its instances, in order of their ids.
    pub instances: Instances,
    /// The checks of `instances`, by the ids that are unique on the node.
    pub(crate) places: Sorted<Place>,
}

impl NodeEntry {
    /// A node with nothing on it.
    pub(crate) fn new(node: Row<Node>, index: u64) -> Self {
        let (checks, instances, places) = (Checks::default(), Instances::default(), Sorted::default());
        Self { node, index, checks, instances, places }
    }

    /// The check that carries the liveness of the node's agent; `None` for nodes without an agent.
    pub fn liveness(&self) -> Option<&Row<Check>> {
        // The catalog API may register a check of that name for a node without an agent.
        self.checks.find(NODE_LIVENESS_CHECK).filter(|check| check.value.origin == Origin::Registry)
    }

    /// The instance of that id.
    pub fn find_instance(&self, id: &str) -> Option<&Arc<InstanceEntry>> {
        self.instances.find(&self.node.value.name, id)
    }

    /// The node's own checks and those of its instances.
    pub fn all_checks(&self) -> impl Iterator<Item = &Row<Check>> {
        self.checks.iter().chain(self.instances.iter().flat_map(|instance| &instance.checks))
    }

    /// The check of that id among those that speak for the instance, or for the whole node.
    pub(crate) fn find_check_at(&self, instance: Option<&Text>, id: &str) -> Option<&Row<Check>> {
        let checks = match instance {
            None => &self.checks,
            Some(instance) => &self.find_instance(instance)?.checks,
        };
        checks.find(id)
    }

    /// The check of that id, whatever it speaks for.
    pub(crate) fn find_check(&self, id: &str) -> Option<&Row<Check>> {
        self.checks.find(id).or_else(|| self.find_check_at(Some(&self.places.find(id)?.instance), id))
    }

    /// Puts an instance and its checks at its place; says whether it is a new one.
    pub(crate) fn put_instance(&mut self, entry: &Arc<InstanceEntry>) -> bool {
        let old = self.instances.put(entry.clone());
        if let Some(old) = &old {
            self.forget_places(old);
        }
        for check in &entry.checks {
            let (check, instance) = (check.value.id.clone(), entry.instance.value.id.clone());
            self.places.put(Place { check, instance });
        }
        old.is_none()
    }

    /// Removes an instance and its checks; says whether it was there.
    pub(crate) fn remove_instance(&mut self, id: &str) -> bool {
        let Some(old) = self.instances.remove(&self.node.value.name, id) else { return false };
        self.forget_places(&old);
        true
    }

    fn forget_places(&mut self, gone: &InstanceEntry) {
        for check in &gone.checks {
            self.places.remove(&check.value.id);
        }
    }
}

/// What a Snapshot can say of a service.
#[derive(Debug, Clone, Copy)]
pub enum ServiceLookup<'a> {
    /// It exists and its instances are here.
    Held(&'a ServiceSlot, &'a ServiceSet),
    /// It exists, but outside the Scope: ask for it.
    NotHeld(&'a ServiceSlot),
    /// It does not exist.
    Absent,
}

/// An immutable read view of the catalog at an index. Cloning it is cheap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    pub(crate) cluster: ClusterId,
    pub(crate) format: u32,
    pub(crate) index: u64,
    pub(crate) at: Timestamp,
    pub(crate) scope: Scope,
    pub(crate) nodes: OrdMap<Name, Arc<NodeEntry>>,
    /// Made of the names in `nodes`.
    pub(crate) node_ends: NameEnds,
    pub(crate) services: OrdMap<Name, Arc<ServiceSlot>>,
    pub(crate) writers: OrdMap<Name, Writer>,
    pub(crate) nodes_index: u64,
    pub(crate) services_index: u64,
    pub(crate) checks_index: u64,
    pub(crate) extinction_index: u64,
    pub(crate) instance_count: usize,
    pub(crate) checksum: Kept,
}

impl Default for Snapshot {
    fn default() -> Self {
        Self::new(Scope::All)
    }
}

impl Snapshot {
    /// An empty Snapshot that will hold what `scope` covers.
    pub fn new(scope: Scope) -> Self {
        Self {
            cluster: ClusterId::default(),
            format: FIRST_FORMAT,
            index: 0,
            at: Timestamp::default(),
            scope,
            nodes: OrdMap::new(),
            node_ends: NameEnds::default(),
            services: OrdMap::new(),
            writers: OrdMap::new(),
            nodes_index: 0,
            services_index: 0,
            checks_index: 0,
            extinction_index: 0,
            instance_count: 0,
            checksum: Kept::default(),
        }
    }

    /// The registry it came from.
    pub fn cluster(&self) -> &ClusterId {
        &self.cluster
    }

    /// The catalog format in force.
    pub fn format(&self) -> u32 {
        self.format
    }

    /// The index of the last entry folded, blank ones included.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// The time of the last entry folded.
    pub fn at(&self) -> Timestamp {
        self.at
    }

    /// What it covers.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// How many instances it holds.
    pub fn instance_count(&self) -> usize {
        self.instance_count
    }

    /// How many nodes it holds.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// How many services it knows.
    pub fn service_count(&self) -> usize {
        self.services.len()
    }

    /// Whether some node's name is `<something>.<end>`.
    pub fn has_nodes_below(&self, end: &Name) -> bool {
        self.node_ends.has(end)
    }

    /// All nodes, in order of their names.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<NodeEntry>> {
        self.nodes.values()
    }

    /// The node of that name.
    pub fn find_node(&self, name: &Name) -> Option<&Arc<NodeEntry>> {
        self.nodes.get(name)
    }

    /// All services, in order of their names.
    pub fn services(&self) -> impl Iterator<Item = &ServiceSlot> {
        self.services.values().map(|slot| &**slot)
    }

    /// What is known of a service.
    pub fn service(&self, name: &Name) -> ServiceLookup<'_> {
        match self.services.get(name) {
            None => ServiceLookup::Absent,
            Some(slot) => match &slot.set {
                Some(set) => ServiceLookup::Held(slot, set),
                None => ServiceLookup::NotHeld(slot),
            },
        }
    }

    /// The last accepted write of a node's agent.
    pub fn find_writer(&self, node: &Name) -> Option<Writer> {
        self.writers.get(node).copied()
    }

    /// Every node's last accepted write.
    pub fn writers(&self) -> impl Iterator<Item = (&Name, Writer)> {
        self.writers.iter().map(|(name, writer)| (name, *writer))
    }

    /// The nodes with an agent of which something is otherwise than in an older Snapshot, its last write included. It
    /// costs what moved, not what there is: the two share the rest.
    pub fn moved_nodes(&self, old: &Self) -> BTreeSet<Name> {
        let nodes = old.nodes.diff(&self.nodes).map(key);
        nodes.chain(old.writers.diff(&self.writers).map(key)).collect()
    }

    /// The blocking index of a service; of one that does not exist, the index at which the last service vanished,
    /// so that it does not run backwards for a client that saw it.
    pub fn service_index(&self, name: &Name) -> u64 {
        self.services.get(name).map_or(self.extinction_index, |slot| slot.index)
    }

    /// The blocking index of a node; of one that does not exist, the nodes' table's.
    pub fn node_index(&self, name: &Name) -> u64 {
        self.nodes.get(name).map_or(self.nodes_index, |node| node.index)
    }

    /// The blocking index of the list of nodes.
    pub fn nodes_index(&self) -> u64 {
        self.nodes_index
    }

    /// The blocking index of the list of service names and tags.
    pub fn services_index(&self) -> u64 {
        self.services_index
    }

    /// The blocking index of all checks. Only kept where the Scope is all.
    pub fn checks_index(&self) -> u64 {
        self.checks_index
    }

    /// The index at which a service last lost its last instance.
    pub fn extinction_index(&self) -> u64 {
        self.extinction_index
    }

    /// Takes note of an entry without Changes (blank and membership entries, writes that changed nothing).
    pub fn advance(&mut self, index: u64, at: Timestamp) {
        self.index = self.index.max(index);
        self.at = self.at.max(at);
    }
}

fn key<V>(item: DiffItem<'_, '_, Name, V>) -> Name {
    let (DiffItem::Add(name, _) | DiffItem::Remove(name, _) | DiffItem::Update { new: (name, _), .. }) = item;
    name.clone()
}
