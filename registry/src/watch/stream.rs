//! One watch stream: it follows the catalog from a cursor, at its reader's pace.
//!
//! It sleeps until something happens to what its watcher holds, until the watcher waits for a barrier, or until it is time
//! to tell what else happened, which has moved nothing but the Directory. In between it gives signs of life.
//!
//! Nothing is queued for a slow reader but what its outbox holds. One that falls out of the ring gets the Directory and
//! the sets that moved meanwhile; one that does not read at all is ended. A change of Scope is spliced in once all that
//! came before it was sent.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use muster_catalog::{ClusterId, Entry, Gathered, Name, Scope, Snapshot, project_changes};
use tokio::{sync::watch, time::timeout};
use tonic::Status;

use super::{
    barriers::Barriers,
    pace::{Due, Pace},
    rescope::Rescopes,
    ring::{Record, encode},
    rows::Pieces,
    watchers::Watcher,
};
use crate::{
    convert::{KNOWN_CHANGES, KNOWN_EVENTS, change_kind},
    limits::MAX_EVENT_BYTES,
    outbox::{Outbox, Unsent},
    proto::registry::{self as pb, watch_event::Kind, watch_request::Kind as Asked},
    raft::ReadPolicy,
    service::{Core, reads::policy, renewals::Pulse},
};

/// A watcher that opens a stream says at once what it wants.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the leader may take to say how far the registry is: a watcher hears nothing meanwhile, and gives a member up
/// after three seconds.
const CONFIRM: Duration = Duration::from_secs(1);
/// Entries taken from the ring at once.
const PUMP: usize = 256;
/// Services in a Scope; wider ones ask for all.
pub(crate) const MAX_SCOPE: usize = 10_000;

/// Why a stream ends.
enum End {
    /// The watcher went.
    Gone,
    /// The watcher is started anew: it lives as long as its lease.
    Restarts,
    /// We end it, and say why.
    Ours(Status),
}

impl From<Unsent> for End {
    fn from(unsent: Unsent) -> Self {
        match unsent {
            Unsent::Gone => Self::Gone,
            Unsent::Stalled => Self::Ours(unsent.into()),
        }
    }
}

/// Serves one stream from its hello to its end.
pub(crate) async fn follow(
    core: Arc<Core>,
    inbound: impl Stream<Item = Result<pb::WatchRequest, Status>> + Unpin + Send,
    out: Outbox<pb::WatchEvent>,
) {
    metrics::gauge!("muster_registry_watch_streams").increment(1.0);
    let end = serve(&core, inbound, &out).await;
    metrics::gauge!("muster_registry_watch_streams").decrement(1.0);
    if let End::Ours(status) = end {
        out.end(status);
    }
}

async fn serve(
    core: &Arc<Core>,
    mut inbound: impl Stream<Item = Result<pb::WatchRequest, Status>> + Unpin + Send,
    out: &Outbox<pb::WatchEvent>,
) -> End {
    let hello = match timeout(HELLO_TIMEOUT, inbound.next()).await {
        Ok(Some(Ok(pb::WatchRequest { kind: Some(Asked::Hello(hello)) }))) => hello,
        Ok(Some(Ok(_))) => return End::Ours(Status::invalid_argument("the first message of a watch is its hello")),
        Ok(None | Some(Err(_))) => return End::Gone,
        Err(_) => return End::Ours(Status::deadline_exceeded(format!("no hello came within {HELLO_TIMEOUT:?}"))),
    };
    let watcher = hello.watcher.clone().map(|watcher| Alive::new(core, watcher));
    let end = match Feed::open(core.clone(), hello, out.clone()) {
        Ok(feed) => feed.run_while_serving(inbound).await,
        Err(status) => return End::Ours(status),
    };
    match (&end, watcher) {
        (End::Gone, Some(watcher)) => watcher.lost(core),
        (End::Restarts, Some(watcher)) => watcher.renew(core),
        _ => {}
    }
    end
}

/// The agent behind a stream.
struct Alive {
    watcher: pb::Watcher,
    stream: u64,
}

impl Alive {
    /// Opening a stream is a sign of life, and makes this stream the one whose end counts.
    fn new(core: &Core, watcher: pb::Watcher) -> Self {
        // 0 stands for no stream.
        let stream = rand::random::<u64>().max(1);
        let alive = Self { watcher, stream };
        alive.renew(core);
        alive
    }

