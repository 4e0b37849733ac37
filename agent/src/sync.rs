//! Sync: the agent's push of its LocalState to the registry, and the renewal of its node's lease.
//!
//! Dirty rows go at once; everything goes when the registry may not know it: at the start, after an unknown
//! outcome, when the registry does not know the node, and when the replica shows the node otherwise than it is.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use muster_catalog::{
    ClusterId, Command, FIRST_FORMAT, Freshness, Node, NodeSync, Topic, Writer,
    port::{Sink, Source, SubmitError},
};
use muster_registry::client::Client;
use rand::Rng;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    local::{LocalRows, Sources},
    replica::Replica,
};

mod lease;
mod plan;

pub(crate) use lease::LeaseTask;

/// The first pause after a push that did not arrive.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause: a registry that is back hears of this node within it.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// The pause after a refusal: an operator has to act first.
const REFUSED_PAUSE: Duration = Duration::from_secs(5);
/// How often the replica's picture of this node is compared with LocalState at most.
const RECONCILE_PAUSE: Duration = Duration::from_secs(1);

/// The node as it is pushed, and the order of its writes.
pub(crate) struct Pusher {
    /// The node's row.
    pub(crate) node: Node,
    /// The agent's incarnation.
    pub(crate) incarnation: u64,
    sequence: AtomicU64,
}

impl Pusher {
    /// A node whose writes begin.
    pub(crate) fn new(node: Node, incarnation: u64) -> Arc<Self> {
        Arc::new(Self { node, incarnation, sequence: AtomicU64::new(0) })
    }

    fn next_writer(&self) -> Writer {
        Writer { incarnation: self.incarnation, sequence: self.sequence.fetch_add(1, Ordering::Relaxed) + 1 }
    }
}

/// Where Sync stands, for readiness and the API.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct SyncStatus {
    /// Whether the registry has taken this node at least once.
    pub(crate) registered: bool,
    /// Why the last push did not arrive.
    pub(crate) problem: Option<String>,
    /// The registry answered and does not take it: to ask again does not help.
    pub(crate) refused: bool,
}

/// The owner task of the push.
pub(crate) struct SyncTask {
    pusher: Arc<Pusher>,
    client: Arc<Client>,
    replica: Arc<Replica>,
    rows: watch::Receiver<Arc<LocalRows>>,
    unknown: Arc<Notify>,
    status: watch::Sender<SyncStatus>,
    acknowledged: Option<Arc<LocalRows>>,
    written: u64,
    /// The registry, in the incarnation that `acknowledged` and `written` are about.
    cluster: ClusterId,
    /// The catalog format that the last push was made for.
    format: u32,
    drain_time: Duration,
}

impl SyncTask {
    /// A push of `rows` by `client`; `unknown` is notified when the registry says that it does not know the node.
    pub(crate) fn new(
        pusher: Arc<Pusher>,
        client: Arc<Client>,
        replica: Arc<Replica>,
        rows: watch::Receiver<Arc<LocalRows>>,
        unknown: Arc<Notify>,
        drain_time: Duration,
    ) -> (Self, watch::Receiver<SyncStatus>) {
        let (status, seen) = watch::channel(SyncStatus::default());
        let (acknowledged, written, format, cluster) = (None, 0, FIRST_FORMAT, ClusterId::default());
        let task =
            Self { pusher, client, replica, rows, unknown, status, acknowledged, written, cluster, format, drain_time };
        (task, seen)
    }

    /// Pushes until told to stop; then pushes what is draining, and leaves, unless the node is to stay.
    pub(crate) async fn run(mut self, stop: CancellationToken, stay: CancellationToken) {
        let mut retry: Option<Duration> = Some(Duration::ZERO);
        let mut pause = FIRST_PAUSE;
        loop {
            let seen = self.replica.subscribe(Topic::Node(self.pusher.node.name.clone()));
            self.follow_incarnation(&mut retry);
            let other_format = self.replica.subscribe(Topic::Format);
            if retry.is_none() && self.replica.view().local.format() != self.format {
                // What the last push had to leave out may be said now.
                retry = Some(Duration::ZERO);
            }
            if retry.is_none() && self.is_lost() {
                tracing::info!("the registry shows this node otherwise than it is; pushing all of it");
                self.acknowledged = None;
                retry = Some(jitter(RECONCILE_PAUSE));
            }
            let push = tokio::select! {
                () = stop.cancelled() => break,
                () = stay.cancelled() => return,
                changed = self.rows.changed() => match changed {
                    Ok(()) => true,
                    Err(_) => break,
                },
                () = self.unknown.notified() => {
                    self.acknowledged = None;
                    true
                }
                () = tokio::time::sleep(retry.unwrap_or_default()), if retry.is_some() => true,
                () = settled(seen), if retry.is_none() => false,
                () = other_format, if retry.is_none() => false,
            };
            if !push {
                continue;
            }
            retry = match self.push().await {
                Ok(()) => {
                    pause = FIRST_PAUSE;
                    None
                }
                Err(SubmitError::Rejected(_) | SubmitError::Refused(_)) => Some(REFUSED_PAUSE),
                Err(_) => {
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    Some(jitter(pause))
                }
            };
        }
        self.leave().await;
    }

