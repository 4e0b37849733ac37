//! Members that are killed under writes and start again: at once, within the leader's lease, as systemd restarts them,
//! and past an election. Afterwards all members hold the same rows, and every acknowledged write is among them.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use muster_catalog::{Snapshot, SnapshotRow, port::Sink};
use muster_registry::{Client, ClientConfig};
use muster_tests::{
    harness::{TestCluster, eventually},
    load::{native_client, registration_command},
};
use tokio::{task::JoinSet, time::sleep};

/// How long the killed members stay down. The leader's lease is 0.6 s, systemd's pause 1 s.
const PAUSES: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(50),
    Duration::from_millis(300),
    Duration::from_millis(1000),
    Duration::from_millis(2000),
];
/// Writers at once: enough that a killed leader always has entries on the way.
const WRITERS: usize = 32;
/// Writes that are acknowledged before each kill.
const BETWEEN: u64 = 100;

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Victims {
    Leader,
    LeaderAndFollower,
    All,
}

/// Writers that note what was acknowledged.
struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    writers: JoinSet<Vec<u64>>,
}

impl Load {
    fn start(cluster: &TestCluster) -> Self {
        let (stop, acknowledged, next) = <(Arc<AtomicBool>, Arc<AtomicU64>, Arc<AtomicU64>)>::default();
        let mut writers = JoinSet::new();
        for _ in 0..WRITERS {
            let (client, stop, count, next) =
                (native_client(cluster), stop.clone(), acknowledged.clone(), next.clone());
            writers.spawn(async move {
                let mut own = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    // One without an outcome may be there or not.
                    if client.submit(registration_command(number)).await.is_ok() {
                        own.push(number);
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                }
                own
            });
        }
        Self { stop, acknowledged, writers }
    }

    /// Returns once so many more are acknowledged.
    async fn goes_on(&self) -> Result<()> {
        let from = self.acknowledged.load(Ordering::Relaxed);
        eventually("writes to be acknowledged", || async {
            Ok((self.acknowledged.load(Ordering::Relaxed) >= from + BETWEEN).then_some(()))
        })
        .await
    }

    async fn end(self) -> Vec<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.writers.join_all().await.into_iter().flatten().collect()
    }
}

async fn leader(cluster: &TestCluster) -> Result<usize> {
    eventually("a leader", || async {
        for member in 0..cluster.members().len() {
            if cluster.metric(member, "muster_registry_is_leader").await.unwrap_or_default() == 1.0 {
                return Ok(Some(member));
            }
        }
        Ok(None)
    })
    .await
}

/// What each member holds of itself, at one index.
async fn catalogs(cluster: &TestCluster) -> Result<Vec<Snapshot>> {
    eventually("all members at one index", || async {
        let mut found = Vec::new();
        for (number, member) in cluster.members().into_iter().enumerate() {
            let client = Client::new(ClientConfig::new(vec![member]));
            let file = cluster.directory().join(format!("catalog-{number}"));
            found.push(client.backup(&file, true).await?.snapshot);
        }
        let same = found.iter().all(|snapshot| snapshot.index() == found[0].index());
        Ok(same.then_some(found))
    })
    .await
}

fn ids(snapshot: &Snapshot) -> BTreeSet<String> {
    let instances = snapshot.nodes().flat_map(|node| node.instances.iter());
    instances.map(|entry| entry.instance.value.id.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_are_killed_and_start_again_hold_equal_rows_and_all_that_was_acknowledged() -> Result<()> {
    let mut cluster = TestCluster::start(3)?;
    let load = Load::start(&cluster);
    for victims in [Victims::Leader, Victims::LeaderAndFollower, Victims::All] {
        for (round, pause) in PAUSES.into_iter().enumerate() {
            load.goes_on().await.with_context(|| format!("before {victims:?} are killed for {pause:?}"))?;
            let leading = leader(&cluster).await?;
            let others = [(leading + 1) % 3, (leading + 2) % 3];
            let killed = match victims {
                Victims::Leader => vec![leading],
                Victims::LeaderAndFollower => vec![leading, others[round % 2]],
                Victims::All => vec![leading, others[0], others[1]],
            };
            killed.iter().try_for_each(|member| cluster.kill(*member))?;
            sleep(pause).await;
            killed.iter().try_for_each(|member| cluster.restart(*member))?;
        }
    }
    load.goes_on().await.context("after the last restart")?;
    let acknowledged = load.end().await;
    let catalogs = catalogs(&cluster).await?;
    let held: Vec<BTreeSet<String>> = catalogs.iter().map(ids).collect();
    let lost = |held: &BTreeSet<String>| {
        let gone = acknowledged.iter().filter(|number| !held.contains(&format!("s-{number}")));
        gone.copied().collect::<Vec<u64>>()
    };
    let lost: Vec<Vec<u64>> = held.iter().map(lost).collect();
    let rows: Vec<Vec<SnapshotRow>> = catalogs.iter().map(|snapshot| snapshot.rows().collect()).collect();
    let differ = |other: &Vec<SnapshotRow>| {
        other
            .iter()
            .filter(|row| !rows[0].contains(row))
            .chain(rows[0].iter().filter(|row| !other.contains(row)))
            .count()
    };
    let index = catalogs[0].index();
    println!("{} writes acknowledged, three catalogs at index {index}", acknowledged.len());
    ensure!(lost.iter().all(Vec::is_empty), "of {} acknowledged writes members lack {lost:?}", acknowledged.len());
    // Row by row only where they are not equal as a whole: it is slow.
    for (member, other) in catalogs.iter().enumerate() {
        let equal = *other == catalogs[0];
        ensure!(equal, "at index {index} members 0 and {member} differ in {} rows", differ(&rows[member]));
    }
    Ok(())
}
