//! A server over loopback with a catalog, an agent and an operator that the test holds in its hands.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use muster_catalog::{
    Address, Check, CheckId, CheckKind, Command, Entry, Freshness, Instance, InstanceId, Meta, Name, Node, NodeSync,
    Origin, Port, Proposal, Scope, Snapshot, SnapshotBuilder, Status, Text, Timestamp, Topic, View, Waiter, Waiters,
    Weights, Writer, decide,
    port::{BarrierError, BoxFuture, Consistency, Sink, Source, SubmitError, WideAnswer, WideError, WideRead, Written},
    project_snapshot,
};
use muster_http::{
    Http, HttpConfig, HttpHandle, Ports,
    port::{
        BrakeDecision, BrakeKind, BrakeListing, Brakes, CheckDefinition, HeldBrake, HeldItem, Identity, LocalAgent,
        LocalError, MemberInfo, MemberRole, Operator, Pending, ProxyStatus, Readiness, ServiceRegistration,
    },
};
use serde_json::Value;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;

/// How long a condition may take to come true before a test gives up.
const PATIENCE: Duration = Duration::from_secs(10);

/// A catalog of one, deciding and folding as a registry does.
pub(crate) struct Catalog {
    view: Mutex<Arc<View>>,
    pub(crate) waiters: Arc<Waiters>,
    sequence: AtomicU64,
    leader: AtomicBool,
    refusal: Mutex<Option<String>>,
    pub(crate) subscriptions: AtomicU64,
    /// While set, what is decided is acknowledged but does not show.
    held: Mutex<Option<Vec<Topic>>>,
    /// What the View shows of it.
    scope: Mutex<Scope>,
    /// Every service that a reader used.
    pub(crate) used: Mutex<Vec<Name>>,
    decided: Mutex<Arc<Snapshot>>,
    /// Reads that a member was asked for.
    pub(crate) wide_reads: AtomicU64,
    /// Views of such answers that are still held.
    pub(crate) wide_views: Arc<AtomicU64>,
    /// A permit lets an answer through that a member has made.
    pub(crate) answers: Semaphore,
}

impl Catalog {
    fn new() -> Self {
        let view = View::new(Arc::new(Snapshot::default()), Freshness::Live);
        Self {
            view: Mutex::new(Arc::new(view)),
            waiters: Arc::default(),
            sequence: AtomicU64::new(0),
            leader: AtomicBool::new(true),
            refusal: Mutex::default(),
            subscriptions: AtomicU64::new(0),
            held: Mutex::new(None),
            scope: Mutex::new(Scope::All),
            used: Mutex::default(),
            decided: Mutex::default(),
            wide_reads: AtomicU64::new(0),
            wide_views: Arc::default(),
            answers: Semaphore::new(Semaphore::MAX_PERMITS),
        }
    }

    pub(crate) fn set_freshness(&self, freshness: Freshness) {
        {
            let mut view = self.view.lock().unwrap();
            *view = Arc::new(View { freshness, ..(**view).clone() });
        }
        self.leader.store(freshness == Freshness::Live, Ordering::SeqCst);
        self.waiters.wake_all();
    }

    /// As an agent whose replica the registry refuses.
    pub(crate) fn refuse(&self, why: &str) {
        *self.refusal.lock().unwrap() = Some(why.into());
        self.set_freshness(Freshness::Stale { since: Timestamp(1) });
    }

    pub(crate) fn apply(&self, command: Command) -> Result<u64, SubmitError> {
        let mut decided = self.decided.lock().unwrap();
        let mut local = (**decided).clone();
        let index = local.index() + 1;
        let at = Timestamp(index);
        let changes = decide(&local, &Proposal { at, command })?;
        let topics = local.fold(&Entry { index, at, changes });
        *decided = Arc::new(local);
        if let Some(held) = &mut *self.held.lock().unwrap() {
            held.extend(topics);
        } else {
            self.publish(&decided, &topics);
        }
        Ok(index)
    }

    /// Shows no more than a replica of this Scope does.
    pub(crate) fn narrow(&self, scope: Scope) {
        *self.scope.lock().unwrap() = scope;
        self.publish(&self.decided.lock().unwrap().clone(), &[]);
    }

    fn publish(&self, local: &Arc<Snapshot>, topics: &[Topic]) {
        let local = Arc::new(project_snapshot(&self.scope.lock().unwrap(), local));
        {
            let mut view = self.view.lock().unwrap();
            *view = Arc::new(View { local: local.clone(), ..(**view).clone() });
        }
        self.waiters.wake(topics);
    }

