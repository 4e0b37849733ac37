//! The agent's mirror of the catalog: one task streams Changes, folds them and publishes Views.
//!
//! With the registry out of reach the last View stays, marked stale with the time it was last known current.
//! It is kept on disk, so that a restarted agent answers before it has heard from anybody. It holds everything, or the
//! services that are used here, the own node and the Directory of the rest: what readers ask for joins in its place
//! among the Changes, what nobody uses leaves in the same way.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use muster_catalog::{
    Freshness, Name, Node, Scope, ServiceLookup, Snapshot, SnapshotBuilder, Timestamp, Topic, View, Waiter, Waiters,
    port::{BarrierError, BoxFuture, Consistency, Source, WideAnswer, WideError, WideRead},
};
use muster_registry::client::{Client, WideRows};
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::local::LocalRows;

mod barriers;
mod disk;
mod keeper;
mod own;
mod scope;
mod stream;

use disk::Disk;
pub use disk::DiskError;
use keeper::Keeper;
use own::{Laid, Moved, Overlay};
pub(crate) use scope::Width;
use scope::{Growth, Holds, Uses};

/// How long a reader waits for its barrier: an election at default timeouts is ridden out, an outage is not.
const BARRIER_PATIENCE: Duration = Duration::from_millis(2_500);
/// How many readers may wait for the task to take their barrier; more are told at once that there is no leader.
const BARRIER_QUEUE: usize = 16_384;

/// Reads that a member answers at once, parked ones too: they share one connection. What their answers take is bounded
/// by the client.
const MAX_WIDE_READS: usize = 128;

/// How long a write to this agent waits to be in its next read: it takes the agent as long as one more fold.
const OWN_PATIENCE: Duration = Duration::from_millis(500);

/// Attempts that fail with shorter pauses are no news for an operator: about the first second.
const QUIET_PAUSE: Duration = Duration::from_millis(500);

/// What the replica is of, and where it is kept.
pub(crate) struct ReplicaConfig {
    /// The agent's own node.
    pub(crate) node: Name,
    /// The agent's incarnation: the registry ties the node's lease to this stream.
    pub(crate) incarnation: u64,
    /// Whether another registry's identity is taken over instead of refused (`dev` with throw-away data).
    pub(crate) accept_any_cluster: bool,
    /// The file that keeps it.
    pub(crate) file: PathBuf,
    /// How much it holds.
    pub(crate) width: Width,
    /// Cancelled when the agent stops to be started anew: the registry is told that the node lives on.
    pub(crate) restarting: CancellationToken,
}

/// The mirror: what the rooms read from.
pub(crate) struct Replica {
    shared: Arc<Shared>,
    barriers: mpsc::Sender<BarrierRequest>,
    grow: mpsc::Sender<Name>,
    client: Arc<Client>,
    /// Places for reads that a member answers.
    wide: Semaphore,
}

struct BarrierRequest {
    consistency: Consistency,
    answer: oneshot::Sender<()>,
}

struct Shared {
    view: RwLock<Arc<View>>,
    /// What `view` is made of. Whoever moves it publishes before letting go of it.
    overlay: Mutex<Overlay>,
    /// The generation of own rows that `view` shows.
    shown: watch::Sender<u64>,
    /// Whether the registry was told that this agent is started anew.
    parted: watch::Sender<bool>,
    /// Why the registry refuses what is held here, for as long as an operator has to look at it.
    refusal: watch::Sender<Option<String>>,
    waiters: Arc<Waiters>,
    uses: Uses,
    holds: Holds,
}

impl Shared {
    fn view(&self) -> Arc<View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Publishes what the registry told, under this host's own rows. Returns the topics that moved by those.
    fn publish(&self, snapshot: Snapshot, freshness: Freshness, moved: &Moved<'_>) -> BTreeSet<Topic> {
        let told = Arc::new(View::new(Arc::new(snapshot), freshness));
        let mut overlay = self.overlay.lock().unwrap_or_else(PoisonError::into_inner);
        let laid = overlay.tell(told, moved);
        self.show(laid)
    }

    fn show(&self, laid: Laid) -> BTreeSet<Topic> {
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = laid.view;
        laid.topics
    }

    fn know(&self, node: &Node, rows: Arc<LocalRows>) {
        let generation = rows.generation;
        let topics = {
            let mut overlay = self.overlay.lock().unwrap_or_else(PoisonError::into_inner);
            let laid = overlay.know(node, rows);
            self.show(laid)
        };
        self.waiters.wake(&topics);
        self.shown.send_replace(generation);
    }
}

/// The task's part of a replica: [`ReplicaTask::run`] it.
pub(crate) struct ReplicaTask {
    config: ReplicaConfig,
    shared: Arc<Shared>,
    client: Arc<Client>,
    requests: mpsc::Receiver<BarrierRequest>,
    barriers: barriers::Barriers,
    wanted: mpsc::Receiver<Name>,
    growth: Growth,
    working: Snapshot,
    keeper: Arc<Keeper>,
    /// The disk, until the keeper has it.
    disk: Option<Disk>,
    /// What the stream covers; the rows of a load are of this Scope.
    asked: Scope,
    /// Set where a member cannot splice, or errs about what is held here: the next stream loads all rows, also of what
    /// is wanted.
    loads_anew: bool,
    /// Set where the registry lost entries that are held here: nothing can be built on them any more.
    obsolete: bool,
    loading: Option<SnapshotBuilder>,
    clock: fn() -> Timestamp,
}

