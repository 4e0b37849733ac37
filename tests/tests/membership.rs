//! Members come and go by command while writes and DNS go on.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use muster_tests::{
    harness::{TestAgent, TestCluster, eventually},
    writer::Writer,
};
use serde_json::Value;

/// Short leases, and a quick autopilot.
const SETTINGS: &str = "lease_ttl = \"1s\"\nlease_grace = \"200ms\"\n\
    autopilot = { stable_after = \"1s\", dead_after = \"5s\" }\n";
/// What no write may wait for: an election, and time for busy machines.
const LONGEST_STALL: Duration = Duration::from_secs(5);

fn members(status: &Value) -> Vec<(&str, &str)> {
    let list = status["members"].as_array().map_or(&[][..], Vec::as_slice);
    list.iter().filter_map(|member| Some((member["name"].as_str()?, member["role"].as_str()?))).collect()
}

/// Waits until exactly these members are voters.
async fn voters(cluster: &TestCluster, ask: &[usize], expected: &[&str]) -> Result<()> {
    eventually(&format!("{expected:?} to be the voters"), || async {
        let status = cluster.registry(ask, &["members"])?;
        let mut found: Vec<&str> = members(&status)
            .into_iter()
            .filter(|(_, role)| *role != "learner" && *role != "reader")
            .map(|m| m.0)
            .collect();
        found.sort_unstable();
        ensure!(found == expected, "there are {status}");
        Ok(Some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_member_is_replaced_by_command_while_writes_and_dns_go_on() -> Result<()> {
    let mut cluster = TestCluster::prepare_with(3, 3, SETTINGS)?;
    cluster.restart_all()?;
    let agents = [TestAgent::start(&cluster, "node-0").await?, TestAgent::start(&cluster, "node-1").await?];
    let writer = Writer::start(&agents[0], &agents[1]).await?;
    writer.go_on(20).await?;

    // By itself: added, healthy for a while, given a vote; then the old one goes.
    cluster.restart(3)?;
    let done = cluster.registry(&[0, 1, 2], &["add", &cluster.address(3)])?;
    ensure!(done["done"].as_str().is_some_and(|done| done.contains("added member-3")), "{done}");
    voters(&cluster, &[0, 1, 2], &["member-0", "member-1", "member-2", "member-3"]).await?;
    writer.go_on(20).await?;
    cluster.registry(&[1, 2, 3], &["remove", "member-0"])?;
    // It notices, says why, and does not come back with its old data.
    let ended = cluster.process(0).context("no process")?.wait_ended()?;
    ensure!(ended.code() == Some(64), "{ended}");
    let log = cluster.process(0).context("no process")?.log_tail();
    ensure!(log.contains("member-0 was removed from its registry"), "{log}");
    ensure!(cluster.restart(0).is_err(), "a removed member started again");
    writer.go_on(20).await?;

    // In one step each.
    for (old, new) in [(1, 4), (2, 5)] {
        cluster.restart(new)?;
        cluster.registry(&[3, 2], &["replace", &format!("member-{old}"), &cluster.address(new)])?;
        writer.go_on(20).await?;
    }
    voters(&cluster, &[3, 4, 5], &["member-3", "member-4", "member-5"]).await?;
    let lead = cluster.registry(&[3, 4, 5], &["transfer-leader", "member-4"])?;
    ensure!(lead["done"] == "member-4 leads now" || lead["done"] == "member-4 leads already", "{lead}");
    writer.go_on(20).await?;

    let record = writer.stop().await?;
    println!(
        "all three members replaced: {} writes acknowledged, none lost, longest pause between two {:?}; {} DNS answers",
        record.acknowledged.len(),
        record.longest_stall,
        record.answers
    );
    ensure!(record.longest_stall < LONGEST_STALL, "a write waited {:?}", record.longest_stall);
    for agent in &agents {
        record.check_nothing_lost(agent).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_member_goes_once_another_has_come_and_a_reader_serves_without_a_vote() -> Result<()> {
    let mut cluster = TestCluster::prepare_with(3, 2, SETTINGS)?;
    cluster.restart_all()?;
    let agent = TestAgent::start(&cluster, "node-0").await?;
    agent.register("web", "web-1", 80).await?;
    cluster.kill(2)?;
    // Of three nobody goes, however dead.
    eventually("the dead member to be known as such", || async {
        let status = cluster.registry(&[0, 1], &["members"])?;
        let dead = status["members"].as_array().into_iter().flatten().find(|member| member["name"] == "member-2");
        let note = dead.and_then(|dead| dead["note"].as_str()).unwrap_or_default();
        ensure!(note.contains("too few voters would be left"), "{status}");
        Ok(Some(()))
    })
    .await?;
    let asked = cluster.registry(&[0, 1], &["remove", "member-1"]).unwrap_err().to_string();
    ensure!(asked.contains("nothing was done") && asked.contains("without it there are 2"), "{asked}");
    let refused = cluster.registry(&[0, 1], &["remove", "member-1", "--yes"]).unwrap_err().to_string();
    ensure!(refused.contains("member-2 would not answer"), "{refused}");

    cluster.restart(4)?;
    cluster.registry(&[0, 1], &["add", &cluster.address(4), "--learner"])?;
    // Agents may live from it: it reads, and hands writes on.
    let mut only = TestCluster::prepare_with(0, 0, SETTINGS)?;
    only.borrow_members(&cluster, &[4]);
    let reader = TestAgent::start(&only, "node-1").await?;
    reader.wait_passing("web", &["web-1"]).await?;
    reader.put("/v1/catalog/register", &serde_json::json!({"Node": "ext", "Address": "10.9.0.1"})).await?;

    cluster.restart(3)?;
    cluster.registry(&[0, 1], &["add", &cluster.address(3)])?;
    voters(&cluster, &[0, 1], &["member-0", "member-1", "member-3"]).await?;
    let status = cluster.registry(&[3], &["members"])?;
    ensure!(members(&status).contains(&("member-4", "reader")), "{status}");
    ensure!(members(&status).len() == 4 && status["failure_tolerance"] == 1, "{status}");
    Ok(())
}
