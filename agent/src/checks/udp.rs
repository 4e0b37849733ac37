//! The UDP probe: a datagram is sent and must be answered. Silence is bad: a dead service is silent too.

use std::{io, net::SocketAddr};

use tokio::net::UdpSocket;

use super::{Outcome, Tools, conversation::printable, guard};

/// The largest answer that is looked at.
const MAX_ANSWER: usize = 4096;

/// Sends to one address after the other until one answers or all have refused.
pub(super) async fn probe(target: &str, send: &str, expect: &str, allow_link_local: bool, tools: &Tools) -> Outcome {
    match exchange(target, send, allow_link_local, tools).await {
        Err(why) => Outcome::critical(&format!("UDP {target}: {why}")),
        Ok(answer) if holds(&answer, expect.as_bytes()) => {
            Outcome::passing(&format!("UDP {target}: answered with {} bytes: {}", answer.len(), printable(&answer)))
        }
        Ok(answer) => Outcome::critical(&format!("UDP {target}: the answer lacks {expect:?}: {}", printable(&answer))),
    }
}

async fn exchange(target: &str, send: &str, allow_link_local: bool, tools: &Tools) -> Result<Vec<u8>, String> {
    let addresses = guard::resolve(target, allow_link_local, &tools.resolver).await?;
    guard::race(&addresses, |address| ask(address, send.as_bytes())).await.map_err(|error| error.to_string())
}

async fn ask(address: SocketAddr, send: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr = if address.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0; 16], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    // Connected, so that only this address answers and a refusal is heard.
    socket.connect(address).await?;
    socket.send(send).await?;
    let mut answer = vec![0; MAX_ANSWER];
    let length = socket.recv(&mut answer).await?;
    answer.truncate(length);
    Ok(answer)
}

fn holds(answer: &[u8], part: &[u8]) -> bool {
    part.is_empty() || answer.windows(part.len()).any(|window| window == part)
}
