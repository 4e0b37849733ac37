//! Watching: the catalog's own types in and out, protobuf stops here.

use std::{collections::VecDeque, pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, stream};
use muster_catalog::{ClusterId, Entry, FORMAT, Name, Scope, SnapshotRow, Splice, Timestamp, port::Consistency};
use prost::Message;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use super::{
    CallError, Client, ConnectError,
    connection::{Connection, Connections},
};
use crate::{
    convert::{ConvertError, KNOWN_CHANGES, KNOWN_EVENTS, timestamp},
    proto::{
        catalog as pb_catalog,
        registry::{self as pb, watch_event::Kind, watch_request::Kind as Asked},
    },
};

/// A member says something at least twice a second; one that is silent for so long is gone.
const SILENCE: Duration = Duration::from_secs(3);
/// Barriers and Scope changes on their way.
const ASKING: usize = 1024;

/// What a watcher wants and has.
#[derive(Debug, Clone)]
pub struct Hello {
    /// What to stream.
    pub scope: Scope,
    /// What it holds already, all of the same Scope.
    pub resume: Option<(ClusterId, u64)>,
    /// Its node and the incarnation of its agent: suspected when the stream breaks.
    pub watcher: Option<(Name, u64)>,
    /// Take whatever registry answers (development only).
    pub accept_new_cluster: bool,
}

/// What a member streams.
#[derive(Debug, Clone, PartialEq)]
pub enum WatchEvent {
    /// First, and once.
    Hello {
        /// The registry.
        cluster: ClusterId,
        /// Whether entries follow what the watcher holds; rows come otherwise.
        resumed: bool,
        /// Whether changes of Scope are spliced in; a member that cannot sends all rows anew.
        splices: bool,
    },
    /// A row. One with the header starts a load anew, at any time: the watcher was too slow, or the registry restored.
    Row(SnapshotRow),
    /// The rows are complete.
    Loaded {
        /// Up to this index.
        index: u64,
        /// Sets that have not moved after this index did not come: the watcher has them. `None` when all came.
        sets_after: Option<u64>,
    },
    /// Services join or leave the Scope, as was asked.
    Splice(Splice),
    /// What happened. Of entries that touch no service which the watcher holds, several may come as one.
    Entry(Entry),
    /// Nothing that concerns this watcher happened up to this index; at least once a second.
    Advance {
        /// The index.
        index: u64,
        /// The time of the last entry that the member applied.
        at: Timestamp,
    },
    /// All that was committed before the barrier was asked for has been streamed.
    Barrier {
        /// As it was asked.
        id: u64,
        /// The index, or why there is none.
        result: Result<u64, String>,
    },
}

/// Why a watch ended, or did not begin.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WatchError {
    /// Watch again: the next one goes to another member.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Another registry than the one resumed from; an operator has to look.
    #[error("{0}")]
    OtherRegistry(String),
    /// The registry has less than what was resumed from, in the same incarnation: it lost entries that it had acknowledged.
    /// An operator has to look. What was resumed from is of no use, also once the registry has come as far again.
    #[error("{0}")]
    Lost(String),
    /// The member said what this build does not understand.
    #[error("the registry sent what this build cannot read: {0}")]
    Convert(#[from] ConvertError),
    /// Too much was asked at once.
    #[error("{ASKING} questions wait on this watch")]
    Busy,
    /// The stream has ended.
    #[error("the watch has ended")]
    Ended,
}

impl From<ConnectError> for WatchError {
    fn from(error: ConnectError) -> Self {
        Self::Call(error.into())
    }
}

/// Asks on a watch. Dropping it ends the watch.
#[derive(Debug, Clone)]
pub struct WatchSender {
    asking: mpsc::Sender<pb::WatchRequest>,
}

/// The events of a watch; ends after its first error.
pub type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchEvent, WatchError>> + Send>>;

impl WatchSender {
    /// Asks for a barrier; [`Consistency::Stale`] needs none.
    pub fn barrier(&self, id: u64, consistency: Consistency) -> Result<(), WatchError> {
        let consistency = match consistency {
            Consistency::Linearizable => pb::Consistency::Linearizable,
            Consistency::Lease | Consistency::Stale => pb::Consistency::Lease,
        };
        self.ask(Asked::Barrier(pb::Barrier { id, consistency: consistency.into() }))
    }

    /// Widens the Scope: answered by [`WatchEvent::Splice`], or with all rows anew where the member cannot splice.
    pub fn add_services(&self, services: &[Name]) -> Result<(), WatchError> {
        self.ask(Asked::AddServices(names(services)))
    }

    /// Narrows the Scope, answered in the same way.
    pub fn remove_services(&self, services: &[Name]) -> Result<(), WatchError> {
        self.ask(Asked::RemoveServices(names(services)))
    }

    /// Says that this agent is started anew at once: the member ends the stream, and the node lives as long as its
    /// lease. A member that is older takes no note of it.
    pub fn restart(&self) -> Result<(), WatchError> {
        self.ask(Asked::Restart(pb::Restart {}))
    }

    fn ask(&self, kind: Asked) -> Result<(), WatchError> {
        self.asking.try_send(pb::WatchRequest { kind: Some(kind) }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => WatchError::Busy,
            mpsc::error::TrySendError::Closed(_) => WatchError::Ended,
        })
    }
}

fn names(services: &[Name]) -> pb::ServiceNames {
    pb::ServiceNames { names: services.iter().map(ToString::to_string).collect() }
}

