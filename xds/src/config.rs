//! What the operator decides about xDS.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use muster_catalog::Name;

/// Envoy gives up on a connection to an endpoint after this long unless told otherwise. Hosts of one network answer
/// in milliseconds; a second leaves room for one lost SYN.
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The longest connect timeout that is taken for meant: beyond it a request waits longer than any client does.
const MAX_CONNECT_TIMEOUT: Duration = Duration::from_secs(300);

/// What an agent serves over xDS.
#[derive(Debug, Clone, PartialEq)]
pub struct XdsConfig {
    /// The zones under which the HTTP listener knows services (`web.service.<zone>`), the same as DNS serves.
    pub zones: Vec<Name>,
    /// This datacenter (`web.service.<datacenter>.<zone>`).
    pub datacenter: Name,
    /// The agent's node: registered proxies on it are served by their id, and what is near it is preferred.
    pub node: Option<Name>,
    /// What a client gets whose node id is no registered proxy: `xds.unregistered`.
    pub unregistered: Unregistered,
    /// Where such an Envoy listens for HTTP: `xds.http_listener`.
    pub http_listener: SocketAddr,
    /// Below this share of healthy endpoints, in percent, Envoy spreads over all of them: `xds.healthy_panic_threshold`.
    pub healthy_panic_threshold: f64,
    /// How long Envoy tries to connect to an endpoint: `xds.connect_timeout`.
    pub connect_timeout: Duration,
}

/// What a client gets whose node id is no registered proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unregistered {
    /// All services, and one HTTP listener that routes to them.
    All,
    /// Nothing: its stream is refused.
    None,
}

impl Default for XdsConfig {
    fn default() -> Self {
        Self {
            zones: vec![Name::lookup("mesh.internal")],
            datacenter: Name::lookup("dc1"),
            node: None,
            unregistered: Unregistered::None,
            http_listener: SocketAddr::from((Ipv4Addr::LOCALHOST, 10_000)),
            healthy_panic_threshold: 0.0,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
        }
    }
}

/// Why a configuration cannot be served.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// Not a percentage.
    #[error("xds.healthy_panic_threshold is {0}: give a percentage from 0 (never route to unhealthy endpoints) to 100")]
    PanicThreshold(f64),
    /// Too short or too long.
    #[error("xds.connect_timeout is {0:?}: give more than 0 s and at most {MAX_CONNECT_TIMEOUT:?}")]
    ConnectTimeout(Duration),
    /// Envoy would reject a listener without a port it can be reached at.
    #[error("xds.http_listener is {0}: give a port other than 0, it is Envoy that binds it and clients must know it")]
    ListenerPort(SocketAddr),
}

impl XdsConfig {
    /// Refuses what every Envoy would reject.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if !(0.0..=100.0).contains(&self.healthy_panic_threshold) {
            return Err(ConfigError::PanicThreshold(self.healthy_panic_threshold));
        }
        if self.connect_timeout.is_zero() || self.connect_timeout > MAX_CONNECT_TIMEOUT {
            return Err(ConfigError::ConnectTimeout(self.connect_timeout));
        }
        if self.http_listener.port() == 0 {
            return Err(ConfigError::ListenerPort(self.http_listener));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_envoy_would_reject_is_refused_by_name() {
        let refused = |change: fn(&mut XdsConfig)| {
            let mut config = XdsConfig::default();
            assert_eq!(config.validate(), Ok(()));
            change(&mut config);
            config.validate().unwrap_err().to_string()
        };
        assert!(refused(|c| c.healthy_panic_threshold = 101.0).contains("xds.healthy_panic_threshold is 101"));
        assert!(refused(|c| c.healthy_panic_threshold = f64::NAN).contains("xds.healthy_panic_threshold"));
        assert!(refused(|c| c.connect_timeout = Duration::ZERO).contains("xds.connect_timeout"));
        assert!(refused(|c| c.http_listener.set_port(0)).contains("xds.http_listener"));
    }
}
