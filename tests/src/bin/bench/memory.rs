//! Resident memory with ten and a hundred thousand instances, and the time to serve again after a restart.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use anyhow::{Context, Result};
use muster_catalog::port::Sink;
use muster_tests::{
    harness::{TestAgent, TestCluster, eventually},
    load::{native_client, registration_command},
};

use super::{ROUNDS, line, median};

/// How many write at once while the catalog is filled.
const WRITERS: usize = 64;

pub(super) async fn run() -> Result<()> {
    let mut cluster = TestCluster::start_with(1, "")?;
    let agent = TestAgent::start_with(&cluster, "bench", "replica = \"all\"\n", "").await?;
    let written = Arc::new(AtomicU64::new(0));
    for instances in [10_000, 100_000] {
        fill(&cluster, &written, instances).await?;
        // The answer waits until the agent has applied all that was written before it was asked.
        agent.get("/v1/catalog/services?consistent").await?;
        let member = cluster.process(0).context("the member is down")?.resident_bytes()?;
        let agent = agent.process.resident_bytes()?;
        let megabytes = |bytes: u64| bytes / 1_000_000;
        line(
            &format!("resident with {instances} instances"),
            &format!("member {} MB, agent (scope all) {} MB", megabytes(member), megabytes(agent)),
        );
    }
    let mut taken = Vec::new();
    for _ in 0..ROUNDS {
        cluster.kill(0)?;
        let began = Instant::now();
        cluster.restart(0)?;
        eventually("a write after the restart", || async {
            Ok(native_client(&cluster).submit(registration_command(written.load(Ordering::Relaxed))).await.ok())
        })
        .await?;
        taken.push(began.elapsed().as_secs_f64());
    }
    line("restart of the only member → write accepted (100k)", &format!("{:.2} s (median of {ROUNDS})", median(taken)));
    Ok(())
}

async fn fill(cluster: &TestCluster, written: &Arc<AtomicU64>, until: u64) -> Result<()> {
    let writers = (0..WRITERS).map(|_| {
        let (client, written) = (native_client(cluster), written.clone());
        tokio::spawn(async move {
            loop {
                let number = written.fetch_add(1, Ordering::Relaxed);
                if number >= until {
                    return anyhow::Ok(());
                }
                client.submit(registration_command(number)).await?;
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await??;
    }
    written.store(until, Ordering::Relaxed);
    Ok(())
}
