//! DNS: CPU seconds of the server per million queries, the figure that does not depend on the generator.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use hickory_proto::{
    op::{Message, MessageType, OpCode, Query},
    rr::{Name, RecordType},
    serialize::binary::BinEncodable,
};
use muster_tests::harness::{TestAgent, TestCluster};
use serde_json::json;
use tokio::net::UdpSocket;

use super::{ROUNDS, line, median, nsd::Nsd};

/// Names that are asked, with three instances each.
const SERVICES: u64 = 1_000;
/// Questions per round.
const QUESTIONS: usize = 200_000;
/// Sockets, each with one question under way.
const SOCKETS: usize = 64;
/// A lost datagram must not hang the round.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is asked: its name for people, the type, the names' first part, and how many answers each must bring.
const KINDS: [(&str, RecordType, &str, u16); 3] =
    [("A", RecordType::A, "svc", 3), ("SRV", RecordType::SRV, "svc", 3), ("unknown name", RecordType::A, "none", 0)];

pub(super) async fn run() -> Result<()> {
    let cluster = TestCluster::start_with(1, "")?;
    let agent = TestAgent::start(&cluster, "bench").await?;
    for number in 0..SERVICES * 3 {
        let body = json!({"Node": format!("n{}", number % 30), "Address": format!("10.0.0.{}", number % 30 + 1),
                          "Service": {"ID": format!("s-{number}"), "Service": format!("svc-{}", number % SERVICES),
                                      "Port": 80, "Address": format!("10.1.{}.{}", number / 250, number % 250 + 1)}});
        agent.put("/v1/catalog/register", &body).await?;
    }
    // A default read waits for the last of the writes, so the replica that DNS answers from has them all.
    agent.get("/v1/catalog/services").await?;
    let nsd = Nsd::start(SERVICES).await?;
    if nsd.is_none() {
        line("nsd", "not installed: no ratio is taken");
    }
    for (what, kind, prefix, answers) in KINDS {
        let questions = questions(kind, prefix)?;
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        // Interleaved, so that a slow minute of the machine hits both.
        for _ in 0..ROUNDS {
            ours.push(round(agent.dns, &questions, answers, || agent.process.cpu_time()).await?);
            if let Some(nsd) = &nsd {
                theirs.push(round(nsd.address, &questions, answers, || nsd.cpu_time()).await?);
            }
        }
        let cpu = show(&format!("DNS {what}"), &ours);
        if nsd.is_some() {
            let reference = show(&format!("DNS {what}, nsd"), &theirs);
            line(&format!("DNS {what}, ratio to nsd"), &format!("{:.2}", cpu / reference));
        }
    }
    Ok(())
}

fn show(what: &str, rounds: &[(f64, f64)]) -> f64 {
    let cpu = median(rounds.iter().map(|round| round.0).collect());
    let rate = median(rounds.iter().map(|round| round.1).collect());
    line(what, &format!("{cpu:.1} CPU s per million ({rate:.0}/s here)"));
    cpu
}

fn questions(kind: RecordType, prefix: &str) -> Result<Arc<Vec<Vec<u8>>>> {
    let questions = (0..SERVICES).map(|number| {
        let mut message = Message::new(1, MessageType::Query, OpCode::Query);
        let name = Name::from_ascii(format!("{prefix}-{number}.service.mesh.internal."))?;
        message.add_query(Query::query(name, kind));
        anyhow::Ok(message.to_bytes()?)
    });
    Ok(Arc::new(questions.collect::<Result<_>>()?))
}

/// CPU seconds per million questions, and questions per second.
async fn round(
    server: SocketAddr,
    questions: &Arc<Vec<Vec<u8>>>,
    answers: u16,
    cpu_time: impl Fn() -> Result<Duration>,
) -> Result<(f64, f64)> {
    let (before, began) = (cpu_time()?, Instant::now());
    let mut tasks = Vec::new();
    for first in 0..SOCKETS {
        let questions = questions.clone();
        tasks.push(tokio::spawn(async move {
            let socket = UdpSocket::bind("127.0.0.1:0").await?;
            socket.connect(server).await?;
            let mut buffer = [0; 2048];
            for turn in 0..QUESTIONS / SOCKETS {
                socket.send(&questions[(first + turn * SOCKETS) % questions.len()]).await?;
                let length = tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await??;
                ensure!(length > 12, "a short answer");
                let found = u16::from_be_bytes([buffer[6], buffer[7]]);
                ensure!(found == answers, "{found} answers instead of {answers}");
            }
            anyhow::Ok(())
        }));
    }
    for task in tasks {
        task.await??;
    }
    let (cpu, seconds) = (cpu_time()? - before, began.elapsed().as_secs_f64());
    let asked = (QUESTIONS / SOCKETS * SOCKETS) as f64;
    Ok((cpu.as_secs_f64() * 1e6 / asked, asked / seconds))
}
