//! A push in parts: each is a Command that any member takes, and removes nothing that it does not name.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use muster_catalog::{Check, CheckId, Instance, InstanceId, NodeEntry, Origin};
use muster_registry::{
    MAX_COMMAND_BYTES,
    client::{check_bytes, instance_bytes},
};

use super::plan::Push;

/// Rows that go in one part, by their bytes: as large as a message of many writes.
const PART_BYTES: usize = 1024 * 1024;
/// Names of rows to remove that go in one part.
const PART_NAMES: usize = 1024;
/// The longest id of an instance or a check and what stands around it.
const NAME_BYTES: usize = 520;
/// An instance with its checks, which go together while a member takes them: the rest is for the node's own row.
const GROUP_BYTES: usize = MAX_COMMAND_BYTES - 256 * 1024;
const _: () = assert!(PART_BYTES + PART_NAMES * NAME_BYTES < GROUP_BYTES, "a member takes any part");

/// An instance and its checks; or checks of an instance that stays as it is, or of the node.
#[derive(Default)]
struct Group {
    instance: Option<Instance>,
    checks: Vec<Check>,
}

impl Group {
    fn bytes(&self) -> usize {
        self.instance.as_ref().map_or(0, instance_bytes) + self.checks.iter().map(check_bytes).sum::<usize>()
    }
}

/// The push in parts; the push itself where it is no larger than one. `known` is what the registry told of the node.
pub(super) fn divide(push: Push, known: Option<&NodeEntry>) -> VecDeque<Push> {
    let bytes: usize = push.instances.iter().map(instance_bytes).chain(push.checks.iter().map(check_bytes)).sum();
    let names = push.removed_instances.len() + push.removed_checks.len();
    if bytes <= PART_BYTES && names <= PART_NAMES {
        return [push].into();
    }
    let push = name_removed(push, known);
    let (mut parts, mut open, mut filled) = (VecDeque::new(), Push::default(), 0);
    for group in groups(push.instances, push.checks) {
        for piece in pieces(group) {
            let bytes = piece.bytes();
            if filled > 0 && filled + bytes > PART_BYTES {
                parts.push_back(std::mem::take(&mut open));
                filled = 0;
            }
            filled += bytes;
            open.instances.extend(piece.instance);
            open.checks.extend(piece.checks);
        }
    }
    parts.push_back(open);
    // Last: what takes the place of something is there before that goes.
    let instances = push.removed_instances.chunks(PART_NAMES);
    parts.extend(instances.map(|ids| Push { removed_instances: ids.to_vec(), ..Push::default() }));
    let checks = push.removed_checks.chunks(PART_NAMES);
    parts.extend(checks.map(|ids| Push { removed_checks: ids.to_vec(), ..Push::default() }));
    parts.retain(|part| *part != Push::default());
    parts
}

/// Two smaller parts that say the same, the first of them first; the error is what goes together or not at all.
pub(super) fn halve(part: Push, known: Option<&NodeEntry>) -> Result<(Push, Push), Push> {
    let Push { instances, checks, removed_instances, removed_checks, .. } = name_removed(part, known);
    let removed = Push { removed_instances, removed_checks, ..Push::default() };
    let mut groups = groups(instances, checks);
    if groups.is_empty() {
        return Err(removed);
    }
    if removed != Push::default() {
        return Ok((collect(groups), removed));
    }
    let second = match &mut groups[..] {
        [Group { instance: None, checks }] if checks.len() > 1 => {
            vec![Group { instance: None, checks: checks.split_off(checks.len() / 2) }]
        }
        [_] => return Err(collect(groups)),
        _ => groups.split_off(groups.len() / 2),
    };
    Ok((collect(groups), collect(second)))
}

/// The same with the names of all that it removes; a part cannot imply them.
fn name_removed(push: Push, known: Option<&NodeEntry>) -> Push {
    let Some(known) = known.filter(|_| push.complete) else { return Push { complete: false, ..push } };
    let named: BTreeSet<&InstanceId> = push.instances.iter().map(|row| &row.id).collect();
    let instances = known.instances.iter().map(|entry| &*entry.instance.value);
    let gone = instances.filter(|row| row.origin == Origin::Agent && !named.contains(&row.id));
    let removed_instances = gone.map(|row| row.id.clone()).collect();
    let named: BTreeSet<&CheckId> = push.checks.iter().map(|row| &row.id).collect();
    let checks = known.all_checks().map(|row| &*row.value);
    let gone = checks.filter(|row| row.origin == Origin::Agent && !named.contains(&row.id));
    let removed_checks = gone.map(|row| row.id.clone()).collect();
    Push { complete: false, removed_instances, removed_checks, ..push }
}

fn groups(instances: Vec<Instance>, checks: Vec<Check>) -> Vec<Group> {
    let mut of: BTreeMap<Option<InstanceId>, Vec<Check>> = BTreeMap::new();
    for check in checks {
        of.entry(check.instance.clone()).or_default().push(check);
    }
    // What speaks for the node stands by itself, each for its own.
    let node = of.remove(&None).unwrap_or_default();
    let mut groups: Vec<Group> = node.into_iter().map(|check| Group { instance: None, checks: vec![check] }).collect();
    for instance in instances {
        let checks = of.remove(&Some(instance.id.clone())).unwrap_or_default();
        groups.push(Group { instance: Some(instance), checks });
    }
    groups.extend(of.into_values().map(|checks| Group { instance: None, checks }));
    groups
}

/// The group itself where a member takes it whole. The worst checks come with the instance then, so that it is at no time
/// better than it is.
fn pieces(mut group: Group) -> Vec<Group> {
    if group.bytes() <= GROUP_BYTES {
        return vec![group];
    }
    let mut checks = std::mem::take(&mut group.checks);
    checks.sort_by_key(|check| std::cmp::Reverse(check.status));
    let (mut pieces, mut filled) = (Vec::new(), group.bytes());
    for check in checks {
        let bytes = check_bytes(&check);
        if filled > 0 && filled + bytes > PART_BYTES {
            pieces.push(std::mem::take(&mut group));
            filled = 0;
        }
        filled += bytes;
        group.checks.push(check);
    }
    pieces.push(group);
    pieces
}

fn collect(groups: Vec<Group>) -> Push {
    let mut part = Push::default();
    for group in groups {
        part.instances.extend(group.instance);
        part.checks.extend(group.checks);
    }
    part
}

#[cfg(test)]
mod tests;
