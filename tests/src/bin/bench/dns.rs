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

use super::{line, median, nameserver::NameServer, size::Size};

/// Sockets, each with one question under way.
const SOCKETS: usize = 64;
/// How Muster is called beside its peers.
const OURS: &str = "Muster";
/// A lost datagram must not hang the round.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is asked: its name for people, the type, the names' first part, and how many answers each must bring.
const KINDS: [(&str, RecordType, &str, u16); 3] =
    [("A", RecordType::A, "svc", 3), ("SRV", RecordType::SRV, "svc", 3), ("unknown name", RecordType::A, "none", 0)];
/// The same of nodes, of which there are three for each name: to find that there is none must not take a look at each.
const NODES: [(&str, &str, u16); 2] = [("node", "n", 1), ("unknown node", "none", 0)];

/// What one server took for one kind of question, in the median.
pub(super) struct Server {
    /// Its name.
    pub(super) name: &'static str,
    /// CPU seconds per million questions.
    pub(super) cpu: f64,
    /// Questions a second, as far as the generator goes.
    pub(super) rate: f64,
}

/// Prints what Muster takes, its ratio to each name server that is here, and what names of nodes take.
pub(super) async fn run() -> Result<()> {
    let size = Size::FULL;
    let (_cluster, agent) = start(size).await?;
    for (what, servers) in ask_for_services(&agent, size).await? {
        for server in &servers {
            let name = if server.name == OURS { String::new() } else { format!(", {}", server.name) };
            line(
                &format!("DNS {what}{name}"),
                &format!("{:.1} CPU s per million ({:.0}/s here)", server.cpu, server.rate),
            );
        }
        for peer in &servers[1..] {
            line(&format!("DNS {what}, ratio to {}", peer.name), &format!("{:.2}", servers[0].cpu / peer.cpu));
        }
    }
    for (what, cpu) in ask_for_nodes(&agent, size).await? {
        line(&format!("DNS {what}, of {} nodes", size.names * 3), &format!("{cpu:.1} CPU s per million"));
    }
    Ok(())
}

/// Asks Muster and its peers the same questions, in turns. Muster comes first.
pub(super) async fn measure(size: Size) -> Result<Vec<(&'static str, Vec<Server>)>> {
    let (_cluster, agent) = start(size).await?;
    ask_for_services(&agent, size).await
}

/// An agent that holds the names, with three instances each, every one on a node of its own.
async fn start(size: Size) -> Result<(TestCluster, TestAgent)> {
    let cluster = TestCluster::start_with(1, "")?;
    let agent = TestAgent::start(&cluster, "bench").await?;
    for number in 0..size.names * 3 {
        let body = json!({"Node": format!("n-{number}"), "Address": format!("10.0.{}.{}", number / 250, number % 250 + 1),
                          "Service": {"ID": format!("s-{number}"), "Service": format!("svc-{}", number % size.names),
                                      "Port": 80, "Address": format!("10.1.{}.{}", number / 250, number % 250 + 1)}});
        agent.put("/v1/catalog/register", &body).await?;
    }
    // A default read waits for the last of the writes, so the replica that DNS answers from has them all.
    agent.get("/v1/catalog/services").await?;
    Ok((cluster, agent))
}

/// What known and unknown names of nodes take, in turns.
async fn ask_for_nodes(agent: &TestAgent, size: Size) -> Result<Vec<(&'static str, f64)>> {
    let mut rounds = NODES.map(|_| Vec::new());
    for _ in 0..size.rounds {
        for ((_, prefix, answers), rounds) in NODES.iter().zip(&mut rounds) {
            let questions = questions(RecordType::A, prefix, "node", size.names * 3)?;
            let cpu_time = || agent.process.cpu_time();
            rounds.push(round(agent.dns, &questions, *answers, size.questions, cpu_time).await?.0);
        }
    }
    Ok(NODES.iter().zip(rounds).map(|((what, ..), rounds)| (*what, median(rounds))).collect())
}

async fn ask_for_services(agent: &TestAgent, size: Size) -> Result<Vec<(&'static str, Vec<Server>)>> {
    let mut peers = Vec::new();
    for (name, started) in [("nsd", NameServer::nsd(size.names).await?), ("knot", NameServer::knot(size.names).await?)]
    {
        match started {
            Some(peer) => peers.push(peer),
            None => line(name, "not installed: no ratio is taken"),
        }
    }
    let mut measured = Vec::new();
    for (what, kind, prefix, answers) in KINDS {
        let questions = questions(kind, prefix, "service", size.names)?;
        let mut rounds: Vec<Vec<(f64, f64)>> = vec![Vec::new(); peers.len() + 1];
        // Interleaved, so that a slow minute of the machine hits all.
        for _ in 0..size.rounds {
            rounds[0].push(round(agent.dns, &questions, answers, size.questions, || agent.process.cpu_time()).await?);
            for (peer, rounds) in peers.iter().zip(&mut rounds[1..]) {
                rounds.push(round(peer.address, &questions, answers, size.questions, || peer.cpu_time()).await?);
            }
        }
        let names = std::iter::once(OURS).chain(peers.iter().map(|peer| peer.name));
        let servers = names.zip(rounds).map(|(name, rounds)| Server {
            name,
            cpu: median(rounds.iter().map(|round| round.0).collect()),
            rate: median(rounds.iter().map(|round| round.1).collect()),
        });
        measured.push((what, servers.collect()));
    }
    Ok(measured)
}

fn questions(kind: RecordType, prefix: &str, tree: &str, names: u64) -> Result<Arc<Vec<Vec<u8>>>> {
    let questions = (0..names).map(|number| {
        let mut message = Message::new(1, MessageType::Query, OpCode::Query);
        let name = Name::from_ascii(format!("{prefix}-{number}.{tree}.mesh.internal."))?;
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
    count: usize,
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
            for turn in 0..count / SOCKETS {
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
    let asked = (count / SOCKETS * SOCKETS) as f64;
    Ok((cpu.as_secs_f64() * 1e6 / asked, asked / seconds))
}
