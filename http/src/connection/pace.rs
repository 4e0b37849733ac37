//! How slowly a client may take an answer.

use std::{
    future::{Future as _, poll_fn},
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep};

/// After the first moments an answer goes at least this fast, in bytes per second: half of what a modem line of the
/// 1990s carried. What trickles holds its answer as long as what stands still.
const SLOWEST: u32 = 4 * 1024;

/// One answer on its way.
#[derive(Debug)]
pub(super) struct Pace {
    /// How long the socket may take nothing.
    stall: Duration,
    started: Instant,
    moved: Instant,
    written: usize,
    /// Made when the socket does not take all at once.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    pub(super) fn new(stall: Duration) -> Self {
        let now = Instant::now();
        Self { stall, started: now, moved: now, written: 0, timer: None }
    }

    /// The socket took so many bytes.
    pub(super) fn moved(&mut self, bytes: usize) {
        self.written += bytes;
        self.moved = Instant::now();
    }

    fn deadline(&self) -> Instant {
        let due = Duration::from_secs_f64(self.written as f64 / f64::from(SLOWEST));
        (self.moved + self.stall).min(self.started + self.stall + due)
    }

    /// Ready once the client is too slow.
    pub(super) fn poll_too_slow(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let deadline = self.deadline();
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        timer.as_mut().reset(deadline);
        timer.as_mut().poll(cx).map(|()| {
            let text = format!("the client took {} bytes of its answer and then too few", self.written);
            io::Error::new(io::ErrorKind::TimedOut, text)
        })
    }

    /// Comes back once the client is too slow.
    pub(super) async fn too_slow(&mut self) -> io::Error {
        poll_fn(|cx| self.poll_too_slow(cx)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_stands_still_and_what_trickles_is_too_slow() {
        let (stall, second) = (Duration::from_secs(20), Duration::from_secs(1));
        let started = Instant::now();
        let mut still = Pace::new(stall);
        still.moved(1024 * 1024);
        still.too_slow().await;
        assert_eq!(started.elapsed().as_secs(), 20);

        let (started, mut trickle) = (Instant::now(), Pace::new(stall));
        while tokio::time::timeout(second, trickle.too_slow()).await.is_err() {
            trickle.moved(SLOWEST as usize / 2);
        }
        assert!((38..=41).contains(&started.elapsed().as_secs()), "{:?}", started.elapsed());

        let mut steady = Pace::new(stall);
        for _ in 0..1000 {
            assert!(tokio::time::timeout(second, steady.too_slow()).await.is_err());
            steady.moved(SLOWEST as usize);
        }
    }
}
