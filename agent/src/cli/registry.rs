//! `muster registry …`: the members and what they hold, asked for at the registry itself.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use muster_registry::{Client, ClientConfig, raft::MemberChange};
use serde_json::json;

use super::{Failure, Outcome, say};

mod disaster;
mod members;

/// How a command reaches the registry, and what it prints.
#[derive(Debug, Args)]
pub(crate) struct RegistryArgs {
    /// One or more members as host:port; any of them takes any command.
    #[arg(
        long = "registry-addr",
        value_name = "ADDR",
        env = "MUSTER_REGISTRY_ADDR",
        value_delimiter = ',',
        default_value = "127.0.0.1:8300"
    )]
    pub(crate) members: Vec<String>,
    /// Print JSON for programs.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What is asked of the registry.
#[derive(Debug, Subcommand)]
pub(crate) enum RegistryCommand {
    /// List the members, what they do and how they are, in the eyes of the leader.
    #[command(after_help = "Examples:\n  muster registry members\n  muster registry members --json | jq .")]
    Members {
        #[command(flatten)]
        registry: RegistryArgs,
    },
    /// Take up a new member, which runs already at ADDRESS with an empty data folder.
    #[command(
        after_help = "Examples:\n  muster registry add 10.0.0.4:8300             it gets its vote when it has been healthy for a while\n  muster registry add 10.0.0.9:8300 --learner   it serves reads and watches, and has no vote\n\nStart the member first: its registry.advertise is ADDRESS, its registry.members names members of this registry."
    )]
    Add {
        /// The member's host:port, as it advertises it.
        address: String,
        /// It stays without a vote until it is promoted.
        #[arg(long)]
        learner: bool,
        #[command(flatten)]
        registry: RegistryArgs,
    },
    /// Give a member its vote now.
    #[command(after_help = "Example:\n  muster registry promote registry-4")]
    Promote {
        /// The member's name or id.
        member: String,
        #[command(flatten)]
        registry: RegistryArgs,
    },
    /// Take a member out. Refused where a quorum of answering voters would not be left.
    #[command(
        after_help = "Examples:\n  muster registry remove registry-4\n  muster registry remove 0f3c5a9d21b7e846\n  muster registry remove registry-2 --yes    although fewer than three voters remain, or fewer may be lost\n\nThe member notices within seconds, stops, and does not start with its old data again."
    )]
    Remove {
        /// The member's name or id.
        member: String,
        /// Do it also where fewer than three voters remain, or where fewer may be lost than before.
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        registry: RegistryArgs,
    },
    /// Put a new member, which runs already at ADDRESS with an empty data folder, in the place of another, in one step.
    #[command(after_help = "Example:\n  muster registry replace registry-2 10.0.0.4:8300")]
    Replace {
        /// The name or id of the member that goes.
        member: String,
        /// The new member's host:port, as it advertises it.
        address: String,
        #[command(flatten)]
        registry: RegistryArgs,
    },
    /// Hand the lead to another voter, before a host is stopped for example.
    #[command(
        after_help = "Examples:\n  muster registry transfer-leader\n  muster registry transfer-leader registry-3"
    )]
    TransferLeader {
        /// The name or id of the next leader; the best voter unless given.
        member: Option<String>,
        #[command(flatten)]
        registry: RegistryArgs,
    },
    /// Write the catalog as it is now into a file, checked.
    #[command(
        after_help = "Examples:\n  muster registry backup catalog.backup\n  muster registry backup --stale catalog.backup    without a leader: whatever one member has"
    )]
    Backup {
        /// The file; it gets its name when it is whole.
        file: PathBuf,
        /// Take what some member has, however old.
        #[arg(long)]
        stale: bool,
        #[command(flatten)]
        registry: RegistryArgs,
    },
    /// Check a backup and say what is in it.
    #[command(after_help = "Example:\n  muster registry inspect catalog.backup")]
    Inspect {
        /// The file.
        file: PathBuf,
        /// Print JSON for programs.
        #[arg(long)]
        json: bool,
    },
    /// Put a backup in the place of the present catalog. All members and agents take it over.
    #[command(
        after_help = "Examples:\n  muster registry restore catalog.backup          says what would happen\n  muster registry restore catalog.backup --yes\n\nLive agents push their own services again within seconds; what came through the catalog API since is lost."
    )]
    Restore {
        /// The file.
        file: PathBuf,
        /// Do it.
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        registry: RegistryArgs,
    },
    /// Make this host's stopped member the whole registry, when the others are lost for good.
    #[command(
        after_help = "Examples:\n  muster registry recover --config /etc/muster/muster.toml          says what would happen\n  muster registry recover --config /etc/muster/muster.toml --yes\n\nOnly when a majority will never come back. Empty the data folders of the other members before they start again."
    )]
    Recover {
        /// The member's configuration file.
        #[arg(long, value_name = "FILE", default_value = "/etc/muster/muster.toml")]
        config: PathBuf,
        /// Do it.
        #[arg(long)]
        yes: bool,
        /// Print JSON for programs.
        #[arg(long)]
        json: bool,
    },
}

/// Runs one command.
pub(crate) fn run(command: RegistryCommand) -> Outcome {
    let (registry, change) = match command {
        RegistryCommand::Members { registry } => return members::list(&registry),
        RegistryCommand::Backup { file, stale, registry } => return disaster::backup(&file, stale, &registry),
        RegistryCommand::Inspect { file, json } => return disaster::inspect(&file, json),
        RegistryCommand::Restore { file, yes, registry } => return disaster::restore(&file, yes, &registry),
        RegistryCommand::Recover { config, yes, json } => return disaster::recover(&config, yes, json),
        RegistryCommand::Add { address, learner, registry } => {
            (registry, MemberChange::Add { address, read_only: learner })
        }
        RegistryCommand::Promote { member, registry } => (registry, MemberChange::Promote(member)),
        RegistryCommand::Remove { member, yes, registry } => {
            if !yes {
                members::check_removal(&member, &registry)?;
            }
            (registry, MemberChange::Remove(member))
        }
        RegistryCommand::Replace { member, address, registry } => (registry, MemberChange::Replace { member, address }),
        RegistryCommand::TransferLeader { member, registry } => (registry, MemberChange::Transfer(member)),
    };
    let done = runtime()?.block_on(client(&registry).change_members(change)).map_err(Failure::failed)?;
    if registry.json { say(&json!({ "done": done }).to_string()) } else { say(&done) }
}

pub(super) fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::failed)
}

pub(super) fn client(args: &RegistryArgs) -> Client {
    Client::new(ClientConfig::new(args.members.clone()))
}
