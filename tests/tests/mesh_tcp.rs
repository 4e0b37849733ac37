//! A registered proxy's TCP upstreams through a real Envoy: endpoints that come, go and drain, a listener that drains, and
//! an upstream that the agent cannot say anything of yet.

#![allow(clippy::print_stdout, reason = "why a test did not run is worth a line")]

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use muster_tests::{
    harness::{DRAIN_TIME, TestAgent, TestEnvoy, eventually, free_address},
    scenario::{
        Stage,
        Step::{Serve, Shows},
    },
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Mutex,
    time::timeout,
};

/// How long a connection may take to answer: far more than a busy machine needs.
const PATIENCE: Duration = Duration::from_secs(10);

/// Registers a proxy of `web-0` at an agent with these upstreams: a service and its TCP listener.
async fn register(agent: &TestAgent, inbound: SocketAddr, upstreams: &[(&str, SocketAddr)]) -> Result<()> {
    let web = agent.get("/v1/agent/service/web-0").await?;
    // TCP is what an upstream with a listener speaks unless it says otherwise.
    let upstream = |(service, listen): &(&str, SocketAddr)| -> Value {
        json!({"DestinationName": service, "LocalBindPort": listen.port()})
    };
    let definition = json!({
        "Name": "web-proxy", "ID": "web-proxy", "Kind": "connect-proxy",
        "Address": "127.0.0.1", "Port": inbound.port(),
        "Proxy": {
            "DestinationServiceName": "web", "LocalServicePort": web["Port"],
            "Upstreams": upstreams.iter().map(upstream).collect::<Vec<_>>(),
        },
    });
    agent.put("/v1/agent/service/register", &definition).await
}

/// A connection that stays.
struct Connection(TcpStream);

impl Connection {
    async fn open(listener: SocketAddr) -> Result<Self> {
        Ok(Self(TcpStream::connect(listener).await?))
    }

    /// Which instance answers; an error once the connection is closed.
    async fn ask(&mut self) -> Result<String> {
        self.0.write_all(b"GET / HTTP/1.1\r\n\r\n").await?;
        let mut answer = Vec::new();
        timeout(PATIENCE, async {
            while !answer.windows(4).any(|bytes| bytes == b"\r\n\r\n") || answer.ends_with(b"\n") {
                ensure!(self.0.read_buf(&mut answer).await? > 0, "closed");
            }
            Ok(())
        })
        .await??;
        let answer = String::from_utf8(answer)?;
        Ok(answer.rsplit('\n').next().unwrap_or_default().to_owned())
    }
}

/// Opens connections until one leads to this instance.
async fn open_to(listener: SocketAddr, instance: &str) -> Result<Connection> {
    eventually(&format!("a connection to {instance}"), || async {
        let mut connection = Connection::open(listener).await?;
        let found = connection.ask().await?;
        Ok((found == instance).then_some(connection))
    })
    .await
}

/// Waits until new connections lead to exactly these instances, as far as twenty in a row tell.
async fn leads_to(listener: SocketAddr, instances: &[&str]) -> Result<()> {
    eventually(&format!("{listener} to lead to {instances:?}"), || async {
        let mut seen = BTreeSet::new();
        for _ in 0..20 {
            seen.insert(Connection::open(listener).await?.ask().await?);
        }
        ensure!(seen.iter().map(String::as_str).eq(instances.iter().copied()), "it is {seen:?}");
        Ok(Some(()))
    })
    .await
}

