//! How many bytes streams may hold: what arrives, what was asked for, what was sent. Each has a share of its own, which
//! nobody can take from it, and what goes beyond comes from a room that all have in common.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// What each stream may hold whatever others do, in bytes: as much as a registered proxy needs with all of the upstreams
/// that it may have.
pub(crate) const SHARE: usize = 320 * 1024;

/// What all streams may hold together beyond their shares, in bytes. It is for those that are served every service: 300
/// Envoys with 1,500 clusters each, or 40 with 10,000. With 2,048 shares it is 768 MiB at the very most.
const COMMON: usize = 128 * 1024 * 1024;

/// A stream that holds more than this, some 12,000 clusters, is long at work with all of them: tens of milliseconds.
const LARGE: usize = 4 * 1024 * 1024;

/// How often it is logged at most that there is no room: whoever is refused comes again at once.
const SILENCE: Duration = Duration::from_secs(60);

/// The room for all streams. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Budget(Arc<Room>);

#[derive(Debug)]
struct Room {
    limit: usize,
    taken: AtomicUsize,
    /// One stream at a time does large work: the other processors are for everyone else.
    turns: Semaphore,
    warned: Mutex<Option<Instant>>,
}

/// Why a stream is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the stream would hold {bytes} bytes, and there is no room for them: each has {SHARE} of its own, and all together \
     {limit} beyond; name fewer resources, subscribe to the wildcard, or register the proxy with its upstreams"
)]
pub(crate) struct NoRoom {
    bytes: usize,
    limit: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self::new(COMMON)
    }
}

impl Budget {
    pub(crate) fn new(limit: usize) -> Self {
        let (taken, warned) = (AtomicUsize::new(0), Mutex::new(None));
        Self(Arc::new(Room { limit, taken, turns: Semaphore::new(1), warned }))
    }

    /// For a stream that begins.
    pub(crate) fn open(&self) -> Account {
        let inner = Inner { budget: self.clone(), held: Mutex::default(), refused: CancellationToken::new() };
        Account(Arc::new(inner))
    }

    fn take(&self, more: usize) -> bool {
        let take = |taken: usize| taken.checked_add(more).filter(|taken| *taken <= self.0.limit);
        self.0.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.0.taken.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn refuse(&self, bytes: usize) -> NoRoom {
        let refusal = NoRoom { bytes, limit: self.0.limit };
        let mut warned = self.0.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.is_none_or(|at| at.elapsed() >= SILENCE) {
            *warned = Some(Instant::now());
            warn!(reason = %refusal, "an xDS stream is refused");
        }
        refusal
    }
}

/// What one stream holds, given back when its last clone is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Account(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    budget: Budget,
    held: Mutex<Held>,
    /// There was no room for what arrived.
    refused: CancellationToken,
}

#[derive(Debug, Clone, Copy, Default)]
struct Held {
    /// Bytes of a message that is not complete.
    arriving: usize,
    /// The most that there were: the transport keeps the room of its largest message.
    buffer: usize,
    /// What the stream's own state costs.
    state: usize,
}

impl Held {
    fn total(self) -> usize {
        self.buffer.saturating_add(self.state)
    }

    fn beyond(self) -> usize {
        self.total().saturating_sub(SHARE)
    }
}

impl Account {
    /// Whether there is room for so many bytes of a message that came. Once there was none the stream is to end, and
    /// nothing more is taken: [`Self::refused`].
    pub(crate) fn arrive(&self, bytes: usize) -> bool {
        let arrived = !self.0.refused.is_cancelled()
            && self
                .edit(|held| {
                    held.arriving = held.arriving.saturating_add(bytes);
                    held.buffer = held.buffer.max(held.arriving);
                })
                .is_ok();
        if !arrived {
            self.0.refused.cancel();
        }
        arrived
    }

    /// A message was complete.
    pub(crate) fn read(&self) {
        self.with(|held| held.arriving = 0);
    }

    /// What the stream's state costs now.
    pub(crate) fn hold(&self, bytes: usize) -> Result<(), NoRoom> {
        self.edit(|held| held.state = bytes)
    }

    /// Returns when there was no room for what arrived.
    pub(crate) async fn refused(&self) -> NoRoom {
        self.0.refused.cancelled().await;
        NoRoom { bytes: self.with(|held| held.total()), limit: self.0.budget.0.limit }
    }

    /// Does something with all that the stream holds. Where that is much, it is done one stream at a time, and aside from
    /// the tasks of this thread: they are taken up by another.
    pub(crate) async fn work<T>(&self, work: impl FnOnce() -> T) -> T {
        if self.with(|held| held.total()) <= LARGE {
            return work();
        }
        let _turn = self.0.budget.0.turns.acquire().await;
        match Handle::current().runtime_flavor() {
            RuntimeFlavor::MultiThread => tokio::task::block_in_place(work),
            _ => work(),
        }
    }

    fn edit(&self, edit: impl FnOnce(&mut Held)) -> Result<(), NoRoom> {
        let budget = &self.0.budget;
        self.with(|held| {
            let (before, mut after) = (held.beyond(), *held);
            edit(&mut after);
            match after.beyond().checked_sub(before) {
                Some(more) if !budget.take(more) => return Err(budget.refuse(after.total())),
                Some(_) => {}
                None => budget.give_back(before - after.beyond()),
            }
            *held = after;
            Ok(())
        })
    }

    fn with<T>(&self, look: impl FnOnce(&mut Held) -> T) -> T {
        look(&mut self.0.held.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let held = self.held.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.budget.give_back(held.beyond());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_untouched_by_who_takes_all_of_the_common_room_and_it_is_given_back() {
        let budget = Budget::new(1_000);
        let (greedy, modest) = (budget.open(), budget.open());
        greedy.hold(SHARE + 1_000).unwrap();
        modest.hold(SHARE).unwrap();
        let refused = modest.hold(SHARE + 1).unwrap_err();
        assert!(refused.to_string().contains("1000 beyond"), "{refused}");
        greedy.hold(SHARE + 999).unwrap();
        modest.hold(SHARE + 1).unwrap();
        drop(greedy);
        modest.hold(SHARE + 1_000).unwrap();
        modest.hold(0).unwrap();
        assert_eq!(budget.0.taken.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn what_arrives_counts_as_much_as_what_is_held_until_the_stream_ends() {
        let budget = Budget::new(1_000);
        let account = budget.open();
        // One message after another takes the same room again.
        for _ in 0..3 {
            assert!(account.arrive(SHARE) && account.arrive(600));
            account.read();
        }
        assert!(account.hold(401).is_err(), "the room of the largest message is held on");
        account.hold(400).unwrap();
        assert!(!account.arrive(SHARE + 601));
        account.refused().await;
        assert!(!account.arrive(1), "what comes after a gap is no message");
        drop(account);
        assert_eq!(budget.0.taken.load(Ordering::Relaxed), 0);
    }
}
