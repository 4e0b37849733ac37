//! The server as a client on the wire sees it, in both variants.

// Integration tests are tests throughout, which the lint does not see.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use envoy_types::pb::{
    envoy::{
        config::{cluster::v3::Cluster, core::v3::Node, endpoint::v3::ClusterLoadAssignment},
        service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
            aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
    },
    google::rpc::Status as RpcStatus,
};
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use muster_catalog::{Change, Instance, Name, Protocol, Proxy, Upstream};
use muster_xds::{ResourceKind, Unregistered, Variant, XdsConfig, XdsHandle};
use prost::Message;
use support::*;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, transport::Channel};

const CDS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const EDS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";

struct Client<Q, R> {
    requests: mpsc::Sender<Q>,
    responses: Streaming<R>,
}

async fn connect(handle: &XdsHandle) -> AggregatedDiscoveryServiceClient<Channel> {
    let client = AggregatedDiscoveryServiceClient::connect(format!("http://{}", handle.local_addr())).await.unwrap();
    // Names that do not exist are all in one answer.
    client.max_decoding_message_size(16 << 20)
}

fn node() -> Option<Node> {
    Some(Node { id: "proxy-1".into(), cluster: "edge".into(), ..Default::default() })
}

async fn sotw(handle: &XdsHandle) -> Client<DiscoveryRequest, DiscoveryResponse> {
    let (requests, stream) = mpsc::channel(8);
    let opened = connect(handle).await.stream_aggregated_resources(ReceiverStream::new(stream)).await;
    Client { requests, responses: opened.unwrap().into_inner() }
}

async fn delta(handle: &XdsHandle) -> Client<DeltaDiscoveryRequest, DeltaDiscoveryResponse> {
    let (requests, stream) = mpsc::channel(8);
    let opened = connect(handle).await.delta_aggregated_resources(ReceiverStream::new(stream)).await;
    Client { requests, responses: opened.unwrap().into_inner() }
}

impl<Q, R> Client<Q, R> {
    async fn send(&self, request: Q) {
        self.requests.send(request).await.unwrap();
    }

    async fn next(&mut self) -> R {
        self.outcome().await.unwrap()
    }

    async fn outcome(&mut self) -> Result<R, Status> {
        let message = tokio::time::timeout(PATIENCE, self.responses.message()).await.expect("no answer");
        message.map(|message| message.expect("the stream ended"))
    }
}

fn state(type_url: &str, names: &[&str], nonce: &str) -> DiscoveryRequest {
    DiscoveryRequest {
        node: node(),
        type_url: type_url.into(),
        resource_names: names.iter().map(|name| (*name).into()).collect(),
        response_nonce: nonce.into(),
        ..Default::default()
    }
}

fn change(type_url: &str, subscribe: &[&str], nonce: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        node: node(),
        type_url: type_url.into(),
        resource_names_subscribe: subscribe.iter().map(|name| (*name).into()).collect(),
        response_nonce: nonce.into(),
        ..Default::default()
    }
}

fn endpoint_count(value: &[u8]) -> usize {
    let assignment = ClusterLoadAssignment::decode(value).unwrap();
    assignment.endpoints.iter().map(|locality| locality.lb_endpoints.len()).sum()
}

#[tokio::test]
async fn nothing_is_answered_before_the_catalog_is_loaded() {
    let source = FakeSource::empty();
    let (handle, _stop) = serve(config(), source.clone(), 0).await;
    let (mut whole, mut incremental) = (sotw(&handle).await, delta(&handle).await);
    whole.send(state(CDS, &[], "")).await;
    incremental.send(change(CDS, &[], "")).await;
    eventually("both are known", || async { handle.proxies().len() == 2 }).await;
    // Had anything been answered before, it would come first, and be empty.
    source.edit(vec![Change::PutNode(Arc::new(support::node("n1"))), put(instance("web", 80))]);
    assert_eq!(whole.next().await.resources.len(), 1);
    assert_eq!(incremental.next().await.resources.len(), 1);
}

