//! Registrations per second on three members with their disks: over HTTP at one agent, and natively.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use muster_tests::{
    harness::{TestAgent, TestCluster},
    load::{native_client, registration_command},
};
use serde_json::json;

use super::{ROUNDS, line, median, milliseconds, percentile};

/// How long one round writes.
const ROUND: Duration = Duration::from_secs(4);

pub(super) async fn run() -> Result<()> {
    let cluster = TestCluster::start_with(3, "")?;
    let agent = TestAgent::start(&cluster, "bench").await?;
    let numbers = Arc::new(AtomicU64::new(0));
    for clients in [1, 64] {
        let mut http = Vec::new();
        let mut native = Vec::new();
        // Interleaved, so that a slow minute of the machine hits both.
        for _ in 0..ROUNDS {
            http.push(round(clients, |_| http_writer(&agent, numbers.clone())).await?);
            native.push(round(clients, |_| native_writer(&cluster, numbers.clone())).await?);
        }
        for (way, rounds) in [("HTTP catalog/register", http), ("native gRPC write", native)] {
            let rate = median(rounds.iter().map(|round| round.0).collect());
            let p50 = median(rounds.iter().map(|round| round.1).collect());
            let p99 = median(rounds.iter().map(|round| round.2).collect());
            line(
                &format!("{way}, {clients} clients, 3 members"),
                &format!("{rate:.0}/s  p50 {p50:.2} ms  p99 {p99:.2} ms"),
            );
        }
    }
    Ok(())
}

/// Rate, median and 99th percentile in milliseconds.
async fn round<W, F>(clients: usize, writer: impl Fn(usize) -> W) -> Result<(f64, f64, f64)>
where
    W: FnMut() -> F + Send + 'static,
    F: Future<Output = Result<()>> + Send,
{
    let began = Instant::now();
    let tasks: Vec<_> = (0..clients)
        .map(|client| {
            let mut write = writer(client);
            tokio::spawn(async move {
                let mut taken = Vec::new();
                while began.elapsed() < ROUND {
                    let sent = Instant::now();
                    write().await?;
                    taken.push(milliseconds(sent.elapsed()));
                }
                anyhow::Ok(taken)
            })
        })
        .collect();
    let mut taken = Vec::new();
    for task in tasks {
        taken.extend(task.await??);
    }
    let rate = taken.len() as f64 / began.elapsed().as_secs_f64();
    taken.sort_by(f64::total_cmp);
    Ok((rate, percentile(&taken, 0.5).unwrap_or(0.0), percentile(&taken, 0.99).unwrap_or(0.0)))
}

fn http_writer(
    agent: &TestAgent,
    numbers: Arc<AtomicU64>,
) -> impl FnMut() -> futures_util::future::BoxFuture<'static, Result<()>> + Send + 'static {
    let url = format!("http://{}/v1/catalog/register", agent.http);
    let client = muster_tests::harness::http_client(Duration::from_secs(90));
    move || {
        let number = numbers.fetch_add(1, Ordering::Relaxed);
        let (url, client) =
            (url.clone(), client.as_ref().map(Clone::clone).map_err(|error| anyhow::anyhow!("{error}")));
        Box::pin(async move {
            let body = json!({"Node": format!("ext-{}", number % 500), "Address": "10.0.0.1",
                              "Service": {"ID": format!("s-{number}"), "Service": format!("svc-{}", number % 1000), "Port": 80}});
            let response = client?.put(url).json(&body).send().await?;
            ensure!(response.status().is_success(), "{}", response.status());
            Ok(())
        })
    }
}

fn native_writer(
    cluster: &TestCluster,
    numbers: Arc<AtomicU64>,
) -> impl FnMut() -> futures_util::future::BoxFuture<'static, Result<()>> + Send + 'static {
    let client = native_client(cluster);
    move || {
        let (number, client) = (numbers.fetch_add(1, Ordering::Relaxed), client.clone());
        Box::pin(async move {
            muster_catalog::port::Sink::submit(&*client, registration_command(number)).await?;
            Ok(())
        })
    }
}