    /// Takes what came with the newest catalog format.
    pub(crate) fn raise_format(&self) {
        self.apply(Command::SetFormat(muster_catalog::FORMAT)).unwrap();
    }

    /// Acknowledges writes without showing them, as a replica that lags does.
    pub(crate) fn hold_back(&self) {
        *self.held.lock().unwrap() = Some(Vec::new());
    }

    /// Shows what was held back.
    pub(crate) fn catch_up(&self) {
        let topics = self.held.lock().unwrap().take().unwrap_or_default();
        self.publish(&self.decided.lock().unwrap().clone(), &topics);
    }

    /// An agent's push of one instance with one check.
    pub(crate) fn push(&self, node: &str, service: &str, tags: &[&str], status: Status) {
        let sequence = self.sequence.fetch_add(1, Ordering::SeqCst) + 1;
        let mut check = check(node, &format!("service:{service}"), Some(service));
        check.status = status;
        let sync = NodeSync {
            writer: Writer { incarnation: 1, sequence },
            node: self::node(node),
            complete: false,
            instances: vec![instance(node, service, tags)],
            checks: vec![check],
            removed_instances: Vec::new(),
            removed_checks: Vec::new(),
        };
        self.apply(Command::Sync(sync)).unwrap();
    }
}

impl Source for Catalog {
    fn view(&self) -> Arc<View> {
        self.view.lock().unwrap().clone()
    }

    fn subscribe(&self, topic: Topic) -> Waiter {
        self.subscriptions.fetch_add(1, Ordering::SeqCst);
        self.waiters.subscribe(topic)
    }

    fn barrier(&self, _: Consistency) -> BoxFuture<'_, Result<(), BarrierError>> {
        let (leads, refusal) = (self.leader.load(Ordering::SeqCst), self.refusal());
        Box::pin(async move {
            match refusal {
                Some(why) => Err(BarrierError::Refused(why)),
                None if leads => Ok(()),
                None => Err(BarrierError::NoLeader("no member answered".into())),
            }
        })
    }

    fn refusal(&self) -> Option<String> {
        self.refusal.lock().unwrap().clone()
    }

    fn hold(&self, service: &Name) -> BoxFuture<'_, ()> {
        if let Scope::Services { names, .. } = &mut *self.scope.lock().unwrap() {
            names.insert(service.clone());
        }
        self.publish(&self.decided.lock().unwrap().clone(), &[Topic::Service(service.clone())]);
        Box::pin(async {})
    }

    fn used(&self, service: &Name) {
        self.used.lock().unwrap().push(service.clone());
    }

    fn read_wide(&self, read: WideRead) -> BoxFuture<'_, Result<WideAnswer, WideError>> {
        Box::pin(async move {
            self.wide_reads.fetch_add(1, Ordering::SeqCst);
            if !self.leader.load(Ordering::SeqCst) {
                return Err(WideError::Unreachable("no member answered".into()));
            }
            let decided = || self.decided.lock().unwrap().clone();
            let newer = async {
                loop {
                    let moved = self.waiters.subscribe(read.wide.topic());
                    if read.after == 0 || read.wide.index(&decided()) > read.after {
                        return;
                    }
                    moved.await;
                }
            };
            let _ = tokio::time::timeout(read.wait, newer).await;
            let full = decided();
            let _on_its_way = self.answers.acquire().await.unwrap();
            let mut builder = SnapshotBuilder::new(Scope::Services { names: Default::default(), node: None });
            read.wide.rows(&full).for_each(|row| builder.push(row));
            let view = Arc::new(View::new(Arc::new(builder.finish()), Freshness::Live));
            let held = Box::new(CountedView::new(self.wide_views.clone()));
            Ok(WideAnswer { view, held })
        })
    }
}

struct CountedView(Arc<AtomicU64>);

impl CountedView {
    fn new(all: Arc<AtomicU64>) -> Self {
        all.fetch_add(1, Ordering::SeqCst);
        Self(all)
    }
}

impl Drop for CountedView {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Sink for Catalog {
    fn submit(&self, command: Command) -> BoxFuture<'_, Result<Written, SubmitError>> {
        Box::pin(async move { Ok(Written { index: self.apply(command)? }) })
    }
}

pub(crate) fn node(name: &str) -> Node {
    Node {
        name: Name::lookup(name),
        id: format!("id-{name}").into(),
        address: Address::parse("10.0.0.1").unwrap(),
        tagged_addresses: Meta::new(),
        meta: Meta::from([("rack".into(), name.into())]),
        locality: None,
        origin: Origin::Agent,
    }
}