#[tokio::test]
async fn what_happened_while_nobody_listened_is_in_the_first_answer() {
    let source = FakeSource::loaded();
    source.edit(vec![put(instance("web", 80))]);
    let (handle, _stop) = serve(config(), source.clone(), 0).await;
    let mut first = sotw(&handle).await;
    first.send(state(CDS, &[], "")).await;
    assert_eq!(first.next().await.resources.len(), 1);
    drop(first);
    eventually("it is gone", || async { handle.proxies().is_empty() }).await;
    for port in 81..84 {
        source.edit(vec![put(instance(&format!("s{port}"), port))]);
    }
    let mut second = sotw(&handle).await;
    second.send(state(CDS, &[], "")).await;
    assert_eq!(second.next().await.resources.len(), 4);
}

#[tokio::test]
async fn a_catalog_without_services_is_an_answer() {
    let source = FakeSource::empty();
    let (handle, _stop) = serve(config(), source.clone(), 0).await;
    let mut client = sotw(&handle).await;
    client.send(state(CDS, &[], "")).await;
    source.edit(Vec::new());
    assert_eq!(client.next().await.resources.len(), 0);
}

#[tokio::test]
async fn sotw_and_delta_follow_the_catalog() {
    let source = FakeSource::loaded();
    source.edit(vec![put(instance("web", 80))]);
    let (handle, _stop) = serve(config(), source.clone(), 0).await;

    let mut whole = sotw(&handle).await;
    whole.send(state(CDS, &[], "")).await;
    let clusters = whole.next().await;
    assert_eq!((clusters.type_url.as_str(), clusters.resources.len()), (CDS, 1));
    whole.send(state(CDS, &[], &clusters.nonce)).await;
    whole.send(state(EDS, &["web"], "")).await;
    let endpoints = whole.next().await;
    assert_eq!(endpoint_count(&endpoints.resources[0].value), 1);
    whole.send(state(EDS, &["web"], &endpoints.nonce)).await;

    let mut incremental = delta(&handle).await;
    incremental.send(change(EDS, &["web", "nothing"], "")).await;
    let first = incremental.next().await;
    assert_eq!((first.resources[0].name.as_str(), &first.removed_resources[..]), ("web", &["nothing".to_owned()][..]));
    assert!(first.resources[0].ttl.is_none(), "a TTL takes proxies down");
    incremental.send(change(EDS, &[], &first.nonce)).await;

    source.edit(vec![put(instance("web", 81))]);
    assert_eq!(endpoint_count(&whole.next().await.resources[0].value), 2);
    let second = incremental.next().await;
    assert_eq!(endpoint_count(&second.resources[0].resource.as_ref().unwrap().value), 2);
    assert_ne!(second.resources[0].version, first.resources[0].version);
    incremental.send(change(EDS, &[], &second.nonce)).await;

    source.edit(vec![delete("web", 80), delete("web", 81)]);
    let third = incremental.next().await;
    assert!(third.removed_resources.is_empty());
    assert_eq!(endpoint_count(&third.resources[0].resource.as_ref().unwrap().value), 0);
}

#[tokio::test]
async fn versions_outlive_the_server_and_a_returning_delta_client_gets_the_difference() {
    let source = FakeSource::loaded();
    source.edit(vec![put(instance("web", 80)), put(instance("db", 5432))]);
    let (handle, stop) = serve(config(), source.clone(), 0).await;
    let mut client = delta(&handle).await;
    client.send(change(CDS, &[], "")).await;
    let versions: std::collections::HashMap<String, String> =
        client.next().await.resources.into_iter().map(|resource| (resource.name, resource.version)).collect();
    stop.cancel();
    assert_eq!(client.outcome().await.unwrap_err().code(), Code::Unavailable);
    drop(client);
    handle.join().await.unwrap();

    source.edit(vec![put(instance("new", 90)), delete("db", 5432)]);
    let (handle, _stop) = serve(config(), source, 0).await;
    let mut client = delta(&handle).await;
    client.send(DeltaDiscoveryRequest { initial_resource_versions: versions, ..change(CDS, &[], "") }).await;
    let push = client.next().await;
    assert_eq!(push.resources.iter().map(|resource| &*resource.name).collect::<Vec<_>>(), ["new"]);
    assert_eq!(push.removed_resources, ["db"]);
}

