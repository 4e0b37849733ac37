//! Check definitions, as `agent/check/register` and a service's `Check` and `Checks` hold them.

use std::{collections::BTreeMap, time::Duration};

use muster_catalog::{InstanceId, Status, Text};
use serde_json::Value;

use super::{DecodeError, object::Object};
use crate::port::{CheckDefinition, Probe};

/// The shortest interval, as in the dialect: probes more often than this burden what they probe.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// How long a probe may take when the client does not say, as in the dialect.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// The shortest critical time after which an instance is deregistered, as in the dialect: a restart is no death.
const MIN_DEREGISTER_AFTER: Duration = Duration::from_secs(60);
/// More results in a row than this would take days at any interval: a slip of the pen.
const MAX_THRESHOLD: u32 = 10_000;

/// Fields of the dialect that no check here knows yet, and what they are about.
const UNSUPPORTED: [(&str, &str); 13] = [
    ("Args", "script checks are"),
    ("ScriptArgs", "script checks are"),
    ("Script", "script checks are"),
    ("DockerContainerID", "docker checks are"),
    ("Shell", "docker checks are"),
    ("UDP", "UDP checks are"),
    ("GRPC", "gRPC checks are"),
    ("H2PING", "HTTP/2 ping checks are"),
    ("OSService", "service manager checks are"),
    ("AliasService", "alias checks are"),
    ("AliasNode", "alias checks are"),
    ("TCPUseTLS", "TCP checks with TLS are"),
    ("Token", "tokens are"),
];

/// What a check is called when its definition does not say.
pub(super) struct Defaults {
    /// Its id.
    pub(super) id: Text,
    /// Its name.
    pub(super) name: Text,
    /// The instance that it stands in.
    pub(super) instance: InstanceId,
}

/// The body of `agent/check/register`.
pub(crate) fn decode_check(body: &[u8]) -> Result<CheckDefinition, DecodeError> {
    let mut object = Object::parse(body)?;
    let instance = object.find_text("ServiceID")?;
    let check = read_check(&mut object, None, instance)?;
    object.finish()?;
    Ok(check)
}

/// A check inside a service.
pub(super) fn decode_nested(mut object: Object, defaults: Defaults) -> Result<CheckDefinition, DecodeError> {
    let given = object.find_text("ServiceID")?;
    if given.is_some_and(|given| given != defaults.instance) {
        return Err(object.broken("ServiceID", "names another service than the one it stands in; leave it out"));
    }
    let instance = defaults.instance.clone();
    let check = read_check(&mut object, Some(defaults), Some(instance))?;
    object.finish()?;
    Ok(check)
}

/// The body of `agent/check/update`: a status and what it rests on.
pub(crate) fn decode_ttl_update(body: &[u8]) -> Result<(Status, Text), DecodeError> {
    let mut object = Object::parse(body)?;
    let status = object.text("Status")?;
    let output = object.text("Output")?;
    object.finish()?;
    let status = Status::parse(&status).ok_or_else(|| invalid_status("Status", &status))?;
    Ok((status, output))
}

pub(super) fn invalid_status(field: &str, status: &str) -> DecodeError {
    let reason = format!("invalid check status {status:?}: it must be passing, warning or critical");
    DecodeError::Value { field: field.to_owned(), reason }
}

fn read_check(
    object: &mut Object,
    defaults: Option<Defaults>,
    instance: Option<InstanceId>,
) -> Result<CheckDefinition, DecodeError> {
    for (field, what) in UNSUPPORTED {
        object.refuse(field, what)?;
    }
    object.refuse("Namespace", "namespaces are")?;
    object.refuse("Partition", "partitions are")?;
    object.pass_over(&["GRPCUseTLS", "H2PingUseTLS", "ExposedPort"]);
    let id = match (object.find_text("CheckID")?, object.find_text("ID")?) {
        (Some(id), None) | (None, Some(id)) => Some(id),
        (Some(id), Some(other)) if id == other => Some(id),
        (Some(_), Some(_)) => return Err(object.broken("ID", "differs from CheckID: give one of them")),
        (None, None) => None,
    };
    let name = object.find_text("Name")?;
    let (id, name) = match defaults {
        Some(defaults) => (id.unwrap_or(defaults.id), name.unwrap_or(defaults.name)),
        None => {
            let name = name.ok_or_else(|| DecodeError::Rule("Missing check name".into()))?;
            (id.unwrap_or_else(|| name.clone()), name)
        }
    };
    let notes = object.text("Notes")?;
    let initial = match object.find_text("Status")? {
        None => None,
        Some(status) => Some(Status::parse(&status).ok_or_else(|| invalid_status(&object.path("Status"), &status))?),
    };
    let deregister_critical_after = object.duration("DeregisterCriticalServiceAfter")?;
    let output_limit = object.number("OutputMaxSize", u32::MAX)?.filter(|limit| *limit > 0);
    let (rise, fall, failures_before_warning) = read_thresholds(object)?;
    let (probe, interval, timeout) = read_probe(object)?;
    Ok(CheckDefinition {
        id,
        name,
        instance,
        notes,
        initial,
        probe,
        interval,
        timeout,
        rise,
        fall,
        failures_before_warning,
        deregister_critical_after: deregister_critical_after.map(|after| after.max(MIN_DEREGISTER_AFTER)),
        output_limit,
    })
}

