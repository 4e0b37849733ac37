//! How a check probes: exactly one kind, and what goes with it.

use std::{collections::BTreeMap, time::Duration};

use muster_catalog::Text;
use serde_json::Value;

use super::{DecodeError, object::Object};
use crate::port::{ExpectedIdentity, Probe, Talk, Tls};

/// The shortest interval, as in the dialect: probes more often than this burden what they probe.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// How long a probe may take when the client does not say, as in the dialect.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// Talks to a port: the key of the target, the key that turns TLS on, and whether it is on unless said.
const SOCKETS: [(&str, &str, bool); 7] = [
    ("TCP", "TCPUseTLS", false),
    ("UDP", "", false),
    ("GRPC", "GRPCUseTLS", false),
    ("H2PING", "H2PingUseTLS", true),
    ("Redis", "RedisUseTLS", false),
    ("Postgres", "PostgresUseTLS", false),
    ("MySQL", "", false),
];
const KINDS: &str = "HTTP, TCP, UDP, GRPC, H2PING, Redis, Postgres, MySQL, OSService, AliasService, AliasNode and TTL";

/// The probe, its interval and its timeout.
pub(super) fn read_probe(object: &mut Object) -> Result<(Probe, Duration, Duration), DecodeError> {
    let ttl = object.duration("TTL")?;
    let (interval, timeout) = (object.duration("Interval")?, object.duration("Timeout")?);
    if interval.is_some() && ttl.is_some() {
        return Err(DecodeError::Rule("Interval and TTL cannot both be specified".into()));
    }
    let tls = Tls { server_name: object.text("TLSServerName")?, skip_verify: object.flag("TLSSkipVerify")? };
    let identity = read_identity(object)?;
    let http = read_http(object, &tls, identity.as_ref())?;
    let sockets = read_sockets(object, &tls, identity.as_ref())?;
    let (service, node) = (object.find_text("AliasService")?, object.find_text("AliasNode")?);
    let alias = (service.is_some() || node.is_some()).then_some(Probe::Alias { service, node });
    let unit = object.find_text("OSService")?.map(|name| Probe::Unit { name });
    let ttl = ttl.map(|ttl| Probe::Ttl { ttl });
    let mut probes = http.into_iter().chain(sockets).chain(alias).chain(unit).chain(ttl);
    let Some(probe) = probes.next() else {
        let what = if interval.is_some() { "Interval without a probe" } else { "TTL must be > 0 for TTL checks" };
        return Err(DecodeError::Rule(format!("{what}: give one of {KINDS}")));
    };
    if probes.next().is_some() {
        return Err(DecodeError::Rule(format!("give one of {KINDS}, not several")));
    }
    match (&probe, interval) {
        (Probe::Ttl { .. }, _) | (Probe::Alias { .. }, None) => Ok((probe, Duration::ZERO, Duration::ZERO)),
        (Probe::Alias { .. }, Some(_)) => Err(DecodeError::Rule("Interval cannot be set for Alias checks".into())),
        (_, None) => {
            Err(DecodeError::Rule("Interval must be > 0 for Script, HTTP, H2PING, TCP, UDP or OSService checks".into()))
        }
        (_, Some(interval)) => Ok((probe, interval.max(MIN_INTERVAL), timeout.unwrap_or(DEFAULT_TIMEOUT))),
    }
}

fn read_http(
    object: &mut Object,
    tls: &Tls,
    identity: Option<&ExpectedIdentity>,
) -> Result<Option<Probe>, DecodeError> {
    let url = object.find_text("HTTP")?;
    let (method, headers) = read_request(object)?;
    let (body, disable_redirects) = (object.raw_text("Body")?, object.flag("DisableRedirects")?);
    let Some(url) = url else { return Ok(None) };
    let url = http_url(object, url)?;
    let (tls, identity) = (tls.clone(), identity.cloned());
    Ok(Some(Probe::Http { url, method, headers, body, disable_redirects, tls, identity }))
}

