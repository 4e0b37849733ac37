//! The rules for what a check does: exactly one probe, and only the keys that go with it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
};

use muster_catalog::{Address, Text};
use reqwest::{
    Method, Url,
    header::{HeaderName, HeaderValue},
};
use rustls::pki_types::ServerName;

use super::{ExpectedIdentity, HttpProbe, Probe, SocketProbe, Talk, TlsOptions};
use crate::definition::{
    CheckText, IdentityText, InvalidDefinition as Invalid,
    check::{DEFAULT_INTERVAL, MAX_INTERVAL, MIN_INTERVAL, duration},
    service::{key, limit, shorten, validate_text},
};

const MAX_URL: usize = 2048;
const MAX_HEADERS: usize = 32;
const MAX_HEADER: usize = 4096;
/// A request that needs more is not a health check.
const MAX_BODY: usize = 16 * 1024;
/// One datagram that every path carries whole.
const MAX_DATAGRAM: usize = 1200;
/// A longer command line belongs into a file.
const MAX_ARGS: usize = 64;
const MAX_ARG: usize = 4096;
/// systemd's own limit for the name of a unit.
const MAX_UNIT: usize = 255;

/// What speaks TLS by `tls = true`.
const TLS_KINDS: &[&str] = &["tcp", "grpc", "h2ping", "redis", "postgres"];
const TLS_AND_HTTP: &[&str] = &["http", "tcp", "grpc", "h2ping", "redis", "postgres"];
const NETWORK: &[&str] = &["http", "tcp", "udp", "grpc", "h2ping", "redis", "postgres", "mysql"];

impl CheckText {
    /// What it does.
    pub(crate) fn probe(&self, at: &str) -> Result<Probe, Invalid> {
        let kind = self.only_kind(at)?;
        self.refuse_foreign_keys(at, kind)?;
        let text = |value: &Option<String>| Text::from(value.as_deref().unwrap_or_default());
        Ok(match kind {
            "http" => Probe::Http(Box::new(self.http_probe(at, &text(&self.http))?)),
            "args" => self.script_probe(at)?,
            "systemd" => Probe::Systemd { unit: unit(&key(at, "systemd"), &text(&self.systemd))? },
            "alias_service" => {
                validate_text(&key(at, kind), &text(&self.alias_service), MAX_URL)?;
                Probe::Alias { service: Some(text(&self.alias_service)) }
            }
            "alias_node" if self.alias_node == Some(true) => Probe::Alias { service: None },
            "alias_node" => {
                return Err(Invalid::new(key(at, kind), "false follows nothing: write true, or leave it out"));
            }
            "ttl" => {
                let ttl = duration(&key(at, "ttl"), self.ttl.as_deref(), (MIN_INTERVAL, MAX_INTERVAL))?;
                Probe::Ttl { ttl: ttl.unwrap_or(DEFAULT_INTERVAL) }
            }
            _ => Probe::Socket(Box::new(self.socket_probe(at, kind)?)),
        })
    }

