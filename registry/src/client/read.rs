//! Reads of more than a Scope holds.

use std::time::Duration;

use muster_catalog::{
    Scope, Snapshot, SnapshotBuilder, Wide,
    port::{Consistency, WideError, WideRead},
};
use prost::Message as _;
use tokio::time::{Instant, timeout};
use tonic::{Code, Status};

use super::{
    Client,
    connection::Connection,
    room::{Held, Turn},
};
use crate::{convert::ConvertError, proto::registry as pb};

/// How long a member may take beyond what it is asked to wait: an election for the barrier, and the rows.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long it may take from one piece of an answer to the next.
const SILENCE: Duration = Duration::from_secs(5);
/// The most rows of an answer, some hundred megabytes of them: what is larger is read by one that holds everything.
const MAX_ROWS: usize = 1_000_000;

/// The rows of an answer, and what they take.
#[derive(Debug)]
pub struct WideRows {
    /// A Snapshot that has the answer's rows and nothing else.
    pub snapshot: Snapshot,
    /// Counts them; to be dropped with them.
    pub held: Held,
}

/// What came of asking a member once.
enum Taken {
    Rows(Box<WideRows>),
    Refused(WideError),
    /// It is large, and it is not its turn, or there is no room: what came was let go, at this index.
    Crowded(u64),
}

impl Client {
    /// Asks a member; where that one fails at once, another.
    pub async fn read(&self, read: &WideRead) -> Result<WideRows, WideError> {
        let begun = Instant::now();
        match self.try_read(read).await {
            Err(WideError::Unreachable(_)) if begun.elapsed() < self.connections.request_timeout() => {
                self.try_read(read).await
            }
            answered => answered,
        }
    }

    async fn try_read(&self, read: &WideRead) -> Result<WideRows, WideError> {
        let unreachable = |reason: String| WideError::Unreachable(reason);
        let connection = self.connections.connection().await.map_err(|error| unreachable(error.to_string()))?;
        let failed = match self.read_from(&connection, read).await {
            Ok(answered) => return answered,
            Err(status) => match status.code() {
                Code::Unimplemented => {
                    let text = "the registry is older than this agent and answers only agents that hold everything: \
                                update it, or set agent.replica = \"all\"";
                    return Err(WideError::Refused(text.into()));
                }
                Code::ResourceExhausted | Code::InvalidArgument => {
                    return Err(WideError::Refused(connection.failed(status.message().to_owned()).to_string()));
                }
                _ => connection.failed(status.message().to_owned()),
            },
        };
        self.connections.leave(&connection);
        Err(unreachable(failed.to_string()))
    }

    /// A status says that the member failed, an error that its answer is none.
    async fn read_from(&self, connection: &Connection, read: &WideRead) -> Result<Result<WideRows, WideError>, Status> {
        let patience = if read.after > 0 { read.wait + PATIENCE } else { PATIENCE };
        let index = match self.take(connection, &read.wide, (request(read), patience), None).await? {
            Taken::Rows(rows) => return Ok(Ok(*rows)),
            Taken::Refused(error) => return Ok(Err(error)),
            Taken::Crowded(index) => index,
        };
        let turn = match self.room.turn().await {
            Ok(turn) => turn,
            Err(text) => return Ok(Err(WideError::Refused(text))),
        };
        // That member is as current by now as it was asked to be.
        let again = pb::ReadRequest { stale: true, after_index: 0, ..request(read) };
        match self.take(connection, &read.wide, (again, PATIENCE), Some(turn)).await? {
            Taken::Rows(rows) if rows.snapshot.index() >= index => Ok(Ok(*rows)),
            Taken::Refused(error) => Ok(Err(error)),
            // It was started anew, or restored.
            Taken::Rows(_) | Taken::Crowded(_) => Err(Status::unavailable("it fell behind what it had")),
        }
    }

    /// Asks, and decodes what comes. Without a turn one is taken for what does not fit one piece. What has to wait for it
    /// is let go: rows that are not taken would fill the window of the connection, and all else there would wait.
    async fn take(
        &self,
        connection: &Connection,
        wide: &Wide,
        (request, patience): (pb::ReadRequest, Duration),
        mut turn: Option<Turn>,
    ) -> Result<Taken, Status> {
        let late = |limit: Duration| Status::unavailable(format!("no answer within {limit:?}"));
        let mut client = connection.client.clone();
        let begin = async {
            let mut replies = client.read(request).await?.into_inner();
            let first = replies.message().await?;
            Ok::<_, Status>((replies, first))
        };
        let (mut replies, mut reply) = timeout(patience, begin).await.map_err(|_| late(patience))??;
        let node = match wide {
            Wide::Node(name) => Some(name.clone()),
            Wide::Checks(_) | Wide::Instances(_) => None,
        };
        let mut builder = SnapshotBuilder::new(Scope::Services { names: Default::default(), node });
        let (mut held, mut count) = (self.room.hold(), 0);
        while let Some(piece) = reply {
            if count > 0 && turn.is_none() {
                turn = self.room.try_turn();
                if turn.is_none() {
                    return Ok(Taken::Crowded(builder.finish().index()));
                }
            }
            held.grow(piece.encoded_len());
            count += piece.rows.len();
            if count > MAX_ROWS {
                let text = format!("the answer has over {MAX_ROWS} rows: ask an agent with agent.replica = \"all\"");
                return Ok(Taken::Refused(WideError::Refused(text)));
            }
            if let Err(error) = push(&mut builder, piece) {
                return Ok(Taken::Refused(WideError::Refused(format!("the registry's answer: {error}"))));
            }
            // Leases and reports on this thread wait for one piece, not for the whole answer.
            tokio::task::yield_now().await;
            reply = timeout(SILENCE, replies.message()).await.map_err(|_| late(SILENCE))??;
        }
        if count == 0 {
            return Err(Status::unavailable("it ended its answer before it began"));
        }
        Ok(Taken::Rows(Box::new(WideRows { snapshot: builder.finish(), held })))
    }
}

fn push(builder: &mut SnapshotBuilder, piece: pb::ReadReply) -> Result<(), ConvertError> {
    for row in piece.rows {
        builder.push(row.try_into()?);
    }
    Ok(())
}

fn request(read: &WideRead) -> pb::ReadRequest {
    let consistency = match read.consistency {
        Consistency::Linearizable => pb::Consistency::Linearizable,
        Consistency::Lease | Consistency::Stale => pb::Consistency::Lease,
    };
    pb::ReadRequest {
        what: Some((&read.wide).into()),
        consistency: consistency.into(),
        stale: read.consistency == Consistency::Stale,
        after_index: read.after,
        wait_milliseconds: u64::try_from(read.wait.as_millis()).unwrap_or(u64::MAX),
    }
}
