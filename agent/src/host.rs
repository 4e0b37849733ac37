//! What this host says about itself: its name, and the address that others reach it at.
//!
//! Both are asked of the kernel by system calls. The packaged units hide most of `/proc` and `/sys` from the agent, and
//! a file that is hidden there must not turn into another name or address.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    path::Path,
};

use crate::identity::write_atomically;

/// Addresses for documentation (RFC 5737, RFC 3849): nobody has them, so the way to them is the default route.
const FAR_AWAY: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];

/// The file in the agent's data directory with the address that was last found.
const FILE: &str = "address";

/// The host's name as the kernel has it; some hosts have one with `_`, which no DNS name may hold.
pub(crate) fn name() -> String {
    rustix::system::uname().nodename().to_string_lossy().replace('_', "-")
}

/// Why a name cannot tell this host from others, if so.
pub(crate) fn refuse_name(name: &str) -> Result<(), &'static str> {
    let mut labels = name.split('.');
    let (first, last) = (labels.next().unwrap_or_default(), labels.next_back().unwrap_or_default());
    if name.is_empty() || name == "(none)" {
        Err("this host has no name")
    } else if first.eq_ignore_ascii_case("localhost") || last.eq_ignore_ascii_case("localhost") {
        Err("every host has this name, and the registry tells hosts apart by it")
    } else {
        Ok(())
    }
}

/// Where an address came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// It is that of the interface with the default route.
    Route,
    /// There is no default route now; at an earlier start there was, and this was its address.
    Kept,
    /// There has never been one: loopback.
    Nothing,
}

/// The address that others reach this host at, as far as it can be known without asking anybody.
pub(crate) fn find_address(data_dir: &Path) -> (IpAddr, Found) {
    choose_address(FAR_AWAY.into_iter().find_map(|target| find_source(target).ok().flatten()), data_dir)
}

fn choose_address(routed: Option<IpAddr>, data_dir: &Path) -> (IpAddr, Found) {
    let file = data_dir.join(FILE);
    let kept = || std::fs::read_to_string(&file).ok()?.trim().parse().ok();
    match routed {
        Some(address) => {
            if kept() != Some(address)
                && let Err(error) = write_atomically(&file, format!("{address}\n").as_bytes())
            {
                tracing::warn!(file = %file.display(), %error, "the address of this host is not kept for the next start");
            }
            (address, Found::Route)
        }
        None => kept().map_or((IpAddr::V4(Ipv4Addr::LOCALHOST), Found::Nothing), |address| (address, Found::Kept)),
    }
}

/// The source address of the way to `target`, or none when it is no use to others. To connect a UDP socket sends nothing.
fn find_source(target: IpAddr) -> io::Result<Option<IpAddr>> {
    let any: IpAddr = if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
    // Any port will do.
    socket.connect(SocketAddr::new(target, 9))?;
    let source = socket.local_addr()?.ip();
    let link_local = matches!(source, IpAddr::V6(source) if source.is_unicast_link_local());
    Ok((!source.is_loopback() && !source.is_unspecified() && !link_local).then_some(source))
}

/// Whether a member's `host:port` stands for this host alone, as far as that can be seen without asking a resolver.
pub(crate) fn is_here(member: &str) -> bool {
    let host = member.rsplit_once(':').map_or(member, |(host, _)| host).trim_matches(['[', ']']);
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_every_host_has_are_refused() {
        for name in ["localhost", "LocalHost", "localhost.localdomain", "web.localhost", "", "(none)"] {
            assert!(refuse_name(name).is_err(), "{name}");
        }
        for name in ["web-17", "web-17.example.com", "localhost-1", "a.b.c"] {
            assert_eq!(refuse_name(name), Ok(()), "{name}");
        }
    }

    #[test]
    fn the_address_of_the_default_route_is_kept_for_a_start_without_one() {
        let directory = tempfile::tempdir().unwrap();
        let [first, second]: [IpAddr; 2] = ["10.0.0.17", "2001:db8::17"].map(|text| text.parse().unwrap());
        let loopback: IpAddr = Ipv4Addr::LOCALHOST.into();
        assert_eq!(choose_address(None, directory.path()), (loopback, Found::Nothing));
        for address in [first, second] {
            assert_eq!(choose_address(Some(address), directory.path()), (address, Found::Route));
            assert_eq!(choose_address(None, directory.path()), (address, Found::Kept));
        }
        std::fs::write(directory.path().join(FILE), "half of an").unwrap();
        assert_eq!(choose_address(None, directory.path()), (loopback, Found::Nothing));
    }

    #[test]
    fn a_way_over_loopback_leads_to_nobody_else() {
        assert_eq!(find_source(Ipv4Addr::LOCALHOST.into()).unwrap(), None);
    }

    #[test]
    fn members_on_this_host_are_told_from_others() {
        for member in ["127.0.0.1:8300", "[::1]:8300", "localhost:8300"] {
            assert!(is_here(member), "{member}");
        }
        for member in ["10.0.0.4:8300", "registry-1:8300", "[fd00::1]:8300"] {
            assert!(!is_here(member), "{member}");
        }
    }
}
