//! The paths of the dialect that are not built: each says so by name. A 404 would read as an answer, since clients take
//! it for "no such key", "no such service" or "critical".

use axum::http::Uri;

use crate::error::HttpError;

/// The first words of such a path under `/v1/`, and what they belong to. A path belongs to the longest that it begins with.
const UNBUILT: [(&str, &str); 44] = [
    ("acl", "access control lists"),
    ("agent/connect/authorize", "intentions"),
    ("agent/connect/ca", "certificates of services"),
    ("agent/force-leave", "forcing a member to leave"),
    ("agent/host", "facts about the host"),
    ("agent/join", "joining by gossip"),
    ("agent/leave", "leaving by request"),
    ("agent/maintenance", "maintenance of a node"),
    ("agent/metrics", "metrics as JSON (GET /metrics has them as Prometheus text)"),
    ("agent/monitor", "streaming the log"),
    ("agent/profile", "profiles"),
    ("agent/reload", "reloading by request"),
    ("agent/token", "tokens of the agent"),
    ("agent/version", "the agent's version (GET /v1/agent/self has it)"),
    ("api", "the resource API"),
    ("catalog/connect", "services with sidecars"),
    ("catalog/gateway-services", "gateways"),
    ("config", "configuration entries"),
    ("connect/ca", "the certificate authority"),
    ("connect/intentions", "intentions"),
    ("coordinate", "network coordinates"),
    ("discovery-chain", "discovery chains"),
    ("event", "events"),
    ("exported-services", "exported services"),
    ("health/connect", "services with sidecars"),
    ("health/ingress", "gateways"),
    ("imported-services", "imported services"),
    ("internal", "the internal API"),
    ("kv", "the key-value store"),
    ("operator/area", "network areas"),
    ("operator/autopilot", "autopilot's settings (muster registry members shows what it does)"),
    ("operator/keyring", "gossip keys"),
    ("operator/license", "licences"),
    ("operator/raft", "changes of members (muster registry has commands for them)"),
    ("operator/segment", "network segments"),
    ("operator/usage", "usage counts"),
    ("operator/utilization", "usage reports"),
    ("peering", "peering"),
    ("peerings", "peering"),
    ("query", "prepared queries"),
    ("session", "sessions"),
    ("snapshot", "snapshots (muster registry backup makes one)"),
    ("txn", "transactions"),
    ("validate", "validation by request"),
];

/// What is answered to a path that no route has.
pub(crate) async fn refuse_path(uri: Uri) -> HttpError {
    match find_unbuilt(uri.path()) {
        Some(what) => HttpError::Unbuilt { path: uri.path().to_owned(), what },
        None if uri.path() == "/v1" || uri.path().starts_with("/v1/") => {
            HttpError::NotFound("Invalid URL path: not a recognized HTTP API endpoint".to_owned())
        }
        None => HttpError::NotFound(
            "Invalid URL path: if attempting to use the HTTP API, ensure the path starts with '/v1/'".to_owned(),
        ),
    }
}

fn find_unbuilt(path: &str) -> Option<&'static str> {
    let path = path.strip_prefix("/v1/")?;
    let belongs = |words: &str| path.strip_prefix(words).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    UNBUILT.iter().find(|(words, _)| belongs(words)).map(|(_, what)| *what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_belongs_to_whole_words() {
        let table = [
            ("/v1/kv/a/b", Some("the key-value store")),
            ("/v1/kv", Some("the key-value store")),
            ("/v1/kvs", None),
            ("/v1/peerings", Some("peering")),
            ("/v1/health/connect/web", Some("services with sidecars")),
            ("/v1/health/services/web", None),
            ("/kv/a", None),
        ];
        for (path, what) in table {
            assert_eq!(find_unbuilt(path), what, "{path}");
        }
    }
}
