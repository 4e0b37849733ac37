//! Reads of more than a Scope holds: what is asked, and the rows that answer it.

use crate::{Check, Name, NodeEntry, Row, Scope, Snapshot, SnapshotRow, Status, Text, Topic, rows::instance_rows};

/// A read of the whole catalog that no set answers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Wide {
    /// A node with all that stands on it.
    Node(Name),
    /// All checks; of one status, where one is named.
    Checks(Option<Status>),
    /// All instances, without their checks, on the nodes that carry all of this meta data.
    Instances(Vec<(Text, Text)>),
}

impl Wide {
    /// The blocking index of the answer.
    pub fn index(&self, snapshot: &Snapshot) -> u64 {
        match self {
            Self::Node(name) => snapshot.node_index(name),
            Self::Checks(_) => snapshot.checks_index(),
            Self::Instances(_) => snapshot.services_index(),
        }
    }

    /// What moves that index.
    pub fn topic(&self) -> Topic {
        match self {
            Self::Node(name) => Topic::Node(name.clone()),
            Self::Checks(_) => Topic::Checks,
            Self::Instances(_) => Topic::Services,
        }
    }

    /// The rows of the answer: a header, then nodes with what of them is asked for. A Snapshot built from them holds
    /// the answer and nothing else, in particular no services.
    pub fn rows<'a>(&'a self, snapshot: &'a Snapshot) -> impl Iterator<Item = SnapshotRow> + 'a {
        let (one, all) = match self {
            Self::Node(name) => (snapshot.find_node(name), 0),
            Self::Checks(_) | Self::Instances(_) => (None, usize::MAX),
        };
        let nodes = one.into_iter().chain(snapshot.nodes().take(all));
        std::iter::once(snapshot.header_row()).chain(nodes.flat_map(|node| self.node_rows(node)))
    }

    fn node_rows(&self, node: &NodeEntry) -> Vec<SnapshotRow> {
        let mut rows = Vec::new();
        match self {
            Self::Node(_) => {
                rows.extend(node.checks.iter().cloned().map(SnapshotRow::Check));
                rows.extend(node.instances.iter().flat_map(|entry| instance_rows(entry)));
            }
            Self::Checks(status) => {
                let wanted = |check: &&Row<Check>| status.is_none_or(|status| check.value.status == status);
                rows.extend(node.checks.iter().filter(wanted).cloned().map(SnapshotRow::Check));
                for entry in &node.instances {
                    let mut checks = entry.checks.iter().filter(wanted).cloned().map(SnapshotRow::Check).peekable();
                    if checks.peek().is_some() {
                        rows.push(SnapshotRow::Instance(entry.instance.clone()));
                        rows.extend(checks);
                    }
                }
                if rows.is_empty() {
                    return rows;
                }
            }
            Self::Instances(meta) => {
                let carries = |(key, value): &(Text, Text)| node.node.value.meta.get(key) == Some(value);
                if !meta.iter().all(carries) {
                    return rows;
                }
                rows.extend(node.instances.iter().map(|entry| SnapshotRow::Instance(entry.instance.clone())));
            }
        }
        rows.insert(0, SnapshotRow::Node { row: node.node.clone(), index: node.index });
        rows
    }
}

impl Scope {
    /// Whether a Snapshot of this Scope answers such a read by itself.
    pub fn answers(&self, wide: &Wide) -> bool {
        match (self, wide) {
            (Self::All, _) => true,
            (Self::Services { .. }, Wide::Node(name)) => self.holds_node(name),
            (Self::Services { .. }, Wide::Checks(_) | Wide::Instances(_)) => false,
        }
    }
}
