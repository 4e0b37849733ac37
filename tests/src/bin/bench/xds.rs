//! Five hundred proxies on one agent: what a stream costs, and from a status change to the last of them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use envoy_types::pb::envoy::{
    config::core::v3::Node,
    service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
};
use muster_tests::harness::{TestAgent, TestCluster, eventually};
use serde_json::json;
use tokio::{runtime::Builder, sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};

use super::{line, median, milliseconds, percentile};

/// How many streams are open.
const STREAMS: usize = 500;
/// Below the server's limit of 64.
const STREAMS_PER_CONNECTION: usize = 50;
/// How many services there are, and a registered proxy calls.
const SERVICES: usize = 10;
/// How many changes are timed.
const CHANGES: usize = 21;
/// How long a push may take before the run is given up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Room for what a stream says: an answer to each of four types, and more questions.
const REQUESTS: usize = 8;

const CDS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const EDS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
const LDS: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";

/// Whom the agent serves.
#[derive(Clone, Copy, PartialEq)]
enum Audience {
    /// Envoys without a registration: all see all services.
    Unregistered,
    /// Registered proxies with a definition each and the same upstreams.
    Registered,
}

/// Runs on a thread of its own, as the waiters do and for their reason.
pub(super) async fn run() -> Result<()> {
    let serving = || {
        Builder::new_current_thread().enable_all().build()?.block_on(async {
            measure(Audience::Unregistered, "unregistered").await?;
            measure(Audience::Registered, "registered").await
        })
    };
    tokio::task::spawn_blocking(serving).await?
}

async fn measure(audience: Audience, who: &str) -> Result<()> {
    let cluster = TestCluster::start_with(1, "")?;
    let agent = match audience {
        Audience::Unregistered => TestAgent::start_for_proxies(&cluster, "bench").await?,
        Audience::Registered => TestAgent::start(&cluster, "bench").await?,
    };
    prepare(&agent, audience).await?;
    let before = agent.process.resident_bytes()?;
    let (pushed, mut pushes) = mpsc::unbounded_channel();
    let mut client = None;
    for number in 0..STREAMS {
        if number % STREAMS_PER_CONNECTION == 0 {
            client = Some(AggregatedDiscoveryServiceClient::connect(format!("http://{}", agent.xds)).await?);
        }
        let client = client.clone().context("no connection")?;
        tokio::spawn(follow(client, number, pushed.clone()));
    }
    for _ in 0..STREAMS {
        next(&mut pushes).await?;
    }
    let resident = agent.process.resident_bytes()?;
    line(
        &format!("{STREAMS} {who} streams, {SERVICES} services"),
        &format!(
            "{} → {} MB, {:.1} KiB a stream",
            before / 1_000_000,
            resident / 1_000_000,
            resident.saturating_sub(before) as f64 / STREAMS as f64 / 1024.0
        ),
    );
    changes(&agent, &mut pushes, who).await
}

/// The services, one of them with a check to flip, and the proxies.
async fn prepare(agent: &TestAgent, audience: Audience) -> Result<()> {
    for number in 0..SERVICES {
        // A status changes the weight alone: flapping is not damped so.
        let body = json!({
            "Name": service(number), "Port": 80 + number, "Weights": {"Passing": 10, "Warning": 1},
            "Check": {"TTL": "10m", "Status": "passing"},
        });
        agent.put("/v1/agent/service/register", &body).await?;
    }
    if audience == Audience::Registered {
        let upstreams: Vec<_> = (0..SERVICES)
            .map(|number| json!({"DestinationName": service(number), "LocalBindPort": 9_000 + number}))
            .collect();
        for number in 0..STREAMS {
            let body = json!({
                "Name": "bench-proxy", "ID": node_id(number), "Kind": "connect-proxy", "Address": "127.0.0.1",
                "Port": 20_000 + number,
                "Proxy": {"DestinationServiceName": "svc-0", "LocalServicePort": 80, "Upstreams": upstreams},
            });
            agent.put("/v1/agent/service/register", &body).await?;
        }
    }
    let entries = if audience == Audience::Registered { STREAMS } else { 0 };
    eventually("the catalog to have everything", || async {
        let proxies = agent.get("/v1/health/service/bench-proxy?passing&stale").await?;
        let count = proxies.as_array().map_or(0, Vec::len);
        ensure!(count == entries, "{count} proxies");
        Ok(Some(()))
    })
    .await?;
    let last = service(SERVICES - 1);
    agent.wait_passing(&last, &[&last]).await
}

