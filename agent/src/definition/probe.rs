//! What a check does, once its rules hold.

mod rules;
mod text;

use std::{collections::BTreeMap, time::Duration};

use muster_catalog::{InstanceId, Text};

use super::{CheckDefinition, FlapRules};

/// What a check does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// Asks a URL.
    Http(Box<HttpProbe>),
    /// Talks to a port.
    Socket(Box<SocketProbe>),
    /// Runs a program.
    Script {
        /// The program and its arguments; not empty.
        args: Vec<Text>,
    },
    /// Follows the checks of another service of this node and of the node, or (`None`) of the node alone.
    Alias {
        /// The service's id.
        service: Option<InstanceId>,
    },
    /// Asks systemd for the state of a unit.
    Systemd {
        /// Its full name: `nginx.service`.
        unit: Text,
    },
    /// Waits to be told, and expires.
    Ttl {
        /// How long an update holds.
        ttl: Duration,
    },
}

/// An HTTP request and how its answer is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpProbe {
    /// An `http` or `https` URL.
    pub url: Text,
    /// The request's method.
    pub method: Text,
    /// Further headers.
    pub headers: BTreeMap<Text, Text>,
    /// The request's body.
    pub body: Text,
    /// Whether redirects are followed (at most five).
    pub follow_redirects: bool,
    /// How `https` is verified.
    pub tls: TlsOptions,
    /// Who has to answer.
    pub identity: Option<ExpectedIdentity>,
    /// Whether it may go to link-local and metadata addresses.
    pub allow_link_local: bool,
}

/// A conversation with one port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketProbe {
    /// `host:port`.
    pub target: Text,
    /// What is said.
    pub talk: Talk,
    /// How TLS is verified; `None` speaks without.
    pub tls: Option<TlsOptions>,
    /// The name that the certificate has to carry: a DNS name or a URI such as a SPIFFE id.
    pub certificate: Option<Text>,
    /// Whether it may go to link-local and metadata addresses.
    pub allow_link_local: bool,
}

/// What is said to a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Talk {
    /// Nothing: a connection is good.
    Tcp,
    /// A datagram, which must be answered.
    Udp {
        /// What is sent; may be empty.
        send: Text,
        /// What the answer must hold; may be empty.
        expect: Text,
    },
    /// `grpc.health.v1.Health/Check`.
    Grpc {
        /// The service asked for; empty asks for the server.
        service: Text,
    },
    /// An HTTP/2 PING.
    H2Ping,
    /// Redis' PING.
    Redis,
    /// PostgreSQL's start of a session.
    Postgres,
    /// MySQL's greeting.
    Mysql,
}

impl Talk {
    /// The word for it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp { .. } => "udp",
            Self::Grpc { .. } => "grpc",
            Self::H2Ping => "h2ping",
            Self::Redis => "redis",
            Self::Postgres => "postgres",
            Self::Mysql => "mysql",
        }
    }
}

/// How a server's certificate is verified.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// A PEM file of roots, instead of the host's. Read again when it changes.
    pub ca_file: Option<Text>,
    /// The name asked for and verified, instead of the target's host.
    pub server_name: Option<Text>,
    /// Whether any certificate will do.
    pub skip_verify: bool,
}

/// Who has to answer, so that another process on a recycled port does not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExpectedIdentity {
    /// A header of the answer with exactly this value.
    Header {
        /// Its name.
        name: Text,
        /// Its value.
        value: Text,
    },
    /// A name in the server's certificate: a DNS name or a URI such as a SPIFFE id.
    Certificate(Text),
}

impl Probe {
    /// The word for it, also the metric label.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Http(_) => "http",
            Self::Socket(probe) => probe.talk.kind(),
            Self::Script { .. } => "script",
            Self::Alias { .. } => "alias",
            Self::Systemd { .. } => "systemd",
            Self::Ttl { .. } => "ttl",
        }
    }

    /// What is probed, for people; empty for TTL. Of a script only the program: arguments may hold secrets.
    pub fn target(&self) -> Text {
        match self {
            Self::Http(probe) => probe.url.clone(),
            Self::Socket(probe) => match &probe.talk {
                Talk::Grpc { service } if !service.is_empty() => format!("{}/{service}", probe.target).into(),
                _ => probe.target.clone(),
            },
            Self::Script { args } => args.first().cloned().unwrap_or_default(),
            Self::Alias { service } => service.clone().unwrap_or_else(|| "node".into()),
            Self::Systemd { unit } => unit.clone(),
            Self::Ttl { .. } => Text::default(),
        }
    }

    /// How flapping is damped unless its definition says: what probes is, what is told its status is believed.
    pub fn default_flaps(&self) -> Option<FlapRules> {
        (!self.is_told()).then(FlapRules::default)
    }

    /// Whether it follows events instead of probing at an interval.
    pub fn is_told(&self) -> bool {
        matches!(self, Self::Ttl { .. } | Self::Alias { .. })
    }
}

impl CheckDefinition {
    /// The key, if there is one, that only a definition file may hold: whoever reaches the API must not thereby run
    /// programs, learn what files exist, or reach the metadata service of the host's cloud.
    pub fn find_file_only_key(&self) -> Option<&'static str> {
        let (tls, allow_link_local) = match &self.probe {
            Probe::Script { .. } => return Some("args"),
            Probe::Http(probe) => (Some(&probe.tls), probe.allow_link_local),
            Probe::Socket(probe) => (probe.tls.as_ref(), probe.allow_link_local),
            Probe::Alias { .. } | Probe::Systemd { .. } | Probe::Ttl { .. } => return None,
        };
        let ca_file = tls.and_then(|tls| tls.ca_file.as_ref()).map(|_| "ca_file");
        ca_file.or(allow_link_local.then_some("allow_link_local"))
    }
}
