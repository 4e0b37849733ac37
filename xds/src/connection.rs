//! Connections, counted: those beyond the limit are closed at once.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{FutureExt, stream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep},
};
use tokio_stream::Stream;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

use crate::roster::MAX_STREAMS;

/// Every stream may have a connection of its own; more connections have nothing to do here.
const MAX_CONNECTIONS: usize = MAX_STREAMS;
/// After an accept that failed (out of file descriptors, mostly): the listener must not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Of failed accepts in a row one in so many is logged: one every five seconds.
const LOGGED_ERRORS: u32 = 50;

/// A connection without a stream is closed after this, its handshake included: clients open theirs at once, and one that is
/// silent must not hold a place.
const STREAMLESS: Duration = Duration::from_secs(15);

/// A connection that counts until it is dropped.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    caller: Caller,
    /// When it is looked at whether there is a stream.
    look: Pin<Box<Sleep>>,
    patience: Duration,
    _permit: OwnedSemaphorePermit,
}

/// Who is at the other end of a connection, and how many streams it has. Requests carry it; a stream keeps a
/// [`Caller::hold`] of it to its end.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) peer: Option<SocketAddr>,
    streams: Arc<AtomicUsize>,
}

/// A stream on a connection, which stays open for it until this is dropped.
#[derive(Debug)]
pub(crate) struct Hold(Arc<AtomicUsize>);

impl Caller {
    pub(crate) fn hold(&self) -> Hold {
        self.streams.fetch_add(1, Ordering::Relaxed);
        Hold(self.streams.clone())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connection {
    fn new(stream: TcpStream, patience: Duration, permit: OwnedSemaphorePermit) -> Self {
        let caller = Caller { peer: stream.peer_addr().ok(), streams: Arc::default() };
        let look = Box::pin(tokio::time::sleep(patience));
        Self { stream, caller, look, patience, _permit: permit }
    }

    /// Whether it had its time and has no stream. Else the caller is woken for the next look.
    fn is_idle(&mut self, cx: &mut Context<'_>) -> bool {
        while self.look.poll_unpin(cx).is_ready() {
            if self.caller.streams.load(Ordering::Relaxed) == 0 {
                return true;
            }
            self.look.as_mut().reset(Instant::now() + self.patience);
        }
        false
    }
}

/// The connections that are let in. It has no end: the server above ends with its source, and with it the process.
pub(crate) fn admit(listener: TcpListener) -> impl Stream<Item = io::Result<Connection>> {
    admit_at_most(MAX_CONNECTIONS, STREAMLESS, listener)
}

fn admit_at_most(
    limit: usize,
    patience: Duration,
    listener: TcpListener,
) -> impl Stream<Item = io::Result<Connection>> {
    let places = Arc::new(Semaphore::new(limit));
    stream::unfold((listener, places), move |(listener, places)| async move {
        let mut errors: u32 = 0;
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    if errors.is_multiple_of(LOGGED_ERRORS) {
                        warn!(%error, "no connection can be accepted; out of files? raise LimitNOFILE");
                    }
                    errors = errors.wrapping_add(1);
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            errors = 0;
            if let Ok(permit) = places.clone().try_acquire_owned() {
                // Pushes are small and awaited.
                stream.set_nodelay(true).ok();
                return Some((Ok(Connection::new(stream, patience, permit)), (listener, places)));
            }
            debug!(limit, "a connection was closed: as many are open as are served");
        }
    })
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.is_idle(cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio_stream::StreamExt;

    use super::*;

    #[tokio::test]
    async fn connections_beyond_the_limit_are_closed_until_one_leaves() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut admitted = std::pin::pin!(admit_at_most(1, STREAMLESS, listener));
        let _first = TcpStream::connect(address).await.unwrap();
        let held = admitted.next().await.unwrap().unwrap();
        let mut second = TcpStream::connect(address).await.unwrap();
        let closed = async { second.read(&mut [0]).await.unwrap() };
        tokio::select! {
            _ = admitted.next() => panic!("a second connection was let in"),
            count = closed => assert_eq!(count, 0),
        }
        drop(held);
        let _third = TcpStream::connect(address).await.unwrap();
        assert!(admitted.next().await.unwrap().is_ok());
    }
    #[tokio::test]
    async fn a_connection_without_a_stream_ends_and_one_with_a_stream_stays() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut admitted = std::pin::pin!(admit_at_most(1, Duration::from_millis(50), listener));
        let _silent = TcpStream::connect(address).await.unwrap();
        let mut connection = admitted.next().await.unwrap().unwrap();
        let hold = connection.connect_info().hold();
        let held = tokio::time::timeout(Duration::from_millis(200), connection.read(&mut [0])).await;
        assert!(held.is_err(), "a connection with a stream was ended: {held:?}");
        drop(hold);
        let ended = connection.read(&mut [0]).await;
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
