//! Interest-keyed waking: a waiter sleeps on one topic and is not woken for others.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use event_listener::{Event, EventListener};

use crate::Name;

/// What one can wait for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    /// A service: its instances, their checks, the nodes they stand on.
    Service(Name),
    /// Any service.
    AnyService,
    /// A node and all on it.
    Node(Name),
    /// The list of nodes.
    Nodes,
    /// The list of service names and tags.
    Services,
    /// Any check.
    Checks,
    /// The catalog format: writers may say more from then on.
    Format,
    /// The index itself: every entry, blank ones too.
    Index,
}

/// The waiters of one publisher, keyed by topic. An entry lives only while somebody waits on it.
#[derive(Debug, Default)]
pub struct Waiters {
    events: Mutex<HashMap<Topic, Arc<Event>>>,
}

impl Waiters {
    /// Takes a place before the state is read: subscribe, read, then await.
    pub fn subscribe(self: &Arc<Self>, topic: Topic) -> Waiter {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let event = events.entry(topic.clone()).or_default().clone();
        // Under the lock: a wake in between would take the event away, and nobody would ever notify it again.
        let listener = Some(event.listen());
        drop(events);
        Waiter { waiters: self.clone(), topic, event: Some(event), listener }
    }

    /// Wakes those who wait on any of the topics. Call it after the new state is published.
    pub fn wake<'a>(&self, topics: impl IntoIterator<Item = &'a Topic>) {
        let woken: Vec<Arc<Event>> = {
            let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
            if events.is_empty() {
                return;
            }
            topics.into_iter().filter_map(|topic| events.remove(topic)).collect()
        };
        for event in woken {
            event.notify(usize::MAX);
        }
    }

    /// Wakes everybody: a replica was replaced as a whole.
    pub fn wake_all(&self) {
        let events = std::mem::take(&mut *self.events.lock().unwrap_or_else(PoisonError::into_inner));
        for event in events.into_values() {
            event.notify(usize::MAX);
        }
    }

    /// Whether anybody waits on the topic.
    pub fn is_waited_on(&self, topic: &Topic) -> bool {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).contains_key(topic)
    }

    /// How many topics have waiters.
    pub fn topic_count(&self) -> usize {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn forget(&self, topic: &Topic, event: Arc<Event>) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        // Ours, the map's: nobody else waits. Topics come from clients, so empty ones may not stay.
        let last = events.get(topic).is_some_and(|kept| Arc::ptr_eq(kept, &event) && Arc::strong_count(kept) <= 2);
        if last {
            events.remove(topic);
        }
        // Under the lock: of two that leave together, the second has to see that the first is gone.
        drop(event);
    }
}

/// A place among the waiters of a topic: a future that is ready once the topic was touched.
#[derive(Debug)]
pub struct Waiter {
    waiters: Arc<Waiters>,
    topic: Topic,
    event: Option<Arc<Event>>,
    listener: Option<EventListener>,
}

impl Future for Waiter {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(listener) = self.listener.as_mut() else { return Poll::Ready(()) };
        let polled = Pin::new(listener).poll(cx);
        if polled.is_ready() {
            self.listener = None;
        }
        polled
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.listener = None;
        if let Some(event) = self.event.take() {
            self.waiters.forget(&self.topic, event);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn is_ready(waiter: &mut Waiter) -> bool {
        Pin::new(waiter).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn a_waiter_is_woken_by_its_own_topic_alone_and_leaves_nothing_behind() {
        let waiters = Arc::new(Waiters::default());
        let mut web = waiters.subscribe(Topic::Service(Name::lookup("web")));
        let mut other = waiters.subscribe(Topic::Service(Name::lookup("other")));
        assert!(!is_ready(&mut web));
        waiters.wake(&[Topic::Service(Name::lookup("WEB")), Topic::Index]);
        assert!(is_ready(&mut web));
        assert!(!is_ready(&mut other));
        assert_eq!(waiters.topic_count(), 1);
        assert!(waiters.is_waited_on(&Topic::Service(Name::lookup("other"))));
        assert!(!waiters.is_waited_on(&Topic::Service(Name::lookup("web"))));
        drop(other);
        assert_eq!(waiters.topic_count(), 0);
        drop(web);
    }

    #[test]
    fn a_wake_between_subscribe_and_await_is_not_lost() {
        let waiters = Arc::new(Waiters::default());
        let mut waiter = waiters.subscribe(Topic::Index);
        waiters.wake(&[Topic::Index]);
        assert!(is_ready(&mut waiter));
    }

    #[test]
    fn wakes_from_another_thread_lose_no_waiter_and_leave_no_topic() {
        const ROUNDS: usize = 200_000;
        /// Far more than a thread that was interrupted needs; a waiter that was lost is never ready.
        const LOOKS: usize = 10_000_000;
        let waiters = Arc::new(Waiters::default());
        let topic = Topic::Service(Name::lookup("web"));
        let other = std::thread::spawn({
            let (waiters, topic) = (waiters.clone(), topic.clone());
            move || {
                for _ in 0..ROUNDS {
                    waiters.wake([&topic]);
                    drop(waiters.subscribe(topic.clone()));
                }
            }
        });
        for _ in 0..ROUNDS {
            let mut waiter = waiters.subscribe(topic.clone());
            waiters.wake([&topic]);
            // The other thread may hold the event between taking it out and notifying it: soon, not at once.
            let woken = (0..LOOKS).any(|_| {
                is_ready(&mut waiter) || {
                    std::thread::yield_now();
                    false
                }
            });
            assert!(woken, "a wake after the subscription was lost");
            drop(waiters.subscribe(topic.clone()));
        }
        other.join().unwrap();
        assert_eq!(waiters.topic_count(), 0);
    }
}
