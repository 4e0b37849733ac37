//! What makes an instance a proxy, and how a service wants to be called: the second is not of the dialect, it has no
//! place for it in a registration.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use muster_catalog::{
    Inbound, Name, OutlierDetection, Port, Protocol, Proxy, ProxyField, Traffic, TrafficField, Upstream,
};

use super::{DecodeError, object::Object};

/// The kind of an instance that is a proxy, in the dialect's word.
pub(crate) const PROXY_KIND: &str = "connect-proxy";

/// `Kind` and `Proxy`; `ports` are the instance's own.
pub(super) fn read_proxy(object: &mut Object, ports: &[Port]) -> Result<Option<Arc<Proxy>>, DecodeError> {
    let kind = object.text("Kind")?;
    // `typical` is how the dialect's documentation names the empty kind.
    if kind.is_empty() || &*kind == "typical" {
        object.refuse("Proxy", "without Kind \"connect-proxy\" proxy settings are")?;
        return Ok(None);
    }
    if &*kind != PROXY_KIND {
        return Err(DecodeError::Unsupported { field: object.path("Kind"), what: "gateways are" });
    }
    let Some(mut item) = object.object("Proxy")? else {
        return Err(object.broken("Proxy", "missing: say whom it stands for with DestinationServiceName"));
    };
    let proxy = read_settings(&mut item, ports)?;
    if let Some(fault) = proxy.find_fault() {
        return Err(item.broken(&field_of(fault.field), fault.message));
    }
    item.finish()?;
    Ok(Some(Arc::new(proxy)))
}

fn field_of(field: ProxyField) -> String {
    match field {
        ProxyField::InboundListen => "Config.bind_address".to_owned(),
        ProxyField::InboundLocal => "LocalServiceAddress".to_owned(),
        ProxyField::HttpListener => "Config.http_listener".to_owned(),
        ProxyField::Upstreams => "Upstreams".to_owned(),
        ProxyField::UpstreamListen(at) => format!("Upstreams[{at}].LocalBindAddress"),
        ProxyField::UpstreamProtocol(at) => format!("Upstreams[{at}].Config.protocol"),
        ProxyField::UpstreamService(at) => format!("Upstreams[{at}].DestinationName"),
        ProxyField::UpstreamConnectTimeout(at) => format!("Upstreams[{at}].Config.connect_timeout_ms"),
    }
}

fn read_settings(item: &mut Object, ports: &[Port]) -> Result<Proxy, DecodeError> {
    let service = read_service(item, "DestinationServiceName")?;
    let instance = item.find_text("DestinationServiceID")?;
    let mut config = match item.object("Config")? {
        Some(config) => config,
        None => Object::new(item.path("Config"), serde_json::json!({}))?,
    };
    let inbound = read_inbound(item, &mut config, ports)?;
    let http_listener = read_socket(&mut config, "http_listener")?;
    config.finish()?;
    let path = item.path("Upstreams");
    let mut upstreams = Vec::new();
    for (at, value) in item.list("Upstreams")?.into_iter().enumerate() {
        upstreams.push(read_upstream(Object::new(format!("{path}[{at}]"), value)?)?);
    }
    if let Some(mode) = item.find_text("Mode")?.filter(|mode| &**mode != "direct") {
        return Err(item.broken("Mode", format!("{mode:?} is not supported: only \"direct\" is")));
    }
    for (field, what) in [
        ("LocalServiceSocketPath", "Unix sockets are"),
        ("TransparentProxy", "transparent proxies are"),
        ("MeshGateway", "gateways are"),
        ("Expose", "exposed paths are"),
        ("AccessLogs", "access logs are"),
        ("EnvoyExtensions", "extensions are"),
    ] {
        item.refuse(field, what)?;
    }
    Ok(Proxy { service, instance, inbound, http_listener, upstreams })
}

fn read_inbound(item: &mut Object, config: &mut Object, ports: &[Port]) -> Result<Option<Inbound>, DecodeError> {
    let address = item.find_text("LocalServiceAddress")?;
    let port = item.short("LocalServicePort")?.filter(|port| *port > 0);
    let protocol = read_protocol(config)?;
    let bind = (config.find_text("bind_address")?, config.short("bind_port")?.filter(|port| *port > 0));
    let Some(port) = port else {
        return match (address, bind) {
            (None, (None, None)) => Ok(None),
            _ => Err(item.broken("LocalServicePort", "missing: give the port that the service itself listens on")),
        };
    };
    let own = ports.first().map(|port| port.number);
    let listen_port = bind.1.or(own).ok_or_else(|| {
        item.broken("LocalServicePort", "the proxy has no Port to listen on: give one, or Config.bind_port")
    })?;
    let ip = |object: &Object, field: &str, text: Option<&str>| match text {
        None => Ok(IpAddr::from(Ipv4Addr::LOCALHOST)),
        Some(text) => {
            text.parse().map_err(|_| object.broken(field, format!("{text:?} is no IP address: give 127.0.0.1")))
        }
    };
    Ok(Some(Inbound {
        listen: SocketAddr::new(ip(config, "bind_address", bind.0.as_deref())?, listen_port),
        local: SocketAddr::new(ip(item, "LocalServiceAddress", address.as_deref())?, port),
        protocol: protocol.unwrap_or(Protocol::Tcp),
    }))
}

