//! A real gRPC client without a proxy.

// Integration tests are tests throughout, which the lint does not see.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use std::process::Stdio;

use muster_catalog::{Locality, Status};
use muster_xds::ResourceKind;
use support::*;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::Mutex,
};

const HOW: &str = "python3 -m venv ~/.cache/muster-peers/venv && ~/.cache/muster-peers/venv/bin/pip install grpcio";

struct Peer {
    /// Killed when dropped.
    _process: Child,
    pipes: Mutex<(ChildStdin, Lines<BufReader<ChildStdout>>)>,
}

impl Peer {
    fn start(xds: &str) -> Self {
        let bootstrap = format!(
            r#"{{"xds_servers": [{{"server_uri": "{xds}", "channel_creds": [{{"type": "insecure"}}],
                "server_features": ["xds_v3"]}}], "node": {{"id": "grpc-1", "cluster": "tests"}}}}"#
        );
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/grpc_peer.py");
        let mut process = Command::new(peers().join("bin/python3"))
            .arg(script)
            .env("GRPC_XDS_BOOTSTRAP_CONFIG", bootstrap)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let input = process.stdin.take().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { _process: process, pipes: Mutex::new((input, output)) }
    }

    async fn line(&self) -> String {
        let line = async { self.pipes.lock().await.1.next_line().await.unwrap().expect("the peer ended") };
        tokio::time::timeout(PATIENCE, line).await.expect("the peer is silent")
    }

    async fn call(&self) -> String {
        self.pipes.lock().await.0.write_all(b"call\n").await.unwrap();
        self.line().await
    }
}

#[tokio::test]
async fn a_grpc_client_follows_the_catalog() {
    let imported = Command::new(peers().join("bin/python3")).args(["-c", "import grpc"]).output().await;
    if !imported.is_ok_and(|output| output.status.success()) {
        return is_missing("grpcio", HOW);
    }
    let source = FakeSource::loaded();
    let (handle, _stop) = serve(config(), source.clone(), 0).await;
    let peer = Peer::start(&handle.local_addr().to_string());
    let ports: Vec<u16> = peer.line().await.split(' ').map(|port| port.parse().unwrap()).collect();
    let [a, b] = ports[..] else { panic!("not two ports: {ports:?}") };
    let in_zone = |port, zone: &str| muster_catalog::Instance {
        locality: Some(Locality { region: "eu".into(), zone: zone.into() }),
        ..instance("web", port)
    };
    source.edit(vec![put(in_zone(a, "1"))]);
    eventually("a is called", || async { peer.call().await == "ok a" }).await;
    source.edit(vec![put(in_zone(b, "2"))]);
    eventually("b of another locality is called", || async { peer.call().await == "ok b" }).await;
    source.edit(vec![check("web", a, Status::Critical)]);
    eventually("only b is called", || async {
        let mut answers = Vec::new();
        for _ in 0..20 {
            answers.push(peer.call().await);
        }
        assert!(answers.iter().all(|answer| answer.starts_with("ok")), "{answers:?}");
        answers.iter().all(|answer| answer == "ok b")
    })
    .await;
    source.edit(vec![put(in_zone(a, "1")), delete("web", b)]);
    source.edit(vec![check("web", a, Status::Passing)]);
    eventually("a is called again", || async { peer.call().await == "ok a" }).await;
    let proxies = handle.proxies();
    assert_eq!(proxies.len(), 1);
    assert_eq!(proxies[0].node_id, "grpc-1");
    for kind in [ResourceKind::Listener, ResourceKind::Cluster, ResourceKind::Endpoint] {
        let status = &proxies[0].kinds[&kind];
        assert!(status.accepted.is_some() && status.rejected.is_none(), "{kind}: {status:?}");
    }
    // All sick: no panic mode. Gone: calls fail.
    source.edit(vec![check("web", a, Status::Critical)]);
    eventually("nobody is called", || async { peer.call().await == "error UNAVAILABLE" }).await;
    source.edit(vec![delete("web", a)]);
    eventually("the service is gone", || async { peer.call().await == "error UNAVAILABLE" }).await;
}
