//! `dev`, `registry`, `agent`: what runs until it is told to stop.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::{DevArgs, Failure, Outcome, ServeArgs, complain};
use crate::{
    app::{App, Bound, Ended, StartError, Stop},
    config::{Config, ConfigError, LogConfig, LogFormat, Seconds, Unregistered},
    log::Log,
    reload::{Changes, Role},
    signals::{Asked, Hangup, Signals},
};

/// How long work that blocks (a file system that does not answer) may keep a stopped process from its end.
const LINGER: std::time::Duration = std::time::Duration::from_secs(1);

pub(super) fn dev(args: DevArgs) -> Outcome {
    if let Some(services) = args.services.as_ref().filter(|services| !services.is_dir()) {
        let why = "it is no directory: make it, or name another one";
        return Err(Failure::Usage(format!("--services {}: {why}", services.display())));
    }
    // Thrown away with the guard, unless the operator named a place.
    let (data, guard) = match &args.data {
        Some(path) => (path.clone(), None),
        None => {
            let directory = ScratchDirectory::create().map_err(Failure::Failed)?;
            (directory.0.clone(), Some(directory))
        }
    };
    let services = args.services.clone().unwrap_or_else(|| data.join("services.d"));
    let mut config = Config::default();
    // A newcomer's machine may have no name of its own; only one host is ever in this registry.
    let nameless = config.node_name().is_err();
    config.node.name = args.node.or_else(|| nameless.then(|| "dev".to_owned()));
    config.node.address = Some("127.0.0.1".to_owned());
    config.node.data_dir = data.clone();
    config.registry.listen = args.registry;
    config.registry.lease_ttl = Seconds(std::time::Duration::from_secs(3));
    config.agent.services_dir = services;
    config.http.listen = args.http;
    config.dns.listen = vec![args.dns];
    config.dns.alt_zones = args.alt_zones;
    config.xds.listen = args.xds;
    config.xds.unregistered = Unregistered::All;
    config.xds.http_listener = args.envoy_listener;
    config.log = LogConfig { filter: args.log, format: LogFormat::Text };
    config.validate().map_err(|error| Failure::Usage(by_flag(StartError::Config(error)).to_string()))?;
    let (json, services) = (args.json, config.agent.services_dir.clone());
    std::fs::create_dir_all(&services)
        .map_err(|error| Failure::Usage(format!("--data {}: {error}", data.display())))?;
    let envoy = args.envoy_listener;
    let plan = Plan { config, json, file: None };
    let outcome = run(plan, |config| Box::pin(start_dev(config)), |bound| welcome(bound, &services, &envoy));
    drop(guard);
    outcome
}

async fn start_dev(config: &Config) -> Result<App, StartError> {
    App::dev(config).await.map_err(by_flag)
}

/// Names the flag where the message names a key: `dev` reads no file.
fn by_flag(error: StartError) -> StartError {
    let flag = |key: &'static str| match key {
        "node.name" => "--node",
        "node.data_dir" => "--data",
        "agent.services_dir" => "--services",
        "http.listen" => "--http",
        "dns.listen" => "--dns",
        "xds.listen" => "--xds",
        "xds.http_listener" => "--envoy-listener",
        "registry.listen" => "--registry",
        "log.filter" => "--log",
        other => other,
    };
    match error {
        StartError::Bind { what, address, key, source } => StartError::Bind { what, address, key: flag(key), source },
        StartError::Config(ConfigError::Value { key, value, why }) => {
            StartError::Config(ConfigError::Value { key: flag(key), value, why })
        }
        other => other,
    }
}

pub(super) fn registry(args: &ServeArgs) -> Outcome {
    run(plan(args, Role::Member)?, |config| Box::pin(App::registry(config)), started)
}

pub(super) fn agent(args: &ServeArgs) -> Outcome {
    run(plan(args, Role::Agent)?, |config| Box::pin(App::agent(config)), started)
}

/// What is run, and where its configuration can be read again.
struct Plan {
    config: Config,
    json: bool,
    file: Option<(PathBuf, Role)>,
}

fn plan(args: &ServeArgs, role: Role) -> Result<Plan, Failure> {
    let config = Config::load(&args.config).map_err(|error| Failure::Usage(error.to_string()))?;
    Ok(Plan { config, json: args.json, file: Some((args.config.clone(), role)) })
}

type Starting<'a> = std::pin::Pin<Box<dyn Future<Output = Result<App, StartError>> + 'a>>;

fn run(
    plan: Plan,
    start: impl for<'a> FnOnce(&'a Config) -> Starting<'a>,
    describe: impl FnOnce(&Bound) -> String,
) -> Outcome {
    plan.config.validate().map_err(|error| Failure::Usage(error.to_string()))?;
    let log = Log::install(&plan.config.log).map_err(Failure::Failed)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::failed)?;
    let outcome = runtime.block_on(serve(plan, &log, start, describe));
    runtime.shutdown_timeout(LINGER);
    outcome
}

