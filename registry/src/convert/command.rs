//! What is asked.

use muster_catalog::{Command, NodeSync, Proposal, Registration, Removal};

use super::{
    ConvertError, all, from_node_writer, from_row_key, from_texts, name, node_writer, required,
    row::{from_status, status},
    row_key, texts, timestamp,
};
use crate::proto::catalog::{self as pb, command::Kind, removal};

impl From<&Proposal> for pb::Proposal {
    fn from(proposal: &Proposal) -> Self {
        Self { at_milliseconds: proposal.at.0, command: Some((&proposal.command).into()), restore: None }
    }
}

impl TryFrom<pb::Proposal> for Proposal {
    type Error = ConvertError;

    fn try_from(proposal: pb::Proposal) -> Result<Self, ConvertError> {
        let command = required("proposal.command", proposal.command)?.try_into()?;
        Ok(Self { at: timestamp(proposal.at_milliseconds), command })
    }
}

impl From<&Command> for pb::Command {
    fn from(command: &Command) -> Self {
        let kind = match command {
            Command::Bootstrap(cluster) => Kind::Bootstrap(cluster.into()),
            Command::SetFormat(format) => Kind::SetFormat(*format),
            Command::Sync(sync) => Kind::Sync(sync.into()),
            Command::Leave { node, writer } => Kind::Leave(node_writer(node, *writer)),
            Command::Liveness { nodes, status: verdict } => {
                let nodes = nodes.iter().map(|(node, incarnation)| pb::NodeIncarnation {
                    node: node.to_string(),
                    incarnation: *incarnation,
                });
                Kind::Liveness(pb::Liveness { nodes: nodes.collect(), status: status(*verdict).into() })
            }
            Command::Register(registration) => Kind::Register(registration.into()),
            Command::Deregister(removal) => Kind::Deregister(removal.into()),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<pb::Command> for Command {
    type Error = ConvertError;

    fn try_from(command: pb::Command) -> Result<Self, ConvertError> {
        Ok(match required("command.kind", command.kind)? {
            Kind::Bootstrap(cluster) => Self::Bootstrap(cluster.into()),
            Kind::SetFormat(format) => Self::SetFormat(format),
            Kind::Sync(sync) => Self::Sync(sync.try_into()?),
            Kind::Leave(row) => {
                let (node, writer) = from_node_writer(row)?;
                Self::Leave { node, writer }
            }
            Kind::Liveness(liveness) => {
                let nodes = liveness.nodes.iter();
                let nodes = nodes.map(|row| Ok((name("command.liveness.node", &row.node)?, row.incarnation)));
                Self::Liveness {
                    nodes: nodes.collect::<Result<_, ConvertError>>()?,
                    status: from_status("command.liveness.status", liveness.status)?,
                }
            }
            Kind::Register(registration) => Self::Register(registration.try_into()?),
            Kind::Deregister(removal) => Self::Deregister(removal.try_into()?),
        })
    }
}

impl From<&NodeSync> for pb::NodeSync {
    fn from(sync: &NodeSync) -> Self {
        Self {
            writer: Some(sync.writer.into()),
            node: Some((&sync.node).into()),
            complete: sync.complete,
            instances: sync.instances.iter().map(Into::into).collect(),
            checks: sync.checks.iter().map(Into::into).collect(),
            removed_instances: texts(&sync.removed_instances),
            removed_checks: texts(&sync.removed_checks),
        }
    }
}

impl TryFrom<pb::NodeSync> for NodeSync {
    type Error = ConvertError;

    fn try_from(sync: pb::NodeSync) -> Result<Self, ConvertError> {
        Ok(Self {
            writer: required("command.sync.writer", sync.writer)?.into(),
            node: required("command.sync.node", sync.node)?.try_into()?,
            complete: sync.complete,
            instances: all(sync.instances)?,
            checks: all(sync.checks)?,
            removed_instances: from_texts(&sync.removed_instances),
            removed_checks: from_texts(&sync.removed_checks),
        })
    }
}

impl From<&Registration> for pb::Registration {
    fn from(registration: &Registration) -> Self {
        Self {
            name: registration.name.to_string(),
            node: registration.node.as_ref().map(Into::into),
            instances: registration.instances.iter().map(Into::into).collect(),
            checks: registration.checks.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pb::Registration> for Registration {
    type Error = ConvertError;

    fn try_from(registration: pb::Registration) -> Result<Self, ConvertError> {
        Ok(Self {
            name: name("command.register.name", &registration.name)?,
            node: registration.node.map(TryInto::try_into).transpose()?,
            instances: all(registration.instances)?,
            checks: all(registration.checks)?,
        })
    }
}

impl From<&Removal> for pb::Removal {
    fn from(removal: &Removal) -> Self {
        let kind = match removal {
            Removal::Node(node) => removal::Kind::Node(node.to_string()),
            Removal::Instance { node, id } => removal::Kind::Instance(row_key(node, id)),
            Removal::Check { node, id } => removal::Kind::Check(row_key(node, id)),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<pb::Removal> for Removal {
    type Error = ConvertError;

    fn try_from(removal: pb::Removal) -> Result<Self, ConvertError> {
        Ok(match required("command.deregister.kind", removal.kind)? {
            removal::Kind::Node(node) => Self::Node(name("command.deregister.node", &node)?),
            removal::Kind::Instance(key) => {
                let (node, id) = from_row_key(&key)?;
                Self::Instance { node, id }
            }
            removal::Kind::Check(key) => {
                let (node, id) = from_row_key(&key)?;
                Self::Check { node, id }
            }
        })
    }
}
