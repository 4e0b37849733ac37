//! What every handler shares: the ports, the datacenter, and the last write made through here.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    body::{Bytes, HttpBody as _},
    extract::{FromRequest, Request},
};
use http_body_util::BodyExt as _;
use muster_catalog::{Command, View};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    budget::{Answers, BODY_BYTES, Budget, PATIENCE, UNCOUNTED},
    error::HttpError,
    made::Made,
    server::Ports,
    wide::Flights,
};

/// What every handler shares.
pub(crate) struct Api {
    pub(crate) ports: Ports,
    pub(crate) datacenter: String,
    pub(crate) limits: Limits,
    /// Ends parked reads, so that a stop does not wait for them.
    pub(crate) shutdown: CancellationToken,
    /// Answers made once for all parked reads that ask the same.
    pub(crate) made: Arc<Made>,
    /// Reads that members answer.
    pub(crate) flights: Flights,
    /// Answers on their way.
    pub(crate) answers: Arc<Answers>,
    /// Bodies on their way.
    bodies: Arc<Budget>,
    written: Mutex<WrittenIndex>,
}

/// What a body may cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) max_body: usize,
    pub(crate) body_timeout: Duration,
}

/// The newest index that a write through this agent got: its later default reads are not older.
#[derive(Debug, Clone, Copy, Default)]
struct WrittenIndex {
    /// Indexes start anew in another incarnation; an old one must not be waited for then.
    incarnation: u64,
    index: u64,
}

impl Api {
    pub(crate) fn new(ports: Ports, datacenter: String, limits: Limits, shutdown: CancellationToken) -> Self {
        let (answers, bodies) = (Answers::new(), Budget::new(BODY_BYTES));
        let (made, flights) = (Arc::default(), Flights::new(ports.source.clone()));
        Self { ports, datacenter, limits, shutdown, made, flights, answers, bodies, written: Mutex::default() }
    }

    /// Refuses another datacenter than ours; none, or an empty one, is ours.
    pub(crate) fn check_datacenter(&self, asked: Option<&str>) -> Result<(), HttpError> {
        match asked {
            None | Some("") => Ok(()),
            Some(asked) if asked.eq_ignore_ascii_case(&self.datacenter) => Ok(()),
            Some(asked) => Err(HttpError::NoPath { asked: asked.to_owned(), own: self.datacenter.clone() }),
        }
    }

    /// Submits a write and keeps its index for the reads that follow.
    pub(crate) async fn write(&self, command: Command) -> Result<(), HttpError> {
        let incarnation = self.ports.source.view().local.cluster().incarnation;
        let written = self.ports.sink.submit(command).await?;
        let mut last = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if last.incarnation == incarnation {
            last.index = last.index.max(written.index);
        } else {
            *last = WrittenIndex { incarnation, index: written.index };
        }
        Ok(())
    }

    /// The index of an own write that this View does not hold yet.
    pub(crate) fn find_missing_write(&self, view: &View) -> Option<u64> {
        let last = *self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let same = view.local.cluster().incarnation == last.incarnation;
        (same && view.local.index() < last.index).then_some(last.index)
    }
}

/// A body, bounded in size and time.
pub(crate) struct Body(pub(crate) Bytes);

impl FromRequest<Arc<Api>> for Body {
    type Rejection = HttpError;

    async fn from_request(request: Request, api: &Arc<Api>) -> Result<Self, HttpError> {
        let Limits { max_body, body_timeout } = api.limits;
        let body = request.into_body();
        if body.size_hint().lower() > max_body as u64 {
            return Err(HttpError::TooLarge { limit: max_body });
        }
        let read = tokio::time::timeout(body_timeout, receive(body, max_body, &api.bodies)).await;
        read.unwrap_or(Err(HttpError::Slow(body_timeout.as_secs()))).map(Self)
    }
}

/// Reads a body, whose bytes are counted as they come.
async fn receive(mut body: axum::body::Body, max_body: usize, bodies: &Arc<Budget>) -> Result<Bytes, HttpError> {
    let (mut text, mut held) = (Vec::new(), bodies.hold());
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| HttpError::BadRequest(format!("Request body broke off: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if text.len() + data.len() > max_body {
            return Err(HttpError::TooLarge { limit: max_body });
        }
        // The first bytes come in always, so that small writes go on while others fill the room.
        if text.len() + data.len() > UNCOUNTED {
            if !bodies.has_room(Instant::now() + PATIENCE).await {
                return Err(HttpError::CrowdedBodies);
            }
            held.grow(data.len());
        }
        text.extend_from_slice(&data);
    }
    Ok(held.own(text))
}
