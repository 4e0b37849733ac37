//! Three real members on real disks, seen through the client.
#![allow(clippy::unwrap_used)]

mod support;

use std::{path::Path, sync::Arc, time::Duration};

use muster_catalog::{Snapshot, port::Sink};
use muster_registry::{
    Client, ClientConfig, Registry, RegistryConfig, StartError, StopReason, raft::ConsensusConfig, store::EngineKind,
};
use support::{push, replica};
use tokio::{net::TcpListener, time::timeout};
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

struct Member {
    registry: Registry,
    stop: CancellationToken,
}

async fn member(name: &str, members: &[String], listener: TcpListener, disk: &Path) -> Member {
    let address = listener.local_addr().unwrap().to_string();
    let mut consensus = ConsensusConfig::new(name, address, disk.join(name));
    consensus.members = members.to_vec();
    // Engines may differ from member to member.
    if name == "member-2" && EngineKind::Sled.check_built().is_ok() {
        consensus.log_engine = EngineKind::Sled;
    }
    let stop = CancellationToken::new();
    let registry = Registry::start(RegistryConfig::new(consensus), listener, stop.clone()).await.unwrap();
    Member { registry, stop }
}

async fn three(disk: &Path) -> (Vec<Member>, Vec<String>) {
    let mut listeners = Vec::new();
    for _ in 0..3 {
        listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
    }
    let addresses: Vec<String> = listeners.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect();
    let mut members = Vec::new();
    for (number, listener) in listeners.into_iter().enumerate() {
        members.push(member(&format!("member-{number}"), &addresses, listener, disk).await);
    }
    (members, addresses)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_outlive_their_leader_and_a_restart() {
    let disk = tempfile::tempdir().unwrap();
    let (mut members, addresses) = three(disk.path()).await;
    let client = Client::new(ClientConfig::new(addresses.clone()));
    let first = timeout(PATIENCE, client.submit(push("a", 1, &["web"]))).await.unwrap().unwrap();
    let snapshot = timeout(PATIENCE, replica(&client, first.index)).await.unwrap();
    assert_eq!(snapshot.instance_count(), 1);
    assert_eq!(snapshot.cluster().incarnation, 1);
    assert!(!snapshot.cluster().uuid.is_empty());

    let leader = members.iter().position(|member| member.registry.leadership().borrow().is_leader).unwrap();
    let gone = members.remove(leader);
    gone.stop.cancel();
    let reason = timeout(PATIENCE, gone.registry.stopped()).await.unwrap();
    assert!(matches!(reason, StopReason::Asked), "{reason}");
    let address = gone.registry.address();
    drop(gone);
    let second = timeout(PATIENCE, client.submit(push("a", 2, &["web", "db"]))).await.unwrap().unwrap();
    assert!(second.index > first.index);

    // It comes back on its disk and catches up.
    let listener = TcpListener::bind(address).await.unwrap();
    let back = member(&format!("member-{leader}"), &addresses, listener, disk.path()).await;
    let only = Client::new(ClientConfig::new(vec![address.to_string()]));
    let caught_up = timeout(PATIENCE, replica(&only, second.index)).await.unwrap();
    assert_eq!(caught_up.instance_count(), 2);
    assert_eq!(caught_up.cluster(), snapshot.cluster());
    let status = only.members().await.unwrap();
    assert_eq!(status.members.iter().filter(|member| member.voter).count(), 3);
    assert_eq!(status.cluster, *snapshot.cluster());
    members.push(back);
    for member in &members {
        member.stop.cancel();
    }
    for member in &members {
        assert!(matches!(timeout(PATIENCE, member.registry.stopped()).await.unwrap(), StopReason::Asked));
    }
}

#[tokio::test]
async fn one_member_alone_keeps_its_catalog_over_a_restart_and_does_not_listen_off_loopback() {
    let disk = tempfile::tempdir().unwrap();
    let mut rows: Option<Arc<Snapshot>> = None;
    for round in 1..3 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        // A restart on another port is the same member: its disk says who it is.
        let address = listener.local_addr().unwrap().to_string();
        let alone = member("alone", std::slice::from_ref(&address), listener, disk.path()).await;
        let client = Client::new(ClientConfig::new(vec![address]));
        let written = timeout(PATIENCE, client.submit(push("a", round, &["web", "db"][..round as usize]))).await;
        let index = written.unwrap().unwrap().index;
        let mut snapshots = alone.registry.snapshots();
        let now = timeout(PATIENCE, snapshots.wait_for(|now| now.index() >= index && !now.cluster().uuid.is_empty()))
            .await
            .unwrap()
            .unwrap()
            .clone();
        assert_eq!(now.instance_count(), round as usize);
        if let Some(before) = rows.replace(now.clone()) {
            assert_eq!(before.cluster(), now.cluster());
        }
        alone.stop.cancel();
        alone.registry.stopped().await;
    }
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let config = RegistryConfig::new(ConsensusConfig::new("open", "127.0.0.1:1", disk.path().join("open")));
    let refused = Registry::start(config, listener, CancellationToken::new()).await.err().unwrap();
    assert!(matches!(refused, StartError::NotLoopback(_)) && refused.to_string().contains("mTLS"), "{refused}");
}
