//! What was asked of the registry, and why it may be refused.

use crate::{Check, CheckId, ClusterId, Instance, InstanceId, Name, NameError, Node, Status, Timestamp, Writer};

/// A command with all that `decide` may not find out by itself, stamped by the leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// `max(the last entry's, the leader's clock)`.
    pub at: Timestamp,
    /// What is asked.
    pub command: Command,
}

/// What may be asked of the registry. Only ever added to: old logs must decide as they did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Gives the registry its identity; the first one wins.
    Bootstrap(ClusterId),
    /// Raises the catalog format once every member knows it.
    SetFormat(u32),
    /// An agent's push of its LocalState.
    Sync(NodeSync),
    /// A node's agent leaves in order: the node and all on it go.
    Leave {
        /// The node.
        node: Name,
        /// The agent's write order.
        writer: Writer,
    },
    /// The leader's verdict on nodes' leases: one Change to one check per node.
    Liveness {
        /// Each node with the incarnation that the verdict is about.
        nodes: Vec<(Name, u64)>,
        /// `Passing` for a return, `Critical` for a loss.
        status: Status,
    },
    /// The catalog API's registration, for what has no agent.
    Register(Registration),
    /// The catalog API's removal.
    Deregister(Removal),
}

/// An agent's push: its node, rows to put and rows to remove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSync {
    /// The order among this node's writes.
    pub writer: Writer,
    /// The node itself.
    pub node: Node,
    /// Whether the rows are all of the agent's: those not named go.
    pub complete: bool,
    /// Instances to put.
    pub instances: Vec<Instance>,
    /// Checks to put.
    pub checks: Vec<Check>,
    /// Instances to remove, with their checks.
    pub removed_instances: Vec<InstanceId>,
    /// Checks to remove.
    pub removed_checks: Vec<CheckId>,
}

/// A registration through the catalog API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// The node that the rows belong to.
    pub name: Name,
    /// The node's row; `None` leaves it as it is.
    pub node: Option<Node>,
    /// Instances to put.
    pub instances: Vec<Instance>,
    /// Checks to put.
    pub checks: Vec<Check>,
}

/// A removal through the catalog API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removal {
    /// A node and all on it.
    Node(Name),
    /// An instance and its checks.
    Instance {
        /// Its node.
        node: Name,
        /// Its id.
        id: InstanceId,
    },
    /// A check.
    Check {
        /// Its node.
        node: Name,
        /// Its id.
        id: CheckId,
    },
}

/// Why `decide` refused. Each message says what to do next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// Two agents claim one node name.
    #[error(
        "node name {node} belongs to agent {owner} at {owner_address}, which is alive; {claimant} at {claimant_address} claims it too: \
         give one of them another node.name, or stop the first and wait until its lease ends"
    )]
    NodeNameTaken {
        /// The name.
        node: Name,
        /// The id of the agent that has it.
        owner: String,
        /// Where that agent is.
        owner_address: String,
        /// The id of the agent that wants it.
        claimant: String,
        /// Where that one is.
        claimant_address: String,
    },
    /// A newer start of the same agent has written.
    #[error(
        "a newer start of the agent on node {node} has written (incarnation {newest}, this is {given}): stop the older process; \
         where there is none, the agent's data folder or the host's clock went back: stop the agent, empty its data folder, \
         start it"
    )]
    Superseded {
        /// The node.
        node: Name,
        /// The newest incarnation known.
        newest: u64,
        /// The one that was given.
        given: u64,
    },
    /// A row names another node than the write does.
    #[error("{row} names node {found}, but this is a write of node {expected}: a node writes its own rows only")]
    ForeignRow {
        /// The row's kind and id.
        row: String,
        /// The node it names.
        found: Name,
        /// The node that writes.
        expected: Name,
    },
    /// A registration for a node that does not exist, without its row.
    #[error("node {0} does not exist: give its Address, or register it first")]
    UnknownNode(Name),
    /// A check for an instance that does not exist.
    #[error("check {check} names instance {instance}, which node {node} does not have: register the instance first")]
    UnknownInstance {
        /// The check.
        check: CheckId,
        /// The instance it names.
        instance: InstanceId,
        /// The node.
        node: Name,
    },
    /// A row that a live agent owns.
    #[error("{row} belongs to the agent on node {node}, which would put it back: change it there")]
    OwnedByAgent {
        /// The row's kind and id.
        row: String,
        /// The node.
        node: Name,
    },
    /// A name that breaks the rules.
    #[error(transparent)]
    Name(#[from] NameError),
}
