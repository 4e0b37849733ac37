//! What writes cost those whom they do not concern: agents that follow, the members that they follow, and their disks.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt;
use muster_catalog::{Command, Scope, port::Sink};
use muster_registry::{Hello, WatchSender, client::Client};
use muster_tests::{
    harness::{Process, TestAgent, TestCluster},
    load::{native_client, registration_command},
};
use tokio::{
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};

use super::{ROUNDS, line, median};

/// Writes a second to services that nobody holds: each moves one instance of some that are there.
const WRITES_PER_SECOND: u64 = 200;
/// Watchers that hold nothing which is written.
const WATCHERS: usize = 1_000;
/// How long each figure is taken.
const SPAN: Duration = Duration::from_secs(10);
/// Instances of the agent that holds everything, and writes a second while its disk is looked at.
const INSTANCES: u64 = 55_000;
const FEW_PER_SECOND: u64 = 2;
/// As long as several saves of a replica take to come.
const DISK_SPAN: Duration = Duration::from_secs(60);
/// How many write at once while the catalog is filled.
const FILLERS: u64 = 64;
/// Instances that are written again and again.
const MOVING: u64 = 1_000;

pub(super) async fn run() -> Result<()> {
    idle_agent().await?;
    many_watchers().await?;
    whole_replica().await
}

async fn idle_agent() -> Result<()> {
    let cluster = TestCluster::start_with(3, "")?;
    let agent = TestAgent::start(&cluster, "bench").await?;
    let client = native_client(&cluster);
    fill(&cluster, MOVING).await?;
    for (what, rate) in [("no writes", 0), ("200 writes/s to what it does not hold", WRITES_PER_SECOND)] {
        let (mut switches, mut percent) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let before = (agent.process.context_switches()?, agent.process.exact_cpu_time()?);
            write_for(&client, rate, SPAN).await?;
            let after = (agent.process.context_switches()?, agent.process.exact_cpu_time()?);
            switches.push((after.0 - before.0) as f64 / SPAN.as_secs_f64());
            // Threads that ended meanwhile take theirs with them.
            percent.push(after.1.saturating_sub(before.1).as_secs_f64() / SPAN.as_secs_f64() * 100.0);
        }
        let (switches, percent) = (median(switches), median(percent));
        line(&format!("idle agent, {what}"), &format!("{switches:.1} context switches/s, {percent:.3} % CPU"));
    }
    Ok(())
}

async fn many_watchers() -> Result<()> {
    let mut cluster = TestCluster::start_with(1, "")?;
    let client = native_client(&cluster);
    fill(&cluster, MOVING).await?;
    let alone = cost_of_a_write(&mut cluster, &client).await?;
    let mut watchers = Vec::new();
    // A connection each would be an agent's way, and is more than this process may open files.
    let clients: Vec<_> = (0..WATCHERS / 50).map(|_| native_client(&cluster)).collect();
    for watcher in 0..WATCHERS {
        watchers.push(watch(&clients[watcher % clients.len()]).await?);
    }
    let watched = cost_of_a_write(&mut cluster, &client).await?;
    let gone = watchers.iter().filter(|(_, reading)| reading.is_finished()).count();
    ensure!(gone == 0, "{gone} watches ended");
    watchers.iter().for_each(|(_, reading)| reading.abort());
    line(
        &format!("a write at a member with no / {WATCHERS} idle watchers"),
        &format!("{alone:.0} / {watched:.0} µs of CPU over what it takes without writes: {:.2} ×", watched / alone),
    );
    Ok(())
}

async fn watch(client: &Client) -> Result<(WatchSender, JoinHandle<()>)> {
    let scope = Scope::Services { names: Default::default(), node: None };
    let hello = Hello { scope, resume: None, watcher: None, accept_new_cluster: false };
    let (sender, mut events) = client.watch(hello).await?;
    // It reads as an agent does, and does nothing with what it reads.
    Ok((sender, tokio::spawn(async move { while let Some(Ok(_)) = events.next().await {} })))
}

