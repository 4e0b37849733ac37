//! Entries of which a replica hears through the Directory alone, gathered: what they do to it, in as few entries as can be.
//!
//! Most of them move nothing but the index of a service. A row of the Directory carries its own index, so of several the
//! last says it all, and it may come with a later entry. What gets its index from the entry stays in an entry of its own.

use std::collections::BTreeMap;

use crate::{Change, Entry, Footprint, Name, Timestamp};

/// Entries in order that touch nothing which a replica holds; equal for all replicas of which that is so.
#[derive(Debug, Default)]
pub struct Gathered {
    entries: Vec<Entry>,
    /// The rows of services that moved since the last of `entries`.
    moved: BTreeMap<Name, Change>,
    last: (u64, Timestamp),
}

impl Gathered {
    /// Takes the next entry.
    pub fn push(&mut self, entry: &Entry, footprint: &Footprint) {
        self.last = (entry.index, entry.at);
        for listed in footprint.listed() {
            self.moved.insert(listed.service.clone(), listed.change());
        }
        if footprint.moves_directory() {
            let changes = entry.changes.iter().filter_map(|change| outside(change, footprint));
            self.close(changes.collect());
        }
    }

    /// The entries that do the same.
    pub fn finish(mut self) -> Vec<Entry> {
        if !self.moved.is_empty() {
            self.close(Vec::new());
        }
        self.entries
    }

    fn close(&mut self, mut changes: Vec<Change>) {
        changes.extend(std::mem::take(&mut self.moved).into_values());
        let (index, at) = self.last;
        self.entries.push(Entry { index, at, changes });
    }
}

/// What a Change says to a replica that holds none of the services and nodes that its entry touched.
fn outside(change: &Change, footprint: &Footprint) -> Option<Change> {
    match change {
        Change::PutWriter { .. } | Change::PutInstance(_) | Change::DeleteInstance { .. } => None,
        Change::PutCheck(check) if check.instance.is_some() => {
            let (node, id) = (check.node.clone(), check.id.clone());
            footprint.spoke_for_node(&node, &id).then_some(Change::DeleteCheck { node, id })
        }
        Change::DeleteCheck { node, id } => footprint.spoke_for_node(node, id).then(|| change.clone()),
        _ => Some(change.clone()),
    }
}
