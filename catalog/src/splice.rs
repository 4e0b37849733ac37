//! Sets that join or leave a replica's Scope, spliced into its stream between two entries.
//!
//! A replica that folded all entries up to an index, and then a splice of that index, equals the projection to the new
//! Scope: `splice(project(S, old)) == project(S, new)`.

use std::sync::Arc;

use crate::{
    Check, CheckId, Checks, DirectoryRow, InstanceEntry, Name, Row, Scope, ServiceSlot, Snapshot, SnapshotRow, Topic,
    rows::instance_rows,
};

/// A change of Scope, with the rows of what joins it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Splice {
    /// All entries up to this index came before it, none of those after it.
    pub index: u64,
    /// The services that are held from here on, whether or not they exist.
    pub joined: Vec<Name>,
    /// The services that are not held any more.
    pub left: Vec<Name>,
    /// The sets of those that joined: a service, then each of its instances with its checks.
    pub rows: Vec<SnapshotRow>,
}

impl Snapshot {
    /// The rows of one service's set, as a [`Splice`] has them; none where it does not exist or is not held.
    pub fn set_rows(&self, service: &Name) -> impl Iterator<Item = SnapshotRow> + '_ {
        let held = self.services.get(service).and_then(|slot| Some((slot, slot.set.as_ref()?)));
        held.into_iter().flat_map(|(slot, set)| {
            let (service, index, tags) = (slot.name.clone(), slot.index, slot.tags.to_vec());
            std::iter::once(SnapshotRow::Service(DirectoryRow { service, index, tags }))
                .chain(set.instances.iter().flat_map(|entry| instance_rows(entry)))
        })
    }

    /// Changes the Scope and takes up or drops the sets. Returns the topics whose waiters find more than before.
    /// A Snapshot that holds everything stays as it is.
    pub fn splice(&mut self, splice: Splice) -> Vec<Topic> {
        let Scope::Services { names, .. } = &mut self.scope else { return Vec::new() };
        for service in &splice.left {
            names.remove(service);
        }
        names.extend(splice.joined.iter().cloned());
        for service in splice.left.iter().chain(&splice.joined) {
            self.drop_set(service);
        }
        let mut instance: Option<InstanceEntry> = None;
        for row in splice.rows {
            match row {
                SnapshotRow::Check(check) => {
                    if let Some(entry) = &mut instance
                        && check.value.instance.as_ref() == Some(&entry.instance.value.id)
                    {
                        entry.checks.put(check);
                    }
                }
                SnapshotRow::Instance(row) => {
                    self.take_up(instance.replace(InstanceEntry { instance: row, checks: Checks::default() }));
                }
                SnapshotRow::Service(row) => {
                    self.take_up(instance.take());
                    self.open_set(row);
                }
                SnapshotRow::Header(_) | SnapshotRow::Node { .. } | SnapshotRow::Writer { .. } => {}
            }
        }
        self.take_up(instance);
        let topics = splice.joined.into_iter().map(Topic::Service);
        topics.chain([Topic::AnyService]).collect()
    }

    /// What stands on the own node stays; the Directory keeps the service's row.
    fn drop_set(&mut self, service: &Name) {
        let Some(set) = self.services.get_mut(service).and_then(|slot| Arc::make_mut(slot).set.take()) else { return };
        for instance in set.instances.iter().map(|entry| &entry.instance.value) {
            if self.scope.holds_node(&instance.node) {
                continue;
            }
            if let Some(node) = self.nodes.get_mut(&instance.node) {
                let gone = Arc::make_mut(node).remove_instance(&instance.id);
                self.instance_count -= usize::from(gone);
            }
        }
    }

    fn open_set(&mut self, row: DirectoryRow) {
        if self.scope.holds_service(&row.service) {
            let (name, set) = (row.service.clone(), Some(Arc::default()));
            let slot = ServiceSlot { name, index: row.index, tags: row.tags.into(), set };
            self.services.insert(row.service, Arc::new(slot));
        }
    }

    fn take_up(&mut self, entry: Option<InstanceEntry>) {
        if let Some(entry) = entry {
            self.place(entry);
        }
    }

    /// Puts an instance on its node and into the set of its service, where that is held; nothing without the node, or where
    /// the set would be held and the Directory does not have the service: its row comes first. A check whose id another on
    /// the node has is passed over.
    pub(crate) fn place(&mut self, mut entry: InstanceEntry) {
        let instance = entry.instance.value.clone();
        if self.scope.holds_service(&instance.service) && !self.services.contains_key(&instance.service) {
            return;
        }
        let Some(node) = self.find_node(&instance.node) else { return };
        let elsewhere = |row: &&Row<Check>| {
            node.find_check(&row.value.id).is_some_and(|other| other.value.instance != row.value.instance)
        };
        let twice: Vec<CheckId> = entry.checks.iter().filter(elsewhere).map(|row| row.value.id.clone()).collect();
        for id in &twice {
            entry.checks.remove(id);
        }
        let entry = &Arc::new(entry);
        let old = node.find_instance(&instance.id).cloned();
        if let Some(old) = old.filter(|old| old.instance.value.service != instance.service)
            && let Some(slot) = self.services.get_mut(&old.instance.value.service)
        {
            Arc::make_mut(slot).remove(&old);
        }
        if self.put_in_node(entry)
            && let Some(slot) = self.services.get_mut(&instance.service)
        {
            Arc::make_mut(slot).put(entry);
        }
    }

    /// Puts an instance on its node; false when there is no such node.
    pub(crate) fn put_in_node(&mut self, entry: &Arc<InstanceEntry>) -> bool {
        let Some(node) = self.nodes.get_mut(&entry.instance.value.node) else { return false };
        let new = Arc::make_mut(node).put_instance(entry);
        self.instance_count += usize::from(new);
        true
    }
}
