//! Barriers in flight: one per consistency serves all readers that asked before it was sent.

use std::{future::pending, time::Duration};

use muster_catalog::port::Consistency;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until},
};

use super::BarrierRequest;

/// The two kinds that travel; a stale read needs none.
const KINDS: [Consistency; 2] = [Consistency::Lease, Consistency::Linearizable];

/// The pause before a failed barrier is sent again: elections take some hundred milliseconds.
const RETRY: Duration = Duration::from_millis(50);

#[derive(Default)]
pub(super) struct Barriers {
    last_id: u64,
    /// No barrier is sent before: a moment, not a pause, so that readers who keep coming do not put it off.
    rests_until: Option<Instant>,
    kinds: [Kind; 2],
}

#[derive(Default)]
struct Kind {
    queued: Vec<oneshot::Sender<()>>,
    in_flight: Option<(u64, Vec<oneshot::Sender<()>>)>,
}

impl Barriers {
    /// Takes a reader that must be served by a barrier sent from now on.
    pub(super) fn queue(&mut self, request: BarrierRequest) {
        let kind = usize::from(request.consistency == Consistency::Linearizable);
        self.kinds[kind].queued.push(request.answer);
    }

    /// The next barrier to send, when readers wait, none of its kind is in flight, and none failed just now.
    pub(super) fn next(&mut self, now: Instant) -> Option<(u64, Consistency)> {
        if self.rests_until.is_some_and(|until| now < until) {
            return None;
        }
        self.rests_until = None;
        for (kind, consistency) in self.kinds.iter_mut().zip(KINDS) {
            kind.queued.retain(|answer| !answer.is_closed());
            if kind.in_flight.is_none() && !kind.queued.is_empty() {
                self.last_id += 1;
                kind.in_flight = Some((self.last_id, std::mem::take(&mut kind.queued)));
                return Some((self.last_id, consistency));
            }
        }
        None
    }

    /// The barrier came back behind all earlier Changes, which are published.
    pub(super) fn reached(&mut self, id: u64) {
        for kind in &mut self.kinds {
            if let Some((_, readers)) = kind.in_flight.take_if(|(sent, _)| *sent == id) {
                for reader in readers {
                    // A reader that has gone has its answer already.
                    let _ = reader.send(());
                }
            }
        }
    }

    /// Returns when barriers are sent again after one failed.
    pub(super) async fn rested(&self) {
        match self.rests_until {
            Some(until) => sleep_until(until).await,
            None => pending().await,
        }
    }

    /// The barrier failed: its readers wait for the next one as long as their patience lasts.
    pub(super) fn failed(&mut self, id: u64, now: Instant) {
        self.rests_until = Some(now + RETRY);
        for kind in &mut self.kinds {
            if let Some((_, readers)) = kind.in_flight.take_if(|(sent, _)| *sent == id) {
                kind.queued.extend(readers);
            }
        }
    }

    /// What was in flight is lost with the connection.
    pub(super) fn connection_lost(&mut self) {
        for kind in &mut self.kinds {
            if let Some((_, readers)) = kind.in_flight.take() {
                kind.queued.extend(readers);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(barriers: &mut Barriers, consistency: Consistency) -> oneshot::Receiver<()> {
        let (answer, reached) = oneshot::channel();
        barriers.queue(BarrierRequest { consistency, answer });
        reached
    }

    #[test]
    fn a_reader_is_served_only_by_a_barrier_sent_after_it_asked() {
        let mut barriers = Barriers::default();
        let mut first = ask(&mut barriers, Consistency::Lease);
        let (id, _) = barriers.next(Instant::now()).unwrap();
        let mut second = ask(&mut barriers, Consistency::Lease);
        assert_eq!(barriers.next(Instant::now()), None, "one in flight");
        barriers.reached(id);
        assert!(first.try_recv().is_ok());
        assert!(second.try_recv().is_err());
        let (id, _) = barriers.next(Instant::now()).unwrap();
        barriers.reached(id);
        assert!(second.try_recv().is_ok());
    }

    #[test]
    fn a_lost_connection_loses_no_reader_and_a_gone_reader_costs_no_barrier() {
        let mut barriers = Barriers::default();
        let mut reader = ask(&mut barriers, Consistency::Linearizable);
        drop(ask(&mut barriers, Consistency::Lease));
        let (first, consistency) = barriers.next(Instant::now()).unwrap();
        assert_eq!(consistency, Consistency::Linearizable);
        assert_eq!(barriers.next(Instant::now()), None);
        barriers.connection_lost();
        let (second, _) = barriers.next(Instant::now()).unwrap();
        barriers.reached(first);
        assert!(reader.try_recv().is_err(), "an answer of the lost connection serves nobody");
        barriers.reached(second);
        assert!(reader.try_recv().is_ok());
    }

    #[test]
    fn a_failed_barrier_is_sent_again_however_many_readers_come_meanwhile() {
        let mut barriers = Barriers::default();
        let begun = Instant::now();
        let mut first = ask(&mut barriers, Consistency::Lease);
        let (id, _) = barriers.next(begun).unwrap();
        barriers.failed(id, begun);
        let mut sent = None;
        for step in 0..=10 {
            drop(ask(&mut barriers, Consistency::Lease));
            let later = begun + RETRY / 10 * step;
            sent = sent.or(barriers.next(later).map(|(id, _)| (id, step)));
        }
        let (id, step) = sent.expect("it was sent again");
        assert_eq!(step, 10, "after the pause");
        barriers.reached(id);
        assert!(first.try_recv().is_ok());
    }
}
