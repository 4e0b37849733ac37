//! The gRPC server: aggregated discovery in both variants on one listener.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::{BoxFuture, ready};
use http_body_util::BodyExt;
use muster_catalog::port::Source;
use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc, watch},
    task::{JoinError, JoinHandle},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    codegen::http,
    server::{Grpc, NamedService},
    transport::server::Server,
};
use tower::{service_fn, util::MapRequestLayer};
use tracing::info;

use crate::{
    budget::{Account, Budget},
    config::{ConfigError, Unregistered, XdsConfig},
    connection::{self, Caller},
    kind::ResourceKind,
    publisher::{Published, publish},
    request::{DeltaDiscoveryRequest, DiscoveryRequest, RequestCodec},
    roster::{ProxyStatus, Roster},
    stream::StreamTask,
    translate::Translator,
    wire::Wire,
};

/// Room for one push of each kind: more are never under way, since each waits for its answer.
const OUTBOUND: usize = ResourceKind::ALL.len();

/// The longest request: 65,536 names of 63 bytes, or of 40 with as many versions on a reconnect. What is read of it
/// is not much larger, whatever it is made of: see [`RequestCodec`].
const MAX_REQUEST_BYTES: usize = 8 << 20;

/// How much of a stream may come before its task takes it, in bytes: the smallest that HTTP/2 begins with, and more than
/// the requests of most. A task that waits for a client to read leaves it lying there.
const STREAM_WINDOW: u32 = 64 * 1024;

/// The same of all streams of a connection: one that is not taken leaves the others their way.
const CONNECTION_WINDOW: u32 = 128 * 1024;

/// Streams per connection: a client multiplexes one or two; gRPC processes share a connection for a few channels.
const MAX_STREAMS_PER_CONNECTION: u32 = 64;

/// A silent peer is asked for a sign of life this often …
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);

/// … and is gone when none comes within this: a busy proxy may take seconds.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Serves the catalog as xDS.
#[derive(Debug)]
pub struct Xds;

/// Why the server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration says something that every client would reject.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The socket that was given has no address.
    #[error("the xDS listener has no local address: {0}")]
    Listener(#[from] std::io::Error),
}

/// Why the server ended although nobody stopped it.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The gRPC transport failed.
    #[error("the xDS server failed: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// A task of it panicked.
    #[error("a task of the xDS server ended unexpectedly: {0}")]
    Task(#[from] JoinError),
}

/// A running server.
#[derive(Debug)]
pub struct XdsHandle {
    address: SocketAddr,
    roster: Roster,
    publisher: JoinHandle<()>,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    streams: TaskTracker,
    stop: CancellationToken,
}

impl XdsHandle {
    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Everyone connected, and what each accepted or rejected.
    pub fn proxies(&self) -> Vec<ProxyStatus> {
        self.roster.proxies()
    }

    /// The same list, for who outlives this handle.
    pub fn roster(&self) -> Roster {
        self.roster.clone()
    }

    /// Returns once all tasks have ended; an error when one did without being stopped.
    pub async fn join(self) -> Result<(), ServeError> {
        let Self { mut publisher, mut server, streams, stop, .. } = self;
        let outcome = tokio::select! {
            ended = &mut publisher => {
                stop.cancel();
                let served = server.await;
                ended.map_err(ServeError::from).and(served.map_err(ServeError::from))
            }
            served = &mut server => {
                stop.cancel();
                publisher.await.map_err(ServeError::from).and(served.map_err(ServeError::from))
            }
        };
        streams.close();
        streams.wait().await;
        Ok(outcome??)
    }
}

