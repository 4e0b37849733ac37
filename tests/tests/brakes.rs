//! What goes in a mass is held, told to an operator, and done as they decide: real agents, a real member, the command line.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use muster_tests::harness::{TestAgent, TestCluster, eventually, muster_binary};
use serde_json::Value;

/// What is held at this agent of one kind, once it is so many.
async fn held(agent: &TestAgent, kind: &str, count: u64) -> Result<Value> {
    eventually(&format!("{count} of {kind} to be held"), || async {
        let listing = agent.get("/v1/muster/brakes").await?;
        let held = listing["Held"].as_array().context("no list")?;
        let found = held.iter().find(|brake| brake["Kind"] == kind && brake["Count"] == count);
        ensure!(found.is_some(), "it is {listing}");
        Ok(found.cloned())
    })
    .await
}

/// `muster brakes …` against this agent: whether it succeeded, and what it said.
fn muster(agent: &TestAgent, arguments: &[&str]) -> Result<(bool, String)> {
    let address = format!("http://{}", agent.http);
    let arguments = [&["brakes"], arguments, &["--http-addr", &address]].concat();
    let output = Command::new(muster_binary()?).args(arguments).output()?;
    let text = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8(text)?))
}

#[tokio::test(flavor = "multi_thread")]
async fn many_silent_nodes_are_held_until_an_operator_decides() -> Result<()> {
    // A single one is held: which of the two is noticed first depends on the machine.
    let settings = "lease_ttl = \"1s\"\nlease_grace = \"200ms\"\nmass_expiry = { nodes = 1, hold = \"10m\" }\n";
    let cluster = TestCluster::start_with(1, settings)?;
    let mut agents = Vec::new();
    for number in 0..3 {
        let agent = TestAgent::start(&cluster, &format!("agent-{number}")).await?;
        agent.register("web", &format!("web-{number}"), 80).await?;
        agents.push(agent);
    }
    agents[0].wait_passing("web", &["web-0", "web-1", "web-2"]).await?;
    agents[1].process.kill()?;
    agents[2].process.kill()?;
    let brake = held(&agents[0], "mass-expiry", 2).await?;
    let id = brake["ID"].as_str().context("no id")?;
    ensure!(agents[0].passing("web").await?.len() == 3, "consumers know already");

    let (ok, text) = muster(&agents[0], &[])?;
    for part in [id, "of 3 nodes went silent within 15s", "agent-1", "agent-2", "commit", "release"] {
        ensure!(ok && text.contains(part), "{part:?} is not in:\n{text}");
    }
    let (ok, text) = muster(&agents[0], &["commit", "expiry-0-0"])?;
    ensure!(!ok && text.contains("is over"), "a stale command: {text}");
    ensure!(agents[0].passing("web").await?.len() == 3, "a stale command did something");

    // One comes back by itself; the other is lost indeed.
    agents[1].restart()?;
    agents[1].ready().await?;
    held(&agents[0], "mass-expiry", 1).await?;
    let (ok, text) = muster(&agents[0], &["commit", id])?;
    ensure!(ok && text.contains("committed"), "{text}");
    agents[0].wait_passing("web", &["web-0", "web-1"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emptied_services_directory_is_held_until_the_files_are_back_or_it_is_meant() -> Result<()> {
    let cluster = TestCluster::start(1)?;
    let mut agent = TestAgent::start(&cluster, "agent-0").await?;
    let directory = agent.services_dir().to_owned();
    let file = |name: &str| directory.join(format!("{name}.toml"));
    let names = ["web-0", "web-1", "web-2", "web-3"];
    let write = || -> Result<()> {
        for name in names {
            std::fs::write(file(name), format!("[service]\nname = \"web\"\nid = \"{name}\"\nport = 80\n"))?;
        }
        Ok(())
    };
    let remove = || -> Result<()> { names.iter().try_for_each(|name| Ok(std::fs::remove_file(file(name))?)) };
    write()?;
    agent.wait_passing("web", &names).await?;

    remove()?;
    let brake = held(&agent, "mass-removal", 4).await?;
    let ready: Value = agent.get("/readyz").await?;
    ensure!(ready["Notices"][0]["Reason"].as_str().is_some_and(|why| why.contains("muster brakes")), "{ready}");
    write()?;
    eventually("nothing to be held", || async {
        let listing = agent.get("/v1/muster/brakes").await?;
        Ok(listing["Held"].as_array().is_some_and(Vec::is_empty).then_some(()))
    })
    .await?;
    agent.wait_passing("web", &names).await?;
    let (ok, text) = muster(&agent, &["commit", brake["ID"].as_str().context("no id")?])?;
    ensure!(!ok && text.contains("is over"), "a stale command: {text}");

    // Emptied while the agent was not looking, as by a file system that is not mounted at the host's start.
    agent.process.kill()?;
    remove()?;
    agent.restart()?;
    held(&agent, "mass-removal", 4).await?;
    agent.wait_passing("web", &names).await?;
    write()?;
    eventually("nothing to be held", || async {
        let listing = agent.get("/v1/muster/brakes").await?;
        Ok(listing["Held"].as_array().is_some_and(Vec::is_empty).then_some(()))
    })
    .await?;

    remove()?;
    let brake = held(&agent, "mass-removal", 4).await?;
    ensure!(agent.passing("web").await?.len() == 4, "they are gone already");
    let (ok, text) = muster(&agent, &["commit", brake["ID"].as_str().context("no id")?])?;
    ensure!(ok && text.contains("it held 4"), "{text}");
    agent.wait_passing("web", &[]).await
}