/// CPU microseconds that a write takes beyond what the same time takes without one.
async fn cost_of_a_write(cluster: &mut TestCluster, client: &Client) -> Result<f64> {
    let mut costs = Vec::new();
    for _ in 0..ROUNDS {
        let mut spent = Vec::new();
        for rate in [0, WRITES_PER_SECOND] {
            let before = member(cluster)?.cpu_time()?;
            write_for(client, rate, SPAN).await?;
            spent.push((member(cluster)?.cpu_time()? - before).as_secs_f64());
        }
        costs.push((spent[1] - spent[0]) * 1e6 / (WRITES_PER_SECOND * SPAN.as_secs()) as f64);
    }
    Ok(median(costs))
}

async fn whole_replica() -> Result<()> {
    let cluster = TestCluster::start_with(1, "")?;
    fill(&cluster, INSTANCES).await?;
    let agent = TestAgent::start_with(&cluster, "all", "replica = \"all\"\n", "").await?;
    let client = native_client(&cluster);
    agent.get("/v1/catalog/services?consistent").await?;
    // The first file is written whole.
    tokio::time::sleep(DISK_SPAN / 2).await;
    let mut slowest = Vec::new();
    for rate in [0, FEW_PER_SECOND] {
        let before = agent.process.written_bytes()?;
        let (reads, written) = tokio::join!(slowest_read(&agent, DISK_SPAN), write_for(&client, rate, DISK_SPAN));
        written?;
        let rate_written = (agent.process.written_bytes()? - before) as f64 / DISK_SPAN.as_secs_f64() / 1e3;
        slowest.push(reads?);
        line(
            &format!("agent that holds {INSTANCES}, {rate} writes/s"),
            &format!("{rate_written:.1} KB/s to disk, slowest default read {:.1} ms", slowest[slowest.len() - 1]),
        );
    }
    line("its slowest read with writes, beside without", &format!("{:.2} ×", slowest[1] / slowest[0]));
    Ok(())
}

/// Milliseconds of the slowest of the reads that are made one after the other.
async fn slowest_read(agent: &TestAgent, span: Duration) -> Result<f64> {
    let (end, mut slowest) = (Instant::now() + span, Duration::ZERO);
    while Instant::now() < end {
        let began = Instant::now();
        agent.get("/v1/health/service/svc-7").await?;
        slowest = slowest.max(began.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(super::milliseconds(slowest))
}

/// Writes so many a second, evenly, for so long.
async fn write_for(client: &Client, rate: u64, span: Duration) -> Result<()> {
    if rate == 0 {
        tokio::time::sleep(span).await;
        return Ok(());
    }
    let mut ticks = interval(Duration::from_secs(1) / u32::try_from(rate)?);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let round = std::time::SystemTime::UNIX_EPOCH.elapsed()?.as_millis();
    for number in 0..rate * span.as_secs() {
        ticks.tick().await;
        let mut command = registration_command(number % MOVING);
        if let Command::Register(registration) = &mut command {
            for instance in &mut registration.instances {
                instance.meta = [("write".into(), format!("{round}-{number}").as_str().into())].into();
            }
        }
        client.submit(command).await?;
    }
    Ok(())
}

/// Of a thousand services, on five hundred nodes.
async fn fill(cluster: &TestCluster, instances: u64) -> Result<()> {
    let fillers = (0..FILLERS).map(|filler| {
        let client = native_client(cluster);
        tokio::spawn(async move {
            for number in (filler..instances).step_by(FILLERS as usize) {
                client.submit(registration_command(number)).await?;
            }
            anyhow::Ok(())
        })
    });
    for filler in fillers.collect::<Vec<_>>() {
        filler.await??;
    }
    Ok(())
}

fn member(cluster: &mut TestCluster) -> Result<&Process> {
    Ok(cluster.process(0).context("the member is down")?)
}