fn service(number: usize) -> String {
    format!("svc-{number}")
}

fn node_id(number: usize) -> String {
    format!("proxy-{number}")
}

/// Flips the check of a service that all streams carry, and times the pushes of its endpoints.
async fn changes(agent: &TestAgent, pushes: &mut mpsc::UnboundedReceiver<Instant>, who: &str) -> Result<()> {
    let before = translations(agent).await?;
    let cpu = agent.process.cpu_time()?;
    let (mut halves, mut nearly, mut lasts) = (Vec::new(), Vec::new(), Vec::new());
    for change in 0..CHANGES {
        let changed = Instant::now();
        flip(agent, change).await?;
        let mut taken = Vec::with_capacity(STREAMS);
        for _ in 0..STREAMS {
            taken.push(milliseconds(next(pushes).await? - changed));
        }
        taken.sort_by(f64::total_cmp);
        halves.extend(percentile(&taken, 0.5));
        nearly.extend(percentile(&taken, 0.99));
        lasts.extend(taken.last().copied());
    }
    let cpu = (agent.process.cpu_time()? - cpu).as_secs_f64() * 1_000_000.0 / (CHANGES * STREAMS) as f64;
    let translations = (translations(agent).await? - before) / CHANGES as f64;
    line(
        &format!("status change → {STREAMS} {who} streams"),
        &format!(
            "p50 {:.1} ms  p99 {:.1} ms  last {:.1} ms (medians of {CHANGES}), {cpu:.0} µs of the agent's CPU a push, \
             {translations:.2} translations a change",
            median(halves),
            median(nearly),
            median(lasts)
        ),
    );
    Ok(())
}

async fn flip(agent: &TestAgent, change: usize) -> Result<()> {
    let verb = if change.is_multiple_of(2) { "warn" } else { "pass" };
    agent.put(&format!("/v1/agent/check/{verb}/service:{}", service(0)), &json!(null)).await
}

async fn translations(agent: &TestAgent) -> Result<f64> {
    let text = agent.response("/metrics").await?.text().await?;
    let value = text.lines().find_map(|line| line.strip_prefix("muster_xds_translations_total "));
    Ok(value.context("no translations")?.parse()?)
}

async fn next(pushes: &mut mpsc::UnboundedReceiver<Instant>) -> Result<Instant> {
    timeout(PATIENCE, pushes.recv()).await.context("a push did not come")?.context("all streams ended")
}

/// One stream, as an Envoy's: clusters, the endpoints of each, listeners, and a word for every push. Says when endpoints
/// came.
async fn follow(
    mut client: AggregatedDiscoveryServiceClient<Channel>,
    number: usize,
    pushed: mpsc::UnboundedSender<Instant>,
) -> Result<()> {
    let (requests, stream) = mpsc::channel(REQUESTS);
    let node = Some(Node { id: node_id(number), ..Default::default() });
    requests.send(DeltaDiscoveryRequest { node, type_url: CDS.into(), ..Default::default() }).await?;
    let opened = client.delta_aggregated_resources(ReceiverStream::new(stream)).await?;
    let mut responses: Streaming<DeltaDiscoveryResponse> = opened.into_inner();
    let mut is_first = true;
    while let Some(push) = responses.message().await? {
        let names = push.resources.iter().map(|resource| resource.name.clone()).filter(|name| name.starts_with("svc-"));
        let names: Vec<String> = names.collect();
        let answered = push.type_url.clone();
        let response_nonce = push.nonce;
        requests.send(DeltaDiscoveryRequest { type_url: push.type_url, response_nonce, ..Default::default() }).await?;
        if answered == CDS && std::mem::take(&mut is_first) {
            let endpoints =
                DeltaDiscoveryRequest { type_url: EDS.into(), resource_names_subscribe: names, ..Default::default() };
            requests.send(endpoints).await?;
            requests.send(DeltaDiscoveryRequest { type_url: LDS.into(), ..Default::default() }).await?;
        } else if answered == EDS {
            pushed.send(Instant::now())?;
        }
    }
    Ok(())
}
