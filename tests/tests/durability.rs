//! What was acknowledged is never lost: a leader killed under load, and a restart of all members.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use muster_tests::{harness::eventually, scenario::Stage};
use serde_json::{Value, json};

/// Instances registered before the leader dies.
const INSTANCES: usize = 100;

fn registration(number: usize) -> Value {
    json!({"Node": format!("ext-{}", number % 10), "Address": "10.9.0.1",
           "Service": {"ID": format!("bulk-{number}"), "Service": "bulk", "Port": 1000 + number % 1000}})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_loses_nothing_acknowledged_and_dns_goes_on() -> Result<()> {
    let mut stage = Stage::set(3, 3).await?;
    for number in 0..INSTANCES {
        stage.agents[number % 3].put("/v1/catalog/register", &registration(number)).await?;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let dns = {
        let (server, stop) = (stage.agents[2].dns, stop.clone());
        tokio::spawn(async move {
            let mut answers = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                let answer = muster_tests::harness::ask(server, "bulk.service.mesh.internal.", "A").await?;
                ensure!(answer.rcode == "No Error" && !answer.records.is_empty(), "after {answers}: {answer:?}");
                answers += 1;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Ok(answers)
        })
    };
    let writer = {
        let (url, stop) = (format!("http://{}/v1/catalog/register", stage.agents[1].http), stop.clone());
        tokio::spawn(async move { write_until(&url, &stop).await })
    };
    tokio::time::sleep(Duration::from_millis(500)).await;
    stage.kill_leader().await?;
    // Taken when the process is gone: an answer that comes later was given by its successor.
    let killed_at = Instant::now();
    tokio::time::sleep(Duration::from_secs(4)).await;
    stop.store(true, Ordering::Relaxed);
    let written = writer.await??;
    let answers = dns.await??;
    let after = written.iter().filter(|(_, at)| *at > killed_at).map(|(_, at)| *at - killed_at).min();
    let gap = after.context("no write was accepted after the leader died")?;
    println!(
        "leader killed -> next accepted write: {gap:?}; {} acknowledged in all, {answers} DNS answers meanwhile",
        written.len()
    );

    let acknowledged: BTreeSet<usize> = (0..INSTANCES).chain(written.into_iter().map(|(number, _)| number)).collect();
    for agent in &stage.agents {
        let found = agent.get("/v1/catalog/service/bulk?consistent").await?;
        let found: BTreeSet<&str> =
            found.as_array().context("no list")?.iter().filter_map(|row| row["ServiceID"].as_str()).collect();
        let lost: Vec<_> =
            acknowledged.iter().filter(|number| !found.contains(format!("bulk-{number}").as_str())).collect();
        ensure!(lost.is_empty(), "{} lost {lost:?}", agent.name);
    }
    Ok(())
}

async fn write_until(url: &str, stop: &AtomicBool) -> Result<Vec<(usize, Instant)>> {
    let client = muster_tests::harness::http_client(Duration::from_secs(15))?;
    let mut acknowledged = Vec::new();
    let mut number = INSTANCES;
    while !stop.load(Ordering::Relaxed) {
        let response = client.put(url).json(&registration(number)).send().await?;
        if response.status().is_success() {
            acknowledged.push((number, Instant::now()));
        }
        number += 1;
    }
    Ok(acknowledged)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_all_members_gives_an_equal_catalog() -> Result<()> {
    let mut stage = Stage::set(3, 1).await?;
    for number in 0..INSTANCES {
        stage.agents[0].put("/v1/catalog/register", &registration(number)).await?;
    }
    for node in 0..3 {
        stage.agents[0].put("/v1/catalog/deregister", &json!({"Node": format!("ext-{node}")})).await?;
    }
    let paths =
        ["/v1/catalog/nodes?consistent", "/v1/health/service/bulk?consistent", "/v1/catalog/services?consistent"];
    let before = read_all(&stage, &paths).await?;
    stage.cluster.kill_all()?;
    stage.cluster.restart_all()?;
    eventually("the restarted registry to answer as before", || async {
        let after = read_all(&stage, &paths).await?;
        ensure!(after == before, "it differs");
        Ok(Some(()))
    })
    .await
}

/// Bodies with their blocking indexes.
async fn read_all(stage: &Stage, paths: &[&str]) -> Result<Vec<(String, Value)>> {
    let mut all = Vec::new();
    for path in paths {
        let response = stage.agents[0].response(path).await?;
        ensure!(response.status().is_success(), "{path}: {}", response.status());
        let index = response.headers().get("x-consul-index").context("no index")?.to_str()?.to_owned();
        all.push((index, response.json().await?));
    }
    Ok(all)
}
