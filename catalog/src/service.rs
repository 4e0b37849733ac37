//! A service as a Snapshot knows it.

use std::sync::Arc;

use imbl::OrdMap;

use crate::{InstanceEntry, Instances, Name, Text};

/// All instances of a service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServiceSet {
    /// The instances.
    pub instances: Instances,
    /// How many instances carry each tag.
    tags: OrdMap<Text, u32>,
}

/// A service as this Snapshot knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceSlot {
    /// The name, in the case of its first registration.
    pub name: Name,
    /// The blocking index of the service.
    pub index: u64,
    /// The union of its instances' tags, sorted.
    pub tags: Arc<[Text]>,
    /// The instances; `None` outside the Scope.
    pub set: Option<Arc<ServiceSet>>,
}

impl ServiceSlot {
    /// Puts an instance into the set, where that is held. Whether tags came or went: the union is then to be renewed.
    pub(crate) fn put(&mut self, entry: &Arc<InstanceEntry>) -> bool {
        let Some(set) = self.set.as_mut().map(Arc::make_mut) else { return false };
        let old = set.instances.put(entry.clone());
        let old = old.as_ref().map_or(&[][..], |old| &old.instance.value.tags);
        set.count_tags(old, &entry.instance.value.tags)
    }

    /// Takes an instance out of the set, where that is held. Whether tags went.
    pub(crate) fn remove(&mut self, entry: &InstanceEntry) -> bool {
        let Some(set) = self.set.as_mut().map(Arc::make_mut) else { return false };
        let instance = &entry.instance.value;
        let old = set.instances.remove(&instance.node, &instance.id);
        old.is_some_and(|old| set.count_tags(&old.instance.value.tags, &[]))
    }

    /// Makes the tags the union of the instances'; the old ones stay, and stay shared, when they are the same.
    pub(crate) fn unite_tags(&mut self) {
        let Some(set) = &self.set else { return };
        if !set.tags.keys().eq(self.tags.iter()) {
            self.tags = set.tags.keys().cloned().collect();
        }
    }

    /// Whether the set is held and nothing is in it any more.
    pub(crate) fn is_extinct(&self) -> bool {
        self.set.as_ref().is_some_and(|set| set.instances.is_empty())
    }
}

impl ServiceSet {
    fn count_tags(&mut self, gone: &[Text], come: &[Text]) -> bool {
        if gone == come {
            return false;
        }
        for tag in come {
            *self.tags.entry(tag.clone()).or_insert(0) += 1;
        }
        for tag in gone {
            match self.tags.get_mut(tag) {
                Some(count) if *count > 1 => *count -= 1,
                _ => {
                    self.tags.remove(tag);
                }
            }
        }
        true
    }
}
