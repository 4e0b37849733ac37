//! Scenarios as data: a list of steps, and one interpreter that plays them against real processes.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use crate::harness::{TestAgent, TestCluster, TestService, eventually};

/// One step. Agents are named by number, from 0.
#[derive(Debug, Clone)]
pub enum Step {
    /// Starts a web service beside an agent and registers it with an HTTP check every 200 ms.
    Serve {
        /// The agent.
        agent: usize,
        /// The service's name.
        service: &'static str,
        /// The instance's id.
        id: &'static str,
    },
    /// Ends a web service at once, connections and all.
    KillService(&'static str),
    /// Starts a web service again where it was.
    RestartService(&'static str),
    /// kill -9 for an agent.
    KillAgent(usize),
    /// Starts an agent from its disk.
    RestartAgent(usize),
    /// Stops an agent in order.
    StopAgent(usize),
    /// kill -9 for all members of the registry.
    KillRegistry,
    /// Starts all members from their disks.
    StartRegistry,
    /// kill -9 for the member that leads.
    KillLeader,
    /// Waits until HTTP and DNS of an agent show exactly these instances.
    Shows {
        /// The agent that is asked.
        agent: usize,
        /// The service.
        service: &'static str,
        /// The ids of its passing instances.
        ids: &'static [&'static str],
    },
    /// Asks DNS and stale HTTP again and again for this long; every answer must show exactly these instances.
    Holds {
        /// The agent that is asked.
        agent: usize,
        /// The service.
        service: &'static str,
        /// The ids of its passing instances.
        ids: &'static [&'static str],
        /// For how long.
        lasting: Duration,
    },
    /// Waits until an agent's answers say that they are stale.
    Stale(usize),
    /// Waits until an agent's answers say that they are current.
    Live(usize),
}

/// A stage: the cluster, its agents and the services beside them.
pub struct Stage {
    /// The registry.
    pub cluster: TestCluster,
    /// The agents.
    pub agents: Vec<TestAgent>,
    services: BTreeMap<&'static str, TestService>,
}

impl Stage {
    /// A registry of `members` and `agents` agents that know it.
    pub async fn set(members: usize, agents: usize) -> Result<Self> {
        Self::around(TestCluster::start(members)?, agents).await
    }

    /// Like `set`, with a registry that runs already.
    pub async fn around(cluster: TestCluster, agents: usize) -> Result<Self> {
        let mut started = Vec::new();
        for agent in 0..agents {
            started.push(TestAgent::start(&cluster, &format!("node-{agent}")).await?);
        }
        Ok(Self { cluster, agents: started, services: BTreeMap::new() })
    }

    /// Like `set`, with agents that serve every service to any proxy.
    pub async fn set_for_proxies(members: usize, agents: usize) -> Result<Self> {
        let cluster = TestCluster::start(members)?;
        let mut started = Vec::new();
        for agent in 0..agents {
            started.push(TestAgent::start_for_proxies(&cluster, &format!("node-{agent}")).await?);
        }
        Ok(Self { cluster, agents: started, services: BTreeMap::new() })
    }

    /// Plays the steps in order.
    pub async fn play(&mut self, steps: &[Step]) -> Result<()> {
        for (number, step) in steps.iter().enumerate() {
            let began = Instant::now();
            self.step(step).await.with_context(|| format!("step {number}: {step:?}"))?;
            println!("{:>8.2} s  {step:?}", began.elapsed().as_secs_f64());
        }
        Ok(())
    }

