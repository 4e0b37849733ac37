//! One stream: requests in, pushes out.

use std::{net::SocketAddr, time::Duration};

use envoy_types::pb::envoy::config::core::v3::Node;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};
use tracing::{debug, warn};

use crate::{
    connection::Hold,
    publisher::Published,
    resource::ResourceKind,
    roster::{Place, Rejected},
    subscription::{Request, RequestError, Subscriptions, Verdict},
    wire::Wire,
};

/// What was rejected is sent again after this, and after twice as long each time …
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// … up to this: a port that was taken comes free sooner or later, and a wrong resource is no load.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What a stream's task needs.
pub(crate) struct StreamTask<W: Wire> {
    pub(crate) inbound: Streaming<W>,
    pub(crate) outbound: mpsc::Sender<Result<W::Response, Status>>,
    pub(crate) published: Published,
    pub(crate) place: Place,
    pub(crate) peer: Option<SocketAddr>,
    /// Keeps the connection open.
    pub(crate) _hold: Option<Hold>,
    pub(crate) stop: CancellationToken,
}

/// The times of one kind's pushes.
#[derive(Debug, Clone, Copy, Default)]
struct Times {
    /// When the push was sent that was not answered yet.
    pushed: Option<Instant>,
    /// When what was rejected is sent again.
    again: Option<Instant>,
    /// How long after its rejection that is.
    pause: Duration,
}

impl Times {
    fn take(&mut self, is_rejected: bool) {
        self.pause = if is_rejected { (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE) } else { Duration::ZERO };
        self.again = is_rejected.then(|| Instant::now() + self.pause);
    }
}

/// Waits for the next kind of which something rejected is to be sent again.
async fn next_again(times: &[Times; 4]) -> ResourceKind {
    let due = |kind: ResourceKind| times[kind as usize].again.map(|at| (at, kind));
    match ResourceKind::ALL.into_iter().filter_map(due).min_by_key(|(at, _)| *at) {
        Some((at, kind)) => {
            tokio::time::sleep_until(at).await;
            kind
        }
        None => std::future::pending().await,
    }
}

/// Why a stream ended.
enum End {
    /// The client left.
    Left,
    /// We end it, and say why.
    Refused(Status),
}

impl<W: Wire> StreamTask<W> {
    /// Serves the stream to its end, and tells the client when it is we who end it.
    pub(crate) async fn run(mut self) {
        if let End::Refused(status) = self.serve().await {
            debug!(peer = ?self.peer, %status, "stream ended");
            // A client that reads nothing any more does not get to hold the task.
            let _ = self.outbound.try_send(Err(status));
        }
    }

    async fn serve(&mut self) -> End {
        let mut subscriptions = Subscriptions::new(W::VARIANT);
        let mut times = [Times::default(); 4];
        let (mut node_id, mut was_registered) = (None, None);
        loop {
            // Every reason to wake: a request, other resources, something to send again, the end of the server.
            let request = tokio::select! {
                () = self.stop.cancelled() => return End::Refused(Status::unavailable("the agent is stopping")),
                request = self.inbound.message() => Some(request),
                changed = self.published.changed() => match changed {
                    Ok(()) => None,
                    Err(_) => return End::Refused(Status::unavailable("the agent is stopping")),
                },
                kind = next_again(&times) => {
                    times[kind as usize].again = None;
                    subscriptions.retry(kind);
                    None
                }
            };
            if let Some(request) = request {
                let Ok(Some(mut request)) = request else { return End::Left };
                if node_id.is_none() {
                    match self.admit(request.take_node()) {
                        Ok(id) => node_id = Some(id),
                        Err(status) => return End::Refused(status),
                    }
                }
                let Some(request) = request.read() else { continue };
                let node_id = node_id.as_deref().unwrap_or_default();
                if let Err(error) = self.take(&mut subscriptions, &mut times, request, node_id) {
                    return End::Refused(Status::resource_exhausted(error.to_string()));
                }
            }
            let Some(served) = self.published.borrow_and_update().clone() else { continue };
            let Some(node_id) = node_id.as_deref() else { continue };
            let (resources, is_registered) = match (served.proxies.get(node_id), &served.all) {
                (Some(resources), _) => (resources, true),
                (None, _) if served.expected.contains(node_id) => continue,
                (None, Some(all)) => (all, false),
                (None, None) => return End::Refused(no_proxy(node_id)),
            };
            if was_registered.replace(is_registered).is_some_and(|was| was != is_registered) {
                subscriptions.compare_anew();
            }
            while let Some(push) = subscriptions.next_push(resources) {
                metrics::counter!("muster_xds_pushes_total", "type" => push.kind.as_str()).increment(1);
                times[push.kind as usize].pushed = Some(Instant::now());
                tokio::select! {
                    () = self.stop.cancelled() => return End::Refused(Status::unavailable("the agent is stopping")),
                    sent = self.outbound.send(Ok(W::write(push))) => if sent.is_err() { return End::Left },
                }
            }
        }
    }

