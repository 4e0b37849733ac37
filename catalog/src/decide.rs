//! What follows from a Command: a pure function of the catalog and the proposal.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    Change, Check, CheckId, CheckKind, Command, Instance, InstanceId, NODE_LIVENESS_CHECK, Name, Node, NodeEntry,
    NodeSync, Origin, Proposal, Registration, Rejection, Removal, Snapshot, Status, Writer, strip_instance,
};

/// Decides what a proposal does to the catalog: the Changes of one entry in key order, none for what is so already.
pub fn decide(snapshot: &Snapshot, proposal: &Proposal) -> Result<Vec<Change>, Rejection> {
    match &proposal.command {
        Command::Bootstrap(cluster) => {
            let first = snapshot.cluster.uuid.is_empty();
            Ok(if first { vec![Change::SetCluster(cluster.clone())] } else { Vec::new() })
        }
        Command::SetFormat(format) => {
            Ok(if *format > snapshot.format { vec![Change::SetFormat(*format)] } else { Vec::new() })
        }
        Command::Sync(sync) => decide_sync(snapshot, sync),
        Command::Leave { node, writer } => decide_leave(snapshot, node, *writer),
        Command::Liveness { nodes, status } => Ok(decide_liveness(snapshot, nodes, *status)),
        Command::Register(registration) => decide_register(snapshot, registration),
        Command::Deregister(removal) => decide_deregister(snapshot, removal),
    }
}

fn decide_sync(snapshot: &Snapshot, sync: &NodeSync) -> Result<Vec<Change>, Rejection> {
    let name = &sync.node.name;
    let entry = snapshot.find_node(name);
    let last = snapshot.find_writer(name);
    if let Some(entry) = entry {
        check_claim(entry, &sync.node)?;
    }
    let same_agent = entry.is_none_or(|entry| entry.node.value.id == sync.node.id);
    if let Some(last) = last.filter(|_| same_agent) {
        if last.incarnation > sync.writer.incarnation {
            let (newest, given) = (last.incarnation, sync.writer.incarnation);
            return Err(Rejection::Superseded { node: name.clone(), newest, given });
        }
        if last >= sync.writer {
            // A repeat, or one that a later write has overtaken: its effect is there, or must not come back.
            return Ok(Vec::new());
        }
    }
    let mut draft = Draft::new(snapshot, name, Origin::Agent);
    draft.put_node(Node { origin: Origin::Agent, ..sync.node.clone() });
    draft.put_rows(&sync.instances, &sync.checks)?;
    draft.remove_own(&sync.removed_instances, &sync.removed_checks);
    if sync.complete {
        draft.remove_own_except(&sync.instances, &sync.checks);
    }
    draft.check_references(&sync.checks)?;
    // The push itself is a sign of life.
    draft.put_check(liveness_check(name, Status::Passing));
    let mut changes = draft.finish();
    // A push that changes nothing leaves no trace, unless it is the first of a start of the agent, or has overtaken
    // one: that one is on its way perhaps, and must not be done when it arrives.
    let next = last.is_some_and(|last| {
        last.incarnation == sync.writer.incarnation && last.sequence.checked_add(1) == Some(sync.writer.sequence)
    });
    if !changes.is_empty() || !next {
        changes.insert(0, Change::PutWriter { node: name.clone(), writer: sync.writer });
    }
    // The writer's row goes with the node's; a new node comes first.
    changes.sort_by_key(|change| !matches!(change, Change::PutNode(_)));
    Ok(changes)
}

/// A name is taken over only from an agent whose lease has ended, or from a node without an agent.
fn check_claim(entry: &NodeEntry, claimant: &Node) -> Result<(), Rejection> {
    let owner = &entry.node.value;
    let alive = entry.liveness().is_some_and(|check| check.value.status == Status::Passing);
    if owner.id == claimant.id || owner.origin != Origin::Agent || !alive {
        return Ok(());
    }
    Err(Rejection::NodeNameTaken {
        node: owner.name.clone(),
        owner: owner.id.to_string(),
        owner_address: owner.address.to_string(),
        claimant: claimant.id.to_string(),
        claimant_address: claimant.address.to_string(),
    })
}

fn decide_leave(snapshot: &Snapshot, node: &Name, writer: Writer) -> Result<Vec<Change>, Rejection> {
    let newest = snapshot.find_writer(node).map_or(0, |last| last.incarnation);
    if newest > writer.incarnation {
        return Err(Rejection::Superseded { node: node.clone(), newest, given: writer.incarnation });
    }
    // A start that has not written has nothing here to take along: the node may be another agent's by now.
    Ok(if newest == writer.incarnation { delete_node(snapshot, node) } else { Vec::new() })
}

