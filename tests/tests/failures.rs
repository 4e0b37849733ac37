//! What consumers see while services, agents and the registry die and return.

use std::time::Duration;

use anyhow::Result;
use muster_tests::scenario::{
    Stage,
    Step::{
        Holds, KillAgent, KillRegistry, KillService, Live, RestartAgent, RestartService, Serve, Shows, Stale,
        StartRegistry, StopAgent,
    },
};

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