impl Replica {
    /// Opens the replica: what the disk has kept is served at once, as stale as it is.
    pub(crate) fn open(
        config: ReplicaConfig,
        client: Arc<Client>,
        clock: fn() -> Timestamp,
    ) -> Result<(Arc<Self>, ReplicaTask), DiskError> {
        let (disk, kept) = Disk::load(&config.file)?;
        let keeper = Arc::new(Keeper::new(kept.as_ref().map(|(_, since)| *since)));
        let freshness = match &kept {
            Some((_, since)) => Freshness::Stale { since: *since },
            None => Freshness::Empty,
        };
        let working = match kept {
            Some((snapshot, _)) => snapshot,
            None => Snapshot::new(config.width.scope(&Snapshot::new(Scope::All), &config.node)),
        };
        let told = Arc::new(View::new(Arc::new(working.clone()), freshness));
        let (view, overlay) = (RwLock::new(told.clone()), Mutex::new(Overlay::new(told)));
        let (shown, parted, refusal) = (watch::Sender::new(0), watch::Sender::new(false), watch::Sender::new(None));
        let uses = Uses::new(Instant::now());
        uses.follow(working.scope(), Instant::now());
        let (waiters, holds) = (Arc::default(), Holds::default());
        let shared = Arc::new(Shared { view, overlay, shown, parted, refusal, waiters, uses, holds });
        let (barriers, requests) = mpsc::channel(BARRIER_QUEUE);
        let (grow, wanted) = mpsc::channel(scope::MAX_HOLDS);
        let wide = Semaphore::new(MAX_WIDE_READS);
        let replica = Arc::new(Self { shared: shared.clone(), barriers, grow, client: client.clone(), wide });
        let task = ReplicaTask {
            shared,
            client,
            requests,
            barriers: barriers::Barriers::default(),
            wanted,
            growth: Growth::default(),
            asked: working.scope().clone(),
            working,
            keeper,
            disk: Some(disk),
            loads_anew: false,
            obsolete: false,
            loading: None,
            clock,
            config,
        };
        Ok((replica, task))
    }
}

impl Replica {
    /// The View as the registry told it, without what this host knows better of itself.
    pub(crate) fn told(&self) -> Arc<View> {
        self.shared.overlay.lock().unwrap_or_else(PoisonError::into_inner).told()
    }

    /// Lays this host's own rows over what is answered, until told to stop.
    pub(crate) async fn follow_own(
        self: Arc<Self>,
        node: Node,
        mut rows: watch::Receiver<Arc<LocalRows>>,
        stop: CancellationToken,
    ) {
        loop {
            let now = rows.borrow_and_update().clone();
            self.shared.know(&node, now);
            let next = async {
                if rows.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = next => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Waits until answers show the own rows of that generation; in vain at most for [`OWN_PATIENCE`].
    pub(crate) async fn shows(&self, generation: u64) {
        let mut shown = self.shared.shown.subscribe();
        let _ = tokio::time::timeout(OWN_PATIENCE, shown.wait_for(|shown| *shown >= generation)).await;
    }

    /// Waits until the registry knows that this agent is started anew, or cannot be told.
    pub(crate) async fn parted(&self) {
        let _ = self.shared.parted.subscribe().wait_for(|parted| *parted).await;
    }

    fn is_outside(&self, service: &Name) -> bool {
        matches!(self.view().local.service(service), ServiceLookup::NotHeld(_))
    }

    /// Records how old the View is, for the metrics.
    pub(crate) fn record_age(&self, now: Timestamp) {
        let view = self.view();
        if let Some(age) = view.freshness.age(now) {
            metrics::gauge!("muster_agent_replica_age_seconds").set(age.as_secs_f64());
        }
        let refused = if self.shared.refusal.borrow().is_some() { 1.0 } else { 0.0 };
        metrics::gauge!("muster_agent_replica_refused").set(refused);
        metrics::gauge!("muster_agent_replica_index").set(view.local.index() as f64);
        metrics::gauge!("muster_agent_replica_instances").set(view.local.instance_count() as f64);
        metrics::gauge!("muster_agent_directory_services").set(view.local.service_count() as f64);
        let held = match view.local.scope() {
            Scope::All => view.local.service_count(),
            Scope::Services { names, .. } => names.len(),
        };
        metrics::gauge!("muster_agent_scope_services").set(held as f64);
    }
}

impl Source for Replica {
    fn view(&self) -> Arc<View> {
        self.shared.view()
    }

    fn subscribe(&self, topic: Topic) -> Waiter {
        self.shared.waiters.subscribe(topic)
    }

    fn barrier(&self, consistency: Consistency) -> BoxFuture<'_, Result<(), BarrierError>> {
        Box::pin(async move {
            if consistency == Consistency::Stale {
                return Ok(());
            }
            let (answer, reached) = oneshot::channel();
            if self.barriers.try_send(BarrierRequest { consistency, answer }).is_err() {
                return Err(BarrierError::NoLeader(format!("{BARRIER_QUEUE} readers wait already")));
            }
            match tokio::time::timeout(BARRIER_PATIENCE, reached).await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(_)) => Err(BarrierError::NoLeader("the agent is stopping".into())),
                Err(_) => Err(match self.refusal() {
                    Some(why) => BarrierError::Refused(why),
                    None => BarrierError::NoLeader(format!("none confirmed the read within {BARRIER_PATIENCE:?}")),
                }),
            }
        })
    }

