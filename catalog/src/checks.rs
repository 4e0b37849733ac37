//! The checks that speak for one thing, and where each check of a node stands.

use crate::{
    Check, CheckId, InstanceId, Row, Status, Text,
    sorted::{Iter, Keyed, Sorted},
};

/// The checks of an instance, or those that speak for a whole node, in order of their ids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checks {
    rows: Sorted<Row<Check>>,
    /// How many of them warn.
    warning: u32,
    /// How many of them are critical.
    critical: u32,
}

impl Checks {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Row<Check>> {
        self.into_iter()
    }

    /// The check of that id.
    pub fn find(&self, id: &str) -> Option<&Row<Check>> {
        self.rows.find(id)
    }

    /// The worst status of them; passing when there are none. It is known without a look at each.
    pub fn worst(&self) -> Status {
        match (self.critical, self.warning) {
            (0, 0) => Status::Passing,
            (0, _) => Status::Warning,
            _ => Status::Critical,
        }
    }

    /// Puts a check at its place and returns the one that stood there.
    pub(crate) fn put(&mut self, row: Row<Check>) -> Option<Row<Check>> {
        if let Some(count) = self.count(row.value.status) {
            *count += 1;
        }
        let old = self.rows.put(row);
        self.uncount(old.as_ref());
        old
    }

    /// Removes the check of that id, and returns it.
    pub(crate) fn remove(&mut self, id: &str) -> Option<Row<Check>> {
        let old = self.rows.remove(id);
        self.uncount(old.as_ref());
        old
    }

    fn count(&mut self, status: Status) -> Option<&mut u32> {
        match status {
            Status::Passing => None,
            Status::Warning => Some(&mut self.warning),
            Status::Critical => Some(&mut self.critical),
        }
    }

    fn uncount(&mut self, old: Option<&Row<Check>>) {
        if let Some(count) = old.and_then(|old| self.count(old.value.status)) {
            *count -= 1;
        }
    }
}

impl<'a> IntoIterator for &'a Checks {
    type Item = &'a Row<Check>;
    type IntoIter = CheckIter<'a>;

    fn into_iter(self) -> Self::IntoIter {
        CheckIter(self.rows.iter())
    }
}

/// Checks in order.
pub struct CheckIter<'a>(Iter<'a, Row<Check>>);

impl<'a> Iterator for CheckIter<'a> {
    type Item = &'a Row<Check>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

/// A check of a node that speaks for one of its instances.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) check: CheckId,
    pub(crate) instance: InstanceId,
}

impl Keyed for Row<Check> {
    fn key(&self) -> &Text {
        &self.value.id
    }
}

impl Keyed for Place {
    fn key(&self) -> &Text {
        &self.check
    }
}
