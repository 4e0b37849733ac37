//! What consumers see while services, agents and the registry die and return.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::Result;
use muster_tests::{
    harness::{TestAgent, eventually},
    scenario::{
        Stage,
        Step::{
            Holds, KillAgent, KillRegistry, KillService, Live, RestartAgent, RestartService, Serve, Shows, Stale,
            StartRegistry, StopAgent,
        },
    },
};
use serde_json::Value;

const BOTH: &[&str] = &["web-0", "web-1"];

fn two_instances() -> Vec<muster_tests::scenario::Step> {
    vec![
        Serve { agent: 0, service: "web", id: "web-0" },
        Serve { agent: 1, service: "web", id: "web-1" },
        Shows { agent: 0, service: "web", ids: BOTH },
        Shows { agent: 1, service: "web", ids: BOTH },
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_service_leaves_every_answer_and_returns_to_it() -> Result<()> {
    let mut stage = Stage::set(1, 2).await?;
    stage.play(&two_instances()).await?;
    stage
        .play(&[
            KillService("web-0"),
            Shows { agent: 0, service: "web", ids: &["web-1"] },
            Shows { agent: 1, service: "web", ids: &["web-1"] },
            RestartService("web-0"),
            Shows { agent: 1, service: "web", ids: BOTH },
        ])
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_agent_takes_its_instances_out_and_brings_them_back() -> Result<()> {
    let mut stage = Stage::set(1, 2).await?;
    stage.play(&two_instances()).await?;
    stage
        .play(&[
            KillAgent(0),
            Shows { agent: 1, service: "web", ids: &["web-1"] },
            RestartAgent(0),
            Shows { agent: 1, service: "web", ids: BOTH },
        ])
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_stops_in_order_is_deregistered() -> Result<()> {
    let mut stage = Stage::set(1, 2).await?;
    stage.play(&two_instances()).await?;
    stage.play(&[StopAgent(0), Shows { agent: 1, service: "web", ids: &["web-1"] }]).await?;
    let nodes = stage.agents[1].get("/v1/catalog/nodes").await?;
    assert_eq!(nodes.as_array().map(Vec::len), Some(1), "{nodes}");
    Ok(())
}

/// It drains for longer than its lease and grace: a node that still renews is never shown as lost.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_drains_keeps_its_lease() -> Result<()> {
    let mut stage = Stage::set(1, 1).await?;
    let leaving = TestAgent::start_with(&stage.cluster, "node-1", "drain_time = \"4s\"\n", "").await?;
    stage.agents.push(leaving);
    stage.play(&two_instances()).await?;
    stage.agents[1].process.signal("TERM")?;
    let drained = AtomicBool::new(false);
    let lost = |entry: &Value| entry["Checks"].to_string().contains("critical");
    eventually("the drained instance to leave", || async {
        let shown = stage.agents[0].get("/v1/health/service/web").await?;
        let leaving = shown.as_array().and_then(|entries| entries.iter().find(|it| it["Service"]["ID"] == "web-1"));
        let Some(entry) = leaving else { return Ok(Some(())) };
        assert!(!lost(entry), "an agent that drains was taken for lost: {entry}");
        drained.fetch_or(entry["Service"]["Draining"] == true, Ordering::Relaxed);
        Ok(None)
    })
    .await?;
    assert!(drained.load(Ordering::Relaxed), "it was never shown as draining");
    Ok(())
}

/// The lease is the registry's: an agent with another one in its file, or none, does not flap.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_renews_by_the_lease_of_the_registry_whatever_its_own_file_says() -> Result<()> {
    let mut stage = Stage::set(1, 1).await?;
    stage.cluster.set_agent_settings("lease_ttl = \"1h\"\n");
    let other = TestAgent::start(&stage.cluster, "node-1").await?;
    stage.agents.push(other);
    stage.play(&two_instances()).await?;
    let leases = Duration::from_secs(5);
    stage.play(&[Holds { agent: 0, service: "web", ids: BOTH, lasting: leases }]).await?;
    let log = stage.agents[1].process.log();
    assert_eq!(log.matches("the registry's registry.lease_ttl counts, which is 1s").count(), 1, "{log}");
    Ok(())
}

/// A whole minute without any registry: checks go on, answers stay, their age shows, and its return flaps nothing.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_the_registry_changes_nothing_for_consumers() -> Result<()> {
    let minute = Duration::from_secs(60);
    let mut stage = Stage::set(3, 2).await?;
    stage.play(&two_instances()).await?;
    stage
        .play(&[
            KillRegistry,
            Stale(0),
            Holds { agent: 0, service: "web", ids: BOTH, lasting: minute },
            // An agent that restarts meanwhile serves what its disk kept.
            RestartAgent(1),
            Holds { agent: 1, service: "web", ids: BOTH, lasting: Duration::from_secs(2) },
            StartRegistry,
            Holds { agent: 0, service: "web", ids: BOTH, lasting: Duration::from_secs(5) },
            Live(0),
            Live(1),
            Holds { agent: 0, service: "web", ids: BOTH, lasting: Duration::from_secs(3) },
            Holds { agent: 1, service: "web", ids: BOTH, lasting: Duration::from_secs(1) },
        ])
        .await
}
