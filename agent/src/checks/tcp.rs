//! The TCP probe: a connection that is accepted is good.

use muster_catalog::Status;
use tokio::net::TcpStream;

use super::Outcome;

/// Connects to `host:port`, trying every address that the host has.
pub(super) async fn probe(target: &str) -> Outcome {
    match TcpStream::connect(target).await {
        Ok(_) => Outcome::new(Status::Passing, &format!("TCP connect {target}: Success")),
        Err(error) => Outcome::critical(&format!("TCP connect {target}: {error}")),
    }
}
