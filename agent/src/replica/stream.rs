//! One connection's worth of following: hello, rows or Changes, barriers; publishing once per batch.

use std::{collections::BTreeSet, time::Duration};

use futures_util::{FutureExt, StreamExt};
use muster_catalog::{Freshness, SnapshotBuilder, SnapshotRow, Topic};
use muster_registry::client::{Hello, WatchEvent};
use tokio::time::{Instant, Interval};

use super::{ReplicaTask, scope};

/// The pause after a stream that had been live: a member restarts, another one takes over at once.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause: an outage of the registry must not end in a storm, nor its end go unnoticed.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// The registry speaks at least each second; a stream silent for this long is dead.
const SILENCE: Duration = Duration::from_secs(3);
/// How many events one batch takes before it is published: bounds how old a View gets under a flood.
const BATCH: usize = 512;

/// Why following ended.
pub(super) struct Ended {
    pub(super) reason: String,
    /// Whether the stream had become live.
    pub(super) was_live: bool,
}

impl ReplicaTask {
    /// Follows one stream until it ends. Dropping the future drops the stream.
    pub(super) async fn follow(&mut self, save: &mut Interval, saved: &mut u64) -> Ended {
        let ended = |reason: String, was_live| Ended { reason, was_live };
        let (sender, mut events) = match self.client.watch(self.hello()).await {
            Ok(stream) => stream,
            Err(error) => return ended(error.to_string(), false),
        };
        let mut live = false;
        loop {
            if live {
                while let Some((id, consistency)) = self.barriers.next(Instant::now()) {
                    if let Err(error) = sender.barrier(id, consistency) {
                        return ended(error.to_string(), live);
                    }
                }
            }
            tokio::select! {
                event = tokio::time::timeout(SILENCE, events.next()) => {
                    let first = match event {
                        Err(_) => return ended(format!("nothing heard for {SILENCE:?}"), live),
                        Ok(None) => return ended("the member closed it".into(), live),
                        Ok(Some(Err(error))) => return ended(error.to_string(), live),
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
                    live |= self.publish(batch, live);
                    if let Some(Err(error)) = next {
                        return ended(error.to_string(), live);
                    }
                }
                Some(request) = self.requests.recv() => {
                    self.barriers.queue(request);
                    // Readers that asked together share a barrier.
                    while let Ok(request) = self.requests.try_recv() {
                        self.barriers.queue(request);
                    }
                }
                () = self.barriers.rested() => {}
                _ = save.tick() => {
                    if live && self.working.index() != *saved {
                        *saved = self.working.index();
                        self.save().await;
                    }
                }
            }
        }
    }

    fn hello(&self) -> Hello {
        let known = self.working.index() > 0;
        Hello {
            scope: scope(),
            resume: known.then(|| (self.working.cluster().clone(), self.working.index())),
            watcher: Some((self.config.node.clone(), self.config.incarnation)),
            accept_new_cluster: self.config.accept_any_cluster,
        }
    }

    fn take(&mut self, event: WatchEvent, batch: &mut Batch) -> Result<(), String> {
        batch.events += 1;
        match event {
            WatchEvent::Hello { resumed, .. } => {
                batch.current |= resumed;
            }
            WatchEvent::Row(row) => self.take_row(row)?,
            WatchEvent::Loaded { index } => {
                let loaded = self.loading.take().ok_or("rows ended that had not begun")?.finish();
                let same_cluster = loaded.cluster() == self.working.cluster();
                if same_cluster && index < self.working.index() {
                    return Err(format!(
                        "the member is at index {index}, behind {}: another one is asked",
                        self.working.index()
                    ));
                }
                self.working = loaded;
                (batch.current, batch.replaced) = (true, true);
            }
            WatchEvent::Entry(entry) => batch.topics.extend(self.working.fold(&entry)),
            WatchEvent::Advance { index, at } => {
                if index > self.working.index() {
                    self.working.advance(index, at);
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
            self.loading = Some(SnapshotBuilder::new(scope()));
        }
        self.loading.as_mut().ok_or("a row came outside a load")?.push(row);
        Ok(())
    }

    /// Publishes what a batch changed, then wakes, then answers barriers. Returns whether the View is current.
    fn publish(&mut self, batch: Batch, was_live: bool) -> bool {
        let live = was_live || batch.current;
        if live && (!batch.topics.is_empty() || batch.replaced || !was_live) {
            self.shared.publish(self.working.clone(), Freshness::Live);
            if batch.replaced {
                self.shared.waiters.wake_all();
            } else {
                self.shared.waiters.wake(batch.topics.iter().chain([&Topic::Index]));
            }
        }
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
    reached: Vec<u64>,
}
