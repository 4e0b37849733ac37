//! A Snapshot as a stream of rows, for Raft snapshots, full syncs and replica files: every blocking index is kept,
//! none is recomputed.

use std::sync::Arc;

use crate::{
    Check, Checks, ClusterId, DirectoryRow, Instance, InstanceEntry, Name, Node, NodeEntry, Row, Scope, ServiceSlot,
    Snapshot, Timestamp, Writer,
};

/// What stands above the rows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SnapshotHeader {
    /// The registry.
    pub cluster: ClusterId,
    /// The catalog format.
    pub format: u32,
    /// The last entry folded.
    pub index: u64,
    /// Its time.
    pub at: Timestamp,
    /// The blocking index of the list of nodes.
    pub nodes_index: u64,
    /// The blocking index of the list of services.
    pub services_index: u64,
    /// The blocking index of all checks.
    pub checks_index: u64,
    /// The index at which a service last vanished.
    pub extinction_index: u64,
}

/// One row of a Snapshot. They come as: header, services, then each node with its checks, instances and theirs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotRow {
    /// First, and once.
    Header(SnapshotHeader),
    /// A service with its index and tags.
    Service(DirectoryRow),
    /// A node.
    Node {
        /// The row.
        row: Row<Node>,
        /// The blocking index of all on the node.
        index: u64,
    },
    /// An instance.
    Instance(Row<Instance>),
    /// A check, after what it speaks for.
    Check(Row<Check>),
    /// The order of a node's writes.
    Writer {
        /// The node.
        node: Name,
        /// Its last write.
        writer: Writer,
    },
}

impl Snapshot {
    /// All rows, in an order that a [`SnapshotBuilder`] takes. Equal catalogs give equal rows.
    pub fn rows(&self) -> impl Iterator<Item = SnapshotRow> + '_ {
        let writers =
            self.writers.iter().map(|(node, writer)| SnapshotRow::Writer { node: node.clone(), writer: *writer });
        std::iter::once(self.header_row())
            .chain(self.directory_rows())
            .chain(self.nodes.values().flat_map(|node| node_rows(node, node.index, |_| true)))
            .chain(writers)
    }

    /// The rows for a replica of that Scope, of a Snapshot that holds all of it: those of [`crate::project_snapshot`].
    ///
    /// For one that holds all of its Scope up to an index already: the Directory, the own node, and the sets that moved
    /// since. [`SnapshotBuilder::finish_after`] puts the two together.
    pub fn rows_for<'a>(&'a self, scope: &'a Scope, after: Option<u64>) -> impl Iterator<Item = SnapshotRow> + 'a {
        let is_part = *scope != Scope::All;
        let mut header = self.header();
        if is_part {
            header.checks_index = 0;
        }
        let wanted = move |entry: &InstanceEntry| {
            let instance = &entry.instance.value;
            // The own node's instances are few, and stand in no set where their services are not held.
            let own = is_part && scope.holds_node(&instance.node);
            let moved = |after| self.service_index(&instance.service) > after;
            own || scope.holds_service(&instance.service) && after.is_none_or(moved)
        };
        let nodes = self.nodes.values().flat_map(move |node| {
            let index = if scope.holds_node(&node.node.value.name) { node.index } else { 0 };
            node_rows(node, index, wanted)
        });
        std::iter::once(SnapshotRow::Header(header)).chain(self.directory_rows()).chain(nodes)
    }

    fn directory_rows(&self) -> impl Iterator<Item = SnapshotRow> + '_ {
        self.services.values().map(|slot| {
            let (service, index, tags) = (slot.name.clone(), slot.index, slot.tags.to_vec());
            SnapshotRow::Service(DirectoryRow { service, index, tags })
        })
    }

    pub(crate) fn header_row(&self) -> SnapshotRow {
        SnapshotRow::Header(self.header())
    }

    fn header(&self) -> SnapshotHeader {
        SnapshotHeader {
            cluster: self.cluster.clone(),
            format: self.format,
            index: self.index,
            at: self.at,
            nodes_index: self.nodes_index,
            services_index: self.services_index,
            checks_index: self.checks_index,
            extinction_index: self.extinction_index,
        }
    }
}

fn node_rows<'a>(
    entry: &'a NodeEntry,
    index: u64,
    wanted: impl Fn(&InstanceEntry) -> bool + 'a,
) -> impl Iterator<Item = SnapshotRow> + 'a {
    let instances = entry.instances.iter().filter(move |instance| wanted(instance));
    std::iter::once(SnapshotRow::Node { row: entry.node.clone(), index })
        .chain(entry.checks.iter().cloned().map(SnapshotRow::Check))
        .chain(instances.flat_map(|instance| instance_rows(instance)))
}

/// An instance and its checks.
pub(crate) fn instance_rows(entry: &InstanceEntry) -> impl Iterator<Item = SnapshotRow> + '_ {
    std::iter::once(SnapshotRow::Instance(entry.instance.clone()))
        .chain(entry.checks.iter().cloned().map(SnapshotRow::Check))
}

