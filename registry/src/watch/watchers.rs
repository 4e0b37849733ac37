//! Who watches what: an entry wakes those alone whose Scope it touches.
//!
//! The machine marks the watchers that new entries touch before it publishes the Snapshot that holds them, and wakes them
//! after it did. A stream that is not marked above its cursor so knows that all up to the Snapshot is outside its Scope.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use muster_catalog::{Name, Scope};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::ring::{MAX_BYTES, MAX_ENTRIES, Record};

/// All are woken when so much of the ring came since they were: one whose Scope nothing touches must not fall out of it
/// between two heartbeats.
const WAKE_ALL_ENTRIES: usize = MAX_ENTRIES / 4;
/// The same, by bytes.
const WAKE_ALL_BYTES: usize = MAX_BYTES / 4;

/// The watchers of one member.
#[derive(Debug)]
pub(crate) struct Watchers {
    inner: Mutex<Inner>,
    directory: watch::Sender<u64>,
    began: Instant,
}

#[derive(Debug, Default)]
struct Inner {
    last_id: u64,
    /// The last entry that was marked.
    marked: u64,
    all: HashMap<u64, Arc<Place>>,
    /// Those that hold everything.
    unscoped: HashMap<u64, Arc<Place>>,
    services: HashMap<Name, HashMap<u64, Arc<Place>>>,
    nodes: HashMap<Name, HashMap<u64, Arc<Place>>>,
    /// Entries since all were woken, and their bytes.
    since: (usize, usize),
}

#[derive(Debug)]
struct Place {
    id: u64,
    /// The last entry that touched what it holds, or may have.
    touched: AtomicU64,
    woken: Notify,
}

/// One watcher, for as long as it lives.
#[derive(Debug)]
pub(crate) struct Watcher {
    watchers: Arc<Watchers>,
    place: Arc<Place>,
    scope: Scope,
}

/// Those that have to be woken once the Snapshot is published.
#[derive(Debug, Default)]
#[must_use = "they wait to be woken"]
pub(crate) struct Marked {
    places: Vec<Arc<Place>>,
    /// The last entry that changed more of the Directory than indexes.
    directory: Option<u64>,
}

impl Default for Watchers {
    fn default() -> Self {
        Self { inner: Mutex::default(), directory: watch::Sender::new(0), began: Instant::now() }
    }
}

impl Watchers {
    /// Takes a watcher in. Whether entries before now touch it, it has to see for itself.
    pub(crate) fn join(self: &Arc<Self>, scope: &Scope) -> Watcher {
        let mut inner = self.lock();
        inner.last_id += 1;
        let (id, touched) = (inner.last_id, AtomicU64::new(inner.marked));
        let place = Arc::new(Place { id, touched, woken: Notify::new() });
        inner.all.insert(id, place.clone());
        match scope {
            Scope::All => _ = inner.unscoped.insert(id, place.clone()),
            Scope::Services { names, node } => {
                names.iter().for_each(|name| put(&mut inner.services, name, &place));
                node.iter().for_each(|name| put(&mut inner.nodes, name, &place));
            }
        }
        drop(inner);
        Watcher { watchers: self.clone(), place, scope: scope.clone() }
    }

    /// What all heartbeats are counted from.
    pub(super) fn began(&self) -> Instant {
        self.began
    }

    /// The last entry that changed more of the Directory than the indexes of services.
    pub(crate) fn directory(&self) -> watch::Receiver<u64> {
        self.directory.subscribe()
    }

    /// Marks those whose Scope these entries touch. Before the Snapshot that holds them is published.
    pub(crate) fn mark(&self, records: &[Record]) -> Marked {
        let Some(last) = records.last() else { return Marked::default() };
        let mut inner = self.lock();
        inner.marked = last.entry.index;
        if inner.all.is_empty() {
            return Marked::default();
        }
        let mut touched: Vec<Arc<Place>> = Vec::new();
        let mut touch = |place: &Arc<Place>, index| {
            if place.touched.swap(index, Ordering::Release) != index {
                touched.push(place.clone());
            }
        };
        inner.unscoped.values().for_each(|place| touch(place, last.entry.index));
        for record in records {
            let services = record.footprint.services().filter_map(|service| inner.services.get(service));
            let nodes = record.footprint.nodes().iter().filter_map(|node| inner.nodes.get(node));
            services.chain(nodes).flat_map(HashMap::values).for_each(|place| touch(place, record.entry.index));
        }
        inner.since.0 += records.len();
        inner.since.1 += records.iter().map(|record| record.size).sum::<usize>();
        if inner.since.0 >= WAKE_ALL_ENTRIES || inner.since.1 >= WAKE_ALL_BYTES {
            inner.since = (0, 0);
            touched = inner.all.values().cloned().collect();
        }
        touched.sort_unstable_by_key(|place| place.id);
        touched.dedup_by_key(|place| place.id);
        let moved = records.iter().rev().find(|record| record.footprint.moves_directory());
        Marked { places: touched, directory: moved.map(|record| record.entry.index) }
    }

    /// Wakes those that were marked. After the Snapshot is published.
    pub(crate) fn wake(&self, marked: Marked) {
        marked.places.iter().for_each(|place| place.woken.notify_one());
        if let Some(index) = marked.directory {
            self.directory.send_replace(index);
        }
    }

    /// Wakes everybody: another catalog was published.
    pub(crate) fn wake_all(&self) {
        self.lock().all.values().for_each(|place| place.woken.notify_one());
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watcher {
    /// Which of the member's watchers it is, counted from 1.
    pub(crate) fn id(&self) -> u64 {
        self.place.id
    }

    /// Returns when an entry touched what it holds, or much came that did not.
    pub(crate) async fn woken(&self) {
        self.place.woken.notified().await;
    }

    /// Whether an entry after the cursor, and in a Snapshot that was read before this is asked, may touch what it holds.
    pub(crate) fn is_touched_after(&self, cursor: u64) -> bool {
        self.place.touched.load(Ordering::Acquire) > cursor
    }

    /// Changes what it holds. Nothing, where that is everything.
    pub(crate) fn rescope(&mut self, joined: &[Name], left: &[Name]) {
        let Scope::Services { names, .. } = &mut self.scope else { return };
        let mut inner = self.watchers.lock();
        for name in left {
            names.remove(name);
            take(&mut inner.services, name, self.place.id);
        }
        for name in joined {
            names.insert(name.clone());
            put(&mut inner.services, name, &self.place);
        }
        // Those that are marked and not published yet were not looked at for what joined.
        self.place.touched.fetch_max(inner.marked, Ordering::AcqRel);
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let mut inner = self.watchers.lock();
        inner.all.remove(&self.place.id);
        inner.unscoped.remove(&self.place.id);
        if let Scope::Services { names, node } = &self.scope {
            names.iter().for_each(|name| take(&mut inner.services, name, self.place.id));
            node.iter().for_each(|name| take(&mut inner.nodes, name, self.place.id));
        }
    }
}

fn put<K: Eq + Hash + Clone>(places: &mut HashMap<K, HashMap<u64, Arc<Place>>>, key: &K, place: &Arc<Place>) {
    places.entry(key.clone()).or_default().insert(place.id, place.clone());
}

/// Names come from watchers: none stays without one.
fn take<K: Eq + Hash + Clone>(places: &mut HashMap<K, HashMap<u64, Arc<Place>>>, key: &K, id: u64) {
    if let Some(of_key) = places.get_mut(key) {
        of_key.remove(&id);
        if of_key.is_empty() {
            places.remove(key);
        }
    }
}
