//! Reads that a member answers, made once for many: who asks the same shares the read, its View and its JSON.
//!
//! None gets an answer that is older than its consistency promises. A member looks how current it is once, when it is
//! asked. So a read that does not wait joins only one that was not sent yet: there is one under way and one that follows.
//! Who waits for news joins one that waits, and where that one's answer turns out older than what was committed when it
//! joined, asks once more.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::body::Bytes;
use futures_util::{
    FutureExt as _,
    future::{Shared, WeakShared},
};
use muster_catalog::{
    ClusterId, View, Wide,
    port::{BoxFuture, Consistency, Source, WideAnswer, WideError, WideRead},
};
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::Semaphore,
    time::{Instant, timeout_at},
};

use crate::{budget::PATIENCE, error::HttpError, made::Question};

/// An answer and the JSON made of it. It goes with the last who makes JSON of it.
pub(crate) struct Shown {
    pub(crate) view: Arc<View>,
    /// The last JSON alone: others that wait for room must not wait for what is kept here.
    text: tokio::sync::Mutex<Option<(Question, Bytes)>>,
    _held: Box<dyn Send + Sync>,
}

type Answered = Result<Arc<Shown>, WideError>;
type Flight = Shared<BoxFuture<'static, Answered>>;

/// What is asked, how current, and after which index.
type Key = (Wide, Consistency, u64);

/// The reads of one kind.
struct Lane {
    /// Whose request is sent next, of those that are one at a time.
    turn: Arc<Semaphore>,
    /// The one that was begun last.
    flight: WeakShared<BoxFuture<'static, Answered>>,
    /// Whether it is too late to join that one.
    closed: Arc<AtomicBool>,
    /// When it ends if nothing happens.
    ends: Instant,
}

/// A place in a flight.
struct Place {
    flight: Flight,
    joined: bool,
    ends: Instant,
}

/// The reads under way. They are driven by those who wait for them, and end with the last.
pub(crate) struct Flights {
    source: Arc<dyn Source>,
    lanes: Mutex<HashMap<Key, Lane>>,
}

impl Flights {
    pub(crate) fn new(source: Arc<dyn Source>) -> Self {
        Self { source, lanes: Mutex::default() }
    }

    /// The answer to a read.
    pub(crate) async fn read(&self, read: WideRead) -> Answered {
        if read.after == 0 {
            return self.board(&read).flight.await;
        }
        let deadline = Instant::now() + read.wait;
        let mut place = self.board(&read);
        if !place.joined {
            return place.flight.await;
        }
        let newest = self.newest(read.consistency).await;
        // When its time is up it gets what is there then.
        while let Ok(answered) = timeout_at(deadline, place.flight).await {
            let shown = answered?;
            let local = &shown.view.local;
            // One that ended early had a reason, as after a restore.
            let news = read.wide.index(local).max(1) > read.after || Instant::now() < place.ends;
            let is_new_enough = || match &newest {
                _ if read.consistency == Consistency::Stale => true,
                Some((cluster, index)) => local.cluster() == cluster && local.index() >= *index,
                None => false,
            };
            if news && is_new_enough() {
                return Ok(shown);
            }
            if news {
                break;
            }
            drop(shown);
            place = self.board(&WideRead { wait: deadline.saturating_duration_since(Instant::now()), ..read.clone() });
        }
        self.board(&WideRead { after: 0, ..read }).flight.await
    }

    /// Up to where the registry had committed when asked, as far as this consistency goes.
    async fn newest(&self, consistency: Consistency) -> Option<(ClusterId, u64)> {
        self.source.barrier(consistency).await.ok()?;
        let view = self.source.view();
        Some((view.local.cluster().clone(), view.local.index()))
    }

    fn board(&self, read: &WideRead) -> Place {
        let key = (read.wide.clone(), read.consistency, read.after);
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        lanes.retain(|_, lane| Arc::strong_count(&lane.turn) > 1);
        let lane = lanes.get(&key);
        if let Some(lane) = lane.filter(|lane| !lane.closed.load(Ordering::SeqCst))
            && let Some(flight) = lane.flight.upgrade()
        {
            return Place { flight, joined: true, ends: lane.ends };
        }
        let turn = lane.map_or_else(|| Arc::new(Semaphore::new(1)), |lane| lane.turn.clone());
        let (closed, ends) = (Arc::new(AtomicBool::new(false)), Instant::now() + read.wait);
        let flight = fly(self.source.clone(), read.clone(), turn.clone(), closed.clone()).boxed().shared();
        if let Some(weak) = flight.downgrade() {
            lanes.insert(key, Lane { turn, flight: weak, closed, ends });
        }
        Place { flight, joined: false, ends }
    }
}

async fn fly(source: Arc<dyn Source>, read: WideRead, turn: Arc<Semaphore>, closed: Arc<AtomicBool>) -> Answered {
    let one_at_a_time = read.after == 0 && read.consistency != Consistency::Stale;
    let _turn = if one_at_a_time { turn.acquire().await.ok() } else { None };
    if one_at_a_time {
        // Before it is sent: who comes from now on may have seen what it does not show.
        closed.store(true, Ordering::SeqCst);
    }
    let answered = source.read_wide(read).await;
    closed.store(true, Ordering::SeqCst);
    let WideAnswer { view, held } = answered?;
    Ok(Arc::new(Shown { view, text: tokio::sync::Mutex::default(), _held: held }))
}

impl Shown {
    /// The JSON that answers a question, made by the first who has it. `make` has until the deadline to find room.
    pub(crate) async fn text<F>(&self, question: &Question, make: impl FnOnce(Instant) -> F) -> Result<Bytes, HttpError>
    where
        F: Future<Output = Result<Bytes, HttpError>>,
    {
        let deadline = Instant::now() + PATIENCE;
        let Ok(mut kept) = timeout_at(deadline, self.text.lock()).await else {
            let text = "too many bytes of answers are under way to other clients: try again";
            return Err(HttpError::NotHeld(text.into()));
        };
        if let Some((_, text)) = kept.as_ref().filter(|(asked, _)| asked == question) {
            return Ok(text.clone());
        }
        *kept = None;
        let text = make(deadline).await?;
        *kept = Some((question.clone(), text.clone()));
        Ok(text)
    }

    /// Makes JSON aside from the tasks of this thread, which are taken up by another, where it may be much.
    pub(crate) fn aside<T>(&self, make: impl FnOnce() -> T) -> T {
        match Handle::current().runtime_flavor() {
            RuntimeFlavor::MultiThread if self.view.local.node_count() > 1 => tokio::task::block_in_place(make),
            _ => make(),
        }
    }
}
