//! The way of a push to the registry: part after part, and those that are refused taken apart until each row is there or
//! refused by itself.

use std::sync::Arc;

use muster_catalog::{
    Command, InstanceId, NodeEntry, NodeSync,
    port::{Sink, SubmitError},
};

use super::{Pusher, parts, plan::Push, refused::Refused};

/// What a push is sent with.
pub(super) struct Sender<'a> {
    pub(super) sink: &'a dyn Sink,
    pub(super) pusher: &'a Pusher,
    /// What the registry told of this node.
    pub(super) known: Option<Arc<NodeEntry>>,
    /// Called when a part is there: the registry knows the node then.
    pub(super) taken: &'a (dyn Fn() + Sync),
}

/// A push that is there, but for what is refused.
#[derive(Debug)]
pub(super) struct Sent {
    /// The index of its last part.
    pub(super) index: u64,
    pub(super) refused: Refused,
}

/// A push that went no further.
#[derive(Debug)]
pub(super) struct Halted {
    pub(super) error: SubmitError,
    /// Whether some of it may be there.
    pub(super) begun: bool,
}

impl Sender<'_> {
    /// Pushes each part once the one before is there. `has` says whether the registry has an instance in some state.
    pub(super) async fn send(&self, push: Push, has: impl Fn(&InstanceId) -> bool) -> Result<Sent, Halted> {
        let known = self.known.as_deref();
        let mut parts = parts::divide(push, known);
        let (mut sent, mut begun) = (Sent { index: 0, refused: Refused::default() }, false);
        while let Some(part) = parts.pop_front() {
            let error = match self.submit(part.clone()).await {
                Ok(index) => {
                    (sent.index, begun) = (index, true);
                    continue;
                }
                Err(error) => error,
            };
            if !is_refusal(&error) {
                let begun = begun || matches!(error, SubmitError::UnknownOutcome(_));
                return Err(Halted { error, begun });
            }
            if !begun {
                // A refusal of the node is one of all that is on it.
                sent.index = self.submit(Push::default()).await.map_err(|error| Halted { error, begun: false })?;
                begun = true;
            }
            match parts::halve(part, known) {
                Ok((first, second)) => {
                    parts.push_front(second);
                    parts.push_front(first);
                }
                // The registry has it in an earlier state: what can be told of it now is told.
                Err(alone) if !alone.checks.is_empty() && alone.instances.iter().any(|row| has(&row.id)) => {
                    let Push { instances, checks, .. } = alone;
                    parts.push_front(Push { checks, ..Push::default() });
                    parts.push_front(Push { instances, ..Push::default() });
                }
                // Nothing is held back that is to go.
                Err(alone) if alone.instances.is_empty() && alone.checks.is_empty() => {
                    return Err(Halted { error, begun });
                }
                Err(alone) => sent.refused.add(alone, &error.to_string()),
            }
        }
        Ok(sent)
    }

    async fn submit(&self, part: Push) -> Result<u64, SubmitError> {
        let Push { complete, instances, checks, removed_instances, removed_checks } = part;
        let (writer, node) = (self.pusher.next_writer(), self.pusher.node.clone());
        let sync = NodeSync { writer, node, complete, instances, checks, removed_instances, removed_checks };
        let index = self.sink.submit(Command::Sync(sync)).await?.index;
        (self.taken)();
        Ok(index)
    }
}

/// Whether the registry answered that it does not take it, now or later.
pub(super) fn is_refusal(error: &SubmitError) -> bool {
    matches!(error, SubmitError::Rejected(_) | SubmitError::Refused(_))
}

#[cfg(test)]
mod tests;
