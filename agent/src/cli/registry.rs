//! `muster registry …`: the members and what they hold, asked for at the registry itself.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};
use muster_registry::{
    Client, ClientConfig,
    client::RegistryStatus,
    raft::{Member, MemberChange},
};
use serde_json::{Value, json};

use super::{Failure, Outcome, say, table};

mod disaster;

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
        after_help = "Examples:\n  muster registry remove registry-2\n  muster registry remove 0f3c5a9d21b7e846\n\nThe member notices within seconds, stops, and does not start with its old data again."
    )]
    Remove {
        /// The member's name or id.
        member: String,
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
        RegistryCommand::Members { registry } => return members(&registry),
        RegistryCommand::Backup { file, stale, registry } => return disaster::backup(&file, stale, &registry),
        RegistryCommand::Inspect { file, json } => return disaster::inspect(&file, json),
        RegistryCommand::Restore { file, yes, registry } => return disaster::restore(&file, yes, &registry),
        RegistryCommand::Recover { config, yes, json } => return disaster::recover(&config, yes, json),
        RegistryCommand::Add { address, learner, registry } => {
            (registry, MemberChange::Add { address, read_only: learner })
        }
        RegistryCommand::Promote { member, registry } => (registry, MemberChange::Promote(member)),
        RegistryCommand::Remove { member, registry } => (registry, MemberChange::Remove(member)),
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

fn members(args: &RegistryArgs) -> Outcome {
    let status = runtime()?.block_on(client(args).members_by_leader()).map_err(|error| {
        Failure::Failed(format!("{error}; name members of the registry with --registry-addr or MUSTER_REGISTRY_ADDR"))
    })?;
    if args.json {
        return say(&as_json(&status).to_string());
    }
    let rows = status.members.iter().map(|member| row(&status, member)).collect();
    say(&table::render(&["MEMBER", "ID", "ADDRESS", "ROLE", "HEALTH", "HEARD", "ENTRY", "FORMAT", "NOTE"], rows))?;
    say(&summary(&status))
}

fn role(member: &Member) -> &'static str {
    match member {
        Member { is_leader: true, .. } => "leader",
        Member { voter: true, .. } => "voter",
        Member { read_only: true, .. } => "reader",
        _ => "learner",
    }
}

fn row(status: &RegistryStatus, member: &Member) -> Vec<String> {
    let health = status.health.get(&member.id);
    let fault = status.faults.get(&member.id).map(String::as_str);
    let shown = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    vec![
        member.name.clone(),
        format!("{:016x}", member.id),
        member.address.clone(),
        role(member).to_owned(),
        match fault {
            Some(_) => "serves nothing".to_owned(),
            None => shown(health.map(|health| if health.healthy { "healthy" } else { "not healthy" }.to_owned())),
        },
        shown(health.and_then(|health| health.silent).map(ago)),
        shown(health.map(|health| health.matched.to_string())),
        shown(health.filter(|health| health.format > 0).map(|health| health.format.to_string())),
        match fault {
            Some(fault) => fault.to_owned(),
            None => health.map(|health| health.note.clone()).unwrap_or_default(),
        },
    ]
}

fn ago(silent: Duration) -> String {
    match silent.as_secs() {
        0 => format!("{} ms ago", silent.as_millis()),
        seconds => format!("{seconds} s ago"),
    }
}

fn summary(status: &RegistryStatus) -> String {
    let registry = format!(
        "registry {}, incarnation {}, catalog format {}, index {}",
        status.cluster.uuid, status.cluster.incarnation, status.format, status.index
    );
    match status.failure_tolerance {
        Some(0) => {
            format!("{registry}\nNo more voter may be lost: bring those back that are not healthy, or add members.")
        }
        Some(1) => format!("{registry}\n1 more voter may be lost."),
        Some(more) => format!("{registry}\n{more} more voters may be lost."),
        None => {
            format!("{registry}\nNo leader answers: this is what one member knows, and nobody says how the others are.")
        }
    }
}

fn as_json(status: &RegistryStatus) -> Value {
    let members = status.members.iter().map(|member| {
        let health = status.health.get(&member.id);
        json!({
            "id": format!("{:016x}", member.id),
            "name": member.name,
            "address": member.address,
            "role": role(member),
            "voter": member.voter,
            "healthy": health.map(|health| health.healthy),
            "heard_milliseconds": health.and_then(|health| health.silent).map(|silent| silent.as_millis() as u64),
            "entry": health.map(|health| health.matched),
            "format": health.map(|health| health.format),
            "version": health.map(|health| health.version.clone()),
            "note": health.map(|health| health.note.clone()),
            "fault": status.faults.get(&member.id),
        })
    });
    json!({
        "members": members.collect::<Vec<_>>(),
        "registry": &*status.cluster.uuid,
        "incarnation": status.cluster.incarnation,
        "format": status.format,
        "index": status.index,
        "term": status.term,
        "failure_tolerance": status.failure_tolerance,
    })
}
