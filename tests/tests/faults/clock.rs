//! The wall clock jumps, forward and back, by an hour: liveness, checks and indexes go by time that passes.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use muster_tests::harness::{Launch, TestAgent, TestCluster, eventually, http_client};
use serde_json::{Value, json};

use super::{pass_over, registration};

/// Debian's libfaketime, for programs with threads.
const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
/// Hours the clock is off by, one after the other: two jumps forward, and two back.
const HOURS: [i64; 4] = [1, 2, 1, -1];
/// So many of them are jumps forward.
const FORWARD: usize = 2;
/// How long each is watched: three leases, and longer than the TTL check's term.
const WATCHED: Duration = Duration::from_secs(3);
/// The TTL check's term.
const TTL: Duration = Duration::from_secs(2);

/// The clock of all processes of a test.
struct Clock {
    file: PathBuf,
}

impl Clock {
    fn new(directory: &Path) -> Result<Self> {
        let clock = Self { file: directory.join("clock") };
        clock.set(0)?;
        Ok(clock)
    }

    /// Sets the clock off by so many hours. In one step: a reader sees the old file or the new one.
    fn set(&self, hours: i64) -> Result<()> {
        let next = self.file.with_extension("next");
        std::fs::write(&next, format!("{hours:+}h\n"))?;
        Ok(std::fs::rename(next, &self.file)?)
    }

    fn launch(&self) -> Launch {
        let variable = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let environment = vec![
            variable("LD_PRELOAD", LIBRARY),
            variable("FAKETIME_TIMESTAMP_FILE", &self.file.to_string_lossy()),
            variable("FAKETIME_NO_CACHE", "1"),
            // As a step of a real clock: the monotonic one goes on.
            variable("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            variable("DONT_FAKE_MONOTONIC", "1"),
        ];
        Launch { environment, ..Launch::default() }
    }

    /// The hours that a program under this clock is off by.
    fn hours_off(&self) -> Result<i64> {
        let output = Command::new("date").arg("+%s").envs(self.launch().environment).output()?;
        let there: i64 = String::from_utf8(output.stdout)?.trim().parse().context("date says no time")?;
        let here = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?;
        Ok((there - here + 1_800).div_euclid(3_600))
    }
}

/// The minutes of the day that an agent's HTTP dates say, less those of the true time.
async fn minutes_off(agent: &TestAgent) -> Result<i64> {
    let response = agent.response("/v1/status/leader").await?;
    let date = response.headers().get("date").context("no date")?.to_str()?.to_owned();
    // As in `Wed, 25 Nov 2026 02:49:20 GMT`.
    let time: Vec<i64> =
        date.split(' ').nth(4).context("no time")?.split(':').map(str::parse).collect::<Result<_, _>>()?;
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() / 60)?;
    Ok((time[0] * 60 + time[1] - now + 720).rem_euclid(1440) - 720)
}

async fn index(agent: &TestAgent) -> Result<u64> {
    let response = agent.response("/v1/health/service/web").await?;
    ensure!(!response.headers().contains_key("x-muster-stale"), "an answer says that it is stale");
    Ok(response.headers().get("x-consul-index").context("no index")?.to_str()?.parse()?)
}

/// Tells the TTL check that it passes, until it is stopped.
fn keep_passing(agent: &TestAgent) -> (Arc<AtomicBool>, tokio::task::JoinHandle<Result<()>>) {
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, url) = (stop.clone(), format!("http://{}/v1/agent/check/pass/service:web", agent.http));
    let task = tokio::spawn(async move {
        let client = http_client(Duration::from_secs(15))?;
        while !stopped.load(Ordering::Relaxed) {
            client.put(&url).send().await?.error_for_status()?;
            tokio::time::sleep(TTL / 8).await;
        }
        Ok(())
    });
    (stop, task)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_by_hours_expires_nothing_and_turns_no_index_back() -> Result<()> {
    if !Path::new(LIBRARY).exists() {
        return pass_over("a_clock_that_jumps…", "it needs libfaketime: apt-get install faketime");
    }
    let mut cluster = TestCluster::prepare(3, "lease_ttl = \"1s\"\nlease_grace = \"200ms\"\n")?;
    let clock = Clock::new(cluster.directory())?;
    (0..3).for_each(|member| cluster.set_launch(member, clock.launch()));
    cluster.restart_all()?;
    let mut agent = TestAgent::start_launched(&cluster, "node-0", clock.launch()).await?;
    let definition = json!({"Name": "web", "Port": 80, "Check": {"TTL": "2s", "Status": "passing"}});
    agent.put("/v1/agent/service/register", &definition).await?;
    let (stop, passing) = keep_passing(&agent);
    agent.wait_passing("web", &["web"]).await?;

    let mut last = index(&agent).await?;
    for (step, hours) in HOURS.into_iter().enumerate() {
        clock.set(hours)?;
        ensure!(clock.hours_off()? == hours, "libfaketime has no effect");
        // Back, the date of HTTP stands still until the clock has caught up: it is kept, and renewed when it is old.
        if step < FORWARD {
            eventually("the agent's clock to be off", || async {
                let minutes = minutes_off(&agent).await?;
                ensure!((minutes - hours * 60).abs() <= 2, "it is off by {minutes} minutes");
                Ok(Some(()))
            })
            .await?;
        }
        let began = Instant::now();
        while began.elapsed() < WATCHED {
            ensure!(agent.passing("web").await? == ["web"], "web is lost at {hours:+} h");
            let answer = agent.dig("web.service.mesh.internal.", "SRV").await?;
            ensure!(answer.records.len() == 1, "DNS at {hours:+} h: {answer:?}");
            let now = index(&agent).await?;
            ensure!(now >= last, "the index went from {last} back to {now} at {hours:+} h");
            last = now;
        }
        agent.put("/v1/catalog/register", &registration("other", step as u64, 0)).await?;
    }
    for member in 0..3 {
        // Absent until the first.
        let expired = cluster.metric(member, "muster_registry_lease_expiries_total").await.unwrap_or(0.0);
        ensure!(expired == 0.0, "member {member} let {expired} leases expire");
    }

    // The clock stands two hours back from where it was: an expiry that went by it would be two hours late.
    stop.store(true, Ordering::Relaxed);
    passing.await??;
    agent.wait_passing("web", &[]).await?;
    let checks: Value = agent.get("/v1/health/checks/web").await?;
    let output = checks[0]["Output"].as_str().unwrap_or_default().to_owned();
    ensure!(output.contains("TTL expired: no update within 2s"), "the check says {output:?}");

    // An agent that starts now is younger than before by its clock; its writes have to count all the same.
    agent.restart()?;
    agent.register("late", "late", 81).await?;
    agent.wait_passing("late", &["late"]).await
}
