//! The agent's own rows over the replica: what this host knows of itself is never older in its answers than what it
//! tells the registry.
//!
//! Rows that the registry tells otherwise are laid over each Snapshot that is published. Indexes that a client saw for
//! them never fall: while the registry's own are not higher, what moves gets the next one, and what does not move keeps
//! the one it had. Once the registry tells the same there is nothing to lay over, and nothing moves for that.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use muster_catalog::{
    Change, Check, CheckId, ClusterId, Entry, Freshness, Instance, InstanceId, Node, NodeEntry, Origin, Snapshot, Text,
    Topic, View, strip_instance,
};

use crate::local::{LocalRows, Sources};

/// What is laid over the replica, and the replica beneath it.
pub(super) struct Overlay {
    /// As the registry told it.
    told: Arc<View>,
    /// What this host knows; `None` until it has said so.
    own: Option<Own>,
    changes: Vec<Change>,
    /// What `changes` were made from.
    made_from: Option<(Arc<LocalRows>, Option<Arc<NodeEntry>>)>,
    /// The index of the rows in `changes`.
    index: u64,
    /// Indexes that readers have seen and the registry has not passed yet.
    floors: BTreeMap<Topic, u64>,
    /// The registry that they are about.
    cluster: ClusterId,
}

struct Own {
    node: Node,
    rows: Arc<LocalRows>,
}

/// What moved beneath the overlay.
pub(super) enum Moved<'a> {
    /// These topics.
    Topics(&'a BTreeSet<Topic>),
    /// Possibly all.
    All,
}

impl Moved<'_> {
    fn includes(&self, topic: &Topic) -> bool {
        match self {
            Self::Topics(topics) => topics.contains(topic),
            Self::All => true,
        }
    }
}

/// What readers get, and the topics that moved by the overlay.
pub(super) struct Laid {
    pub(super) view: Arc<View>,
    pub(super) topics: BTreeSet<Topic>,
}

impl Overlay {
    pub(super) fn new(told: Arc<View>) -> Self {
        let cluster = told.local.cluster().clone();
        let (own, changes, made_from, index, floors) = (None, Vec::new(), None, 0, BTreeMap::new());
        Self { told, own, changes, made_from, index, floors, cluster }
    }

    /// The View as the registry told it.
    pub(super) fn told(&self) -> Arc<View> {
        self.told.clone()
    }

    /// Another Snapshot came from the registry.
    pub(super) fn tell(&mut self, told: Arc<View>, moved: &Moved<'_>) -> Laid {
        self.told = told;
        self.lay(moved, false)
    }

    /// This host is so now.
    pub(super) fn know(&mut self, node: &Node, rows: Arc<LocalRows>) -> Laid {
        self.own = Some(Own { node: node.clone(), rows });
        self.lay(&Moved::Topics(&BTreeSet::new()), true)
    }

    fn lay(&mut self, moved: &Moved<'_>, by_host: bool) -> Laid {
        let told = self.told.local.clone();
        if *told.cluster() != self.cluster {
            // Its indexes have nothing to do with those of before.
            (self.cluster, self.index) = (told.cluster().clone(), 0);
            self.floors.clear();
        }
        let mut topics = self.follow_rows(&told, by_host);
        if self.changes.is_empty() && self.floors.is_empty() {
            return Laid { view: self.told.clone(), topics };
        }
        let mut snapshot = Snapshot::clone(&told);
        let mut overlaid = BTreeSet::new();
        if !self.changes.is_empty() {
            overlaid.extend(snapshot.lay_over(&self.entry(&told, self.changes.clone())));
        }
        for topic in &overlaid {
            if told.find_blocking_index(topic).is_some() {
                self.floors.entry(topic.clone()).or_insert(self.index);
            }
        }
        self.floors.retain(|topic, floor| {
            let Some(real) = told.find_blocking_index(topic) else { return false };
            if real > *floor {
                *floor = real;
            } else if moved.includes(topic) {
                *floor += 1;
                topics.insert(topic.clone());
            }
            snapshot.set_blocking_index(topic, *floor);
            overlaid.contains(topic) || *floor > real
        });
        let view = View { local: Arc::new(snapshot), ..View::clone(&self.told) };
        Laid { view: Arc::new(view), topics }
    }

