//! What is ready for the reader of a stream: so many messages and so many bytes. All else stays where it comes from, and is
//! made into messages once there is room.
//!
//! A fleet that starts anew opens its streams at once, and each wants the whole catalog: counted by messages alone, what
//! is ready for those who read slowly is the catalog once for each of them.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, Weak},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::Stream;
use prost::Message;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::yield_now,
    time::timeout,
};
use tonic::Status;

use crate::limits::PIECE_BYTES;

/// Small messages that are ready.
const MAX_MESSAGES: usize = 64;
/// What all that is ready takes: a few pieces, for the connection to go on while the next one is made. A message that is
/// larger is ready alone.
pub(crate) const MAX_BYTES: usize = 4 * PIECE_BYTES;
/// A reader that makes no room for so long is gone or stuck: it is cut off, and what it has not taken is dropped.
pub(crate) const STALL: Duration = Duration::from_secs(30);
/// After a message that is larger, others on this thread have their turn: leases and heartbeats wait for one piece, not
/// for the catalogs of all that load it.
const TURN_BYTES: usize = PIECE_BYTES / 4;

/// A message, or why there is no more, and the room that it takes.
type Item<T> = (Result<T, Status>, Option<OwnedSemaphorePermit>);

/// The end that messages are put in.
#[derive(Clone)]
pub(crate) struct Outbox<T> {
    out: mpsc::Sender<Item<T>>,
    room: Arc<Semaphore>,
    ready: Weak<Mutex<mpsc::Receiver<Item<T>>>>,
}

/// The end that the reader's connection takes from.
pub(crate) struct Ready<T>(Arc<Mutex<mpsc::Receiver<Item<T>>>>);

/// Why a message was not taken.
#[derive(Debug)]
pub(crate) enum Unsent {
    /// The reader went.
    Gone,
    /// The reader is cut off.
    Stalled,
}

/// The two ends for one reader.
pub(crate) fn outbox<T>() -> (Outbox<T>, Ready<T>) {
    let (out, ready) = mpsc::channel(MAX_MESSAGES);
    let ready = Arc::new(Mutex::new(ready));
    (Outbox { out, room: Arc::new(Semaphore::new(MAX_BYTES)), ready: Arc::downgrade(&ready) }, Ready(ready))
}

impl<T: Message> Outbox<T> {
    /// Puts a message in, once there is room.
    pub(crate) async fn send(&self, message: T) -> Result<(), Unsent> {
        let bytes = message.encoded_len();
        let sending = async {
            let room = u32::try_from(bytes.min(MAX_BYTES)).unwrap_or(u32::MAX);
            let room = self.room.clone().acquire_many_owned(room).await.map_err(|_| Unsent::Gone)?;
            self.out.send((Ok(message), Some(room))).await.map_err(|_| Unsent::Gone)
        };
        let Ok(sent) = timeout(STALL, sending).await else {
            self.take_back();
            return Err(Unsent::Stalled);
        };
        if bytes > TURN_BYTES {
            yield_now().await;
        }
        sent
    }

    /// Says why nothing more comes. Whoever went, or does not read, is not told.
    pub(crate) fn end(&self, status: Status) {
        self.out.try_send((Err(status), None)).ok();
    }

    /// Returns when the reader has gone.
    pub(crate) async fn closed(&self) {
        self.out.closed().await;
    }

    /// The stream may stay for as long as its connection: nothing that it does not take may stay with it.
    fn take_back(&self) {
        if let Some(ready) = self.ready.upgrade() {
            let mut ready = ready.lock().unwrap_or_else(PoisonError::into_inner);
            while ready.try_recv().is_ok() {}
        }
    }
}

impl<T> Stream for Ready<T> {
    type Item = Result<T, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut ready = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ready.poll_recv(cx).map(|next| next.map(|(message, _)| message))
    }
}

impl From<Unsent> for Status {
    fn from(unsent: Unsent) -> Self {
        match unsent {
            Unsent::Gone => Self::cancelled("the reader went"),
            Unsent::Stalled => Self::resource_exhausted(format!("the reader made no room for {STALL:?}")),
        }
    }
}
