//! By what name a client called this server. A web page can make its own name lead to this host (DNS rebinding) and
//! then asks here as if it belonged here; its name is in `Host`, and in `Origin`.

use std::{net::IpAddr, sync::Arc};

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderName, Method, header},
};

use crate::error::HttpError;

/// The names that clients may use.
#[derive(Debug)]
pub(crate) struct AllowedHosts(Vec<String>);

impl AllowedHosts {
    /// These, beside IP addresses and `localhost`; one that begins with a dot stands for all names below it.
    pub(crate) fn new(names: &[String]) -> Arc<Self> {
        Arc::new(Self(names.iter().map(|name| name.to_ascii_lowercase()).collect()))
    }

    /// Whether `host`, `host:port` or `[address]:port` is one.
    fn allows(&self, authority: &str) -> bool {
        let Some(host) = host_of(authority) else { return false };
        if host.parse::<IpAddr>().is_ok() {
            return true;
        }
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let is = |name: &str| if name.starts_with('.') { host.ends_with(name) } else { host == name };
        is("localhost") || is(".localhost") || self.0.iter().any(|name| is(name))
    }
}

/// The host of an authority, without brackets and port.
fn host_of(authority: &str) -> Option<&str> {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split_once(']').map(|(host, _)| host);
    }
    let host = authority.split_once(':').map_or(authority, |(host, _)| host);
    (!host.is_empty()).then_some(host)
}

/// Why a request is not answered: it is for `/v1/` by a name that is not this server's, or a write that a web page elsewhere
/// sends.
pub(crate) fn refusal(hosts: &AllowedHosts, request: &Request) -> Option<HttpError> {
    if !request.uri().path().starts_with("/v1/") {
        return None;
    }
    let named = request.uri().authority().map(|authority| authority.as_str());
    let named = named.or_else(|| text(request.headers(), header::HOST));
    if let Some(name) = named.filter(|name| !hosts.allows(name)) {
        return Some(HttpError::Foreign { header: "Host", value: name.to_owned() });
    }
    let reads = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    let origin = text(request.headers(), header::ORIGIN).filter(|_| !reads)?;
    let authority = origin.split_once("://").map_or("", |(_, authority)| authority);
    (!hosts.allows(authority)).then(|| HttpError::Foreign { header: "Origin", value: origin.to_owned() })
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    // What is no text is no name of ours either.
    headers.get(name).map(|value| value.to_str().unwrap_or(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_ours_or_an_address_or_listed() {
        let hosts = AllowedHosts::new(&["web-17".into(), ".mesh.internal".into()]);
        let table = [
            ("127.0.0.1:8500", true),
            ("10.1.2.3", true),
            ("[::1]:8500", true),
            ("localhost:8500", true),
            ("LOCALHOST.", true),
            ("a.localhost", true),
            ("WEB-17:8500", true),
            ("web-17.node.mesh.internal:8500", true),
            ("mesh.internal", false),
            ("evil.example:8500", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("evilmesh.internal", false),
            ("", false),
            (":8500", false),
            ("[::1", false),
        ];
        for (authority, allowed) in table {
            assert_eq!(hosts.allows(authority), allowed, "{authority}");
        }
    }
}
