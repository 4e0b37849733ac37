//! Writes on their way: what gathers while others are under way goes in one message. With none under way nothing waits.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::connection::Connection;
use crate::proto::registry::write_reply::Outcome;

/// Messages under way at once: while the log works on one the next is filled and sent.
const MAX_SENDERS: usize = 2;
/// So many writes have to wait before a message goes beside another one. Those that come while one is under way would
/// else go in twos and threes, each time at the cost of a whole message and of a flush at every member.
const COMPANY: usize = 32;
/// Writes in one message: a member takes four times as many.
const MAX_WRITES: usize = 256;
/// Bytes of one message, unless a single write has more: far below what a member takes, and short on a slow link.
const MAX_BYTES: usize = 1024 * 1024;
/// Writes that may wait here: as many as an agent has HTTP connections.
const MAX_WAITING: usize = 20_000;

/// What a message brought for one of its writes.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) outcome: Outcome,
    /// Who could not settle it; `None` where it is settled, or nobody was reached.
    pub(super) from: Option<Connection>,
}

/// A write that waits for its turn.
#[derive(Debug)]
pub(super) struct Waiting {
    ticket: u64,
    pub(super) command: Bytes,
    pub(super) answer: oneshot::Sender<Answer>,
}

/// The writes of one client.
#[derive(Debug, Default)]
pub(super) struct Writes {
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    last_ticket: u64,
    senders: usize,
}

/// A place among those who send, free again when it is dropped.
#[derive(Debug)]
pub(super) struct Sender {
    writes: Arc<Writes>,
    resting: bool,
}

impl Queue {
    /// Whether one more sends what waits, beside so many others.
    fn wants_sender(&self, others: usize) -> bool {
        match others {
            0 => !self.waiting.is_empty(),
            _ => others < MAX_SENDERS && self.waiting.len() >= COMPANY,
        }
    }
}

impl Writes {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a write. With it comes a place to send from, when the present senders are too few. `None` when too many
    /// wait already.
    pub(super) fn push(self: &Arc<Self>, command: Bytes) -> Option<(u64, oneshot::Receiver<Answer>, Option<Sender>)> {
        let mut queue = self.lock();
        if queue.waiting.len() >= MAX_WAITING {
            return None;
        }
        let (answer, answered) = oneshot::channel();
        queue.last_ticket += 1;
        let ticket = queue.last_ticket;
        queue.waiting.push_back(Waiting { ticket, command, answer });
        let more = queue.wants_sender(queue.senders);
        queue.senders += usize::from(more);
        drop(queue);
        Some((ticket, answered, more.then(|| Sender { writes: self.clone(), resting: false })))
    }

    /// Takes a write back, unless it is under way: then it may be proposed.
    pub(super) fn withdraw(&self, ticket: u64) -> bool {
        let mut queue = self.lock();
        let at = queue.waiting.iter().position(|waiting| waiting.ticket == ticket);
        at.is_some_and(|at| queue.waiting.remove(at).is_some())
    }
}

impl Sender {
    /// The next message's writes, oldest first; none when all are under way. Those whose callers are gone are left out.
    pub(super) fn take(&self) -> Vec<Waiting> {
        let mut queue = self.writes.lock();
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while let Some(next) = queue.waiting.front() {
            bytes += next.command.len();
            if taken.len() == MAX_WRITES || (bytes > MAX_BYTES && !taken.is_empty()) {
                break;
            }
            taken.extend(queue.waiting.pop_front().filter(|next| !next.answer.is_closed()));
        }
        taken
    }

    /// Gives the place up when there is nothing to send, and says so. A write that comes later finds it free; what waits
    /// for company is sent by the other sender at the latest.
    pub(super) fn rest(&mut self) -> bool {
        // Under one lock: a write that is queued between the look and the end would wait for nobody.
        let mut queue = self.writes.lock();
        self.resting = !queue.wants_sender(queue.senders - 1);
        queue.senders -= usize::from(self.resting);
        self.resting
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        if !self.resting {
            self.writes.lock().senders -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(size: usize) -> Bytes {
        vec![0; size].into()
    }

    #[test]
    fn what_waits_goes_together_in_order_and_within_bounds() {
        let writes = Arc::new(Writes::default());
        let (_, _first, sender) = writes.push(write(1)).unwrap();
        let sender = sender.expect("the first write brings a sender");
        let answers: Vec<_> = (2..400).map(|size| writes.push(write(size)).unwrap().1).collect();
        let sizes = |taken: &[Waiting]| taken.iter().map(|waiting| waiting.command.len()).collect::<Vec<_>>();
        assert_eq!(sizes(&sender.take()), (1..=MAX_WRITES).collect::<Vec<_>>());
        drop(answers);
        assert!(sender.take().is_empty(), "nobody waits for the rest");
        let _large: Vec<_> = [MAX_BYTES + 1, 1, MAX_BYTES].map(|size| writes.push(write(size)).unwrap().1).into();
        assert_eq!(sizes(&sender.take()), [MAX_BYTES + 1], "one that is too large for company goes alone");
        assert_eq!(sizes(&sender.take()), [1]);
        assert_eq!(sizes(&sender.take()), [MAX_BYTES]);
    }

    #[test]
    fn a_write_is_taken_back_before_it_is_sent_and_not_after() {
        let writes = Arc::new(Writes::default());
        let (first, _first, sender) = writes.push(write(1)).unwrap();
        let (second, _second, _) = writes.push(write(2)).unwrap();
        assert!(writes.withdraw(second));
        assert_eq!(sender.unwrap().take().len(), 1);
        assert!(!writes.withdraw(first), "it is under way");
    }

    #[test]
    fn there_is_a_sender_whenever_a_write_waits_and_two_when_many_do() {
        let writes = Arc::new(Writes::default());
        let (_, _first, sender) = writes.push(write(1)).unwrap();
        let mut first = sender.unwrap();
        first.take();
        let waiting: Vec<_> = (1..COMPANY).map(|_| writes.push(write(1)).unwrap()).collect();
        assert!(waiting.iter().all(|(_, _, sender)| sender.is_none()), "too few for a message beside the first");
        let mut second = writes.push(write(1)).unwrap().2.expect("enough for one");
        assert_eq!(second.take().len(), waiting.len(), "the last one's caller is gone");
        let (_, _alone, sender) = writes.push(write(1)).unwrap();
        assert!(sender.is_none());
        assert!(second.rest(), "the other one takes it along");
        assert!(!first.rest(), "nobody else would");
        first.take();
        assert!(first.rest());
        // One that rests, and one that ended at work, are replaced.
        let (_, _next, sender) = writes.push(write(1)).unwrap();
        drop(sender.unwrap());
        assert!(writes.push(write(1)).unwrap().2.is_some());
    }

    #[test]
    fn one_too_many_is_turned_away() {
        let writes = Arc::new(Writes::default());
        let _waiting: Vec<_> = (0..MAX_WAITING).map(|_| writes.push(write(0)).unwrap()).collect();
        assert!(writes.push(write(0)).is_none());
    }
}
