//! The Redis probe: PING must be answered with PONG, or with a demand for a password, which a serving Redis makes.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    Outcome, Tools,
    conversation::{Line, broken, open_for, printable},
};
use crate::definition::SocketProbe;

/// The longest answer to PING: errors are a line.
const MAX_LINE: usize = 512;

/// Pings.
pub(super) async fn probe(probe: &SocketProbe, tools: &Tools) -> Outcome {
    let exchange = async {
        let mut line = open_for(probe, None, tools).await?;
        line.write_all(b"PING\r\n").await.map_err(|error| broken(&error))?;
        line.flush().await.map_err(|error| broken(&error))?;
        read_line(&mut *line).await
    };
    let target = &probe.target;
    match exchange.await {
        Ok(answer) if answer.starts_with(b"+PONG") || answer.starts_with(b"-NOAUTH") => {
            Outcome::passing(&format!("Redis PING {target}: {}", printable(&answer)))
        }
        Ok(answer) => Outcome::critical(&format!("Redis PING {target}: answered {}", printable(&answer))),
        Err(why) => Outcome::critical(&format!("Redis PING {target}: {why}")),
    }
}

async fn read_line(line: &mut dyn Line) -> Result<Vec<u8>, String> {
    let mut answer = Vec::new();
    while answer.len() < MAX_LINE && !answer.ends_with(b"\n") {
        let mut chunk = [0; MAX_LINE];
        match line.read(&mut chunk[..MAX_LINE - answer.len()]).await {
            Ok(0) if answer.is_empty() => return Err("the connection was closed before an answer".to_owned()),
            Ok(0) => break,
            Ok(length) => answer.extend_from_slice(&chunk[..length]),
            Err(error) => return Err(broken(&error)),
        }
    }
    Ok(answer)
}
