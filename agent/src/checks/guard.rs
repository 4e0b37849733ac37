//! Where checks may not go: link-local addresses, which every host has and no service stands behind, and the metadata
//! services of clouds, which hand credentials to whoever asks. Judged after names are resolved, on the very address
//! that is connected to.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// More addresses than this are not tried: the timeout would not reach them.
const MAX_ADDRESSES: usize = 16;

/// The addresses of `host:port` that a check may go to.
pub(super) async fn resolve(target: &str, allow_link_local: bool) -> Result<Vec<SocketAddr>, String> {
    let found = tokio::net::lookup_host(target).await.map_err(|error| format!("cannot be resolved: {error}"))?;
    admit(found.take(MAX_ADDRESSES).collect(), allow_link_local)
}

/// Keeps what a check may go to; if that is nothing, says why.
fn admit(found: Vec<SocketAddr>, allow_link_local: bool) -> Result<Vec<SocketAddr>, String> {
    if allow_link_local {
        return Ok(found);
    }
    let refused = found.iter().find_map(|at| Some((at.ip(), find_offence(at.ip())?)));
    let good: Vec<_> = found.into_iter().filter(|at| find_offence(at.ip()).is_none()).collect();
    match (good.is_empty(), refused) {
        (true, Some((ip, what))) => Err(format!(
            "it leads to {ip}, {what}, where checks may not go; a definition file may say allow_link_local = true"
        )),
        (true, None) => Err("it has no address".to_owned()),
        _ => Ok(good),
    }
}

/// Tries each address in turn; the error is the last one's.
pub(super) async fn connect(addresses: &[SocketAddr]) -> io::Result<tokio::net::TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match tokio::net::TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn find_offence(ip: IpAddr) -> Option<&'static str> {
    match ip {
        IpAddr::V4(ip) => find_offence_v4(ip),
        IpAddr::V6(ip) => find_offence_v6(ip),
    }
}

fn find_offence_v4(ip: Ipv4Addr) -> Option<&'static str> {
    match ip.octets() {
        [169, 254, 169, 254] | [169, 254, 170, 2] => Some("a cloud's metadata address"),
        [169, 254, ..] => Some("a link-local address"),
        [100, 100, 100, 200] | [168, 63, 129, 16] | [192, 0, 0, 192] => Some("a cloud's metadata address"),
        _ => None,
    }
}

fn find_offence_v6(ip: Ipv6Addr) -> Option<&'static str> {
    let segments = ip.segments();
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        find_offence_v4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        [0xfe80..=0xfebf, ..] => Some("a link-local address"),
        [0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254] | [0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x0254] => {
            Some("a cloud's metadata address")
        }
        // IPv4 in IPv6: mapped, compatible, NAT64, 6to4.
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0x0064, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
        [0x2002, high, low, ..] => embedded(high, low),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_local_and_metadata_addresses_are_refused_however_written() {
        for bad in [
            "169.254.0.1",
            "169.254.169.254",
            "100.100.100.200",
            "168.63.129.16",
            "fe80::1",
            "febf::1",
            "fd00:ec2::254",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "2002:a9fe:a9fe::1",
            "::169.254.1.1",
        ] {
            assert!(find_offence(bad.parse().unwrap()).is_some(), "{bad}");
        }
        for good in ["127.0.0.1", "10.0.0.1", "169.253.1.1", "::1", "fec0::1", "fd00:ec2::253", "::ffff:10.0.0.1"] {
            assert_eq!(find_offence(good.parse().unwrap()), None, "{good}");
        }
    }

    #[tokio::test]
    async fn what_names_lead_to_decides() {
        // The resolver knows this spelling of 169.254.169.254.
        for target in ["169.254.169.254:80", "2852039166:80", "[::ffff:a9fe:a9fe]:80"] {
            let why = resolve(target, false).await.unwrap_err();
            assert!(why.contains("metadata") && why.contains("allow_link_local"), "{target}: {why}");
            assert!(resolve(target, true).await.is_ok());
        }
        let mixed = vec!["169.254.1.1:80".parse().unwrap(), "10.0.0.1:80".parse().unwrap()];
        assert_eq!(admit(mixed, false).unwrap(), ["10.0.0.1:80".parse().unwrap()]);
        assert!(admit(Vec::new(), false).is_err());
    }
}
