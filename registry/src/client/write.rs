//! Writing: repeated while it is surely not proposed, within a deadline.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use muster_catalog::{
    Command,
    port::{BoxFuture, Sink, SubmitError, Written},
};
use prost::Message;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tonic::{Code, Status};

use super::{
    Client,
    batch::{Answer, Sender, Waiting},
    connection::{Backoff, Connection, Connections},
};
use crate::{
    limits::MAX_COMMAND_BYTES,
    proto::{
        catalog,
        registry::{self as pb, write_reply::Outcome},
    },
    service::peers::surely_not_sent,
};

/// Answers of "not proposed" from one member before another is asked: it may be cut off from the others.
const PATIENCE: u32 = 3;

/// What an attempt gets even when the deadline is nearer: one that is cut off as soon as it was sent would make a write
/// that was surely not proposed into one of unknown outcome.
const SHORTEST_ATTEMPT: Duration = Duration::from_secs(1);

enum Attempt {
    Done(Result<Written, SubmitError>),
    /// With the member that said so.
    NotProposed(String, Option<Connection>),
    Unknown(String, Option<Connection>),
}

impl Sink for Client {
    fn submit(&self, command: Command) -> BoxFuture<'_, Result<Written, SubmitError>> {
        Box::pin(self.write(command))
    }
}

impl Client {
    async fn write(&self, command: Command) -> Result<Written, SubmitError> {
        let deadline = Instant::now() + self.connections.config.write_deadline;
        // A push carries its order: repeated, it does nothing, or what a later one did.
        let repeatable = matches!(command, Command::Sync(_));
        let encoded = Bytes::from(catalog::Command::from(&command).encode_to_vec());
        if encoded.len() > MAX_COMMAND_BYTES {
            // A member would refuse it too, or not even read it.
            let bytes = encoded.len();
            return Err(SubmitError::Refused(format!(
                "the command has {bytes} bytes, over {MAX_COMMAND_BYTES}: shorten outputs and metadata, or register in parts"
            )));
        }
        let (mut backoff, mut maybe_proposed) = (Backoff::default(), false);
        for attempt in 1_u32.. {
            let now = Instant::now();
            let limit = if repeatable { deadline.min(now + self.connections.request_timeout()) } else { deadline };
            let until = limit.max(now + SHORTEST_ATTEMPT);
            let (reason, from) = match self.attempt(encoded.clone(), until).await {
                // What an earlier attempt sent may still come about.
                Attempt::Done(Err(SubmitError::NoRoom(reason))) if maybe_proposed => {
                    return Err(SubmitError::UnknownOutcome(reason));
                }
                Attempt::Done(result) => return result,
                Attempt::NotProposed(reason, from) => (reason, from),
                Attempt::Unknown(reason, _) if !repeatable => return Err(SubmitError::UnknownOutcome(reason)),
                Attempt::Unknown(reason, from) => {
                    maybe_proposed = true;
                    (reason, from)
                }
            };
            if let Some(from) = from.filter(|_| attempt % PATIENCE == 0) {
                self.connections.leave(&from);
            }
            let delay = backoff.next_delay();
            if Instant::now() + delay >= deadline {
                let unknown = maybe_proposed;
                return Err(if unknown {
                    SubmitError::UnknownOutcome(reason)
                } else {
                    SubmitError::Unavailable(reason)
                });
            }
            sleep(delay).await;
        }
        Err(SubmitError::Unavailable("too many attempts".to_owned()))
    }

    /// One attempt: queued, sent with what else waits, and answered, within the time.
    async fn attempt(&self, command: Bytes, until: Instant) -> Attempt {
        let Some((ticket, answered, sender)) = self.writes.push(command) else {
            return Attempt::NotProposed("too many writes wait already".to_owned(), None);
        };
        if let Some(sender) = sender {
            // The messages are other writes' too: they go on when this one's caller gives up.
            tokio::spawn(send(self.connections.clone(), sender));
        }
        let Answer { outcome, from } = match timeout_at(until, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => return Attempt::Unknown("its message was dropped on the way".to_owned(), None),
            Err(_) if self.writes.withdraw(ticket) => {
                return Attempt::NotProposed("no registry member was reached in time".to_owned(), None);
            }
            Err(_) => return Attempt::Unknown("no member answered in time".to_owned(), None),
        };
        match outcome {
            Outcome::Index(index) => Attempt::Done(Ok(Written { index })),
            Outcome::Refused(message) => Attempt::Done(Err(SubmitError::Refused(message))),
            Outcome::NoRoom(message) => Attempt::Done(Err(SubmitError::NoRoom(message))),
            Outcome::NotProposed(reason) => Attempt::NotProposed(reason, from),
            Outcome::UnknownOutcome(reason) => Attempt::Unknown(reason, from),
        }
    }
}

