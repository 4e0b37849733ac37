//! Writes and linearizable reads, three members each with their data on disk, one and sixty-four clients.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use muster_catalog::{Command, Name, port::Sink};
use muster_registry::client::{Client, ClientConfig};
use muster_tests::{
    harness::{TestAgent, TestCluster, eventually, http_client},
    load::registration_command,
};

use super::{
    super::{line, median, milliseconds, percentile, size::Size},
    Row,
    etcd::{Etcd, EtcdClient},
};

/// The value of an etcd key: about what a registration takes on the wire.
const VALUE_BYTES: usize = 200;
/// Keys and instances that are read.
const READ: u64 = 100;
/// Clients at once.
const CLIENTS: [usize; 2] = [1, 64];

/// One client's call, again and again.
type Call = Box<dyn FnMut() -> BoxFuture<'static, Result<()>> + Send>;

/// What one round came to.
struct Round {
    rate: f64,
    p50: f64,
    p99: f64,
    /// Microseconds of all servers for each call.
    cpu: f64,
}

pub(super) async fn run(size: Size) -> Result<Vec<Row>> {
    let Some(etcd) = Etcd::start().await? else {
        line("etcd", "not installed (etcd-server): nothing is measured beside it");
        return Ok(Vec::new());
    };
    let mut stage = Stage::set(etcd).await?;
    let mut rows = Vec::new();
    for clients in CLIENTS {
        for (figure, reads, least) in [("writes", false, 1.3), ("linearizable reads", true, 2.0)] {
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            // In turns, so that a slow minute of the machine hits both.
            for _ in 0..size.rounds {
                ours.push(stage.round(size, clients, reads, true).await?);
                theirs.push(stage.round(size, clients, reads, false).await?);
            }
            let of = |rounds: &[Round], figure: fn(&Round) -> f64| median(rounds.iter().map(figure).collect());
            let said = |rounds: &[Round]| {
                let (rate, cpu) = (of(rounds, |round| round.rate), of(rounds, |round| round.cpu));
                let (p50, p99) = (of(rounds, |round| round.p50), of(rounds, |round| round.p99));
                format!("{rate:.0}/s {p50:.1}/{p99:.1} ms {cpu:.0} µs CPU")
            };
            let ratio = of(&ours, |round| round.rate) / of(&theirs, |round| round.rate);
            let aimed = clients == 64;
            let aim = if reads { "≥ 2 × etcd" } else { "≥ 1.3 × etcd" };
            rows.push(Row {
                figure: format!("{figure}, {clients} clients, beside etcd"),
                ours: said(&ours),
                peer: said(&theirs),
                ratio: Some(ratio),
                aim: if aimed { aim } else { "" },
                met: aimed.then_some(ratio >= least),
            });
        }
    }
    Ok(rows)
}

/// Both registries, and a client of each one's leader. Both write natively (gRPC, one connection, the same library).
/// Consumers read Muster over HTTP at their agent, so that is what is measured; etcd they read natively.
struct Stage {
    cluster: TestCluster,
    agent: TestAgent,
    native: Arc<Client>,
    http: reqwest::Client,
    etcd: Etcd,
    peer: EtcdClient,
    numbers: Arc<AtomicU64>,
}

impl Stage {
    async fn set(etcd: Etcd) -> Result<Self> {
        let cluster = TestCluster::start_with(3, "")?;
        let agent = TestAgent::start(&cluster, "bench").await?;
        let address = eventually("a leader", || async {
            Ok(Some(agent.leader().await?).filter(|leader| cluster.member_at(leader).is_some()))
        });
        let native = Arc::new(Client::new(ClientConfig::new(vec![address.await?])));
        let leader = etcd.leader().await?;
        let mut client = etcd.client(leader)?;
        for number in 0..READ {
            native.submit(readable(number)).await?;
            client.put(readable_key(number), value()).await?;
        }
        let (http, numbers) = (http_client(Duration::from_secs(30))?, Arc::new(AtomicU64::new(0)));
        Ok(Self { cluster, agent, native, http, etcd, peer: client, numbers })
    }

    fn cpu_time(&mut self, ours: bool, reads: bool) -> Result<Duration> {
        if !ours {
            return self.etcd.cpu_time();
        }
        let members = (0..3).map(|member| self.cluster.process(member).context("a member is down")?.cpu_time());
        let members: Duration = members.sum::<Result<Duration>>()?;
        Ok(if reads { members + self.agent.process.cpu_time()? } else { members })
    }

    async fn round(&mut self, size: Size, clients: usize, reads: bool, ours: bool) -> Result<Round> {
        let calls: Vec<Call> = (0..clients).map(|_| self.call(reads, ours)).collect();
        let before = self.cpu_time(ours, reads)?;
        let began = Instant::now();
        let tasks: Vec<_> = calls
            .into_iter()
            .map(|mut call| {
                tokio::spawn(async move {
                    let mut taken = Vec::new();
                    while began.elapsed() < size.round {
                        let sent = Instant::now();
                        call().await?;
                        taken.push(milliseconds(sent.elapsed()));
                    }
                    anyhow::Ok(taken)
                })
            })
            .collect();
        let mut taken = Vec::new();
        for task in tasks {
            taken.extend(task.await??);
        }
        let seconds = began.elapsed().as_secs_f64();
        let cpu = (self.cpu_time(ours, reads)? - before).as_secs_f64() * 1e6 / taken.len() as f64;
        taken.sort_by(f64::total_cmp);
        let at = |share| percentile(&taken, share).unwrap_or(f64::NAN);
        Ok(Round { rate: taken.len() as f64 / seconds, p50: at(0.5), p99: at(0.99), cpu })
    }

    fn call(&self, reads: bool, ours: bool) -> Call {
        let numbers = self.numbers.clone();
        let next = move || numbers.fetch_add(1, Ordering::Relaxed);
        if ours && reads {
            let (http, base) = (self.http.clone(), format!("http://{}", self.agent.http));
            return Box::new(move || {
                let path = format!("{base}/v1/catalog/service/read-{}?consistent", next() % READ);
                let asked = http.get(path).send();
                Box::pin(async move {
                    let answer = asked.await?;
                    ensure!(answer.status().is_success(), "{}", answer.status());
                    ensure!(answer.bytes().await?.len() > 2, "an empty answer");
                    Ok(())
                })
            });
        }
        if ours {
            let native = self.native.clone();
            return Box::new(move || {
                let (native, number) = (native.clone(), next());
                Box::pin(async move {
                    native.submit(registration_command(number)).await?;
                    Ok(())
                })
            });
        }
        let client = self.peer.clone();
        Box::new(move || {
            let (mut client, number) = (client.clone(), next());
            Box::pin(async move {
                if reads {
                    ensure!(client.read(readable_key(number % READ)).await? == 1, "no such key");
                    return Ok(());
                }
                client.put(key(number), value()).await
            })
        })
    }
}

/// A registration that is read and never joined by others: a read brings one row on both sides.
fn readable(number: u64) -> Command {
    let mut command = registration_command(number);
    if let Command::Register(registration) = &mut command {
        let instance = &mut registration.instances[0];
        instance.id = format!("read-{number}").into();
        instance.service = Name::lookup(&format!("read-{number}"));
    }
    command
}

fn readable_key(number: u64) -> Bytes {
    format!("/services/read-{number}/ext/read-{number}").into()
}

fn key(number: u64) -> Bytes {
    format!("/services/svc-{}/ext-{}/s-{number}", number % 1000, number % 500).into()
}

fn value() -> Bytes {
    Bytes::from_static(&[b'x'; VALUE_BYTES])
}
