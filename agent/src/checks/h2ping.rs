//! The HTTP/2 probe: a PING that is answered is good.

use h2::{Ping, client};

use super::{Outcome, Tools, conversation::open_for};
use crate::definition::SocketProbe;

/// Begins HTTP/2 and pings.
pub(super) async fn probe(probe: &SocketProbe, tools: &Tools) -> Outcome {
    match ping(probe, tools).await {
        Ok(()) => Outcome::passing("HTTP2 ping was successful"),
        Err(why) => Outcome::critical(&format!("HTTP2 ping {} failed: {why}", probe.target)),
    }
}

async fn ping(probe: &SocketProbe, tools: &Tools) -> Result<(), String> {
    let line = open_for(probe, Some(b"h2"), tools).await?;
    // Without a sender the connection would close itself.
    let (_sender, mut connection) = client::handshake(line).await.map_err(|error| error.to_string())?;
    let mut pings = connection.ping_pong().ok_or("the connection takes no pings")?;
    tokio::select! {
        pong = pings.ping(Ping::opaque()) => pong.map(|_| ()).map_err(|error| error.to_string()),
        ended = connection => Err(match ended {
            Ok(()) => "the server closed the connection".to_owned(),
            Err(error) => error.to_string(),
        }),
    }
}