fn decide_liveness(snapshot: &Snapshot, nodes: &[(Name, u64)], status: Status) -> Vec<Change> {
    let nodes: BTreeMap<&Name, u64> = nodes.iter().map(|(name, incarnation)| (name, *incarnation)).collect();
    let current = nodes.into_iter().filter(|(name, incarnation)| {
        // A verdict about an earlier start of the agent says nothing of this one.
        snapshot.find_writer(name).is_some_and(|writer| writer.incarnation == *incarnation)
    });
    let changed = current.filter(|(name, _)| {
        let liveness = snapshot.find_node(name).and_then(|entry| entry.liveness());
        liveness.is_some_and(|check| check.value.status != status)
    });
    changed.map(|(name, _)| Change::PutCheck(Arc::new(liveness_check(name, status)))).collect()
}

fn decide_register(snapshot: &Snapshot, registration: &Registration) -> Result<Vec<Change>, Rejection> {
    let name = &registration.name;
    let mut draft = Draft::new(snapshot, name, Origin::Catalog);
    if let Some(node) = &registration.node {
        draft.own(&node.name, || "the node's row".to_owned())?;
    }
    match &registration.node {
        // The row of a node with an agent is the agent's.
        Some(node) if draft.agent_is_absent() => draft.put_node(Node { origin: Origin::Catalog, ..node.clone() }),
        Some(_) => {}
        None if snapshot.find_node(name).is_none() => return Err(Rejection::UnknownNode(name.clone())),
        None => {}
    }
    draft.refuse_agents_rows(&registration.instances, &registration.checks)?;
    draft.put_rows(&registration.instances, &registration.checks)?;
    draft.check_references(&registration.checks)?;
    Ok(draft.finish())
}

fn decide_deregister(snapshot: &Snapshot, removal: &Removal) -> Result<Vec<Change>, Rejection> {
    let (Removal::Node(node) | Removal::Instance { node, .. } | Removal::Check { node, .. }) = removal;
    let Some(entry) = snapshot.find_node(node) else { return Ok(Vec::new()) };
    let alive = entry.liveness().is_some_and(|check| check.value.status == Status::Passing);
    let refuse = |row: String| Err(Rejection::OwnedByAgent { row, node: node.clone() });
    match removal {
        Removal::Node(_) if alive => refuse(format!("node {node}")),
        Removal::Node(_) => Ok(delete_node(snapshot, node)),
        Removal::Instance { id, .. } => match entry.find_instance(id) {
            None => Ok(Vec::new()),
            Some(found) if alive && found.instance.value.origin == Origin::Agent => refuse(format!("instance {id}")),
            Some(_) => Ok(vec![Change::DeleteInstance { node: node.clone(), id: id.clone() }]),
        },
        Removal::Check { id, .. } => match entry.find_check(id).map(|row| &*row.value) {
            None => Ok(Vec::new()),
            Some(found) if alive && found.origin != Origin::Catalog => refuse(format!("check {id}")),
            Some(_) => Ok(vec![Change::DeleteCheck { node: node.clone(), id: id.clone() }]),
        },
    }
}

fn delete_node(snapshot: &Snapshot, node: &Name) -> Vec<Change> {
    if snapshot.find_node(node).is_some() { vec![Change::DeleteNode(node.clone())] } else { Vec::new() }
}

/// The check that carries a node's liveness, in the words of the v1 dialect.
fn liveness_check(node: &Name, status: Status) -> Check {
    let output = if status == Status::Passing { "Agent alive and reachable" } else { "Agent not live or unreachable" };
    Check {
        node: node.clone(),
        id: NODE_LIVENESS_CHECK.into(),
        instance: None,
        name: "Serf Health Status".into(),
        status,
        notes: "".into(),
        output: output.into(),
        kind: CheckKind::default(),
        origin: Origin::Registry,
    }
}

/// The rows of one node as they would be, kept by key so that Changes come out in key order.
struct Draft<'a> {
    name: &'a Name,
    origin: Origin,
    format: u32,
    entry: Option<&'a Arc<NodeEntry>>,
    node: Option<Change>,
    instances: BTreeMap<InstanceId, Change>,
    checks: BTreeMap<CheckId, Change>,
}

impl<'a> Draft<'a> {
    fn new(snapshot: &'a Snapshot, name: &'a Name, origin: Origin) -> Self {
        let entry = snapshot.find_node(name);
        let format = snapshot.format;
        let (instances, checks) = (BTreeMap::new(), BTreeMap::new());
        Self { name, origin, format, entry, node: None, instances, checks }
    }

    fn agent_is_absent(&self) -> bool {
        self.entry.is_none_or(|entry| entry.node.value.origin != Origin::Agent)
    }

    fn put_node(&mut self, node: Node) {
        let same = self
            .entry
            .is_some_and(|entry| *entry.node.value == node && entry.node.value.name.as_str() == node.name.as_str());
        if !same {
            self.node = Some(Change::PutNode(Arc::new(node)));
        }
    }

