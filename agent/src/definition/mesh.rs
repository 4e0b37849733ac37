//! Proxies and traffic settings: as written, their rules, and the way back.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use muster_catalog::{
    Inbound, Name, OutlierDetection, Port, Protocol, Proxy, ProxyField, Text, Traffic, TrafficField, Upstream,
};
use serde::{Deserialize, Serialize};

use super::{
    InvalidDefinition, format_duration, parse_duration,
    service::{key, shorten, validate_id},
};

type Invalid = InvalidDefinition;

/// A proxy as written.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProxyText {
    /// The service it stands for.
    pub service: String,
    /// The instance of it, on this node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// Where it takes traffic for its service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<String>,
    /// Where its service listens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_address: Option<String>,
    /// The port its service listens on; without it the proxy takes no traffic for its service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_port: Option<u16>,
    /// What its service speaks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Where it listens for upstreams without a listener.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_listener: Option<String>,
    /// What it carries traffic to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub upstreams: Vec<UpstreamText>,
}

/// An upstream as written.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UpstreamText {
    /// The service.
    pub service: String,
    /// Its own listener; without it, by Host on the proxy's HTTP listener.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<String>,
    /// What is spoken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// How long this proxy tries to connect to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_timeout: Option<String>,
}

/// Traffic settings as written.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrafficText {
    /// How long callers try to connect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_timeout: Option<String>,
    /// In percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub panic_threshold: Option<u8>,
    /// Whether callers prefer their own zone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefer_near: Option<bool>,
    /// When callers leave an instance out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outlier_detection: Option<OutlierText>,
}

/// Outlier detection as written.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OutlierText {
    /// Failures in a row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consecutive_failures: Option<u32>,
    /// How often it is considered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<String>,
    /// How long the first ejection lasts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ejection_time: Option<String>,
    /// How many may be out at once, in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ejected_percent: Option<u8>,
}

impl ProxyText {
    /// Checks every rule; `ports` are the proxy's own.
    pub(super) fn validate(&self, at: &str, ports: &[Port]) -> Result<Proxy, Invalid> {
        let upstreams = self.upstreams.iter().enumerate();
        let upstreams = upstreams.map(|(index, upstream)| upstream.validate(&format!("{at}.upstreams[{index}]")));
        let proxy = Proxy {
            service: service(&key(at, "service"), &self.service)?,
            instance: self.instance.as_deref().map(|id| validate_id(&key(at, "instance"), id)).transpose()?,
            inbound: self.inbound(at, ports)?,
            http_listener: socket(&key(at, "http_listener"), self.http_listener.as_deref())?,
            upstreams: upstreams.collect::<Result<_, _>>()?,
        };
        let Some(fault) = proxy.find_fault() else { return Ok(proxy) };
        let key = match fault.field {
            ProxyField::InboundListen => key(at, "listen"),
            ProxyField::InboundLocal => key(at, "local_address"),
            ProxyField::HttpListener => key(at, "http_listener"),
            ProxyField::Upstreams => key(at, "upstreams"),
            ProxyField::UpstreamListen(index) => format!("{at}.upstreams[{index}].listen"),
            ProxyField::UpstreamProtocol(index) => format!("{at}.upstreams[{index}].protocol"),
            ProxyField::UpstreamService(index) => format!("{at}.upstreams[{index}].service"),
            ProxyField::UpstreamConnectTimeout(index) => format!("{at}.upstreams[{index}].connect_timeout"),
        };
        Err(Invalid::new(key, fault.message))
    }

    fn inbound(&self, at: &str, ports: &[Port]) -> Result<Option<Inbound>, Invalid> {
        let protocol = protocol(&key(at, "protocol"), self.protocol.as_deref())?;
        let Some(port) = self.local_port else {
            let beside =
                [("listen", &self.listen), ("local_address", &self.local_address), ("protocol", &self.protocol)];
            return match beside.into_iter().find(|(_, written)| written.is_some()) {
                None => Ok(None),
                Some((name, _)) => {
                    let message = "stands without local_port: write the port that the service itself listens on";
                    Err(Invalid::new(key(at, name), message))
                }
            };
        };
        let at_address = key(at, "local_address");
        let address = self.local_address.as_deref().unwrap_or("127.0.0.1");
        let ip: IpAddr = address.parse().map_err(|_| {
            Invalid::new(at_address, format!("{:?} is no IP address: write 127.0.0.1 or ::1", shorten(address)))
        })?;
        let own = ports.first().map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port.number)));
        let listen = socket(&key(at, "listen"), self.listen.as_deref())?.or(own).ok_or_else(|| {
            let message =
                "local_port stands without a place to listen: write for example `listen = \"127.0.0.1:20000\"`";
            Invalid::new(key(at, "listen"), message)
        })?;
        Ok(Some(Inbound { listen, local: SocketAddr::new(ip, port), protocol: protocol.unwrap_or(Protocol::Tcp) }))
    }
}

impl UpstreamText {
    fn validate(&self, at: &str) -> Result<Upstream, Invalid> {
        let listen = socket(&key(at, "listen"), self.listen.as_deref())?;
        let usual = if listen.is_some() { Protocol::Tcp } else { Protocol::Http };
        Ok(Upstream {
            service: service(&key(at, "service"), &self.service)?,
            listen,
            protocol: protocol(&key(at, "protocol"), self.protocol.as_deref())?.unwrap_or(usual),
            connect_timeout: duration(&key(at, "connect_timeout"), self.connect_timeout.as_deref())?,
        })
    }
}

