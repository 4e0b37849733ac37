//! A registered proxy: a registry, agents that serve nobody else, and a real Envoy that carries calls to two upstreams.

#![allow(clippy::print_stdout, reason = "the traffic is worth a line")]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context, Result, ensure};
use muster_tests::{
    harness::{TestAgent, TestEnvoy, TestService, eventually, free_address},
    scenario::{
        Stage,
        Step::{RestartAgent, Serve, Shows, StopAgent},
    },
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

/// Where a proxy listens.
struct Places {
    inbound: SocketAddr,
    hosts: SocketAddr,
    db: SocketAddr,
    more: SocketAddr,
}

impl Places {
    fn find() -> Result<Self> {
        Ok(Self { inbound: free_address()?, hosts: free_address()?, db: free_address()?, more: free_address()? })
    }

    /// Registers the proxy of `web-0`, with these upstreams beside `db` and `api`.
    async fn register(&self, agent: &TestAgent, more: &[Value]) -> Result<()> {
        let web = agent.get("/v1/agent/service/web-0").await?;
        let mut upstreams = vec![upstream("db", self.db), json!({"DestinationName": "api"})];
        upstreams.extend_from_slice(more);
        let definition = json!({
            "Name": "web-proxy", "ID": "web-proxy", "Kind": "connect-proxy",
            "Address": "127.0.0.1", "Port": self.inbound.port(),
            "Proxy": {
                "DestinationServiceName": "web", "LocalServicePort": web["Port"],
                "Config": {"protocol": "http", "http_listener": self.hosts.to_string()},
                "Upstreams": upstreams,
            },
        });
        agent.put("/v1/agent/service/register", &definition).await
    }
}

fn upstream(service: &str, listen: SocketAddr) -> Value {
    json!({"DestinationName": service, "LocalBindPort": listen.port(), "Config": {"protocol": "http"}})
}

/// Asks again and again until stopped; the first request that fails ends it.
fn carry(
    envoy: &Arc<TestEnvoy>,
    stop: &Arc<AtomicBool>,
    listener: SocketAddr,
    host: &'static str,
) -> JoinHandle<Result<u64>> {
    let (envoy, stop) = (envoy.clone(), stop.clone());
    tokio::spawn(async move {
        let mut answered = 0_u64;
        while !stop.load(Ordering::Relaxed) {
            envoy.request_at(listener, host).await.with_context(|| format!("{host}: after {answered} answers"))?;
            answered += 1;
        }
        Ok(answered)
    })
}

async fn follow(example: &'static str) -> Result<()> {
    let mut stage = Stage::set(1, 2).await?;
    stage
        .play(&[
            Serve { agent: 0, service: "web", id: "web-0" },
            Serve { agent: 0, service: "db", id: "db-0" },
            Serve { agent: 1, service: "db", id: "db-1" },
            Serve { agent: 1, service: "api", id: "api-0" },
            Shows { agent: 1, service: "web", ids: &["web-0"] },
            Shows { agent: 1, service: "db", ids: &["db-0", "db-1"] },
        ])
        .await?;
    let places = Places::find()?;
    places.register(&stage.agents[0], &[]).await?;
    let directory = tempfile::tempdir()?;
    let Some(envoy) = TestEnvoy::start_as("web-proxy", &stage.agents[0], example, directory.path())? else {
        return Ok(());
    };
    envoy.leads_to(places.db, "whatever", &["db-0", "db-1"]).await?;
    envoy.leads_to(places.hosts, "api", &["api-0"]).await?;
    envoy.leads_to(places.hosts, "api.service.mesh.internal", &["api-0"]).await?;
    envoy.leads_to(places.inbound, "web", &["web-0"]).await?;
    ensure!(envoy.request_at(places.hosts, "db").await.is_err(), "db has a listener of its own, and no Host");

    let envoy = Arc::new(envoy);
    let stop = Arc::new(AtomicBool::new(false));
    let traffic = [
        carry(&envoy, &stop, places.db, "db"),
        carry(&envoy, &stop, places.hosts, "api"),
        carry(&envoy, &stop, places.inbound, "web"),
    ];
    instances_come_and_go(&mut stage, &envoy, &places).await?;
    upstreams_come_and_go(&stage, &envoy, &places).await?;
    stop.store(true, Ordering::Relaxed);
    for carried in traffic {
        let answered = carried.await??;
        println!("{example}: {answered} requests, none failed");
        ensure!(answered > 100, "too little traffic to mean anything: {answered}");
    }
    let proxies = stage.agents[0].get("/v1/muster/xds/proxies").await?;
    ensure!(proxies.as_array().map(Vec::len) == Some(1), "{proxies}");
    let metrics = stage.agents[0].response("/metrics").await?.text().await?;
    for metric in ["muster_xds_translations_total", "muster_xds_traffic_disagreements 0"] {
        ensure!(metrics.contains(metric), "no {metric} in {metrics}");
    }
    ensure!(!metrics.lines().any(|line| line.starts_with("muster_xds_nacks_total")), "Envoy rejected something");
    Ok(())
}

async fn instances_come_and_go(stage: &mut Stage, envoy: &TestEnvoy, places: &Places) -> Result<()> {
    stage
        .play(&[Serve { agent: 1, service: "db", id: "db-2" }, Serve { agent: 1, service: "api", id: "api-1" }])
        .await?;
    envoy.leads_to(places.db, "db", &["db-0", "db-1", "db-2"]).await?;
    envoy.leads_to(places.hosts, "api", &["api-0", "api-1"]).await?;
    let agent = &stage.agents[1];
    agent.put("/v1/agent/service/maintenance/db-1?enable=true&reason=test", &json!(null)).await?;
    envoy.leads_to(places.db, "db", &["db-0", "db-2"]).await?;
    agent.put("/v1/agent/service/maintenance/db-1?enable=false", &json!(null)).await?;
    envoy.leads_to(places.db, "db", &["db-0", "db-1", "db-2"]).await?;
    agent.put("/v1/agent/service/deregister/db-2", &json!(null)).await?;
    agent.put("/v1/agent/service/deregister/api-0", &json!(null)).await?;
    envoy.leads_to(places.db, "db", &["db-0", "db-1"]).await?;
    envoy.leads_to(places.hosts, "api", &["api-1"]).await
}

/// A service that the proxy did not name is reached once it does, and no longer once it does not.
async fn upstreams_come_and_go(stage: &Stage, envoy: &TestEnvoy, places: &Places) -> Result<()> {
    ensure!(envoy.request_at(places.more, "web").await.is_err(), "nobody listens there yet");
    places.register(&stage.agents[0], &[upstream("web", places.more)]).await?;
    envoy.leads_to(places.more, "web", &["web-0"]).await?;
    places.register(&stage.agents[0], &[]).await?;
    eventually("the listener to close", || async {
        let outcome = tokio::net::TcpStream::connect(places.more).await;
        ensure!(outcome.is_err(), "it is still open");
        Ok(Some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_by_delta_carries_its_upstreams_without_a_failed_request() -> Result<()> {
    follow("bootstrap.yaml").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_by_state_of_the_world_carries_its_upstreams_without_a_failed_request() -> Result<()> {
    follow("bootstrap-sotw.yaml").await
}

/// Where each agent stands is read at its start.
async fn place(stage: &mut Stage, zone: &str) -> Result<()> {
    let services = stage.agents[0].services_dir().to_owned();
    let file = services.parent().context("no directory")?.join("muster.toml");
    let text = std::fs::read_to_string(&file)?;
    std::fs::write(&file, text.replacen("[node]\n", &format!("[node]\nregion = \"eu\"\nzone = \"{zone}\"\n"), 1))?;
    stage.play(&[StopAgent(0), RestartAgent(0)]).await
}

/// Registers an instance without checks: whatever happens to it, the catalog says that it is well.
async fn offer(agent: &TestAgent, id: &str, running: &TestService, zone: &str, traffic: &Value) -> Result<()> {
    offer_as("db", agent, id, running, zone, traffic).await
}

async fn offer_as(
    service: &str,
    agent: &TestAgent,
    id: &str,
    running: &TestService,
    zone: &str,
    traffic: &Value,
) -> Result<()> {
    let definition = json!({
        "Name": service, "ID": id, "Address": "127.0.0.1", "Port": running.address.port(),
        "Locality": {"Region": "eu", "Zone": zone}, "Traffic": traffic,
    });
    agent.put("/v1/agent/service/register", &definition).await
}

/// Waits until a line of `/clusters` about an address ends so.
async fn shows(envoy: &TestEnvoy, running: &TestService, ending: &str) -> Result<()> {
    let about = format!("db::{}::", running.address);
    eventually(&format!("/clusters to say {about}{ending}"), || async {
        let text = envoy.clusters().await?;
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with(&about)).collect();
        ensure!(lines.iter().any(|line| line.ends_with(ending)), "it says {lines:?}");
        Ok(Some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_called_as_it_wants_to_be() -> Result<()> {
    let mut stage = Stage::set(1, 2).await?;
    place(&mut stage, "a").await?;
    stage.play(&[Serve { agent: 0, service: "web", id: "web-0" }]).await?;
    let (mut near, far) = (TestService::start("near").await?, TestService::start("far").await?);
    let agents = &stage.agents;
    offer(&agents[1], "near", &near, "a", &json!(null)).await?;
    offer(&agents[1], "far", &far, "b", &json!(null)).await?;
    agents[0].wait_passing("db", &["near", "far"]).await?;
    let places = Places::find()?;
    places.register(&agents[0], &[]).await?;
    let directory = tempfile::tempdir()?;
    let Some(envoy) = TestEnvoy::start_as("web-proxy", &agents[0], "bootstrap.yaml", directory.path())? else {
        return Ok(());
    };
    // The nearest are called, and only those.
    envoy.leads_to(places.db, "db", &["near"]).await?;
    shows(&envoy, &near, "priority::0").await?;
    shows(&envoy, &far, "priority::1").await?;
    // Unless the service does not mind.
    let put = |traffic: Value| {
        let (agent, near, far) = (&agents[1], &near, &far);
        async move {
            offer(agent, "near", near, "a", &traffic).await?;
            offer(agent, "far", far, "b", &traffic).await
        }
    };
    put(json!({"PreferNear": false})).await?;
    envoy.leads_to(places.db, "db", &["near", "far"]).await?;
    shows(&envoy, &far, "priority::0").await?;

    // A sick instance is out, unless half is too little to call the healthy ones only.
    agents[1].put("/v1/agent/service/maintenance/far?enable=true&reason=test", &json!(null)).await?;
    envoy.leads_to(places.db, "db", &["near"]).await?;
    put(json!({"PreferNear": false, "PanicThreshold": 60})).await?;
    envoy.leads_to(places.db, "db", &["near", "far"]).await?;
    agents[1].put("/v1/agent/service/maintenance/far?enable=false", &json!(null)).await?;

    // One that fails its callers is left out, though the catalog says that it is well.
    let outlier = json!({"ConsecutiveFailures": 2, "Interval": "100ms", "EjectionTime": "10m"});
    put(json!({"PreferNear": false, "OutlierDetection": outlier})).await?;
    envoy.leads_to(places.db, "db", &["near", "far"]).await?;
    near.kill();
    envoy.leads_to(places.db, "db", &["far"]).await?;
    shows(&envoy, &near, "/failed_outlier_check").await
}

/// How many of 400 calls by 16 clients at a time fail.
async fn failures(envoy: &Arc<TestEnvoy>, listener: SocketAddr) -> Result<usize> {
    let clients: Vec<_> = (0..16)
        .map(|_| {
            let envoy = envoy.clone();
            tokio::spawn(async move {
                let mut failed = 0;
                for _ in 0..25 {
                    failed += usize::from(envoy.request_at(listener, "any").await.is_err());
                }
                failed
            })
        })
        .collect();
    let mut failed = 0;
    for client in clients {
        failed += client.await?;
    }
    Ok(failed)
}

/// The catalog says that all is well, and one is dead: calls are tried elsewhere, in another zone too, many at a time.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_instance_fails_no_call() -> Result<()> {
    let mut stage = Stage::set(1, 2).await?;
    place(&mut stage, "a").await?;
    stage.play(&[Serve { agent: 0, service: "web", id: "web-0" }]).await?;
    let (mut near, far) = (TestService::start("near").await?, TestService::start("far").await?);
    let (mut left, right) = (TestService::start("left").await?, TestService::start("right").await?);
    let agents = &stage.agents;
    offer(&agents[1], "near", &near, "a", &json!(null)).await?;
    offer(&agents[1], "far", &far, "b", &json!(null)).await?;
    offer_as("cache", &agents[1], "left", &left, "a", &json!(null)).await?;
    offer_as("cache", &agents[1], "right", &right, "a", &json!(null)).await?;
    agents[0].wait_passing("db", &["near", "far"]).await?;
    agents[0].wait_passing("cache", &["left", "right"]).await?;
    let places = Places::find()?;
    let tcp = json!({"DestinationName": "cache", "LocalBindPort": places.more.port(), "Config": {"protocol": "tcp"}});
    places.register(&agents[0], &[tcp]).await?;
    let directory = tempfile::tempdir()?;
    let Some(envoy) = TestEnvoy::start_as("web-proxy", &agents[0], "bootstrap.yaml", directory.path())? else {
        return Ok(());
    };
    envoy.leads_to(places.db, "db", &["near"]).await?;
    eventually("the TCP listener to answer", || async {
        envoy.request_at(places.more, "cache").await?;
        Ok(Some(()))
    })
    .await?;
    near.kill();
    left.kill();
    let envoy = Arc::new(envoy);
    // A connection that was there at the kill may be found broken once.
    envoy.leads_to(places.db, "db", &["far"]).await?;
    envoy.leads_to(places.more, "cache", &["right"]).await?;
    ensure!(failures(&envoy, places.db).await? == 0, "HTTP calls failed");
    ensure!(failures(&envoy, places.more).await? == 0, "TCP calls failed");
    let overflow = envoy.stat("cluster.db.upstream_rq_retry_overflow").await?;
    ensure!(overflow.unwrap_or_default() == 0, "{overflow:?} retries were turned away");
    Ok(())
}