/// Builds a Snapshot from its rows. A row that comes twice takes the place of the first; a check that then speaks for
/// something else is passed over.
#[derive(Debug)]
pub struct SnapshotBuilder {
    snapshot: Snapshot,
    /// The instance whose checks may still come.
    instance: Option<InstanceEntry>,
}

impl SnapshotBuilder {
    /// Starts a Snapshot that holds what `scope` covers.
    pub fn new(scope: Scope) -> Self {
        Self { snapshot: Snapshot::new(scope), instance: None }
    }

    /// Takes the next row. A row that belongs to no node or instance before it is passed over.
    pub fn push(&mut self, row: SnapshotRow) {
        match row {
            SnapshotRow::Check(row) => self.check(row),
            SnapshotRow::Instance(row) => {
                self.place_instance();
                self.instance = Some(InstanceEntry { instance: row, checks: Checks::default() });
            }
            SnapshotRow::Header(header) => self.header(header),
            SnapshotRow::Service(row) => self.service(row),
            SnapshotRow::Node { row, index } => self.node(row, index),
            SnapshotRow::Writer { node, writer } => {
                self.snapshot.writers.insert(node, writer);
            }
        }
    }

    /// The Snapshot.
    pub fn finish(mut self) -> Snapshot {
        self.place_instance();
        self.snapshot
    }

    /// The Snapshot of rows that lack the sets which have not moved since `index`: those are taken from `old`, which
    /// holds all of the Scope up to there. An error names a set that `old` does not have as it should.
    pub fn finish_after(mut self, index: u64, old: &Snapshot) -> Result<Snapshot, Name> {
        self.place_instance();
        let mut snapshot = self.snapshot;
        let unmoved = |slot: &&Arc<ServiceSlot>| slot.set.is_some() && slot.index <= index;
        let unmoved: Vec<Arc<ServiceSlot>> = snapshot.services.values().filter(unmoved).cloned().collect();
        for slot in unmoved {
            let kept = old.services.get(&slot.name).filter(|kept| kept.index == slot.index);
            let Some(set) = kept.and_then(|kept| kept.set.clone()) else { return Err(slot.name.clone()) };
            if !set.instances.iter().all(|entry| snapshot.put_in_node(entry)) {
                return Err(slot.name.clone());
            }
            snapshot.services.insert(slot.name.clone(), ServiceSlot { set: Some(set), ..(*slot).clone() }.into());
        }
        Ok(snapshot)
    }

    fn header(&mut self, header: SnapshotHeader) {
        let snapshot = &mut self.snapshot;
        snapshot.cluster = header.cluster;
        snapshot.format = header.format;
        snapshot.index = header.index;
        snapshot.at = header.at;
        snapshot.nodes_index = header.nodes_index;
        snapshot.services_index = header.services_index;
        snapshot.checks_index = header.checks_index;
        snapshot.extinction_index = header.extinction_index;
    }

    fn service(&mut self, row: DirectoryRow) {
        let held = self.snapshot.scope.holds_service(&row.service);
        let kept = self.snapshot.services.get(&row.service).and_then(|slot| slot.set.clone());
        let slot = ServiceSlot {
            name: row.service.clone(),
            index: row.index,
            tags: row.tags.into(),
            set: kept.or_else(|| held.then(Arc::default)),
        };
        self.snapshot.services.insert(row.service, slot.into());
    }

    fn node(&mut self, row: Row<Node>, index: u64) {
        self.place_instance();
        let name = row.value.name.clone();
        let new = Arc::new(NodeEntry::new(row.clone(), index));
        if !self.snapshot.nodes.contains_key(&name) {
            self.snapshot.node_ends.add(&name);
        }
        let entry = Arc::make_mut(self.snapshot.nodes.entry(name).or_insert(new));
        (entry.node, entry.index) = (row, index);
    }

    fn check(&mut self, row: Row<Check>) {
        let checks = match (&row.value.instance, &mut self.instance) {
            (None, _) => {
                let node = self.snapshot.nodes.get_mut(&row.value.node);
                let node = node.filter(|node| node.places.find(&row.value.id).is_none());
                node.map(|node| &mut Arc::make_mut(node).checks)
            }
            (Some(id), Some(entry)) if entry.instance.value.id == *id => Some(&mut entry.checks),
            (Some(_), _) => None,
        };
        if let Some(checks) = checks {
            checks.put(row);
        }
    }

    fn place_instance(&mut self) {
        let Some(mut entry) = self.instance.take() else { return };
        if let Some(instance) = Arc::get_mut(&mut entry.instance.value)
            && let Some(node) = self.snapshot.nodes.get(&instance.node)
        {
            instance.node = instance.node.clone().shared_with(&node.node.value.name);
        }
        self.snapshot.place(entry);
    }
}
