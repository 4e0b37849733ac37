//! A proxy: an instance that carries another's traffic, and what it carries it to.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use crate::{InstanceId, Name};

/// More upstreams than one process of a mesh ever names; each is a cluster, a listener and a subscription.
pub const MAX_UPSTREAMS: usize = 256;
/// The longest connect timeout that is taken for meant: beyond it a request waits longer than any client does.
pub(crate) const MAX_CONNECT_TIMEOUT: Duration = Duration::from_secs(300);

/// What a proxy is told to do. It came with catalog format 2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    /// The service it stands for.
    pub service: Name,
    /// The instance of it, on the same node; `None` where it stands for no particular one.
    pub instance: Option<InstanceId>,
    /// Where it takes traffic for its service; `None` takes none.
    pub inbound: Option<Inbound>,
    /// Where it listens for upstreams without a listener of their own; where the agent says when absent.
    pub http_listener: Option<SocketAddr>,
    /// What it carries traffic to, in the order given.
    pub upstreams: Vec<Upstream>,
}

/// The way into a proxy's own service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inbound {
    /// Where the proxy listens.
    pub listen: SocketAddr,
    /// Where the service does.
    pub local: SocketAddr,
    /// What is spoken.
    pub protocol: Protocol,
}

/// A service that a proxy carries traffic to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// The service.
    pub service: Name,
    /// Its own listener; `None` is reached by its Host on the proxy's HTTP listener.
    pub listen: Option<SocketAddr>,
    /// What is spoken on its listener.
    pub protocol: Protocol,
    /// How long this proxy tries to connect to it; the service's word, or the agent's, when absent.
    pub connect_timeout: Option<Duration>,
}

/// What a listener speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// Bytes.
    Tcp,
    /// HTTP/1.1 and HTTP/2.
    Http,
}

impl Protocol {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http => "http",
        }
    }

    /// Reads the word for it.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "tcp" => Some(Self::Tcp),
            "http" => Some(Self::Http),
            _ => None,
        }
    }
}

/// Where a proxy breaks a rule: each way in has its own key for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyField {
    /// Where it listens for its service.
    InboundListen,
    /// Where its service listens.
    InboundLocal,
    /// Where it listens for upstreams by Host.
    HttpListener,
    /// The list of upstreams.
    Upstreams,
    /// The listener of the upstream at that place.
    UpstreamListen(usize),
    /// The protocol of the upstream at that place.
    UpstreamProtocol(usize),
    /// The name of the upstream at that place.
    UpstreamService(usize),
    /// The connect timeout of the upstream at that place.
    UpstreamConnectTimeout(usize),
}

/// A rule that a proxy breaks: where, and the value with its remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyFault {
    /// Where.
    pub field: ProxyField,
    /// The value, the offence and the remedy.
    pub message: String,
}

impl Proxy {
    /// The first rule that it breaks, if any. Every way in asks, so that no data plane is told what it must reject.
    pub fn find_fault(&self) -> Option<ProxyFault> {
        self.check().err()
    }

    /// Upstreams that are reached by their Host.
    pub fn hosts(&self) -> impl Iterator<Item = &Upstream> {
        self.upstreams.iter().filter(|upstream| upstream.listen.is_none())
    }

    fn check(&self) -> Result<(), ProxyFault> {
        let count = self.upstreams.len();
        if count > MAX_UPSTREAMS {
            return Err(fault(
                ProxyField::Upstreams,
                format!("{count} upstreams are too many: at most {MAX_UPSTREAMS}"),
            ));
        }
        let mut taken = BTreeMap::new();
        if let Some(inbound) = &self.inbound {
            check_address(ProxyField::InboundLocal, inbound.local)?;
            check_listener(ProxyField::InboundListen, inbound.listen, &mut taken)?;
            if inbound.listen == inbound.local {
                let message = format!("{} is where the service itself listens: give the proxy another", inbound.listen);
                return Err(fault(ProxyField::InboundListen, message));
            }
        }
        if let Some(listener) = self.http_listener {
            check_listener(ProxyField::HttpListener, listener, &mut taken)?;
        }
        let (mut hosts, mut timeouts) = (BTreeSet::new(), BTreeMap::new());
        for (at, upstream) in self.upstreams.iter().enumerate() {
            match upstream.listen {
                Some(listener) => check_listener(ProxyField::UpstreamListen(at), listener, &mut taken)?,
                None => check_host(at, upstream, &mut hosts)?,
            }
            check_timeout(at, upstream, &mut timeouts)?;
        }
        Ok(())
    }
}

fn fault(field: ProxyField, message: String) -> ProxyFault {
    ProxyFault { field, message }
}

/// Everything off loopback has to be mTLS, which proxies do not speak yet.
fn check_address(field: ProxyField, address: SocketAddr) -> Result<(), ProxyFault> {
    if address.port() == 0 {
        return Err(fault(field, format!("{address} has port 0: give the port, clients must know it")));
    }
    if !address.ip().is_loopback() {
        let message = format!(
            "{address} is not a loopback address: what a proxy carries is not encrypted yet, give 127.0.0.1 or ::1"
        );
        return Err(fault(field, message));
    }
    Ok(())
}

