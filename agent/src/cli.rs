//! The command line: what is run, and how it is explained.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::config::parse_listen;

mod brakes;
mod client;
mod list;
mod register;
mod registry;
mod serve;
mod table;
mod validate;
mod watch;

/// Exit code for a wrong command line, configuration or definition (EX_USAGE of sysexits.h).
const EXIT_USAGE: u8 = 64;
/// Exit code for a failed operation.
const EXIT_FAILURE: u8 = 1;
/// Exit code after a second Ctrl-C, as shells have it: 128 and the signal's number.
const EXIT_INTERRUPTED: u8 = 130;
/// How long a complaint may wait for a reader of standard error.
const COMPLAIN_WITHIN: std::time::Duration = std::time::Duration::from_secs(1);

/// A mesh agent and service registry for virtual machines and bare metal.
#[derive(Debug, Parser)]
#[command(
    name = "muster",
    version,
    after_help = "Try it:\n  muster dev                                      everything in one process, on loopback\n  muster register examples/quickstart/web.toml    register a service at it\n  dig @127.0.0.1 -p 8600 web.service.mesh.internal SRV\n  curl '127.0.0.1:8500/v1/health/service/web?passing'"
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run registry, agent, DNS, xDS and HTTP in one process on loopback, to try things out.
    #[command(
        after_help = "Examples:\n  muster dev                      data is thrown away at the end\n  muster dev --data ./data        data is kept\n  muster dev --services ./defs    take up the definitions in a directory, live\n  muster dev --http 127.0.0.1:0   let the system choose a port; the chosen one is printed"
    )]
    Dev(Box<DevArgs>),
    /// Run a member of the registry; with a subcommand, look after the registry.
    #[command(
        args_conflicts_with_subcommands = true,
        after_help = "Examples:\n  muster registry --config /etc/muster/muster.toml    run a member\n  muster registry members                             who the members are and how they do\n  muster registry add 10.0.0.4:8300                   take up a new member"
    )]
    Registry {
        #[command(subcommand)]
        command: Option<registry::RegistryCommand>,
        #[command(flatten)]
        serve: ServeArgs,
    },
    /// Run the agent of this host.
    #[command(after_help = "Example:\n  muster agent --config /etc/muster/muster.toml")]
    Agent(ServeArgs),
    /// Register the services of a definition file at the local agent.
    #[command(
        after_help = "Example:\n  muster register examples/quickstart/web.toml\n\nThe registration is kept over restarts of the agent. A file in the services directory does the same without a command."
    )]
    Register {
        /// The definition file.
        file: PathBuf,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Deregister a service instance by id at the local agent.
    #[command(after_help = "Example:\n  muster deregister web")]
    Deregister {
        /// The instance's id (the service's name unless the definition chose another).
        id: String,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// List services, or the instances of one.
    #[command(after_help = "Examples:\n  muster services\n  muster services web\n  muster services --json | jq .")]
    Services {
        /// The service whose instances are listed.
        name: Option<String>,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// List nodes and whether their agents are alive.
    #[command(after_help = "Example:\n  muster nodes")]
    Nodes {
        #[command(flatten)]
        api: ApiArgs,
    },
    /// List the members of the registry and which one leads.
    #[command(after_help = "Example:\n  muster members")]
    Members {
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Show what is held back because it came in a mass, and why; decide on it.
    #[command(
        args_conflicts_with_subcommands = true,
        after_help = "Examples:\n  muster brakes                      what is held, why, until when\n  muster brakes release expiry-7-1   those nodes live: a full lease anew\n  muster brakes commit expiry-7-1    they are lost: let it be known now"
    )]
    Brakes {
        #[command(subcommand)]
        decision: Option<brakes::BrakeCommand>,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Follow a service: a line for each change of its instances, until interrupted.
    #[command(after_help = "Examples:\n  muster watch web\n  muster watch web --json")]
    Watch {
        /// The service.
        name: String,
        /// End after this many changes.
        #[arg(long)]
        count: Option<u64>,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Check definition files, directories of them, or a configuration file, without running anything.
    #[command(
        after_help = "Examples:\n  muster validate /etc/muster/services.d\n  muster validate --config /etc/muster/muster.toml"
    )]
    Validate {
        /// Definition files or directories of them.
        paths: Vec<PathBuf>,
        /// A configuration file.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

/// How a command reaches the agent, and what it prints.
#[derive(Debug, Args)]
pub(crate) struct ApiArgs {
    /// The agent's HTTP address.
    #[arg(long = "http-addr", value_name = "URL", env = "MUSTER_HTTP_ADDR", default_value = "http://127.0.0.1:8500")]
    pub(crate) http: String,
    /// Print JSON for programs.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
struct ServeArgs {
    /// The configuration file.
    #[arg(long, value_name = "FILE", default_value = "/etc/muster/muster.toml")]
    config: PathBuf,
    /// Print the bound addresses as one line of JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct DevArgs {
    /// Keep data in this directory instead of throwing it away.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Take up the service definitions in this directory, live.
    #[arg(long, value_name = "DIR")]
    services: Option<PathBuf>,
    /// The node's name.
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Where HTTP listens.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8500", value_parser = parse_listen)]
    http: SocketAddr,
    /// Where DNS listens, UDP and TCP.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8600", value_parser = parse_listen)]
    dns: SocketAddr,
    /// Where xDS listens.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8502", value_parser = parse_listen)]
    xds: SocketAddr,
    /// Where the registry listens.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8300", value_parser = parse_listen)]
    registry: SocketAddr,
    /// The HTTP listener that an Envoy opens which follows this process.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:10000", value_parser = parse_listen)]
    envoy_listener: SocketAddr,
    /// More zones that DNS answers, for example `consul`.
    #[arg(long = "alt-zone", value_name = "ZONE")]
    alt_zones: Vec<String>,
    /// What is logged, for example `info` or `muster_dns=debug`.
    #[arg(long, value_name = "FILTER", default_value = "warn")]
    log: String,
    /// Print the bound addresses as one line of JSON.
    #[arg(long)]
    json: bool,
}

/// Reads the command line, runs what it asks for and returns the exit code.
pub fn main() -> u8 {
    match Cli::try_parse() {
        Ok(asked) => asked.run(),
        Err(told) => {
            // Nothing can be done about a reader that has gone.
            let _ = told.print();
            // Help and the version are what was asked for; clap would end all else with 2.
            if told.use_stderr() { EXIT_USAGE } else { 0 }
        }
    }
}

impl Cli {
    /// Runs the command and returns the exit code.
    fn run(self) -> u8 {
        let outcome = match self.command {
            Command::Dev(args) => serve::dev(*args),
            Command::Registry { command: Some(command), .. } => registry::run(command),
            Command::Registry { command: None, serve } => serve::registry(&serve),
            Command::Agent(args) => serve::agent(&args),
            Command::Register { file, api } => register::register(&file, &api),
            Command::Deregister { id, api } => register::deregister(&id, &api),
            Command::Services { name, api } => list::services(name.as_deref(), &api),
            Command::Nodes { api } => list::nodes(&api),
            Command::Members { api } => list::members(&api),
            Command::Brakes { decision, api } => brakes::brakes(decision.as_ref(), &api),
            Command::Watch { name, count, api } => watch::watch(&name, count, &api),
            Command::Validate { paths, config } => validate::validate(&paths, config.as_deref()),
        };
        match outcome {
            Ok(()) => 0,
            Err(Failure::Usage(message)) => {
                complain(&message);
                EXIT_USAGE
            }
            Err(Failure::Failed(message)) => {
                complain(&message);
                EXIT_FAILURE
            }
            Err(Failure::Interrupted) => {
                complain("ended at once, without leaving: the node turns critical when its lease ends");
                EXIT_INTERRUPTED
            }
        }
    }
}

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The caller has to change something in what they wrote.
    Usage(String),
    /// It was tried and did not work.
    Failed(String),
    /// The operator did not want to wait for a stop in order.
    Interrupted,
}

impl Failure {
    fn failed(why: impl ToString) -> Self {
        Self::Failed(why.to_string())
    }
}

type Outcome = Result<(), Failure>;

fn complain(message: &str) {
    use std::io::Write;
    let (done, ended) = std::sync::mpsc::channel();
    let text = format!("muster: {message}");
    // Nothing can be done about a standard error that is closed; one whose reader stands still is not waited for long.
    let told = std::thread::Builder::new().spawn(move || {
        let _ = writeln!(std::io::stderr(), "{text}");
        let _ = done.send(());
    });
    if told.is_ok() {
        let _ = ended.recv_timeout(COMPLAIN_WITHIN);
    }
}

/// Prints a line; a reader that has gone (`| head`) ends the command quietly.
pub(crate) fn say(line: &str) -> Outcome {
    use std::io::{ErrorKind, Write};
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        other => other.map_err(Failure::failed),
    }
}