    fn renew(&self, core: &Core) {
        let (node, incarnation, stream) = (self.watcher.node.clone(), self.watcher.incarnation, self.stream);
        core.pulse(Pulse::Renew(pb::Renewal { node, incarnation, stream, agent: String::new() }, None));
    }

    /// The watcher ended it while this member stays up.
    fn lost(self, core: &Core) {
        if !core.stop.is_cancelled() {
            let (pb::Watcher { node, incarnation }, stream) = (self.watcher, self.stream);
            core.pulse(Pulse::Suspect(pb::Suspicion { node, incarnation, stream }));
        }
    }
}

struct Feed {
    core: Arc<Core>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    out: Outbox<pb::WatchEvent>,
    scope: Scope,
    /// Wakes this stream for what is of its Scope.
    watcher: Watcher,
    /// The kinds of Change that the watcher knows; `None` when it knows all that this build does, and can be sent what
    /// others are.
    known: Option<BTreeSet<u32>>,
    /// Whether the watcher takes sets, and loads that lack what it has.
    splices: bool,
    /// Changes of Scope that wait until all before them was sent.
    rescopes: Rescopes,
    cluster: ClusterId,
    /// The watcher has all of its Scope up to this index; `None` before it has anything.
    cursor: Option<u64>,
    barriers: Barriers,
    /// Whether anything was sent since this was last looked at.
    spoke: bool,
}

impl Feed {
    fn open(core: Arc<Core>, hello: pb::Hello, out: Outbox<pb::WatchEvent>) -> Result<Self, Status> {
        let snapshots = core.catalog.snapshot.clone();
        let cluster = snapshots.borrow().cluster().clone();
        if cluster.uuid.is_empty() || !core.log.leadership().borrow().recovered {
            return Err(Status::unavailable("this member has no catalog yet: it waits for a leader, or to catch up"));
        }
        if !*core.contact.borrow() || core.disagreement().is_some() {
            return Err(cut_off(&core));
        }
        let scope = scope(hello.scope.as_ref())?;
        let resume = hello.resume.map(|resume| (ClusterId::from(resume.cluster.unwrap_or_default()), resume.index));
        if let Some((other, _)) =
            resume.as_ref().filter(|(other, _)| !other.uuid.is_empty() && other.uuid != cluster.uuid)
            && !hello.accept_new_cluster
        {
            return Err(Status::failed_precondition(format!(
                "this is registry {}, the watcher holds data of registry {}: correct its member addresses, or remove its \
                 replica file if it shall belong to this one",
                cluster.uuid, other.uuid
            )));
        }
        if let Some((theirs, _)) = resume
            .as_ref()
            .filter(|(theirs, _)| theirs.uuid == cluster.uuid && theirs.incarnation > cluster.incarnation)
        {
            // This member has not applied a restore yet, or was left behind by a recovery.
            return Err(Status::unavailable(format!(
                "the watcher has seen incarnation {} of the registry, this member is at {}: ask another",
                theirs.incarnation, cluster.incarnation
            )));
        }
        let cursor = resume.filter(|(theirs, _)| *theirs == cluster).map(|(_, index)| index);
        let known: BTreeSet<u32> = hello.known_changes.into_iter().collect();
        let known = KNOWN_CHANGES.iter().any(|kind| !known.contains(kind)).then_some(known);
        let splices = KNOWN_EVENTS.iter().all(|kind| hello.known_events.contains(kind));
        let (rescopes, barriers, spoke) = (Rescopes::default(), Barriers::default(), false);
        let watcher = core.catalog.watchers.join(&scope);
        Ok(Self { core, snapshots, out, scope, watcher, known, splices, rescopes, cluster, cursor, barriers, spoke })
    }

    /// Runs to its end, or to that of this member: also while a reader that is slow has the rows of an old Snapshot.
    async fn run_while_serving(
        self,
        inbound: impl Stream<Item = Result<pb::WatchRequest, Status>> + Unpin + Send,
    ) -> End {
        let core = self.core.clone();
        let mut contact = core.contact.clone();
        tokio::select! {
            ended = self.run(inbound) => ended.err().unwrap_or(End::Gone),
            () = core.stop.cancelled() => End::Ours(stopping()),
            true = lost(&mut contact) => End::Ours(cut_off(&core)),
        }
    }

