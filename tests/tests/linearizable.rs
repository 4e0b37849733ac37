//! Histories of registrations and `?consistent` reads while leaders are killed and paused, checked for
//! linearizability.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use muster_tests::{
    linearizability::{History, Kind, Operation, check},
    scenario::Stage,
};
use serde_json::{Value, json};

/// Few keys, so that clients meet.
const KEYS: u64 = 3;
/// Clients per agent: one half writes, the other reads.
const CLIENTS: u64 = 4;

/// What befalls the leader for two seconds.
enum Fault {
    /// kill -9, and a start from its disk.
    Kill,
    /// It stands still while another takes over, and wakes believing that it leads.
    Pause,
}

struct Client {
    id: u64,
    base: String,
    http: reqwest::Client,
    began: Instant,
    values: Arc<AtomicU64>,
}

impl Client {
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    async fn run(self, stop: Arc<AtomicBool>) -> Vec<Operation> {
        let mut operations = Vec::new();
        let mut turn = self.id;
        while !stop.load(Ordering::Relaxed) {
            turn += 1;
            let key = format!("key-{}", turn % KEYS);
            let operation = if self.id.is_multiple_of(2) { self.write(key).await } else { self.read(key).await };
            operations.extend(operation);
        }
        operations
    }

    async fn write(&self, key: String) -> Option<Operation> {
        let value = self.values.fetch_add(1, Ordering::Relaxed) + 1;
        let body = json!({"Node": "register", "Address": "10.9.9.9",
                          "Service": {"ID": key, "Service": key, "Meta": {"value": value.to_string()}}});
        let invoked = self.now();
        let sent = self.http.put(format!("{}/v1/catalog/register", self.base)).json(&body).send().await;
        // Whatever was not acknowledged may still take effect at any later time.
        let returned = matches!(&sent, Ok(response) if response.status().is_success()).then(|| self.now());
        Some(Operation { client: self.id as usize, key, kind: Kind::Write(value.to_string()), invoked, returned })
    }

    async fn read(&self, key: String) -> Option<Operation> {
        let invoked = self.now();
        let response = self.http.get(format!("{}/v1/catalog/service/{key}?consistent", self.base)).send().await.ok()?;
        if !response.status().is_success() {
            // A read without an answer says nothing.
            return None;
        }
        let body: Value = response.json().await.ok()?;
        let value = body[0]["ServiceMeta"]["value"].as_str().map(str::to_owned);
        Some(Operation { client: self.id as usize, key, kind: Kind::Read(value), invoked, returned: Some(self.now()) })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn registrations_and_consistent_reads_are_linearizable_while_leaders_die_and_stand_still() -> Result<()> {
    let mut stage = Stage::set(3, 3).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let (values, began) = (Arc::new(AtomicU64::new(0)), Instant::now());
    let mut clients = Vec::new();
    for (number, agent) in stage.agents.iter().enumerate() {
        for client in 0..CLIENTS {
            let client = Client {
                id: number as u64 * CLIENTS + client,
                base: format!("http://{}", agent.http),
                http: muster_tests::harness::http_client(Duration::from_secs(15))?,
                began,
                values: values.clone(),
            };
            clients.push(tokio::spawn(client.run(stop.clone())));
        }
    }
    for fault in [Fault::Kill, Fault::Pause, Fault::Kill, Fault::Pause] {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let leader = stage.leader().await?;
        match fault {
            Fault::Kill => stage.cluster.kill(leader)?,
            Fault::Pause => stage.cluster.process(leader).context("no leader")?.signal("STOP")?,
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        match fault {
            Fault::Kill => stage.cluster.restart(leader)?,
            Fault::Pause => stage.cluster.process(leader).context("no leader")?.signal("CONT")?,
        }
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    stop.store(true, Ordering::Relaxed);
    let mut operations = Vec::new();
    for client in clients {
        operations.extend(client.await?);
    }
    let reads = operations.iter().filter(|operation| matches!(operation.kind, Kind::Read(_))).count();
    let unknown = operations.iter().filter(|operation| operation.returned.is_none()).count();
    println!("{} operations, {reads} reads, {unknown} writes of unknown outcome", operations.len());
    assert!(reads > 50 && operations.len() - reads > 50, "too few operations to mean anything");
    check(&History { operations }).map_err(|violation| anyhow::anyhow!("{violation}"))
}
