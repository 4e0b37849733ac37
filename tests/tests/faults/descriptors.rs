//! An agent without a file descriptor left: new connections wait, everything that is open goes on, and the log says
//! which limit it is.

use std::{
    net::SocketAddr,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use muster_tests::harness::{Process, TestAgent, TestCluster, eventually};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::registration;

/// Descriptors that are left when the limit is set.
const LEFT: usize = 3;
/// Connections that ask for one, at each listener.
const ASKING: usize = 12;
/// How long there is none: longer than any listener counted its errors before it gave up.
const LASTING: Duration = Duration::from_secs(13);
/// How long an answer may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Sets how many descriptors a process may have open; what is open stays so.
fn limit_descriptors(process: &Process, count: usize) -> Result<()> {
    let (id, limit) = (process.id().to_string(), format!("--nofile={count}:"));
    let status = Command::new("prlimit").args(["--pid", &id, &limit]).status().context("prlimit (util-linux)")?;
    ensure!(status.success(), "prlimit {limit} failed");
    Ok(())
}

fn open_descriptors(process: &Process) -> Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{}/fd", process.id()))?.count())
}

/// Asks on a connection and returns the answer's first line.
async fn ask(connection: &mut TcpStream) -> Result<String> {
    connection.write_all(b"GET /v1/health/service/web?stale HTTP/1.1\r\nHost: localhost\r\n\r\n").await?;
    let mut buffer = vec![0; 16 * 1024];
    let read = timeout(PATIENCE, connection.read(&mut buffer)).await.context("no answer")??;
    let text = String::from_utf8_lossy(&buffer[..read]);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

async fn crowd(address: SocketAddr) -> Result<Vec<TcpStream>> {
    let mut connections = Vec::new();
    for _ in 0..ASKING {
        // The kernel takes them, whether the process can or not.
        connections.push(TcpStream::connect(address).await?);
    }
    Ok(connections)
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_descriptor_left_what_is_open_goes_on_and_the_log_names_the_limit() -> Result<()> {
    let cluster = TestCluster::start(1)?;
    let mut agent = TestAgent::start(&cluster, "node-0").await?;
    agent.put("/v1/catalog/register", &registration("web", 0, 0)).await?;
    agent.get("/v1/catalog/service/web").await?;
    let mut open = TcpStream::connect(agent.http).await?;
    ensure!(ask(&mut open).await?.ends_with("200 OK"), "no answer before the fault");

    limit_descriptors(&agent.process, open_descriptors(&agent.process)? + LEFT)?;
    let crowds = [crowd(agent.http).await?, crowd(agent.dns).await?, crowd(agent.xds).await?];
    for room in ["http", "dns", "xds"] {
        agent.process.wait_log(&["WARN", &format!("muster_{room}"), "LimitNOFILE", "Too many open files"]).await?;
    }
    let began = Instant::now();
    while began.elapsed() < LASTING {
        ensure!(ask(&mut open).await?.ends_with("200 OK"), "an open connection was not served");
        let answer = agent.dig("web.service.mesh.internal.", "SRV").await?;
        ensure!(answer.records.len() == 1, "DNS gave {answer:?}");
        ensure!(agent.process.ended()?.is_none(), "the agent ended:\n{}", agent.process.log_tail());
    }
    let complaints = agent.process.log().matches("LimitNOFILE").count();
    ensure!(complaints < 200, "{complaints} warnings in {LASTING:?} fill the log");

    // Room comes back with the connections that leave, without a restart and with the limit as it is.
    drop(crowds);
    eventually("a new connection to be served", || async {
        let mut connection = TcpStream::connect(agent.http).await?;
        Ok(ask(&mut connection).await?.ends_with("200 OK").then_some(()))
    })
    .await?;
    let health = agent.get("/v1/health/node/node-0?consistent").await?;
    ensure!(health[0]["Status"] == "passing", "the node was lost: {health}");
    Ok(())
}
