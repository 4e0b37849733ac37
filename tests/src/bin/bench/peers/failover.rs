//! The leader is killed: how long until a write is accepted again, by each one's default timings.

use std::time::{Duration, Instant};

use anyhow::Result;
use muster_catalog::port::Sink;
use muster_registry::client::{Client, ClientConfig};
use muster_tests::{
    harness::{TestAgent, TestCluster, eventually},
    load::{native_client, registration_command},
};
use tokio::time::timeout;

use super::{
    super::{line, median, size::Size},
    Row,
    etcd::Etcd,
};

/// How long a try at one member of etcd may take before the next is asked.
const TRY: Duration = Duration::from_millis(200);

pub(super) async fn run(size: Size) -> Result<Vec<Row>> {
    let Some(mut etcd) = Etcd::start().await? else {
        line("etcd", "not installed (etcd-server): nothing is measured beside it");
        return Ok(Vec::new());
    };
    let mut cluster = TestCluster::start_with(3, "")?;
    let agent = TestAgent::start(&cluster, "bench").await?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    // One more than elsewhere: elections are drawn by lot.
    for round in 0..size.rounds as u64 * 2 - 1 {
        ours.push(kill_ours(&mut cluster, &agent, round * 10).await?);
        theirs.push(kill_theirs(&mut etcd).await?);
    }
    let (ours, theirs) = (median(ours), median(theirs));
    Ok(vec![Row {
        figure: "leader killed → write accepted, beside etcd".into(),
        ours: format!("{ours:.2} s"),
        peer: format!("{theirs:.2} s"),
        ratio: Some(ours / theirs),
        aim: "≤ 0.8 s",
        met: Some(ours <= 0.8),
    }])
}

async fn kill_ours(cluster: &mut TestCluster, agent: &TestAgent, number: u64) -> Result<f64> {
    let client = native_client(cluster);
    // A fresh write proves that the registry is whole before it is broken again.
    let leader = eventually("a leader and a write", || async {
        client.submit(registration_command(number)).await?;
        Ok(cluster.member_at(&agent.leader().await?))
    });
    let leader = leader.await?;
    cluster.kill(leader)?;
    let killed = Instant::now();
    while client.submit(registration_command(number + 1)).await.is_err() {}
    let taken = killed.elapsed().as_secs_f64();
    cluster.restart(leader)?;
    let back = Client::new(ClientConfig::new(vec![cluster.members()[leader].clone()]));
    eventually("the killed member to be back", || async {
        Ok(back.submit(registration_command(number + 2)).await.ok())
    })
    .await?;
    Ok(taken)
}

async fn kill_theirs(etcd: &mut Etcd) -> Result<f64> {
    let leader = etcd.leader().await?;
    let mut clients = (0..etcd.len()).map(|member| etcd.client(member)).collect::<Result<Vec<_>>>()?;
    for client in &mut clients {
        client.put("whole".into(), "".into()).await?;
    }
    etcd.kill(leader)?;
    let killed = Instant::now();
    let taken = 'accepted: loop {
        for (member, client) in clients.iter_mut().enumerate() {
            if member != leader && matches!(timeout(TRY, client.put("next".into(), "".into())).await, Ok(Ok(()))) {
                break 'accepted killed.elapsed().as_secs_f64();
            }
        }
    };
    etcd.restart(leader)?;
    eventually("etcd's killed member to be back", || async {
        Ok(etcd.client(leader)?.put("back".into(), "".into()).await.ok())
    })
    .await?;
    Ok(taken)
}
