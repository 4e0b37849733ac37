//! Reads of the catalog: how current they are, how they block, and the headers that say so.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, HeaderName, HeaderValue, header},
    response::Response,
};
use muster_catalog::{
    Freshness, Name, ServiceLookup, Snapshot, Timestamp, Topic, View, Wide,
    port::{BarrierError, Consistency, WideRead},
};
use rand::Rng;
use serde::Serialize;
use tokio::time::Instant;

use crate::{api::Api, ask::Ask, budget::PATIENCE, error::HttpError, made::Made, wide::Shown};

/// The version of the answer, for the next `?index`.
pub(crate) const INDEX: HeaderName = HeaderName::from_static("x-consul-index");
/// Whether the registry has a leader, as far as this agent hears.
pub(crate) const KNOWN_LEADER: HeaderName = HeaderName::from_static("x-consul-knownleader");
/// How old the answer may be, in milliseconds.
pub(crate) const LAST_CONTACT: HeaderName = HeaderName::from_static("x-consul-lastcontact");
/// What consistency the answer has.
const EFFECTIVE_CONSISTENCY: HeaderName = HeaderName::from_static("x-consul-effective-consistency");
/// How old the answer is, in milliseconds; only there while the registry cannot be reached.
pub(crate) const STALE: HeaderName = HeaderName::from_static("x-muster-stale");

/// The headers of an answer, with those that the router adds.
const MOST_HEADERS: usize = 8;
/// The wait is lengthened by up to this part of it, so that clients that started together do not return together.
const JITTER_PART: u32 = 16;
/// How long a default read waits for an own write to arrive: replication takes milliseconds, so this is an outage.
const WRITE_WAIT: Duration = Duration::from_secs(5);

/// A consistent View to answer from.
pub(crate) struct Reading {
    /// The View.
    pub(crate) view: Arc<View>,
    index: u64,
    consistency: Consistency,
    parked: bool,
    made: Arc<Made>,
    /// Where a member answered it.
    shown: Option<Arc<Shown>>,
}

/// Marks an answer that was waited for: its duration says nothing of the server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parked;

impl Api {
    /// Waits for what the request asks for: the consistency, then a version newer than its `?index`.
    pub(crate) async fn read<F>(&self, ask: &Ask, topic: Topic, index_of: F) -> Result<Reading, HttpError>
    where
        F: Fn(&Snapshot) -> u64,
    {
        let consistency = self.reach(ask).await?;
        let (view, parked) = self.park(ask, topic, &index_of).await;
        if view.freshness == Freshness::Empty {
            let text = "this agent has not heard of the registry yet, so it knows nothing to answer with; see /readyz";
            return Err(HttpError::NoLeader(text.into()));
        }
        // The registry may have gone while the read was parked.
        if parked && consistency != Consistency::Stale && view.freshness != Freshness::Live {
            let lost = || BarrierError::NoLeader("the registry was lost while waiting".into());
            return Err(self.ports.source.refusal().map_or_else(lost, BarrierError::Refused).into());
        }
        let index = index_of(&view.local).max(1);
        Ok(Reading { view, index, consistency, parked, made: self.made.clone(), shown: None })
    }

    /// Like `read`, for the instances of a service, which are fetched when they lie outside the replica's Scope.
    pub(crate) async fn read_service(&self, ask: &Ask, name: &Name) -> Result<Reading, HttpError> {
        let source = &self.ports.source;
        source.used(name);
        self.hold(name).await;
        let mut reading = self.read(ask, Topic::Service(name.clone()), |snapshot| snapshot.service_index(name)).await?;
        // It may have come to be while the read waited, and is then known by name alone.
        if let ServiceLookup::NotHeld(_) = reading.view.local.service(name) {
            self.hold(name).await;
            reading.view = source.view();
            reading.index = reading.view.local.service_index(name).max(1);
        }
        if let ServiceLookup::NotHeld(_) = reading.view.local.service(name) {
            let text = format!("service {name} exists, but its instances have not arrived here yet: ask again");
            return Err(HttpError::NotHeld(text));
        }
        Ok(reading)
    }