    /// Brings `changes` up to date. Returns the topics that readers see move by it: none when the registry alone moved,
    /// which tells what is shown already, or what is shown over it as before.
    fn follow_rows(&mut self, told: &Snapshot, by_host: bool) -> BTreeSet<Topic> {
        let Some(own) = &self.own else { return BTreeSet::new() };
        // Nothing is answered from an empty replica, and what was not read yet may be in a file.
        let silent = self.told.freshness == Freshness::Empty || own.rows.sources == Sources::Reading;
        let entry = told.find_node(&own.node.name).filter(|_| !silent).cloned();
        let same = self.made_from.as_ref().is_some_and(|(rows, made_from)| {
            let same_entry = match (made_from, &entry) {
                (None, None) => true,
                (Some(old), Some(new)) => Arc::ptr_eq(old, new),
                _ => false,
            };
            same_entry && Arc::ptr_eq(rows, &own.rows)
        });
        if same && !silent {
            return BTreeSet::new();
        }
        let changes = if silent { Vec::new() } else { difference(&own.node, told, entry.as_deref(), &own.rows) };
        self.made_from = (!silent).then(|| (own.rows.clone(), entry));
        let old = std::mem::replace(&mut self.changes, changes);
        if old == self.changes {
            return BTreeSet::new();
        }
        let highest = self.floors.values().copied().max().unwrap_or_default();
        self.index = told.index().max(highest).max(self.index) + 1;
        // What was held by the overlay alone may be known by name alone now: who serves all services has to look again.
        let look_again = BTreeSet::from([Topic::AnyService]);
        if !by_host {
            return look_again;
        }
        let moved: Vec<Change> = lacking(&self.changes, &old).chain(lacking(&old, &self.changes)).cloned().collect();
        // Over what was shown before: a check touches a service only where its instance is there already.
        let mut shown = Snapshot::clone(told);
        shown.lay_over(&self.entry(told, old));
        let topics: BTreeSet<Topic> = shown.lay_over(&self.entry(told, moved)).into_iter().chain(look_again).collect();
        for topic in &topics {
            if told.find_blocking_index(topic).is_some() {
                self.floors.insert(topic.clone(), self.index);
            }
        }
        topics
    }

    fn entry(&self, told: &Snapshot, changes: Vec<Change>) -> Entry {
        Entry { index: self.index, at: told.at(), changes }
    }
}

/// The Changes that the others do not have just so. Before the registry was ever reached they name each own row.
fn lacking<'a>(changes: &'a [Change], others: &'a [Change]) -> impl Iterator<Item = &'a Change> {
    let others: BTreeMap<_, _> = others.iter().map(|other| (row_of(other), other)).collect();
    changes.iter().filter(move |change| others.get(&row_of(change)) != Some(change))
}

/// What tells the row of a Change from other rows of the node: its kind and its id.
fn row_of(change: &Change) -> (u8, Option<&Text>) {
    match change {
        Change::PutInstance(row) => (1, Some(&row.id)),
        Change::DeleteInstance { id, .. } => (1, Some(id)),
        Change::PutCheck(row) => (2, Some(&row.id)),
        Change::DeleteCheck { id, .. } => (2, Some(id)),
        _ => (0, None),
    }
}

/// What takes the registry's rows of this agent to what the host knows.
fn difference(node: &Node, told: &Snapshot, entry: Option<&NodeEntry>, rows: &LocalRows) -> Vec<Change> {
    if entry.is_some_and(|entry| !entry.node.value.id.is_empty() && entry.node.value.id != node.id) {
        // Another host has the name: nothing of it is ours.
        return Vec::new();
    }
    let mut changes = Vec::new();
    if entry.is_none_or(|entry| *entry.node.value != *node) {
        changes.push(Change::PutNode(Arc::new(node.clone())));
    }
    let instances = entry.into_iter().flat_map(|entry| &entry.instances).map(|entry| &*entry.instance.value);
    let mut known: BTreeMap<&InstanceId, &Instance> = instances.map(|row| (&row.id, row)).collect();
    let mut come = Vec::new();
    for row in &rows.instances {
        let known = known.remove(&row.id);
        if known.is_none_or(|known| *known != **row && *known != *strip_instance(told.format(), row)) {
            come.push(Change::PutInstance(row.clone()));
        }
    }
    let whole = rows.sources == Sources::Whole;
    let gone = known.into_values().filter(|row| whole && row.origin == Origin::Agent);
    changes.extend(gone.map(|row| Change::DeleteInstance { node: row.node.clone(), id: row.id.clone() }));
    changes.extend(come);
    let on_instances = entry.into_iter().flat_map(|entry| &entry.instances).flat_map(|entry| &entry.checks);
    let checks = entry.into_iter().flat_map(|entry| &entry.checks).chain(on_instances);
    let mut known: BTreeMap<&CheckId, &Check> = checks.map(|row| (&row.value.id, &*row.value)).collect();
    for row in &rows.checks {
        if known.remove(&row.id).is_none_or(|known| !says_the_same(known, row)) {
            changes.push(Change::PutCheck(row.clone()));
        }
    }
    let gone = known.into_values().filter(|row| whole && row.origin == Origin::Agent);
    changes.extend(gone.map(|row| Change::DeleteCheck { node: row.node.clone(), id: row.id.clone() }));
    changes
}

/// Outputs alone do not count: they are told with the next push.
fn says_the_same(known: &Check, row: &Check) -> bool {
    known == row || known.status == row.status && Check { output: known.output.clone(), ..row.clone() } == *known
}

#[cfg(test)]
mod tests;
