//! What answers of more than an agent holds take in its memory, together.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Mutex, Notify, OwnedMutexGuard},
    time::timeout,
};

/// Decoded answers, in bytes: some five of the largest that a busy registry gives (4.6 MB of JSON are 14 MB here), and a
/// small part of what a host has. They are held for as long as it takes to make JSON of them.
const MAX_BYTES: usize = 64 * 1024 * 1024;
/// A row in memory takes up to so many times what it takes on the wire: strings of their own, and the trees they stand in.
const WIRE_FACTOR: usize = 4;
/// How long an answer waits for room: several of the largest are decoded, and made JSON of, in that time.
const PATIENCE: Duration = Duration::from_secs(10);

/// The room for decoded answers.
#[derive(Debug)]
pub(super) struct Room {
    limit: usize,
    patience: Duration,
    held: AtomicUsize,
    freed: Notify,
    /// Whose answer may be large: one at a time, so that no more than one goes beyond the limit.
    turn: Arc<Mutex<()>>,
}

/// The right to decode a large answer now.
pub(super) type Turn = OwnedMutexGuard<()>;

/// What an answer takes, counted for as long as this lives.
#[derive(Debug)]
pub struct Held {
    room: Arc<Room>,
    bytes: usize,
}

impl Room {
    pub(super) fn new() -> Arc<Self> {
        Self::with(MAX_BYTES, PATIENCE)
    }

    pub(super) fn with(limit: usize, patience: Duration) -> Arc<Self> {
        let (held, freed, turn) = (AtomicUsize::new(0), Notify::new(), Arc::default());
        Arc::new(Self { limit, patience, held, freed, turn })
    }

    /// Nothing yet, to be grown.
    pub(super) fn hold(self: &Arc<Self>) -> Held {
        Held { room: self.clone(), bytes: 0 }
    }

    /// The turn, where nobody has it and there is room.
    pub(super) fn try_turn(&self) -> Option<Turn> {
        let turn = self.turn.clone().try_lock_owned().ok()?;
        self.has_room().then_some(turn)
    }

    /// Waits for the turn and for room; an error says that it was in vain, and what to do.
    pub(super) async fn turn(&self) -> Result<Turn, String> {
        let room = async {
            let turn = self.turn.clone().lock_owned().await;
            loop {
                let freed = self.freed.notified();
                tokio::pin!(freed);
                freed.as_mut().enable();
                if self.has_room() {
                    return turn;
                }
                freed.await;
            }
        };
        timeout(self.patience, room).await.map_err(|_| {
            let (patience, limit) = (self.patience, self.limit >> 20);
            format!(
                "answers of what this agent does not hold take the {limit} MiB that they may, and none was done with \
                 within {patience:?}: ask again, or an agent with agent.replica = \"all\""
            )
        })
    }

    /// The last one that is let in may go beyond the limit: how large an answer is shows once it is there.
    fn has_room(&self) -> bool {
        self.held() < self.limit
    }

    pub(super) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}

impl Held {
    /// Counts what so many bytes on the wire take here.
    pub(super) fn grow(&mut self, wire: usize) {
        let bytes = wire * WIRE_FACTOR;
        self.bytes += bytes;
        self.room.held.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.room.held.fetch_sub(self.bytes, Ordering::Relaxed);
        self.room.freed.notify_waiters();
    }
}
