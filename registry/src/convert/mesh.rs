//! Proxies and traffic settings.

use std::{net::SocketAddr, time::Duration};

use muster_catalog::{Inbound, OutlierDetection, Protocol, Proxy, Traffic, Upstream};

use super::{ConvertError, name, row::milliseconds, text};
use crate::proto::catalog as pb;

impl From<&Proxy> for pb::Proxy {
    fn from(proxy: &Proxy) -> Self {
        Self {
            service: proxy.service.to_string(),
            instance: proxy.instance.as_ref().map(ToString::to_string),
            inbound: proxy.inbound.as_ref().map(|inbound| pb::Inbound {
                listen: inbound.listen.to_string(),
                local: inbound.local.to_string(),
                protocol: protocol(inbound.protocol).into(),
            }),
            http_listener: proxy.http_listener.map(|listener| listener.to_string()),
            upstreams: proxy.upstreams.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pb::Proxy> for Proxy {
    type Error = ConvertError;

    fn try_from(proxy: pb::Proxy) -> Result<Self, ConvertError> {
        let inbound = proxy.inbound.map(|inbound| {
            Ok(Inbound {
                listen: socket("instance.proxy.inbound.listen", &inbound.listen)?,
                local: socket("instance.proxy.inbound.local", &inbound.local)?,
                protocol: from_protocol("instance.proxy.inbound.protocol", inbound.protocol)?,
            })
        });
        let http_listener = proxy.http_listener.as_deref();
        Ok(Self {
            service: name("instance.proxy.service", &proxy.service)?,
            instance: proxy.instance.as_deref().map(text),
            inbound: inbound.transpose()?,
            http_listener: http_listener.map(|at| socket("instance.proxy.http_listener", at)).transpose()?,
            upstreams: super::all(proxy.upstreams)?,
        })
    }
}

impl From<&Upstream> for pb::Upstream {
    fn from(upstream: &Upstream) -> Self {
        Self {
            service: upstream.service.to_string(),
            listen: upstream.listen.map(|listen| listen.to_string()),
            protocol: protocol(upstream.protocol).into(),
            connect_timeout_milliseconds: upstream.connect_timeout.map(milliseconds),
        }
    }
}

impl TryFrom<pb::Upstream> for Upstream {
    type Error = ConvertError;

    fn try_from(upstream: pb::Upstream) -> Result<Self, ConvertError> {
        let listen = upstream.listen.as_deref();
        Ok(Self {
            service: name("instance.proxy.upstreams.service", &upstream.service)?,
            listen: listen.map(|at| socket("instance.proxy.upstreams.listen", at)).transpose()?,
            protocol: from_protocol("instance.proxy.upstreams.protocol", upstream.protocol)?,
            connect_timeout: upstream.connect_timeout_milliseconds.map(Duration::from_millis),
        })
    }
}

impl From<&Traffic> for pb::Traffic {
    fn from(traffic: &Traffic) -> Self {
        Self {
            connect_timeout_milliseconds: traffic.connect_timeout.map(milliseconds),
            panic_threshold_percent: traffic.panic_threshold.map(Into::into),
            prefer_near: traffic.prefer_near,
            outlier_detection: traffic.outlier_detection.as_ref().map(|outlier| pb::OutlierDetection {
                consecutive_failures: outlier.consecutive_failures,
                interval_milliseconds: milliseconds(outlier.interval),
                ejection_milliseconds: milliseconds(outlier.ejection_time),
                max_ejected_percent: outlier.max_ejected_percent.into(),
            }),
        }
    }
}

impl TryFrom<pb::Traffic> for Traffic {
    type Error = ConvertError;

    fn try_from(traffic: pb::Traffic) -> Result<Self, ConvertError> {
        let threshold = traffic.panic_threshold_percent;
        let outlier = traffic.outlier_detection.map(|outlier| {
            let percent = percent("instance.traffic.outlier_detection.percent", outlier.max_ejected_percent)?;
            Ok(OutlierDetection {
                consecutive_failures: outlier.consecutive_failures,
                interval: Duration::from_millis(outlier.interval_milliseconds),
                ejection_time: Duration::from_millis(outlier.ejection_milliseconds),
                max_ejected_percent: percent,
            })
        });
        Ok(Self {
            connect_timeout: traffic.connect_timeout_milliseconds.map(Duration::from_millis),
            panic_threshold: threshold.map(|value| percent("instance.traffic.panic_threshold", value)).transpose()?,
            prefer_near: traffic.prefer_near,
            outlier_detection: outlier.transpose()?,
        })
    }
}

fn protocol(protocol: Protocol) -> pb::Protocol {
    match protocol {
        Protocol::Tcp => pb::Protocol::Tcp,
        Protocol::Http => pb::Protocol::Http,
    }
}

fn from_protocol(field: &'static str, value: i32) -> Result<Protocol, ConvertError> {
    match pb::Protocol::try_from(value) {
        Ok(pb::Protocol::Tcp) => Ok(Protocol::Tcp),
        Ok(pb::Protocol::Http) => Ok(Protocol::Http),
        Ok(pb::Protocol::Unspecified) => Err(ConvertError::Missing(field)),
        Err(_) => Err(ConvertError::Unknown { field, value }),
    }
}

fn socket(field: &'static str, value: &str) -> Result<SocketAddr, ConvertError> {
    value.parse().map_err(|_| ConvertError::Address { field, value: value.to_owned() })
}

fn percent(field: &'static str, value: u32) -> Result<u8, ConvertError> {
    u8::try_from(value).map_err(|_| ConvertError::Range { field, value: value.into(), limit: u8::MAX.into() })
}
