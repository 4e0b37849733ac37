//! The server: connections with limits and deadlines, and a stop that lets answers out.

use std::{io, io::Write as _, net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    api::{Api, Limits},
    budget::Answers,
    connection::{Times, serve_connection},
    host::AllowedHosts,
    port::{Ports, Readiness, RenderMetrics},
    probes::Probes,
    router::{probes_router, router},
};

/// How long to wait after a failed accept: out of file descriptors, the next one fails as well.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Of failed accepts in a row one in so many is logged: one every five seconds.
const LOGGED_ERRORS: u32 = 50;
/// What a client hears that is one too many. Written whole, without reading what it asks.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n\
Connection: close\r\nContent-Length: 68\r\n\r\ntoo many connections: close idle ones or raise http.max_connections\n";

/// How the server behaves. The wiring fills it from the configuration.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    /// The datacenter that is answered for.
    pub datacenter: String,
    /// How many connections there may be; parked reads hold one each.
    pub max_connections: usize,
    /// The largest body in bytes.
    pub max_body: usize,
    /// How long a client may take to send a request's head, and how long a connection may be idle.
    pub header_read_timeout: Duration,
    /// How long a client may take to send a request's body.
    pub body_timeout: Duration,
    /// How long a client may take nothing of its answer before it is cut off.
    pub write_timeout: Duration,
    /// How long a stop waits for answers that are on their way.
    pub drain_timeout: Duration,
    /// Names, beside IP addresses and `localhost`, that clients may call this server by in `Host`; one that begins with
    /// a dot stands for all names below it.
    pub allowed_hosts: Vec<String>,
}

impl HttpConfig {
    /// The defaults: room for 10,000 parked reads and as many others, bodies of 512 KiB as in the dialect.
    pub fn new(datacenter: impl Into<String>) -> Self {
        Self {
            datacenter: datacenter.into(),
            max_connections: 20_000,
            max_body: 512 * 1024,
            header_read_timeout: Duration::from_secs(60),
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(20),
            drain_timeout: Duration::from_secs(5),
            allowed_hosts: Vec::new(),
        }
    }
}

/// The server.
#[derive(Debug)]
pub struct Http;

/// A running server. Dropping it does not stop it; the token does.
#[derive(Debug)]
pub struct HttpHandle {
    /// Where it listens.
    pub address: SocketAddr,
    /// Ends after the token was cancelled and the connections are closed; earlier only by a defect.
    pub task: JoinHandle<()>,
}

impl Http {
    /// Serves on a bound listener until the token is cancelled.
    pub fn start(
        config: HttpConfig,
        listener: TcpListener,
        ports: Ports,
        shutdown: CancellationToken,
    ) -> io::Result<HttpHandle> {
        let limits = Limits { max_body: config.max_body, body_timeout: config.body_timeout };
        let api = Arc::new(Api::new(ports, config.datacenter.clone(), limits, shutdown.clone()));
        let hosts = AllowedHosts::new(&config.allowed_hosts);
        Self::serve(config, listener, router(api, hosts), shutdown)
    }

    /// Serves `/metrics`, `/livez` and `/readyz` alone, for a process that has no v1 API.
    pub fn start_probes(
        config: HttpConfig,
        listener: TcpListener,
        readiness: Arc<dyn Readiness>,
        metrics: RenderMetrics,
        shutdown: CancellationToken,
    ) -> io::Result<HttpHandle> {
        Self::serve(config, listener, probes_router(Probes { readiness, metrics, answers: Answers::new() }), shutdown)
    }

    fn serve(
        config: HttpConfig,
        listener: TcpListener,
        router: Router,
        shutdown: CancellationToken,
    ) -> io::Result<HttpHandle> {
        let address = listener.local_addr()?;
        let task = tokio::spawn(serve(config, listener, router, shutdown));
        Ok(HttpHandle { address, task })
    }
}

async fn serve(config: HttpConfig, listener: TcpListener, router: Router, shutdown: CancellationToken) {
    let room = Arc::new(Semaphore::new(config.max_connections.min(Semaphore::MAX_PERMITS)));
    let connections = TaskTracker::new();
    let times = Times { head: config.header_read_timeout, drain: config.drain_timeout, stall: config.write_timeout };
    let mut errors: u32 = 0;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                if errors.is_multiple_of(LOGGED_ERRORS) {
                    tracing::warn!(%error, "http: no connection can be accepted; out of files? raise LimitNOFILE");
                }
                errors = errors.wrapping_add(1);
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        errors = 0;
        match room.clone().try_acquire_owned() {
            Ok(permit) => {
                let serving = serve_connection(stream, router.clone(), times, shutdown.clone());
                connections.spawn(async move {
                    let _permit = permit;
                    serving.await;
                });
            }
            Err(_) => turn_away(stream),
        }
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(config.drain_timeout, connections.wait()).await.is_err() {
        tracing::warn!(left = connections.len(), "http: connections were cut off at the end of the drain");
    }
}

/// Tells a client that is one too many so, as far as that goes without waiting for it.
fn turn_away(stream: TcpStream) {
    metrics::counter!("muster_http_connections_refused_total").increment(1);
    if let Ok(mut stream) = stream.into_std() {
        let _ = stream.write_all(FULL);
    }
}
