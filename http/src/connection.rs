//! One connection from its first byte to its last. hyper speaks HTTP on it, except while a read is parked or nothing
//! has been asked yet: hyper keeps two buffers of 8 KiB for each connection, and one that only waits needs neither.
//!
//! A read that parks leaves hyper with the connection: what is left is the socket and the future that makes the
//! answer. Once that is there it is written here, and the next request begins anew with hyper.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Method, Request, Response, Version, header},
};
use bytes::{Buf as _, Bytes};
use http_body_util::BodyExt as _;
use hyper::{
    body::{Body as _, Incoming},
    rt::{Read, ReadBufCursor, Write},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncWriteExt as _, ReadBuf},
    net::TcpStream,
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

pub(crate) use self::mark::ParkedMark;
use self::{mark::Flag, pace::Pace};

mod head;
mod mark;
mod pace;

/// hyper's buffers grow no larger: larger bodies come in pieces.
const CONNECTION_BUFFER: usize = 16 * 1024;

/// How long things may take on a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    /// How long it may be idle, and how long the head of a request may take.
    pub(crate) head: Duration,
    /// How long a stop waits for an answer that is on its way.
    pub(crate) drain: Duration,
    /// How long a client may take nothing of its answer.
    pub(crate) stall: Duration,
}

/// Answers what is asked on a connection until it ends.
pub(crate) async fn serve_connection(mut stream: TcpStream, router: Router, times: Times, shutdown: CancellationToken) {
    // Answers are small and awaited.
    let _ = stream.set_nodelay(true);
    let mut unread = Bytes::new();
    loop {
        if unread.is_empty() && !is_asked(&stream, times.head, &shutdown).await {
            return;
        }
        // Boxed, as `finish` is, so that what waits does not take the place of their state.
        let served = Box::pin(serve(stream, unread, &router, times, &shutdown));
        let Some(mut parked) = served.await else { return };
        let Some(response) = parked.answer().await else { return };
        if !Box::pin(finish(&mut parked.stream, response, times, &shutdown)).await {
            return;
        }
        Parked { stream, unread, .. } = parked;
    }
}

/// Waits for the first byte of a request; false when the connection ends without one.
async fn is_asked(stream: &TcpStream, patience: Duration, shutdown: &CancellationToken) -> bool {
    let mut first = [0];
    tokio::select! {
        biased;
        // What is new counts as readable until it was looked at.
        seen = stream.peek(&mut first) => matches!(seen, Ok(1..)),
        () = tokio::time::sleep(patience) => false,
        () = shutdown.cancelled() => false,
    }
}

/// Writes the answer to a read that was parked; says whether the connection goes on.
async fn finish(stream: &mut TcpStream, response: Response<Body>, times: Times, shutdown: &CancellationToken) -> bool {
    let last = shutdown.is_cancelled();
    let written = tokio::select! {
        biased;
        written = write(stream, response, last, times.stall) => written,
        () = drained(shutdown, times.drain) => return false,
    };
    if let Err(error) = &written {
        tracing::debug!(%error, "http: connection ended");
    }
    written.is_ok() && !last
}

async fn drained(shutdown: &CancellationToken, drain: Duration) {
    shutdown.cancelled().await;
    tokio::time::sleep(drain).await;
}

/// Lets hyper serve the connection until it ends (`None`), or a read parks.
async fn serve(
    stream: TcpStream,
    unread: Bytes,
    router: &Router,
    times: Times,
    shutdown: &CancellationToken,
) -> Option<Parked> {
    let in_flight = Arc::new(InFlight::default());
    let unflushed = in_flight.unflushed.clone();
    let stream = PrefixedStream { stream: TokioIo::new(stream), unread, unflushed, stall: times.stall, pace: None };
    let service = service_fn(|request| in_flight.take(router.clone(), request));
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(times.head)
        .max_buf_size(CONNECTION_BUFFER)
        // `X-Consul-Index` on the wire, as clients of the dialect print it.
        .title_case_headers(true)
        .serve_connection(stream, service);
    let until_parked = poll_fn(|cx| match Pin::new(&mut connection).poll(cx) {
        Poll::Ready(ended) => Poll::Ready(Some(ended)),
        Poll::Pending if in_flight.is_parked() => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    });
    let ended = tokio::select! {
        ended = until_parked => ended,
        () = shutdown.cancelled() => {
            Pin::new(&mut connection).graceful_shutdown();
            Some(tokio::time::timeout(times.drain, &mut connection).await.unwrap_or(Ok(())))
        }
    };
    match ended {
        Some(Ok(())) => None,
        Some(Err(error)) => {
            tracing::debug!(%error, "http: connection ended");
            None
        }
        None => {
            let answering = in_flight.answering().take()?;
            let parts = connection.into_parts();
            // Copied, so that the rest of a buffer does not hold all of it; mostly there is none.
            let unread = Bytes::from([&parts.read_buf[..], &parts.io.unread[..]].concat());
            Some(Parked { stream: parts.io.stream.into_inner(), unread, answering })
        }
    }
}

