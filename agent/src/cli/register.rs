//! `register` and `deregister`: definitions of files, handed to the local agent over the v1 API.

use std::path::Path;

use muster_catalog::{Proxy, Status, Traffic};
use serde_json::{Map, Value, json};

use super::{ApiArgs, Failure, Outcome, client::Api, say};
use crate::definition::{
    self, CheckDefinition, ExpectedIdentity, Probe, ServiceDefinition, Talk, TlsOptions, format_duration,
};

/// What the API takes for the agent's own node, whatever its name.
const THIS_NODE: &str = "_agent";

pub(super) fn register(file: &Path, args: &ApiArgs) -> Outcome {
    let definitions = definition::read(file).map_err(|error| Failure::Usage(error.to_string()))?;
    for check in definitions.iter().flat_map(|definition| &definition.checks) {
        if let Some(key) = check.find_file_only_key() {
            let (id, file) = (&check.id, file.display());
            let remedy = "only files of the agent's services directory may have it: put the file there instead";
            return Err(Failure::Usage(format!("{file}: check {id:?} has {key}: {remedy}")));
        }
    }
    let api = Api::new(args)?;
    let mut registered = Vec::new();
    for definition in &definitions {
        api.put("/v1/agent/service/register?replace-existing-checks", Some(&to_v1(definition)))?;
        registered.push(json!({"id": definition.id, "service": definition.name.as_str()}));
        if !args.json {
            let checks = definition.checks.len();
            let (id, name) = (&definition.id, &definition.name);
            say(&format!("registered {id} of service {name} with {checks} check(s)"))?;
            let waits =
                definition.checks.iter().filter(|check| check.initial != Status::Passing && !check.probe.is_told());
            if let Some(longest) = waits.map(|check| check.interval).max() {
                let within = format_duration(longest);
                say(&format!("  not passing before its first check, within {within}: see muster services {name}"))?;
            }
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
    set(&mut body, "Kind", definition.proxy.as_ref().map(|_| "connect-proxy"));
    set(&mut body, "Proxy", definition.proxy.as_deref().map(proxy_to_v1));
    set(&mut body, "Traffic", definition.traffic.as_deref().map(traffic_to_v1));
    body
}

fn proxy_to_v1(proxy: &Proxy) -> Value {
    let mut config = json!({});
    set(&mut config, "http_listener", proxy.http_listener);
    let upstreams = proxy.upstreams.iter().map(|upstream| {
        let mut config = json!({"protocol": upstream.protocol.as_str()});
        set(&mut config, "connect_timeout_ms", upstream.connect_timeout.map(|timeout| timeout.as_millis()));
        let mut body = json!({"DestinationName": upstream.service.as_str(), "Config": config});
        set(&mut body, "LocalBindAddress", upstream.listen.map(|listen| listen.ip()));
        set(&mut body, "LocalBindPort", upstream.listen.map(|listen| listen.port()));
        body
    });
    let upstreams: Vec<Value> = upstreams.collect();
    let mut body = json!({"DestinationServiceName": proxy.service.as_str(), "Upstreams": upstreams});
    set(&mut body, "DestinationServiceID", proxy.instance.as_ref());
    if let Some(inbound) = &proxy.inbound {
        set(&mut body, "LocalServiceAddress", Some(inbound.local.ip()));
        set(&mut body, "LocalServicePort", Some(inbound.local.port()));
        set(&mut config, "bind_address", Some(inbound.listen.ip()));
        set(&mut config, "bind_port", Some(inbound.listen.port()));
        set(&mut config, "protocol", Some(inbound.protocol.as_str()));
    }
    set(&mut body, "Config", Some(config));
    body
}

fn traffic_to_v1(traffic: &Traffic) -> Value {
    let mut body = json!({});
    set(&mut body, "ConnectTimeout", traffic.connect_timeout.map(format_duration));
    set(&mut body, "PanicThreshold", traffic.panic_threshold);
    set(&mut body, "PreferNear", traffic.prefer_near);
    let outlier = traffic.outlier_detection.as_ref().map(|outlier| {
        json!({
            "ConsecutiveFailures": outlier.consecutive_failures,
            "Interval": format_duration(outlier.interval),
            "EjectionTime": format_duration(outlier.ejection_time),
            "MaxEjectedPercent": outlier.max_ejected_percent,
        })
    });
    set(&mut body, "OutlierDetection", outlier);
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
    write_probe(&mut body, &check.probe);
    if !check.probe.is_told() {
        set(&mut body, "Interval", Some(format_duration(check.interval)));
        set(&mut body, "Timeout", Some(format_duration(check.timeout)));
    }
    body
}

fn write_probe(body: &mut Value, probe: &Probe) {
    match probe {
        Probe::Http(http) => {
            set(body, "HTTP", Some(&http.url));
            set(body, "Method", Some(&http.method));
            set(body, "Body", Some(&http.body));
            set(body, "DisableRedirects", Some(!http.follow_redirects));
            let headers = http.headers.iter().map(|(name, value)| (name.to_string(), json!([value])));
            set(body, "Header", Some(headers.collect::<Map<_, _>>()));
            write_tls(body, &http.tls);
            let identity = http.identity.as_ref().map(|identity| match identity {
                ExpectedIdentity::Header { name, value } => json!({"Header": name, "Value": value}),
                ExpectedIdentity::Certificate(name) => json!({"Certificate": name}),
            });
            set(body, "ExpectIdentity", identity);
        }
        Probe::Socket(socket) => {
            let (key, tls_key) = match &socket.talk {
                Talk::Tcp => ("TCP", "TCPUseTLS"),
                Talk::Udp { send, expect } => {
                    set(body, "UDPSend", Some(send).filter(|send| !send.is_empty()));
                    set(body, "UDPExpect", Some(expect).filter(|expect| !expect.is_empty()));
                    ("UDP", "")
                }
                Talk::Grpc { .. } => ("GRPC", "GRPCUseTLS"),
                Talk::H2Ping => ("H2PING", "H2PingUseTLS"),
                Talk::Redis => ("Redis", "RedisUseTLS"),
                Talk::Postgres => ("Postgres", "PostgresUseTLS"),
                Talk::Mysql => ("MySQL", ""),
            };
            set(body, key, Some(probe.target()));
            set(body, tls_key, Some(socket.tls.is_some()).filter(|_| !tls_key.is_empty()));
            if let Some(tls) = &socket.tls {
                write_tls(body, tls);
            }
            set(body, "ExpectIdentity", socket.certificate.as_ref().map(|name| json!({"Certificate": name})));
        }
        Probe::Alias { service: Some(service) } => set(body, "AliasService", Some(service)),
        Probe::Alias { service: None } => set(body, "AliasNode", Some(THIS_NODE)),
        Probe::Systemd { unit } => set(body, "OSService", Some(unit)),
        Probe::Ttl { ttl } => set(body, "TTL", Some(format_duration(*ttl))),
        // Refused before: only definition files may hold it.
        Probe::Script { .. } => {}
    }
}

fn write_tls(body: &mut Value, tls: &TlsOptions) {
    set(body, "TLSServerName", tls.server_name.as_ref());
    set(body, "TLSSkipVerify", Some(tls.skip_verify));
}

fn set(body: &mut Value, key: &str, value: Option<impl serde::Serialize>) {
    if let Some(value) = value {
        body[key] = json!(value);
    }
}