    async fn run(
        mut self,
        mut inbound: impl Stream<Item = Result<pb::WatchRequest, Status>> + Unpin + Send,
    ) -> Result<(), End> {
        self.check_watcher().await?;
        let resumed = self.cursor.is_some_and(|cursor| self.core.catalog.ring.after(cursor, 0).is_some());
        let cluster = Some((&self.cluster).into());
        self.send(Kind::Hello(pb::WatchHello { cluster, resumed, splices: true })).await?;
        self.pump().await?;
        let mut pace = Pace::new(&self.core.catalog.watchers, &self.watcher);
        loop {
            self.answer_barriers().await?;
            let waits_for_index =
                self.barriers.are_ahead_of(self.cursor.unwrap_or_default()) || !self.rescopes.is_empty();
            tokio::select! {
                () = self.watcher.woken() => self.pump().await?,
                changed = self.snapshots.changed(), if waits_for_index => {
                    changed.map_err(|_| End::Ours(stopping()))?;
                    self.pump().await?;
                }
                asked = inbound.next() => match asked {
                    Some(Ok(asked)) => self.asked(asked).await?,
                    Some(Err(_)) | None => return Ok(()),
                },
                () = self.barriers.progress() => self.pump().await?,
                due = pace.due() => {
                    self.spoke = false;
                    if due != Due::Heartbeat {
                        self.pump().await?;
                    }
                    if due != Due::Directory && !self.spoke {
                        self.beat().await?;
                    }
                }
                () = self.out.closed() => return Ok(()),
            }
        }
    }

    /// Sends away a watcher that has more than this member, unless the leader confirms that there is more. Within one
    /// incarnation a watcher cannot be ahead of what is committed: if it is, the registry lost what it had acknowledged, and
    /// what the watcher holds is of another history, whatever is written from now on.
    async fn check_watcher(&mut self) -> Result<(), End> {
        let own = self.snapshots.borrow().index();
        let Some(cursor) = self.cursor.filter(|cursor| *cursor > own) else { return Ok(()) };
        let status = match timeout(CONFIRM, self.core.clone().read_index(ReadPolicy::Lease)).await {
            Ok(Ok(last)) if last >= cursor => return Ok(()),
            Ok(Ok(last)) => Status::data_loss(format!(
                "the watcher has seen entry {cursor} of this registry, whose last one is {last}: entries that it had \
                 acknowledged are lost, as when older disks are put in the place of members' own; `muster registry backup \
                 FILE`, then `muster registry restore FILE --yes` begins a new incarnation, which every agent loads anew"
            )),
            Ok(Err(_)) | Err(_) => Status::unavailable(format!(
                "the watcher has seen entry {cursor}, this member is at {own}, and no leader says whether there is more: ask \
                 another"
            )),
        };
        Err(End::Ours(status))
    }

    async fn asked(&mut self, asked: pb::WatchRequest) -> Result<(), End> {
        match asked.kind {
            Some(Asked::Barrier(barrier)) => {
                let policy = policy(barrier.consistency());
                if !self.barriers.ask(&self.core, barrier.id, policy) {
                    let error = "too many reads wait on this stream".to_owned();
                    self.barrier_reached(barrier.id, Err(error)).await?;
                }
                Ok(())
            }
            Some(Asked::AddServices(names)) => self.rescope(&names, true).await,
            Some(Asked::RemoveServices(names)) => self.rescope(&names, false).await,
            Some(Asked::Restart(_)) => Err(End::Restarts),
            Some(Asked::Hello(_)) => Err(End::Ours(Status::invalid_argument("a watch has one hello"))),
            // A newer watcher asks for what this build does not have; it sees no answer and does without.
            None => Ok(()),
        }
    }

    async fn rescope(&mut self, services: &pb::ServiceNames, joins: bool) -> Result<(), End> {
        for service in &services.names {
            if !self.rescopes.ask(Name::lookup(service), joins) {
                return Err(End::Ours(too_wide(MAX_SCOPE + 1)));
            }
        }
        self.pump().await
    }

