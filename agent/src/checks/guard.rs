//! Where checks may not go: link-local addresses, which every host has and no service stands behind, and the metadata
//! services of clouds, which hand credentials to whoever asks. Judged after names are resolved, on the very address
//! that is connected to.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use futures_util::stream::{FuturesUnordered, StreamExt};

use crate::resolver::Resolver;

/// More addresses than this are not tried: the timeout would not reach them.
const MAX_ADDRESSES: usize = 16;
/// How long an address has for itself before the next one is tried beside it (RFC 8305 §5).
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(250);

/// The addresses of `host:port` that a check may go to, the two families in turn.
pub(super) async fn resolve(
    target: &str,
    allow_link_local: bool,
    resolver: &Resolver,
) -> Result<Vec<SocketAddr>, String> {
    let found = resolver.resolve_target(target).await?;
    let mut good = interleave(admit(found, allow_link_local)?);
    good.truncate(MAX_ADDRESSES);
    Ok(good)
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

/// In turn an address of either family, beginning with that of the first: one family may lead nowhere.
fn interleave(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|address| address.is_ipv6() == first_is_v6);
    let mut second = second.into_iter();
    let mut mixed = Vec::with_capacity(first.len() + second.len());
    for address in first {
        mixed.push(address);
        mixed.extend(second.next());
    }
    mixed.extend(second);
    mixed
}

/// Connects to the address that accepts first.
pub(super) async fn connect(addresses: &[SocketAddr]) -> io::Result<tokio::net::TcpStream> {
    race(addresses, tokio::net::TcpStream::connect::<SocketAddr>).await
}

/// Tries the addresses in their order and gives the first success. The next one begins when one fails, or has not
/// succeeded soon, and does not end the tries before it: an address that swallows all packets costs a moment and not
/// the whole timeout. The error is the last one's.
pub(super) async fn race<T, F: Future<Output = io::Result<T>>>(
    addresses: &[SocketAddr],
    attempt: impl Fn(SocketAddr) -> F,
) -> io::Result<T> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    let mut waiting = addresses.iter();
    let mut attempts = FuturesUnordered::new();
    loop {
        match waiting.next() {
            Some(address) => attempts.push(attempt(*address)),
            None if attempts.is_empty() => return Err(last),
            None => {}
        }
        tokio::select! {
            Some(outcome) = attempts.next() => match outcome {
                Ok(won) => return Ok(won),
                Err(error) => last = error,
            },
            () = tokio::time::sleep(NEXT_ADDRESS_AFTER), if waiting.len() > 0 => {}
        }
    }
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
        let resolver = Resolver::default();
        for target in ["169.254.169.254:80", "[::ffff:a9fe:a9fe]:80"] {
            let why = resolve(target, false, &resolver).await.unwrap_err();
            assert!(why.contains("metadata") && why.contains("allow_link_local"), "{target}: {why}");
            assert!(resolve(target, true, &resolver).await.is_ok());
        }
        // Another spelling of 169.254.169.254, which the C library knows.
        assert!(resolve("2852039166:80", false, &resolver).await.is_err());
        let mixed = vec!["169.254.1.1:80".parse().unwrap(), "10.0.0.1:80".parse().unwrap()];
        assert_eq!(admit(mixed, false).unwrap(), ["10.0.0.1:80".parse().unwrap()]);
        assert!(admit(Vec::new(), false).is_err());
    }

    #[tokio::test]
    async fn an_address_that_swallows_everything_costs_a_moment() {
        let at = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let addresses = at(&["[fd99::1]:1", "[fd99::2]:1", "10.0.0.1:1", "[fd99::3]:1", "10.0.0.2:1"]);
        let mixed = interleave(addresses);
        assert_eq!(mixed, at(&["[fd99::1]:1", "10.0.0.1:1", "[fd99::2]:1", "10.0.0.2:1", "[fd99::3]:1"]));
        // (how each address behaves: silent, refuses, or accepts after so many ms; the winner, and when)
        type Manner = Option<Result<u64, u64>>;
        let table: [(&[Manner], Option<usize>, u64); 6] = [
            (&[None, Some(Ok(10))], Some(1), 260),
            (&[Some(Err(5)), Some(Ok(10))], Some(1), 15),
            (&[Some(Ok(300)), Some(Ok(300))], Some(0), 300),
            (&[Some(Ok(900)), Some(Ok(100)), Some(Ok(1))], Some(1), 350),
            (&[None, None, None, Some(Ok(1))], Some(3), 751),
            (&[Some(Err(5)), Some(Err(7))], None, 12),
        ];
        for (manners, winner, after) in table {
            let start = tokio::time::Instant::now();
            let attempt = |address: SocketAddr| {
                let index = mixed.iter().position(|at| *at == address).unwrap();
                let manner = manners[index];
                async move {
                    match manner {
                        None => std::future::pending().await,
                        Some(Ok(after)) => {
                            tokio::time::sleep(Duration::from_millis(after)).await;
                            Ok(index)
                        }
                        Some(Err(after)) => {
                            tokio::time::sleep(Duration::from_millis(after)).await;
                            Err(io::ErrorKind::ConnectionRefused.into())
                        }
                    }
                }
            };
            let won = race(&mixed[..manners.len()], attempt).await;
            assert_eq!(won.ok(), winner, "{manners:?}");
            let (least, took) = (Duration::from_millis(after), start.elapsed());
            assert!(took >= least && took < least + Duration::from_secs(10), "{manners:?} took {took:?}");
        }
    }
}
