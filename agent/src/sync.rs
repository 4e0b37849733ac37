//! Sync: the agent's push of its LocalState to the registry, and the renewal of its node's lease.
//!
//! Dirty rows go at once; everything goes when the registry may not know it: at the start, after an unknown
//! outcome, when the registry does not know the node, and when the replica shows the node otherwise than it is.
//!
//! A push that is too large for one Command goes in parts (`parts.rs`). One that is refused is taken apart (`send.rs`), so
//! that a row which the registry does not take holds up no other (`refused.rs`).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use muster_catalog::{
    ClusterId, Command, FIRST_FORMAT, Freshness, InstanceId, Node, Topic, Writer,
    port::{Sink, Source, SubmitError},
};
use muster_registry::client::Client;
use rand::RngExt;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    local::{LocalRows, Sources},
    replica::Replica,
};

mod lease;
mod parts;
mod plan;
mod refused;
#[cfg(test)]
mod samples;
mod send;

pub(crate) use lease::{LeaseTask, SHORTEST_LEASE};
use refused::Refused;
use send::{Halted, Sender, Sent, is_refusal};

/// The first pause after a push that did not arrive.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause: a registry that is back hears of this node within it.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// The pause after a refusal: an operator has to act first.
const REFUSED_PAUSE: Duration = Duration::from_secs(5);
/// The longest pause before rows that were refused are tried again as they are: the registry may have room for them by
/// then. Each try costs it a message for every such row.
const LONGEST_REFUSED_PAUSE: Duration = Duration::from_secs(300);
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
    /// Whether the registry knows the node, of which it may lack rows.
    pub(crate) known: bool,
    /// Whether the registry has had all of this node at least once, but for rows that it refuses.
    pub(crate) registered: bool,
    /// Why the last push did not arrive.
    pub(crate) problem: Option<String>,
    /// The registry answered and does not take it: to ask again does not help.
    pub(crate) refused: bool,
    /// Rows that it does not take, while it has all others.
    pub(crate) refused_rows: Arc<Refused>,
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
    /// Rows that are refused: the registry has them in an earlier state or not at all.
    refused: Arc<Refused>,
    /// When they are tried again as they are, and the pause that ends then.
    again: Option<(Instant, Duration)>,
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
        let task = Self {
            pusher,
            client,
            replica,
            rows,
            unknown,
            status,
            acknowledged: None,
            refused: Arc::default(),
            again: None,
            written: 0,
            cluster: ClusterId::default(),
            format: FIRST_FORMAT,
            drain_time,
        };
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
            let again = self.again.map(|(at, _)| at);
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
                () = sleep(retry.unwrap_or_default()), if retry.is_some() => true,
                () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() && retry.is_none() => true,
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
                Err(error) if is_refusal(&error) => Some(REFUSED_PAUSE),
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
        let Some(mut push) = plan::plan(self.acknowledged.as_deref(), &rows) else {
            self.settle(rows, Refused::default(), true);
            return Ok(());
        };
        let known = self.replica.told().local.find_node(&self.pusher.node.name).cloned();
        let has = |id: &InstanceId| {
            let mut rows = self.acknowledged.iter().flat_map(|rows| &rows.instances);
            known.as_ref().is_some_and(|entry| entry.find_instance(id).is_some()) || rows.any(|row| row.id == *id)
        };
        // A push of everything holds nothing back: what it lacks may be removed.
        let tries_all = self.acknowledged.is_none() || self.again.is_some_and(|(at, _)| Instant::now() >= at);
        let held = if tries_all { Refused::default() } else { self.refused.hold_back(&mut push, has) };
        if push == plan::Push::default() {
            self.settle(rows, held, false);
            return Ok(());
        }
        let count = push.instances.len() + push.checks.len();
        let taken = || _ = self.status.send_if_modified(|status| !std::mem::replace(&mut status.known, true));
        let sender = Sender { sink: &*self.client, pusher: &self.pusher, known: known.clone(), taken: &taken };
        match sender.send(push, has).await {
            Ok(Sent { index, mut refused }) => {
                self.written = self.written.max(index);
                refused.extend(held);
                self.settle(rows, refused, tries_all);
                Ok(())
            }
            Err(Halted { error, begun }) => {
                if begun {
                    // Of what is half said all is said anew.
                    self.acknowledged = None;
                }
                metrics::gauge!("muster_agent_rows_not_pushed", "reason" => "unreached").set(count as f64);
                self.report(Some(error.to_string()), is_refusal(&error));
                Err(error)
            }
        }
    }

    /// Notes that the registry has these rows, but for those that it refuses. `tried` says whether it was asked about all
    /// of those just now.
    fn settle(&mut self, rows: Arc<LocalRows>, refused: Refused, tried: bool) {
        self.acknowledged = Some(refused.settle(self.acknowledged.as_deref(), &rows));
        let others = refused.log_changes(&self.refused);
        self.again = match self.again {
            _ if refused.is_empty() => None,
            Some(again) if !others && !tried => Some(again),
            again => {
                let pause = next_pause(again.map(|(_, pause)| pause).filter(|_| !others));
                Some((Instant::now() + jitter(pause), pause))
            }
        };
        self.refused = Arc::new(refused);
        let count = |reason: &'static str, rows: usize| {
            metrics::gauge!("muster_agent_rows_not_pushed", "reason" => reason).set(rows as f64);
        };
        count("refused", self.refused.len());
        count("unreached", 0);
        self.report(None, false);
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
            &self.refused,
        )
    }

    fn report(&self, problem: Option<String>, refused: bool) {
        let arrived = problem.is_none();
        let mut news = false;
        self.status.send_if_modified(|status| {
            let next = SyncStatus {
                known: status.known || arrived,
                registered: status.registered || arrived,
                problem: problem.clone(),
                refused,
                refused_rows: self.refused.clone(),
            };
            news = (&status.problem, status.registered) != (&next.problem, next.registered);
            let changed = *status != next;
            *status = next;
            changed
        });
        match problem {
            Some(problem) if news => {
                tracing::warn!(%problem, "the registry has not taken this node's state; retrying")
            }
            None if news => tracing::info!("the registry has this node's state"),
            _ => {}
        }
    }

    /// Leaves in order: clients are sent elsewhere first, then the node goes. The caller bounds the time.
    async fn leave(&mut self) {
        if let Err(error) = self.push().await {
            tracing::warn!(%error, "could not announce that this node drains");
        }
        sleep(self.drain_time).await;
        let (node, writer) = (self.pusher.node.name.clone(), self.pusher.next_writer());
        match self.client.submit(Command::Leave { node, writer }).await {
            Ok(_) => tracing::info!("left the registry"),
            Err(error) => tracing::warn!(%error, "could not leave: the node turns critical when its lease ends"),
        }
    }
}

async fn settled(changed: muster_catalog::Waiter) {
    changed.await;
    sleep(RECONCILE_PAUSE).await;
}

/// How long rows that are refused stay as they are: longer each time that they were tried in vain.
fn next_pause(before: Option<Duration>) -> Duration {
    before.map_or(REFUSED_PAUSE, |pause| (pause * 2).min(LONGEST_REFUSED_PAUSE))
}

/// Between half and all of it, so that hosts which lost the registry together do not return together.
fn jitter(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.5..1.0))
}
