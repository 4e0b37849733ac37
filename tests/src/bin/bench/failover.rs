//! From the death of the leader to the next accepted write, as a client of three members sees it.

use std::time::Instant;

use anyhow::Result;
use muster_catalog::port::Sink;
use muster_registry::client::{Client, ClientConfig};
use muster_tests::{
    harness::{TestAgent, TestCluster, eventually},
    load::{native_client, registration_command},
};

use super::{ROUNDS, line, median};

pub(super) async fn run() -> Result<()> {
    let mut cluster = TestCluster::start_with(3, "")?;
    let agent = TestAgent::start(&cluster, "bench").await?;
    let client = native_client(&cluster);
    let (mut taken, mut number) = (Vec::new(), 0);
    for _ in 0..ROUNDS {
        // A fresh write proves that the registry is whole before it is broken again.
        let leader = eventually("a leader and a write", || async {
            client.submit(registration_command(number)).await?;
            Ok(cluster.member_at(&agent.leader().await?))
        })
        .await?;
        number += 1;
        cluster.kill(leader)?;
        let killed = Instant::now();
        while client.submit(registration_command(number)).await.is_err() {}
        taken.push(killed.elapsed().as_secs_f64());
        number += 1;
        cluster.restart(leader)?;
        // It is back once it hands a write on.
        let back = Client::new(ClientConfig::new(vec![cluster.members()[leader].clone()]));
        eventually("the killed member to be back", || async {
            Ok(back.submit(registration_command(number)).await.ok())
        })
        .await?;
        number += 1;
    }
    line("kill -9 of the leader → write accepted, 3 members", &format!("{:.2} s (median of {ROUNDS})", median(taken)));
    Ok(())
}
