//! A client that writes and asks DNS for as long as it is let, and remembers what was acknowledged.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::harness::{TestAgent, ask, eventually, http_client};

/// The pause between two questions to DNS.
const DNS_PAUSE: Duration = Duration::from_millis(10);

/// Writes instances of the service `bulk` one after the other, and asks DNS for them meanwhile.
pub struct Writer {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicUsize>,
    writing: JoinHandle<Result<Vec<(usize, Instant)>>>,
    asking: JoinHandle<Result<u64>>,
}

/// What a writer had done when it stopped.
#[derive(Debug)]
pub struct Record {
    /// The instances that were acknowledged.
    pub acknowledged: BTreeSet<usize>,
    /// The longest time between two acknowledgements.
    pub longest_stall: Duration,
    /// How many answers DNS gave; each had an instance.
    pub answers: u64,
}

fn registration(number: usize) -> Value {
    json!({"Node": format!("ext-{}", number % 10), "Address": "10.9.0.1",
           "Service": {"ID": format!("bulk-{number}"), "Service": "bulk", "Port": 1000 + number % 1000}})
}

impl Writer {
    /// Begins to write by one agent and to ask another one.
    pub async fn start(by: &TestAgent, asked: &TestAgent) -> Result<Self> {
        by.put("/v1/catalog/register", &registration(0)).await?;
        let server = asked.dns;
        eventually("DNS to answer", || async { Ok(answers(server).await.ok()) }).await?;
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(1)));
        let asking = {
            let stop = stop.clone();
            tokio::spawn(async move {
                let mut count = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    answers(server).await.with_context(|| format!("after {count} answers"))?;
                    count += 1;
                    tokio::time::sleep(DNS_PAUSE).await;
                }
                Ok(count)
            })
        };
        let url = format!("http://{}/v1/catalog/register", by.http);
        let writing = tokio::spawn(write(url, stop.clone(), written.clone()));
        Ok(Self { stop, written, writing, asking })
    }

    /// How many writes were acknowledged so far.
    pub fn count(&self) -> usize {
        self.written.load(Ordering::Relaxed)
    }

    /// Waits until `more` further writes are acknowledged.
    pub async fn go_on(&self, more: usize) -> Result<()> {
        let until = self.count() + more;
        eventually("writes to go on", || async { Ok((self.count() >= until).then_some(())) }).await
    }

    /// Stops, and says what was done.
    pub async fn stop(self) -> Result<Record> {
        self.stop.store(true, Ordering::Relaxed);
        let (written, answers) = (self.writing.await??, self.asking.await??);
        let longest_stall = written.windows(2).map(|pair| pair[1].1 - pair[0].1).max().unwrap_or_default();
        let acknowledged = std::iter::once(0).chain(written.into_iter().map(|(number, _)| number)).collect();
        Ok(Record { acknowledged, longest_stall, answers })
    }
}

impl Record {
    /// Fails when an agent does not show all that was acknowledged.
    pub async fn check_nothing_lost(&self, agent: &TestAgent) -> Result<()> {
        let found = eventually("a read that is surely current", || async {
            Ok(Some(agent.get("/v1/catalog/service/bulk?consistent").await?))
        });
        let found = found.await?;
        let rows = found.as_array().context("no list")?;
        let found: BTreeSet<&str> = rows.iter().filter_map(|row| row["ServiceID"].as_str()).collect();
        let is_lost = |number: &&usize| !found.contains(format!("bulk-{number}").as_str());
        let lost: Vec<_> = self.acknowledged.iter().filter(is_lost).collect();
        ensure!(lost.is_empty(), "{} lost {lost:?} of {}", agent.name, self.acknowledged.len());
        Ok(())
    }
}

async fn answers(server: SocketAddr) -> Result<()> {
    let answer = ask(server, "bulk.service.mesh.internal.", "A").await?;
    ensure!(answer.rcode == "No Error" && !answer.records.is_empty(), "{answer:?}");
    Ok(())
}

async fn write(url: String, stop: Arc<AtomicBool>, written: Arc<AtomicUsize>) -> Result<Vec<(usize, Instant)>> {
    let client = http_client(Duration::from_secs(15))?;
    let mut acknowledged = vec![(0, Instant::now())];
    for number in 1.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        // One that is refused or unknown is not repeated: only what was acknowledged counts.
        let response = client.put(&url).json(&registration(number)).send().await?;
        if response.status().is_success() {
            acknowledged.push((number, Instant::now()));
            written.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(acknowledged)
}
