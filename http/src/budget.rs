//! How many bytes of answers, or of bodies, connections may hold together. A client that asks for much and reads
//! nothing, or that begins many bodies and ends none, costs no more than that.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::Notify;

/// Answers that were made and not yet taken by the sockets, in bytes: some twenty of the largest that a busy registry
/// has (a few megabytes each).
pub(crate) const ANSWER_BYTES: usize = 64 * 1024 * 1024;
/// Bodies that are being received, in bytes: 64 of the largest.
pub(crate) const BODY_BYTES: usize = 32 * 1024 * 1024;
/// What is smaller is not counted: it is no larger than what a connection needs anyway.
pub(crate) const UNCOUNTED: usize = 4 * 1024;
/// How long a request waits for room. Those who hold it read on or are cut off in that time.
const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes that are held, and those who wait until it is less.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: usize,
    held: AtomicUsize,
    freed: Notify,
}

impl Budget {
    /// So many bytes. The last one that is let in may go beyond it: how large an answer is shows once it is made.
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, held: AtomicUsize::new(0), freed: Notify::new() })
    }

    /// Waits until there is room; false when there is none for long.
    pub(crate) async fn has_room(&self) -> bool {
        if self.held.load(Ordering::Relaxed) < self.limit {
            return true;
        }
        let room = async {
            loop {
                let freed = self.freed.notified();
                tokio::pin!(freed);
                freed.as_mut().enable();
                if self.held.load(Ordering::Relaxed) < self.limit {
                    return;
                }
                freed.await;
            }
        };
        tokio::time::timeout(PATIENCE, room).await.is_ok()
    }

    /// The text as bytes that are counted until the last reference to them goes.
    pub(crate) fn count(self: &Arc<Self>, text: Vec<u8>) -> Bytes {
        if text.len() <= UNCOUNTED {
            return text.into();
        }
        let mut held = self.hold();
        held.grow(text.len());
        held.own(text)
    }

    /// Nothing yet, to be grown.
    pub(crate) fn hold(self: &Arc<Self>) -> Held {
        Held { budget: self.clone(), bytes: 0 }
    }
}

/// Bytes that are counted for as long as this lives.
#[derive(Debug)]
pub(crate) struct Held {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Held {
    /// Counts so many more.
    pub(crate) fn grow(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.budget.held.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The text as bytes that stay counted until the last reference to them goes.
    pub(crate) fn own(self, text: Vec<u8>) -> Bytes {
        Bytes::from_owner(Owned { text, _held: self })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.budget.held.fetch_sub(self.bytes, Ordering::Relaxed);
            self.budget.freed.notify_waiters();
        }
    }
}

struct Owned {
    text: Vec<u8>,
    _held: Held,
}

impl AsRef<[u8]> for Owned {
    fn as_ref(&self) -> &[u8] {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_comes_when_it_is_full_waits_until_the_last_reference_goes() {
        let budget = Budget::new(10_000);
        let small = budget.count(vec![0; UNCOUNTED]);
        let (large, mut held) = (budget.count(vec![0; 9_999]), budget.hold());
        assert!(budget.has_room().now_or_never().unwrap(), "below the limit");
        held.grow(1);
        let again = large.clone();
        drop(large);
        let mut waiting = Box::pin(budget.has_room());
        assert!(waiting.as_mut().now_or_never().is_none(), "full, and still referred to");
        drop(again);
        assert!(waiting.await && budget.held.load(Ordering::Relaxed) == 1 && small.len() == UNCOUNTED);
        held.grow(10_000);
        assert!(!budget.has_room().await, "nobody waits for ever");
    }
}