    fn put_rows(&mut self, instances: &[Instance], checks: &[Check]) -> Result<(), Rejection> {
        for instance in instances {
            self.own(&instance.node, || format!("instance {}", instance.id))?;
            let row = strip_instance(self.format, instance).into_owned();
            // All on a node carry the node's own name: an order of node and id then compares ids alone.
            let node = self.entry.map_or(self.name, |entry| &entry.node.value.name);
            let row = Instance { node: row.node.clone().shared_with(node), origin: self.origin, ..row };
            // Of two rows with one id the last counts, also when it is what is there already.
            if self.found_instance(&row.id).is_some_and(|old| *old == row) {
                self.instances.remove(&row.id);
            } else {
                self.instances.insert(row.id.clone(), Change::PutInstance(Arc::new(row)));
            }
        }
        for check in checks {
            self.own(&check.node, || format!("check {}", check.id))?;
            self.put_check(Check { origin: self.origin, ..check.clone() });
        }
        Ok(())
    }

    fn put_check(&mut self, check: Check) {
        if self.found_check_near(&check).is_some_and(|old| *old == check) {
            self.checks.remove(&check.id);
        } else {
            self.checks.insert(check.id.clone(), Change::PutCheck(Arc::new(check)));
        }
    }

    fn own(&self, found: &Name, row: impl FnOnce() -> String) -> Result<(), Rejection> {
        if found == self.name {
            return Ok(());
        }
        Err(Rejection::ForeignRow { row: row(), found: found.clone(), expected: self.name.clone() })
    }

    fn found_instance(&self, id: &str) -> Option<&Instance> {
        Some(&self.entry?.find_instance(id)?.instance.value)
    }

    fn found_check(&self, id: &str) -> Option<&Check> {
        Some(&self.entry?.find_check(id)?.value)
    }

    /// The check of that id where the given one stands: one that stands elsewhere is another row in any case.
    fn found_check_near(&self, check: &Check) -> Option<&Check> {
        Some(&self.entry?.find_check_at(check.instance.as_ref(), &check.id)?.value)
    }

    fn refuse_agents_rows(&self, instances: &[Instance], checks: &[Check]) -> Result<(), Rejection> {
        let owned = |row: String| Err(Rejection::OwnedByAgent { row, node: self.name.clone() });
        for instance in instances {
            if self.found_instance(&instance.id).is_some_and(|old| old.origin == Origin::Agent) {
                return owned(format!("instance {}", instance.id));
            }
        }
        for check in checks {
            if self.found_check(&check.id).is_some_and(|old| old.origin != Origin::Catalog) {
                return owned(format!("check {}", check.id));
            }
        }
        Ok(())
    }

    /// Removes rows of this writer's origin; others' stay. A row that is both put and removed is removed.
    fn remove_own(&mut self, instances: &[InstanceId], checks: &[CheckId]) {
        for id in instances {
            self.instances.remove(id);
            if self.found_instance(id).is_some_and(|old| old.origin == self.origin) {
                let change = Change::DeleteInstance { node: self.name.clone(), id: id.clone() };
                self.instances.insert(id.clone(), change);
            }
        }
        for id in checks {
            self.checks.remove(id);
            if self.found_check(id).is_some_and(|old| old.origin == self.origin) {
                self.checks.insert(id.clone(), Change::DeleteCheck { node: self.name.clone(), id: id.clone() });
            }
        }
    }

    /// Removes rows of this writer's origin that a complete push does not name.
    fn remove_own_except(&mut self, instances: &[Instance], checks: &[Check]) {
        let Some(entry) = self.entry else { return };
        let named: BTreeSet<&InstanceId> = instances.iter().map(|instance| &instance.id).collect();
        let gone: Vec<InstanceId> =
            entry.instances.iter().map(|e| e.instance.value.id.clone()).filter(|id| !named.contains(id)).collect();
        let named: BTreeSet<&CheckId> = checks.iter().map(|check| &check.id).collect();
        let gone_checks: Vec<CheckId> =
            entry.all_checks().map(|check| check.value.id.clone()).filter(|id| !named.contains(id)).collect();
        self.remove_own(&gone, &gone_checks);
    }

    /// Every check that is put speaks for an instance that exists afterwards.
    fn check_references(&self, checks: &[Check]) -> Result<(), Rejection> {
        for check in checks {
            let Some(instance) = &check.instance else { continue };
            let exists = match self.instances.get(instance) {
                Some(change) => matches!(change, Change::PutInstance(_)),
                None => self.found_instance(instance).is_some(),
            };
            if !exists {
                let (check, instance, node) = (check.id.clone(), instance.clone(), self.name.clone());
                return Err(Rejection::UnknownInstance { check, instance, node });
            }
        }
        Ok(())
    }

    fn finish(self) -> Vec<Change> {
        self.node.into_iter().chain(self.instances.into_values()).chain(self.checks.into_values()).collect()
    }
}