/// The future that makes an answer.
type Answering = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// A connection whose read is parked.
struct Parked {
    stream: TcpStream,
    /// What the client has sent beyond the request.
    unread: Bytes,
    answering: Answering,
}

impl Parked {
    /// Waits for the answer; `None` when the client goes away first.
    async fn answer(&mut self) -> Option<Response<Body>> {
        let mut looks = self.unread.is_empty();
        poll_fn(|cx| {
            if let Poll::Ready(Ok(response)) = self.answering.as_mut().poll(cx) {
                return Poll::Ready(Some(response));
            }
            if looks && let Poll::Ready(seen) = self.stream.poll_peek(cx, &mut ReadBuf::new(&mut [0])) {
                match seen {
                    // Ahead of the answer the client asks more: it is there, and its end shows behind that only.
                    Ok(1..) => looks = false,
                    Ok(0) | Err(_) => return Poll::Ready(None),
                }
            }
            Poll::Pending
        })
        .await
    }
}

async fn write(stream: &mut TcpStream, response: Response<Body>, last: bool, stall: Duration) -> io::Result<()> {
    let (parts, body) = response.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let head = head::encode(&parts, body.len(), last, std::time::SystemTime::now());
    let (mut left, mut pace) = (Bytes::from(head).chain(body), Pace::new(stall));
    while left.has_remaining() {
        tokio::select! {
            biased;
            written = stream.write_buf(&mut left) => match written? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                bytes => pace.moved(bytes),
            },
            error = pace.too_slow() => return Err(error),
        }
    }
    if last { stream.shutdown().await } else { Ok(()) }
}

/// The request in flight: the future that makes its answer. hyper is given one that looks in here
/// ([`ResponseFuture`]), so that what makes the answer can be taken away from it.
#[derive(Default)]
struct InFlight {
    answering: Mutex<Option<Answering>>,
    parked: ParkedMark,
    /// Whether hyper holds something of an earlier answer that the socket did not take.
    unflushed: Flag,
}

impl InFlight {
    fn answering(&self) -> MutexGuard<'_, Option<Answering>> {
        self.answering.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_parked(&self) -> bool {
        self.parked.is_set() && !self.unflushed.get() && self.answering().is_some()
    }

    fn take(self: &Arc<Self>, router: Router, mut request: Request<Incoming>) -> ResponseFuture {
        self.parked.clear();
        if may_leave(&request) {
            request.extensions_mut().insert(self.parked.clone());
        }
        *self.answering() = Some(Box::pin(router.oneshot(request.map(Body::new))));
        ResponseFuture(self.clone())
    }
}

/// Whether the answer is written here if the read parks: to a GET by the book, after which the connection stays.
fn may_leave(request: &Request<Incoming>) -> bool {
    let (method, version) = (request.method(), request.version());
    method == Method::GET && version == Version::HTTP_11 && request.body().is_end_stream() && stays(request.headers())
}

fn stays(headers: &HeaderMap) -> bool {
    headers.get_all(header::CONNECTION).iter().all(|value| value.as_bytes().eq_ignore_ascii_case(b"keep-alive"))
}

/// The answer as hyper awaits it: whatever the request in flight comes to.
struct ResponseFuture(Arc<InFlight>);

impl Future for ResponseFuture {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut answering = self.0.answering();
        let Some(future) = answering.as_mut() else { return Poll::Pending };
        let polled = future.as_mut().poll(cx);
        if polled.is_ready() {
            *answering = None;
        }
        polled
    }
}

/// The socket as hyper sees it: what was read before comes first.
struct PrefixedStream {
    stream: TokioIo<TcpStream>,
    unread: Bytes,
    unflushed: Flag,
    stall: Duration,
    /// Of the answer that is on its way.
    pace: Option<Pace>,
}

impl PrefixedStream {
    /// What the socket took of an answer; an error once its client is too slow.
    fn paced(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let stall = self.stall;
        let pace = self.pace.get_or_insert_with(|| Pace::new(stall));
        match polled {
            Poll::Pending => pace.poll_too_slow(cx).map(Err),
            Poll::Ready(Ok(bytes)) => {
                pace.moved(bytes);
                Poll::Ready(Ok(bytes))
            }
            error => error,
        }
    }
}

impl Read for PrefixedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        if self.unread.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let count = self.unread.len().min(buf.remaining());
        buf.put_slice(&self.unread.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl Write for PrefixedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.unflushed.set(true);
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.paced(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.unflushed.set(true);
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.paced(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    // hyper flushes once all that it holds is written, and not before.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.unflushed.set(false);
        self.pace = None;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
