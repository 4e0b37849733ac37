//! What a push has to carry: pure functions of what is, what was acknowledged, and what the replica shows.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use muster_catalog::{Check, CheckId, Instance, InstanceId, Node, NodeEntry, Origin, Status, strip_instance};

use crate::local::LocalRows;

/// The rows of a push.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Push {
    pub(super) complete: bool,
    pub(super) instances: Vec<Instance>,
    pub(super) checks: Vec<Check>,
    pub(super) removed_instances: Vec<InstanceId>,
    pub(super) removed_checks: Vec<CheckId>,
}

/// The push that takes the registry from `acknowledged` to `rows`; everything when nothing is acknowledged.
/// `None` when there is nothing to say.
pub(super) fn plan(acknowledged: Option<&LocalRows>, rows: &LocalRows) -> Option<Push> {
    let Some(old) = acknowledged else {
        return Some(Push {
            complete: true,
            instances: rows.instances.iter().map(|row| (**row).clone()).collect(),
            checks: rows.checks.iter().map(|row| (**row).clone()).collect(),
            removed_instances: Vec::new(),
            removed_checks: Vec::new(),
        });
    };
    let (instances, removed_instances) = difference(&old.instances, &rows.instances, |row| &row.id);
    let (checks, removed_checks) = difference(&old.checks, &rows.checks, |row| &row.id);
    let nothing =
        instances.is_empty() && checks.is_empty() && removed_instances.is_empty() && removed_checks.is_empty();
    (!nothing).then_some(Push { complete: false, instances, checks, removed_instances, removed_checks })
}

/// The rows as a catalog of that format can hold them; the same where it can hold all.
pub(super) fn strip(format: u32, rows: &Arc<LocalRows>) -> Arc<LocalRows> {
    let strip = |row: &Arc<Instance>| match strip_instance(format, row) {
        Cow::Borrowed(_) => row.clone(),
        Cow::Owned(without) => Arc::new(without),
    };
    let instances: Vec<Arc<Instance>> = rows.instances.iter().map(strip).collect();
    let same = instances.iter().zip(&rows.instances).all(|(stripped, row)| Arc::ptr_eq(stripped, row));
    if same { rows.clone() } else { Arc::new(LocalRows { instances, ..(**rows).clone() }) }
}

fn difference<T: PartialEq + Clone, K: Ord + Clone>(
    old: &[Arc<T>],
    new: &[Arc<T>],
    id: impl Fn(&T) -> &K,
) -> (Vec<T>, Vec<K>) {
    let mut left: BTreeMap<&K, &Arc<T>> = old.iter().map(|row| (id(row), row)).collect();
    let mut changed = Vec::new();
    for row in new {
        let same = left.remove(id(row)).is_some_and(|old| Arc::ptr_eq(old, row) || old == row);
        if !same {
            changed.push((**row).clone());
        }
    }
    (changed, left.into_keys().cloned().collect())
}

/// Whether the registry's rows of this agent are others than these. Outputs alone do not count: they travel with
/// the next push.
pub(super) fn differs(entry: Option<&NodeEntry>, node: &Node, rows: &LocalRows) -> bool {
    let Some(entry) = entry else { return true };
    if *entry.node.value != *node {
        return true;
    }
    let own = |origin: Origin| origin == Origin::Agent;
    let instances = entry.instances.iter().map(|entry| &*entry.instance.value).filter(|row| own(row.origin));
    let known: BTreeMap<&InstanceId, &Instance> = instances.map(|row| (&row.id, row)).collect();
    let checks = entry.checks.iter().chain(entry.instances.iter().flat_map(|entry| &entry.checks));
    let known_checks: BTreeMap<&CheckId, (Status, &Option<InstanceId>)> = checks
        .filter(|row| own(row.value.origin))
        .map(|row| (&row.value.id, (row.value.status, &row.value.instance)))
        .collect();
    known.len() != rows.instances.len()
        || known_checks.len() != rows.checks.len()
        || rows.instances.iter().any(|row| known.get(&row.id).is_none_or(|known| **known != **row))
        || rows.checks.iter().any(|row| known_checks.get(&row.id) != Some(&(row.status, &row.instance)))
}

#[cfg(test)]
mod tests;