    /// The one key that says what it does.
    fn only_kind(&self, at: &str) -> Result<&'static str, Invalid> {
        let kinds = [
            ("http", self.http.is_some()),
            ("tcp", self.tcp.is_some()),
            ("udp", self.udp.is_some()),
            ("grpc", self.grpc.is_some()),
            ("h2ping", self.h2ping.is_some()),
            ("redis", self.redis.is_some()),
            ("postgres", self.postgres.is_some()),
            ("mysql", self.mysql.is_some()),
            ("systemd", self.systemd.is_some()),
            ("args", !self.args.is_empty()),
            ("alias_service", self.alias_service.is_some()),
            ("alias_node", self.alias_node.is_some()),
            ("ttl", self.ttl.is_some()),
        ];
        let written: Vec<_> = kinds.iter().filter(|(_, written)| *written).map(|(kind, _)| *kind).collect();
        let all = kinds.map(|(kind, _)| kind).join(", ");
        match *written {
            [kind] => Ok(kind),
            [] => Err(Invalid::new(at, format!("it probes nothing: write exactly one of {all}"))),
            _ => {
                let written = written.join(" and ");
                Err(Invalid::new(at, format!("it probes by {written}: write exactly one, and a check for each")))
            }
        }
    }

    fn refuse_foreign_keys(&self, at: &str, kind: &str) -> Result<(), Invalid> {
        let written: [(&str, bool, &[&str]); 12] = [
            ("method", self.method.is_some(), &["http"]),
            ("headers", !self.headers.is_empty(), &["http"]),
            ("body", self.body.is_some(), &["http"]),
            ("follow_redirects", self.follow_redirects.is_some(), &["http"]),
            ("send", self.send.is_some(), &["udp"]),
            ("expect", self.expect.is_some(), &["udp"]),
            ("tls", self.tls.is_some(), TLS_KINDS),
            ("ca_file", self.ca_file.is_some(), TLS_AND_HTTP),
            ("tls_server_name", self.tls_server_name.is_some(), TLS_AND_HTTP),
            ("tls_skip_verify", self.tls_skip_verify.is_some(), TLS_AND_HTTP),
            ("expect_identity", self.expect_identity.is_some(), TLS_AND_HTTP),
            ("allow_link_local", self.allow_link_local.is_some(), NETWORK),
        ];
        let foreign = written.iter().find(|(_, written, kinds)| *written && !kinds.contains(&kind));
        if let Some((name, _, kinds)) = foreign {
            let message = format!("only {} checks have it: leave it out", kinds.join(", "));
            return Err(Invalid::new(key(at, name), message));
        }
        Ok(())
    }

    fn http_probe(&self, at: &str, url: &str) -> Result<HttpProbe, Invalid> {
        let at_url = key(at, "http");
        validate_text(&at_url, url, MAX_URL)?;
        let parsed = Url::parse(url).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let Some(parsed) = parsed else {
            let message =
                format!("{:?} is no URL to ask: write for example \"http://127.0.0.1:8080/healthz\"", shorten(url));
            return Err(Invalid::new(at_url, message));
        };
        if !parsed.username().is_empty() || parsed.password().is_some() {
            let message = "the URL holds credentials, which would be shown with it: send an Authorization header";
            return Err(Invalid::new(at_url, message));
        }
        let method = self.method.as_deref().filter(|method| !method.is_empty()).unwrap_or("GET");
        if Method::from_bytes(method.as_bytes()).is_err() {
            let message = format!("{:?} is no HTTP method: write for example \"GET\" or \"HEAD\"", shorten(method));
            return Err(Invalid::new(key(at, "method"), message));
        }
        let body = self.body.as_deref().unwrap_or_default();
        limit(&key(at, "body"), "bytes", body.len(), MAX_BODY)?;
        let identity = self.expect_identity.as_ref().map(|written| identity(&key(at, "expect_identity"), written));
        let identity = identity.transpose()?;
        if matches!(identity, Some(ExpectedIdentity::Certificate(_))) && parsed.scheme() != "https" {
            let message = "plain http shows no certificate: write an https URL, or expect a header";
            return Err(Invalid::new(key(at, "expect_identity"), message));
        }
        Ok(HttpProbe {
            url: Text::from(url),
            method: Text::from(method),
            headers: self.headers(at)?,
            body: Text::from(body),
            follow_redirects: self.follow_redirects.unwrap_or(false),
            tls: self.tls_options(at, matches!(identity, Some(ExpectedIdentity::Certificate(_))))?,
            identity,
            allow_link_local: self.allow_link_local.unwrap_or(false),
        })
    }

    fn headers(&self, at: &str) -> Result<BTreeMap<Text, Text>, Invalid> {
        limit(&key(at, "headers"), "headers", self.headers.len(), MAX_HEADERS)?;
        let mut headers = BTreeMap::new();
        for (name, value) in &self.headers {
            let valid = HeaderName::from_bytes(name.as_bytes()).is_ok() && HeaderValue::from_str(value).is_ok();
            if !valid || name.len() + value.len() > MAX_HEADER {
                let message = format!("{:?} is no HTTP header: write a token and printable text", shorten(value));
                return Err(Invalid::new(format!("{}.{name}", key(at, "headers")), message));
            }
            headers.insert(Text::from(name.as_str()), Text::from(value.as_str()));
        }
        Ok(headers)
    }

    fn socket_probe(&self, at: &str, kind: &'static str) -> Result<SocketProbe, Invalid> {
        let written = [&self.tcp, &self.udp, &self.grpc, &self.h2ping, &self.redis, &self.postgres, &self.mysql];
        let written = written.into_iter().flatten().next().map(String::as_str).unwrap_or_default();
        let (target, service) = match written.split_once('/') {
            Some((target, service)) if kind == "grpc" => (target, service),
            _ => (written, ""),
        };
        validate_target(&key(at, kind), written, target)?;
        let talk = match kind {
            "udp" => self.datagram(at)?,
            "grpc" => Talk::Grpc { service: Text::from(service) },
            "h2ping" => Talk::H2Ping,
            "redis" => Talk::Redis,
            "postgres" => Talk::Postgres,
            "mysql" => Talk::Mysql,
            _ => Talk::Tcp,
        };
        let certificate = match &self.expect_identity {
            None => None,
            Some(written) => match identity(&key(at, "expect_identity"), written)? {
                ExpectedIdentity::Certificate(name) => Some(name),
                ExpectedIdentity::Header { .. } => {
                    let message = "only http checks have headers: expect a certificate name, and set tls = true";
                    return Err(Invalid::new(key(at, "expect_identity"), message));
                }
            },
        };
        let options = self.tls_options(at, certificate.is_some())?;
        let tls = self.tls.unwrap_or(false);
        if !tls && (options != TlsOptions::default() || certificate.is_some()) {
            return Err(Invalid::new(at, "it has keys for TLS and does not use it: add `tls = true`, or remove them"));
        }
        Ok(SocketProbe {
            target: Text::from(target),
            talk,
            tls: tls.then_some(options),
            certificate,
            allow_link_local: self.allow_link_local.unwrap_or(false),
        })
    }

    fn datagram(&self, at: &str) -> Result<Talk, Invalid> {
        let (send, expect) = (self.send.as_deref().unwrap_or_default(), self.expect.as_deref().unwrap_or_default());
        limit(&key(at, "send"), "bytes", send.len(), MAX_DATAGRAM)?;
        limit(&key(at, "expect"), "bytes", expect.len(), MAX_DATAGRAM)?;
        Ok(Talk::Udp { send: Text::from(send), expect: Text::from(expect) })
    }

    fn script_probe(&self, at: &str) -> Result<Probe, Invalid> {
        let at = key(at, "args");
        limit(&at, "arguments", self.args.len(), MAX_ARGS)?;
        for (index, arg) in self.args.iter().enumerate() {
            limit(&format!("{at}[{index}]"), "bytes", arg.len(), MAX_ARG)?;
            if arg.contains('\0') {
                return Err(Invalid::new(format!("{at}[{index}]"), "it holds a NUL, which no argument can: remove it"));
            }
        }
        if self.args.first().is_none_or(|program| !program.starts_with('/')) {
            let message = "the program is named by its path: write for example [\"/usr/local/bin/check\", \"--fast\"]";
            return Err(Invalid::new(format!("{at}[0]"), message));
        }
        Ok(Probe::Script { args: self.args.iter().map(|arg| Text::from(arg.as_str())).collect() })
    }

    fn tls_options(&self, at: &str, identified: bool) -> Result<TlsOptions, Invalid> {
        let text = |value: &Option<String>| value.as_deref().filter(|value| !value.is_empty()).map(Text::from);
        let (ca_file, server_name) = (text(&self.ca_file), text(&self.tls_server_name));
        if let Some(path) = ca_file.as_ref().filter(|path| !path.starts_with('/')) {
            let message = format!("{:?} is no whole path: write for example \"/etc/muster/ca.pem\"", shorten(path));
            return Err(Invalid::new(key(at, "ca_file"), message));
        }
        if let Some(name) = server_name.as_ref().filter(|name| ServerName::try_from(&***name).is_err()) {
            let message = format!("{:?} is no name of a server: write a DNS name or an IP address", shorten(name));
            return Err(Invalid::new(key(at, "tls_server_name"), message));
        }
        let skip_verify = self.tls_skip_verify.unwrap_or(false);
        if skip_verify && identified {
            let message = "an unverified certificate proves no identity: remove it, and give ca_file if need be";
            return Err(Invalid::new(key(at, "tls_skip_verify"), message));
        }
        Ok(TlsOptions { ca_file, server_name, skip_verify })
    }
}