    /// A restored or recovered registry may lack what it had acknowledged, and its indexes may have gone back: what was
    /// said to an earlier incarnation counts for nothing.
    fn follow_incarnation(&mut self, retry: &mut Option<Duration>) {
        let view = self.replica.view();
        let now = view.local.cluster();
        if *now == self.cluster {
            return;
        }
        if !self.cluster.uuid.is_empty() {
            tracing::info!(
                incarnation = now.incarnation,
                "the registry began a new incarnation; pushing everything anew"
            );
            (self.acknowledged, self.written) = (None, 0);
            *retry = Some(jitter(RECONCILE_PAUSE));
        }
        self.cluster = now.clone();
    }

    async fn push(&mut self) -> Result<(), SubmitError> {
        let rows = self.rows.borrow_and_update().clone();
        if rows.sources == Sources::Reading {
            // A complete push would remove what stands in files that nobody has read yet.
            return Ok(());
        }
        // What the catalog cannot hold yet would be missed in it at every look.
        self.format = self.replica.view().local.format();
        let rows = plan::strip(self.format, &rows);
        let Some(push) = plan::plan(self.acknowledged.as_deref(), &rows) else { return Ok(()) };
        let sync = NodeSync {
            writer: self.pusher.next_writer(),
            node: self.pusher.node.clone(),
            complete: push.complete && rows.sources == Sources::Whole,
            instances: push.instances,
            checks: push.checks,
            removed_instances: push.removed_instances,
            removed_checks: push.removed_checks,
        };
        let result = self.client.submit(Command::Sync(sync)).await;
        match &result {
            Ok(written) => {
                self.acknowledged = Some(rows);
                self.written = self.written.max(written.index);
                self.report(None, false);
            }
            Err(error) => {
                if matches!(error, SubmitError::UnknownOutcome(_)) {
                    self.acknowledged = None;
                }
                let refused = matches!(error, SubmitError::Rejected(_) | SubmitError::Refused(_));
                self.report(Some(error.to_string()), refused);
            }
        }
        result.map(|_| ())
    }

    /// Whether the registry's picture of this node lacks something that it had acknowledged.
    fn is_lost(&self) -> bool {
        // As the registry told it: the rooms see this host's own rows in any case.
        let view = self.replica.told();
        let Some(acknowledged) = &self.acknowledged else { return false };
        if acknowledged.sources != Sources::Whole {
            return false;
        }
        // An older picture than the last write says nothing.
        if view.freshness != Freshness::Live || view.local.index() < self.written {
            return false;
        }
        plan::differs(
            view.local.find_node(&self.pusher.node.name).map(|entry| &**entry),
            &self.pusher.node,
            acknowledged,
        )
    }

    fn report(&self, problem: Option<String>, refused: bool) {
        let registered = problem.is_none();
        let changed = self.status.send_if_modified(|status| {
            let next = SyncStatus { registered: status.registered || registered, problem: problem.clone(), refused };
            let changed = *status != next;
            *status = next;
            changed
        });
        match problem {
            Some(problem) if changed => {
                tracing::warn!(%problem, "the registry has not taken this node's state; retrying")
            }
            None if changed => tracing::info!("the registry has this node's state"),
            _ => {}
        }
    }

    /// Leaves in order: clients are sent elsewhere first, then the node goes. The caller bounds the time.
    async fn leave(&mut self) {
        if let Err(error) = self.push().await {
            tracing::warn!(%error, "could not announce that this node drains");
        }
        tokio::time::sleep(self.drain_time).await;
        let (node, writer) = (self.pusher.node.name.clone(), self.pusher.next_writer());
        match self.client.submit(Command::Leave { node, writer }).await {
            Ok(_) => tracing::info!("left the registry"),
            Err(error) => tracing::warn!(%error, "could not leave: the node turns critical when its lease ends"),
        }
    }
}

async fn settled(changed: muster_catalog::Waiter) {
    changed.await;
    tokio::time::sleep(RECONCILE_PAUSE).await;
}

/// Between half and all of it, so that hosts which lost the registry together do not return together.
fn jitter(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.5..1.0))
}
