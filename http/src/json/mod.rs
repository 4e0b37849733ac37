//! The nouns of the catalog in the v1 dialect's JSON: one file per noun, borrowed from the rows.

mod agent;
mod check;
mod member;
mod mesh;
mod node;
mod service;

pub(crate) use agent::{AgentSelf, AgentService, agent_service, content_hash};
pub(crate) use check::{Check, entry_checks, local_checks, service_checks};
pub(crate) use member::{Member, agent_member, registry_member};
pub(crate) use node::Node;
pub(crate) use service::{CatalogService, NodeService, NodeServiceParts};
