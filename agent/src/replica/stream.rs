//! One connection's worth of following: hello, rows or Changes, barriers, changes of Scope; publishing once per batch.

use std::{collections::BTreeSet, time::Duration};

use futures_util::{FutureExt, StreamExt};
use muster_catalog::{Freshness, Name, SnapshotBuilder, SnapshotRow, Splice, Topic, project_snapshot};
use muster_registry::{
    client::{Hello, WatchError, WatchEvent, WatchSender},
    journal::ReplicaEvent,
};
use tokio::time::{Instant, Interval, interval, timeout_at};

use super::{Moved, ReplicaTask, Width, keeper::Need};

/// The pause after a stream that had been live: a member restarts, another one takes over at once.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause: an outage of the registry must not end in a storm, nor its end go unnoticed.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// The registry speaks at least each second; a stream silent for this long is dead.
const SILENCE: Duration = Duration::from_secs(3);
/// The Scope is looked through for what nobody uses so many times in the time that it may stay so.
const EVICT_LOOKS: u32 = 10;
/// And at least so often: to look wakes an agent that has nothing else to do.
const EVICT_INTERVAL: Duration = Duration::from_secs(10);
/// How many events one batch takes before it is published: bounds how old a View gets under a flood.
const BATCH: usize = 512;

/// Why following ended.
pub(super) struct Ended {
    pub(super) reason: String,
    /// Whether the stream had become live.
    pub(super) was_live: bool,
}

/// The clocks of following, which go on from stream to stream.
pub(super) struct Ticks {
    evict: Interval,
}

impl Ticks {
    pub(super) fn new(width: Width) -> Self {
        let every = match width {
            Width::Scope { idle, .. } => (idle / EVICT_LOOKS).clamp(Duration::from_secs(1), EVICT_INTERVAL),
            Width::All => EVICT_INTERVAL,
        };
        Self { evict: interval(every) }
    }
}

impl ReplicaTask {
    /// Follows one stream until it ends. Dropping the future drops the stream.
    pub(super) async fn follow(&mut self, ticks: &mut Ticks) -> Ended {
        let ended = |reason: String, was_live| Ended { reason, was_live };
        let hello = self.hello();
        let (sender, mut events) = match self.client.watch(hello).await {
            Ok(stream) => stream,
            Err(error) => return ended(self.failed(&error), false),
        };
        let (mut live, mut splices, mut parting, mut heard) = (false, false, false, Instant::now());
        loop {
            if (live || parting)
                && let Err(reason) = self.ask(&sender, splices)
            {
                return ended(reason, live);
            }
            tokio::select! {
                // What else happens here begins this wait anew: the silence is counted from what was heard.
                event = timeout_at(heard + SILENCE, events.next()) => {
                    heard = Instant::now();
                    let first = match event {
                        Err(_) => return ended(format!("nothing heard for {SILENCE:?}"), live),
                        Ok(None) => return ended("the member closed it".into(), live),
                        Ok(Some(Err(error))) => return ended(self.failed(&error), live),
                        Ok(Some(Ok(event))) => event,
                    };
                    let mut batch = Batch::default();
                    let mut next = Some(Ok(first));
                    while let Some(Ok(event)) = next.take() {
                        if let Err(reason) = self.take(event, &mut batch) {
                            // What came before it is folded, and no later stream brings it again.
                            live |= self.publish(batch, live);
                            return ended(reason, live);
                        }
                        if batch.events < BATCH {
                            next = events.next().now_or_never().flatten();
                        }
                    }
                    splices |= batch.splices;
                    live |= self.publish(batch, live);
                    if let Some(Err(error)) = next {
                        return ended(self.failed(&error), live);
                    }
                }
                Some(request) = self.requests.recv() => {
                    self.barriers.queue(request);
                    // Readers that asked together share a barrier.
                    while let Ok(request) = self.requests.try_recv() {
                        self.barriers.queue(request);
                    }
                }
                Some(service) = self.wanted.recv() => {
                    self.growth.want(service);
                    while let Ok(service) = self.wanted.try_recv() {
                        self.growth.want(service);
                    }
                }
                () = self.barriers.rested() => {}
                () = self.config.restarting.cancelled(), if !parting => parting = true,
                _ = ticks.evict.tick() => {
                    if live && splices && let Err(reason) = self.evict(&sender) {
                        return ended(reason, live);
                    }
                }
            }
        }
    }

