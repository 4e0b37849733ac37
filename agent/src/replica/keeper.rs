//! Keeping the replica on disk, beside the task that follows the registry: that one notes what happened and goes on.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use muster_catalog::{Change, Entry, Snapshot, Timestamp, Topic};
use muster_registry::journal::ReplicaEvent;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::disk::{Disk, Unsaved};

/// How soon a changed replica is written: an agent that is killed serves at most this much older data.
const SAVE_INTERVAL: Duration = Duration::from_secs(5);
/// The same where nothing moved that it holds: an agent that restarts is told little more for an older one.
const ADVANCE_INTERVAL: Duration = Duration::from_secs(30);
/// The file is written anew no oftener than would write so much in a second: a large one takes its time.
const FILE_BYTES_PER_SECOND: u64 = 512 * 1024;
/// Changes that are noted for the journal; with more the file is written anew.
const MAX_CHANGES: usize = 16_384;
/// With so many what waits for [`ADVANCE_INTERVAL`] is written earlier, while the journal still takes it.
const MANY_CHANGES: usize = MAX_CHANGES / 2;

/// What waits to be written.
#[derive(Debug)]
pub(super) struct Keeper {
    noted: Mutex<Noted>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Noted {
    snapshot: Option<Snapshot>,
    events: Vec<ReplicaEvent>,
    /// Changes in `events`, and events.
    changes: usize,
    need: Need,
    /// Since when it is not known to be current; `None` while it is.
    stale: Option<Timestamp>,
    /// The last that will be heard for a while.
    urgent: bool,
}

/// How much is to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) enum Need {
    #[default]
    Nothing,
    /// The index, and those of services that are not held.
    Advance,
    /// The events.
    Events,
    /// All of it: the events do not say it.
    File,
}

impl Need {
    /// What these events ask for, which touched these topics of a replica.
    pub(super) fn of(events: &[ReplicaEvent], topics: &BTreeSet<Topic>, replica: &Snapshot) -> Self {
        let beside = events.iter().all(|event| match event {
            ReplicaEvent::Advance { .. } => true,
            ReplicaEvent::Entry(entry) => entry.changes.iter().all(|change| matches!(change, Change::PutDirectory(_))),
            ReplicaEvent::Splice(_) => false,
        });
        // A name or a tag that came touches the table of services.
        let unheld = |topic: &Topic| match topic {
            Topic::Index | Topic::AnyService => true,
            Topic::Service(service) => !replica.scope().holds_service(service),
            _ => false,
        };
        if beside && topics.iter().all(unheld) { Self::Advance } else { Self::Events }
    }
}

impl Keeper {
    /// Of what the disk has, which was last known to be current then.
    pub(super) fn new(since: Option<Timestamp>) -> Self {
        Self { noted: Mutex::new(Noted { stale: since, ..Noted::default() }), news: Notify::new() }
    }

    /// Notes that these events led to this replica, and how much of that is to be written.
    pub(super) fn note(&self, snapshot: &Snapshot, events: Vec<ReplicaEvent>, need: Need) {
        let mut noted = self.lock();
        let before = (noted.need, noted.urgent);
        noted.snapshot = Some(snapshot.clone());
        noted.need = noted.need.max(need);
        for event in events {
            let last = noted.events.last_mut();
            if let (ReplicaEvent::Advance { .. }, Some(last @ ReplicaEvent::Advance { .. })) = (&event, last) {
                *last = event;
                continue;
            }
            noted.changes += match &event {
                ReplicaEvent::Entry(entry) => 1 + entry.changes.len(),
                ReplicaEvent::Splice(splice) => 1 + splice.rows.len(),
                ReplicaEvent::Advance { .. } => 1,
            };
            noted.events.push(event);
        }
        let least = match noted.changes {
            changes if changes > MAX_CHANGES => Need::File,
            changes if changes > MANY_CHANGES => Need::Events,
            _ => Need::Nothing,
        };
        noted.need = noted.need.max(least);
        if noted.need == Need::File {
            (noted.events, noted.changes) = (Vec::new(), 0);
        }
        let is_news = (noted.need, noted.urgent) != before;
        drop(noted);
        if is_news {
            self.news.notify_one();
        }
    }

    /// Notes whether the replica is current, or since when it is not. What is not written is now, as the last that will be
    /// heard for a while.
    pub(super) fn mark(&self, stale: Option<Timestamp>) {
        let mut noted = self.lock();
        noted.stale = stale;
        noted.urgent = stale.is_some();
        drop(noted);
        self.news.notify_one();
    }

