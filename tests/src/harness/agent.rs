//! An agent of a test, and questions to it.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use reqwest::Response;
use serde_json::{Value, json};

use super::{DnsAnswer, Launch, Process, TestCluster, ask, eventually};

/// A real agent process on loopback.
#[derive(Debug)]
pub struct TestAgent {
    /// Its node name.
    pub name: String,
    /// Its HTTP address.
    pub http: SocketAddr,
    /// Its DNS address.
    pub dns: SocketAddr,
    /// Its xDS address.
    pub xds: SocketAddr,
    /// Where an Envoy that follows it listens.
    pub envoy_listener: SocketAddr,
    /// Its process.
    pub process: Process,
    config: PathBuf,
    services: PathBuf,
    log: PathBuf,
    launch: Launch,
    client: reqwest::Client,
}

impl TestAgent {
    /// Starts an agent of this cluster with the defaults and waits until the registry has it.
    pub async fn start(cluster: &TestCluster, name: &str) -> Result<Self> {
        Self::start_with(cluster, name, "", "").await
    }

    /// Starts an agent that serves every service to any proxy.
    pub async fn start_for_proxies(cluster: &TestCluster, name: &str) -> Result<Self> {
        Self::start_with(cluster, name, "", "unregistered = \"all\"\n").await
    }

    /// Starts an agent with these lines in its `[agent]` and its `[xds]` section.
    pub async fn start_with(cluster: &TestCluster, name: &str, settings: &str, xds: &str) -> Result<Self> {
        Self::begin(cluster, name, [settings, xds], Launch::default()).await
    }

    /// Starts an agent with the defaults, its process started in a way of its own.
    pub async fn start_launched(cluster: &TestCluster, name: &str, launch: Launch) -> Result<Self> {
        Self::begin(cluster, name, ["", ""], launch).await
    }

    async fn begin(cluster: &TestCluster, name: &str, [settings, xds]: [&str; 2], launch: Launch) -> Result<Self> {
        let root = cluster.directory().join(name);
        let services = root.join("services.d");
        std::fs::create_dir_all(&services)?;
        let config = root.join("muster.toml");
        let envoy_listener = super::free_address()?;
        let text = format!(
            "[node]\nname = \"{name}\"\naddress = \"127.0.0.1\"\ndata_dir = {:?}\n[registry]\nmembers = {:?}\n{}[agent]\nservices_dir = {services:?}\n{settings}\
             [http]\nlisten = \"127.0.0.1:0\"\n[dns]\nlisten = \"127.0.0.1:0\"\nalt_zones = [\"consul\"]\n\
             [xds]\nlisten = \"127.0.0.1:0\"\n{xds}http_listener = \"{}\"\n[log]\nfilter = \"info,muster_agent::replica=debug\"\n",
            root.join("data"),
            cluster.members(),
            cluster.agent_settings(),
            envoy_listener,
        );
        std::fs::write(&config, text)?;
        let log = root.join("agent.log");
        let agent = Self::launch(name, config, services, log, envoy_listener, launch)?;
        agent.ready().await?;
        Ok(agent)
    }

    fn launch(
        name: &str,
        config: PathBuf,
        services: PathBuf,
        log: PathBuf,
        envoy_listener: SocketAddr,
        launch: Launch,
    ) -> Result<Self> {
        let arguments = ["agent", "--json", "--config", &config.to_string_lossy()];
        let (process, bound) = Process::start(&launch, &arguments, &log)?;
        let address = |key: &str| -> Result<SocketAddr> {
            bound[key].as_str().with_context(|| format!("no {key} in {bound}"))?.parse().context("no address")
        };
        let (http, dns, xds) = (address("http")?, address("dns")?, address("xds")?);
        let client = super::http_client(Duration::from_secs(30))?;
        Ok(Self {
            name: name.to_owned(),
            http,
            dns,
            xds,
            envoy_listener,
            process,
            config,
            services,
            log,
            launch,
            client,
        })
    }

    /// Starts it again from its disk, without waiting for the registry. Its ports may be others.
    pub fn restart(&mut self) -> Result<()> {
        self.process.kill()?;
        let (config, services, log) = (self.config.clone(), self.services.clone(), self.log.clone());
        let again = Self::launch(&self.name.clone(), config, services, log, self.envoy_listener, self.launch.clone())?;
        *self = again;
        Ok(())
    }

    /// Waits until `/readyz` says so.
    pub async fn ready(&self) -> Result<()> {
        eventually(&format!("{} to be ready", self.name), || async {
            Ok(self.response("/readyz").await?.status().is_success().then_some(()))
        })
        .await
        .with_context(|| self.process.log_tail())
    }

    /// The directory whose definitions it takes up.
    pub fn services_dir(&self) -> &std::path::Path {
        &self.services
    }

    /// Its configuration file.
    pub fn config(&self) -> &std::path::Path {
        &self.config
    }

    /// A GET, whatever its status.
    pub async fn response(&self, path: &str) -> Result<Response> {
        Ok(self.client.get(format!("http://{}{path}", self.http)).send().await?)
    }

    /// A GET that must succeed, as JSON.
    pub async fn get(&self, path: &str) -> Result<Value> {
        let response = self.response(path).await?;
        let status = response.status();
        let text = response.text().await?;
        ensure!(status.is_success(), "GET {path}: {status} {text}");
        Ok(serde_json::from_str(&text)?)
    }

    /// A PUT that must succeed.
    pub async fn put(&self, path: &str, body: &Value) -> Result<()> {
        let url = format!("http://{}{path}", self.http);
        let response = self.client.put(url).json(body).send().await?;
        let status = response.status();
        ensure!(status.is_success(), "PUT {path}: {status} {}", response.text().await?);
        Ok(())
    }

    /// Registers an instance without checks on this agent.
    pub async fn register(&self, service: &str, id: &str, port: u16) -> Result<()> {
        self.put("/v1/agent/service/register", &json!({"Name": service, "ID": id, "Port": port})).await
    }

    /// The ids of the instances that `?passing` shows.
    pub async fn passing(&self, service: &str) -> Result<Vec<String>> {
        let entries = self.get(&format!("/v1/health/service/{service}?passing&stale")).await?;
        let entries = entries.as_array().context("no list")?;
        let mut ids: Vec<String> =
            entries.iter().filter_map(|entry| entry["Service"]["ID"].as_str().map(str::to_owned)).collect();
        ids.sort();
        Ok(ids)
    }

    /// Waits until `?passing` shows exactly these instances.
    pub async fn wait_passing(&self, service: &str, ids: &[&str]) -> Result<()> {
        let mut expected: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
        expected.sort();
        eventually(&format!("{service} at {} to be {ids:?}", self.name), || async {
            let found = self.passing(service).await?;
            ensure!(found == expected, "it is {found:?}");
            Ok(Some(()))
        })
        .await
        .with_context(|| self.process.log_tail())
    }

    /// Asks its DNS over UDP.
    pub async fn dig(&self, name: &str, kind: &str) -> Result<DnsAnswer> {
        ask(self.dns, name, kind).await
    }

    /// The registry's leader as the agent knows it.
    pub async fn leader(&self) -> Result<String> {
        Ok(self.get("/v1/status/leader").await?.as_str().unwrap_or_default().to_owned())
    }
}
