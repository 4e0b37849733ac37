//! Reads of more than a Scope holds.

use std::time::Duration;

use muster_catalog::{
    Scope, Snapshot, SnapshotBuilder, Wide,
    port::{Consistency, WideError, WideRead},
};
use tokio::time::{Instant, timeout};
use tonic::{Code, Status};

use super::{Client, connection::Connection};
use crate::proto::registry as pb;

/// How long a member may take beyond what it is asked to wait: an election for the barrier, and the rows.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long it may take from one piece of an answer to the next.
const SILENCE: Duration = Duration::from_secs(5);
/// The most rows of an answer, some hundred megabytes of them: what is larger is read by one that holds everything.
const MAX_ROWS: usize = 1_000_000;

impl Client {
    /// Asks a member; where that one fails at once, another. The Snapshot has the answer's rows and nothing else.
    pub async fn read(&self, read: &WideRead) -> Result<Snapshot, WideError> {
        let begun = Instant::now();
        match self.try_read(read).await {
            Err(WideError::Unreachable(_)) if begun.elapsed() < self.connections.request_timeout() => {
                self.try_read(read).await
            }
            answered => answered,
        }
    }

    async fn try_read(&self, read: &WideRead) -> Result<Snapshot, WideError> {
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
    async fn read_from(&self, connection: &Connection, read: &WideRead) -> Result<Result<Snapshot, WideError>, Status> {
        let late = |limit: Duration| Status::unavailable(format!("no answer within {limit:?}"));
        let first = if read.after > 0 { read.wait + PATIENCE } else { PATIENCE };
        let mut client = connection.client.clone();
        let begin = async {
            let mut replies = client.read(request(read)).await?.into_inner();
            let first = replies.message().await?;
            Ok::<_, Status>((replies, first))
        };
        let (mut replies, mut reply) = timeout(first, begin).await.map_err(|_| late(first))??;
        let node = match &read.wide {
            Wide::Node(name) => Some(name.clone()),
            Wide::Checks(_) | Wide::Instances(_) => None,
        };
        let mut builder = SnapshotBuilder::new(Scope::Services { names: Default::default(), node });
        let mut count = 0;
        while let Some(piece) = reply {
            count += piece.rows.len();
            if count > MAX_ROWS {
                let text = format!("the answer has over {MAX_ROWS} rows: ask an agent with agent.replica = \"all\"");
                return Ok(Err(WideError::Refused(text)));
            }
            for row in piece.rows {
                match row.try_into() {
                    Ok(row) => builder.push(row),
                    Err(error) => return Ok(Err(WideError::Refused(format!("the registry's answer: {error}")))),
                }
            }
            reply = timeout(SILENCE, replies.message()).await.map_err(|_| late(SILENCE))??;
        }
        if count == 0 {
            return Err(Status::unavailable("it ended its answer before it began"));
        }
        Ok(Ok(builder.finish()))
    }
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