fn check_listener(
    field: ProxyField,
    address: SocketAddr,
    taken: &mut BTreeMap<SocketAddr, ProxyField>,
) -> Result<(), ProxyFault> {
    check_address(field, address)?;
    match taken.insert(address, field) {
        None => Ok(()),
        Some(_) => {
            Err(fault(field, format!("{address} is taken by another listener of this proxy: give each its own")))
        }
    }
}

fn check_host<'a>(at: usize, upstream: &'a Upstream, hosts: &mut BTreeSet<&'a Name>) -> Result<(), ProxyFault> {
    let service = &upstream.service;
    if upstream.protocol != Protocol::Http {
        let message = format!("{} has no Host: give {service} a listener of its own", upstream.protocol.as_str());
        return Err(fault(ProxyField::UpstreamProtocol(at), message));
    }
    if !hosts.insert(service) {
        let message = format!("{service} is named twice without a listener: one Host leads to one upstream");
        return Err(fault(ProxyField::UpstreamService(at), message));
    }
    Ok(())
}

fn check_timeout<'a>(
    at: usize,
    upstream: &'a Upstream,
    timeouts: &mut BTreeMap<&'a Name, Option<Duration>>,
) -> Result<(), ProxyFault> {
    let (field, service) = (ProxyField::UpstreamConnectTimeout(at), &upstream.service);
    if let Some(timeout) = upstream.connect_timeout.filter(|timeout| !is_connect_timeout(*timeout)) {
        return Err(fault(field, format!("{timeout:?} is no connect timeout: give 1 ms to {MAX_CONNECT_TIMEOUT:?}")));
    }
    let earlier = *timeouts.entry(service).or_insert(upstream.connect_timeout);
    if earlier != upstream.connect_timeout {
        let message = format!("{service} is named before with another one: a proxy has one for each service");
        return Err(fault(field, message));
    }
    Ok(())
}

/// Whether so long a connect timeout can be meant.
pub(crate) fn is_connect_timeout(timeout: Duration) -> bool {
    timeout >= Duration::from_millis(1) && timeout <= MAX_CONNECT_TIMEOUT
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(service: &str, listen: Option<&str>) -> Upstream {
        let listen = listen.map(|listen| listen.parse().unwrap());
        Upstream { service: Name::lookup(service), listen, protocol: Protocol::Http, connect_timeout: None }
    }

    fn proxy() -> Proxy {
        Proxy {
            service: Name::lookup("web"),
            instance: None,
            inbound: Some(Inbound {
                listen: "127.0.0.1:20000".parse().unwrap(),
                local: "127.0.0.1:8080".parse().unwrap(),
                protocol: Protocol::Http,
            }),
            http_listener: Some("127.0.0.1:10001".parse().unwrap()),
            upstreams: vec![upstream("db", Some("127.0.0.1:9001")), upstream("api", None)],
        }
    }

    #[test]
    fn each_rule_names_its_place_and_the_remedy() {
        assert_eq!(proxy().find_fault(), None);
        let inbound = |edit: fn(&mut Inbound)| {
            let mut proxy = proxy();
            proxy.inbound.iter_mut().for_each(edit);
            proxy
        };
        let with = |upstream: Upstream| Proxy { upstreams: [proxy().upstreams, vec![upstream]].concat(), ..proxy() };
        let late = Upstream { connect_timeout: Some(Duration::from_secs(2)), ..upstream("db", Some("127.0.0.1:9002")) };
        let zero = Upstream { connect_timeout: Some(Duration::ZERO), ..upstream("x", None) };
        let many = Proxy { upstreams: vec![upstream("x", None); MAX_UPSTREAMS + 1], ..proxy() };
        let http = Proxy { http_listener: Some("127.0.0.1:20000".parse().unwrap()), ..proxy() };
        let table = [
            (inbound(|i| i.local = "192.0.2.1:80".parse().unwrap()), ProxyField::InboundLocal, "not encrypted yet"),
            (inbound(|i| i.listen.set_port(0)), ProxyField::InboundListen, "port 0"),
            (inbound(|i| i.listen = i.local), ProxyField::InboundListen, "the service itself"),
            (http, ProxyField::HttpListener, "taken by another listener"),
            (with(upstream("x", Some("127.0.0.1:9001"))), ProxyField::UpstreamListen(2), "taken by another listener"),
            (with(upstream("x", Some("0.0.0.0:9002"))), ProxyField::UpstreamListen(2), "not a loopback address"),
            (with(upstream("API", None)), ProxyField::UpstreamService(2), "named twice"),
            (
                with(Upstream { protocol: Protocol::Tcp, ..upstream("x", None) }),
                ProxyField::UpstreamProtocol(2),
                "a listener of its own",
            ),
            (with(late), ProxyField::UpstreamConnectTimeout(2), "named before"),
            (with(zero), ProxyField::UpstreamConnectTimeout(2), "no connect timeout"),
            (many, ProxyField::Upstreams, "257 upstreams"),
        ];
        for (proxy, field, words) in table {
            let fault = proxy.find_fault().unwrap_or_else(|| panic!("{words} was let pass"));
            assert_eq!(fault.field, field, "{}", fault.message);
            assert!(fault.message.contains(words), "{}", fault.message);
        }
    }
}
