//! What an agent costs that holds 20 of 20,000 services, beside one that holds all of them.

use anyhow::{Result, ensure};
use muster_catalog::{Command, Name, port::Sink};
use muster_tests::{
    harness::{TestAgent, TestCluster, eventually},
    load::{native_client, registration_command},
};

use super::line;

/// Services in the catalog, with five instances each.
const SERVICES: u64 = 20_000;
const INSTANCES: u64 = 100_000;
/// Services that the narrow agent is asked for.
const USED: u64 = 20;
/// How many write at once while the catalog is filled.
const WRITERS: u64 = 64;

pub(super) async fn run() -> Result<()> {
    let mut cluster = TestCluster::start_with(1, "")?;
    fill(&cluster).await?;
    let scope = TestAgent::start(&cluster, "scope").await?;
    let all = TestAgent::start_with(&cluster, "all", "replica = \"all\"\n", "").await?;
    for service in 0..USED {
        for agent in [&scope, &all] {
            let instances = agent.get(&format!("/v1/health/service/svc-{service}")).await?;
            let found = instances.as_array().map_or(0, Vec::len) as u64;
            ensure!(found == INSTANCES / SERVICES, "{} has {found} instances of svc-{service}", agent.name);
        }
    }
    let megabytes = |bytes: u64| bytes / 1_000_000;
    for (agent, holds) in [(&scope, USED), (&all, SERVICES)] {
        let metrics = agent.response("/metrics").await?.text().await?;
        let held = format!("muster_agent_scope_services {holds}");
        ensure!(metrics.lines().any(|line| line == held), "{} does not hold {holds} services:\n{metrics}", agent.name);
        let resident = agent.process.resident_bytes()?;
        let file = cluster.directory().join(&agent.name).join("data/agent/replica");
        let kept = eventually("the replica's file", || async { Ok(std::fs::metadata(&file).ok()) }).await?.len();
        line(
            &format!("agent that holds {holds} of {SERVICES} services"),
            &format!("{} MB resident, {:.1} MB on disk", megabytes(resident), kept as f64 / 1e6),
        );
    }
    let member = cluster.process(0).map(|process| process.resident_bytes()).transpose()?.unwrap_or_default();
    line("their member", &format!("{} MB resident", megabytes(member)));
    Ok(())
}

async fn fill(cluster: &TestCluster) -> Result<()> {
    let writers = (0..WRITERS).map(|writer| {
        let client = native_client(cluster);
        tokio::spawn(async move {
            for number in (writer..INSTANCES).step_by(WRITERS as usize) {
                let mut command = registration_command(number);
                if let Command::Register(registration) = &mut command {
                    for instance in &mut registration.instances {
                        instance.service = Name::lookup(&format!("svc-{}", number % SERVICES));
                    }
                }
                client.submit(command).await?;
            }
            anyhow::Ok(())
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await??;
    }
    Ok(())
}
