//! A lost catalog and a lost quorum, and the way back from each.

use anyhow::{Context, Result, ensure};
use muster_tests::harness::{TestAgent, TestCluster, eventually, muster};
use serde_json::{Value, json};

fn external(node: &str) -> Value {
    json!({"Node": node, "Address": "10.9.0.1", "Service": {"ID": format!("{node}-db"), "Service": "db", "Port": 5432}})
}

async fn nodes(agent: &TestAgent) -> Result<Vec<String>> {
    let nodes = agent.get("/v1/catalog/nodes?consistent").await?;
    let mut names: Vec<String> =
        nodes.as_array().into_iter().flatten().filter_map(|node| node["Node"].as_str().map(str::to_owned)).collect();
    names.sort();
    Ok(names)
}

async fn shows(agent: &TestAgent, expected: &[&str]) -> Result<()> {
    eventually(&format!("{} to show the nodes {expected:?}", agent.name), || async {
        let found = nodes(agent).await?;
        ensure!(found == expected, "it shows {found:?}");
        Ok(Some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_restored_while_agents_go_on() -> Result<()> {
    let mut cluster = TestCluster::start(3)?;
    let agent = TestAgent::start(&cluster, "node-0").await?;
    agent.register("web", "web-1", 80).await?;
    agent.put("/v1/catalog/register", &external("ext-kept")).await?;
    let everyone = [0, 1, 2];
    let file = cluster.directory().join("catalog.backup");
    let file = file.to_str().context("no path")?;
    // What an agent was told is in the registry a moment later.
    let taken = eventually("a backup with both instances", || async {
        let taken = cluster.registry(&everyone, &["backup", file])?;
        Ok((taken["instances"] == 2).then_some(taken))
    })
    .await?;
    ensure!(taken["nodes"] == 2 && taken["restorable"] == true && taken["incarnation"] == 1, "{taken}");
    let inspected: Value = serde_json::from_str(&muster(&["registry", "inspect", file, "--json"])?)?;
    ensure!(inspected["index"] == taken["index"] && inspected["services"] == 2, "{inspected}");

    // What comes after it: from the API, which is lost, and from a live agent, which says it again.
    agent.put("/v1/catalog/deregister", &json!({"Node": "ext-kept"})).await?;
    agent.put("/v1/catalog/register", &external("ext-late")).await?;
    agent.register("web", "web-2", 81).await?;
    shows(&agent, &["ext-late", "node-0"]).await?;
    let asked = cluster.registry(&everyone, &["restore", file]).unwrap_err().to_string();
    ensure!(asked.contains("nothing was done") && asked.contains("--yes"), "{asked}");
    shows(&agent, &["ext-late", "node-0"]).await?;

    let restored = cluster.registry(&everyone, &["restore", file, "--yes"])?;
    ensure!(restored["incarnation"] == 2, "{restored}");
    shows(&agent, &["ext-kept", "node-0"]).await?;
    agent.wait_passing("web", &["web-1", "web-2"]).await?;
    ensure!(agent.dig("db.service.mesh.internal.", "SRV").await?.records.len() == 1, "DNS shows another catalog");

    // It is in the log like everything else.
    cluster.kill_all()?;
    cluster.restart_all()?;
    agent.wait_passing("web", &["web-1", "web-2"]).await?;
    shows(&agent, &["ext-kept", "node-0"]).await?;

    // A damaged file says so and changes nothing.
    let mut bytes = std::fs::read(file)?;
    let middle = bytes.len() / 2;
    *bytes.get_mut(middle).context("empty")? ^= 1;
    std::fs::write(file, bytes)?;
    let refused = cluster.registry(&everyone, &["restore", file, "--yes"]).unwrap_err().to_string();
    ensure!(refused.contains("no usable backup"), "{refused}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_without_a_quorum_is_recovered_from_one_member() -> Result<()> {
    let mut cluster = TestCluster::start(3)?;
    let agent = TestAgent::start(&cluster, "node-0").await?;
    agent.register("web", "web-1", 80).await?;
    for number in 0..20 {
        agent.put("/v1/catalog/register", &external(&format!("ext-{number}"))).await?;
    }
    // Two are lost for good; the third has all that was acknowledged, as each of a majority has.
    let leader = agent.leader().await?;
    let survivor = cluster.member_at(&leader).context("no leader")?;
    let lost: Vec<usize> = (0..3).filter(|member| *member != survivor).collect();
    for member in &lost {
        cluster.kill(*member)?;
    }
    let config = cluster.config(survivor);
    let recover = ["registry", "recover", "--config", config.to_str().context("no path")?];
    let running = muster(&[&recover[..], &["--yes"]].concat()).unwrap_err().to_string();
    ensure!(running.contains("in use by another process"), "{running}");
    cluster.kill(survivor)?;
    let asked = muster(&recover).unwrap_err().to_string();
    ensure!(asked.contains("nothing was done") && asked.contains("is lost") && asked.contains("--yes"), "{asked}");
    let done = muster(&[&recover[..], &["--yes"]].concat())?;
    ensure!(lost.iter().all(|member| done.contains(&format!("member-{member} at"))), "{done}");

    cluster.restart(survivor)?;
    let status = eventually("the survivor to lead", || async {
        let status = cluster.registry(&[survivor], &["members"])?;
        Ok((status["failure_tolerance"].is_number()).then_some(status))
    });
    let status = status.await?;
    ensure!(status["incarnation"] == 2 && status["members"].as_array().map(Vec::len) == Some(1), "{status}");
    agent.put("/v1/catalog/register", &external("ext-after")).await?;
    eventually("the agent to follow it", || async {
        let found = nodes(&agent).await?;
        ensure!(found.len() == 22 && found.contains(&"ext-after".to_owned()), "it shows {found:?}");
        Ok(Some(()))
    })
    .await?;

    // With their old data the others do not reach it, and find no agent that listens.
    cluster.restart(lost[0])?;
    agent.put("/v1/catalog/register", &external("ext-meanwhile")).await?;
    let status = cluster.registry(&[survivor], &["members"])?;
    ensure!(status["members"].as_array().map(Vec::len) == Some(1), "{status}");
    cluster.kill(lost[0])?;
    // Emptied, they join anew.
    for member in &lost {
        std::fs::remove_dir_all(cluster.data_dir(*member))?;
        cluster.restart(*member)?;
    }
    eventually("three voters", || async {
        let status = cluster.registry(&[survivor], &["members"])?;
        let voters =
            status["members"].as_array().into_iter().flatten().filter(|member| member["voter"] == true).count();
        ensure!(voters == 3 && status["failure_tolerance"] == 1, "{status}");
        Ok(Some(()))
    })
    .await?;
    agent.wait_passing("web", &["web-1"]).await
}

/// Puts an older state of a member's disk in the place of the present one, after so many more writes.
async fn put_disk_back(cluster: &mut TestCluster, agent: &TestAgent, lost: usize) -> Result<()> {
    cluster.kill(0)?;
    let (disk, copy) = (cluster.data_dir(0), cluster.directory().join("older"));
    copy_folder(&disk, &copy)?;
    cluster.restart(0)?;
    for number in 0..lost {
        // The first one waits for the member to be up.
        eventually("a write", || async {
            agent.put("/v1/catalog/register", &external(&format!("ext-{number}"))).await.map(Some)
        })
        .await?;
    }
    shows_so_many(agent, lost + 1).await?;
    cluster.kill(0)?;
    std::fs::remove_dir_all(&disk)?;
    copy_folder(&copy, &disk)?;
    cluster.restart(0)
}

fn copy_folder(from: &std::path::Path, to: &std::path::Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &to.join(entry.file_name()))?;
        } else {
            std::fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

async fn shows_so_many(agent: &TestAgent, expected: usize) -> Result<()> {
    eventually(&format!("{expected} nodes"), || async {
        let found = nodes(agent).await?;
        ensure!(found.len() == expected, "it shows {found:?}");
        Ok(Some(()))
    })
    .await
}

/// Waits until the agent says what the registry refuses, or that it refuses nothing.
async fn is_refused(agent: &TestAgent, refused: bool) -> Result<()> {
    eventually("the agent to say whether it is refused", || async {
        let ready = agent.response("/readyz").await?.text().await?;
        let metrics = agent.response("/metrics").await?.text().await?;
        let told = ready.contains("entries that it had acknowledged are lost") && ready.contains("restore FILE --yes");
        let gauge = format!("muster_agent_replica_refused {}", u8::from(refused));
        ensure!(told == refused && metrics.lines().any(|line| line == gauge), "it says {ready}");
        Ok(Some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_says_that_the_registry_lost_entries_and_comes_back_by_a_new_incarnation() -> Result<()> {
    let mut cluster = TestCluster::start(1)?;
    let agent = TestAgent::start(&cluster, "node-0").await?;
    agent.register("web", "web-1", 80).await?;
    agent.wait_passing("web", &["web-1"]).await?;
    put_disk_back(&mut cluster, &agent, 30).await?;
    is_refused(&agent, true).await?;
    // It answers from what it had, as old as it is.
    let known = agent.get("/v1/catalog/nodes?stale").await?;
    ensure!(known.as_array().map(Vec::len) == Some(31), "{known}");
    // There is a leader; what it is not asked for, and why, is said.
    for path in ["/v1/catalog/nodes", "/v1/catalog/nodes?consistent", "/v1/health/state/any"] {
        let refused = agent.response(path).await?;
        let (status, text) = (refused.status(), refused.text().await?);
        ensure!(status == 503 && !text.contains("cluster leader"), "{path}: {status} {text}");
        ensure!(text.contains("acknowledged are lost") && text.contains("restore FILE --yes"), "{path}: {text}");
    }

    let file = cluster.directory().join("catalog.backup");
    let file = file.to_str().context("no path")?;
    cluster.registry(&[0], &["backup", file])?;
    cluster.registry(&[0], &["restore", file, "--yes"])?;
    shows(&agent, &["node-0"]).await?;
    is_refused(&agent, false).await?;
    agent.wait_passing("web", &["web-1"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_builds_nothing_on_entries_that_the_registry_lost() -> Result<()> {
    let mut cluster = TestCluster::start(1)?;
    let agent = TestAgent::start(&cluster, "node-0").await?;
    agent.register("web", "web-1", 80).await?;
    agent.wait_passing("web", &["web-1"]).await?;
    put_disk_back(&mut cluster, &agent, 30).await?;
    is_refused(&agent, true).await?;
    // The registry comes as far again by other entries.
    let other = TestAgent::start(&cluster, "node-1").await?;
    for number in 0..40 {
        other.put("/v1/catalog/register", &external(&format!("other-{number}"))).await?;
    }
    shows_so_many(&agent, 42).await?;
    is_refused(&agent, false).await?;
    ensure!(nodes(&agent).await? == nodes(&other).await?, "two histories are mixed");
    Ok(())
}

/// Puts the disks of two members back to what they were, while the third one lives or is down meanwhile. Returns the third.
async fn put_a_majority_back(cluster: &mut TestCluster, agent: &TestAgent, lives: bool) -> Result<usize> {
    let copy = cluster.directory().join("older");
    let good = cluster.member_at(&agent.leader().await?).context("no leader")?;
    let others: Vec<usize> = (0..3).filter(|member| *member != good).collect();
    for member in &others {
        // Its leader stays: what is elected from the copies has a later term.
        cluster.kill(*member)?;
        copy_folder(&cluster.data_dir(*member), &copy.join(member.to_string()))?;
        cluster.restart(*member)?;
        let mine = || cluster.metric(*member, "muster_registry_applied_index");
        let all = || cluster.metric(good, "muster_registry_applied_index");
        eventually("it to catch up", || async { Ok((mine().await? >= all().await?).then_some(())) }).await?;
    }
    for number in 0..30 {
        eventually("a write", || async {
            agent.put("/v1/catalog/register", &external(&format!("ext-{number}"))).await.map(Some)
        })
        .await?;
    }
    shows_so_many(agent, 31).await?;
    ensure!(cluster.member_at(&agent.leader().await?) == Some(good), "another one leads");
    // It must not lead them on with what it has.
    match (lives, cluster.process(good)) {
        (true, Some(process)) => process.signal("STOP")?,
        _ => cluster.kill(good)?,
    }
    for member in &others {
        cluster.kill(*member)?;
        std::fs::remove_dir_all(cluster.data_dir(*member))?;
        copy_folder(&copy.join(member.to_string()), &cluster.data_dir(*member))?;
        cluster.restart(*member)?;
    }
    eventually("those that went back to have a leader", || async {
        let status = cluster.registry(&others, &["members"])?;
        Ok(status["failure_tolerance"].is_number().then_some(()))
    })
    .await?;
    match (lives, cluster.process(good)) {
        (true, Some(process)) => process.signal("CONT")?,
        _ => drop(cluster.restart(good)),
    }
    Ok(good)
}

/// Nobody writes: what tells the agent is the registry alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_majority_that_went_back_is_told_of_at_once_and_the_member_that_did_not_keeps_what_it_has() -> Result<()> {
    for lives in [true, false] {
        let mut cluster = TestCluster::start(3)?;
        let agent = TestAgent::start(&cluster, "node-0").await?;
        let good = put_a_majority_back(&mut cluster, &agent, lives).await?;
        is_refused(&agent, true).await?;
        let process = cluster.process(good).context("no member")?;
        let ended = process.wait_ended()?;
        let log = process.log();
        ensure!(ended.code() == Some(64) && log.contains("keep its folder"), "{lives}: {ended}\n{log}");

        // The way back that keeps all: from its folder.
        cluster.kill_all()?;
        let config = cluster.config(good);
        muster(&["registry", "recover", "--config", config.to_str().context("no path")?, "--yes"])?;
        cluster.restart(good)?;
        for member in (0..3).filter(|member| *member != good) {
            std::fs::remove_dir_all(cluster.data_dir(member))?;
            cluster.restart(member)?;
        }
        shows_so_many(&agent, 31).await?;
        is_refused(&agent, false).await?;
    }
    Ok(())
}
