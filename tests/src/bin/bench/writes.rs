//! Registrations per second on three members with their disks: over HTTP at one agent, and natively.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use muster_tests::{
    harness::{TestAgent, TestCluster},
    load::{native_client, registration_command},
};
use serde_json::json;

use super::{ROUNDS, line, median, milliseconds, percentile};

/// How long one round writes.
const ROUND: Duration = Duration::from_secs(4);

pub(super) async fn run() -> Result<()> {
    let mut cluster = TestCluster::start_with(3, "")?;
    let agent = TestAgent::start(&cluster, "bench").await?;
    let numbers = Arc::new(AtomicU64::new(0));
    for clients in [1, 64] {
        let mut http = Vec::new();
        let mut native = Vec::new();
        // Interleaved, so that a slow minute of the machine hits both.
        for _ in 0..ROUNDS {
            let before = members_cpu(&mut cluster)?;
            let round = measure(clients, |_| http_writer(&agent, numbers.clone())).await?;
            http.push(round.with_cpu(members_cpu(&mut cluster)? - before));
            let before = members_cpu(&mut cluster)?;
            let round = measure(clients, |_| native_writer(&cluster, numbers.clone())).await?;
            native.push(round.with_cpu(members_cpu(&mut cluster)? - before));
        }
        for (way, rounds) in [("HTTP catalog/register", http), ("native gRPC write", native)] {
            let of = |figure: fn(&Round) -> f64| median(rounds.iter().map(figure).collect());
            line(
                &format!("{way}, {clients} clients, 3 members"),
                &format!(
                    "{:.0}/s  p50 {:.2} ms  p99 {:.2} ms  {:.0} µs CPU a write (all members)",
                    of(|round| round.rate),
                    of(|round| round.p50),
                    of(|round| round.p99),
                    of(|round| round.cpu)
                ),
            );
        }
    }
    Ok(())
}

/// CPU time that all members have spent.
fn members_cpu(cluster: &mut TestCluster) -> Result<Duration> {
    (0..3).map(|member| cluster.process(member).context("a member is down")?.cpu_time()).sum()
}

/// What one round came to: writes a second, milliseconds, and the members' CPU microseconds for each write.
struct Round {
    rate: f64,
    p50: f64,
    p99: f64,
    cpu: f64,
    writes: usize,
}

impl Round {
    fn with_cpu(self, cpu: Duration) -> Self {
        Self { cpu: cpu.as_secs_f64() * 1e6 / self.writes as f64, ..self }
    }
}

/// Lets so many clients write for one round.
async fn measure<W, F>(clients: usize, writer: impl Fn(usize) -> W) -> Result<Round>
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
    let at = |share| percentile(&taken, share).unwrap_or(f64::NAN);
    Ok(Round { rate, p50: at(0.5), p99: at(0.99), cpu: f64::NAN, writes: taken.len() })
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