async fn refuses(listener: SocketAddr) -> Result<()> {
    eventually("new connections to be refused", || async {
        Ok(TcpStream::connect(listener).await.is_err().then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tcp_upstream_follows_its_endpoints_and_drains_when_it_is_removed() -> Result<()> {
    let mut stage = Stage::set(1, 1).await?;
    // What stops there drains for longer than it takes to see it.
    let drains = "drain_time = \"5s\"\n";
    let leaving = TestAgent::start_with(&stage.cluster, "node-1", drains, "").await?;
    stage.agents.push(leaving);
    stage
        .play(&[
            Serve { agent: 0, service: "web", id: "web-0" },
            Serve { agent: 0, service: "db", id: "db-0" },
            Serve { agent: 1, service: "db", id: "db-1" },
            Shows { agent: 0, service: "db", ids: &["db-0", "db-1"] },
        ])
        .await?;
    let (inbound, db, api) = (free_address()?, free_address()?, free_address()?);
    register(&stage.agents[0], inbound, &[("db", db), ("api", api)]).await?;
    let directory = tempfile::tempdir()?;
    let envoy = TestEnvoy::start_as("web-proxy", &stage.agents[0], "bootstrap.yaml", directory.path())?;
    let Some(envoy) = envoy else { return Ok(()) };
    leads_to(db, &["db-0", "db-1"]).await?;
    // It does not exist yet: a connection is taken, and closed.
    ensure!(Connection::open(api).await?.ask().await.is_err(), "somebody answers for a service that does not exist");
    // It comes, and a second one; and goes.
    stage.play(&[Serve { agent: 0, service: "api", id: "api-0" }]).await?;
    leads_to(api, &["api-0"]).await?;
    stage.play(&[Serve { agent: 0, service: "api", id: "api-1" }]).await?;
    leads_to(api, &["api-0", "api-1"]).await?;
    stage.agents[0].put("/v1/agent/service/deregister/api-0", &json!(null)).await?;
    leads_to(api, &["api-1"]).await?;

    // Draining: nothing new, and what is open goes on.
    let mut kept = open_to(db, "db-1").await?;
    stage.agents[1].process.signal("TERM")?;
    eventually("Envoy to see it drain", || async {
        let clusters = envoy.clusters().await?;
        let is_so = |line: &str| line.starts_with("db::") && line.ends_with("health_flags::/eds_status_draining");
        ensure!(clusters.lines().any(is_so), "{clusters}");
        Ok(Some(()))
    })
    .await?;
    leads_to(db, &["db-0"]).await?;
    let shown = stage.agents[0].get("/v1/health/service/db?stale").await?;
    let is_draining = |entry: &Value| entry["Service"]["ID"] == "db-1" && entry["Service"]["Draining"] == true;
    ensure!(shown.as_array().is_some_and(|entries| entries.iter().any(is_draining)), "db-1 is not draining: {shown}");
    ensure!(kept.ask().await? == "db-1", "a draining instance lost a connection");

    // The upstream is removed: its listener takes nothing new, what is open goes on until the drain time is over.
    let open = Mutex::new(open_to(db, "db-0").await?);
    register(&stage.agents[0], inbound, &[("api", api)]).await?;
    refuses(db).await?;
    let refused = Instant::now();
    leads_to(api, &["api-1"]).await?;
    let closed = eventually("the connection to be closed", || async {
        Ok(open.lock().await.ask().await.is_err().then(|| refused.elapsed()))
    });
    let lived = closed.await?;
    ensure!(lived > DRAIN_TIME / 2, "the connection broke off {lived:?} after its listener");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_outside_the_scope_is_led_to_once_it_is_held_and_never_empty() -> Result<()> {
    let mut stage = Stage::set(1, 2).await?;
    stage
        .play(&[
            Serve { agent: 0, service: "web", id: "web-0" },
            Serve { agent: 1, service: "db", id: "db-0" },
            Shows { agent: 1, service: "db", ids: &["db-0"] },
        ])
        .await?;
    let (inbound, db) = (free_address()?, free_address()?);
    register(&stage.agents[0], inbound, &[("db", db)]).await?;
    // Both are known by name, and the proxy with its row; what is not asked for is not held.
    stage.agents[0].wait_passing("web-proxy", &["web-proxy"]).await?;
    eventually("the name of db to arrive", || async {
        let services = stage.agents[0].get("/v1/catalog/services?stale").await?;
        Ok(services.get("db").map(|_| ()))
    })
    .await?;
    // A registry that stands still cannot answer for a service that is asked for now.
    let registry = stage.cluster.process(0).expect("it runs");
    registry.signal("STOP")?;
    let directory = tempfile::tempdir()?;
    let envoy = TestEnvoy::start_as("web-proxy", &stage.agents[0], "bootstrap.yaml", directory.path());
    let Some(envoy) = envoy? else { return registry.signal("CONT") };
    // The proxy is served without it once its patience is over.
    let asked = eventually("the proxy to be served", || async { Ok(Connection::open(inbound).await.ok()) }).await;
    let is_open = TcpStream::connect(db).await.is_ok();
    let cluster = envoy.stat("cluster.db.membership_total").await;
    registry.signal("CONT")?;
    asked?;
    ensure!(!is_open && cluster?.is_none(), "something was said of a service that nothing is known of");
    leads_to(db, &["db-0"]).await?;
    ensure!(
        envoy.stat("cluster.db.update_success").await?.is_some_and(|count| count > 0),
        "Envoy has another name for it"
    );
    ensure!(envoy.stat("cluster.db.update_empty").await? == Some(0), "it was empty at first");
    Ok(())
}