#[tokio::test]
async fn a_rejection_and_its_reason_are_visible_per_stream() {
    let source = FakeSource::loaded();
    let (handle, _stop) = serve(config(), source.clone(), 0).await;
    // Two streams of one node id, as during a hot restart: each has its own state.
    let (mut whole, mut incremental) = (sotw(&handle).await, delta(&handle).await);
    whole.send(state(CDS, &[], "")).await;
    let push = whole.next().await;
    let error_detail = Some(RpcStatus { code: 13, message: "no such thing".into(), ..Default::default() });
    whole.send(DiscoveryRequest { error_detail, ..state(CDS, &[], &push.nonce) }).await;
    incremental.send(change(CDS, &[], "")).await;
    let accepted = incremental.next().await;
    incremental.send(change(CDS, &[], &accepted.nonce)).await;
    let kind = |variant| {
        let proxies = handle.proxies();
        let proxy = proxies.into_iter().find(|proxy| proxy.variant == variant)?;
        assert_eq!((proxy.node_id.as_str(), proxy.cluster.as_str()), ("proxy-1", "edge"));
        assert!(proxy.peer.is_some());
        proxy.kinds.get(&ResourceKind::Cluster).cloned()
    };
    eventually("the rejection is listed", || async { kind(Variant::Sotw).is_some_and(|kind| kind.rejected.is_some()) })
        .await;
    let rejected = kind(Variant::Sotw).unwrap().rejected.unwrap();
    assert_eq!((rejected.message.as_str(), rejected.version), ("no such thing", push.version_info));
    eventually("the other is accepted", || async {
        kind(Variant::Delta).is_some_and(|kind| kind.accepted.is_some() && kind.rejected.is_none())
    })
    .await;
    drop(whole);
    eventually("who left is gone", || async { handle.proxies().len() == 1 }).await;
}

#[tokio::test]
async fn who_is_no_registered_proxy_is_refused_with_the_setting_that_lets_it_in() {
    let config = XdsConfig { unregistered: Unregistered::None, ..config() };
    let (handle, _stop) = serve(config, FakeSource::loaded(), 0).await;
    let mut client = sotw(&handle).await;
    client.send(state(CDS, &[], "")).await;
    let status = client.outcome().await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("xds.unregistered") && status.message().contains("proxy-1"), "{status}");
    let mut nameless = delta(&handle).await;
    nameless.send(DeltaDiscoveryRequest { node: None, ..change(CDS, &[], "") }).await;
    assert_eq!(nameless.outcome().await.unwrap_err().code(), Code::InvalidArgument);
}

/// A row of a proxy with the id `proxy-1`, which calls `db`.
fn proxy_row() -> Instance {
    let listen = Some("127.0.0.1:9001".parse().unwrap());
    let upstream = Upstream { service: Name::lookup("db"), listen, protocol: Protocol::Tcp, connect_timeout: None };
    let upstreams = vec![upstream];
    let proxy = Proxy { service: Name::lookup("web"), instance: None, inbound: None, http_listener: None, upstreams };
    Instance { id: "proxy-1".into(), proxy: Some(Arc::new(proxy)), ..instance("web-proxy", 20_000) }
}

/// The names of clusters that a client is served first, under this node id.
async fn first_clusters(handle: &XdsHandle, node_id: &str) -> Result<Vec<String>, Status> {
    let mut client = sotw(handle).await;
    let node = Some(Node { id: node_id.into(), ..Default::default() });
    client.send(DiscoveryRequest { node, ..state(CDS, &[], "") }).await;
    client.outcome().await.map(|push| cluster_names(&push))
}

fn cluster_names(push: &DiscoveryResponse) -> Vec<String> {
    push.resources.iter().map(|any| Cluster::decode(&*any.value).unwrap().name).collect()
}