    /// Like `read`, for what no Scope but all answers: where the replica holds less, a member is asked.
    pub(crate) async fn read_wide(&self, ask: &Ask, topic: Topic, wide: Wide) -> Result<Reading, HttpError> {
        let source = &self.ports.source;
        if source.view().local.scope().answers(&wide) {
            return self.read(ask, topic, |snapshot| wide.index(snapshot)).await;
        }
        let consistency = match ask.consistency {
            // How old a member's answer is it does not say: one of a bounded age is asked of the leader.
            Consistency::Stale if ask.max_stale.is_some() => Consistency::Lease,
            other => other,
        };
        let parked = ask.index > 0;
        let _parked = parked.then(|| ParkedGauge::new(ask));
        let wait = ask.wait + jitter(ask.wait);
        let read = WideRead { wide: wide.clone(), consistency, after: ask.index, wait };
        let shown = tokio::select! {
            shown = self.flights.read(read) => shown?,
            () = self.shutdown.cancelled() => return Err(HttpError::NoLeader("the agent is stopping".into())),
        };
        let (view, made) = (shown.view.clone(), self.made.clone());
        let index = wide.index(&view.local).max(1);
        Ok(Reading { view, index, consistency, parked, made, shown: Some(shown) })
    }

    async fn hold(&self, name: &Name) {
        if let ServiceLookup::NotHeld(_) = self.ports.source.view().local.service(name) {
            self.ports.source.hold(name).await;
        }
    }

    /// Waits until the View holds what the consistency promises; returns what it came to.
    async fn reach(&self, ask: &Ask) -> Result<Consistency, HttpError> {
        let source = &self.ports.source;
        if ask.consistency == Consistency::Stale {
            let age = source.view().freshness.age(now());
            let fresh_enough = ask.max_stale.is_none_or(|limit| age.is_some_and(|age| age <= limit));
            if fresh_enough {
                return Ok(Consistency::Stale);
            }
        }
        let consistency = match ask.consistency {
            // Older than ?max_stale allows: asked of the leader instead.
            Consistency::Stale => Consistency::Lease,
            other => other,
        };
        source.barrier(consistency).await?;
        self.await_own_write().await?;
        Ok(consistency)
    }

    /// A client that wrote through this agent sees its write in the reads that follow.
    async fn await_own_write(&self) -> Result<(), HttpError> {
        let source = &self.ports.source;
        let Some(index) = self.find_missing_write(&source.view()) else { return Ok(()) };
        let arrived = async {
            loop {
                let waiter = source.subscribe(Topic::Index);
                if self.find_missing_write(&source.view()).is_none() {
                    return;
                }
                waiter.await;
            }
        };
        tokio::time::timeout(WRITE_WAIT, arrived).await.map_err(|_| HttpError::Behind(index))
    }

    /// Waits until the index is beyond the one the client has, or its time is up; says whether it waited.
    async fn park(&self, ask: &Ask, topic: Topic, index_of: &impl Fn(&Snapshot) -> u64) -> (Arc<View>, bool) {
        let source = &self.ports.source;
        let view = source.view();
        if ask.index == 0 || index_of(&view.local).max(1) > ask.index {
            return (view, false);
        }
        let incarnation = view.local.cluster().clone();
        drop(view);
        let _parked = ParkedGauge::new(ask);
        let deadline = tokio::time::sleep_until(Instant::now() + ask.wait + jitter(ask.wait));
        tokio::pin!(deadline);
        // A parked read must not keep an old Snapshot alive.
        let find_newer = || {
            let view = source.view();
            // After a restore indexes start anew: what the client has says nothing any more.
            let newer = index_of(&view.local).max(1) > ask.index || *view.local.cluster() != incarnation;
            newer.then_some(view)
        };
        loop {
            let waiter = source.subscribe(topic.clone());
            if let Some(view) = find_newer() {
                return (view, true);
            }
            tokio::select! {
                () = waiter => {}
                () = &mut deadline => return (source.view(), true),
                () = self.shutdown.cancelled() => return (source.view(), true),
            }
            // Most who are woken have their answer now, and need no other place among the waiters.
            if let Some(view) = find_newer() {
                return (view, true);
            }
        }
    }
}

