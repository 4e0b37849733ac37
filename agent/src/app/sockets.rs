//! What a process listens on, bound before anything starts.

use std::{io, net::SocketAddr};

use tokio::net::{TcpListener, TcpSocket, UdpSocket};

use super::StartError;
use crate::config::Config;

/// How many connections may wait to be accepted. The usual 128 are too few when all of a fleet's clients come back at
/// once: who finds no room tries again after a second. The system may allow less (`net.core.somaxconn`).
const BACKLOG: u32 = 4096;

/// What an agent listens on, bound before anything starts.
pub(super) struct Sockets {
    pub(super) http: TcpListener,
    pub(super) xds: TcpListener,
    /// The two of each address have the same port.
    pub(super) dns: Vec<(TcpListener, UdpSocket)>,
}

impl Sockets {
    pub(super) async fn bind(config: &Config) -> Result<Self, StartError> {
        let http = bind_tcp("HTTP", "http.listen", config.http.listen).await?;
        let xds = bind_tcp("xDS", "xds.listen", config.xds.listen).await?;
        let mut dns = Vec::new();
        for address in &config.dns.listen {
            dns.push(bind_dns(*address).await?);
        }
        Ok(Self { http, xds, dns })
    }
}

/// A listener; a failure names the key that sets its address.
pub(super) async fn bind_tcp(
    what: &'static str,
    key: &'static str,
    address: SocketAddr,
) -> Result<TcpListener, StartError> {
    listen(address).map_err(|source| StartError::Bind { what, address, key, source })
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restart does not wait for the connections of the last run to be forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// The same port for UDP and TCP; with port 0 the system's choice for one may be taken for the other, so it is tried again.
async fn bind_dns(address: SocketAddr) -> Result<(TcpListener, UdpSocket), StartError> {
    /// Ports that are free for TCP are nearly always free for UDP.
    const ATTEMPTS: usize = 10;
    let failed = |source| StartError::Bind { what: "DNS", address, key: "dns.listen", source };
    let mut attempts = 0;
    loop {
        attempts += 1;
        let tcp = bind_tcp("DNS", "dns.listen", address).await?;
        let chosen = tcp.local_addr().map_err(failed)?;
        match UdpSocket::bind(chosen).await {
            Ok(udp) => return Ok((tcp, udp)),
            Err(_) if address.port() == 0 && attempts < ATTEMPTS => {}
            Err(source) => return Err(failed(source)),
        }
    }
}

/// What to do about an address that cannot be had.
pub(super) fn remedy(source: &io::Error, key: &str) -> String {
    match source.kind() {
        io::ErrorKind::PermissionDenied => format!(
            "a port below 1024 needs CAP_NET_BIND_SERVICE (AmbientCapabilities= in a systemd unit, or setcap): give it to \
             muster, or set {key} to a higher port"
        ),
        io::ErrorKind::AddrInUse => {
            format!("is another muster running? set {key} to a free address, or port 0")
        }
        _ => format!("set {key} to an address of this host"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_cannot_be_had_has_the_remedy_for_its_reason() {
        for (kind, expected) in [
            (io::ErrorKind::PermissionDenied, "CAP_NET_BIND_SERVICE"),
            (io::ErrorKind::AddrInUse, "another muster running? set dns.listen to a free address"),
            (io::ErrorKind::AddrNotAvailable, "set dns.listen to an address of this host"),
        ] {
            let address = SocketAddr::from(([127, 0, 0, 1], 53));
            let error = StartError::Bind { what: "DNS", address, key: "dns.listen", source: kind.into() };
            let text = error.to_string();
            assert!(text.contains(expected), "{text}");
            assert_eq!(text.contains("another muster"), kind == io::ErrorKind::AddrInUse, "{text}");
        }
    }
}
