//! Writing: repeated while it is surely not proposed, within a deadline.

use std::time::Duration;

use muster_catalog::{
    Command,
    port::{BoxFuture, Sink, SubmitError, Written},
};
use tokio::time::{Instant, sleep, timeout_at};

use super::{Client, connection::Backoff};
use crate::{
    proto::registry::{self as pb, write_reply::Outcome},
    service::peers::surely_not_sent,
};

/// Answers of "not proposed" from one member before another is asked: it may be cut off from the others.
const PATIENCE: u32 = 3;

/// What an attempt gets even when the deadline is nearer: one that is cut off as soon as it was sent would make a write
/// that was surely not proposed into one of unknown outcome.
const SHORTEST_ATTEMPT: Duration = Duration::from_secs(1);

enum Attempt {
    Done(Result<Written, SubmitError>),
    NotProposed(String),
    Unknown(String),
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
        let request = pb::WriteRequest { command: Some((&command).into()), forwarded: false };
        let (mut backoff, mut maybe_proposed) = (Backoff::default(), false);
        for attempt in 1_u32.. {
            let now = Instant::now();
            let limit = if repeatable { deadline.min(now + self.connections.config.request_timeout) } else { deadline };
            let until = limit.max(now + SHORTEST_ATTEMPT);
            let rotate = attempt % PATIENCE == 0;
            let reason = match self.attempt(request.clone(), until, rotate).await {
                Attempt::Done(result) => return result,
                Attempt::NotProposed(reason) => reason,
                Attempt::Unknown(reason) if !repeatable => return Err(SubmitError::UnknownOutcome(reason)),
                Attempt::Unknown(reason) => {
                    maybe_proposed = true;
                    reason
                }
            };
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

    async fn attempt(&self, request: pb::WriteRequest, until: Instant, rotate: bool) -> Attempt {
        let connection = match timeout_at(until, self.connections.connection()).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return Attempt::NotProposed(error.to_string()),
            Err(_) => return Attempt::NotProposed("no registry member was reached in time".to_owned()),
        };
        let mut client = connection.client.clone();
        let (attempt, leave) = match timeout_at(until, client.write(request)).await {
            Ok(Ok(reply)) => match reply.into_inner().outcome {
                Some(Outcome::Index(index)) => (Attempt::Done(Ok(Written { index })), false),
                Some(Outcome::Refused(message)) => (Attempt::Done(Err(SubmitError::Refused(message))), false),
                Some(Outcome::NotProposed(reason)) => (Attempt::NotProposed(reason), rotate),
                Some(Outcome::UnknownOutcome(reason)) => (Attempt::Unknown(reason), rotate),
                None => (Attempt::Unknown(format!("member {} gave no outcome", connection.address)), true),
            },
            Ok(Err(status)) => {
                let reason = format!("member {}: {}", connection.address, status.message());
                let attempt =
                    if surely_not_sent(&status) { Attempt::NotProposed(reason) } else { Attempt::Unknown(reason) };
                (attempt, true)
            }
            Err(_) => (Attempt::Unknown(format!("member {} did not answer in time", connection.address)), true),
        };
        if leave {
            self.connections.leave(&connection).await;
        }
        attempt
    }
}
