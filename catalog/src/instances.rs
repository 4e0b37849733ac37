//! The instances of a node or of a service, in order of node and id.

use std::{cmp::Ordering, fmt, sync::Arc};

use equivalent::{Comparable, Equivalent};
use imbl::{OrdSet, ordset};

use crate::{InstanceEntry, Name};

/// A set of instances, at most one at each place: a tree whose parts are shared between Snapshots, so that a write
/// costs as much with ten thousand of them as with ten.
#[derive(Clone, Default)]
pub struct Instances(OrdSet<Placed>);

/// An instance, ordered by where it stands. A handle and no more: a leaf of the tree has room for sixteen, also where
/// a service has one instance.
#[derive(Clone)]
struct Placed(Arc<InstanceEntry>);

/// Where an instance stands.
struct Place<'a> {
    node: &'a Name,
    id: &'a str,
}

impl Instances {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them, in order.
    pub fn iter(&self) -> Iter<'_> {
        Iter(self.0.iter())
    }

    /// The instance of that id on that node.
    pub fn find(&self, node: &Name, id: &str) -> Option<&Arc<InstanceEntry>> {
        self.0.get(&Place { node, id }).map(|placed| &placed.0)
    }

    /// Puts an instance at its place and returns the one that stood there.
    pub(crate) fn put(&mut self, entry: Arc<InstanceEntry>) -> Option<Arc<InstanceEntry>> {
        self.0.insert(Placed(entry)).map(|placed| placed.0)
    }

    /// Removes the instance of that id on that node, and returns it.
    pub(crate) fn remove(&mut self, node: &Name, id: &str) -> Option<Arc<InstanceEntry>> {
        self.0.remove(&Place { node, id }).map(|placed| placed.0)
    }
}

impl Placed {
    fn place(&self) -> Place<'_> {
        let instance = &self.0.instance.value;
        Place { node: &instance.node, id: &instance.id }
    }
}

impl Place<'_> {
    fn compare(&self, other: &Place<'_>) -> Ordering {
        self.node.cmp(other.node).then_with(|| self.id.cmp(other.id))
    }
}

impl Equivalent<Placed> for Place<'_> {
    fn equivalent(&self, key: &Placed) -> bool {
        Comparable::compare(self, key).is_eq()
    }
}

impl Comparable<Placed> for Place<'_> {
    fn compare(&self, key: &Placed) -> Ordering {
        Place::compare(self, &key.place())
    }
}

impl PartialEq for Placed {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Placed {}

impl PartialOrd for Placed {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Placed {
    fn cmp(&self, other: &Self) -> Ordering {
        self.place().compare(&other.place())
    }
}

/// Equal are those that hold equal instances, not merely as many at the same places.
impl PartialEq for Instances {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other)
    }
}

impl Eq for Instances {}

impl fmt::Debug for Instances {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self).finish()
    }
}

impl FromIterator<Arc<InstanceEntry>> for Instances {
    /// Of several at one place the last stays.
    fn from_iter<I: IntoIterator<Item = Arc<InstanceEntry>>>(entries: I) -> Self {
        Self(entries.into_iter().map(Placed).collect())
    }
}

impl<'a> IntoIterator for &'a Instances {
    type Item = &'a Arc<InstanceEntry>;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

/// Instances in order.
pub struct Iter<'a>(ordset::Iter<'a, Placed, imbl::shared_ptr::DefaultSharedPtr>);

impl<'a> Iterator for Iter<'a> {
    type Item = &'a Arc<InstanceEntry>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|placed| &placed.0)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl ExactSizeIterator for Iter<'_> {}
