//! Real processes on loopback: registries and agents that tests start, kill, pause and question.

use std::{
    future::Future,
    io::Write,
    net::{SocketAddr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

mod agent;
mod cluster;
mod dns;
mod envoy;
mod service;

pub use agent::TestAgent;
pub use cluster::TestCluster;
pub use dns::{DnsAnswer, ask};
pub use envoy::{DRAIN_TIME, TestEnvoy};
pub use service::TestService;

/// How long a condition may take before a test gives up; generous, because machines that run tests are busy.
pub const PATIENCE: Duration = Duration::from_secs(40);
/// The pause between two looks at a condition.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Looks until the condition gives something, and says what it waited for when it never does.
pub async fn eventually<T, F, Fut>(what: &str, mut look: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Option<T>>>,
{
    let deadline = Instant::now() + PATIENCE;
    let mut last = String::from("it was not so");
    loop {
        match look().await {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => {}
            Err(error) => last = format!("{error:#}"),
        }
        if Instant::now() > deadline {
            bail!("waited {PATIENCE:?} for {what}: {last}");
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// An HTTP client that waits at most this long for an answer.
pub fn http_client(timeout: Duration) -> Result<reqwest::Client> {
    // An error only says that one is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    // All of it is plain http on loopback: a host without root certificates runs the tests too.
    let trusts_nobody =
        rustls::ClientConfig::builder().with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
    Ok(reqwest::Client::builder().no_proxy().timeout(timeout).tls_backend_preconfigured(trusts_nobody).build()?)
}

/// A loopback address that was free a moment ago, for TCP and UDP.
pub fn free_address() -> Result<SocketAddr> {
    for _ in 0..50 {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        if UdpSocket::bind(address).is_ok() {
            return Ok(address);
        }
    }
    bail!("no port is free on loopback")
}

/// The `muster` binary of this build.
pub fn muster_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("MUSTER_BINARY") {
        return Ok(path.into());
    }
    let mut directory = std::env::current_exe()?;
    while directory.pop() {
        let candidate = directory.join("muster");
        if candidate.is_file() {
            return Ok(candidate);
        }
    }
    bail!("the muster binary is not built: run `cargo test --workspace`, or `cargo build` first")
}

/// What a process is started with, beside its arguments.
#[derive(Debug, Clone, Default)]
pub struct Launch {
    /// A program and its arguments, which ends by running the command that follows them; empty for none.
    pub through: Vec<String>,
    /// Added to the environment.
    pub environment: Vec<(String, String)>,
    /// Another build of `muster` than the present one.
    pub build: Option<PathBuf>,
}

impl Launch {
    /// The command that runs `muster` so.
    fn command(&self) -> Result<Command> {
        let binary = self.build.clone().map_or_else(muster_binary, Ok)?;
        let mut command = match self.through.split_first() {
            Some((program, arguments)) => {
                let mut command = Command::new(program);
                command.args(arguments).arg(binary);
                command
            }
            None => Command::new(binary),
        };
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        Ok(command)
    }
}

/// The `muster` of an older catalog format, which `.ci/previous` builds. `None`, with a notice, where it is not built;
/// an error in CI.
pub fn previous_binary() -> Result<Option<PathBuf>> {
    let present = muster_binary()?;
    let found = present.ancestors().map(|folder| folder.join("previous/muster")).find(|path| path.is_file());
    if found.is_none() {
        ensure!(std::env::var_os("CI").is_none(), "the older build is missing: run .ci/previous");
        println!("NOTICE: passed over: no older build of muster; run .ci/previous, which needs the git history");
    }
    Ok(found)
}

/// Runs a command of `muster` to its end; what it printed, and an error with what it complained about.
pub fn muster(arguments: &[&str]) -> Result<String> {
    let output = Command::new(muster_binary()?).args(arguments).stdin(Stdio::null()).output()?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "muster {arguments:?} ended with {}: {complaint}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

/// A running `muster`. It is killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `muster` with these arguments; its standard error is kept in `log`.
    pub fn start(launch: &Launch, arguments: &[&str], log: &Path) -> Result<(Self, Value)> {
        let errors = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
        let mut child = launch
            .command()?
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .context("cannot start muster")?;
        let stdout = child.stdout.take().context("no standard output")?;
        let process = Self { child, log: log.to_owned() };
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line)?;
        ensure!(!line.is_empty(), "muster {arguments:?} ended at once:\n{}", process.log_tail());
        let bound = serde_json::from_str(&line).with_context(|| format!("no addresses in {line:?}"))?;
        Ok((process, bound))
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// kill -9.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to stop in order and waits for its end.
    pub fn stop(&mut self) -> Result<std::process::ExitStatus> {
        self.signal("TERM")?;
        self.wait_ended()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<std::process::ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits until it ends by itself.
    pub fn wait_ended(&mut self) -> Result<std::process::ExitStatus> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "it did not end:\n{}", self.log_tail());
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Sends a signal by name, for example `STOP`.
    pub fn signal(&self, name: &str) -> Result<()> {
        signal(self.child.id(), name)
    }

    /// All that it wrote to standard error, over its restarts.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until its log has a line with all of these in it.
    pub async fn wait_log(&self, parts: &[&str]) -> Result<()> {
        let what = format!("a line with {parts:?} in the log");
        let waited = eventually(&what, || async {
            let log = self.log();
            Ok(log.lines().any(|line| parts.iter().all(|part| line.contains(part))).then_some(()))
        });
        waited.await.with_context(|| self.log_tail())
    }

    /// The last lines it wrote to standard error.
    pub fn log_tail(&self) -> String {
        let text = self.log();
        let lines: Vec<&str> = text.lines().rev().take(30).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Resident memory in bytes.
    pub fn resident_bytes(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kilobytes * 1024)
    }

    /// CPU time spent so far, user and system.
    pub fn cpu_time(&self) -> Result<Duration> {
        cpu_time_of(self.child.id())
    }

    /// CPU time that the threads which live have spent, to the microsecond: for what spends little.
    pub fn exact_cpu_time(&self) -> Result<Duration> {
        let mut nanoseconds = 0;
        for thread in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let spent = std::fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
            nanoseconds += spent.split(' ').next().and_then(|spent| spent.parse::<u64>().ok()).unwrap_or_default();
        }
        Ok(Duration::from_nanos(nanoseconds))
    }

    /// How often its threads gave up or lost the processor so far.
    pub fn context_switches(&self) -> Result<u64> {
        let mut switches = 0;
        for thread in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            // One that ended meanwhile has switched for the last time.
            let status = std::fs::read_to_string(thread?.path().join("status")).unwrap_or_default();
            let counts = status.lines().filter(|line| line.contains("voluntary_ctxt_switches"));
            switches += counts.filter_map(|line| line.rsplit('\t').next()?.parse::<u64>().ok()).sum::<u64>();
        }
        Ok(switches)
    }

    /// Bytes that it has had written to disk so far.
    pub fn written_bytes(&self) -> Result<u64> {
        let io = std::fs::read_to_string(format!("/proc/{}/io", self.child.id()))?;
        let written = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).context("no write_bytes")?;
        Ok(written.parse()?)
    }
}

/// Sends a signal by name, as `kill` of a shell knows it: the program of that name is not on every host.
pub fn signal(process: u32, name: &str) -> Result<()> {
    let status = Command::new("sh").args(["-c", "kill -$0 $1", name, &process.to_string()]).status()?;
    ensure!(status.success(), "kill -{name} {process} failed");
    Ok(())
}

/// CPU time that a process has spent so far, user and system.
pub fn cpu_time_of(process: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let after = stat.rsplit_once(')').context("no stat")?.1;
    let fields: Vec<&str> = after.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    // USER_HZ is 100 on every Linux this runs on.
    Ok(Duration::from_millis(ticks * 10))
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let _ = writeln!(std::io::stderr(), "--- {}\n{}", self.log.display(), self.log_tail());
        }
    }
}