    /// Changes the Scope, where that was asked and the watcher has all that is known here.
    async fn splice(&mut self, snapshot: &Snapshot) -> Result<(), End> {
        // What a member that is behind its watcher knows of a set would be older than the entries that came already.
        if self.rescopes.is_empty() || self.cursor != Some(snapshot.index()) {
            return Ok(());
        }
        let (joined, left) = self.rescopes.take();
        self.watcher.rescope(&joined, &left);
        let Scope::Services { names, .. } = &mut self.scope else { return Ok(()) };
        left.iter().for_each(|service| {
            names.remove(service);
        });
        names.extend(joined.iter().cloned());
        if names.len() > MAX_SCOPE {
            return Err(End::Ours(too_wide(names.len())));
        }
        if !self.splices {
            return self.load(snapshot).await;
        }
        metrics::counter!("muster_registry_watch_splices_total").increment(1);
        let index = snapshot.index();
        let mut pieces = Pieces::sets(snapshot, &joined);
        while let Some((rows, last)) = pieces.take() {
            let mut sets = pb::Sets { index, rows, last, ..Default::default() };
            if last {
                sets.joined = joined.iter().map(ToString::to_string).collect();
                sets.left = left.iter().map(ToString::to_string).collect();
            }
            self.send(Kind::Sets(sets)).await?;
        }
        Ok(())
    }

    /// Sends what happened since the cursor, then what joins the Scope.
    async fn pump(&mut self) -> Result<(), End> {
        let snapshot = self.snapshots.borrow_and_update().clone();
        self.catch_up(&snapshot).await?;
        self.splice(&snapshot).await
    }

    async fn catch_up(&mut self, snapshot: &Snapshot) -> Result<(), End> {
        if *snapshot.cluster() != self.cluster {
            // A restore: indexes may have gone backwards.
            self.cluster = snapshot.cluster().clone();
            self.cursor = None;
            return self.load(snapshot).await;
        }
        // After the Snapshot was read: what touches this Scope was marked before that one was published.
        let quiet = self.cursor.filter(|cursor| self.known.is_none() && !self.watcher.is_touched_after(*cursor));
        let whole = match quiet {
            Some(cursor) => self.gathered(cursor, snapshot).await?,
            None => self.entries(snapshot).await?,
        };
        if !whole {
            return self.load(snapshot).await;
        }
        // What had no Change for this watcher still moves its index.
        if self.cursor < Some(snapshot.index()) {
            self.cursor = Some(snapshot.index());
            self.beat().await?;
        }
        Ok(())
    }