fn read_thresholds(object: &mut Object) -> Result<(u32, u32, u32), DecodeError> {
    // The dialect counts from 0 and acts at the first result that reaches the number: 0 and 1 are the same.
    let rise = object.number("SuccessBeforePassing", MAX_THRESHOLD)?.unwrap_or(0).max(1);
    let fall = object.number("FailuresBeforeCritical", MAX_THRESHOLD)?.unwrap_or(0).max(1);
    let warning = object.number("FailuresBeforeWarning", MAX_THRESHOLD)?.filter(|count| *count > 0).unwrap_or(fall);
    if warning > fall {
        return Err(DecodeError::Rule("FailuresBeforeWarning can't be higher than FailuresBeforeCritical".into()));
    }
    Ok((rise, fall, warning))
}

fn read_probe(object: &mut Object) -> Result<(Probe, Duration, Duration), DecodeError> {
    let (http, tcp, ttl) = (object.find_text("HTTP")?, object.find_text("TCP")?, object.duration("TTL")?);
    let (interval, timeout) = (object.duration("Interval")?, object.duration("Timeout")?);
    let settings = read_http_settings(object)?;
    if interval.is_some() && ttl.is_some() {
        return Err(DecodeError::Rule("Interval and TTL cannot both be specified".into()));
    }
    let probe = match (http, tcp, ttl) {
        (Some(url), None, None) => Probe::Http {
            url: http_url(object, url)?,
            method: settings.method,
            headers: settings.headers,
            body: settings.body,
            disable_redirects: settings.disable_redirects,
            tls_server_name: settings.tls_server_name,
            tls_skip_verify: settings.tls_skip_verify,
        },
        (None, Some(address), None) => Probe::Tcp { address: host_and_port(object, address)? },
        (None, None, Some(ttl)) => return Ok((Probe::Ttl { ttl }, Duration::ZERO, Duration::ZERO)),
        (None, None, None) if interval.is_none() => {
            return Err(DecodeError::Rule("TTL must be > 0 for TTL checks; or give HTTP or TCP, and Interval".into()));
        }
        (None, None, None) => return Err(DecodeError::Rule("Interval without a probe: give HTTP or TCP too".into())),
        _ => return Err(DecodeError::Rule("give one of HTTP, TCP and TTL, not several".into())),
    };
    let interval = interval.ok_or_else(|| {
        DecodeError::Rule("Interval must be > 0 for Script, HTTP, H2PING, TCP, UDP or OSService checks".into())
    })?;
    Ok((probe, interval.max(MIN_INTERVAL), timeout.unwrap_or(DEFAULT_TIMEOUT)))
}

struct HttpSettings {
    method: Text,
    headers: BTreeMap<Text, Vec<Text>>,
    body: Text,
    disable_redirects: bool,
    tls_server_name: Text,
    tls_skip_verify: bool,
}

fn read_http_settings(object: &mut Object) -> Result<HttpSettings, DecodeError> {
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
    Ok(HttpSettings {
        method,
        headers,
        body: object.text("Body")?,
        disable_redirects: object.flag("DisableRedirects")?,
        tls_server_name: object.text("TLSServerName")?,
        tls_skip_verify: object.flag("TLSSkipVerify")?,
    })
}

fn http_url(object: &Object, url: Text) -> Result<Text, DecodeError> {
    let uri: Option<axum::http::Uri> = url.parse().ok();
    let good = uri.is_some_and(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some());
    if good {
        return Ok(url);
    }
    Err(object.broken("HTTP", format!("{url:?} is not a URL: write one like \"http://127.0.0.1:8080/health\"")))
}

fn host_and_port(object: &Object, address: Text) -> Result<Text, DecodeError> {
    let good = address
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0));
    if good {
        return Ok(address);
    }
    Err(object.broken("TCP", format!("{address:?} is not a host and port: write one like \"127.0.0.1:5432\"")))
}