pub(crate) fn instance(node: &str, service: &str, tags: &[&str]) -> Instance {
    Instance {
        node: Name::lookup(node),
        id: service.into(),
        service: Name::lookup(service),
        tags: tags.iter().map(|tag| Text::from(*tag)).collect(),
        address: Address::parse("10.0.0.9"),
        tagged_addresses: Default::default(),
        ports: vec![Port { name: "default".into(), number: 8080 }],
        meta: Meta::new(),
        weights: Weights::default(),
        locality: None,
        draining: false,
        maintenance: None,
        enable_tag_override: false,
        proxy: None,
        traffic: None,
        origin: Origin::Agent,
    }
}

pub(crate) fn check(node: &str, id: &str, instance: Option<&str>) -> Check {
    Check {
        node: Name::lookup(node),
        id: id.into(),
        instance: instance.map(Text::from),
        name: id.into(),
        status: Status::Passing,
        notes: "".into(),
        output: "fine".into(),
        kind: CheckKind { kind: "ttl".into(), ..CheckKind::default() },
        origin: Origin::Agent,
    }
}

/// An agent that keeps what it is told.
#[derive(Default)]
pub(crate) struct Agent {
    pub(crate) instances: Mutex<Vec<Arc<Instance>>>,
    pub(crate) checks: Mutex<Vec<Arc<Check>>>,
    pub(crate) registrations: Mutex<Vec<ServiceRegistration>>,
    pub(crate) definitions: Mutex<Vec<CheckDefinition>>,
}

impl LocalAgent for Agent {
    fn identity(&self) -> Arc<Identity> {
        Arc::new(Identity {
            name: Name::lookup("n1"),
            id: "id-n1".into(),
            address: Address::parse("10.0.0.1").unwrap(),
            datacenter: "dc1".into(),
            version: "0.1.0".into(),
            meta: Meta::new(),
        })
    }

    fn instances(&self) -> Vec<Arc<Instance>> {
        self.instances.lock().unwrap().clone()
    }

    fn checks(&self) -> Vec<Arc<Check>> {
        self.checks.lock().unwrap().clone()
    }

    fn register_service(&self, registration: ServiceRegistration) -> BoxFuture<'_, Result<(), LocalError>> {
        Box::pin(async move {
            if &*registration.instance.id == "from-file" {
                return Err(LocalError::OwnedByFile("instance from-file is defined by a file: change it there".into()));
            }
            self.instances.lock().unwrap().push(Arc::new(registration.instance.clone()));
            for definition in &registration.checks {
                let row = check("n1", &definition.id, definition.instance.as_deref());
                self.checks.lock().unwrap().push(Arc::new(row));
            }
            self.registrations.lock().unwrap().push(registration);
            Ok(())
        })
    }

    fn deregister_service(&self, id: InstanceId) -> BoxFuture<'_, Result<(), LocalError>> {
        Box::pin(async move {
            let mut instances = self.instances.lock().unwrap();
            let before = instances.len();
            instances.retain(|instance| instance.id != id);
            if instances.len() < before { Ok(()) } else { Err(unknown("service", &id)) }
        })
    }

    fn register_check(&self, check: CheckDefinition) -> BoxFuture<'_, Result<(), LocalError>> {
        Box::pin(async move {
            self.definitions.lock().unwrap().push(check);
            Ok(())
        })
    }

    fn deregister_check(&self, id: CheckId) -> BoxFuture<'_, Result<(), LocalError>> {
        Box::pin(async move { Err(unknown("check", &id)) })
    }

    fn update_ttl(&self, id: CheckId, status: Status, output: Text) -> BoxFuture<'_, Result<(), LocalError>> {
        Box::pin(async move {
            let mut checks = self.checks.lock().unwrap();
            let found = checks.iter_mut().find(|check| check.id == id).ok_or_else(|| unknown("check", &id))?;
            *found = Arc::new(Check { status, output, ..(**found).clone() });
            Ok(())
        })
    }

    fn set_maintenance(&self, id: InstanceId, reason: Option<Text>) -> BoxFuture<'_, Result<(), LocalError>> {
        Box::pin(async move {
            let mut instances = self.instances.lock().unwrap();
            let found = instances.iter_mut().find(|instance| instance.id == id);
            let found = found.ok_or_else(|| unknown("service", &id))?;
            *found = Arc::new(Instance { maintenance: reason, ..(**found).clone() });
            Ok(())
        })
    }
}

