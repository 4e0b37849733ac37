//! One UDP socket: what can be answered at once is, on the spot; what has to wait moves to a task, of which few exist.

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use hickory_server::net::xfer::Protocol;
use tokio::{net::UdpSocket, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    DnsError,
    config::MAX_UDP_SIZE,
    handler::Handler,
    wire::{self, Read},
};

/// How many replies of a socket may wait, for a service to be held or for room in the socket's buffer.
const MAX_WAITING: usize = 512;
/// How many datagrams are taken before a stop is looked for again.
const BURST: usize = 64;
/// Errors of single datagrams come and go; so many in a row mean that the socket is broken.
const MAX_ERRORS_IN_A_ROW: u32 = 100;

/// How long waiting replies may take when the server stops: longer than the wait for a service.
const DRAIN: Duration = Duration::from_secs(1);

/// Answers until told to stop; then what waits is finished.
pub(crate) async fn serve(socket: UdpSocket, handler: Arc<Handler>, stop: CancellationToken) -> Result<(), DnsError> {
    let mut task = SocketTask { socket: Arc::new(socket), handler, waiting: JoinSet::new(), errors: 0 };
    let mut buffer = vec![0; usize::from(MAX_UDP_SIZE)];
    let stopped = stop.cancelled();
    tokio::pin!(stopped);
    loop {
        let ready = tokio::select! {
            () = &mut stopped => break,
            ready = task.socket.readable() => ready,
        };
        if let Err(error) = ready {
            task.count(error)?;
        }
        while task.waiting.try_join_next().is_some() {}
        task.take_burst(&mut buffer)?;
    }
    // What is left is cut off by dropping it.
    let _cut_off = timeout(DRAIN, async { while task.waiting.join_next().await.is_some() {} }).await;
    Ok(())
}

/// Answers the datagrams of a socket.
struct SocketTask {
    socket: Arc<UdpSocket>,
    handler: Arc<Handler>,
    waiting: JoinSet<()>,
    errors: u32,
}

impl SocketTask {
    /// Answers what has arrived, as far as it is no more than a burst.
    fn take_burst(&mut self, buffer: &mut [u8]) -> Result<(), DnsError> {
        for _ in 0..BURST {
            match self.socket.try_recv_from(buffer) {
                Ok((length, client)) => {
                    self.errors = 0;
                    self.take(buffer.get(..length).unwrap_or_default(), client);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => self.count(error)?,
            }
        }
        Ok(())
    }

    fn count(&mut self, source: io::Error) -> Result<(), DnsError> {
        self.errors += 1;
        tracing::debug!(error = %source, "receiving on a UDP socket failed");
        if self.errors >= MAX_ERRORS_IN_A_ROW { Err(DnsError::Receive { source }) } else { Ok(()) }
    }

    fn take(&mut self, bytes: &[u8], client: SocketAddr) {
        // Nobody listens on port 0: the sender's address is forged.
        if client.port() == 0 {
            return;
        }
        let reply = match wire::read(self.handler.metrics(), bytes.to_vec(), client, Protocol::Udp) {
            Read::Nothing => return,
            Read::Refused(reply) => reply,
            Read::Request(request) => match self.handler.write_at_once(&request) {
                Some(reply) => reply,
                None => {
                    let (socket, handler) = (self.socket.clone(), self.handler.clone());
                    return self.wait(async move {
                        if let Some(reply) = handler.write_in_time(&request).await {
                            send(&socket, &reply, client).await;
                        }
                    });
                }
            },
        };
        match self.socket.try_send_to(&reply, client) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let socket = self.socket.clone();
                self.wait(async move { send(&socket, &reply, client).await });
            }
            sent => note(sent, client),
        }
    }

    fn wait(&mut self, reply: impl Future<Output = ()> + Send + 'static) {
        if self.waiting.len() < MAX_WAITING {
            self.waiting.spawn(reply);
        } else {
            self.handler.metrics().dropped.increment(1);
        }
    }
}

async fn send(socket: &UdpSocket, reply: &[u8], client: SocketAddr) {
    note(socket.send_to(reply, client).await, client);
}

fn note(sent: io::Result<usize>, client: SocketAddr) {
    if let Err(error) = sent {
        tracing::debug!(%client, %error, "sending a reply failed");
    }
}
