//! `register` and `deregister`: definitions of files, handed to the local agent over the v1 API.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{ApiArgs, Failure, Outcome, client::Api, say};
use crate::definition::{self, CheckDefinition, Probe, ServiceDefinition, format_duration};

pub(super) fn register(file: &Path, args: &ApiArgs) -> Outcome {
    let definitions = definition::read(file).map_err(|error| Failure::Usage(error.to_string()))?;
    let api = Api::new(args)?;
    let mut registered = Vec::new();
    for definition in &definitions {
        api.put("/v1/agent/service/register?replace-existing-checks", Some(&to_v1(definition)))?;
        registered.push(json!({"id": definition.id, "service": definition.name.as_str()}));
        if !args.json {
            let checks = definition.checks.len();
            say(&format!("registered {} of service {} with {checks} check(s)", definition.id, definition.name))?;
        }
    }
    if args.json { say(&Value::from(registered).to_string()) } else { Ok(()) }
}

pub(super) fn deregister(id: &str, args: &ApiArgs) -> Outcome {
    let path = format!("/v1/agent/service/deregister/{}", escape(id));
    Api::new(args)?.put(&path, None)?;
    if args.json { say(&json!({"id": id}).to_string()) } else { say(&format!("deregistered {id}")) }
}

/// Percent-encodes what may not stand in a path segment.
fn escape(id: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte);
    id.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// The registration in the v1 dialect.
fn to_v1(definition: &ServiceDefinition) -> Value {
    let mut body = json!({
        "ID": definition.id,
        "Name": definition.name.as_str(),
        "Tags": definition.tags,
        "Meta": definition.meta,
        "Weights": {"Passing": definition.weights.passing, "Warning": definition.weights.warning},
        "EnableTagOverride": definition.enable_tag_override,
        "Checks": definition.checks.iter().map(check_to_v1).collect::<Vec<_>>(),
    });
    let tagged = definition.tagged_addresses.iter();
    let tagged: Map<String, Value> =
        tagged.map(|(label, to)| (label.to_string(), json!({"Address": to.address, "Port": to.port}))).collect();
    set(&mut body, "TaggedAddresses", (!tagged.is_empty()).then_some(tagged));
    set(&mut body, "Address", definition.address.as_ref().map(ToString::to_string));
    let locality = definition.locality.as_ref().map(|at| json!({"Region": at.region, "Zone": at.zone}));
    set(&mut body, "Locality", locality);
    let ports = definition.ports.iter().enumerate();
    let ports = ports.map(|(at, port)| json!({"Name": port.name, "Port": port.number, "Default": at == 0}));
    set(&mut body, "Ports", (!definition.ports.is_empty()).then(|| ports.collect::<Vec<_>>()));
    body
}

fn check_to_v1(check: &CheckDefinition) -> Value {
    let mut body = json!({
        "CheckID": check.id,
        "Name": check.name,
        "Notes": check.notes,
        "Status": check.initial.as_str(),
        "SuccessBeforePassing": check.thresholds.rise,
        "FailuresBeforeCritical": check.thresholds.fall,
    });
    set(&mut body, "FailuresBeforeWarning", check.thresholds.warn_after);
    set(&mut body, "DeregisterCriticalServiceAfter", check.deregister_critical_after.map(format_duration));
    match &check.probe {
        Probe::Http(http) => {
            set(&mut body, "HTTP", Some(&http.url));
            set(&mut body, "Method", Some(&http.method));
            set(&mut body, "Body", Some(&http.body));
            set(&mut body, "DisableRedirects", Some(!http.follow_redirects));
            set(&mut body, "TLSSkipVerify", Some(http.tls_skip_verify));
            let headers = http.headers.iter().map(|(name, value)| (name.to_string(), json!([value])));
            set(&mut body, "Header", Some(headers.collect::<Map<_, _>>()));
        }
        Probe::Tcp { target } => set(&mut body, "TCP", Some(target)),
        Probe::Ttl { ttl } => set(&mut body, "TTL", Some(format_duration(*ttl))),
    }
    if !matches!(check.probe, Probe::Ttl { .. }) {
        set(&mut body, "Interval", Some(format_duration(check.interval)));
        set(&mut body, "Timeout", Some(format_duration(check.timeout)));
    }
    body
}

fn set(body: &mut Value, key: &str, value: Option<impl serde::Serialize>) {
    if let Some(value) = value {
        body[key] = json!(value);
    }
}