fn unknown(what: &str, id: &str) -> LocalError {
    LocalError::NotFound(format!("Unknown {what} ID {id:?}"))
}

struct Facts;

impl Operator for Facts {
    fn leader(&self) -> BoxFuture<'_, Option<String>> {
        Box::pin(async { Some("10.0.0.7:8300".to_owned()) })
    }

    fn peers(&self) -> BoxFuture<'_, Vec<String>> {
        Box::pin(async { vec!["10.0.0.7:8300".to_owned()] })
    }

    fn members(&self) -> BoxFuture<'_, Vec<MemberInfo>> {
        let (name, address) = ("r1".to_owned(), "10.0.0.7:8300".to_owned());
        Box::pin(async { vec![MemberInfo { name, address, role: MemberRole::Leader, alive: true }] })
    }

    fn xds_proxies(&self) -> Vec<ProxyStatus> {
        Vec::new()
    }
}

impl Brakes for Facts {
    fn list(&self) -> BoxFuture<'_, BrakeListing> {
        let held = HeldBrake {
            id: "expiry-7-1".into(),
            kind: BrakeKind::MassExpiry,
            reason: "25 of 40 nodes went silent".into(),
            shared: vec!["zone a".into()],
            count: 25,
            items: vec![HeldItem { name: "n1".into(), detail: "last heard by r1".into() }],
            held_for: Duration::from_secs(3),
            remaining: Duration::from_secs(27),
            on_commit: "lost",
            on_release: "kept",
        };
        Box::pin(async { BrakeListing { held: vec![held], problem: None } })
    }

    fn decide(&self, id: String, _: BrakeDecision) -> BoxFuture<'_, Result<u64, SubmitError>> {
        Box::pin(
            async move { if id == "expiry-7-1" { Ok(25) } else { Err(SubmitError::Refused(format!("{id} is over"))) } },
        )
    }
}

#[derive(Default)]
pub(crate) struct Gate(pub(crate) AtomicBool);

impl Readiness for Gate {
    fn pending(&self) -> Vec<Pending> {
        if self.0.load(Ordering::SeqCst) {
            return Vec::new();
        }
        vec![Pending { part: "replica".into(), reason: "no complete set yet".into() }]
    }
}

/// A running server with all that stands behind it.
pub(crate) struct House {
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) agent: Arc<Agent>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) handle: HttpHandle,
}

/// An answer, read whole.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: hyper::HeaderMap,
    pub(crate) text: String,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn index(&self) -> u64 {
        self.header("x-consul-index").parse().unwrap()
    }
}

impl House {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(adjust: impl FnOnce(&mut HttpConfig)) -> Self {
        let (catalog, agent, gate) = (Arc::new(Catalog::new()), Arc::new(Agent::default()), Arc::new(Gate::default()));
        let ports = Ports {
            source: catalog.clone(),
            sink: catalog.clone(),
            local: agent.clone(),
            operator: Arc::new(Facts),
            brakes: Arc::new(Facts),
            readiness: gate.clone(),
            metrics: Arc::new(|| "muster_up 1\n".to_owned()),
        };
        let mut config = HttpConfig::new("dc1");
        adjust(&mut config);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let shutdown = CancellationToken::new();
        let handle = Http::start(config, listener, ports, shutdown.clone()).unwrap();
        Self { catalog, agent, gate, shutdown, handle }
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        request(self.handle.address, "GET", path, "").await
    }

    pub(crate) async fn put(&self, path: &str, body: &str) -> Reply {
        request(self.handle.address, "PUT", path, body).await
    }

    /// Returns once so many places among waiters were taken since `before`.
    pub(crate) async fn until_subscribed(&self, before: u64) {
        self.until("somebody takes a place among the waiters", || self.subscriptions() > before).await;
    }

    pub(crate) async fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        let comes_true = async {
            while !is_so() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, comes_true).await.expect(what);
    }

    pub(crate) fn subscriptions(&self) -> u64 {
        self.catalog.subscriptions.load(Ordering::SeqCst)
    }
}

pub(crate) async fn request(address: SocketAddr, method: &str, path: &str, body: &str) -> Reply {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = hyper::Request::builder().method(method).uri(path).header("host", "localhost");
    let request = request.body(Full::new(Bytes::from(body.to_owned()))).unwrap();
    let response = sender.send_request(request).await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    Reply { status, headers, text: String::from_utf8(bytes.to_vec()).unwrap() }
}