fn read_upstream(mut item: Object) -> Result<Upstream, DecodeError> {
    let service = read_service(&mut item, "DestinationName")?;
    if let Some(kind) = item.find_text("DestinationType")?.filter(|kind| &**kind != "service") {
        return Err(item.broken("DestinationType", format!("{kind:?} is not supported: only \"service\" is")));
    }
    let address = item.find_text("LocalBindAddress")?;
    let port = item.short("LocalBindPort")?.filter(|port| *port > 0);
    let listen = match (address, port) {
        (None, None) => None,
        (Some(_), None) => {
            let reason = "missing beside LocalBindAddress: give both, or none to reach the upstream by its Host";
            return Err(item.broken("LocalBindPort", reason));
        }
        (address, Some(port)) => {
            let text = address.as_deref().unwrap_or("127.0.0.1");
            let ip: IpAddr = text
                .parse()
                .map_err(|_| item.broken("LocalBindAddress", format!("{text:?} is no IP address: give 127.0.0.1")))?;
            Some(SocketAddr::new(ip, port))
        }
    };
    let usual = if listen.is_some() { Protocol::Tcp } else { Protocol::Http };
    let mut upstream = Upstream { service, listen, protocol: usual, connect_timeout: None };
    if let Some(mut config) = item.object("Config")? {
        upstream.protocol = read_protocol(&mut config)?.unwrap_or(usual);
        let milliseconds = config.number("connect_timeout_ms", u32::MAX)?.filter(|count| *count > 0);
        upstream.connect_timeout = milliseconds.map(|count| Duration::from_millis(count.into()));
        config.finish()?;
    }
    for (field, what) in [
        ("LocalBindSocketPath", "Unix sockets are"),
        ("Datacenter", "upstreams in other datacenters are"),
        ("DestinationNamespace", "namespaces are"),
        ("DestinationPartition", "partitions are"),
        ("DestinationPeer", "upstreams of peers are"),
        ("MeshGateway", "gateways are"),
    ] {
        item.refuse(field, what)?;
    }
    item.finish()?;
    Ok(upstream)
}

fn read_service(object: &mut Object, field: &'static str) -> Result<Name, DecodeError> {
    let text = object.text(field)?;
    if text.is_empty() {
        return Err(object.broken(field, "missing: give the name of a service"));
    }
    Name::label(field, &text).map_err(|error| object.broken(field, error.to_string()))
}

fn read_protocol(config: &mut Object) -> Result<Option<Protocol>, DecodeError> {
    let Some(text) = config.find_text("protocol")? else { return Ok(None) };
    let read = Protocol::parse(&text);
    read.map(Some)
        .ok_or_else(|| config.broken("protocol", format!("{text:?} is not supported: give \"tcp\" or \"http\"")))
}

fn read_socket(object: &mut Object, field: &str) -> Result<Option<SocketAddr>, DecodeError> {
    let Some(text) = object.find_text(field)? else { return Ok(None) };
    let reason = || object.broken(field, format!("{text:?} is no place to listen: give one like \"127.0.0.1:10001\""));
    text.parse().map(Some).map_err(|_| reason())
}

/// `Traffic`: how the service wants to be called.
pub(super) fn read_traffic(object: &mut Object) -> Result<Option<Arc<Traffic>>, DecodeError> {
    let Some(mut item) = object.object("Traffic")? else { return Ok(None) };
    let percent = |item: &mut Object, field: &str| {
        let number = item.number(field, u32::from(u8::MAX))?;
        Ok::<_, DecodeError>(number.and_then(|number| u8::try_from(number).ok()))
    };
    let outlier = item.object("OutlierDetection")?.map(|mut outlier| {
        let usual = OutlierDetection::default();
        let read = OutlierDetection {
            consecutive_failures: outlier
                .number("ConsecutiveFailures", u32::MAX)?
                .unwrap_or(usual.consecutive_failures),
            interval: outlier.duration("Interval")?.unwrap_or(usual.interval),
            ejection_time: outlier.duration("EjectionTime")?.unwrap_or(usual.ejection_time),
            max_ejected_percent: percent(&mut outlier, "MaxEjectedPercent")?.unwrap_or(usual.max_ejected_percent),
        };
        outlier.finish()?;
        Ok::<_, DecodeError>(read)
    });
    let traffic = Traffic {
        connect_timeout: item.duration("ConnectTimeout")?,
        panic_threshold: percent(&mut item, "PanicThreshold")?,
        prefer_near: item.find_flag("PreferNear")?,
        outlier_detection: outlier.transpose()?,
    };
    if let Some(fault) = traffic.find_fault() {
        let field = match fault.field {
            TrafficField::ConnectTimeout => "ConnectTimeout",
            TrafficField::PanicThreshold => "PanicThreshold",
            TrafficField::ConsecutiveFailures => "OutlierDetection.ConsecutiveFailures",
            TrafficField::Interval => "OutlierDetection.Interval",
            TrafficField::EjectionTime => "OutlierDetection.EjectionTime",
            TrafficField::MaxEjectedPercent => "OutlierDetection.MaxEjectedPercent",
        };
        return Err(item.broken(field, fault.message));
    }
    item.finish()?;
    Ok((traffic != Traffic::default()).then(|| Arc::new(traffic)))
}