async fn serve(
    mut plan: Plan,
    log: &Log,
    start: impl for<'a> FnOnce(&'a Config) -> Starting<'a>,
    describe: impl FnOnce(&Bound) -> String,
) -> Outcome {
    let hangup = if plan.file.is_some() { Hangup::Reload } else { Hangup::Stop };
    let mut signals = Signals::listen(hangup).map_err(Failure::failed)?;
    let started = tokio::select! {
        started = start(&plan.config) => started,
        // What was begun is dropped: nobody knows of this process yet.
        () = stop_asked(&mut signals) => return Ok(()),
    };
    let mut app = started.map_err(|error| match error {
        StartError::Config(why) => Failure::Usage(why.to_string()),
        StartError::Final(why) => Failure::Usage(why),
        other => Failure::failed(other),
    })?;
    match (plan.json, plan.config.log.format) {
        (true, _) => announce(as_json(&app.bound).to_string()),
        (false, LogFormat::Text) => announce(describe(&app.bound)),
        // Where both go to one place, all of it is JSON.
        (false, LogFormat::Json) => tracing::info!("{}", describe(&app.bound)),
    }
    let (stop, died) = loop {
        tokio::select! {
            asked = signals.next() => match asked {
                Asked::Leave { .. } => break (Stop::Leave, None),
                Asked::Restart => break (Stop::Restart, None),
                Asked::Terminate if plan.config.agent.leave_on_terminate => break (Stop::Leave, None),
                Asked::Terminate => break (Stop::Restart, None),
                Asked::Reload => reload(&mut plan, &mut app, log),
                Asked::Nothing(signal) => tracing::info!(signal, "a signal that means nothing here is ignored"),
            },
            died = app.died() => break (Stop::Leave, Some(died)),
        }
    };
    match died {
        // A member that an operator has to look after stays down: the service manager does not start it anew for this code.
        Some(Ended::Final(why)) => Err(Failure::Usage(why)),
        // A task that ended unexpectedly ends the process; the service manager starts it anew.
        Some(died) => Err(Failure::failed(died)),
        None => {
            tracing::info!(how = ?stop, "stopping");
            tokio::select! {
                () = app.stop(stop) => Ok(()),
                () = signals.by_hand() => Err(Failure::Interrupted),
            }
        }
    }
}

/// Waits until a signal asks for the end; there is nothing to reload yet.
async fn stop_asked(signals: &mut Signals) {
    while matches!(signals.next().await, Asked::Reload | Asked::Nothing(_)) {}
}

/// Takes up the configuration file anew; one that is wrong changes nothing.
fn reload(plan: &mut Plan, app: &mut App, log: &Log) {
    let Some((path, role)) = &plan.file else { return };
    let count = |result| metrics::counter!("muster_config_reloads_total", "result" => result).increment(1);
    // It is read while nothing else waits for this task: a signal is rare, and the file is small.
    let new = match Config::load(path) {
        Ok(new) => new,
        Err(error) => {
            count("refused");
            // The parser shows the place over several lines; a log has one for each thing that happened.
            let error = error.to_string().lines().map(str::trim).collect::<Vec<_>>().join(" ");
            tracing::error!(%error, "the new configuration is refused: the one in force stays as it is");
            return;
        }
    };
    let Changes { live, waiting } = Changes::between(*role, &plan.config, &new);
    if let Err(error) = log.set_filter(&new.log.filter) {
        tracing::error!(%error, "log.filter cannot be changed");
    }
    app.reload(&new);
    role.take_up(&mut plan.config, &new);
    count("taken");
    tracing::info!(changed = live.join(", "), "the configuration is read again; definitions are scanned");
    if !waiting.is_empty() {
        tracing::warn!("needs a restart: {}", waiting.join(", "));
    }
}

/// Tells where it listens. Nobody has to read that: a reader that is gone or stands still holds up nothing.
fn announce(text: String) {
    let tell = move || {
        use std::io::Write;
        let mut out = std::io::stdout().lock();
        if let Err(error) = writeln!(out, "{text}").and_then(|()| out.flush()) {
            tracing::warn!(%error, "the addresses could not be printed: {text}");
        }
    };
    if let Err(error) = std::thread::Builder::new().name("announce".into()).spawn(tell) {
        tracing::warn!(%error, "the addresses could not be printed");
    }
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

/// A directory of its own under the system's temporary one, removed at the end.
struct ScratchDirectory(std::path::PathBuf);

impl ScratchDirectory {
    fn create() -> Result<Self, String> {
        use std::os::unix::fs::DirBuilderExt;
        let place = std::env::temp_dir();
        let path = place.join(format!("muster-dev-{}", uuid::Uuid::new_v4()));
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|error| {
            let place = place.display();
            format!("no directory can be made in {place}: {error}; set TMPDIR to another one, or keep the data with --data DIR")
        })?;
        Ok(Self(path))
    }
}

impl Drop for ScratchDirectory {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            complain(&format!("could not remove {}: {error}", self.0.display()));
        }
    }
}
