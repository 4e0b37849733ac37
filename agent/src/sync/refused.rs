//! Rows that the registry does not take: which they are and why. They hold up no others.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use muster_catalog::{Check, CheckId, Instance, InstanceId};

use super::plan::Push;
use crate::local::LocalRows;

/// Rows as they were refused, and the registry's words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Refused {
    instances: BTreeMap<InstanceId, (Instance, Arc<str>)>,
    checks: BTreeMap<CheckId, (Check, Arc<str>)>,
}

impl Refused {
    /// Takes in what a part puts.
    pub(super) fn add(&mut self, part: Push, why: &str) {
        let why: Arc<str> = why.into();
        self.instances.extend(part.instances.into_iter().map(|row| (row.id.clone(), (row, why.clone()))));
        self.checks.extend(part.checks.into_iter().map(|row| (row.id.clone(), (row, why.clone()))));
    }

    /// Takes in others.
    pub(super) fn extend(&mut self, other: Self) {
        self.instances.extend(other.instances);
        self.checks.extend(other.checks);
    }

    /// How many rows they are.
    pub(super) fn len(&self) -> usize {
        self.instances.len() + self.checks.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn has_instance(&self, id: &InstanceId) -> bool {
        self.instances.contains_key(id)
    }

    pub(super) fn has_check(&self, id: &CheckId) -> bool {
        self.checks.contains_key(id)
    }

    /// Takes out of a push what would be refused again: rows that are as they were, and checks of an instance that the
    /// registry does not have. `has` says whether it has one.
    pub(super) fn hold_back(&self, push: &mut Push, has: impl Fn(&InstanceId) -> bool) -> Self {
        let mut held = Self::default();
        push.instances.retain(|row| {
            let found = self.instances.get(&row.id).filter(|(refused, _)| refused == row);
            held.instances.extend(found.map(|found| (row.id.clone(), found.clone())));
            found.is_none()
        });
        let tried: BTreeSet<&InstanceId> = push.instances.iter().map(|row| &row.id).collect();
        push.checks.retain(|row| {
            if row.instance.as_ref().is_some_and(|id| tried.contains(id)) {
                // Without its checks an instance would seem better than it is.
                return true;
            }
            let same = self.checks.get(&row.id).filter(|(refused, _)| refused == row);
            let absent = row.instance.as_ref().filter(|id| !has(id)).and_then(|id| held.instances.get(id));
            let why = same.map(|(_, why)| why).or(absent.map(|(_, why)| why));
            held.checks.extend(why.map(|why| (row.id.clone(), (row.clone(), why.clone()))));
            why.is_none()
        });
        held
    }

    /// What the registry has once `rows` were pushed: what it refused is there as it was before.
    pub(super) fn settle(&self, before: Option<&LocalRows>, rows: &Arc<LocalRows>) -> Arc<LocalRows> {
        if self.is_empty() {
            return rows.clone();
        }
        let mut settled = (**rows).clone();
        settled.instances.retain(|row| !self.has_instance(&row.id));
        settled.checks.retain(|row| !self.has_check(&row.id));
        if let Some(before) = before {
            settled.instances.extend(before.instances.iter().filter(|row| self.has_instance(&row.id)).cloned());
            settled.checks.extend(before.checks.iter().filter(|row| self.has_check(&row.id)).cloned());
        }
        settled.instances.sort_by(|a, b| a.id.cmp(&b.id));
        settled.checks.sort_by(|a, b| a.id.cmp(&b.id));
        Arc::new(settled)
    }

    /// Each row that is refused for itself, with the reason. Checks that are refused with their instance are not named:
    /// it is the instance that is wrong.
    pub(crate) fn reasons(&self) -> impl Iterator<Item = (String, &str)> {
        let instances = self.instances.iter().map(|(id, (row, why))| {
            let service = &row.service;
            (format!("instance {id} of service {service}"), &**why)
        });
        let alone = |row: &Check| !row.instance.as_ref().is_some_and(|id| self.has_instance(id));
        let checks = self.checks.iter().filter(move |(_, (row, _))| alone(row));
        instances.chain(checks.map(|(id, (_, why))| (format!("check {id}"), &**why)))
    }

    /// Says in the log which rows are refused that were not before, and which are not any more. Whether there are such.
    pub(super) fn log_changes(&self, before: &Self) -> bool {
        let known: BTreeMap<String, &str> = before.reasons().collect();
        let now: BTreeMap<String, &str> = self.reasons().collect();
        for (row, why) in now.iter().filter(|(row, _)| !known.contains_key(*row)) {
            tracing::warn!(%row, %why, "the registry refuses a row; it is tried again when it changes, and now and then");
        }
        for row in known.keys().filter(|row| !now.contains_key(*row)) {
            tracing::info!(%row, "the registry does not refuse this row any more");
        }
        !known.keys().eq(now.keys())
    }
}

#[cfg(test)]
mod tests;
