//! A question to a DNS server, by a library that is not ours.

use std::{net::SocketAddr, str::FromStr, time::Duration};

use anyhow::{Context, Result, ensure};
use hickory_proto::{
    op::{Message, MessageType, OpCode, Query},
    rr::{Name, RData, RecordType},
    serialize::binary::{BinDecodable, BinEncodable},
};
use tokio::net::UdpSocket;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What came back.
#[derive(Debug)]
pub struct DnsAnswer {
    /// The response code, for example `No Error`.
    pub rcode: String,
    /// The addresses or SRV `target:port` of the answer section.
    pub records: Vec<String>,
}

/// Asks over UDP.
pub async fn ask(server: SocketAddr, name: &str, kind: &str) -> Result<DnsAnswer> {
    let mut message = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    let kind = RecordType::from_str(kind).map_err(|error| anyhow::anyhow!("{kind}: {error}"))?;
    message.add_query(Query::query(Name::from_str(name)?, kind));
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    socket.connect(server).await?;
    socket.send(&message.to_bytes()?).await?;
    let mut buffer = vec![0; 4096];
    let length = tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await.context("no answer")??;
    let answer = Message::from_bytes(&buffer[..length])?;
    ensure!(answer.id == message.id, "an answer to another question");
    let records = answer.answers.iter().map(|record| match &record.data {
        RData::SRV(srv) => format!("{}:{}", srv.target, srv.port),
        other => other.to_string(),
    });
    let mut records: Vec<String> = records.collect();
    records.sort();
    Ok(DnsAnswer { rcode: answer.response_code.to_string(), records })
}
