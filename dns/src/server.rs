//! Starting and stopping: sockets in, tasks out.

use std::{io, net::SocketAddr, sync::Arc};

use muster_catalog::port::Source;
use tokio::{
    net::{TcpListener, UdpSocket},
    runtime::Builder,
    sync::Semaphore,
    task::JoinSet,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    DnsConfig, DnsError, Zones,
    handler::{Clock, Handler},
    places::Places,
    tcp, udp,
};

/// The DNS server.
pub struct Dns;

impl Dns {
    /// Checks the configuration and answers on bound sockets until `stop` is cancelled. Must be called within a
    /// tokio runtime, and after the metrics recorder is installed.
    pub fn start(
        config: DnsConfig,
        udp: Vec<UdpSocket>,
        tcp: Vec<TcpListener>,
        source: Arc<dyn Source>,
        clock: Clock,
        stop: CancellationToken,
    ) -> Result<DnsHandle, DnsError> {
        let zones = Zones::new(&config)?;
        if udp.is_empty() && tcp.is_empty() {
            return Err(DnsError::NoSockets);
        }
        let address = |result: io::Result<SocketAddr>| result.map_err(|source| DnsError::Address { source });
        let udp_addresses = udp.iter().map(|socket| address(socket.local_addr())).collect::<Result<_, _>>()?;
        let tcp_addresses = tcp.iter().map(|socket| address(socket.local_addr())).collect::<Result<_, _>>()?;
        let handler = Arc::new(Handler::new(zones, config.max_udp_size, source, clock));
        let limits = tcp::Limits {
            places: Places::new(config.tcp_connections),
            turn: Arc::new(Semaphore::new(1)),
            idle: config.tcp_idle_timeout,
        };
        // Its own token: one task's end stops the others, but not the caller's.
        let stop = stop.child_token();
        let mut tasks = JoinSet::new();
        for socket in udp {
            let serve = own_thread(socket, handler.clone(), stop.clone())?;
            tasks.spawn_blocking(serve);
        }
        for listener in tcp {
            tasks.spawn(tcp::serve(listener, handler.clone(), limits.clone(), stop.clone()));
        }
        let ends_with_the_handle = stop.clone().drop_guard();
        Ok(DnsHandle { udp_addresses, tcp_addresses, stop, tasks, _ends_with_the_handle: ends_with_the_handle })
    }
}

/// A UDP socket gets a thread and a scheduler of its own. On the shared one each datagram wakes a second worker to look
/// for more work, which finds none: that was a quarter of the CPU time of a question.
fn own_thread(
    socket: UdpSocket,
    handler: Arc<Handler>,
    stop: CancellationToken,
) -> Result<impl FnOnce() -> Result<(), DnsError> + Send, DnsError> {
    let refused = |source| DnsError::Thread { source };
    let runtime = Builder::new_current_thread().enable_all().build().map_err(refused)?;
    let socket = socket.into_std().map_err(refused)?;
    Ok(move || {
        runtime.block_on(async move {
            let socket = UdpSocket::from_std(socket).map_err(refused)?;
            udp::serve(socket, handler, stop).await
        })
    })
}

/// A running server. Dropping it ends it without waiting for that.
#[derive(Debug)]
pub struct DnsHandle {
    udp_addresses: Vec<SocketAddr>,
    tcp_addresses: Vec<SocketAddr>,
    stop: CancellationToken,
    tasks: JoinSet<Result<(), DnsError>>,
    _ends_with_the_handle: DropGuard,
}

impl DnsHandle {
    /// Where it answers over UDP, in the order of the sockets given.
    pub fn udp_addresses(&self) -> &[SocketAddr] {
        &self.udp_addresses
    }

    /// Where it answers over TCP, in the order of the listeners given.
    pub fn tcp_addresses(&self) -> &[SocketAddr] {
        &self.tcp_addresses
    }

    /// Waits until all has ended: in order after a cancelled token, with the reason if a task failed.
    pub async fn finished(mut self) -> Result<(), DnsError> {
        let mut result = Ok(());
        while let Some(joined) = self.tasks.join_next().await {
            let ended = joined.map_err(DnsError::from).and_then(|ended| ended);
            if ended.is_err() {
                self.stop.cancel();
                result = result.and(ended);
            }
        }
        result
    }

    /// Stops taking questions, finishes what is being answered, and returns.
    pub async fn stop(self) -> Result<(), DnsError> {
        self.stop.cancel();
        self.finished().await
    }
}
