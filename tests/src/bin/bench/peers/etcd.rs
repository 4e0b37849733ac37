//! etcd, three members on loopback with their data on disk, and a client of its v3 API.

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use bytes::Bytes;
use muster_tests::harness::{eventually, free_address};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

/// What the compiler made of `proto/etcd.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
mod proto {
    tonic::include_proto!("etcdserverpb");
}

use proto::{PutRequest, RangeRequest, StatusRequest, kv_client::KvClient, maintenance_client::MaintenanceClient};

/// Connecting to a member that is down fails at once on loopback; this bounds the rest.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

struct Member {
    child: Child,
    client: String,
    arguments: Vec<String>,
}

/// A running cluster. It is killed when dropped.
pub(super) struct Etcd {
    members: Vec<Member>,
    _directory: TempDir,
}

impl Etcd {
    /// Starts three members with their default timings; `None` where etcd is not installed.
    pub(super) async fn start() -> Result<Option<Self>> {
        let directory = tempfile::tempdir()?;
        let mut urls = Vec::new();
        for _ in 0..3 {
            urls.push((format!("http://{}", free_address()?), format!("http://{}", free_address()?)));
        }
        let cluster: Vec<String> = urls.iter().enumerate().map(|(at, (_, peer))| format!("m{at}={peer}")).collect();
        let mut members = Vec::new();
        for (at, (client, peer)) in urls.iter().enumerate() {
            let data = directory.path().join(format!("m{at}"));
            let arguments = [
                ("--name", format!("m{at}")),
                ("--data-dir", data.to_string_lossy().into_owned()),
                ("--listen-client-urls", client.clone()),
                ("--advertise-client-urls", client.clone()),
                ("--listen-peer-urls", peer.clone()),
                ("--initial-advertise-peer-urls", peer.clone()),
                ("--initial-cluster", cluster.join(",")),
                ("--initial-cluster-token", "bench".to_owned()),
                ("--logger", "zap".to_owned()),
                ("--log-level", "error".to_owned()),
            ];
            let arguments: Vec<String> =
                arguments.into_iter().flat_map(|(key, value)| [key.to_owned(), value]).collect();
            let Ok(child) = launch(&arguments) else { return Ok(None) };
            members.push(Member { child, client: client.clone(), arguments });
        }
        let etcd = Self { members, _directory: directory };
        let leader = etcd.leader().await?;
        eventually("etcd to take a write", || async {
            etcd.client(leader)?.put("ready".into(), Bytes::new()).await?;
            Ok(Some(()))
        })
        .await?;
        Ok(Some(etcd))
    }

    /// The member that leads, once there is one.
    pub(super) async fn leader(&self) -> Result<usize> {
        eventually("etcd to have a leader", || async {
            for at in 0..self.members.len() {
                let Ok(status) = self.client(at)?.status().await else { continue };
                if status.leader != 0 && status.header.is_some_and(|header| header.member_id == status.leader) {
                    return Ok(Some(at));
                }
            }
            Ok(None)
        })
        .await
    }

    /// How many members there are.
    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    /// A client of one member, on a connection of its own.
    pub(super) fn client(&self, member: usize) -> Result<EtcdClient> {
        let endpoint = Endpoint::from_shared(self.members[member].client.clone())?;
        let channel = endpoint.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true).connect_lazy();
        Ok(EtcdClient { kv: KvClient::new(channel.clone()), maintenance: MaintenanceClient::new(channel) })
    }

    /// kill -9.
    pub(super) fn kill(&mut self, member: usize) -> Result<()> {
        let child = &mut self.members[member].child;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Starts a member from its disk.
    pub(super) fn restart(&mut self, member: usize) -> Result<()> {
        self.members[member].child = launch(&self.members[member].arguments)?;
        Ok(())
    }

    /// CPU time that all members have spent.
    pub(super) fn cpu_time(&self) -> Result<Duration> {
        let ticks = self.members.iter().map(|member| {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", member.child.id()))?;
            let fields: Vec<&str> = stat.rsplit_once(')').context("no stat")?.1.split_whitespace().collect();
            anyhow::Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
        });
        Ok(Duration::from_millis(ticks.sum::<Result<u64>>()? * 10))
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in &mut self.members {
            let _ = member.child.kill();
            let _ = member.child.wait();
        }
    }
}

fn launch(arguments: &[String]) -> std::io::Result<Child> {
    let mut command = Command::new("etcd");
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
}

/// A client of one member. Clones share the connection.
#[derive(Clone)]
pub(super) struct EtcdClient {
    kv: KvClient<Channel>,
    maintenance: MaintenanceClient<Channel>,
}

impl EtcdClient {
    /// Writes a key.
    pub(super) async fn put(&mut self, key: Bytes, value: Bytes) -> Result<()> {
        self.kv.put(PutRequest { key, value }).await?;
        Ok(())
    }

    /// Reads a key, linearizably; how many there are of it.
    pub(super) async fn read(&mut self, key: Bytes) -> Result<i64> {
        Ok(self.kv.range(RangeRequest { key, serializable: false }).await?.into_inner().count)
    }

    async fn status(&mut self) -> Result<proto::StatusResponse> {
        Ok(self.maintenance.status(StatusRequest {}).await?.into_inner())
    }
}
