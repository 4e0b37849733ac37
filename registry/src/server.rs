//! The listening side of a member: connections within a limit, and the tasks behind them.

use std::{
    future::Future,
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
    time::Sleep,
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
/// A connection has to begin to speak HTTP/2 within this. Clients do with their first packet; one that says nothing holds a
/// place and is not probed yet. One that has begun may be without a stream for as long as it likes: members and agents
/// keep such on purpose, and have to answer the probes.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(5);
/// What each HTTP/2 client says first has so many bytes; the server above looks at what they are.
const PREFACE_BYTES: usize = 24;
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
    probing(KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT)
        .add_routes(routes)
        .serve_with_incoming_shutdown(accept(listener, max_connections, BEGIN_TIMEOUT), stop.cancelled_owned())
        .await
}

/// A server that probes silent connections so often, and gives an answer so long.
fn probing(interval: Duration, timeout: Duration) -> Server {
    Server::builder()
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(interval))
        .http2_keepalive_timeout(Some(timeout))
        .max_concurrent_streams(MAX_STREAMS)
}

/// Connections, as long as there are places; others wait in the listener's backlog.
fn accept(listener: TcpListener, places: usize, begin_timeout: Duration) -> impl Stream<Item = io::Result<Counted>> {
    let places = Arc::new(Semaphore::new(places));
    stream::unfold((listener, places), move |(listener, places)| async move {
        let place = places.clone().acquire_owned().await.ok()?;
        let mut errors: u32 = 0;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    stream.set_nodelay(true).ok();
                    return Some((Ok(Counted::new(stream, begin_timeout, place)), (listener, places)));
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
    /// Until it has begun to speak: the end of its time, and how many bytes are lacking.
    silence: Option<(Pin<Box<Sleep>>, usize)>,
    _place: OwnedSemaphorePermit,
}

impl Counted {
    fn new(stream: TcpStream, begin_timeout: Duration, place: OwnedSemaphorePermit) -> Self {
        let silence = (Box::pin(tokio::time::sleep(begin_timeout)), PREFACE_BYTES);
        Self { stream, silence: Some(silence), _place: place }
    }

    /// Takes note of what was read.
    fn heard(&mut self, bytes: usize) {
        if let Some((_, lacking)) = &mut self.silence {
            *lacking = lacking.saturating_sub(bytes);
        }
        self.silence.take_if(|(_, lacking)| *lacking == 0);
    }
}

impl Connected for Counted {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.heard(buf.filled().len() - before);
        if let (Some((end, _)), Poll::Pending) = (&mut self.silence, &read)
            && end.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
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

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt, future::join_all};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        time::{Instant, sleep, timeout},
    };

    use super::*;
    use crate::raft;

    const PLACES: usize = 64;

    /// A server with no service: whatever is called, it answers.
    async fn serve_few(begin_timeout: Duration) -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let incoming = accept(listener, PLACES, begin_timeout);
        tokio::spawn(
            probing(Duration::from_millis(100), Duration::from_millis(100))
                .add_routes(Routes::default())
                .serve_with_incoming(incoming),
        );
        address
    }

    /// One call, which is answered by "unimplemented".
    async fn call(address: std::net::SocketAddr) -> (tonic::transport::Channel, tonic::Code) {
        let channel = raft::endpoint(format!("http://{address}")).unwrap().connect().await.unwrap();
        let code = call_on(&channel).await;
        (channel, code)
    }

    async fn call_on(channel: &tonic::transport::Channel) -> tonic::Code {
        let mut client = crate::service::peers::client(channel.clone());
        client.brakes(crate::proto::registry::BrakesRequest { forwarded: false }).await.unwrap_err().code()
    }

    async fn ended(mut stream: TcpStream) {
        // What the server says before it hangs up is of no interest, nor how it does.
        while matches!(stream.read(&mut [0; 64]).await, Ok(1..)) {}
    }

    #[tokio::test]
    async fn silent_connections_make_place_and_one_that_is_kept_without_a_stream_stays() {
        let address = serve_few(Duration::from_millis(300)).await;
        let (kept, code) = call(address).await;
        assert_eq!(code, tonic::Code::Unimplemented);
        let mut silent = Vec::new();
        for number in 0..2 * PLACES {
            let mut stream = TcpStream::connect(address).await.unwrap();
            // One in two says less than it has to.
            if number % 2 == 0 {
                stream.write_all(b"PRI * HTTP/2.0").await.unwrap();
            }
            silent.push(stream);
        }
        let (_, code) = timeout(Duration::from_secs(10), call(address)).await.expect("no place came free");
        assert_eq!(code, tonic::Code::Unimplemented);
        timeout(Duration::from_secs(10), join_all(silent.into_iter().map(ended))).await.expect("some stay for ever");
        assert_eq!(call_on(&kept).await, tonic::Code::Unimplemented, "what is kept on purpose was dropped");
    }

    #[tokio::test]
    async fn one_that_begins_and_is_silent_then_ends_by_the_probes() {
        let address = serve_few(Duration::from_secs(60)).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        // The preface and empty settings.
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        timeout(Duration::from_secs(10), ended(stream)).await.expect("it holds its place for ever");
    }

    #[tokio::test]
    async fn who_says_a_byte_now_and_then_has_no_more_time() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut incoming = std::pin::pin!(accept(listener, 1, Duration::from_millis(200)));
        let mut taken = incoming.next().await.unwrap().unwrap();
        let drips = async {
            for _ in 0..PREFACE_BYTES - 1 {
                stream.write_all(b"P").await.unwrap();
                sleep(Duration::from_millis(20)).await;
            }
            std::future::pending::<()>().await;
        };
        let begun = Instant::now();
        let reads = async { while taken.read(&mut [0; 64]).await.is_ok() {} };
        tokio::select! {
            () = drips => {}
            () = reads => {}
        }
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
}
