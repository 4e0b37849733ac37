//! What a push has to carry: pure functions of what is, what was acknowledged, and what the replica shows.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use muster_catalog::{Check, CheckId, Instance, InstanceId, Node, NodeEntry, Origin, Status, strip_instance};

use super::refused::Refused;
use crate::local::{LocalRows, Sources};

/// The rows of a push.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Push {
    /// What is not named here is not on this node.
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
            complete: rows.sources == Sources::Whole,
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
/// the next push. Nor do rows that it refused: it has them in an earlier state, or not at all.
pub(super) fn differs(entry: Option<&NodeEntry>, node: &Node, rows: &LocalRows, refused: &Refused) -> bool {
    let Some(entry) = entry else { return true };
    if *entry.node.value != *node {
        return true;
    }
    let instances = entry.instances.iter().map(|entry| &*entry.instance.value);
    let instances = instances.filter(|row| row.origin == Origin::Agent && !refused.has_instance(&row.id));
    let mut known: BTreeMap<&InstanceId, &Instance> = instances.map(|row| (&row.id, row)).collect();
    let checks = entry.all_checks().map(|row| &*row.value);
    let checks = checks.filter(|row| row.origin == Origin::Agent && !refused.has_check(&row.id));
    let mut known_checks: BTreeMap<&CheckId, (Status, &Option<InstanceId>)> =
        checks.map(|row| (&row.id, (row.status, &row.instance))).collect();
    let mut instances = rows.instances.iter().filter(|row| !refused.has_instance(&row.id));
    let mut checks = rows.checks.iter().filter(|row| !refused.has_check(&row.id));
    instances.any(|row| known.remove(&row.id).is_none_or(|known| *known != **row))
        || checks.any(|row| known_checks.remove(&row.id) != Some((row.status, &row.instance)))
        || !known.is_empty()
        || !known_checks.is_empty()
}

#[cfg(test)]
mod tests;