impl Reading {
    /// The answer as JSON, with the headers that say how current it is.
    pub(crate) async fn answer<T: Serialize>(&self, ask: &Ask, body: impl Fn() -> T) -> Result<Response, HttpError> {
        let text = match &self.shown {
            Some(shown) => {
                let make = || shown.aside(|| to_text(ask, &body()));
                shown.text(&ask.question, |deadline| when_there_is_room(ask, deadline, make)).await?
            }
            None => self.make(ask, body).await?,
        };
        let mut response = json_response(text);
        self.set_headers(response.headers_mut(), now());
        if self.parked {
            response.extensions_mut().insert(Parked);
        }
        Ok(response)
    }

    /// Parked reads of one question that wake together share the body that the first of them makes.
    async fn make<T: Serialize>(&self, ask: &Ask, body: impl Fn() -> T) -> Result<Bytes, HttpError> {
        let make = || {
            if let Some(text) = self.parked.then(|| self.made.find(&self.view, &ask.question)).flatten() {
                return Ok(text);
            }
            let text = to_text(ask, &body())?;
            if self.parked {
                self.made.keep(&self.view, ask.question.clone(), &text);
            }
            Ok(text)
        };
        when_there_is_room(ask, Instant::now() + PATIENCE, make).await
    }

    fn set_headers(&self, headers: &mut HeaderMap, now: Timestamp) {
        let age = self.view.freshness.age(now).unwrap_or(Duration::MAX);
        let milliseconds = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        let live = self.view.freshness == Freshness::Live;
        let consistency = match self.consistency {
            Consistency::Lease => "leader",
            Consistency::Linearizable => "consistent",
            Consistency::Stale => "stale",
        };
        headers.insert(INDEX, HeaderValue::from(self.index));
        headers.insert(KNOWN_LEADER, HeaderValue::from_static(if live { "true" } else { "false" }));
        headers.insert(LAST_CONTACT, HeaderValue::from(milliseconds));
        headers.insert(EFFECTIVE_CONSISTENCY, HeaderValue::from_static(consistency));
        if !live {
            headers.insert(STALE, HeaderValue::from(milliseconds));
        }
    }
}

/// What may be large, as JSON, made once there is room for it.
pub(crate) async fn large_json<T: Serialize>(ask: &Ask, body: impl Fn() -> T) -> Result<Response, HttpError> {
    let make = || to_text(ask, &body());
    Ok(json_response(when_there_is_room(ask, Instant::now() + PATIENCE, make).await?))
}

async fn when_there_is_room(
    ask: &Ask,
    deadline: Instant,
    mut make: impl FnMut() -> Result<Bytes, HttpError>,
) -> Result<Bytes, HttpError> {
    match &ask.answers {
        Some(answers) => answers.make(deadline, make).await,
        None => make(),
    }
}

/// What is small, as JSON for programs, or for people with `?pretty`.
pub(crate) fn json(ask: &Ask, body: &impl Serialize) -> Result<Response, HttpError> {
    Ok(json_response(to_text(ask, body)?))
}

fn to_text(ask: &Ask, body: &impl Serialize) -> Result<Bytes, HttpError> {
    let mut text = Vec::new();
    if ask.pretty {
        let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
        body.serialize(&mut serde_json::Serializer::with_formatter(&mut text, formatter))?;
        text.push(b'\n');
    } else {
        serde_json::to_writer(&mut text, body)?;
    }
    Ok(match &ask.answers {
        Some(answers) => answers.count(text).map_err(HttpError::CrowdedAnswers)?,
        None => text.into(),
    })
}

fn json_response(text: Bytes) -> Response {
    let mut response = Response::new(Body::from(text));
    // At once, instead of growing.
    *response.headers_mut() = HeaderMap::with_capacity(MOST_HEADERS);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The clock, read once per answer: the age of a View is all it is for.
fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

fn jitter(wait: Duration) -> Duration {
    let most = wait / JITTER_PART;
    if most.is_zero() { most } else { rand::rng().random_range(Duration::ZERO..most) }
}

/// Counts a parked read for as long as it lives, also when its client goes away.
struct ParkedGauge;

impl ParkedGauge {
    fn new(ask: &Ask) -> Self {
        metrics::gauge!("muster_http_blocking_waiters").increment(1.0);
        if let Some(mark) = &ask.parked {
            mark.set();
        }
        Self
    }
}

impl Drop for ParkedGauge {
    fn drop(&mut self) {
        metrics::gauge!("muster_http_blocking_waiters").decrement(1.0);
    }
}