fn read_request(object: &mut Object) -> Result<(Text, BTreeMap<Text, Vec<Text>>), DecodeError> {
    let mut headers = BTreeMap::new();
    for (name, values) in object.map("Header")? {
        let values: Option<Vec<Text>> = match &values {
            Value::Array(values) => values.iter().map(|value| value.as_str().map(Text::from)).collect(),
            // Some clients write a single value without its list.
            Value::String(value) => Some(vec![Text::from(value.as_str())]),
            _ => None,
        };
        let values = values.ok_or_else(|| object.broken("Header", format!("{name:?} must be a list of strings")))?;
        headers.insert(Text::from(name), values);
    }
    let method = object.find_text("Method")?.unwrap_or_else(|| Text::from("GET"));
    if !method.bytes().all(|b| b.is_ascii_alphabetic()) {
        return Err(object.broken("Method", format!("{method:?} is not a method: write one like \"GET\"")));
    }
    Ok((method, headers))
}

fn read_sockets(
    object: &mut Object,
    tls: &Tls,
    identity: Option<&ExpectedIdentity>,
) -> Result<Vec<Probe>, DecodeError> {
    let (send, expect) = (object.raw_text("UDPSend")?, object.raw_text("UDPExpect")?);
    let mut probes = Vec::new();
    for (key, tls_key, default) in SOCKETS {
        let on = if tls_key.is_empty() { false } else { object.find_flag(tls_key)?.unwrap_or(default) };
        let Some(written) = object.find_text(key)? else { continue };
        let (address, service) = match written.split_once('/') {
            Some((address, service)) if key == "GRPC" => (Text::from(address), Text::from(service)),
            _ => (written, Text::default()),
        };
        let address = host_and_port(object, key, address)?;
        if identity.is_some() && !(on && matches!(identity, Some(ExpectedIdentity::Certificate(_)))) {
            let why = "without HTTP only Certificate can be expected, and only with TLS";
            return Err(object.broken("ExpectIdentity", why));
        }
        let talk = match key {
            "UDP" => Talk::Udp { send: send.clone(), expect: expect.clone() },
            "GRPC" => Talk::Grpc { service },
            "H2PING" => Talk::H2Ping,
            "Redis" => Talk::Redis,
            "Postgres" => Talk::Postgres,
            "MySQL" => Talk::Mysql,
            _ => Talk::Tcp,
        };
        probes.push(Probe::Socket { address, talk, tls: on.then(|| tls.clone()), identity: identity.cloned() });
    }
    Ok(probes)
}

fn read_identity(object: &mut Object) -> Result<Option<ExpectedIdentity>, DecodeError> {
    let Some(mut written) = object.object("ExpectIdentity")? else { return Ok(None) };
    let (name, value) = (written.find_text("Header")?, written.find_text("Value")?);
    let identity = match (name, value, written.find_text("Certificate")?) {
        (Some(name), Some(value), None) => ExpectedIdentity::Header { name, value },
        (None, None, Some(name)) => ExpectedIdentity::Certificate(name),
        _ => return Err(object.broken("ExpectIdentity", "give either Header and Value, or Certificate")),
    };
    written.finish()?;
    Ok(Some(identity))
}

fn http_url(object: &Object, url: Text) -> Result<Text, DecodeError> {
    let uri: Option<axum::http::Uri> = url.parse().ok();
    let good = uri.is_some_and(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some());
    if good {
        return Ok(url);
    }
    Err(object.broken("HTTP", format!("{url:?} is not a URL: write one like \"http://127.0.0.1:8080/health\"")))
}

fn host_and_port(object: &Object, key: &str, address: Text) -> Result<Text, DecodeError> {
    let good = address
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0));
    if good {
        return Ok(address);
    }
    Err(object.broken(key, format!("{address:?} is not a host and port: write one like \"127.0.0.1:5432\"")))
}
