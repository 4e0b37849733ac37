//! One stream: requests in, pushes out.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};
use tracing::{debug, warn};

use crate::{
    budget::{Account, NoRoom},
    connection::Hold,
    kind::{KindMap, ResourceKind},
    publisher::Published,
    request::Node,
    resource::Resources,
    roster::{Place, Rejected},
    subscription::{Request, RequestError, Subscriptions, Verdict},
    wire::Wire,
};

/// What was rejected is sent again after this, and after twice as long each time …
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// … up to this: a port that was taken comes free sooner or later, and a wrong resource is no load.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The longest id of a node. It is kept as long as the stream; ids of Envoys have some hundred bytes.
const MAX_NODE_ID_BYTES: usize = 4_096;

/// What a stream's task needs.
pub(crate) struct StreamTask<W: Wire> {
    pub(crate) inbound: Streaming<W>,
    pub(crate) outbound: mpsc::Sender<Result<W::Response, Status>>,
    pub(crate) published: Published,
    pub(crate) place: Place,
    pub(crate) account: Account,
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
async fn next_again(times: &KindMap<Times>) -> ResourceKind {
    let due = |kind: ResourceKind| times[kind].again.map(|at| (at, kind));
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

impl From<RequestError> for End {
    fn from(error: RequestError) -> Self {
        Self::Refused(Status::resource_exhausted(error.to_string()))
    }
}

impl From<NoRoom> for End {
    fn from(error: NoRoom) -> Self {
        Self::Refused(Status::resource_exhausted(error.to_string()))
    }
}

fn stopping() -> End {
    End::Refused(Status::unavailable("the agent is stopping"))
}

impl<W: Wire> StreamTask<W> {
    /// Serves the stream to its end, and tells the client when it is we who end it.
    pub(crate) async fn run(mut self) {
        if let Err(End::Refused(status)) = self.serve().await {
            debug!(peer = ?self.peer, %status, "stream ended");
            // A client that reads nothing any more does not get to hold the task.
            let _ = self.outbound.try_send(Err(status));
        }
    }

    async fn serve(&mut self) -> Result<Infallible, End> {
        let mut subscriptions = Subscriptions::new(W::VARIANT);
        let mut times = KindMap::<Times>::default();
        let (mut node_id, mut was_registered) = (None, None);
        loop {
            // Every reason to wake: a request, one that is too large, other resources, something to send again, the end of
            // the server.
            let request = tokio::select! {
                () = self.stop.cancelled() => return Err(stopping()),
                refused = self.account.refused() => return Err(refused.into()),
                request = self.inbound.message() => Some(request),
                changed = self.published.changed() => match changed {
                    Ok(()) => None,
                    Err(_) => return Err(stopping()),
                },
                kind = next_again(&times) => {
                    times[kind].again = None;
                    subscriptions.retry(kind);
                    None
                }
            };
            if let Some(request) = request {
                // An error is the client's going, or what is wrong with its request: then it is told.
                let Some(mut request) = request.map_err(End::Refused)? else { return Err(End::Left) };
                self.account.read();
                if node_id.is_none() {
                    node_id = Some(self.admit(request.take_node()).map_err(End::Refused)?);
                }
                let Some(request) = request.read() else { continue };
                let node_id = node_id.as_deref().unwrap_or_default();
                self.take(&mut subscriptions, &mut times, request, node_id).await?;
            }
            let Some(served) = self.published.borrow_and_update().clone() else { continue };
            let Some(node_id) = node_id.as_deref() else { continue };
            let (resources, is_registered) = match (served.proxies.get(node_id), &served.all) {
                (Some(resources), _) => (resources, true),
                (None, _) if served.expected.contains(node_id) => continue,
                (None, Some(all)) if was_registered != Some(true) && !served.known.contains(node_id) => (all, false),
                (None, Some(_)) => return Err(End::Refused(no_proxy_any_more(node_id))),
                (None, None) => return Err(End::Refused(no_proxy(node_id))),
            };
            if was_registered.replace(is_registered).is_some_and(|was| was != is_registered) {
                subscriptions.compare_anew();
            }
            self.push(&mut subscriptions, &mut times, resources).await?;
        }
    }

    /// Sends what is due.
    async fn push(
        &self,
        subscriptions: &mut Subscriptions,
        times: &mut KindMap<Times>,
        resources: &Resources,
    ) -> Result<(), End> {
        loop {
            let next = || subscriptions.next_push(resources).map(|push| (push.kind, W::write(push)));
            let Some((kind, push)) = self.account.work(next).await else { return Ok(()) };
            self.account.hold(subscriptions.cost())?;
            metrics::counter!("muster_xds_pushes_total", "type" => kind.as_str()).increment(1);
            times[kind].pushed = Some(Instant::now());
            tokio::select! {
                () = self.stop.cancelled() => return Err(stopping()),
                sent = self.outbound.send(Ok(push)) => if sent.is_err() { return Err(End::Left) },
            }
        }
    }

    /// Who the client is decides what it is served. Its word is taken: until it has an identity there is no other.
    fn admit(&self, node: Option<Node>) -> Result<String, Status> {
        let node = node.filter(|node| !node.id.is_empty()).ok_or_else(|| {
            Status::invalid_argument("the first request of the stream names no node: set node.id in the bootstrap")
        })?;
        if node.id.len() > MAX_NODE_ID_BYTES {
            let length = node.id.len();
            let reason = format!("node.id has {length} bytes: give one of {MAX_NODE_ID_BYTES} at most");
            return Err(Status::invalid_argument(reason));
        }
        self.place.enter(&node.id, &node.cluster, self.peer, W::VARIANT);
        Ok(node.id)
    }

    async fn take(
        &self,
        subscriptions: &mut Subscriptions,
        times: &mut KindMap<Times>,
        request: Request,
        node_id: &str,
    ) -> Result<(), End> {
        let kind = request.kind;
        // What it says is there beside what is made of it, and has to fit before anything is made of it.
        self.account.hold(subscriptions.cost().saturating_add(request.cost()))?;
        let verdict = self.account.work(|| subscriptions.take(request)).await?;
        self.account.hold(subscriptions.cost())?;
        if verdict != Verdict::Nothing {
            let times = &mut times[kind];
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
    let id = shown(node_id);
    Status::permission_denied(format!(
        "node id {id:?} is no registered proxy of this agent's node: register it with [service.proxy] under this id, or \
         set xds.unregistered = \"all\" to serve all services to such"
    ))
}

/// It goes on with what it was sent. All services would be a change of all that it does.
fn no_proxy_any_more(node_id: &str) -> Status {
    let id = shown(node_id);
    Status::permission_denied(format!(
        "node id {id:?} was a registered proxy of this agent's node and is none any more: register it with \
         [service.proxy] under this id, or give the client another node.id to serve all services to it"
    ))
}

fn shown(node_id: &str) -> String {
    node_id.chars().take(64).collect()
}
