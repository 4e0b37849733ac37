//! What 500 checks on one host cost: CPU and memory of the agent that runs them.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use muster_tests::harness::{Process, TestAgent, TestCluster, eventually};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinSet,
};
use tokio_stream::wrappers::TcpListenerStream;

use super::{ROUNDS, line, median};

/// What is probed, and how many checks of it: what a host of many small services has.
const MIX: [(&str, usize); 4] = [("HTTP", 200), ("TCP", 150), ("gRPC", 75), ("TTL", 75)];
/// From one probe of a check to its next.
const INTERVAL: Duration = Duration::from_secs(10);
/// Two rounds of every check.
const SPAN: Duration = Duration::from_secs(20);

pub(super) async fn run() -> Result<()> {
    let cluster = TestCluster::start_with(1, "")?;
    let agent = TestAgent::start(&cluster, "bench").await?;
    let mut servers = JoinSet::new();
    let targets = Targets::serve(&mut servers).await?;
    let bare = agent.process.resident_bytes()?;
    let total: usize = MIX.iter().map(|(_, count)| count).sum();
    std::fs::write(agent.services_dir().join("all-1.toml"), targets.definitions(0..total / 2))?;
    std::fs::write(agent.services_dir().join("all-2.toml"), targets.definitions(total / 2..total))?;
    let reports = tell(agent.http, total);
    let telling = tokio::spawn(reports);
    eventually("all checks to pass", || async {
        let checks = agent.get("/v1/agent/checks").await?;
        let checks = checks.as_object().context("no object")?;
        let passing = checks.values().filter(|check| check["Status"] == "passing").count();
        ensure!(passing == total, "{passing} of {} pass", checks.len());
        Ok(Some(()))
    })
    .await?;
    let mut percents = Vec::new();
    let runs = probes(&agent).await?;
    for _ in 0..ROUNDS {
        percents.push(measure(&agent.process).await?);
    }
    let per_second = (probes(&agent).await? - runs) / (SPAN * u32::try_from(ROUNDS)?).as_secs_f64();
    let grown = agent.process.resident_bytes()?.saturating_sub(bare);
    let mix: Vec<String> = MIX.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    line(&format!("{total} checks every {INTERVAL:?}: CPU"), &format!("{:.2} % of one core", median(percents)));
    line("  probed or told", &format!("{per_second:.1} per second ({})", mix.join(", ")));
    line("  memory for them", &format!("{:.1} MB ({} MB in all)", grown as f64 / 1e6, (bare + grown) / 1_000_000));
    telling.abort();
    Ok(())
}

async fn measure(process: &Process) -> Result<f64> {
    let before = process.cpu_time()?;
    tokio::time::sleep(SPAN).await;
    Ok((process.cpu_time()? - before).as_secs_f64() / SPAN.as_secs_f64() * 100.0)
}

/// How many probes have run and TTL updates have come.
async fn probes(agent: &TestAgent) -> Result<f64> {
    let text = agent.response("/metrics").await?.text().await?;
    let of = |name: &str, must: &str| -> f64 {
        let lines = text.lines().filter(|line| line.starts_with(name) && line.contains(must));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    };
    Ok(of("muster_agent_check_runs_total{", "") + of("muster_http_requests_total{", "check/pass"))
}

/// What the checks go to, all in this process.
struct Targets {
    http: SocketAddr,
    tcp: SocketAddr,
    grpc: SocketAddr,
}

impl Targets {
    async fn serve(servers: &mut JoinSet<()>) -> Result<Self> {
        let (http, tcp, grpc) = (listen().await?, listen().await?, listen().await?);
        let targets = Self { http: http.local_addr()?, tcp: tcp.local_addr()?, grpc: grpc.local_addr()? };
        servers.spawn(async move {
            while let Ok((stream, _)) = http.accept().await {
                tokio::spawn(answer(stream));
            }
        });
        servers.spawn(async move { while tcp.accept().await.is_ok() {} });
        let (_, health) = tonic_health::server::health_reporter();
        let serving =
            tonic::transport::Server::builder().add_service(health).serve_with_incoming(TcpListenerStream::new(grpc));
        servers.spawn(async move { drop(serving.await) });
        Ok(targets)
    }

    /// A file of services with one check each.
    fn definitions(&self, numbers: std::ops::Range<usize>) -> String {
        let Self { http, tcp, grpc } = self;
        let mut text = String::new();
        for number in numbers {
            let check = match kind(number) {
                "HTTP" => format!("http = \"http://{http}/healthz\"\ninterval = \"{INTERVAL:?}\""),
                "TCP" => format!("tcp = \"{tcp}\"\ninterval = \"{INTERVAL:?}\""),
                "gRPC" => format!("grpc = \"{grpc}\"\ninterval = \"{INTERVAL:?}\""),
                _ => "ttl = \"1m\"".to_owned(),
            };
            text += &format!("[[services]]\nname = \"s{number}\"\nport = 80\n[[services.checks]]\n{check}\n");
        }
        text
    }
}

async fn listen() -> std::io::Result<TcpListener> {
    TcpListener::bind("127.0.0.1:0").await
}

/// The kinds lie mixed, so that both files have all of them.
fn kind(number: usize) -> &'static str {
    let total: usize = MIX.iter().map(|(_, count)| count).sum();
    // A step that has no divisor in common with the total visits every place.
    let mut place = number * 7 % total;
    for (kind, count) in MIX {
        match place.checked_sub(count) {
            None => return kind,
            Some(rest) => place = rest,
        }
    }
    "TTL"
}

/// A small answer to each request on a connection.
async fn answer(mut stream: tokio::net::TcpStream) {
    let mut asked = [0; 2048];
    while stream.read(&mut asked).await.is_ok_and(|length| length > 0) {
        let text = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nok\n";
        if stream.write_all(text).await.is_err() {
            return;
        }
    }
}

/// Tells the TTL checks that all is well, spread over the interval, for ever.
async fn tell(http: SocketAddr, total: usize) -> Result<()> {
    let client = muster_tests::harness::http_client(Duration::from_secs(10))?;
    let ids: Vec<usize> = (0..total).filter(|number| kind(*number) == "TTL").collect();
    let mut turns = tokio::time::interval(INTERVAL / u32::try_from(ids.len())?);
    for number in ids.iter().cycle() {
        turns.tick().await;
        let url = format!("http://{http}/v1/agent/check/pass/service:s{number}");
        client.put(url).json(&json!({})).send().await?;
    }
    Ok(())
}
