//! The TCP probe: a connection that is accepted is good; with TLS, one whose certificate holds.

use super::{Outcome, Tools, conversation::open_for};
use crate::definition::SocketProbe;

/// Connects, and shakes hands if asked.
pub(super) async fn probe(probe: &SocketProbe, tools: &Tools) -> Outcome {
    let how = if probe.tls.is_some() { "TCP+TLS" } else { "TCP" };
    match open_for(probe, None, tools).await {
        Ok(_) => Outcome::passing(&format!("{how} connect {}: Success", probe.target)),
        Err(why) => Outcome::critical(&format!("{how} connect {}: {why}", probe.target)),
    }
}
