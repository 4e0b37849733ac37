//! Health rules: the one place that says what a set of statuses comes to.

use crate::{InstanceEntry, NodeEntry, Status};

/// The worst of the node's and the instance's checks; passing when there are none.
pub fn status(node: &NodeEntry, entry: &InstanceEntry) -> Status {
    node.checks.worst().max(entry.checks.worst())
}

/// Whether clients should be sent there: not critical, not in maintenance, not draining, and with weight.
pub fn is_serving(node: &NodeEntry, entry: &InstanceEntry) -> bool {
    let instance = &entry.instance.value;
    !instance.draining && instance.maintenance.is_none() && weight(node, entry) > 0
}

/// Whether clients that accept no warning should be sent there: every check passes, no maintenance, no draining.
pub fn is_passing(node: &NodeEntry, entry: &InstanceEntry) -> bool {
    let instance = &entry.instance.value;
    !instance.draining && instance.maintenance.is_none() && status(node, entry) == Status::Passing
}

/// How much traffic it should take: by its weights and status, 0 when critical.
pub fn weight(node: &NodeEntry, entry: &InstanceEntry) -> u16 {
    let weights = entry.instance.value.weights;
    match status(node, entry) {
        Status::Passing => weights.passing,
        Status::Warning => weights.warning,
        Status::Critical => 0,
    }
}
