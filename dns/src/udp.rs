//! One UDP socket: what can be answered at once is, on the spot; what has to wait moves to a task, of which few exist.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::poll;
use hickory_server::net::xfer::Protocol;
use tokio::{net::UdpSocket, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{DnsError, config::MAX_UDP_SIZE, handler::Handler, wire};

/// How many replies of a socket may wait, for a service to be held or for room in the socket's buffer.
const MAX_WAITING: usize = 512;
/// Errors of single datagrams come and go; so many in a row mean that the socket is broken.
const MAX_ERRORS_IN_A_ROW: u32 = 100;

/// How long waiting replies may take when the server stops: longer than the wait for a service.
const DRAIN: Duration = Duration::from_secs(1);

/// Answers until told to stop; then what waits is finished.
pub(crate) async fn serve(socket: UdpSocket, handler: Arc<Handler>, stop: CancellationToken) -> Result<(), DnsError> {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; usize::from(MAX_UDP_SIZE)];
    let mut waiting = JoinSet::new();
    let mut errors = 0;
    let stopped = stop.cancelled();
    tokio::pin!(stopped);
    loop {
        let received = tokio::select! {
            () = &mut stopped => break,
            received = socket.recv_from(&mut buffer) => received,
        };
        while waiting.try_join_next().is_some() {}
        let (length, client) = match received {
            Ok(received) => received,
            Err(source) => {
                errors += 1;
                tracing::debug!(error = %source, "receiving on a UDP socket failed");
                if errors >= MAX_ERRORS_IN_A_ROW {
                    return Err(DnsError::Receive { source });
                }
                continue;
            }
        };
        errors = 0;
        let Some(bytes) = buffer.get(..length).map(<[u8]>::to_vec) else { continue };
        let mut reply = Box::pin(reply(socket.clone(), handler.clone(), bytes, client));
        if poll!(&mut reply).is_pending() {
            if waiting.len() < MAX_WAITING {
                waiting.spawn(reply);
            } else {
                handler.metrics().dropped.increment(1);
            }
        }
    }
    // What is left is cut off by dropping it.
    let _cut_off = timeout(DRAIN, async { while waiting.join_next().await.is_some() {} }).await;
    Ok(())
}

async fn reply(socket: Arc<UdpSocket>, handler: Arc<Handler>, bytes: Vec<u8>, client: SocketAddr) {
    // Nobody listens on port 0: the sender's address is forged.
    if client.port() == 0 {
        return;
    }
    let Some(bytes) = wire::exchange(&handler, bytes, client, Protocol::Udp).await else { return };
    if let Err(error) = send(&socket, &bytes, client).await {
        tracing::debug!(%client, %error, "sending a reply failed");
    }
}

async fn send(socket: &UdpSocket, bytes: &[u8], client: SocketAddr) -> io::Result<()> {
    socket.send_to(bytes, client).await.map(|_| ())
}
