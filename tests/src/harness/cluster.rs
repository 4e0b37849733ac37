//! A registry of one or three members.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::Value;
use tempfile::TempDir;

use super::{Launch, Process, free_address, muster};

/// A registry of real processes in a directory that goes with it.
#[derive(Debug)]
pub struct TestCluster {
    directory: TempDir,
    addresses: Vec<SocketAddr>,
    processes: Vec<Option<Process>>,
    metrics: Vec<String>,
    launches: Vec<Launch>,
    /// How many of the addresses are in the members' lists; the others are added by command.
    listed: usize,
    settings: String,
    agent_settings: String,
}

impl TestCluster {
    /// Starts `count` members with short leases (1 s and 200 ms grace).
    pub fn start(count: usize) -> Result<Self> {
        Self::start_with(count, "lease_ttl = \"1s\"\nlease_grace = \"200ms\"\n")
    }

    /// Starts `count` members with these lines in their `[registry]` section.
    pub fn start_with(count: usize, settings: &str) -> Result<Self> {
        let mut cluster = Self::prepare(count, settings)?;
        cluster.restart_all()?;
        Ok(cluster)
    }

    /// The same, not started yet.
    pub fn prepare(count: usize, settings: &str) -> Result<Self> {
        Self::prepare_with(count, 0, settings)
    }

    /// The same, with `spare` more addresses for members that come later.
    pub fn prepare_with(listed: usize, spare: usize, settings: &str) -> Result<Self> {
        let count = listed + spare;
        Ok(Self {
            directory: tempfile::tempdir()?,
            listed,
            addresses: (0..count).map(|_| free_address()).collect::<Result<Vec<_>>>()?,
            processes: (0..count).map(|_| None).collect(),
            metrics: vec![String::new(); count],
            launches: vec![Launch::default(); count],
            settings: settings.to_owned(),
            agent_settings: settings.to_owned(),
        })
    }

    /// What a member is started with from its next start on.
    pub fn set_launch(&mut self, member: usize, launch: Launch) {
        self.launches[member] = launch;
    }

    /// The value of one of a member's metrics; an error while it is not there.
    pub async fn metric(&self, member: usize, name: &str) -> Result<f64> {
        let url = format!("http://{}/metrics", self.metrics[member]);
        let text = super::http_client(super::PATIENCE)?.get(url).send().await?.text().await?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(value.with_context(|| format!("no metric {name}"))?.parse()?)
    }

    /// The members as agents are told of them, those to come among them.
    pub fn members(&self) -> Vec<String> {
        self.addresses.iter().map(ToString::to_string).collect()
    }

    /// Where a member serves, also one that is to come.
    pub fn address(&self, member: usize) -> String {
        self.addresses[member].to_string()
    }

    /// As far as agents know, the registry consists of these members of another cluster.
    pub fn borrow_members(&mut self, from: &Self, members: &[usize]) {
        self.addresses = members.iter().map(|member| from.addresses[*member]).collect();
    }

    /// The build that a member runs from its next start on.
    pub fn set_build(&mut self, member: usize, build: &Path) {
        self.launches[member].build = Some(build.to_owned());
    }

    /// `muster registry …`, asked of these members; with `--json` what it printed.
    pub fn registry(&self, members: &[usize], arguments: &[&str]) -> Result<Value> {
        let addresses: Vec<String> = members.iter().map(|member| self.address(*member)).collect();
        let addresses = addresses.join(",");
        let command = [&["registry"], arguments, &["--json", "--registry-addr", &addresses]].concat();
        let printed = muster(&command)?;
        serde_json::from_str(&printed).with_context(|| format!("no JSON in {printed:?}"))
    }

    /// The `[registry]` settings of agents: those of the members, until others are set.
    pub fn agent_settings(&self) -> &str {
        &self.agent_settings
    }

    /// Agents that are started from now on have these.
    pub fn set_agent_settings(&mut self, settings: &str) {
        self.agent_settings = settings.to_owned();
    }

    /// Its directory: agents of the test put theirs beside it.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A member's data directory.
    pub fn data_dir(&self, member: usize) -> std::path::PathBuf {
        self.directory.path().join(format!("member-{member}"))
    }

    /// What a member writes to standard error, over all its starts.
    pub fn log_file(&self, member: usize) -> std::path::PathBuf {
        self.directory.path().join(format!("member-{member}.log"))
    }

    /// The member that serves at this address.
    pub fn member_at(&self, address: &str) -> Option<usize> {
        self.addresses.iter().position(|own| own.to_string() == address)
    }

    /// A member's process; `None` while it is down.
    pub fn process(&mut self, member: usize) -> Option<&mut Process> {
        self.processes[member].as_mut()
    }

    /// kill -9.
    pub fn kill(&mut self, member: usize) -> Result<()> {
        match self.processes[member].take() {
            Some(mut process) => process.kill(),
            None => Ok(()),
        }
    }

    /// kill -9 for all.
    pub fn kill_all(&mut self) -> Result<()> {
        (0..self.processes.len()).try_for_each(|member| self.kill(member))
    }

    /// A member's configuration file.
    pub fn config(&self, member: usize) -> PathBuf {
        self.directory.path().join(format!("member-{member}.toml"))
    }

    /// Starts a member from what is on its disk.
    pub fn restart(&mut self, member: usize) -> Result<()> {
        let config = self.config(member);
        let listed: Vec<String> = self.addresses[..self.listed].iter().map(ToString::to_string).collect();
        let text = format!(
            "[node]\nname = \"member-{member}\"\ndata_dir = {:?}\n[registry]\nlisten = \"{}\"\nmetrics_listen = \"127.0.0.1:0\"\nmembers = {:?}\n{}[log]\nfilter = \"info\"\n",
            self.data_dir(member),
            self.addresses[member],
            listed,
            self.settings,
        );
        std::fs::write(&config, text)?;
        let log = self.log_file(member);
        let arguments = ["registry", "--json", "--config", &config.to_string_lossy()];
        let (process, bound) = Process::start(&self.launches[member], &arguments, &log)?;
        self.metrics[member] = bound["http"].as_str().context("no metrics address")?.to_owned();
        self.processes[member] = Some(process);
        Ok(())
    }

    /// Starts all members that are down.
    pub fn restart_all(&mut self) -> Result<()> {
        for member in 0..self.listed {
            if self.processes[member].is_none() {
                self.restart(member)?;
            }
        }
        Ok(())
    }
}