impl Xds {
    /// Serves until stopped. Must be called within a tokio runtime.
    pub fn start(
        config: XdsConfig,
        listener: TcpListener,
        source: Arc<dyn Source>,
        stop: CancellationToken,
    ) -> Result<XdsHandle, StartError> {
        config.validate()?;
        let address = listener.local_addr()?;
        // A child: what ends one task ends all of this server, and nothing else.
        let stop = stop.child_token();
        let (sender, published) = watch::channel(None);
        let (roster, streams) = (Roster::default(), TaskTracker::new());
        let opened = Arc::<Notify>::default();
        let service = Service {
            published,
            opened: opened.clone(),
            roster: roster.clone(),
            streams: streams.clone(),
            stop: stop.clone(),
        };
        let serves_all = config.unregistered == Unregistered::All;
        let publishing = publish(Translator::new(config), source, sender, opened, stop.clone(), serves_all);
        let publisher = tokio::spawn(publishing);
        let budget = Budget::default();
        let server = Server::builder()
            .layer(MapRequestLayer::new(move |request| count(request, budget.open())))
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .max_concurrent_streams(MAX_STREAMS_PER_CONNECTION)
            .add_service(service)
            .serve_with_incoming_shutdown(connection::admit(listener), stop.clone().cancelled_owned());
        let server = tokio::spawn(server);
        info!(%address, "serving xDS");
        Ok(XdsHandle { address, roster, publisher, server, streams, stop })
    }
}

/// The request, whose body is counted as it comes, and left out from where there is no room for it.
fn count(request: http::Request<Body>, account: Account) -> http::Request<Body> {
    let arrives = account.clone();
    let mut request = request.map(|body| {
        Body::new(body.map_frame(move |frame| {
            frame.map_data(|data| if arrives.arrive(data.len()) { data } else { Default::default() })
        }))
    });
    request.extensions_mut().insert(account);
    request
}

/// Aggregated discovery. What is generated for it would read requests as a whole, with what is not used of them.
#[derive(Clone)]
struct Service {
    published: Published,
    opened: Arc<Notify>,
    roster: Roster,
    streams: TaskTracker,
    stop: CancellationToken,
}

type Outbound<R> = ReceiverStream<Result<R, Status>>;

impl Service {
    fn open<W: Wire>(&self, request: Request<Streaming<W>>) -> Result<Response<Outbound<W::Response>>, Status> {
        let place = self.roster.find_place().ok_or_else(|| {
            Status::resource_exhausted("as many streams are open as this agent serves: connect to another agent")
        })?;
        let account = request.extensions().get::<Account>().cloned();
        let account = account.ok_or_else(|| Status::internal("the request was not counted"))?;
        let caller = request.extensions().get::<Caller>().cloned();
        let (outbound, pushes) = mpsc::channel(OUTBOUND);
        let mut published = self.published.clone();
        published.mark_changed();
        self.opened.notify_one();
        let task = StreamTask {
            peer: caller.as_ref().and_then(|caller| caller.peer),
            _hold: caller.as_ref().map(Caller::hold),
            inbound: request.into_inner(),
            outbound,
            published,
            place,
            account,
            stop: self.stop.clone(),
        };
        self.streams.spawn(task.run());
        Ok(Response::new(ReceiverStream::new(pushes)))
    }

    async fn answer<W: Wire>(self, request: http::Request<Body>) -> Result<http::Response<Body>, Infallible> {
        let mut grpc = Grpc::new(RequestCodec::<W>::default()).max_decoding_message_size(MAX_REQUEST_BYTES);
        Ok(grpc.streaming(service_fn(|request| ready(self.open::<W>(request))), request).await)
    }
}

impl NamedService for Service {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

impl tower::Service<http::Request<Body>> for Service {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.clone();
        match request.uri().path() {
            DiscoveryRequest::PATH => Box::pin(service.answer::<DiscoveryRequest>(request)),
            DeltaDiscoveryRequest::PATH => Box::pin(service.answer::<DeltaDiscoveryRequest>(request)),
            _ => Box::pin(ready(Ok(Status::unimplemented("there is no such method").into_http()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;
    use tonic::codegen::Bytes;

    use super::*;
    use crate::budget::SHARE;

    #[tokio::test]
    async fn a_body_is_counted_as_it_comes_and_left_out_where_there_is_no_room() {
        let budget = Budget::new(1_000);
        for (sent, taken) in [(SHARE + 1_000, SHARE + 1_000), (SHARE + 1_001, 0)] {
            let body = Body::new(Full::<Bytes>::from(vec![0; sent]));
            let counted = count(http::Request::new(body), budget.open());
            assert!(counted.extensions().get::<Account>().is_some());
            let (_head, body) = counted.into_parts();
            assert_eq!(body.collect().await.unwrap().to_bytes().len(), taken);
        }
    }
}
