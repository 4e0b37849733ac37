//! Values that a newcomer writes and that can only be a mistake.

use std::{net::SocketAddr, path::Path};

use super::{Config, ConfigError, bad};

/// How others reach something: a name or an address, and a port.
pub(super) fn check_host_port(key: &'static str, given: &str) -> Result<(), ConfigError> {
    if given.contains("://") {
        return Err(bad(key, given, "leave the scheme away: write it as host:port, for example registry-1:8300"));
    }
    let read = given.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
    match read {
        Some((host, _)) if !host.is_empty() && !host.contains(['/', '@', ' ']) => Ok(()),
        _ => Err(bad(key, given, "write it as host:port, for example registry-1:8300")),
    }
}

/// A directory as the system has it: a shell would have made one of `~` and `$HOME`, here nobody does.
pub(super) fn check_directory(key: &'static str, given: &Path) -> Result<(), ConfigError> {
    let shown = || format!("{:?}", given.display().to_string());
    let written = given.as_os_str().as_encoded_bytes();
    if written.is_empty() {
        return Err(bad(key, shown(), "it is empty: give a directory, for example /var/lib/muster"));
    }
    if written.starts_with(b"~") || written.contains(&b'$') {
        let why =
            "no shell reads this, so ~ and $ stand for nothing: write the whole path, for example /var/lib/muster";
        return Err(bad(key, shown(), why));
    }
    Ok(())
}

/// Two listeners of one process at one address: the second could not be bound, and would blame another process.
pub(super) fn check_shared(config: &Config) -> Result<(), ConfigError> {
    let dns = config.dns.listen.iter().map(|address| ("dns.listen", *address));
    let agent = [("http.listen", config.http.listen), ("xds.listen", config.xds.listen)].into_iter().chain(dns);
    let registry = &config.registry;
    let member = [("registry.listen", registry.listen), ("registry.metrics_listen", registry.metrics_listen)];
    refuse_shared(&agent.collect::<Vec<_>>())?;
    refuse_shared(&member)
}

fn refuse_shared(listeners: &[(&'static str, SocketAddr)]) -> Result<(), ConfigError> {
    for (at, (key, address)) in listeners.iter().enumerate() {
        let other = listeners[..at].iter().find(|(_, other)| other == address && address.port() != 0);
        if let Some((other, _)) = other {
            return Err(bad(key, address, format!("{other} has this address: give each a port of its own")));
        }
    }
    Ok(())
}
