//! One TCP listener: few connections, each asking one thing at a time, closed when silent.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use hickory_server::{net::xfer::Protocol, server::Request};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    DnsError,
    handler::Handler,
    places::Places,
    wire::{self, Read},
};

/// After an error that stays a while (no descriptors left), accepting is tried again this much later.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Of errors in a row one in so many is logged: one every five seconds.
const LOGGED_ERRORS: u32 = 50;

/// How long connections may take to finish the reply they are at when the server stops; the rest are cut off.
const DRAIN: Duration = Duration::from_secs(1);

/// What connections share.
#[derive(Clone)]
pub(crate) struct Limits {
    /// How many may be open, over all listeners.
    pub(crate) places: Arc<Places>,
    /// Whose turn it is to have an answer made. One at a time: a flood of questions with large answers takes the time of
    /// one thread, and everything else in the process has the others.
    pub(crate) turn: Arc<Semaphore>,
    /// How long one may be silent, or slow to take a reply.
    pub(crate) idle: Duration,
}

/// Accepts until told to stop; then every connection finishes the reply it is at.
pub(crate) async fn serve(
    listener: TcpListener,
    handler: Arc<Handler>,
    limits: Limits,
    stop: CancellationToken,
) -> Result<(), DnsError> {
    let mut connections = JoinSet::new();
    let mut errors: u32 = 0;
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        while connections.try_join_next().is_some() {}
        let (stream, client) = match accepted {
            Ok(accepted) => accepted,
            // However long it lasts: questions over UDP need no descriptor, and are answered meanwhile.
            Err(error) => {
                if errors.is_multiple_of(LOGGED_ERRORS) {
                    tracing::warn!(%error, "no TCP connection can be accepted; out of files? raise LimitNOFILE");
                }
                errors = errors.wrapping_add(1);
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        errors = 0;
        // Closing at once tells the client to go elsewhere; leaving it in the backlog would let it hang.
        let Some(place) = limits.places.take(client.ip()) else {
            handler.metrics().refused_connections.increment(1);
            continue;
        };
        let (handler, limits, stop) = (handler.clone(), limits.clone(), stop.clone());
        connections.spawn(async move {
            if let Err(error) = serve_connection(stream, client, &handler, &limits, stop).await {
                tracing::debug!(%client, %error, "a TCP connection ended");
            }
            drop(place);
        });
    }
    // What is left is cut off by dropping it.
    let _cut_off = timeout(DRAIN, async { while connections.join_next().await.is_some() {} }).await;
    Ok(())
}

async fn serve_connection(
    mut stream: TcpStream,
    client: SocketAddr,
    handler: &Handler,
    limits: &Limits,
    stop: CancellationToken,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let idle = limits.idle;
    loop {
        let read = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            read = timeout(idle, read_message(&mut stream)) => read,
        };
        let Ok(Some(bytes)) = read? else { return Ok(()) };
        // What must not be answered has no place on a connection either.
        let reply = match wire::read(handler.metrics(), bytes, client, Protocol::Tcp) {
            Read::Nothing => return Ok(()),
            Read::Refused(reply) => Some(reply),
            Read::Request(request) => answer(handler, &request, &limits.turn).await,
        };
        let Some(reply) = reply else { return Ok(()) };
        let Ok(length) = u16::try_from(reply.len()) else { return Ok(()) };
        let mut framed = Vec::with_capacity(2 + reply.len());
        framed.extend_from_slice(&length.to_be_bytes());
        framed.extend_from_slice(&reply);
        timeout(idle, stream.write_all(&framed)).await??;
    }
}

/// Waits its turn, and gives it up where the answer itself has to be waited for.
async fn answer(handler: &Handler, request: &Request, turn: &Semaphore) -> Option<Vec<u8>> {
    let made = {
        let _turn = turn.acquire().await.ok()?;
        handler.write_at_once(request)
    };
    match made {
        Some(reply) => Some(reply),
        None => handler.write_in_time(request).await,
    }
}

/// Reads a message behind its length; `None` at the end of the connection.
async fn read_message(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 2];
    match stream.read_exact(&mut length).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    };
    let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut bytes).await?;
    Ok(Some(bytes))
}
