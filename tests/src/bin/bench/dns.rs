//! DNS: CPU seconds of the agent per million queries, the figure that does not depend on the generator.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hickory_proto::{
    op::{Message, MessageType, OpCode, Query},
    rr::{Name, RecordType},
    serialize::binary::BinEncodable,
};
use muster_tests::harness::{TestAgent, TestCluster};
use serde_json::json;
use tokio::net::UdpSocket;

use super::{ROUNDS, line, median};

/// Names that are asked, with three instances each.
const SERVICES: u64 = 1_000;
/// Questions per round.
const QUESTIONS: usize = 200_000;
/// Sockets, each with one question under way.
const SOCKETS: usize = 64;
/// A lost datagram must not hang the round.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) async fn run() -> Result<()> {
    let cluster = TestCluster::start_with(1, "")?;
    let agent = TestAgent::start(&cluster, "bench").await?;
    for number in 0..SERVICES * 3 {
        let body = json!({"Node": format!("n{}", number % 30), "Address": format!("10.0.0.{}", number % 30 + 1),
                          "Service": {"ID": format!("s-{number}"), "Service": format!("svc-{}", number % SERVICES),
                                      "Port": 80, "Address": format!("10.1.{}.{}", number / 250, number % 250 + 1)}});
        agent.put("/v1/catalog/register", &body).await?;
    }
    let kinds = [("A", RecordType::A, "svc"), ("SRV", RecordType::SRV, "svc"), ("unknown name", RecordType::A, "none")];
    let mut results = vec![(Vec::new(), Vec::new()); kinds.len()];
    for _ in 0..ROUNDS {
        for ((_, kind, prefix), result) in kinds.iter().zip(&mut results) {
            let (cpu, rate) = round(&agent, *kind, prefix).await?;
            result.0.push(cpu);
            result.1.push(rate);
        }
    }
    for ((what, ..), (cpu, rate)) in kinds.iter().zip(results) {
        let (cpu, rate) = (median(cpu), median(rate));
        line(
            &format!("DNS {what}"),
            &format!("{cpu:.1} CPU s per million ({:.0} per CPU s; {rate:.0}/s here)", 1e6 / cpu),
        );
    }
    Ok(())
}

async fn round(agent: &TestAgent, kind: RecordType, prefix: &str) -> Result<(f64, f64)> {
    let questions: Vec<Vec<u8>> = (0..SERVICES)
        .map(|number| {
            let mut message = Message::new(1, MessageType::Query, OpCode::Query);
            let name = Name::from_ascii(format!("{prefix}-{number}.service.mesh.internal."))?;
            message.add_query(Query::query(name, kind));
            anyhow::Ok(message.to_bytes()?)
        })
        .collect::<Result<_>>()?;
    let questions = std::sync::Arc::new(questions);
    let (before, began) = (agent.process.cpu_time()?, Instant::now());
    let mut tasks = Vec::new();
    for first in 0..SOCKETS {
        let (questions, server) = (questions.clone(), agent.dns);
        tasks.push(tokio::spawn(async move {
            let socket = UdpSocket::bind("127.0.0.1:0").await?;
            socket.connect(server).await?;
            let mut buffer = [0; 2048];
            for turn in 0..QUESTIONS / SOCKETS {
                socket.send(&questions[(first + turn * SOCKETS) % questions.len()]).await?;
                let length = tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await??;
                ensure!(length > 12, "a short answer");
            }
            anyhow::Ok(())
        }));
    }
    for task in tasks {
        task.await??;
    }
    let (cpu, seconds) = (agent.process.cpu_time()? - before, began.elapsed().as_secs_f64());
    let asked = (QUESTIONS / SOCKETS * SOCKETS) as f64;
    Ok((cpu.as_secs_f64() * 1e6 / asked, asked / seconds))
}