fn identity(at: &str, written: &IdentityText) -> Result<ExpectedIdentity, Invalid> {
    let text = |value: &Option<String>| value.as_deref().filter(|value| !value.is_empty()).map(Text::from);
    let (header, value) = (text(&written.header), text(&written.value));
    match (header, value, text(&written.certificate)) {
        (Some(name), Some(value), None) => {
            if HeaderName::from_bytes(name.as_bytes()).is_err() || name.len() + value.len() > MAX_HEADER {
                let message = format!("{:?} is no HTTP header: write for example \"X-Service\"", shorten(&name));
                return Err(Invalid::new(key(at, "header"), message));
            }
            Ok(ExpectedIdentity::Header { name, value })
        }
        (None, None, Some(name)) => {
            validate_text(&key(at, "certificate"), &name, MAX_URL)?;
            if !name.contains("://") && ServerName::try_from(&*name).is_err() {
                let message = format!("{:?} is no name: write a DNS name or a URI (spiffe://…)", shorten(&name));
                return Err(Invalid::new(key(at, "certificate"), message));
            }
            Ok(ExpectedIdentity::Certificate(name))
        }
        _ => {
            let message =
                "write either { header = \"X-Service\", value = \"web\" } or { certificate = \"web.internal\" }";
            Err(Invalid::new(at, message))
        }
    }
}

