//! The listening side of a member: connections within a limit, and the tasks behind them.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{Stream, stream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::sync::CancellationToken;
use tonic::{
    service::Routes,
    transport::{
        Server,
        server::{Connected, TcpConnectInfo},
    },
};

use crate::{
    limits::{MAX_ANSWER_BYTES, MAX_MESSAGE_BYTES},
    proto::registry::registry_server::RegistryServer,
    service::{Core, RegistryService},
};

/// How often a silent connection is probed, and how long an answer may take: an agent whose host vanished without a word
/// is suspected well within its lease.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// Streams on one connection: an agent has one watch and a few calls, a member's forwarding has more.
const MAX_STREAMS: u32 = 1024;
/// After an accept that failed (out of file descriptors, mostly): the listener must not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Of failed accepts in a row one in so many is logged: one every five seconds.
const LOGGED_ERRORS: u32 = 50;

/// The service of a member, to be served beside others.
pub(crate) fn routes(core: Arc<Core>) -> Routes {
    let service = RegistryServer::new(RegistryService(core));
    Routes::new(service.max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_ANSWER_BYTES))
}

/// Serves until it is stopped; open streams are ended by their own tasks.
pub(crate) async fn serve(
    routes: Routes,
    listener: TcpListener,
    max_connections: usize,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    Server::builder()
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(MAX_STREAMS)
        .add_routes(routes)
        .serve_with_incoming_shutdown(accept(listener, max_connections), stop.cancelled_owned())
        .await
}

/// Connections, as long as there are places; others wait in the listener's backlog.
fn accept(listener: TcpListener, places: usize) -> impl Stream<Item = io::Result<Counted>> {
    let places = Arc::new(Semaphore::new(places));
    stream::unfold((listener, places), |(listener, places)| async move {
        let place = places.clone().acquire_owned().await.ok()?;
        let mut errors: u32 = 0;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    stream.set_nodelay(true).ok();
                    return Some((Ok(Counted { stream, _place: place }), (listener, places)));
                }
                Err(error) => {
                    if errors.is_multiple_of(LOGGED_ERRORS) {
                        tracing::warn!(%error, "no connection can be accepted; out of files? raise LimitNOFILE");
                    }
                    errors = errors.wrapping_add(1);
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}

/// A connection and its place.
struct Counted {
    stream: TcpStream,
    _place: OwnedSemaphorePermit,
}

impl Connected for Counted {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
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
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
