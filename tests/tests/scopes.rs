//! Agents that hold the services which are used on their host: growth, eviction, outage, restart, and reads of the rest.

#![allow(clippy::print_stdout, reason = "why a test did not run is worth a line")]

use std::{net::SocketAddr, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use muster_tests::{
    harness::{TestAgent, TestCluster, eventually},
    scenario::{
        Stage,
        Step::{Holds, KillRegistry, KillService, Live, RestartAgent, Serve, Shows, Stale, StartRegistry},
    },
};
use serde_json::{Value, json};

/// The value of a metric without labels.
async fn metric(agent: &TestAgent, name: &str) -> Result<f64> {
    let text = agent.response("/metrics").await?.text().await?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.with_context(|| format!("no {name} in\n{text}"))?.parse().context("no number")
}

async fn wait_scope(agent: &TestAgent, services: f64) -> Result<()> {
    wait_metric(agent, "muster_agent_scope_services", services).await
}

/// Metrics may be a little old.
async fn wait_metric(agent: &TestAgent, name: &str, wanted: f64) -> Result<()> {
    eventually(&format!("{wanted} as {name} of {}", agent.name), || async {
        let value = metric(agent, name).await?;
        ensure!(value == wanted, "it is {value}");
        Ok(Some(()))
    })
    .await
}

/// Runs `dig`; `None` where it is missing and need not be there.
async fn dig(server: SocketAddr, arguments: &str) -> Result<Option<String>> {
    let found = Command::new("dig").arg("-v").output().is_ok_and(|output| output.status.success());
    if !found {
        ensure!(std::env::var_os("CI").is_none(), "dig is missing: install bind9-dnsutils");
        println!("not run: dig is missing: install bind9-dnsutils");
        return Ok(None);
    }
    let mut command = tokio::process::Command::new("dig");
    let port = server.port().to_string();
    command.args(["-r", "@127.0.0.1", "-p", &port, "+tries=1", "+time=10"]).args(arguments.split_whitespace());
    let output = command.output().await?;
    ensure!(output.status.success(), "dig {arguments}: {}", String::from_utf8_lossy(&output.stdout));
    Ok(Some(String::from_utf8(output.stdout)?))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_question_is_answered_and_ten_thousand_names_that_do_not_exist_leave_no_trace() -> Result<()> {
    const RANDOM: usize = 10_000;
    /// What an allocator may keep of ten thousand answers; that many names and waits would be more.
    const GROWTH: u64 = 6 * 1024 * 1024;
    let stage = Stage::set(1, 2).await?;
    let (one, other) = (&stage.agents[0], &stage.agents[1]);
    one.register("web", "web-1", 8080).await?;
    one.register("db", "db-1", 5432).await?;
    eventually("the names to arrive", || async {
        let services = other.get("/v1/catalog/services?stale").await?;
        Ok((services.get("web").is_some() && services.get("db").is_some()).then_some(()))
    })
    .await?;
    wait_scope(other, 0.0).await?;
    if let Some(printed) = dig(other.dns, "web.service.mesh.internal SRV +short").await? {
        ensure!(printed.trim() == "1 1 8080 node-0.node.dc1.mesh.internal.", "{printed}");
    } else {
        other.wait_passing("web", &["web-1"]).await?;
    }
    wait_scope(other, 1.0).await?;

    let ask = |number: usize| async move {
        let name = format!("random-{number}-{}", number * 7919);
        let answer = other.dig(&format!("{name}.service.mesh.internal."), "A").await?;
        ensure!(answer.rcode == "Non-Existent Domain", "{answer:?}");
        if number.is_multiple_of(10) {
            let list = other.get(&format!("/v1/health/service/{name}?stale")).await?;
            ensure!(list == json!([]), "{list}");
        }
        anyhow::Ok(())
    };
    // The allocator and the pools are warm before it is measured.
    for number in 0..RANDOM / 10 {
        ask(number).await?;
    }
    let before = other.process.resident_bytes()?;
    for number in 0..RANDOM {
        ask(RANDOM + number).await?;
    }
    let grown = other.process.resident_bytes()?.saturating_sub(before);
    println!("{RANDOM} names: {grown} bytes more");
    ensure!(grown < GROWTH, "{grown} bytes");
    ensure!(metric(other, "muster_agent_scope_services").await? == 1.0);
    ensure!(metric(other, "muster_agent_directory_services").await? == 2.0);
    ensure!(metric(other, "muster_agent_scope_joined_total").await? == 1.0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_uses_leaves_what_is_waited_on_stays_and_the_next_question_brings_it_back() -> Result<()> {
    let cluster = TestCluster::start(1)?;
    let one = TestAgent::start(&cluster, "one").await?;
    let idle = "replica_idle = \"10s\"\n";
    let other = TestAgent::start_with(&cluster, "other", idle, "").await?;
    for service in ["web", "db"] {
        one.register(service, service, 80).await?;
        other.wait_passing(service, &[service]).await?;
    }
    let index = other.response("/v1/health/service/db?stale").await?;
    let index = index.headers()["x-consul-index"].to_str()?.to_owned();
    let parked = {
        let client = muster_tests::harness::http_client(Duration::from_secs(90))?;
        let url = format!("http://{}/v1/health/service/db?stale&wait=60s&index={index}", other.http);
        tokio::spawn(async move { client.get(url).send().await?.json::<Value>().await })
    };
    wait_scope(&other, 1.0).await?;
    wait_metric(&other, "muster_agent_scope_left_total", 1.0).await?;
    // The one that stayed is the one that is waited on: its change arrives.
    one.put("/v1/agent/service/register", &json!({"Name": "db", "ID": "db", "Port": 81})).await?;
    let woken = parked.await??;
    ensure!(woken[0]["Service"]["Port"] == 81, "{woken}");
    let answer = other.dig("web.service.mesh.internal.", "SRV").await?;
    ensure!(answer.records.len() == 1, "{answer:?}");
    // Two at the start, and this one: what was waited on was never fetched again.
    wait_metric(&other, "muster_agent_scope_joined_total", 3.0).await?;
    Ok(())
}

/// What is in use is served through an outage and from disk; what is not held is refused, not denied.
#[tokio::test(flavor = "multi_thread")]
async fn a_part_is_served_through_an_outage_and_from_disk_and_grows_on_when_it_ends() -> Result<()> {
    const WEB: &[&str] = &["web-0"];
    const DB: &[&str] = &["db-0"];
    let mut stage = Stage::set(3, 2).await?;
    stage
        .play(&[
            Serve { agent: 0, service: "web", id: "web-0" },
            Serve { agent: 0, service: "db", id: "db-0" },
            Shows { agent: 0, service: "db", ids: DB },
            Shows { agent: 1, service: "web", ids: WEB },
            KillRegistry,
            Stale(1),
        ])
        .await?;
    let folder = stage.cluster.directory().join("node-1/data/agent");
    eventually("the set to be on disk", || async {
        let mut kept = std::fs::read(folder.join("replica"))?;
        kept.extend(std::fs::read(folder.join("replica.journal")).unwrap_or_default());
        Ok(kept.windows(WEB[0].len()).any(|bytes| bytes == WEB[0].as_bytes()).then_some(()))
    })
    .await?;
    stage
        .play(&[RestartAgent(1), Holds { agent: 1, service: "web", ids: WEB, lasting: Duration::from_secs(5) }])
        .await?;
    let agent = &stage.agents[1];
    ensure!(metric(agent, "muster_agent_scope_services").await? == 1.0, "the scope is on disk");
    let answer = agent.dig("db.service.mesh.internal.", "SRV").await?;
    ensure!(answer.rcode == "Server Failure", "a service that is not held is not denied: {answer:?}");
    let printed = dig(agent.dns, "db.service.mesh.internal SRV").await?;
    ensure!(printed.is_none_or(|printed| printed.contains("EDE: 14")), "no reason is given");
    let refused = agent.response("/v1/health/service/db?stale").await?;
    ensure!(refused.status() == 503, "{}", refused.text().await?);
    let refused = agent.response("/v1/health/state/any?stale").await?;
    ensure!(refused.status() == 500 && refused.text().await?.starts_with("No cluster leader"));
    let nodes = agent.get("/v1/catalog/nodes?stale").await?;
    ensure!(nodes.as_array().map(Vec::len) == Some(2), "the directory has all nodes: {nodes}");
    stage
        .play(&[
            StartRegistry,
            Live(1),
            Shows { agent: 1, service: "db", ids: DB },
            KillService("web-0"),
            Shows { agent: 1, service: "web", ids: &[] },
        ])
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_of_what_is_not_held_are_answered_by_a_member() -> Result<()> {
    let stage = Stage::set(1, 2).await?;
    let (one, other) = (&stage.agents[0], &stage.agents[1]);
    let check = json!({"Name": "web", "ID": "web-1", "Port": 80, "Check": {"TTL": "60s", "CheckID": "alive"}});
    one.put("/v1/agent/service/register", &check).await?;
    let checks = eventually("the check to arrive", || async {
        let checks = other.get("/v1/health/state/critical").await?;
        Ok(Some(checks).filter(|checks| checks[0]["CheckID"] == "alive"))
    })
    .await?;
    ensure!(checks[0]["ServiceName"] == "web" && checks[0]["Node"] == "node-0", "{checks}");
    let node = other.get("/v1/catalog/node/node-0").await?;
    ensure!(node["Services"]["web-1"]["Service"] == "web", "{node}");
    let all = other.get("/v1/health/state/any?consistent").await?;
    ensure!(all.as_array().map(Vec::len) == Some(3), "two liveness checks and this one: {all}");
    // A blocking read of a node that is not held wakes when something on it changes.
    let response = other.response("/v1/health/node/node-0").await?;
    let index = response.headers()["x-consul-index"].to_str()?.to_owned();
    let path = format!("/v1/health/node/node-0?index={index}&wait=20s");
    let nothing = json!({});
    let (woken, passed) = tokio::join!(other.get(&path), one.put("/v1/agent/check/pass/alive", &nothing));
    passed?;
    let woken = woken?;
    let status = woken.as_array().into_iter().flatten().find(|check| check["CheckID"] == "alive");
    ensure!(status.is_some_and(|check| check["Status"] == "passing"), "{woken}");
    ensure!(metric(other, "muster_agent_scope_services").await? == 0.0, "none of it is held");
    ensure!(metric(other, "muster_agent_wide_reads_total").await? >= 4.0);
    Ok(())
}