#[tokio::test]
async fn a_registered_proxy_is_served_its_upstreams_until_it_is_deregistered() {
    let node = Some(Name::lookup("n1"));
    let config = XdsConfig { unregistered: Unregistered::None, node, ..config() };
    let source = FakeSource::loaded();
    source.edit(vec![put(proxy_row()), put(instance("db", 5432)), put(instance("other", 80))]);
    let (handle, _stop) = serve(config, source.clone(), 0).await;
    let mut client = sotw(&handle).await;
    client.send(state(CDS, &[], "")).await;
    assert_eq!(cluster_names(&client.next().await), ["db"]);
    source.edit(vec![Change::DeleteInstance { node: Name::lookup("n1"), id: "proxy-1".into() }]);
    let status = client.outcome().await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("[service.proxy]"), "{status}");
}

/// Its listeners would close else, and those of any client open, until it is registered again.
#[tokio::test]
async fn a_proxy_whose_registration_goes_away_is_not_taken_for_any_client_where_such_are_served() {
    let config = XdsConfig { node: Some(Name::lookup("n1")), ..config() };
    let source = FakeSource::loaded();
    source.edit(vec![put(proxy_row()), put(instance("db", 5432)), put(instance("other", 80))]);
    let (handle, _stop) = serve(config, source.clone(), 0).await;
    let mut client = sotw(&handle).await;
    client.send(state(CDS, &[], "")).await;
    let push = client.next().await;
    assert_eq!(cluster_names(&push), ["db"]);
    client.send(state(CDS, &[], &push.nonce)).await;
    source.edit(vec![Change::DeleteInstance { node: Name::lookup("n1"), id: "proxy-1".into() }]);
    let refused = |status: Status| {
        assert_eq!(status.code(), Code::PermissionDenied);
        assert!(status.message().contains("[service.proxy]") && status.message().contains("proxy-1"), "{status}");
    };
    refused(client.outcome().await.unwrap_err());
    refused(first_clusters(&handle, "proxy-1").await.unwrap_err());
    assert_eq!(first_clusters(&handle, "proxy-2").await.unwrap(), ["db", "other"]);
    source.edit(vec![put(proxy_row())]);
    assert_eq!(first_clusters(&handle, "proxy-1").await.unwrap(), ["db"]);
}

/// Keeps one counter, and nothing else.
struct Counting(Arc<AtomicU64>);