impl Client {
    /// Opens a watch at some member. The first event is [`WatchEvent::Hello`].
    pub async fn watch(&self, hello: Hello) -> Result<(WatchSender, WatchStream), WatchError> {
        let connection = self.connections.connection().await?;
        let (asking, asked) = mpsc::channel(ASKING);
        let sender = WatchSender { asking };
        sender.ask(Asked::Hello(hello_message(&hello)))?;
        let mut client = connection.client.clone();
        let limit = self.connections.request_timeout();
        let message = match timeout(limit, client.watch(ReceiverStream::new(asked))).await {
            Ok(Ok(events)) => {
                let inner = events.into_inner();
                let connections = self.connections.clone();
                let (ready, sets) = (VecDeque::new(), Vec::new());
                let watch = Watch { inner, connections, connection, ready, sets, ended: false };
                return Ok((sender, Box::pin(stream::unfold(watch, Watch::next))));
            }
            Ok(Err(status)) => status.message().to_owned(),
            Err(_) => format!("no answer within {limit:?}"),
        };
        self.connections.leave(&connection);
        Err(connection.failed(message).into())
    }
}

fn hello_message(hello: &Hello) -> pb::Hello {
    let resume = hello.resume.as_ref();
    let watcher = hello.watcher.as_ref();
    pb::Hello {
        scope: Some((&hello.scope).into()),
        resume: resume.map(|(cluster, index)| pb::Resume { cluster: Some(cluster.into()), index: *index }),
        known_changes: KNOWN_CHANGES.to_vec(),
        format: FORMAT,
        watcher: watcher.map(|(node, incarnation)| pb::Watcher { node: node.to_string(), incarnation: *incarnation }),
        accept_new_cluster: hello.accept_new_cluster,
        known_events: KNOWN_EVENTS.to_vec(),
    }
}

struct Watch {
    inner: Streaming<pb::WatchEvent>,
    connections: Arc<Connections>,
    connection: Connection,
    ready: VecDeque<WatchEvent>,
    /// The rows of a splice that is under way.
    sets: Vec<SnapshotRow>,
    ended: bool,
}

impl Watch {
    async fn next(mut self) -> Option<(Result<WatchEvent, WatchError>, Self)> {
        if self.ended {
            return None;
        }
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some((Ok(event), self));
            }
            if let Err(error) = self.receive().await {
                self.ended = true;
                self.connections.leave(&self.connection);
                return Some((Err(error), self));
            }
        }
    }

    async fn receive(&mut self) -> Result<(), WatchError> {
        let failed = |message: String| Err(self.connection.failed(message).into());
        match timeout(SILENCE, self.inner.message()).await {
            Ok(Ok(Some(event))) => Ok(take(event, &mut self.ready, &mut self.sets)?),
            Ok(Ok(None)) => failed("it ended the watch".to_owned()),
            Ok(Err(status)) if status.code() == Code::FailedPrecondition => {
                Err(WatchError::OtherRegistry(status.message().to_owned()))
            }
            Ok(Err(status)) if status.code() == Code::DataLoss => Err(WatchError::Lost(status.message().to_owned())),
            Ok(Err(status)) => failed(status.message().to_owned()),
            Err(_) => failed(format!("nothing was heard for {SILENCE:?}")),
        }
    }
}

/// A message that is one event by itself; `None` for one of a newer build.
pub(crate) fn read_one(event: pb::WatchEvent) -> Result<Option<WatchEvent>, ConvertError> {
    let (mut ready, mut sets) = (VecDeque::new(), Vec::new());
    take(event, &mut ready, &mut sets)?;
    Ok(ready.pop_front())
}

/// A message as events; what a newer member adds is passed over.
fn take(
    event: pb::WatchEvent,
    ready: &mut VecDeque<WatchEvent>,
    sets: &mut Vec<SnapshotRow>,
) -> Result<(), ConvertError> {
    match event.kind {
        Some(Kind::Hello(hello)) => ready.push_back(WatchEvent::Hello {
            cluster: hello.cluster.map(Into::into).unwrap_or_default(),
            resumed: hello.resumed,
            splices: hello.splices,
        }),
        Some(Kind::Rows(rows)) => {
            for row in rows.rows {
                ready.push_back(WatchEvent::Row(row.try_into()?));
            }
        }
        Some(Kind::Loaded(pb::Loaded { index, sets_after })) => {
            ready.push_back(WatchEvent::Loaded { index, sets_after });
        }
        Some(Kind::Sets(part)) => {
            for row in part.rows {
                sets.push(row.try_into()?);
            }
            if part.last {
                let names = |names: Vec<String>| names.iter().map(|name| Name::lookup(name)).collect();
                let (joined, left) = (names(part.joined), names(part.left));
                let splice = Splice { index: part.index, joined, left, rows: std::mem::take(sets) };
                ready.push_back(WatchEvent::Splice(splice));
            }
        }
        Some(Kind::Entry(entry)) => {
            let entry = pb_catalog::Entry::decode(entry);
            let entry = entry.map_err(|source| ConvertError::Bytes { field: "watch_event.entry", source })?;
            ready.push_back(WatchEvent::Entry(entry.try_into()?));
        }
        Some(Kind::Advance(advance)) => {
            let at = timestamp(advance.at_milliseconds);
            ready.push_back(WatchEvent::Advance { index: advance.index, at });
        }
        Some(Kind::Barrier(barrier)) => {
            let result = match barrier.result {
                Some(pb::barrier_reached::Result::Index(index)) => Ok(index),
                Some(pb::barrier_reached::Result::Error(error)) => Err(error),
                None => Err("the member gave no result".to_owned()),
            };
            ready.push_back(WatchEvent::Barrier { id: barrier.id, result });
        }
        None => {}
    }
    Ok(())
}