    /// Sends what happened since the cursor where none of it touches the Scope. False when rows have to be sent instead.
    async fn gathered(&mut self, cursor: u64, snapshot: &Snapshot) -> Result<bool, End> {
        if cursor >= snapshot.index() {
            return Ok(true);
        }
        let Some(entries) = self.core.catalog.ring.gather(cursor, snapshot.index()) else { return Ok(false) };
        for entry in entries.iter() {
            if !self.send_entry(entry.clone()).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Sends what happened since the cursor. False when rows have to be sent instead.
    async fn entries(&mut self, snapshot: &Snapshot) -> Result<bool, End> {
        loop {
            let records = self.cursor.and_then(|cursor| self.core.catalog.ring.after(cursor, PUMP));
            let Some(records) = records else { return Ok(false) };
            let full = records.len() == PUMP;
            let mut outside = Gathered::default();
            // The ring may be ahead of what is published.
            let records = records.into_iter().take_while(|record| record.entry.index <= snapshot.index());
            let mut last = None;
            for record in records {
                last = Some(record.entry.index);
                if !record.footprint.touches(&self.scope) {
                    outside.push(&record.entry, &record.footprint);
                } else if !self.send_gathered(&mut outside).await? || !self.send_record(&record).await? {
                    return Ok(false);
                }
            }
            if !self.send_gathered(&mut outside).await? {
                return Ok(false);
            }
            self.cursor = self.cursor.max(last);
            if !full || self.cursor >= Some(snapshot.index()) {
                return Ok(true);
            }
        }
    }

    async fn send_gathered(&mut self, outside: &mut Gathered) -> Result<bool, End> {
        for entry in std::mem::take(outside).finish() {
            if !self.send_changes(entry).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn send_record(&mut self, record: &Record) -> Result<bool, End> {
        if self.known.is_none() && self.scope == Scope::All {
            return self.send_entry(record.encode_whole()).await;
        }
        let changes = project_changes(&self.scope, &record.entry, &record.footprint);
        self.send_changes(Entry { changes, ..record.entry }).await
    }

    /// Sends an entry, unless nothing of it is known to this watcher.
    async fn send_changes(&mut self, mut entry: Entry) -> Result<bool, End> {
        if let Some(known) = &self.known {
            entry.changes.retain(|change| known.contains(&change_kind(change)));
        }
        if entry.changes.is_empty() {
            return Ok(true);
        }
        self.send_entry(encode(&entry)).await
    }

    /// False when it is too large for one message. Rows come then, also for what was sent before it.
    async fn send_entry(&mut self, entry: Bytes) -> Result<bool, End> {
        if entry.len() > MAX_EVENT_BYTES {
            return Ok(false);
        }
        self.send(Kind::Entry(entry)).await?;
        Ok(true)
    }

    /// Sends rows: all, or for one that holds its Scope up to the cursor those that it lacks.
    async fn load(&mut self, snapshot: &Snapshot) -> Result<(), End> {
        let sets_after = self.cursor.filter(|_| self.splices);
        let kind = if sets_after.is_some() { "moved" } else { "all" };
        metrics::counter!("muster_registry_watch_loads_total", "rows" => kind).increment(1);
        let scope = self.scope.clone();
        let mut pieces = Pieces::load(snapshot, &scope, sets_after);
        while let Some((rows, _)) = pieces.take() {
            self.send(Kind::Rows(pb::Rows { rows })).await?;
        }
        self.cursor = Some(snapshot.index());
        self.send(Kind::Loaded(pb::Loaded { index: snapshot.index(), sets_after })).await
    }

    async fn beat(&mut self) -> Result<(), End> {
        let at_milliseconds = self.snapshots.borrow().at().0;
        // A member that is behind its watcher does not send it back.
        let index = self.cursor.unwrap_or_default();
        self.send(Kind::Advance(pb::Advance { index, at_milliseconds })).await
    }

    async fn answer_barriers(&mut self) -> Result<(), End> {
        let core = self.core.clone();
        let reached = self.barriers.reached(&core, self.cursor.unwrap_or_default());
        for (id, result) in reached {
            self.barrier_reached(id, result).await?;
        }
        Ok(())
    }

    async fn barrier_reached(&mut self, id: u64, result: Result<u64, String>) -> Result<(), End> {
        let result = match result {
            Ok(index) => pb::barrier_reached::Result::Index(index),
            Err(error) => pb::barrier_reached::Result::Error(error),
        };
        self.send(Kind::Barrier(pb::BarrierReached { id, result: Some(result) })).await
    }

    async fn send(&mut self, kind: Kind) -> Result<(), End> {
        metrics::counter!("muster_registry_watch_events_total").increment(1);
        self.spoke = true;
        Ok(self.out.send(pb::WatchEvent { kind: Some(kind) }).await?)
    }
}

/// Returns true when this member does not keep up with a leader; false when nobody looks any more.
pub(super) async fn lost(contact: &mut watch::Receiver<bool>) -> bool {
    contact.wait_for(|heard| !heard).await.is_ok()
}

fn stopping() -> Status {
    Status::unavailable("this member is stopping")
}

pub(super) fn cut_off(core: &Core) -> Status {
    let old = "this member hears no leader, or lacks what the others have: its catalog may be old, ask another";
    core.check_serves().err().unwrap_or_else(|| Status::unavailable(old))
}

fn scope(scope: Option<&pb::Scope>) -> Result<Scope, Status> {
    let scope = scope.ok_or_else(|| Status::invalid_argument("hello.scope is missing"))?;
    if scope.services.len() > MAX_SCOPE {
        return Err(too_wide(scope.services.len()));
    }
    Ok(scope.into())
}

fn too_wide(services: usize) -> Status {
    Status::invalid_argument(format!("a scope of {services} services is over {MAX_SCOPE}: ask for all"))
}
