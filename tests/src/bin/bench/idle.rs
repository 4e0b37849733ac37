//! What doing nothing costs: CPU and memory of the members, and of an agent with checks.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use muster_tests::harness::{Process, TestAgent, TestCluster, eventually};
use serde_json::json;
use tokio::net::TcpListener;

use super::line;

/// Checks of the agent, each every ten seconds.
const CHECKS: usize = 50;
/// Two rounds of every check.
const SPAN: Duration = Duration::from_secs(20);

pub(super) async fn run() -> Result<()> {
    let mut cluster = TestCluster::start_with(3, "")?;
    let agent = TestAgent::start(&cluster, "bench").await?;
    let target = TcpListener::bind("127.0.0.1:0").await?;
    let address = target.local_addr()?;
    let accepting = tokio::spawn(async move { while target.accept().await.is_ok() {} });
    for number in 0..CHECKS {
        let check = json!({"TCP": address.to_string(), "Interval": "10s"});
        let body = json!({"Name": format!("svc-{number}"), "Port": 80, "Check": check});
        agent.put("/v1/agent/service/register", &body).await?;
    }
    eventually("all checks to pass", || async {
        let checks = agent.get("/v1/agent/checks").await?;
        let passing = checks.as_object().context("no object")?.values().filter(|check| check["Status"] == "passing");
        let passing = passing.count();
        ensure!(passing == CHECKS, "{passing} pass");
        Ok(Some(()))
    })
    .await?;
    let leader = agent.leader().await?;
    let leader = cluster.member_at(&leader).context("nobody leads")?;
    let ids = [leader, (leader + 1) % 3];
    let mut before = Vec::new();
    for member in ids {
        before.push(member_process(&mut cluster, member)?.cpu_time()?);
    }
    let agent_before = agent.process.cpu_time()?;
    tokio::time::sleep(SPAN).await;
    show(&format!("idle agent, {CHECKS} checks every 10 s"), &agent.process, agent_before)?;
    for (what, (member, before)) in ["idle leader", "idle follower"].into_iter().zip(ids.into_iter().zip(before)) {
        show(what, member_process(&mut cluster, member)?, before)?;
    }
    accepting.abort();
    Ok(())
}

fn member_process(cluster: &mut TestCluster, member: usize) -> Result<&Process> {
    Ok(cluster.process(member).context("the member is down")?)
}

fn show(what: &str, process: &Process, before: Duration) -> Result<()> {
    let percent = (process.cpu_time()? - before).as_secs_f64() / SPAN.as_secs_f64() * 100.0;
    line(what, &format!("{percent:.2} % CPU, {} MB", process.resident_bytes()? / 1_000_000));
    Ok(())
}