    /// Takes note of what an operator has to look at; the reason, for people.
    fn failed(&mut self, error: &WatchError) -> String {
        let reason = error.to_string();
        if matches!(error, WatchError::OtherRegistry(_) | WatchError::Lost(_)) {
            self.obsolete |= matches!(error, WatchError::Lost(_));
            let news = self.shared.refusal.send_if_modified(|refusal| {
                let news = refusal.as_deref() != Some(reason.as_str());
                *refusal = Some(reason.clone());
                news
            });
            if news {
                tracing::error!(%reason, "the registry refuses what this agent holds; answering from that as last known");
            }
        }
        reason
    }

    /// Sends the barriers and changes of Scope that readers wait for.
    fn ask(&mut self, sender: &WatchSender, splices: bool) -> Result<(), String> {
        if self.config.restarting.is_cancelled() {
            // The member ends the stream when it has heard it.
            return sender.restart().map_err(|error| error.to_string());
        }
        while let Some((id, consistency)) = self.barriers.next(Instant::now()) {
            sender.barrier(id, consistency).map_err(|error| error.to_string())?;
        }
        if !self.growth.is_wanted() {
            return Ok(());
        }
        let Width::Scope { services: most, .. } = self.config.width else { return Ok(()) };
        let (waiters, now) = (&self.shared.waiters, Instant::now());
        let is_waited_on = |service: &Name| waiters.is_waited_on(&Topic::Service(service.clone()));
        let rescope = self.growth.plan(most, &self.working, &self.shared.uses, now, is_waited_on);
        self.refuse(&rescope.refused, most);
        if rescope.join.is_empty() {
            return Ok(());
        }
        if !splices {
            self.loads_anew = true;
            return Err("this member is older and takes no changes of scope: asking anew with the wider one".into());
        }
        tracing::debug!(services = ?rescope.join, "the scope grows");
        self.leave(sender, &rescope.leave)?;
        sender.add_services(&rescope.join).map_err(|error| error.to_string())
    }

    fn refuse(&self, services: &[Name], most: usize) {
        if services.is_empty() {
            return;
        }
        metrics::counter!("muster_agent_scope_refused_total", "reason" => "full").increment(services.len() as u64);
        tracing::debug!(?services, most, "the scope is full of services that are in use: raise agent.replica_services");
        self.shared.holds.end(services);
        let topics: Vec<Topic> = services.iter().cloned().map(Topic::Service).collect();
        self.shared.waiters.wake(&topics);
    }

    /// Lets go of what nobody uses.
    fn evict(&mut self, sender: &WatchSender) -> Result<(), String> {
        let Width::Scope { services, idle } = self.config.width else { return Ok(()) };
        let (waiters, now) = (&self.shared.waiters, Instant::now());
        let is_waited_on = |service: &Name| waiters.is_waited_on(&Topic::Service(service.clone()));
        let left = self.growth.evict((services, idle), &self.working, &self.shared.uses, now, is_waited_on);
        self.leave(sender, &left)
    }

    fn leave(&self, sender: &WatchSender, services: &[Name]) -> Result<(), String> {
        if services.is_empty() {
            return Ok(());
        }
        tracing::debug!(?services, "the scope shrinks by what nobody used");
        sender.remove_services(services).map_err(|error| error.to_string())
    }

    fn hello(&mut self) -> Hello {
        self.asked = self.config.width.scope(&self.working, &self.config.node);
        // An index says something of what is held only.
        let mut known = self.working.index() > 0 && self.working.scope().covers(&self.asked);
        if std::mem::take(&mut self.loads_anew) {
            known = false;
            if let Width::Scope { services, .. } = self.config.width {
                self.asked = self.growth.widened(&self.asked, services);
            }
        }
        Hello {
            scope: self.asked.clone(),
            resume: known.then(|| (self.working.cluster().clone(), self.working.index())),
            watcher: Some((self.config.node.clone(), self.config.incarnation)),
            accept_new_cluster: self.config.accept_any_cluster,
        }
    }

    fn take(&mut self, event: WatchEvent, batch: &mut Batch) -> Result<(), String> {
        batch.events += 1;
        match event {
            WatchEvent::Hello { resumed, splices, cluster } => {
                if std::mem::take(&mut self.obsolete) && cluster == *self.working.cluster() {
                    // It has come as far again, by other entries: what happens from now on does not lead from here to there.
                    self.loads_anew = true;
                    return Err("the registry lost entries that are held here: loading everything anew".into());
                }
                batch.current |= resumed;
                batch.splices |= splices;
                if resumed && *self.working.scope() != self.asked {
                    self.working = project_snapshot(&self.asked, &self.working);
                    self.rescoped();
                    batch.replaced = true;
                }
            }
            WatchEvent::Row(row) => self.take_row(row)?,
            WatchEvent::Loaded { index, sets_after } => {
                self.take_load(index, sets_after)?;
                (batch.current, batch.replaced) = (true, true);
            }
            WatchEvent::Entry(entry) => {
                let topics = self.working.fold(&entry);
                // To make a set of many that are in order takes less than to add them one by one.
                match batch.topics.is_empty() {
                    true => batch.topics = topics.into_iter().collect(),
                    false => batch.topics.extend(topics),
                }
                batch.happened.push(ReplicaEvent::Entry(entry));
            }
            WatchEvent::Splice(splice) => self.take_splice(splice, batch)?,
            WatchEvent::Advance { index, at } => {
                if index > self.working.index() {
                    self.working.advance(index, at);
                    batch.happened.push(ReplicaEvent::Advance { index, at });
                    batch.topics.insert(Topic::Index);
                }
            }
            WatchEvent::Barrier { id, result: Ok(_) } => batch.reached.push(id),
            WatchEvent::Barrier { id, result: Err(reason) } => {
                tracing::debug!(reason, "a barrier was not confirmed");
                self.barriers.failed(id, Instant::now());
            }
        }
        Ok(())
    }

