//! Folding: the next Snapshot from what happened, and the topics whose waiters must look again.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    Change, Check, DirectoryRow, Entry, Instance, InstanceEntry, Name, Node, NodeEntry, Row, Scope, Snapshot, Text,
    Topic,
    snapshot::{ServiceSet, ServiceSlot},
};

impl Snapshot {
    /// Folds all Changes of one entry and returns the topics they touched, each once and in order.
    /// Folding an entry again changes nothing more.
    pub fn fold(&mut self, entry: &Entry) -> Vec<Topic> {
        self.advance(entry.index, entry.at);
        let mut fold = Fold { snapshot: self, index: entry.index, topics: BTreeSet::from([Topic::Index]) };
        for change in &entry.changes {
            fold.change(change);
        }
        fold.topics.into_iter().collect()
    }
}

struct Fold<'a> {
    snapshot: &'a mut Snapshot,
    index: u64,
    topics: BTreeSet<Topic>,
}

impl Fold<'_> {
    fn change(&mut self, change: &Change) {
        match change {
            Change::SetCluster(cluster) => self.snapshot.cluster = cluster.clone(),
            Change::SetFormat(format) => self.snapshot.format = *format,
            Change::PutWriter { node, writer } => {
                self.snapshot.writers.insert(node.clone(), *writer);
            }
            Change::PutNode(node) => self.put_node(node),
            Change::DeleteNode(name) => self.delete_node(name),
            Change::PutInstance(instance) => self.put_instance(instance),
            Change::DeleteInstance { node, id } => self.delete_instance(node, id),
            Change::PutCheck(check) => self.put_check(check),
            Change::DeleteCheck { node, id } => self.delete_check(node, id),
            Change::PutDirectory(row) => self.put_directory(row),
            Change::DeleteDirectory(service) => self.remove_slot(service),
        }
    }

    fn put_node(&mut self, node: &Arc<Node>) {
        let name = &node.name;
        let entry = match self.snapshot.nodes.get(name) {
            Some(old) => NodeEntry { node: self.row(Some(&old.node), node), ..(**old).clone() },
            None => NodeEntry { node: self.row(None, node), index: 0, checks: Vec::new(), instances: Vec::new() },
        };
        self.snapshot.nodes.insert(name.clone(), Arc::new(entry));
        self.touch_nodes_table();
        self.touch_node(name);
        self.touch_services_on(name);
    }

    fn delete_node(&mut self, name: &Name) {
        let Some(entry) = self.snapshot.nodes.get(name).cloned() else { return };
        for instance in &entry.instances {
            self.leave_service(instance);
        }
        self.snapshot.instance_count -= entry.instances.len();
        self.snapshot.nodes.remove(name);
        self.snapshot.writers.remove(name);
        self.touch_nodes_table();
        self.touch_checks();
        self.topics.insert(Topic::Node(name.clone()));
    }

    fn put_instance(&mut self, instance: &Arc<Instance>) {
        let Some(node) = self.snapshot.nodes.get(&instance.node).cloned() else { return };
        let old = node.find_instance(&instance.id).cloned();
        let moved = old.as_ref().filter(|old| old.instance.value.service != instance.service);
        if let Some(old) = moved {
            self.leave_service(old);
        }
        let entry = Arc::new(InstanceEntry {
            instance: self.row(old.as_ref().map(|old| &old.instance), instance),
            checks: old.as_ref().map(|old| old.checks.clone()).unwrap_or_default(),
        });
        let old_tags = old.as_ref().filter(|_| moved.is_none()).map(|old| old.instance.value.tags.clone());
        self.snapshot.instance_count += usize::from(old.is_none());
        self.store_in_node(&entry);
        self.store_in_service(&entry, old_tags.as_deref());
        self.touch_node(&instance.node);
    }

    fn delete_instance(&mut self, node: &Name, id: &str) {
        let Some(old) = self.snapshot.nodes.get(node).and_then(|entry| entry.find_instance(id)).cloned() else {
            return;
        };
        self.leave_service(&old);
        self.snapshot.instance_count -= 1;
        if let Some(entry) = self.snapshot.nodes.get_mut(node) {
            Arc::make_mut(entry).instances.retain(|instance| &*instance.instance.value.id != id);
        }
        if !old.checks.is_empty() {
            self.touch_checks();
        }
        self.touch_node(node);
    }

    fn put_check(&mut self, check: &Arc<Check>) {
        let Some(node) = self.snapshot.nodes.get(&check.node).cloned() else { return };
        let old = find_check(&node, &check.id);
        let row = self.row(old.as_ref().map(|(_, row)| row), check);
        if let Some((place, _)) = &old
            && *place != check.instance
        {
            self.delete_check(&check.node, &check.id);
        }
        self.edit_checks(&check.node, check.instance.as_ref(), |checks| {
            match checks.binary_search_by(|other| other.value.id.cmp(&check.id)) {
                Ok(at) => checks[at] = row,
                Err(at) => checks.insert(at, row),
            }
        });
    }

    fn delete_check(&mut self, node: &Name, id: &str) {
        let Some(entry) = self.snapshot.nodes.get(node).cloned() else { return };
        let Some((place, _)) = find_check(&entry, id) else { return };
        self.edit_checks(node, place.as_ref(), |checks| checks.retain(|check| &*check.value.id != id));
    }

    /// Edits the checks of a node, or of one of its instances, and touches all that shows them.
    fn edit_checks(&mut self, node: &Name, instance: Option<&Text>, edit: impl FnOnce(&mut Vec<Row<Check>>)) {
        let Some(entry) = self.snapshot.nodes.get_mut(node) else { return };
        match instance {
            None => {
                edit(&mut Arc::make_mut(entry).checks);
                self.touch_services_on(node);
            }
            Some(id) => {
                let Some(old) = entry.find_instance(id) else { return };
                let mut changed = (**old).clone();
                edit(&mut changed.checks);
                let changed = Arc::new(changed);
                self.store_in_node(&changed);
                let tags = changed.instance.value.tags.clone();
                self.store_in_service(&changed, Some(&tags));
            }
        }
        self.touch_node(node);
        self.touch_checks();
    }

    fn put_directory(&mut self, row: &DirectoryRow) {
        let old = self.snapshot.services.get(&row.service);
        if old.is_none_or(|slot| *slot.tags != *row.tags) {
            self.touch_services_table();
        }
        let slot =
            ServiceSlot { name: row.service.clone(), index: row.index, tags: row.tags.as_slice().into(), set: None };
        self.snapshot.services.insert(row.service.clone(), slot);
        self.touch_service_topics(&row.service);
    }

    fn store_in_node(&mut self, entry: &Arc<InstanceEntry>) {
        let instance = &entry.instance.value;
        let Some(node) = self.snapshot.nodes.get_mut(&instance.node) else { return };
        let instances = &mut Arc::make_mut(node).instances;
        match instances.binary_search_by(|other| other.instance.value.id.cmp(&instance.id)) {
            Ok(at) => instances[at] = entry.clone(),
            Err(at) => instances.insert(at, entry.clone()),
        }
    }

    /// Puts an instance into its service. `old_tags` are those it carried there before; `None` when it is new there.
    fn store_in_service(&mut self, entry: &Arc<InstanceEntry>, old_tags: Option<&[Text]>) {
        let instance = &entry.instance.value;
        let service = &instance.service;
        if !self.snapshot.scope.holds_service(service) {
            // Of a service outside the Scope the Directory says the rest, in the same entry.
            return;
        }
        let mut slot = match self.snapshot.services.get(service) {
            Some(slot) => slot.clone(),
            None => {
                self.touch_services_table();
                ServiceSlot { name: service.clone(), index: 0, tags: Arc::new([]), set: None }
            }
        };
        let set = Arc::make_mut(slot.set.get_or_insert_default());
        match position(set, instance) {
            Ok(at) => set.instances[at] = entry.clone(),
            Err(at) => set.instances.insert(at, entry.clone()),
        }
        if old_tags != Some(&instance.tags) {
            count_tags(set, old_tags.unwrap_or_default(), &instance.tags);
            self.refresh_tags(&mut slot);
        }
        slot.index = self.index;
        self.snapshot.services.insert(service.clone(), slot);
        self.touch_service_topics(service);
    }

    /// Takes an instance out of its service; the last one takes the service with it.
    fn leave_service(&mut self, entry: &Arc<InstanceEntry>) {
        let instance = &entry.instance.value;
        let service = &instance.service;
        let Some(mut slot) = self.snapshot.services.get(service).cloned() else { return };
        let Some(set) = slot.set.as_mut() else { return };
        let set = Arc::make_mut(set);
        if let Ok(at) = position(set, instance) {
            set.instances.remove(at);
        }
        if set.instances.is_empty() {
            return self.remove_slot(service);
        }
        if !instance.tags.is_empty() {
            count_tags(set, &instance.tags, &[]);
            self.refresh_tags(&mut slot);
        }
        slot.index = self.index;
        self.snapshot.services.insert(service.clone(), slot);
        self.touch_service_topics(service);
    }

    fn remove_slot(&mut self, service: &Name) {
        if self.snapshot.services.remove(service).is_some() {
            self.snapshot.extinction_index = self.index;
            self.touch_services_table();
            self.touch_service_topics(service);
        }
    }

    fn refresh_tags(&mut self, slot: &mut ServiceSlot) {
        let set = slot.set.as_deref();
        let union: Vec<Text> = set.map(|set| set.tags.keys().cloned().collect()).unwrap_or_default();
        if *slot.tags != *union {
            slot.tags = union.into();
            self.touch_services_table();
        }
    }

    fn row<T: PartialEq>(&self, old: Option<&Row<T>>, value: &Arc<T>) -> Row<T> {
        let created = old.map_or(self.index, |old| old.created);
        Row { created, modified: self.index, value: value.clone() }
    }

    /// Whatever is said of a node is said of each service on it.
    fn touch_services_on(&mut self, node: &Name) {
        let Some(entry) = self.snapshot.nodes.get(node) else { return };
        let services: BTreeSet<Name> =
            entry.instances.iter().map(|instance| instance.instance.value.service.clone()).collect();
        for service in services {
            if let Some(slot) = self.snapshot.services.get_mut(&service) {
                slot.index = self.index;
            }
            self.touch_service_topics(&service);
        }
    }

    fn touch_service_topics(&mut self, service: &Name) {
        self.topics.insert(Topic::Service(service.clone()));
        self.topics.insert(Topic::AnyService);
    }

    fn touch_node(&mut self, name: &Name) {
        if self.snapshot.scope.holds_node(name)
            && let Some(entry) = self.snapshot.nodes.get_mut(name)
        {
            Arc::make_mut(entry).index = self.index;
        }
        self.topics.insert(Topic::Node(name.clone()));
    }

    fn touch_nodes_table(&mut self) {
        self.snapshot.nodes_index = self.index;
        self.topics.insert(Topic::Nodes);
    }

    fn touch_services_table(&mut self) {
        self.snapshot.services_index = self.index;
        self.topics.insert(Topic::Services);
    }

    fn touch_checks(&mut self) {
        if self.snapshot.scope == Scope::All {
            self.snapshot.checks_index = self.index;
        }
        self.topics.insert(Topic::Checks);
    }
}

/// Where an instance stands, or would stand, in its service's order of node and id.
pub(crate) fn position(set: &ServiceSet, instance: &Instance) -> Result<usize, usize> {
    set.instances.binary_search_by(|other| {
        let other = &other.instance.value;
        (&other.node, &other.id).cmp(&(&instance.node, &instance.id))
    })
}

pub(crate) fn count_tags(set: &mut ServiceSet, gone: &[Text], come: &[Text]) {
    for tag in come {
        *set.tags.entry(tag.clone()).or_insert(0) += 1;
    }
    for tag in gone {
        match set.tags.get_mut(tag) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                set.tags.remove(tag);
            }
        }
    }
}

/// A check of the node by id: the instance it stands at, and its row.
fn find_check(node: &NodeEntry, id: &str) -> Option<(Option<Text>, Row<Check>)> {
    let instances = node.instances.iter().flat_map(|entry| &entry.checks);
    let row = node.checks.iter().chain(instances).find(|check| &*check.value.id == id)?;
    Some((row.value.instance.clone(), row.clone()))
}