    fn take(&self, clock: fn() -> Timestamp) -> Option<Unsaved> {
        let mut noted = self.lock();
        let snapshot = noted.snapshot.take()?;
        let since = noted.stale.unwrap_or_else(clock);
        let (events, need) = (std::mem::take(&mut noted.events), std::mem::take(&mut noted.need));
        noted.changes = 0;
        drop(noted);
        let events = match need {
            Need::Nothing | Need::Events => Some(events),
            Need::Advance => Some(vec![in_one(events, &snapshot)]),
            Need::File => None,
        };
        Some(Unsaved { snapshot, events, since })
    }

    /// What could not be written is written whole the next time.
    fn give_back(&self, unsaved: Unsaved) {
        let mut noted = self.lock();
        noted.snapshot.get_or_insert(unsaved.snapshot);
        noted.need = Need::File;
        (noted.events, noted.changes) = (Vec::new(), 0);
    }

    fn lock(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Events that led to this replica and moved the indexes of services alone, in one: of each the last says it all.
fn in_one(events: Vec<ReplicaEvent>, replica: &Snapshot) -> ReplicaEvent {
    let entries = events.into_iter().filter_map(|event| match event {
        ReplicaEvent::Entry(entry) => Some(entry.changes),
        ReplicaEvent::Splice(_) | ReplicaEvent::Advance { .. } => None,
    });
    let rows: BTreeMap<_, _> = entries
        .flatten()
        .filter_map(|change| match &change {
            Change::PutDirectory(row) => Some((row.service.clone(), change)),
            _ => None,
        })
        .collect();
    let (index, at) = (replica.index(), replica.at());
    if rows.is_empty() {
        return ReplicaEvent::Advance { index, at };
    }
    ReplicaEvent::Entry(Entry { index, at, changes: rows.into_values().collect() })
}

/// When what was noted is written.
struct Pace {
    written: Instant,
    /// The file is not written anew before.
    file_rests_until: Instant,
}

impl Pace {
    fn due(&self, keeper: &Keeper) -> Option<Instant> {
        let noted = keeper.lock();
        let interval = if noted.urgent { Duration::ZERO } else { SAVE_INTERVAL };
        match noted.need {
            Need::Nothing => None,
            Need::Advance if noted.urgent => Some(self.written),
            Need::Advance => Some(self.written + ADVANCE_INTERVAL),
            Need::Events => Some(self.written + interval),
            Need::File => Some((self.written + interval).max(self.file_rests_until)),
        }
    }
}

/// Writes what is noted until told to stop, then what is left.
pub(super) async fn run(keeper: &Keeper, disk: Disk, clock: fn() -> Timestamp, stop: CancellationToken) {
    let mut disk = Some(disk);
    let begun = Instant::now();
    let mut pace = Pace { written: begun, file_rests_until: begun };
    loop {
        let due = pace.due(keeper);
        tokio::select! {
            () = stop.cancelled() => break,
            () = keeper.news.notified() => continue,
            () = sleep_until(due.unwrap_or(begun)), if due.is_some() => {}
        }
        write(keeper, &mut disk, clock, &mut pace).await;
    }
    write(keeper, &mut disk, clock, &mut pace).await;
}

async fn write(keeper: &Keeper, disk: &mut Option<Disk>, clock: fn() -> Timestamp, pace: &mut Pace) {
    let Some((unsaved, mut own)) = keeper.take(clock).zip(disk.take()) else { return };
    let writing = tokio::task::spawn_blocking(move || {
        let saved = own.save(&unsaved);
        (own, unsaved, saved)
    });
    match writing.await {
        Ok((own, unsaved, saved)) => {
            *disk = Some(own);
            pace.written = Instant::now();
            match saved {
                Ok(Some(bytes)) => {
                    let rest = Duration::from_millis(bytes.saturating_mul(1_000) / FILE_BYTES_PER_SECOND);
                    pace.file_rests_until = pace.written + rest;
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(%error, "the replica is not kept on disk: a restart would begin with an older one, or empty");
                    pace.file_rests_until = pace.written + SAVE_INTERVAL;
                    keeper.give_back(unsaved);
                }
            }
        }
        // An unexpected end of a task ends the agent; one that is cancelled is so because the agent ends.
        Err(error) => {
            if let Ok(panic) = error.try_into_panic() {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

#[cfg(test)]
mod tests;
