//! Members, as the dialect's gossip lists them: agents by their liveness check, and the registry's servers.

use std::collections::BTreeMap;

use muster_catalog::{NodeEntry, Status};
use serde::Serialize;

use super::node::address_text;
use crate::port::MemberInfo;

/// The dialect's number for a member that answers.
const ALIVE: u8 = 1;
/// The dialect's number for a member that does not.
const FAILED: u8 = 4;

/// A member of the dialect's `agent/members`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Member {
    name: String,
    addr: String,
    port: u16,
    tags: BTreeMap<&'static str, String>,
    status: u8,
    protocol_min: u8,
    protocol_max: u8,
    protocol_cur: u8,
    delegate_min: u8,
    delegate_max: u8,
    delegate_cur: u8,
}

impl Member {
    /// An agent by its facts.
    pub(crate) fn agent(
        name: &str,
        address: &muster_catalog::Address,
        id: &str,
        datacenter: &str,
        alive: bool,
    ) -> Self {
        let tags = BTreeMap::from([("role", "node".to_owned()), ("dc", datacenter.to_owned()), ("id", id.to_owned())]);
        Self::new(name.to_owned(), address_text(address).into_owned(), 0, tags, alive)
    }

    fn new(name: String, addr: String, port: u16, tags: BTreeMap<&'static str, String>, alive: bool) -> Self {
        // There is no gossip here: its protocol versions are zero.
        let status = if alive { ALIVE } else { FAILED };
        Self {
            name,
            addr,
            port,
            tags,
            status,
            protocol_min: 0,
            protocol_max: 0,
            protocol_cur: 0,
            delegate_min: 0,
            delegate_max: 0,
            delegate_cur: 0,
        }
    }
}

/// A node with an agent; `None` for one without.
pub(crate) fn agent_member(entry: &NodeEntry, datacenter: &str) -> Option<Member> {
    let node = &*entry.node.value;
    let alive = entry.liveness()?.value.status == Status::Passing;
    Some(Member::agent(node.name.as_str(), &node.address, &node.id, datacenter, alive))
}

/// A member of the registry, under the role that clients of the dialect look servers up by.
pub(crate) fn registry_member(member: &MemberInfo, datacenter: &str) -> Member {
    let (host, port) = member.address.rsplit_once(':').unwrap_or((&member.address, "0"));
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let tags =
        BTreeMap::from([("role", "consul".to_owned()), ("dc", datacenter.to_owned()), ("port", port.to_owned())]);
    Member::new(member.name.clone(), host.to_owned(), port.parse().unwrap_or(0), tags, member.alive)
}