/// Sends what waits, message after message, until nothing does.
async fn send(connections: Arc<Connections>, mut sender: Sender) {
    while !sender.rest() {
        // Taken only once there is somebody to send to: until then a write can be taken back.
        let connection = connections.for_writes().await;
        let writes = sender.take();
        match connection {
            _ if writes.is_empty() => {}
            Ok(connection) => {
                let mut exchange = Box::pin(exchange(connections.clone(), connection.clone(), writes));
                if timeout(connections.request_timeout(), &mut exchange).await.is_err() {
                    // It may still be answered, but what waits behind it goes elsewhere. Each of these ends with the
                    // deadline of its writes.
                    connections.leave(&connection);
                    tokio::spawn(exchange);
                }
            }
            Err(error) => answer(writes, None, || Outcome::NotProposed(error.to_string())),
        }
    }
}

/// One message and its answer.
async fn exchange(connections: Arc<Connections>, connection: Connection, writes: Vec<Waiting>) {
    let commands = writes.iter().map(|write| write.command.clone()).collect();
    let request = pb::WriteBatchRequest { commands, forwarded: false };
    let limit = connections.config.write_deadline.max(SHORTEST_ATTEMPT);
    let mut client = connection.client.clone();
    let status = match timeout(limit, client.write_batch(request)).await {
        Ok(Ok(reply)) => {
            let pb::WriteBatchReply { replies, leader } = reply.into_inner();
            connections.wrote(writes.len(), &leader);
            let mut replies = replies.into_iter();
            return answer(writes, Some(&connection), || {
                let none = || Outcome::UnknownOutcome(format!("member {} gave no outcome", connection.address));
                replies.next().and_then(|reply| reply.outcome).unwrap_or_else(none)
            });
        }
        Ok(Err(status)) => status,
        Err(_) => Status::deadline_exceeded("it did not answer in time"),
    };
    if status.code() == Code::Unimplemented {
        join_all(writes.into_iter().map(|write| exchange_alone(&connection, write, limit))).await;
        return;
    }
    connections.leave(&connection);
    answer(writes, Some(&connection), || failure(&connection, &status));
}

/// With a member of an earlier version, which takes writes one by one.
async fn exchange_alone(connection: &Connection, write: Waiting, limit: Duration) {
    let outcome = match catalog::Command::decode(write.command.clone()) {
        Ok(command) => {
            let request = pb::WriteRequest { command: Some(command), forwarded: false };
            match timeout(limit, connection.client.clone().write(request)).await {
                Ok(Ok(reply)) => reply.into_inner().outcome,
                Ok(Err(status)) => Some(failure(connection, &status)),
                Err(_) => Some(failure(connection, &Status::deadline_exceeded("it did not answer in time"))),
            }
        }
        Err(error) => Some(Outcome::NotProposed(error.to_string())),
    };
    let none = || Outcome::UnknownOutcome(format!("member {} gave no outcome", connection.address));
    let mut outcome = Some(outcome.unwrap_or_else(none));
    answer(vec![write], Some(connection), || outcome.take().unwrap_or_else(none));
}

fn failure(connection: &Connection, status: &Status) -> Outcome {
    let reason = format!("member {}: {}", connection.address, status.message());
    if surely_not_sent(status) { Outcome::NotProposed(reason) } else { Outcome::UnknownOutcome(reason) }
}

fn answer(writes: Vec<Waiting>, from: Option<&Connection>, mut outcome: impl FnMut() -> Outcome) {
    for write in writes {
        let outcome = outcome();
        let settled = matches!(outcome, Outcome::Index(_) | Outcome::Refused(_) | Outcome::NoRoom(_));
        // Whoever gave up needs no answer.
        let _ = write.answer.send(Answer { outcome, from: from.filter(|_| !settled).cloned() });
    }
}
