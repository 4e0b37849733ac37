//! An overlay: what a host knows of itself already, laid over a Snapshot that the registry has not told it in yet.

use std::sync::Arc;

use crate::{Change, Entry, Scope, ServiceLookup, Snapshot, Topic};

impl Snapshot {
    /// Folds Changes that the log does not have yet. The Snapshot's own index and time stay the log's; rows and what
    /// blocking reads wait for get the entry's index. Returns the topics that were touched.
    ///
    /// A service that the Directory lacks is held from then on: no instance of it stands anywhere else.
    pub fn lay_over(&mut self, entry: &Entry) -> Vec<Topic> {
        let (index, at) = (self.index, self.at);
        for change in &entry.changes {
            if let Change::PutInstance(instance) = change
                && let ServiceLookup::Absent = self.service(&instance.service)
                && let Scope::Services { names, .. } = &mut self.scope
            {
                names.insert(instance.service.clone());
            }
        }
        let topics = self.fold(entry);
        (self.index, self.at) = (index, at);
        topics
    }

    /// The index that a blocking read of the topic waits for; `None` for topics that have none of their own.
    pub fn find_blocking_index(&self, topic: &Topic) -> Option<u64> {
        match topic {
            Topic::Service(service) => Some(self.service_index(service)),
            Topic::Node(node) => Some(self.node_index(node)),
            Topic::Nodes => Some(self.nodes_index),
            Topic::Services => Some(self.services_index),
            Topic::Checks => Some(self.checks_index),
            Topic::AnyService | Topic::Format | Topic::Index => None,
        }
    }

    /// Sets that index: a client that has seen a higher one must not see it fall.
    pub fn set_blocking_index(&mut self, topic: &Topic, index: u64) {
        match topic {
            Topic::Service(service) => match self.services.get_mut(service) {
                Some(slot) => Arc::make_mut(slot).index = index,
                None => self.extinction_index = self.extinction_index.max(index),
            },
            Topic::Node(node) => match self.nodes.get_mut(node) {
                Some(entry) => Arc::make_mut(entry).index = index,
                None => self.nodes_index = self.nodes_index.max(index),
            },
            Topic::Nodes => self.nodes_index = index,
            Topic::Services => self.services_index = index,
            Topic::Checks => self.checks_index = index,
            Topic::AnyService | Topic::Format | Topic::Index => {}
        }
    }
}
