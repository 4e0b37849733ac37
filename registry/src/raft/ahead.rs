//! Whether the leader has what is committed here.
//!
//! Raft takes it for granted, and openraft does too. Where the disks of a majority went back in time, those members elect
//! a leader without it. What that one sends first is passed over unread, as if it were here, and nobody hears of it; what
//! it sends next would have the log cut. (A debug build of openraft ends by an assertion.) So it is looked at before.

use std::future::Future;
use std::ops::RangeInclusive;
use std::sync::{Arc, Weak};

use openraft::raft::AppendEntriesRequest;
use tokio::sync::watch;
use tonic::Status;

use super::{Entry, EntryPayload, LogId, Types, Vote, wire};
use crate::store::{Engine, Position};

/// This member has committed what its leader lacks: the registry lost entries that it had acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the leader has not the entries up to {committed} that are committed here: disks of members went back in time. This \
     member may be the only one with these entries: keep its folder, and see \"disks that went back in time\" in \
     docs/operations.md"
)]
pub struct Ahead {
    /// The last entry that is known to be committed.
    pub committed: u64,
}

/// Looks at what leaders send before openraft does.
#[derive(Clone)]
pub(crate) struct Guard {
    /// Whoever answers other members must not hold the folder of a log that has stopped.
    engine: Weak<dyn Engine>,
    found: watch::Sender<Option<Ahead>>,
}

impl Guard {
    /// A guard of the log that `engine` keeps.
    pub(crate) fn new(engine: &Arc<dyn Engine>) -> Self {
        Self { engine: Arc::downgrade(engine), found: watch::Sender::new(None) }
    }

    /// What was found, once something was.
    pub(crate) fn found(&self) -> watch::Receiver<Option<Ahead>> {
        self.found.subscribe()
    }

    /// Refuses an append that contradicts what is committed here.
    pub(crate) async fn check(&self, request: &AppendEntriesRequest<Types>) -> Result<(), Status> {
        self.refuse_unless(&request.vote, |committed| async move {
            self.has(request.prev_log_id.as_ref(), committed).await && self.has_all(&request.entries, committed).await
        })
        .await
    }

    /// Refuses a snapshot that ends with another entry than is committed here at its index.
    pub(crate) async fn check_snapshot(&self, vote: &Vote, last: Option<&LogId>) -> Result<(), Status> {
        self.refuse_unless(vote, |committed| self.has(last, committed)).await
    }

    async fn refuse_unless<F: Future<Output = bool>>(
        &self,
        vote: &Vote,
        agrees: impl FnOnce(Position) -> F,
    ) -> Result<(), Status> {
        // What a log that has stopped would say of it matters to nobody.
        let Some(bounds) = self.engine.upgrade().map(|engine| engine.bounds()) else { return Ok(()) };
        let Some(committed) = bounds.committed else { return Ok(()) };
        // A leader of an earlier term is refused by openraft, and may well lack what its successors committed.
        if bounds.vote > Some(wire::ballot(vote)) || agrees(committed).await {
            return Ok(());
        }
        let ahead = Ahead { committed: committed.index };
        self.found.send_replace(Some(ahead));
        Err(Status::failed_precondition(ahead.to_string()))
    }

    /// False where another entry is committed at that place.
    async fn has(&self, at: Option<&LogId>, committed: Position) -> bool {
        let Some(at) = at.map(wire::position).filter(|at| at.index <= committed.index) else { return true };
        if at.index == committed.index {
            return at == committed;
        }
        let own = self.entries(at.index..=at.index).await;
        own.iter().all(|own| wire::position(&own.log_id) == at)
    }

    /// Own entries, as far as they are there: none where they cannot be read, which shows elsewhere. Seldom asked for: a
    /// leader sends what is committed here already only when it does not know how far this member is.
    async fn entries(&self, range: RangeInclusive<u64>) -> Vec<Entry> {
        let Some(engine) = self.engine.upgrade() else { return Vec::new() };
        let range = *range.start()..range.end().saturating_add(1);
        let read = tokio::task::spawn_blocking(move || engine.read(range, usize::MAX)).await;
        let records = read.ok().and_then(Result::ok).unwrap_or_default();
        records.into_iter().filter_map(|record| wire::record_from(record).ok()).collect()
    }

    /// False where one of them is not what is committed at its place. Votes went back too, so that even a term and its
    /// leader may come a second time: payloads are compared.
    async fn has_all(&self, entries: &[Entry], committed: Position) -> bool {
        let sent = entries.iter().take_while(|entry| entry.log_id.index <= committed.index);
        let Some((first, last)) = sent.clone().next().zip(sent.clone().last()) else { return true };
        let own = self.entries(first.log_id.index..=last.log_id.index).await;
        own.iter()
            .all(|own| sent.clone().filter(|sent| sent.log_id.index == own.log_id.index).all(|sent| same(own, sent)))
    }
}

fn same(own: &Entry, sent: &Entry) -> bool {
    let payload = match (&own.payload, &sent.payload) {
        (EntryPayload::Normal(own), EntryPayload::Normal(sent)) => own.0 == sent.0,
        // Builds may differ in what they know of a member.
        (EntryPayload::Membership(_), EntryPayload::Membership(_)) => true,
        (own, sent) => std::mem::discriminant(own) == std::mem::discriminant(sent),
    };
    own.log_id == sent.log_id && payload
}