    /// Who the client is decides what it is served. Its word is taken: until it has an identity there is no other.
    fn admit(&self, node: Option<Node>) -> Result<String, Status> {
        let node = node.filter(|node| !node.id.is_empty()).ok_or_else(|| {
            Status::invalid_argument("the first request of the stream names no node: set node.id in the bootstrap")
        })?;
        self.place.enter(&node.id, &node.cluster, self.peer, W::VARIANT);
        Ok(node.id)
    }

    fn take(
        &self,
        subscriptions: &mut Subscriptions,
        times: &mut [Times; 4],
        request: Request,
        node_id: &str,
    ) -> Result<(), RequestError> {
        let kind = request.kind;
        let verdict = subscriptions.take(request)?;
        if verdict != Verdict::Nothing {
            let times = &mut times[kind as usize];
            if let Some(pushed) = times.pushed.take() {
                metrics::histogram!("muster_xds_push_seconds", "type" => kind.as_str()).record(pushed.elapsed());
            }
            times.take(subscriptions.is_rejected(kind));
        }
        let stands = subscriptions.is_rejected(kind);
        let mut is_news = false;
        self.place.edit(kind, |status| match &verdict {
            Verdict::Accepted(version) => {
                status.accepted = Some(version.to_string());
                status.rejected = status.rejected.take().filter(|_| stands);
            }
            Verdict::Rejected(version, message) => {
                let rejected = Rejected { version: version.to_string(), message: message.clone() };
                is_news = status.rejected.replace(rejected).is_none_or(|last| last.message != *message);
            }
            Verdict::Nothing => {}
        });
        if let Verdict::Rejected(version, message) = verdict {
            self.report(kind, &version.to_string(), &message, node_id, is_news);
        }
        Ok(())
    }

    /// The same reason again, at a retry, is counted but not logged as loudly.
    fn report(&self, kind: ResourceKind, version: &str, message: &str, node_id: &str, is_news: bool) {
        metrics::counter!("muster_xds_nacks_total", "type" => kind.as_str()).increment(1);
        if !is_news {
            debug!(node = node_id, r#type = kind.as_str(), version, message, "a proxy rejected a push again");
            return;
        }
        warn!(
            node = node_id, peer = ?self.peer, r#type = kind.as_str(), version, message,
            "a proxy rejected a push; what was good in it is in force, and it is sent again with the next push or after a pause"
        );
    }
}

/// Known only once the catalog is: until then the client waits.
fn no_proxy(node_id: &str) -> Status {
    let id: String = node_id.chars().take(64).collect();
    Status::permission_denied(format!(
        "node id {id:?} is no registered proxy of this agent's node: register it with [service.proxy] under this id, or \
         set xds.unregistered = \"all\" to serve all services to such"
    ))
}
