//! Folding: the next Snapshot from what happened, and the topics whose waiters must look again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    Change, Check, Checks, DirectoryRow, Entry, Instance, InstanceEntry, Name, Node, NodeEntry, Row, Scope,
    ServiceSlot, Snapshot, Text, Topic, checks::Place,
};

impl Snapshot {
    /// Folds all Changes of one entry and returns the topics they touched, each once and in order.
    /// Folding an entry again changes nothing more.
    pub fn fold(&mut self, entry: &Entry) -> Vec<Topic> {
        self.advance(entry.index, entry.at);
        let mut fold = Fold {
            snapshot: self,
            index: entry.index,
            services: Vec::new(),
            topics: BTreeSet::from([Topic::Index]),
            tags_before: BTreeMap::new(),
            tags_moved: BTreeSet::new(),
            nodes_moved: BTreeSet::new(),
        };
        for change in &entry.changes {
            fold.change(change);
        }
        fold.touch_services_of_moved_nodes();
        fold.close_services();
        fold.list_topics()
    }
}

struct Fold<'a> {
    snapshot: &'a mut Snapshot,
    index: u64,
    /// Services that were touched, some of them again and again: put in order once, when the entry ends.
    services: Vec<Name>,
    /// What else was.
    topics: BTreeSet<Topic>,
    /// The tags that each edited service had before the entry; `None` for one that did not exist.
    tags_before: BTreeMap<Name, Option<Arc<[Text]>>>,
    /// Services to which a tag came or from which one went: their union is made once, when the entry ends.
    tags_moved: BTreeSet<Name>,
    /// Nodes of which something was said that holds for each service on them.
    nodes_moved: BTreeSet<Name>,
}

