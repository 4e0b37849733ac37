//! A process that the kernel kills for its memory: it comes back from its disk, and nothing acknowledged is lost.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use muster_catalog::port::Sink;
use muster_tests::{
    harness::{Process, TestAgent, TestCluster, eventually, http_client},
    load::native_client,
};

use super::{registered, registration};

/// What a process may take beyond what it has when the limit is set.
const MORE_BYTES: u64 = 12 * 1024 * 1024;
/// Metadata of each registration, so that few of them reach the limit: as many pairs as are allowed.
const PAIRS: usize = 64;
/// More registrations than any limit here lets through.
const MOST: u64 = 5_000;

/// The agent holds what the member holds, used or not.
const EVERYTHING: &str = "replica = \"all\"\n";

/// A limit on what one process may take from now on. A cgroup goes when this is dropped.
enum MemoryLimit {
    /// The kernel kills the process that needs more.
    Group(PathBuf),
    /// Where there are no cgroups to be had: its allocations fail, and it aborts.
    AddressSpace,
}

impl MemoryLimit {
    fn set(process: &Process) -> Result<Self> {
        let name = format!("muster-test-{}", process.id());
        // Version 2 first, then version 1 as older systems mount it.
        let groups = [
            (Path::new("/sys/fs/cgroup"), "memory.max", "memory.swap.max"),
            (Path::new("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.swappiness"),
        ];
        for (root, limit, swap) in groups {
            // A mount of cgroups, and not the folder that mounts of version 1 lie in.
            if !root.join("cgroup.procs").exists() {
                continue;
            }
            let group = root.join(&name);
            // Fails where it is on already, or where this is not the root of the tree.
            let _ = fs::write(root.join("cgroup.subtree_control"), "+memory");
            if fs::create_dir(&group).is_err() {
                continue;
            }
            let limited = Self::Group(group.clone());
            let set = fs::write(group.join(limit), MORE_BYTES.to_string());
            // Not there without swap.
            let _ = fs::write(group.join(swap), "0");
            if set.and_then(|()| fs::write(group.join("cgroup.procs"), process.id().to_string())).is_ok() {
                println!("limited by {}", group.display());
                return Ok(limited);
            }
        }
        println!("NOTICE: no memory cgroup can be made here: the address space is limited instead, which aborts");
        let status = fs::read_to_string(format!("/proc/{}/status", process.id()))?;
        let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).context("no VmSize")?;
        let kilobytes: u64 = size.trim().trim_end_matches("kB").trim().parse()?;
        let (id, limit) = (process.id().to_string(), format!("--as={}:", kilobytes * 1024 + MORE_BYTES));
        ensure!(Command::new("prlimit").args(["--pid", &id, &limit]).status()?.success(), "prlimit {limit}");
        Ok(Self::AddressSpace)
    }

    /// Whether a process ended as this limit ends one.
    fn explains(&self, status: ExitStatus) -> bool {
        match self {
            Self::Group(_) => status.signal() == Some(9),
            Self::AddressSpace => status.signal() == Some(6),
        }
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        if let Self::Group(group) = self {
            // Only an empty one can be removed; the process is gone by then, or the test has failed.
            let _ = fs::remove_dir(group);
        }
    }
}

async fn wait_killed(process: &mut Process, limit: &MemoryLimit) -> Result<()> {
    for _ in 0..1_000 {
        if let Some(status) = process.ended()? {
            ensure!(limit.explains(status), "it ended with {status}, not by its memory:\n{}", process.log_tail());
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    anyhow::bail!("it was never killed:\n{}", process.log_tail())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_killed_for_its_memory_comes_back_with_all_that_it_acknowledged() -> Result<()> {
    let mut cluster = TestCluster::start(1)?;
    let agent = TestAgent::start_with(&cluster, "node-0", EVERYTHING, "").await?;
    let limit = MemoryLimit::set(cluster.process(0).context("no member")?)?;
    let (client, url) = (http_client(Duration::from_secs(15))?, format!("http://{}/v1/catalog/register", agent.http));
    let mut acknowledged = Vec::new();
    for number in 0..MOST {
        let sent = client.put(&url).json(&registration("bulk", number, PAIRS)).send().await?;
        if sent.status().is_success() {
            acknowledged.push(format!("bulk-{number}"));
        }
        if cluster.process(0).context("no member")?.ended()?.is_some() {
            break;
        }
    }
    wait_killed(cluster.process(0).context("no member")?, &limit).await?;
    // What the operator sees at an agent meanwhile, and what consumers still get.
    eventually("the agent to say that its answers age", || async {
        let answer = agent.response("/v1/catalog/service/bulk?stale").await?;
        Ok(answer.headers().contains_key("x-muster-stale").then_some(()))
    })
    .await?;
    ensure!(!agent.dig("bulk.service.mesh.internal.", "A").await?.records.is_empty(), "DNS lost its answers");
    cluster.kill(0)?;
    cluster.restart(0)?;
    eventually("all that was acknowledged", || async {
        let found = registered(&agent, "bulk").await?;
        let lost: Vec<_> = acknowledged.iter().filter(|id| !found.contains(id)).collect();
        ensure!(lost.is_empty(), "of {} acknowledged {lost:?} are lost", acknowledged.len());
        Ok(Some(()))
    })
    .await?;
    println!("{} acknowledged before it was killed", acknowledged.len());
    ensure!(acknowledged.len() > 20, "too few to mean anything");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_for_its_memory_comes_back_with_its_services_and_answers() -> Result<()> {
    let cluster = TestCluster::start(1)?;
    let mut agent = TestAgent::start_with(&cluster, "node-0", EVERYTHING, "").await?;
    agent.register("web", "web", 80).await?;
    agent.wait_passing("web", &["web"]).await?;
    let limit = MemoryLimit::set(&agent.process)?;
    let client = native_client(&cluster);
    let mut written = 0;
    for number in 0..MOST {
        let mut command = muster_tests::load::registration_command(number);
        if let muster_catalog::Command::Register(registration) = &mut command {
            registration.instances[0].meta = [("padding".into(), "x".repeat(500 * PAIRS).as_str().into())].into();
        }
        client.submit(command).await?;
        written += 1;
        if agent.process.ended()?.is_some() {
            break;
        }
    }
    wait_killed(&mut agent.process, &limit).await?;
    agent.restart()?;
    agent.wait_passing("web", &["web"]).await?;
    let rows = agent.get("/v1/catalog/services?consistent").await?;
    let services = rows.as_object().context("no object")?.len() as u64;
    ensure!(services >= written.min(1_000), "{services} services of {written} registrations");
    Ok(())
}
