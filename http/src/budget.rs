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
use tokio::{sync::Notify, time::Instant};

use crate::error::HttpError;

/// Large answers that were made and not yet taken by the sockets, in bytes: some fifteen of the largest that a busy
/// registry has (a few megabytes each).
const LARGE_ANSWERS: usize = 48 * 1024 * 1024;
/// The same of small ones: they have room of their own, so that clients that ask for much and read nothing hold up nobody
/// who asks for little, or says how a check is.
const SMALL_ANSWERS: usize = 16 * 1024 * 1024;
/// What is larger is large: this is some twenty instances, and less than most sockets take at once.
const SMALL: usize = 64 * 1024;
/// Bodies that are being received, in bytes: 64 of the largest.
pub(crate) const BODY_BYTES: usize = 32 * 1024 * 1024;
/// What is smaller is not counted: it is no larger than what a connection needs anyway.
pub(crate) const UNCOUNTED: usize = 4 * 1024;
/// How long a request waits for room. Those who hold it read on or are cut off in that time.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The room for answers.
#[derive(Debug)]
pub(crate) struct Answers {
    small: Arc<Budget>,
    large: Arc<Budget>,
}

/// There is no room for an answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NoRoom {
    /// How large it would have been.
    pub(crate) bytes: usize,
}

impl Answers {
    /// Nothing under way.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { small: Budget::new(SMALL_ANSWERS), large: Budget::new(LARGE_ANSWERS) })
    }

    /// The text as bytes that are counted until the last reference to them goes, where there is room.
    pub(crate) fn count(&self, text: Vec<u8>) -> Result<Bytes, NoRoom> {
        let (bytes, budget) = (text.len(), self.budget(text.len()));
        if bytes <= UNCOUNTED {
            return Ok(text.into());
        }
        if !budget.has_room_now() {
            return Err(NoRoom { bytes });
        }
        let mut held = budget.hold();
        held.grow(bytes);
        Ok(held.own(text))
    }

    /// Makes an answer, and again once there is room for it. How large it is shows only when it is made; to wait with it
    /// in hand would cost what the limit is to save.
    pub(crate) async fn make(
        &self,
        deadline: Instant,
        mut make: impl FnMut() -> Result<Bytes, HttpError>,
    ) -> Result<Bytes, HttpError> {
        loop {
            match make() {
                Err(HttpError::CrowdedAnswers(NoRoom { bytes })) if self.budget(bytes).has_room(deadline).await => {}
                other => return other,
            }
        }
    }

    fn budget(&self, bytes: usize) -> &Arc<Budget> {
        if bytes <= SMALL { &self.small } else { &self.large }
    }
}

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

    /// Waits until there is room; false when there is none until then.
    pub(crate) async fn has_room(&self, deadline: Instant) -> bool {
        if self.has_room_now() {
            return true;
        }
        let room = async {
            loop {
                let freed = self.freed.notified();
                tokio::pin!(freed);
                freed.as_mut().enable();
                if self.has_room_now() {
                    return;
                }
                freed.await;
            }
        };
        tokio::time::timeout_at(deadline, room).await.is_ok()
    }

    fn has_room_now(&self) -> bool {
        self.held.load(Ordering::Relaxed) < self.limit
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
        let (mut large, mut held) = (budget.hold(), budget.hold());
        large.grow(9_999);
        let large = large.own(vec![0; 9_999]);
        assert!(budget.has_room(Instant::now() + PATIENCE).now_or_never().unwrap(), "below the limit");
        held.grow(1);
        let again = large.clone();
        drop(large);
        let mut waiting = Box::pin(budget.has_room(Instant::now() + PATIENCE));
        assert!(waiting.as_mut().now_or_never().is_none(), "full, and still referred to");
        drop(again);
        assert!(waiting.await && budget.held.load(Ordering::Relaxed) == 1);
        held.grow(10_000);
        assert!(!budget.has_room(Instant::now() + PATIENCE).await, "nobody waits for ever");
    }

    #[tokio::test(start_paused = true)]
    async fn large_answers_hold_up_no_small_ones() {
        let answers = Answers::new();
        let large = answers.count(vec![0; LARGE_ANSWERS]).unwrap();
        let make = || answers.count(vec![0; SMALL + 1]).map_err(HttpError::CrowdedAnswers);
        let refused = answers.make(Instant::now() + PATIENCE, make).await;
        assert!(matches!(refused, Err(HttpError::CrowdedAnswers(_))), "nobody waits for ever");
        let mut small = Vec::new();
        while let Ok(one) = answers.count(vec![0; SMALL]) {
            small.push(one);
        }
        assert_eq!(small.len(), SMALL_ANSWERS / SMALL, "they are bounded too");
        assert_eq!(answers.count(vec![0; UNCOUNTED]).unwrap().len(), UNCOUNTED, "the smallest are always made");
        let mut waiting = Box::pin(answers.make(Instant::now() + PATIENCE, make));
        assert!(waiting.as_mut().now_or_never().is_none(), "full");
        drop(large);
        assert_eq!(waiting.await.unwrap().len(), SMALL + 1);
    }
}