impl Fold<'_> {
    fn change(&mut self, change: &Change) {
        match change {
            Change::SetCluster(cluster) => self.snapshot.cluster = cluster.clone(),
            Change::SetFormat(format) => {
                self.snapshot.format = *format;
                self.topics.insert(Topic::Format);
            }
            Change::PutWriter { node, writer } => {
                if let Some(old) = self.snapshot.writers.insert(node.clone(), *writer) {
                    self.snapshot.checksum.goes(&(node, old));
                }
                self.snapshot.checksum.comes(&(node, *writer));
            }
            Change::PutNode(node) => self.put_node(node),
            Change::DeleteNode(name) => self.delete_node(name),
            Change::PutInstance(instance) => self.put_instance(instance),
            Change::DeleteInstance { node, id } => self.delete_instance(node, id),
            Change::PutCheck(check) => self.put_check(check),
            Change::DeleteCheck { node, id } => self.delete_check(node, id),
            Change::PutDirectory(row) => self.put_directory(row),
            Change::DeleteDirectory(service) => self.delete_directory(service),
        }
    }

    fn put_node(&mut self, node: &Arc<Node>) {
        let name = &node.name;
        let entry = match self.snapshot.nodes.get(name) {
            Some(old) => NodeEntry { node: self.row(Some(&old.node), node), ..(**old).clone() },
            None => {
                self.snapshot.node_ends.add(name);
                NodeEntry::new(self.row(None, node), 0)
            }
        };
        self.snapshot.checksum.comes(&entry.node);
        if let Some(old) = self.snapshot.nodes.insert(name.clone(), Arc::new(entry)) {
            self.snapshot.checksum.goes(&old.node);
        }
        self.touch_nodes_table();
        self.touch_node(name);
        self.nodes_moved.insert(name.clone());
    }

    fn delete_node(&mut self, name: &Name) {
        let Some(entry) = self.snapshot.nodes.get(name).cloned() else { return };
        for instance in &entry.instances {
            self.leave_service(instance);
        }
        self.snapshot.instance_count -= entry.instances.len();
        self.snapshot.nodes.remove(name);
        self.snapshot.node_ends.remove(name);
        if let Some(writer) = self.snapshot.writers.remove(name) {
            self.snapshot.checksum.goes(&(name, writer));
        }
        self.snapshot.checksum.node_goes(&entry);
        self.touch_nodes_table();
        self.touch_checks();
        self.topics.insert(Topic::Node(name.clone()));
    }

    fn put_instance(&mut self, instance: &Arc<Instance>) {
        // No handle of the node is kept: what nobody else holds is edited in place.
        let Some(node) = self.snapshot.nodes.get(&instance.node) else { return };
        let old = node.find_instance(&instance.id).cloned();
        let moved = old.as_ref().filter(|old| old.instance.value.service != instance.service);
        if let Some(old) = moved {
            self.leave_service(old);
        }
        // In its new service it is a new row, and so are its checks: a replica that holds only that service has
        // never seen them, and must come to the same rows.
        let row = self.row(old.as_ref().filter(|_| moved.is_none()).map(|old| &old.instance), instance);
        let mut checks = old.as_ref().map(|old| old.checks.clone()).unwrap_or_default();
        if let Some(old) = &old {
            self.snapshot.checksum.goes(&old.instance);
        }
        self.snapshot.checksum.comes(&row);
        if moved.is_some() && !checks.is_empty() {
            for check in &std::mem::take(&mut checks) {
                self.snapshot.checksum.goes(check);
                let check = self.row(None, &check.value);
                self.snapshot.checksum.comes(&check);
                checks.put(check);
            }
            self.touch_checks();
        }
        let entry = Arc::new(InstanceEntry { instance: row, checks });
        self.replace_on_node(&entry);
        self.store_in_service(&entry);
        self.touch_node(&instance.node);
    }

    fn delete_instance(&mut self, node: &Name, id: &str) {
        let Some(old) = self.snapshot.nodes.get(node).and_then(|entry| entry.find_instance(id)).cloned() else {
            return;
        };
        self.leave_service(&old);
        self.snapshot.checksum.instance_goes(&old);
        self.snapshot.instance_count -= 1;
        if let Some(entry) = self.snapshot.nodes.get_mut(node) {
            Arc::make_mut(entry).remove_instance(id);
        }
        if !old.checks.is_empty() {
            self.touch_checks();
        }
        self.touch_node(node);
    }

    fn put_check(&mut self, check: &Arc<Check>) {
        let Some(node) = self.snapshot.nodes.get(&check.node) else { return };
        // Most are where they were: only one that is new or moved is looked for on the whole node.
        let stays = node.find_check_at(check.instance.as_ref(), &check.id).cloned();
        // Speaking for something else it is a new row: a replica may not have held the old one.
        let row = self.row(stays.as_ref(), check);
        if stays.is_none() {
            self.delete_check(&check.node, &check.id);
        }
        if self.edit_checks(&check.node, check.instance.as_ref(), |checks| checks.put(row.clone())).is_some() {
            self.snapshot.checksum.comes(&row);
            stays.iter().for_each(|old| self.snapshot.checksum.goes(old));
            if stays.is_none()
                && let Some(instance) = check.instance.clone()
                && let Some(node) = self.snapshot.nodes.get_mut(&check.node)
            {
                Arc::make_mut(node).places.put(Place { check: check.id.clone(), instance });
            }
        }
    }

    fn delete_check(&mut self, node: &Name, id: &str) {
        let found = self.snapshot.nodes.get(node).and_then(|entry| entry.find_check(id)).cloned();
        let Some(old) = found else { return };
        self.edit_checks(node, old.value.instance.as_ref(), |checks| checks.remove(id));
        self.snapshot.checksum.goes(&old);
        if let Some(entry) = self.snapshot.nodes.get_mut(node).filter(|_| old.value.instance.is_some()) {
            Arc::make_mut(entry).places.remove(id);
        }
    }

    /// Edits the checks of a node, or of one of its instances, and touches all that shows them. `None` where there is no
    /// such place.
    fn edit_checks<R>(
        &mut self,
        node: &Name,
        instance: Option<&Text>,
        edit: impl FnOnce(&mut Checks) -> R,
    ) -> Option<R> {
        let entry = self.snapshot.nodes.get_mut(node)?;
        let edited = match instance {
            None => {
                let edited = edit(&mut Arc::make_mut(entry).checks);
                self.nodes_moved.insert(node.clone());
                edited
            }
            Some(id) => {
                let mut changed = (**entry.find_instance(id)?).clone();
                let edited = edit(&mut changed.checks);
                let changed = Arc::new(changed);
                self.replace_on_node(&changed);
                self.store_in_service(&changed);
                edited
            }
        };
        self.touch_node(node);
        self.touch_checks();
        Some(edited)
    }

    /// Puts an instance with checks of the same ids where the earlier one stood, or a new one without any.
    fn replace_on_node(&mut self, entry: &Arc<InstanceEntry>) {
        let Some(node) = self.snapshot.nodes.get_mut(&entry.instance.value.node) else { return };
        let old = Arc::make_mut(node).instances.put(entry.clone());
        self.snapshot.instance_count += usize::from(old.is_none());
    }

    fn put_directory(&mut self, row: &DirectoryRow) {
        let service = &row.service;
        let slot = |tags| Arc::new(ServiceSlot { name: service.clone(), index: row.index, tags, set: None });
        match self.snapshot.services.get_mut(service) {
            // Most rows bring a new index alone, and there is nothing to compare when the entry ends.
            Some(known) if *known.tags == *row.tags => *known = slot(known.tags.clone()),
            _ => {
                self.remember_tags(service);
                self.snapshot.services.insert(service.clone(), slot(row.tags.as_slice().into()));
            }
        }
        self.touch_service_topics(service);
    }

    /// Puts an instance into its service.
    fn store_in_service(&mut self, entry: &Arc<InstanceEntry>) {
        let service = &entry.instance.value.service;
        if !self.snapshot.scope.holds_service(service) {
            // Of a service outside the Scope the Directory says the rest, in the same entry.
            return;
        }
        self.remember_tags(service);
        let new = || Arc::new(ServiceSlot { name: service.clone(), index: 0, tags: Arc::new([]), set: None });
        let slot = Arc::make_mut(self.snapshot.services.entry(service.clone()).or_insert_with(new));
        slot.set.get_or_insert_default();
        if slot.put(entry) {
            self.tags_moved.insert(service.clone());
        }
        slot.index = self.index;
        self.touch_service_topics(service);
    }

    /// Takes an instance out of its service; the last one takes the service with it when the entry ends.
    fn leave_service(&mut self, entry: &Arc<InstanceEntry>) {
        let service = &entry.instance.value.service;
        self.remember_tags(service);
        let slot = self.snapshot.services.get_mut(service).filter(|slot| slot.set.is_some());
        let Some(slot) = slot.map(Arc::make_mut) else { return };
        if slot.remove(entry) {
            self.tags_moved.insert(service.clone());
        }
        slot.index = self.index;
        self.touch_service_topics(service);
    }

    fn delete_directory(&mut self, service: &Name) {
        self.remember_tags(service);
        if self.snapshot.services.remove(service).is_some() {
            self.touch_service_topics(service);
        }
    }

    fn remember_tags(&mut self, service: &Name) {
        if !self.tags_before.contains_key(service) {
            let tags = self.snapshot.services.get(service).map(|slot| slot.tags.clone());
            self.tags_before.insert(service.clone(), tags);
        }
    }

    /// Drops services that the entry left without instances, and touches the table of names and tags for what the
    /// whole entry did: a replica that hears of a service through the Directory alone sees no more than that.
    fn close_services(&mut self) {
        for service in std::mem::take(&mut self.tags_moved) {
            if let Some(slot) = self.snapshot.services.get_mut(&service) {
                Arc::make_mut(slot).unite_tags();
            }
        }
        for (service, before) in std::mem::take(&mut self.tags_before) {
            if self.snapshot.services.get(&service).is_some_and(|slot| slot.is_extinct()) {
                self.snapshot.services.remove(&service);
            }
            let after = self.snapshot.services.get(&service).map(|slot| slot.tags.clone());
            if before.is_some() && after.is_none() {
                self.snapshot.extinction_index = self.index;
            }
            if before != after {
                self.touch_services_table();
            }
        }
    }

    fn row<T: PartialEq>(&self, old: Option<&Row<T>>, value: &Arc<T>) -> Row<T> {
        let created = old.map_or(self.index, |old| old.created);
        Row { created, modified: self.index, value: value.clone() }
    }

    /// Once for each node when the entry ends: a push may bring thousands of rows for a node with thousands of others.
    fn touch_services_of_moved_nodes(&mut self) {
        for node in std::mem::take(&mut self.nodes_moved) {
            self.touch_services_on(&node);
        }
    }

    /// Whatever is said of a node is said of each service on it.
    fn touch_services_on(&mut self, node: &Name) {
        let Some(entry) = self.snapshot.nodes.get(node).cloned() else { return };
        let services: BTreeSet<&Name> = entry.instances.iter().map(|entry| &entry.instance.value.service).collect();
        for service in services {
            if let Some(slot) = self.snapshot.services.get_mut(service) {
                Arc::make_mut(slot).index = self.index;
            }
            self.touch_service_topics(service);
        }
    }

    fn touch_service_topics(&mut self, service: &Name) {
        if self.services.last() != Some(service) {
            self.services.push(service.clone());
        }
    }

    fn list_topics(mut self) -> Vec<Topic> {
        self.services.sort();
        self.services.dedup();
        if !self.services.is_empty() {
            self.topics.insert(Topic::AnyService);
        }
        // In the order of topics, services stand before all else.
        let topics: Vec<Topic> = self.services.into_iter().map(Topic::Service).chain(self.topics).collect();
        debug_assert!(topics.is_sorted(), "{topics:?}");
        topics
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
