//! What consumers see while an agent is started anew, and what it answers of itself.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, ensure};
use muster_tests::harness::{TestAgent, TestCluster, ask, eventually};
use serde_json::json;
use tokio::time::{Instant, sleep};

/// Longer than the longest pause of a restart here, short enough to wait for its end.
const SETTINGS: &str = "lease_ttl = \"4s\"\nlease_grace = \"1s\"\n";
/// How long the agent is away: a restart by systemd is the shortest, a package upgrade the longest.
const PAUSES: [u64; 5] = [0, 50, 300, 1_000, 2_000];
const NAME: &str = "web-0.service.mesh.internal";

/// Asks one agent again and again, and counts what a client would have taken for an outage.
struct Consumer {
    on: Arc<AtomicBool>,
    gaps: Arc<AtomicUsize>,
    asked: Arc<AtomicUsize>,
}

impl Consumer {
    fn start(agent: &TestAgent) -> Self {
        let consumer = Self { on: Arc::new(true.into()), gaps: Arc::default(), asked: Arc::default() };
        let (dns, on, gaps, asked) = (agent.dns, consumer.on.clone(), consumer.gaps.clone(), consumer.asked.clone());
        tokio::spawn(async move {
            while on.load(Ordering::Relaxed) {
                let answered = ask(dns, NAME, "A").await.is_ok_and(|answer| !answer.records.is_empty());
                asked.fetch_add(1, Ordering::Relaxed);
                gaps.fetch_add(usize::from(!answered), Ordering::Relaxed);
                sleep(Duration::from_millis(2)).await;
            }
        });
        consumer
    }

    fn check(&self, what: &str) -> Result<()> {
        let (gaps, asked) = (self.gaps.load(Ordering::Relaxed), self.asked.load(Ordering::Relaxed));
        ensure!(asked > 0 && gaps == 0, "{what}: {gaps} of {asked} questions had no answer");
        Ok(())
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.on.store(false, Ordering::Relaxed);
    }
}

/// A cluster, an agent with services in files, and another agent that shows them.
async fn stage(settings: &str, files: usize) -> Result<(TestCluster, TestAgent, TestAgent)> {
    let cluster = TestCluster::start_with(1, SETTINGS)?;
    let agent = TestAgent::start_with(&cluster, "node-0", settings, "").await?;
    for file in 0..files {
        let text = format!("[service]\nname = \"web-{file}\"\nport = 80\n");
        std::fs::write(agent.services_dir().join(format!("web-{file}.toml")), text)?;
    }
    let other = TestAgent::start(&cluster, "node-1").await?;
    other.wait_passing("web-0", &["web-0"]).await?;
    eventually("all files to be in the catalog", || async {
        let services = other.get("/v1/catalog/services?stale").await?;
        Ok((services.as_object().is_some_and(|services| services.len() >= files)).then_some(()))
    })
    .await?;
    Ok((cluster, agent, other))
}

async fn created(agent: &TestAgent) -> Result<String> {
    Ok(agent.get("/v1/health/service/web-0?stale").await?[0]["Service"]["CreateIndex"].to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_killed_and_started_again_takes_nothing_out() -> Result<()> {
    let (_cluster, mut agent, other) = stage("", 100).await?;
    let (before, consumer) = (created(&other).await?, Consumer::start(&other));
    for round in 0..4 {
        agent.restart()?;
        agent.ready().await?;
        consumer.check(&format!("kill {round}"))?;
    }
    ensure!(created(&other).await? == before, "the row was made anew");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_stops_for_a_restart_stays_registered() -> Result<()> {
    for (settings, signal) in [("", "USR1"), ("leave_on_terminate = false\n", "TERM")] {
        let (_cluster, mut agent, other) = stage(settings, 1).await?;
        let (before, consumer) = (created(&other).await?, Consumer::start(&other));
        for pause in PAUSES {
            let stopping = Instant::now();
            agent.process.signal(signal)?;
            agent.process.wait_ended()?;
            ensure!(stopping.elapsed() < Duration::from_secs(2), "the stop took {:?}", stopping.elapsed());
            sleep(Duration::from_millis(pause)).await;
            agent.restart()?;
            agent.ready().await?;
            consumer.check(&format!("SIG{signal}, {pause} ms"))?;
        }
        ensure!(created(&other).await? == before, "the row was made anew");
        drop(consumer);
        // One that does not come back is lost with its lease, not before.
        let stopped = Instant::now();
        agent.process.signal(signal)?;
        other.wait_passing("web-0", &[]).await?;
        ensure!(stopped.elapsed() > Duration::from_secs(3), "after {:?} already", stopped.elapsed());
        let node = other.get("/v1/health/node/node-0").await?;
        ensure!(node[0]["Status"] == "critical", "it stays registered: {node}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_for_good_leaves_at_once() -> Result<()> {
    for signal in ["TERM", "INT"] {
        let (_cluster, mut agent, other) = stage("", 1).await?;
        agent.process.signal(signal)?;
        agent.process.wait_ended()?;
        eventually("the node to go", || async {
            let nodes = other.get("/v1/catalog/nodes?stale").await?;
            Ok((nodes.as_array().map(Vec::len) == Some(1)).then_some(()))
        })
        .await?;
    }
    Ok(())
}

/// A client that writes to its agent reads what it wrote, whether the registry is there or not.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_to_the_agent_is_in_its_next_read() -> Result<()> {
    let mut cluster = TestCluster::start_with(1, SETTINGS)?;
    let agent = TestAgent::start(&cluster, "node-0").await?;
    for (round, consistency) in [("up", ""), ("away", "?stale")] {
        if round == "away" {
            cluster.kill_all()?;
        }
        for turn in 0..20 {
            let id = format!("{round}-{turn}");
            let status = async |wanted: &str| -> Result<()> {
                let shown = agent.get(&format!("/v1/health/service/{id}{consistency}")).await?;
                let statuses = shown[0]["Checks"].to_string();
                ensure!(statuses.contains(wanted), "{id}: {wanted} is not in {shown}");
                Ok(())
            };
            let registration = json!({"Name": id, "ID": id, "Port": 80, "Check": {"CheckID": id, "TTL": "1h"}});
            agent.put("/v1/agent/service/register", &registration).await?;
            status("critical").await?;
            let listed = agent.get(&format!("/v1/catalog/service/{id}{consistency}")).await?;
            ensure!(listed[0]["ServiceID"] == id.as_str(), "{listed}");
            agent.put(&format!("/v1/agent/check/pass/{id}"), &json!({})).await?;
            status("passing").await?;
            let answer = agent.dig(&format!("{id}.service.mesh.internal"), "A").await?;
            ensure!(!answer.records.is_empty(), "{id} is not in DNS");
            agent.put(&format!("/v1/agent/check/fail/{id}"), &json!({})).await?;
            let answer = agent.dig(&format!("{id}.service.mesh.internal"), "A").await?;
            ensure!(answer.records.is_empty(), "{id} is still in DNS");
            agent.put(&format!("/v1/agent/service/deregister/{id}"), &json!({})).await?;
            let shown = agent.get(&format!("/v1/health/service/{id}{consistency}")).await?;
            ensure!(shown == json!([]), "{id} is still there: {shown}");
        }
    }
    Ok(())
}