impl Recorder for Counting {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let is_kept = key.name() == "muster_xds_translations_total";
        if is_kept { Counter::from_arc(self.0.clone()) } else { Counter::noop() }
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

/// On one thread, whose recorder counts for this test alone. Half of the streams are of registered proxies.
#[tokio::test]
async fn a_changed_service_is_translated_once_for_all_streams() {
    const STREAMS: u16 = 50;
    let translated = Arc::<AtomicU64>::default();
    let recorder = Counting(translated.clone());
    let _counting = metrics::set_default_local_recorder(&recorder);
    let source = FakeSource::loaded();
    source.edit(["web", "db", "api"].map(|name| put(instance(name, 80))).into());
    let upstream = |name: &str, port: u16| Upstream {
        service: Name::lookup(name),
        listen: Some(([127, 0, 0, 1], port).into()),
        protocol: Protocol::Tcp,
        connect_timeout: None,
    };
    let proxies = (0..STREAMS / 2).map(|number| {
        let upstreams = vec![upstream("web", 9_001), upstream("db", 9_002)];
        let proxy =
            Proxy { service: Name::lookup("api"), instance: None, inbound: None, http_listener: None, upstreams };
        let id = format!("node-{number}").as_str().into();
        put(Instance { id, proxy: Some(Arc::new(proxy)), ..instance("proxies", 20_000 + number) })
    });
    source.edit(proxies.collect());
    let (handle, _stop) = serve(XdsConfig { node: Some(Name::lookup("n1")), ..config() }, source.clone(), 0).await;
    let mut streams = Vec::new();
    for number in 0..STREAMS {
        let mut client = delta(&handle).await;
        let node = Some(Node { id: format!("node-{number}"), ..Default::default() });
        client.send(DeltaDiscoveryRequest { node, ..change(EDS, &["web"], "") }).await;
        let push = client.next().await;
        client.send(change(EDS, &[], &push.nonce)).await;
        streams.push(client);
    }
    assert_eq!(translated.load(Ordering::Relaxed), 4, "each service once, at first");
    source.edit(vec![put(instance("web", 81))]);
    for client in &mut streams {
        assert_eq!(endpoint_count(&client.next().await.resources[0].resource.as_ref().unwrap().value), 2);
    }
    assert_eq!(translated.load(Ordering::Relaxed), 5, "the changed one once more, however many streams there are");
}

const LDS: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const RDS: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";

/// A stream that asks for as long names of no service as one request of each type holds: how it ends, or that it was
/// answered.
async fn ask_for_much(
    handle: &XdsHandle,
) -> (Client<DeltaDiscoveryRequest, DeltaDiscoveryResponse>, Result<(), Status>) {
    let names: Vec<String> = (0..15_000).map(|at| format!("{at:0500}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut client = delta(handle).await;
    for type_url in [CDS, EDS, LDS, RDS] {
        client.requests.send(change(type_url, &names, "")).await.ok();
        // Clusters hold up listeners until they are answered.
        let nonce = match client.outcome().await {
            Ok(push) => push.nonce,
            Err(status) => return (client, Err(status)),
        };
        client.requests.send(change(type_url, &[], &nonce)).await.ok();
    }
    (client, Ok(()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_are_asked_for_are_bounded_over_all_streams() {
    let source = FakeSource::loaded();
    source.edit(vec![put(instance("web", 80))]);
    let (handle, _stop) = serve(config(), source.clone(), 0).await;
    let mut modest = delta(&handle).await;
    modest.send(change(EDS, &["web", "api"], "")).await;
    let nonce = modest.next().await.nonce;
    modest.send(change(EDS, &[], &nonce)).await;
    let (mut greedy, mut refused) = (Vec::new(), None);
    while refused.is_none() && greedy.len() < 8 {
        let (client, outcome) = ask_for_much(&handle).await;
        refused = outcome.err();
        greedy.push(client);
    }
    let status = refused.expect("eight streams may hold 240 MB of names");
    assert!(greedy.len() > 2, "a stream alone has not room enough: {status}");
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("134217728"), "{status}");
    // The others have their shares, those that are there and those that come.
    source.edit(vec![put(instance("api", 80))]);
    assert_eq!(modest.next().await.resources[0].name, "api");
    let mut late = sotw(&handle).await;
    late.send(state(CDS, &[], "")).await;
    assert_eq!(late.next().await.resources.len(), 2);
    drop(greedy);
    eventually("there is room again", || async { ask_for_much(&handle).await.1.is_ok() }).await;
}

#[tokio::test]
async fn what_is_too_long_is_refused_with_the_limit() {
    let (handle, _stop) = serve(config(), FakeSource::loaded(), 0).await;
    let mut client = sotw(&handle).await;
    let node = Some(Node { id: "x".repeat(5_000), ..Default::default() });
    client.send(DiscoveryRequest { node, ..state(CDS, &[], "") }).await;
    let status = client.outcome().await.unwrap_err();
    assert!(status.code() == Code::InvalidArgument && status.message().contains("4096"), "{status}");
    let mut client = sotw(&handle).await;
    client.send(state(CDS, &[&"x".repeat(9 << 20)], "")).await;
    let status = client.outcome().await.unwrap_err();
    assert!(status.code() == Code::OutOfRange && status.message().contains("8388608"), "{status}");
}

#[tokio::test]
async fn types_that_are_not_served_disturb_nobody() {
    let source = FakeSource::loaded();
    source.edit(vec![put(instance("web", 80))]);
    let (handle, _stop) = serve(config(), source, 0).await;
    let mut client = sotw(&handle).await;
    client.send(state("type.googleapis.com/envoy.service.runtime.v3.Runtime", &["x"], "")).await;
    client.send(DiscoveryRequest { node: None, ..state(CDS, &[], "") }).await;
    assert_eq!(client.next().await.resources.len(), 1);
}
