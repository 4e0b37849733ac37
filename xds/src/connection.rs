//! Connections, counted: those beyond the limit are closed at once.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::stream;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_stream::Stream;
use tonic::transport::server::{Connected, TcpConnectInfo};
use tracing::{debug, warn};

use crate::roster::MAX_STREAMS;

/// Every stream may have a connection of its own; more connections have nothing to do here.
const MAX_CONNECTIONS: usize = MAX_STREAMS;
/// After an accept that failed (out of file descriptors, mostly): the listener must not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Of failed accepts in a row one in so many is logged: one every five seconds.
const LOGGED_ERRORS: u32 = 50;

/// A connection that counts until it is dropped.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    _permit: OwnedSemaphorePermit,
}

/// The connections that are let in. It has no end: the server above ends with its source, and with it the process.
pub(crate) fn admit(listener: TcpListener) -> impl Stream<Item = io::Result<Connection>> {
    admit_at_most(MAX_CONNECTIONS, listener)
}

fn admit_at_most(limit: usize, listener: TcpListener) -> impl Stream<Item = io::Result<Connection>> {
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
                return Some((Ok(Connection { stream, _permit: permit }), (listener, places)));
            }
            debug!(limit, "a connection was closed: as many are open as are served");
        }
    })
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
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
        let mut admitted = std::pin::pin!(admit_at_most(1, listener));
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
}