    fn take_row(&mut self, row: SnapshotRow) -> Result<(), String> {
        if matches!(row, SnapshotRow::Header(_)) {
            // A load may begin anew at any time: this agent was too slow, or the registry was restored.
            self.loading = Some(SnapshotBuilder::new(self.asked.clone()));
        }
        self.loading.as_mut().ok_or("a row came outside a load")?.push(row);
        Ok(())
    }

    fn take_load(&mut self, index: u64, sets_after: Option<u64>) -> Result<(), String> {
        let builder = self.loading.take().ok_or("rows ended that had not begun")?;
        let loaded = match sets_after {
            None => builder.finish(),
            Some(after) => builder.finish_after(after, &self.working).map_err(|service| {
                self.loads_anew = true;
                format!("the member believes that this agent holds service {service}, which it does not")
            })?,
        };
        let same_cluster = loaded.cluster() == self.working.cluster();
        if same_cluster && index < self.working.index() {
            let own = self.working.index();
            return Err(format!("the member is at index {index}, behind {own}: another one is asked"));
        }
        self.working = loaded;
        self.rescoped();
        Ok(())
    }

    fn take_splice(&mut self, splice: Splice, batch: &mut Batch) -> Result<(), String> {
        if splice.index != self.working.index() {
            let (theirs, own) = (splice.index, self.working.index());
            return Err(format!("the member changed the scope at index {theirs}, this agent is at {own}"));
        }
        metrics::counter!("muster_agent_scope_joined_total").increment(splice.joined.len() as u64);
        metrics::counter!("muster_agent_scope_left_total").increment(splice.left.len() as u64);
        self.growth.spliced(&splice.joined, &splice.left);
        batch.joined.extend(splice.joined.iter().cloned());
        batch.happened.push(ReplicaEvent::Splice(splice.clone()));
        batch.topics.extend(self.working.splice(splice));
        self.asked = self.working.scope().clone();
        self.rescoped();
        Ok(())
    }

    /// Takes note of another Scope.
    fn rescoped(&mut self) {
        self.shared.uses.follow(self.working.scope(), Instant::now());
    }

    /// Publishes what a batch changed, then wakes, then answers barriers. Returns whether the View is current.
    fn publish(&mut self, batch: Batch, was_live: bool) -> bool {
        let live = was_live || batch.current;
        if live && !was_live {
            self.shared.refusal.send_if_modified(|refusal| refusal.take().is_some());
            self.keeper.mark(None);
        }
        if batch.replaced || !batch.happened.is_empty() {
            let need = match batch.replaced {
                true => Need::File,
                false => Need::of(&batch.happened, &batch.topics, &self.working),
            };
            self.keeper.note(&self.working, batch.happened, need);
        }
        if live && (!batch.topics.is_empty() || batch.replaced || !was_live) {
            let moved = if batch.replaced { Moved::All } else { Moved::Topics(&batch.topics) };
            let own = self.shared.publish(self.working.clone(), Freshness::Live, &moved);
            if batch.replaced {
                self.shared.waiters.wake_all();
            } else {
                self.shared.waiters.wake(batch.topics.iter().chain(&own).chain([&Topic::Index]));
            }
        }
        // Those who wait looked at the new View when they were woken.
        self.shared.holds.end(&batch.joined);
        for id in batch.reached {
            self.barriers.reached(id);
        }
        live
    }
}

/// What a run of events has done so far.
#[derive(Default)]
struct Batch {
    events: usize,
    topics: BTreeSet<Topic>,
    replaced: bool,
    current: bool,
    splices: bool,
    joined: Vec<Name>,
    reached: Vec<u64>,
    /// What led from the replica of before the batch to the one of after it, unless that was replaced.
    happened: Vec<ReplicaEvent>,
}
