//! A member's disk is full: writes are refused with what to do about it, everything else goes on, and room ends it.
//!
//! The member's data lies on a small file system of its own, in a mount namespace that a sleeping process holds: the
//! mount goes with that process, however the test ends.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use muster_tests::harness::{Launch, PATIENCE, TestAgent, TestCluster, eventually, http_client};

use super::{is_root, pass_over, registered, registration};

/// The size of the disk. Muster keeps 128 MiB of it free.
const DISK_MEGABYTES: usize = 176;
/// Fills it so far that less than the reserve is left, but far from nothing.
const FILLER_MEGABYTES: usize = 80;
/// How long everything but writes is watched on a disk without a byte left: several elections, leases and looks.
const WATCHED: Duration = Duration::from_secs(4);
/// An agent that tries a write again takes twice as long and more.
const UNTRIED: Duration = Duration::from_secs(5);
/// What a refusal has to say.
const REMEDY: &str = "are kept free: make room on it";

/// A mounted file system of a few megabytes.
struct SmallDisk {
    holder: Child,
    folder: PathBuf,
}

impl SmallDisk {
    /// Mounts it at `folder`; `None` where that is not allowed.
    fn mount(folder: &Path) -> Result<Option<Self>> {
        fs::create_dir_all(folder)?;
        let script = "mount -t tmpfs -o size=\"$1\"m tmpfs \"$0\" && echo mounted && exec sleep infinity";
        let holder = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", script])
            .args([folder.as_os_str(), DISK_MEGABYTES.to_string().as_ref()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let Ok(mut holder) = holder else { return Ok(None) };
        let mut said = String::new();
        BufReader::new(holder.stdout.take().context("no output")?).read_line(&mut said)?;
        let disk = Self { holder, folder: folder.to_owned() };
        Ok((said.trim() == "mounted").then_some(disk))
    }

    /// How a process is started that sees it.
    fn launch(&self) -> Launch {
        let holder = self.holder.id().to_string();
        let through = ["nsenter", "--mount", "--target", &holder, "--"];
        Launch { through: through.map(str::to_owned).into(), ..Launch::default() }
    }

    /// Its folder as this process reaches it.
    fn seen_from_here(&self) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.id()));
        root.join(self.folder.strip_prefix("/").unwrap_or(&self.folder))
    }

    /// Puts so many megabytes on it, or as many as there is room for.
    fn fill(&self, name: &str, megabytes: usize) -> Result<()> {
        let mut file = File::create(self.seen_from_here().join(name))?;
        let (mut size, mut left) = (1024 * 1024, megabytes * 1024 * 1024);
        let zeros = vec![0; size];
        while left > 0 {
            // The last bytes go in small pieces, until not even one fits.
            match file.write(&zeros[..size.min(left)]) {
                Ok(written) => left -= written,
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull && size > 1 => size /= 2,
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn free(&self, name: &str) -> Result<()> {
        Ok(fs::remove_file(self.seen_from_here().join(name))?)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Members of which the first is on such a disk, and an agent of theirs; `None` where the disk cannot be had.
async fn member_on_small_disk(test: &str, members: usize) -> Result<Option<(SmallDisk, TestCluster, TestAgent)>> {
    if !is_root() {
        pass_over(test, "it mounts a small file system, which takes root")?;
        return Ok(None);
    }
    let mut cluster = TestCluster::prepare(members, "lease_ttl = \"1s\"\nlease_grace = \"200ms\"\n")?;
    let Some(disk) = SmallDisk::mount(&cluster.data_dir(0))? else {
        pass_over(test, "`unshare --mount` and a tmpfs should work for root")?;
        return Ok(None);
    };
    cluster.set_launch(0, disk.launch());
    cluster.restart_all()?;
    let agent = TestAgent::start(&cluster, "node-0").await?;
    Ok(Some((disk, cluster, agent)))
}

/// Reads, names and the node's liveness, none of which needs room.
async fn everything_but_writes_goes_on(agent: &TestAgent, instances: usize) -> Result<()> {
    ensure!(registered(agent, "bulk").await?.len() == instances, "a linearizable read lost something");
    let answer = agent.dig("bulk.service.mesh.internal.", "SRV").await?;
    ensure!(answer.records.len() == instances, "DNS gave {answer:?}");
    let health = agent.get("/v1/health/node/node-0").await?;
    ensure!(health[0]["Status"] == "passing", "the node is not alive: {health}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_writes_and_nothing_else_until_there_is_room() -> Result<()> {
    let test = "a_full_disk_refuses_writes_and_nothing_else_until_there_is_room";
    let Some((disk, mut cluster, agent)) = member_on_small_disk(test, 1).await? else { return Ok(()) };
    for number in 0..3 {
        agent.put("/v1/catalog/register", &registration("bulk", number, 0)).await?;
    }
    everything_but_writes_goes_on(&agent, 3).await?;

    disk.fill("filler", FILLER_MEGABYTES)?;
    eventually("the metric of a full disk", || async {
        Ok((cluster.metric(0, "muster_registry_disk_full").await? == 1.0).then_some(()))
    })
    .await?;
    cluster.process(0).context("no process")?.wait_log(&["ERROR", REMEDY, "refusing writes"]).await?;
    let url = format!("http://{}/v1/catalog/register", agent.http);
    let asked = Instant::now();
    let refused = http_client(Duration::from_secs(30))?.put(url).json(&registration("bulk", 3, 0)).send().await?;
    let (status, text) = (refused.status(), refused.text().await?);
    let said = text.starts_with("the registry takes no writes: the disk of ") && text.contains(REMEDY);
    ensure!(status == 500 && said, "a full disk answers {status} {text:?}");
    ensure!(asked.elapsed() < UNTRIED, "it was tried again and again, for {:?}", asked.elapsed());

    // Not even a byte left: what goes on must not need one.
    disk.fill("rest", DISK_MEGABYTES)?;
    // The agent takes it, and pushes it once the registry can.
    agent.register("web", "web", 80).await?;
    let began = Instant::now();
    while began.elapsed() < WATCHED {
        everything_but_writes_goes_on(&agent, 3).await?;
    }
    let member = cluster.process(0).context("no process")?;
    ensure!(member.ended()?.is_none(), "the member ended:\n{}", member.log_tail());

    disk.free("rest")?;
    disk.free("filler")?;
    // The agent shows its own service at once; the metric tells when the member has looked at its disk again.
    eventually("the metric to fall", || async {
        Ok((cluster.metric(0, "muster_registry_disk_full").await? == 0.0).then_some(()))
    })
    .await?;
    agent.wait_passing("web", &["web"]).await?;
    agent.put("/v1/catalog/register", &registration("bulk", 3, 0)).await?;
    everything_but_writes_goes_on(&agent, 4).await?;
    cluster.process(0).context("no process")?.wait_log(&["INFO", "the disk has room again"]).await
}

/// One of three runs out of room while it leads: the lead moves to one that has some, and nobody's write is refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_disk_is_full_leaves_the_lead_to_another() -> Result<()> {
    let test = "a_leader_whose_disk_is_full_leaves_the_lead_to_another";
    let Some((disk, mut cluster, agent)) = member_on_small_disk(test, 3).await? else { return Ok(()) };
    agent.put("/v1/catalog/register", &registration("bulk", 0, 0)).await?;
    cluster.registry(&[0, 1, 2], &["transfer-leader", "member-0"])?;
    let (writes, stop) = (agent.http, Arc::new(AtomicBool::new(false)));
    let writing = tokio::spawn({
        let stop = stop.clone();
        async move {
            let client = http_client(Duration::from_secs(30))?;
            let url = format!("http://{writes}/v1/catalog/register");
            for number in 1_u64.. {
                let sent = client.put(&url).json(&registration("bulk", number, 0)).send().await?;
                ensure!(sent.status().is_success(), "write {number}: {}", sent.text().await?);
                if stop.load(Ordering::Relaxed) {
                    return Ok(number);
                }
            }
            anyhow::bail!("it went on for ever")
        }
    });
    disk.fill("filler", FILLER_MEGABYTES)?;
    cluster.process(0).context("no process")?.wait_log(&["INFO", "handing the lead on", "room on its disk"]).await?;
    eventually("another leader", || async {
        let status = cluster.registry(&[1, 2], &["members"])?;
        let mut members = status["members"].as_array().into_iter().flatten();
        let leader = members.find(|member| member["role"] == "leader");
        Ok(leader.is_some_and(|leader| leader["name"] != "member-0").then_some(()))
    })
    .await?;
    stop.store(true, Ordering::Relaxed);
    let last = writing.await??;
    // An agent that follows the member without room is sent to another one.
    eventually("a linearizable read", || async {
        let found = registered(&agent, "bulk").await?.len();
        Ok((found == usize::try_from(last)? + 1).then_some(()))
    })
    .await?;
    // It takes part again once there is room.
    disk.free("filler")?;
    cluster.process(0).context("no process")?.wait_log(&["INFO", "the disk has room again"]).await?;
    cluster.registry(&[0, 1, 2], &["transfer-leader", "member-0"])?;
    agent.put("/v1/catalog/register", &registration("bulk", last + 1, 0)).await.map(drop)
}

async fn wait_ended(cluster: &mut TestCluster) -> Result<()> {
    let began = Instant::now();
    while cluster.process(0).context("no process")?.ended()?.is_none() {
        ensure!(began.elapsed() < PATIENCE, "the member goes on with a full disk");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// The disk fills faster than it is looked at: the log meets its end, the process ends and says why, and every later
/// start with the disk still full ends likewise or refuses. Once there is room, all that was acknowledged is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_in_the_middle_of_writes_loses_nothing_acknowledged() -> Result<()> {
    let test = "a_disk_that_fills_in_the_middle_of_writes_loses_nothing_acknowledged";
    let Some((disk, mut cluster, agent)) = member_on_small_disk(test, 1).await? else { return Ok(()) };
    let client = http_client(Duration::from_secs(30))?;
    let url = format!("http://{}/v1/catalog/register", agent.http);
    let writing = tokio::spawn(async move {
        let mut acknowledged = Vec::new();
        for number in 0.. {
            let sent = client.put(&url).json(&registration("bulk", number, 4)).send().await?;
            if !sent.status().is_success() {
                return anyhow::Ok((acknowledged, sent.text().await?));
            }
            acknowledged.push(format!("bulk-{number}"));
        }
        anyhow::bail!("it never failed")
    });
    eventually("some writes", || async { Ok((registered(&agent, "bulk").await?.len() > 20).then_some(())) }).await?;
    disk.fill("rest", DISK_MEGABYTES)?;
    let (acknowledged, said) = writing.await??;
    // Which one it is depends on whether the look at the disk or the write came first.
    let refused = said.contains(REMEDY);
    if !refused {
        wait_ended(&mut cluster).await?;
    }
    println!("{} acknowledged; refused by the guard: {refused}; then {said:?}", acknowledged.len());
    // As a service manager would. It may say where it listens before it meets the end of the disk.
    cluster.kill(0)?;
    if cluster.restart(0).is_ok() {
        wait_ended(&mut cluster).await?;
    }
    cluster.kill(0)?;
    let log = fs::read_to_string(cluster.log_file(0))?;
    for part in ["storage failed; ending the process", "No space left on device"] {
        ensure!(log.contains(part), "no {part:?} in the log:\n{log}");
    }
    disk.free("rest")?;
    cluster.restart(0)?;
    eventually("all that was acknowledged", || async {
        let found = registered(&agent, "bulk").await?;
        let lost: Vec<_> = acknowledged.iter().filter(|id| !found.contains(id)).collect();
        ensure!(lost.is_empty(), "lost {lost:?}");
        Ok(Some(()))
    })
    .await
}