    fn refusal(&self) -> Option<String> {
        self.shared.refusal.borrow().clone()
    }

    fn hold(&self, service: &Name) -> BoxFuture<'_, ()> {
        let service = service.clone();
        Box::pin(async move {
            let shared = &self.shared;
            // Names come from clients: none that the Directory does not have leaves a trace.
            if !self.is_outside(&service) {
                return;
            }
            let Some((end, first)) = shared.holds.join(&service, Instant::now()) else {
                return metrics::counter!("muster_agent_scope_refused_total", "reason" => "busy").increment(1);
            };
            if first && self.grow.try_send(service.clone()).is_err() {
                return shared.holds.end([&service]);
            }
            let held = async {
                loop {
                    let changed = self.subscribe(Topic::Service(service.clone()));
                    if !self.is_outside(&service) || !shared.holds.contains(&service) {
                        return;
                    }
                    changed.await;
                }
            };
            // Running out of patience is an answer too: the caller looks again and says what it found.
            let _ = timeout_at(end, held).await;
        })
    }

    fn read_wide(&self, read: WideRead) -> BoxFuture<'_, Result<WideAnswer, WideError>> {
        Box::pin(async move {
            let refused = || {
                let text = format!("{MAX_WIDE_READS} reads of what this agent does not hold are under way: ask again");
                WideError::Refused(text)
            };
            let _place = self.wide.try_acquire().map_err(|_| refused())?;
            // A member's answer would be of another history than all else that is answered here.
            if let Some(why) = self.refusal() {
                return Err(WideError::Refused(BarrierError::Refused(why).to_string()));
            }
            metrics::counter!("muster_agent_wide_reads_total").increment(1);
            let WideRows { snapshot, held } = self.client.read(&read).await?;
            let view = Arc::new(View::new(Arc::new(snapshot), Freshness::Live));
            Ok(WideAnswer { view, held: Box::new(held) })
        })
    }

    fn used(&self, service: &Name) {
        self.shared.uses.used(service, Instant::now());
    }
}

impl ReplicaTask {
    /// Follows the registry until told to stop, then writes the replica to disk once more.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let Some(disk) = self.disk.take() else { return };
        let (keeper, clock, followed) = (self.keeper.clone(), self.clock, CancellationToken::new());
        let following = async {
            self.follow_on(stop).await;
            followed.cancel();
        };
        // Beside it, and not in its way: a disk is slow when it likes.
        tokio::join!(following, keeper::run(&keeper, disk, clock, followed.clone()));
    }

    async fn follow_on(&mut self, stop: CancellationToken) {
        let mut pause = stream::FIRST_PAUSE;
        let mut ticks = stream::Ticks::new(self.config.width);
        while !stop.is_cancelled() {
            let ended = tokio::select! {
                ended = self.follow(&mut ticks) => ended,
                () = stop.cancelled() => break,
            };
            self.mark_stale();
            if self.config.restarting.is_cancelled() {
                self.shared.parted.send_replace(true);
                stop.cancelled().await;
                break;
            }
            pause = if ended.was_live { stream::FIRST_PAUSE } else { (pause * 2).min(stream::LONGEST_PAUSE) };
            let reason = ended.reason;
            if ended.was_live || pause > QUIET_PAUSE {
                tracing::warn!(%reason, retry_in = ?pause, "no stream from the registry; answering from what is known");
            } else {
                // A start, or an election: nobody needs to look yet.
                tracing::info!(%reason, retry_in = ?pause, "no stream from the registry yet");
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // There is nobody to tell.
                () = self.config.restarting.cancelled() => {
                    self.shared.parted.send_replace(true);
                    stop.cancelled().await;
                    break;
                }
                () = stop.cancelled() => break,
            }
        }
        self.note_time();
    }

    /// Has the time written at which the replica is, or was last, known to be current.
    fn note_time(&self) {
        if self.working.index() > 0 {
            self.keeper.note(&self.working, Vec::new(), keeper::Need::Advance);
        }
    }

    fn mark_stale(&mut self) {
        self.barriers.connection_lost();
        self.growth.connection_lost();
        self.loading = None;
        if self.shared.view().freshness == Freshness::Live {
            let since = (self.clock)();
            self.shared.publish(self.working.clone(), Freshness::Stale { since }, &Moved::Topics(&BTreeSet::new()));
            self.note_time();
            self.keeper.mark(Some(since));
        }
    }
}