fn validate_target(at: &str, written: &str, target: &str) -> Result<(), Invalid> {
    validate_text(at, written, MAX_URL)?;
    let refuse = |why: &str| {
        Err(Invalid::new(at, format!("{:?} is no target: {why}, for example \"127.0.0.1:5432\"", shorten(written))))
    };
    if let Some((_, rest)) = target.split_once("://") {
        let rest = shorten(rest);
        return refuse(&format!("leave out the scheme and write host:port ({rest:?})"));
    }
    if target.parse::<Ipv6Addr>().is_ok() {
        return refuse(&format!(
            "an IPv6 address stands in brackets before its port (\"[{target}]:5432\"); write host:port"
        ));
    }
    let Some((host, port)) = target.rsplit_once(':').filter(|(host, _)| !host.is_empty()) else {
        return refuse("write host:port");
    };
    if !port.parse::<u16>().is_ok_and(|port| port != 0) {
        return refuse("a port is 1 to 65535; write host:port");
    }
    match host.strip_prefix('[').map(|inner| inner.strip_suffix(']').unwrap_or_default()) {
        Some(inner) if inner.parse::<Ipv6Addr>().is_err() => {
            refuse("in the brackets stands no IPv6 address; write host:port")
        }
        Some(_) => Ok(()),
        None if host.contains(':') => {
            refuse("an IPv6 address stands in brackets (\"[2001:db8::1]:5432\"); write host:port")
        }
        None if Address::parse(host).is_none() && host.parse::<IpAddr>().is_err() => {
            refuse("its host is neither a host name nor an IP address; write host:port")
        }
        None => Ok(()),
    }
}

fn unit(at: &str, name: &str) -> Result<Text, Invalid> {
    validate_text(at, name, MAX_UNIT)?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte);
    if !name.bytes().all(plain)
        || !name.rsplit_once('.').is_some_and(|(stem, kind)| !stem.is_empty() && !kind.is_empty())
    {
        let message = format!("{:?} is no unit: write its full name, for example \"nginx.service\"", shorten(name));
        return Err(Invalid::new(at, message));
    }
    Ok(Text::from(name))
}
