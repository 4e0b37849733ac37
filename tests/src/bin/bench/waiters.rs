//! From a status change to a thousand waiters.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use muster_tests::harness::{TestAgent, TestCluster};
use serde_json::json;
use tokio::{runtime::Builder, task::JoinSet};

use super::{http::HttpClient, line, median, milliseconds, percentile};

/// How many wait on one service.
const WAITERS: usize = 1_000;
/// How many changes are timed.
const CHANGES: usize = 9;

/// Runs on a thread of its own, so that its waiters cost the machine as little as they can: on many threads each of
/// them would wake others, on the cores that the agent answers on.
pub(super) async fn run() -> Result<()> {
    let waiting = || Builder::new_current_thread().enable_all().build()?.block_on(wait());
    tokio::task::spawn_blocking(waiting).await?
}

async fn wait() -> Result<()> {
    let cluster = TestCluster::start_with(1, "")?;
    let agent = TestAgent::start(&cluster, "bench").await?;
    agent
        .put(
            "/v1/agent/service/register",
            &json!({"Name": "web", "Port": 80, "Check": {"TTL": "10m", "Status": "passing"}}),
        )
        .await?;
    agent.wait_passing("web", &["web"]).await?;
    let mut waiters = Vec::new();
    for _ in 0..WAITERS {
        waiters.push(HttpClient::connect(agent.http).await?);
    }
    let mut all = Vec::new();
    let mut lasts = Vec::new();
    for change in 0..CHANGES {
        let index = index_at_rest(&agent, "web").await?;
        let mut waiting = JoinSet::new();
        for mut waiter in waiters.drain(..) {
            let path = format!("/v1/health/service/web?stale&index={index}&wait=60s");
            waiting.spawn(async move {
                let woken = waiter.get(&path).await?;
                anyhow::Ok((woken, waiter))
            });
        }
        tokio::select! {
            all = parked(&agent, WAITERS) => all?,
            Some(early) = waiting.join_next() => bail!("a waiter did not wait: {:?}", early?.err()),
        }
        let verb = if change % 2 == 0 { "warn" } else { "pass" };
        let changed = Instant::now();
        agent.put(&format!("/v1/agent/check/{verb}/service:web"), &json!(null)).await?;
        let mut taken = Vec::new();
        while let Some(woken) = waiting.join_next().await {
            let (woken, waiter) = woken??;
            taken.push(milliseconds(woken - changed));
            waiters.push(waiter);
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

/// A service's index once it rests: the host's own change is shown before the registry's index for it comes.
pub(super) async fn index_at_rest(agent: &TestAgent, service: &str) -> Result<u64> {
    let mut index = 0;
    loop {
        let response = agent.response(&format!("/v1/health/service/{service}?stale&index={index}&wait=300ms")).await?;
        let next = response.headers().get("x-consul-index").context("no index")?.to_str()?.parse()?;
        if next == index {
            return Ok(index);
        }
        index = next;
    }
}

/// Waits until this many requests are parked, as the metrics say.
pub(super) async fn parked(agent: &TestAgent, count: usize) -> Result<()> {
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
