//! The agent itself, and its instances.

use std::collections::BTreeMap;

use muster_catalog::{Instance, Meta};
use serde::Serialize;
use serde_json::{Value, json};

use super::{NodeServiceParts, member::Member};
use crate::port::Identity;

/// Who answers here, as `agent/self` shows it.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct AgentSelf<'a> {
    config: Value,
    debug_config: Value,
    member: Member,
    stats: BTreeMap<&'static str, BTreeMap<&'static str, String>>,
    meta: &'a Meta,
    #[serde(rename = "xDS")]
    xds: Value,
}

impl<'a> AgentSelf<'a> {
    /// The agent, with its counts.
    pub(crate) fn new(identity: &'a Identity, member: Member, services: usize, checks: usize) -> Self {
        let counts = [("services", services.to_string()), ("checks", checks.to_string())];
        Self {
            config: json!({
                "Datacenter": identity.datacenter,
                "PrimaryDatacenter": identity.datacenter,
                "NodeName": identity.name.as_str(),
                "NodeID": identity.id,
                "Server": false,
                "Revision": "",
                "Version": identity.version,
            }),
            debug_config: json!({}),
            member,
            stats: BTreeMap::from([("agent", BTreeMap::from(counts))]),
            meta: &identity.meta,
            xds: json!({ "SupportedProxies": {} }),
        }
    }
}

/// An instance of this agent.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct AgentService<'a> {
    #[serde(flatten)]
    parts: NodeServiceParts<'a>,
    datacenter: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_hash: Option<String>,
}

/// An instance of the agent; with its hash where a single one is asked for.
pub(crate) fn agent_service<'a>(
    instance: &'a Instance,
    datacenter: &'a str,
    content_hash: Option<String>,
) -> AgentService<'a> {
    AgentService { parts: NodeServiceParts::new(instance), datacenter, content_hash }
}

/// A short text that differs when the instance does.
pub(crate) fn content_hash(instance: &Instance) -> Result<String, serde_json::Error> {
    // FNV-1a: the same for every build, unlike the standard library's hasher.
    let text = serde_json::to_vec(&NodeServiceParts::new(instance))?;
    let hash = text
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3));
    Ok(format!("{hash:016x}"))
}
