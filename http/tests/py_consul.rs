//! A real client: py-consul registers, reads, waits and deregisters.
#![allow(clippy::unwrap_used)]

mod support;

use std::{env, path::PathBuf};

use support::House;

/// How to get the client.
const HOW: &str = "python3 -m venv ~/.cache/muster-peers/venv && \
                   ~/.cache/muster-peers/venv/bin/pip install py-consul";

/// The Python that has the client, where `.ci/peers` puts it.
fn find_python() -> Option<PathBuf> {
    let peers = match env::var_os("MUSTER_PEERS") {
        Some(peers) => PathBuf::from(peers),
        None => PathBuf::from(env::var_os("HOME")?).join(".cache/muster-peers"),
    };
    let python = peers.join("venv/bin/python");
    let has_client = std::process::Command::new(&python).args(["-c", "import consul"]).output();
    has_client.is_ok_and(|output| output.status.success()).then_some(python)
}

#[tokio::test]
async fn py_consul_lives_a_whole_life() {
    let Some(python) = find_python() else {
        assert!(env::var_os("CI").is_none(), "py-consul is missing; get it with: {HOW}");
        println!("skipped, py-consul is missing; get it with: {HOW}");
        return;
    };
    let house = House::start().await;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/py_consul.py");
    let port = house.handle.address.port().to_string();
    let run = tokio::process::Command::new(python).args([script, "127.0.0.1", &port]).output().await.unwrap();
    let (out, error) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{out}{error}");
}