    async fn step(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Serve { agent, service, id } => self.serve(*agent, service, id).await,
            Step::KillService(id) => {
                self.services.get_mut(id).with_context(|| format!("no service {id}"))?.kill();
                Ok(())
            }
            Step::RestartService(id) => {
                let address = self.service(id)?.address;
                let service = eventually("the service's address to be free", || async {
                    Ok(TestService::start_at(id, address).await.ok())
                });
                let service = service.await?;
                self.services.insert(id, service);
                Ok(())
            }
            Step::KillAgent(agent) => self.agents[*agent].process.kill(),
            Step::RestartAgent(agent) => self.agents[*agent].restart(),
            Step::StopAgent(agent) => {
                let status = self.agents[*agent].process.stop()?;
                ensure!(status.success(), "the agent ended with {status}");
                Ok(())
            }
            Step::KillRegistry => self.cluster.kill_all(),
            Step::StartRegistry => self.cluster.restart_all(),
            Step::KillLeader => self.kill_leader().await.map(|_| ()),
            Step::Shows { agent, service, ids } => self.shows(*agent, service, ids).await,
            Step::Holds { agent, service, ids, lasting } => self.holds(*agent, service, ids, *lasting).await,
            Step::Stale(agent) => self.staleness(*agent, true).await,
            Step::Live(agent) => self.staleness(*agent, false).await,
        }
    }

    /// Waits until a member leads, and says which.
    pub async fn leader(&self) -> Result<usize> {
        let agent = &self.agents[0];
        let leader =
            eventually("a leader", || async { Ok(Some(agent.leader().await?).filter(|leader| !leader.is_empty())) });
        let leader = leader.await?;
        self.cluster.member_at(&leader).with_context(|| format!("no member at {leader}"))
    }

    /// kill -9 for the member that leads; returns which one it was.
    pub async fn kill_leader(&mut self) -> Result<usize> {
        let member = self.leader().await?;
        self.cluster.kill(member)?;
        Ok(member)
    }

    fn service(&self, id: &str) -> Result<&TestService> {
        self.services.get(id).with_context(|| format!("no service {id}"))
    }

    async fn serve(&mut self, agent: usize, service: &str, id: &'static str) -> Result<()> {
        let running = TestService::start(id).await?;
        let url = format!("http://{}/", running.address);
        let definition = json!({
            "Name": service, "ID": id, "Address": "127.0.0.1", "Port": running.address.port(),
            "Check": {"HTTP": url, "Interval": "200ms", "Timeout": "500ms"},
        });
        self.services.insert(id, running);
        self.agents[agent].put("/v1/agent/service/register", &definition).await
    }

    async fn shows(&self, agent: usize, service: &str, ids: &[&str]) -> Result<()> {
        let agent = &self.agents[agent];
        agent.wait_passing(service, ids).await?;
        eventually(&format!("DNS of {} to show {ids:?}", agent.name), || async {
            let answer = agent.dig(&format!("{service}.service.mesh.internal."), "SRV").await?;
            ensure!(answer.records.len() == ids.len(), "it has {answer:?}");
            Ok(Some(()))
        })
        .await
    }

    async fn holds(&self, agent: usize, service: &str, ids: &[&str], lasting: Duration) -> Result<()> {
        let agent = &self.agents[agent];
        let (mut asked, end) = (0_u64, Instant::now() + lasting);
        while Instant::now() < end {
            let answer = agent.dig(&format!("{service}.service.mesh.internal."), "SRV").await?;
            ensure!(answer.records.len() == ids.len(), "after {asked} answers DNS gave {answer:?}");
            let mut found = agent.passing(service).await?;
            found.retain(|id| !ids.contains(&id.as_str()));
            ensure!(found.is_empty(), "after {asked} answers HTTP gave {found:?} too");
            asked += 1;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        ensure!(asked > 0, "nothing was asked");
        Ok(())
    }

    async fn staleness(&self, agent: usize, expected: bool) -> Result<()> {
        let agent = &self.agents[agent];
        eventually(&format!("{} to be stale: {expected}", agent.name), || async {
            let response = agent.response("/v1/catalog/services?stale").await?;
            let age = response.headers().get("x-muster-stale");
            let known = response.headers().get("x-consul-knownleader").and_then(|value| value.to_str().ok());
            if age.is_some() != (known == Some("false")) {
                bail!("X-Muster-Stale {age:?} beside X-Consul-KnownLeader {known:?}");
            }
            Ok((age.is_some() == expected).then_some(()))
        })
        .await
    }
}
