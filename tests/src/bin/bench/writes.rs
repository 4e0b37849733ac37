//! Registrations per second on three members with their disks: over HTTP at one agent, and natively.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use muster_registry::client::Client;
use muster_tests::{
    harness::{TestAgent, TestCluster},
    load::{native_client, registration_command},
};
use tokio::runtime::Builder;

use super::{ROUNDS, http::HttpClient, line, median, milliseconds, percentile};

/// How long one round writes.
const ROUND: Duration = Duration::from_secs(4);

/// Runs on a thread of its own, so that the generator costs the machine as little as it can.
pub(super) async fn run() -> Result<()> {
    let writing = || Builder::new_current_thread().enable_all().build()?.block_on(write());
    tokio::task::spawn_blocking(writing).await?
}

async fn write() -> Result<()> {
    let mut cluster = TestCluster::start_with(3, "")?;
    // As an agent is by default: it holds what is used.
    let agent = TestAgent::start_with(&cluster, "bench", "", "").await?;
    let numbers = Arc::new(AtomicU64::new(0));
    for clients in [1, 64] {
        let mut http = Vec::new();
        let mut native = Vec::new();
        // Interleaved, so that a slow minute of the machine hits both.
        for _ in 0..ROUNDS {
            let before = Spent::so_far(&mut cluster, &agent)?;
            let round = measure(clients, |_| http_writer(&agent, numbers.clone())).await?;
            http.push(round.with_cpu(before, Spent::so_far(&mut cluster, &agent)?));
            let before = Spent::so_far(&mut cluster, &agent)?;
            let shared = native_client(&cluster);
            let round = measure(clients, |_| native_writer(shared.clone(), numbers.clone())).await?;
            native.push(round.with_cpu(before, Spent::so_far(&mut cluster, &agent)?));
        }
        for (way, rounds) in [("HTTP catalog/register", http), ("native gRPC write", native)] {
            let of = |figure: fn(&Round) -> f64| median(rounds.iter().map(figure).collect());
            line(
                &format!("{way}, {clients} clients, 3 members"),
                &format!(
                    "{:.0}/s  p50 {:.2} ms  p99 {:.2} ms  µs CPU a write: {:.0} members, {:.0} agent, {:.0} generator",
                    of(|round| round.rate),
                    of(|round| round.p50),
                    of(|round| round.p99),
                    of(|round| round.cpu.members),
                    of(|round| round.cpu.agent),
                    of(|round| round.cpu.generator),
                ),
            );
        }
    }
    Ok(())
}

/// CPU microseconds.
#[derive(Clone, Copy, Default)]
struct Spent {
    members: f64,
    agent: f64,
    generator: f64,
}

impl Spent {
    fn so_far(cluster: &mut TestCluster, agent: &TestAgent) -> Result<Self> {
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        let members: Duration =
            (0..3).map(|member| cluster.process(member).context("a member is down")?.cpu_time()).sum::<Result<_>>()?;
        let own = muster_tests::harness::cpu_time_of(std::process::id())?;
        Ok(Self { members: micros(members), agent: micros(agent.process.cpu_time()?), generator: micros(own) })
    }
}

/// What one round came to: writes a second, milliseconds, and CPU microseconds for each write.
struct Round {
    rate: f64,
    p50: f64,
    p99: f64,
    cpu: Spent,
    writes: usize,
}

impl Round {
    fn with_cpu(self, before: Spent, after: Spent) -> Self {
        let each = |figure: fn(&Spent) -> f64| (figure(&after) - figure(&before)) / self.writes as f64;
        let cpu = Spent { members: each(|s| s.members), agent: each(|s| s.agent), generator: each(|s| s.generator) };
        Self { cpu, ..self }
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
    Ok(Round { rate, p50: at(0.5), p99: at(0.99), cpu: Spent::default(), writes: taken.len() })
}

fn http_writer(
    agent: &TestAgent,
    numbers: Arc<AtomicU64>,
) -> impl FnMut() -> futures_util::future::BoxFuture<'static, Result<()>> + Send + 'static {
    let address = agent.http;
    // Connected by the first write, and kept.
    let kept = Arc::new(tokio::sync::Mutex::new(None));
    move || {
        let number = numbers.fetch_add(1, Ordering::Relaxed);
        let kept = kept.clone();
        Box::pin(async move {
            let mut kept = kept.lock().await;
            let client = match &mut *kept {
                Some(client) => client,
                none => none.insert(HttpClient::connect(address).await?),
            };
            let body = format!(
                "{{\"Node\":\"ext-{}\",\"Address\":\"10.0.0.1\",\"Service\":{{\"ID\":\"s-{number}\",\"Service\":\"svc-{}\",\"Port\":80}}}}",
                number % 500,
                number % 1000
            );
            client.put("/v1/catalog/register", &body).await?;
            Ok(())
        })
    }
}

fn native_writer(
    client: Arc<Client>,
    numbers: Arc<AtomicU64>,
) -> impl FnMut() -> futures_util::future::BoxFuture<'static, Result<()>> + Send + 'static {
    move || {
        let (number, client) = (numbers.fetch_add(1, Ordering::Relaxed), client.clone());
        Box::pin(async move {
            muster_catalog::port::Sink::submit(&*client, registration_command(number)).await?;
            Ok(())
        })
    }
}
