//! From a status change to a thousand waiters.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use muster_tests::harness::{TestAgent, TestCluster};
use serde_json::json;
use tokio::task::JoinSet;

use super::{line, median, milliseconds, percentile};

/// How many wait on one service.
const WAITERS: usize = 1_000;
/// How many changes are timed.
const CHANGES: usize = 9;

pub(super) async fn run() -> Result<()> {
    let cluster = TestCluster::start_with(1, "")?;
    let agent = TestAgent::start(&cluster, "bench").await?;
    agent
        .put(
            "/v1/agent/service/register",
            &json!({"Name": "web", "Port": 80, "Check": {"TTL": "10m", "Status": "passing"}}),
        )
        .await?;
    agent.wait_passing("web", &["web"]).await?;
    let clients: Vec<reqwest::Client> =
        (0..WAITERS).map(|_| muster_tests::harness::http_client(Duration::from_secs(90))).collect::<Result<_, _>>()?;
    let mut all = Vec::new();
    let mut lasts = Vec::new();
    for change in 0..CHANGES {
        let index = index_of(&agent, &clients[0]).await?;
        let mut waiting = JoinSet::new();
        for client in &clients {
            let url = format!("http://{}/v1/health/service/web?stale&index={index}&wait=60s", agent.http);
            let client = client.clone();
            waiting.spawn(async move {
                let response = client.get(url).send().await?;
                let woken = Instant::now();
                response.bytes().await?;
                anyhow::Ok(woken)
            });
        }
        parked(&agent, WAITERS).await?;
        let verb = if change % 2 == 0 { "warn" } else { "pass" };
        let changed = Instant::now();
        agent.put(&format!("/v1/agent/check/{verb}/service:web"), &json!(null)).await?;
        let mut taken = Vec::new();
        while let Some(woken) = waiting.join_next().await {
            taken.push(milliseconds(woken?? - changed));
        }
        ensure!(taken.len() == WAITERS, "{} of {WAITERS} woke", taken.len());
        taken.sort_by(f64::total_cmp);
        lasts.extend(taken.last().copied());
        all.extend(percentile(&taken, 0.99));
    }
    line(
        "status change → 1,000 waiters over HTTP (one agent)",
        &format!("p99 {:.1} ms  last {:.1} ms (medians of {CHANGES})", median(all), median(lasts)),
    );
    Ok(())
}

async fn index_of(agent: &TestAgent, client: &reqwest::Client) -> Result<u64> {
    let response = client.get(format!("http://{}/v1/health/service/web?stale", agent.http)).send().await?;
    Ok(response.headers().get("x-consul-index").context("no index")?.to_str()?.parse()?)
}

/// Waits until this many requests are parked, as the metrics say.
async fn parked(agent: &TestAgent, count: usize) -> Result<()> {
    muster_tests::harness::eventually("the waiters to be parked", || async {
        let text = agent.response("/metrics").await?.text().await?;
        let parked = text.lines().filter_map(|line| line.strip_prefix("muster_http_blocking_waiters "));
        let parked: f64 = parked.filter_map(|value| value.parse::<f64>().ok()).sum();
        Ok((parked as usize >= count).then_some(()))
    })
    .await?;
    // The request that reads the metric races with the last to park by microseconds.
    tokio::time::sleep(Duration::from_millis(50)).await;
    Ok(())
}
