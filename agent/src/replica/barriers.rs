//! Barriers in flight: one per consistency serves all readers that asked before it was sent.

use muster_catalog::port::Consistency;
use tokio::sync::oneshot;

use super::BarrierRequest;

/// The two kinds that travel; a stale read needs none.
const KINDS: [Consistency; 2] = [Consistency::Lease, Consistency::Linearizable];

#[derive(Default)]
pub(super) struct Barriers {
    last_id: u64,
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

    /// The next barrier to send, when readers wait and none of its kind is in flight.
    pub(super) fn next(&mut self) -> Option<(u64, Consistency)> {
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

    /// The barrier failed: its readers wait for the next one as long as their patience lasts.
    pub(super) fn failed(&mut self, id: u64) {
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
        let (id, _) = barriers.next().unwrap();
        let mut second = ask(&mut barriers, Consistency::Lease);
        assert_eq!(barriers.next(), None, "one in flight");
        barriers.reached(id);
        assert!(first.try_recv().is_ok());
        assert!(second.try_recv().is_err());
        let (id, _) = barriers.next().unwrap();
        barriers.reached(id);
        assert!(second.try_recv().is_ok());
    }

    #[test]
    fn a_lost_connection_loses_no_reader_and_a_gone_reader_costs_no_barrier() {
        let mut barriers = Barriers::default();
        let mut reader = ask(&mut barriers, Consistency::Linearizable);
        drop(ask(&mut barriers, Consistency::Lease));
        let (first, consistency) = barriers.next().unwrap();
        assert_eq!(consistency, Consistency::Linearizable);
        assert_eq!(barriers.next(), None);
        barriers.connection_lost();
        let (second, _) = barriers.next().unwrap();
        barriers.reached(first);
        assert!(reader.try_recv().is_err(), "an answer of the lost connection serves nobody");
        barriers.reached(second);
        assert!(reader.try_recv().is_ok());
    }
}
