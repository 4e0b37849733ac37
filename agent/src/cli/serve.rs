//! `dev`, `registry`, `agent`: what runs until it is told to stop.

use std::path::Path;

use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::{DevArgs, Failure, Outcome, ServeArgs, say};
use crate::{
    app::{App, Bound, Ended, StartError, Stop},
    config::{Config, LogConfig, LogFormat, Seconds, Unregistered},
};

/// How long a stop waits for blocking work that is still under way.
const BLOCKED_WITHIN: std::time::Duration = std::time::Duration::from_secs(2);

pub(super) fn dev(args: DevArgs) -> Outcome {
    // Thrown away with the guard, unless the operator named a place.
    let (data, guard) = match &args.data {
        Some(path) => (path.clone(), None),
        None => {
            let directory = ScratchDirectory::create().map_err(Failure::failed)?;
            (directory.0.clone(), Some(directory))
        }
    };
    let services = args.services.clone().unwrap_or_else(|| data.join("services.d"));
    std::fs::create_dir_all(&services)
        .map_err(|error| Failure::Usage(format!("--services {}: {error}", services.display())))?;
    let mut config = Config::default();
    config.node.name = args.node;
    config.node.data_dir = data.clone();
    config.registry.listen = args.registry;
    config.registry.lease_ttl = Seconds(std::time::Duration::from_secs(3));
    config.agent.services_dir = services;
    config.http.listen = args.http;
    config.dns.listen = args.dns;
    config.dns.alt_zones = args.alt_zones;
    config.xds.listen = args.xds;
    config.xds.unregistered = Unregistered::All;
    config.xds.http_listener = args.envoy_listener;
    config.log = LogConfig { filter: args.log, format: LogFormat::Text };
    let (json, services) = (args.json, config.agent.services_dir.clone());
    let envoy = args.envoy_listener;
    let outcome = run(&config, json, |config| Box::pin(App::dev(config)), |bound| welcome(bound, &services, &envoy));
    drop(guard);
    outcome
}

pub(super) fn registry(args: &ServeArgs) -> Outcome {
    let config = load(&args.config)?;
    run(&config, args.json, |config| Box::pin(App::registry(config)), started)
}

pub(super) fn agent(args: &ServeArgs) -> Outcome {
    let config = load(&args.config)?;
    run(&config, args.json, |config| Box::pin(App::agent(config)), started)
}

fn load(path: &Path) -> Result<Config, Failure> {
    Config::load(path).map_err(|error| Failure::Usage(error.to_string()))
}

type Starting<'a> = std::pin::Pin<Box<dyn Future<Output = Result<App, StartError>> + 'a>>;

fn run(
    config: &Config,
    json: bool,
    start: impl for<'a> FnOnce(&'a Config) -> Starting<'a>,
    describe: impl FnOnce(&Bound) -> String,
) -> Outcome {
    config.validate().map_err(|error| Failure::Usage(error.to_string()))?;
    log(&config.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::failed)?;
    let outcome = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::failed)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(Failure::failed)?;
        let mut restart = signal(SignalKind::user_defined1()).map_err(Failure::failed)?;
        let mut app = start(config).await.map_err(|error| match error {
            StartError::Config(why) => Failure::Usage(why.to_string()),
            removed @ StartError::Removed(_) => Failure::Usage(removed.to_string()),
            other => Failure::failed(other),
        })?;
        if json {
            say(&as_json(&app.bound).to_string())?;
        } else {
            say(&describe(&app.bound))?;
        }
        let on_terminate = if config.agent.leave_on_terminate { Stop::Leave } else { Stop::Restart };
        let (stop, died) = tokio::select! {
            _ = interrupt.recv() => (Stop::Leave, None),
            _ = terminate.recv() => (on_terminate, None),
            _ = restart.recv() => (Stop::Restart, None),
            died = app.died() => (Stop::Leave, Some(died)),
        };
        match died {
            // A member that was removed stays down: the service manager does not start it anew for this code.
            Some(removed @ Ended::Removed(_)) => Err(Failure::Usage(removed.to_string())),
            // A task that ended unexpectedly ends the process; the service manager starts it anew.
            Some(died) => Err(Failure::failed(died)),
            None => {
                tracing::info!(how = ?stop, "stopping");
                app.stop(stop).await;
                Ok(())
            }
        }
    });
    // All that has to be on disk is there: what still blocks waits for a file system that does not answer.
    runtime.shutdown_timeout(BLOCKED_WITHIN);
    outcome
}

fn as_json(bound: &Bound) -> serde_json::Value {
    let address = |address: Option<std::net::SocketAddr>| address.map(|address| address.to_string());
    json!({
        "registry": address(bound.registry), "http": address(bound.http),
        "dns": address(bound.dns), "xds": address(bound.xds),
    })
}

fn started(bound: &Bound) -> String {
    let each = [("registry", bound.registry), ("http", bound.http), ("dns", bound.dns), ("xds", bound.xds)];
    let listening = each.into_iter().filter_map(|(what, address)| Some(format!("{what} {}", address?)));
    format!("muster listens: {}", listening.collect::<Vec<_>>().join(", "))
}

fn welcome(bound: &Bound, services: &Path, envoy: &std::net::SocketAddr) -> String {
    let shown = |address: Option<std::net::SocketAddr>| address.map(|address| address.to_string()).unwrap_or_default();
    let port = |address: Option<std::net::SocketAddr>| address.map_or(0, |address| address.port());
    let (http, dns) = (shown(bound.http), port(bound.dns));
    let at = if port(bound.http) == 8500 { String::new() } else { format!(" --http-addr http://{http}") };
    format!(
        "Muster runs, for development: everything on loopback, nothing encrypted.\n\
         \x20 HTTP {http}   DNS {} (udp, tcp)   xDS {}   registry {}\n\
         \x20 services directory, taken up live: {}\n\
         Try next:\n\
         \x20 muster register{at} examples/quickstart/web.toml\n\
         \x20 dig @127.0.0.1 -p {dns} web.service.mesh.internal SRV\n\
         \x20 curl '{http}/v1/health/service/web?passing'\n\
         \x20 envoy -c examples/envoy/bootstrap.yaml    then: curl -H 'Host: web' {envoy}\n\
         Stop with Ctrl-C.",
        shown(bound.dns),
        shown(bound.xds),
        shown(bound.registry),
        services.display(),
    )
}

/// Crates that log each answer, try or file. What of it an operator has to know is said by Muster itself: a lost member,
/// a new leader, a disk that fails, a log that ends. `log.filter = "info,openraft=info"` shows the rest.
const QUIET: &str = "hickory_server=warn,hickory_proto=warn,openraft=off,raft_log=warn,chunked_wal=warn";

fn log(config: &LogConfig) -> Outcome {
    let filter = format!("{QUIET},{}", config.filter);
    let filter = tracing_subscriber::EnvFilter::try_new(&filter).map_err(|error| {
        Failure::Usage(format!("log.filter = {:?}: {error}; write info or info,muster_dns=debug", config.filter))
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.format {
        LogFormat::Text => builder.with_ansi(false).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

/// A directory of its own under the system's temporary one, removed at the end.
struct ScratchDirectory(std::path::PathBuf);

impl ScratchDirectory {
    fn create() -> std::io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let path = std::env::temp_dir().join(format!("muster-dev-{}", uuid::Uuid::new_v4()));
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for ScratchDirectory {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "could not remove the scratch directory");
        }
    }
}
