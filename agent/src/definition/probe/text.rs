//! From a probe back to its written form.

use muster_catalog::Text;

use super::{ExpectedIdentity, HttpProbe, Probe, SocketProbe, Talk, TlsOptions};
use crate::definition::{CheckText, IdentityText, format_duration};

impl CheckText {
    /// Writes the keys that say what the check does.
    pub(crate) fn write_probe(&mut self, probe: &Probe) {
        match probe {
            Probe::Ttl { ttl } => self.ttl = Some(format_duration(*ttl)),
            Probe::Socket(probe) => self.write_socket(probe),
            Probe::Http(probe) => self.write_http(probe),
            Probe::Script { args } => self.args = args.iter().map(Text::to_string).collect(),
            Probe::Alias { service: Some(service) } => self.alias_service = Some(service.to_string()),
            Probe::Alias { service: None } => self.alias_node = Some(true),
            Probe::Systemd { unit } => self.systemd = Some(unit.to_string()),
        }
    }

    fn write_http(&mut self, probe: &HttpProbe) {
        self.http = Some(probe.url.to_string());
        self.method = Some(probe.method.to_string());
        self.headers = probe.headers.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        self.body = (!probe.body.is_empty()).then(|| probe.body.to_string());
        self.follow_redirects = Some(probe.follow_redirects);
        self.write_tls(&probe.tls);
        self.expect_identity = probe.identity.as_ref().map(IdentityText::from);
        self.allow_link_local = probe.allow_link_local.then_some(true);
    }

    fn write_socket(&mut self, probe: &SocketProbe) {
        let target = Some(probe.target.to_string());
        match &probe.talk {
            Talk::Tcp => self.tcp = target,
            Talk::Udp { send, expect } => {
                self.udp = target;
                self.send = (!send.is_empty()).then(|| send.to_string());
                self.expect = (!expect.is_empty()).then(|| expect.to_string());
            }
            Talk::Grpc { service } if service.is_empty() => self.grpc = target,
            Talk::Grpc { service } => self.grpc = Some(format!("{}/{service}", probe.target)),
            Talk::H2Ping => self.h2ping = target,
            Talk::Redis => self.redis = target,
            Talk::Postgres => self.postgres = target,
            Talk::Mysql => self.mysql = target,
        }
        self.tls = probe.tls.is_some().then_some(true);
        if let Some(tls) = &probe.tls {
            self.write_tls(tls);
        }
        let certificate = probe.certificate.as_ref().map(Text::to_string);
        self.expect_identity = certificate.map(|name| IdentityText { certificate: Some(name), ..Default::default() });
        self.allow_link_local = probe.allow_link_local.then_some(true);
    }

    fn write_tls(&mut self, tls: &TlsOptions) {
        self.ca_file = tls.ca_file.as_ref().map(Text::to_string);
        self.tls_server_name = tls.server_name.as_ref().map(Text::to_string);
        self.tls_skip_verify = tls.skip_verify.then_some(true);
    }
}

impl From<&ExpectedIdentity> for IdentityText {
    fn from(identity: &ExpectedIdentity) -> Self {
        match identity {
            ExpectedIdentity::Header { name, value } => {
                Self { header: Some(name.to_string()), value: Some(value.to_string()), certificate: None }
            }
            ExpectedIdentity::Certificate(name) => Self { certificate: Some(name.to_string()), ..Self::default() },
        }
    }
}
