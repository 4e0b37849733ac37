//! Ten thousand blocking reads on a hundred services at one agent: what each costs, and when the last of a service wakes.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use muster_tests::harness::{TestAgent, TestCluster};
use serde_json::json;
use tokio::task::JoinSet;

use super::{
    super::{
        http::HttpClient,
        median, milliseconds, percentile,
        size::Size,
        waiters::{index_at_rest, parked},
    },
    Row,
};

/// Descriptors that a process needs beside its connections.
const OTHER_DESCRIPTORS: usize = 500;

/// The waiters of one service, each on a connection of its own.
struct Queue {
    service: String,
    waiters: Vec<HttpClient>,
}

pub(super) async fn run(size: Size) -> Result<Vec<Row>> {
    raise_descriptors(std::process::id(), size.waiters + OTHER_DESCRIPTORS)?;
    let cluster = TestCluster::start_with(1, "")?;
    let agent = TestAgent::start(&cluster, "bench").await?;
    raise_descriptors(agent.process.id(), size.waiters + OTHER_DESCRIPTORS)?;
    let mut queues = Vec::new();
    for number in 0..size.waited {
        let service = format!("svc-{number}");
        let check = json!({"TTL": "10m", "Status": "passing"});
        agent.put("/v1/agent/service/register", &json!({"Name": service, "Port": 80, "Check": check})).await?;
        queues.push(Queue { service, waiters: Vec::new() });
    }
    let last = format!("svc-{}", size.waited - 1);
    agent.wait_passing(&last, &[&last]).await?;
    let before = agent.process.resident_bytes()?;
    for queue in &mut queues {
        for _ in 0..size.waiters / size.waited {
            queue.waiters.push(HttpClient::connect(agent.http).await?);
        }
    }
    let mut parkings = Vec::new();
    for queue in queues {
        parkings.push(park(&agent, queue).await?);
    }
    let parked_count = size.waiters / size.waited * size.waited;
    parked(&agent, parked_count).await?;
    let each = agent.process.resident_bytes()?.saturating_sub(before) as f64 / 1024.0 / parked_count as f64;

    let (mut lasts, cpu_before) = (Vec::new(), agent.process.cpu_time()?);
    for Parking { service, mut waiting } in parkings {
        let changed = Instant::now();
        agent.put(&format!("/v1/agent/check/warn/service:{service}"), &json!(null)).await?;
        let (mut last, mut woken) = (changed, 0);
        while let Some(ended) = waiting.join_next().await {
            last = last.max(ended??);
            woken += 1;
        }
        ensure!(woken == size.waiters / size.waited, "{woken} of a service's waiters woke");
        lasts.push(milliseconds(last - changed));
    }
    let cpu = (agent.process.cpu_time()? - cpu_before).as_secs_f64() * 1e6 / parked_count as f64;
    lasts.sort_by(f64::total_cmp);
    let worst = percentile(&lasts, 0.99).context("no change")?;
    let figure = format!("{parked_count} waiters on {} services", size.waited);
    Ok(vec![
        Row {
            figure: format!("{figure}, each"),
            ours: format!("{each:.1} KiB"),
            peer: "Consul 50 KB (known)".into(),
            ratio: Some(each / 50.0),
            aim: "≤ 10 KiB",
            met: Some(each <= 10.0),
        },
        Row {
            figure: format!("{figure}, last wake"),
            ours: format!("p50 {:.1}, p99 {worst:.1} ms, {cpu:.0} µs CPU", median(lasts)),
            peer: "Consul 9.3 / 21.7 ms, 217 µs (known)".into(),
            ratio: Some(worst / 21.7),
            aim: "≤ 300 ms at p99",
            met: Some(worst <= 300.0),
        },
    ])
}

/// A service's waiters under way; each gives the time at which it woke.
struct Parking {
    service: String,
    waiting: JoinSet<Result<Instant>>,
}

async fn park(agent: &TestAgent, queue: Queue) -> Result<Parking> {
    let Queue { service, waiters } = queue;
    let index = index_at_rest(agent, &service).await?;
    let mut waiting = JoinSet::new();
    for mut waiter in waiters {
        let path = format!("/v1/health/service/{service}?stale&index={index}&wait=300s");
        waiting.spawn(async move { waiter.get(&path).await });
    }
    Ok(Parking { service, waiting })
}

/// Lets a process open so many files, as a service manager would be told to.
fn raise_descriptors(process: u32, least: usize) -> Result<()> {
    let limits = std::fs::read_to_string(format!("/proc/{process}/limits"))?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).context("no limit of open files")?;
    let soft: usize = line.split_whitespace().next().context("no limit")?.parse().unwrap_or(usize::MAX);
    if soft >= least {
        return Ok(());
    }
    let (process, limit) = (process.to_string(), format!("--nofile={least}:{least}"));
    let status = std::process::Command::new("prlimit").args(["--pid", &process, &limit]).status()?;
    ensure!(status.success(), "{least} open files are needed: raise `ulimit -n`");
    Ok(())
}
