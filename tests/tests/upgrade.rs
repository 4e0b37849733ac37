//! Two builds in one registry: members of an older catalog format are replaced one by one, and the format rises last.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use muster_catalog::{FIRST_FORMAT, FORMAT};
use muster_tests::{
    harness::{Launch, TestAgent, TestCluster, eventually, muster_binary, previous_binary},
    writer::Writer,
};

/// Settings that the older build knows too.
const SETTINGS: &str = "lease_ttl = \"1s\"\nlease_grace = \"200ms\"\n";
/// Each member is stopped once; a leader hands on first.
const LONGEST_STALL: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn members_of_an_older_format_are_upgraded_one_by_one_while_writes_and_dns_go_on() -> Result<()> {
    let Some(old) = previous_binary()? else { return Ok(()) };
    ensure!(FORMAT > FIRST_FORMAT, "there is no older format to upgrade from");
    let present = muster_binary()?;
    let mut cluster = TestCluster::prepare(3, SETTINGS)?;
    for member in 0..3 {
        cluster.set_build(member, &old);
    }
    cluster.restart_all()?;
    // One agent stays old to the end, another one is new from the beginning.
    let old_agent =
        TestAgent::start_launched(&cluster, "node-old", Launch { build: Some(old.clone()), ..Launch::default() })
            .await?;
    let new_agent = TestAgent::start(&cluster, "node-new").await?;
    old_agent.register("web", "web-old", 80).await?;
    new_agent.register("web", "web-new", 80).await?;
    let writer = Writer::start(&old_agent, &new_agent).await?;
    writer.go_on(50).await?;

    for member in 0..3 {
        let process = cluster.process(member).context("no process")?;
        let status = process.stop()?;
        // The older build is as it is: one that does not end well is a crash, which must cost nothing either.
        if !status.success() {
            println!("member-{member} of the older build ended with {status}:\n{}", process.log_tail());
        }
        cluster.set_build(member, &present);
        cluster.restart(member)?;
        // It has all before the next one goes: its answer is as new as a write that comes now.
        writer.go_on(20).await?;
        caught_up(&cluster, member).await?;
        if member < 2 {
            let format = cluster.registry(&[member], &["members"])?["format"].clone();
            ensure!(format == FIRST_FORMAT, "the format rose to {format} while {} members are old", 2 - member);
        }
    }
    eventually("the format to rise", || async {
        let status = cluster.registry(&[0, 1, 2], &["members"])?;
        ensure!(status["format"] == FORMAT, "{status}");
        Ok(Some(()))
    })
    .await?;
    writer.go_on(50).await?;
    // The old agent goes on: it reads what the new one writes, and is heard.
    new_agent.register("web", "web-late", 80).await?;
    old_agent.register("web", "web-old-late", 80).await?;
    for agent in [&old_agent, &new_agent] {
        agent.wait_passing("web", &["web-late", "web-new", "web-old", "web-old-late"]).await?;
    }

    let record = writer.stop().await?;
    println!(
        "upgraded from format {FIRST_FORMAT} to {FORMAT}: {} writes acknowledged, none lost, longest pause between two \
         {:?}; {} DNS answers",
        record.acknowledged.len(),
        record.longest_stall,
        record.answers
    );
    ensure!(record.longest_stall < LONGEST_STALL, "a write waited {:?}", record.longest_stall);
    for agent in [&old_agent, &new_agent] {
        record.check_nothing_lost(agent).await?;
    }
    // An older build cannot come back: it would not know what the others apply.
    cluster.kill(0)?;
    std::fs::remove_dir_all(cluster.data_dir(0))?;
    cluster.set_build(0, &old);
    cluster.restart(0)?;
    eventually("the older build to be refused", || async {
        let log = std::fs::read_to_string(cluster.directory().join("member-0.log"))?;
        ensure!(log.contains(&format!("has raised its catalog to format {FORMAT}")), "it is not in its log");
        Ok(Some(()))
    })
    .await
}

/// Waits until a member has applied what the others had when it was asked first.
async fn caught_up(cluster: &TestCluster, member: usize) -> Result<()> {
    let others: Vec<usize> = (0..3).filter(|other| *other != member).collect();
    let index = cluster.registry(&others, &["members"])?["index"].as_u64().context("no index")?;
    eventually(&format!("member-{member} to catch up"), || async {
        let status = cluster.registry(&[member], &["members"])?;
        let own = status["index"].as_u64().context("no index")?;
        let voters = status["members"].as_array().into_iter().flatten().filter(|member| member["voter"] == true);
        Ok((own >= index && voters.count() == 3).then_some(()))
    })
    .await
}