impl TrafficText {
    /// Checks every rule.
    pub(super) fn validate(&self, at: &str) -> Result<Traffic, Invalid> {
        let at_outlier = key(at, "outlier_detection");
        let outlier = self.outlier_detection.as_ref().map(|written| written.read(&at_outlier)).transpose()?;
        let traffic = Traffic {
            connect_timeout: duration(&key(at, "connect_timeout"), self.connect_timeout.as_deref())?,
            panic_threshold: self.panic_threshold,
            prefer_near: self.prefer_near,
            outlier_detection: outlier,
        };
        let Some(fault) = traffic.find_fault() else { return Ok(traffic) };
        let key = match fault.field {
            TrafficField::ConnectTimeout => key(at, "connect_timeout"),
            TrafficField::PanicThreshold => key(at, "panic_threshold"),
            TrafficField::ConsecutiveFailures => key(&at_outlier, "consecutive_failures"),
            TrafficField::Interval => key(&at_outlier, "interval"),
            TrafficField::EjectionTime => key(&at_outlier, "ejection_time"),
            TrafficField::MaxEjectedPercent => key(&at_outlier, "max_ejected_percent"),
        };
        Err(Invalid::new(key, fault.message))
    }
}

impl OutlierText {
    fn read(&self, at: &str) -> Result<OutlierDetection, Invalid> {
        let usual = OutlierDetection::default();
        Ok(OutlierDetection {
            consecutive_failures: self.consecutive_failures.unwrap_or(usual.consecutive_failures),
            interval: duration(&key(at, "interval"), self.interval.as_deref())?.unwrap_or(usual.interval),
            ejection_time: duration(&key(at, "ejection_time"), self.ejection_time.as_deref())?
                .unwrap_or(usual.ejection_time),
            max_ejected_percent: self.max_ejected_percent.unwrap_or(usual.max_ejected_percent),
        })
    }
}

fn service(at: &str, text: &str) -> Result<Name, Invalid> {
    Name::label("service", text).map_err(|error| Invalid::new(at, error.to_string()))
}

fn socket(at: &str, text: Option<&str>) -> Result<Option<SocketAddr>, Invalid> {
    let read = text.map(|text| {
        text.parse().map_err(|_| {
            let remedy = "write an IP address with a port, such as \"127.0.0.1:9001\"";
            Invalid::new(at, format!("{:?} is no place to listen: {remedy}", shorten(text)))
        })
    });
    read.transpose()
}

fn protocol(at: &str, text: Option<&str>) -> Result<Option<Protocol>, Invalid> {
    let read = text.map(|text| {
        Protocol::parse(text)
            .ok_or_else(|| Invalid::new(at, format!("{:?} is no protocol: write \"tcp\" or \"http\"", shorten(text))))
    });
    read.transpose()
}

fn duration(at: &str, text: Option<&str>) -> Result<Option<Duration>, Invalid> {
    let read = text.map(|text| {
        parse_duration(text).ok_or_else(|| {
            let remedy = "write for example \"10s\", \"500ms\" or \"1m\"";
            Invalid::new(at, format!("{:?} is no duration: {remedy}", shorten(text)))
        })
    });
    read.transpose()
}

impl From<&Proxy> for ProxyText {
    fn from(proxy: &Proxy) -> Self {
        let inbound = proxy.inbound.as_ref();
        Self {
            service: proxy.service.to_string(),
            instance: proxy.instance.as_ref().map(Text::to_string),
            listen: inbound.map(|inbound| inbound.listen.to_string()),
            local_address: inbound.map(|inbound| inbound.local.ip().to_string()),
            local_port: inbound.map(|inbound| inbound.local.port()),
            protocol: inbound.map(|inbound| inbound.protocol.as_str().to_owned()),
            http_listener: proxy.http_listener.map(|listener| listener.to_string()),
            upstreams: proxy.upstreams.iter().map(UpstreamText::from).collect(),
        }
    }
}

impl From<&Upstream> for UpstreamText {
    fn from(upstream: &Upstream) -> Self {
        Self {
            service: upstream.service.to_string(),
            listen: upstream.listen.map(|listen| listen.to_string()),
            protocol: Some(upstream.protocol.as_str().to_owned()),
            connect_timeout: upstream.connect_timeout.map(format_duration),
        }
    }
}

impl From<&Traffic> for TrafficText {
    fn from(traffic: &Traffic) -> Self {
        Self {
            connect_timeout: traffic.connect_timeout.map(format_duration),
            panic_threshold: traffic.panic_threshold,
            prefer_near: traffic.prefer_near,
            outlier_detection: traffic.outlier_detection.as_ref().map(|outlier| OutlierText {
                consecutive_failures: Some(outlier.consecutive_failures),
                interval: Some(format_duration(outlier.interval)),
                ejection_time: Some(format_duration(outlier.ejection_time)),
                max_ejected_percent: Some(outlier.max_ejected_percent),
            }),
        }
    }
}
