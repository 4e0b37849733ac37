//! Items in order of their ids: a list while they are few, a tree whose parts are shared between Snapshots when they are
//! many. A write copies a part of what there is, and no more with ten thousand of them than with a hundred.

use std::slice;

use imbl::{OrdMap, ordmap};

use crate::Text;

/// A longer list becomes a tree. Most instances have a check or two, and a leaf of a tree has room for sixteen.
const FEW: usize = 32;

/// What has an id.
pub(crate) trait Keyed: Clone {
    /// It.
    fn key(&self) -> &Text;
}

/// Items with an id, at most one of each.
#[derive(Debug, Clone)]
pub(crate) enum Sorted<T> {
    Few(Vec<T>),
    Many(OrdMap<Text, T>),
}

impl<T: Keyed> Sorted<T> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Few(items) => items.len(),
            Self::Many(items) => items.len(),
        }
    }

    pub(crate) fn iter(&self) -> Iter<'_, T> {
        match self {
            Self::Few(items) => Iter::Few(items.iter()),
            Self::Many(items) => Iter::Many(items.values()),
        }
    }

    pub(crate) fn find(&self, id: &str) -> Option<&T> {
        match self {
            Self::Few(items) => items.get(seek(items, id).ok()?),
            Self::Many(items) => items.get(id),
        }
    }

    /// Puts an item at its place and returns the one that stood there.
    pub(crate) fn put(&mut self, item: T) -> Option<T> {
        let items = match self {
            Self::Many(items) => return items.insert(item.key().clone(), item),
            Self::Few(items) => items,
        };
        match seek(items, item.key()) {
            Ok(at) => return Some(std::mem::replace(&mut items[at], item)),
            Err(at) => items.insert(at, item),
        }
        if items.len() > FEW {
            *self = Self::Many(items.drain(..).map(|item| (item.key().clone(), item)).collect());
        }
        None
    }

    /// Removes the item of that id and returns it.
    pub(crate) fn remove(&mut self, id: &str) -> Option<T> {
        let items = match self {
            Self::Few(items) => return seek(items, id).ok().map(|at| items.remove(at)),
            Self::Many(items) => items,
        };
        let removed = items.remove(id);
        // Not at once: one that comes and goes is not to turn it over and over.
        if items.len() <= FEW / 2 {
            *self = Self::Few(items.values().cloned().collect());
        }
        removed
    }
}

fn seek<T: Keyed>(items: &[T], id: &str) -> Result<usize, usize> {
    items.binary_search_by(|other| (**other.key()).cmp(id))
}

impl<T> Default for Sorted<T> {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

/// Equal are those that hold equal items, whichever way they keep them.
impl<T: Keyed + PartialEq> PartialEq for Sorted<T> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl<T: Keyed + Eq> Eq for Sorted<T> {}

/// Items in order.
pub(crate) enum Iter<'a, T> {
    Few(slice::Iter<'a, T>),
    Many(ordmap::Values<'a, Text, T, imbl::shared_ptr::DefaultSharedPtr>),
}

impl<'a, T> Iterator for Iter<'a, T> {
    type Item = &'a T;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Few(items) => items.next(),
            Self::Many(items) => items.next(),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        match self {
            Self::Few(items) => items.size_hint(),
            Self::Many(items) => items.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, PartialEq, Eq)]
    struct Item(Text, u32);

    impl Keyed for Item {
        fn key(&self) -> &Text {
            &self.0
        }
    }

    proptest! {
        #[test]
        fn few_and_many_are_kept_in_the_same_order_however_they_came(
            steps in prop::collection::vec((0..100_u32, prop::option::weighted(0.7, any::<u32>())), 0..400),
        ) {
            let (mut sorted, mut model) = (Sorted::default(), BTreeMap::new());
            // They come, and go until there are few again.
            let last = (0..100).map(|id| (id, None));
            for (id, value) in steps.into_iter().chain(last) {
                let id: Text = id.to_string().into();
                match value {
                    Some(value) => {
                        let item = Item(id.clone(), value);
                        prop_assert_eq!(sorted.put(item.clone()), model.insert(id.clone(), item));
                    }
                    None => prop_assert_eq!(sorted.remove(&id), model.remove(&id)),
                }
                prop_assert_eq!(sorted.find(&id), model.get(&id));
                prop_assert!(sorted.iter().eq(model.values()));
                prop_assert_eq!((sorted.len(), sorted.iter().size_hint().1), (model.len(), Some(model.len())));
                let afresh = model.values().fold(Sorted::default(), |mut afresh, item| {
                    afresh.put(item.clone());
                    afresh
                });
                prop_assert_eq!(&sorted, &afresh);
            }
            prop_assert!(matches!(sorted, Sorted::Few(_)));
        }
    }
}
