//! Name servers with an equal zone, as yardsticks in the same run. A machine without one is told so.

use std::{
    fmt::Write,
    net::SocketAddr,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use muster_tests::harness::{ask, eventually, free_address, signal};
use tempfile::TempDir;

/// A running name server. It is killed when dropped.
pub(super) struct NameServer {
    pub(super) address: SocketAddr,
    pub(super) name: &'static str,
    child: Child,
    directory: TempDir,
}

impl NameServer {
    /// Starts nsd on loopback with `services` names of three instances each; `None` where it is not installed.
    pub(super) async fn nsd(services: u64) -> Result<Option<Self>> {
        // Its rate limit (on in some packages) off, rotation on, glue in the answers: as Muster answers.
        let config = |root: &Path, port: u16| {
            let root = root.display();
            format!(
                "server:\n ip-address: 127.0.0.1@{port}\n username: \"\"\n zonesdir: \"{root}\"\n database: \"\"\n \
                 pidfile: \"\"\n logfile: \"{root}/log\"\n xfrdir: \"{root}\"\n xfrdfile: \"{root}/xfrd\"\n \
                 zonelistfile: \"{root}/list\"\n rrl-ratelimit: 0\n round-robin: yes\n minimal-responses: no\n\
                 remote-control:\n control-enable: no\nzone:\n name: mesh.internal\n zonefile: zone\n"
            )
        };
        Self::start("nsd", "nsd", &["-d", "-c"], config, services).await
    }

    /// The same with Knot DNS.
    pub(super) async fn knot(services: u64) -> Result<Option<Self>> {
        let config = |root: &Path, port: u16| {
            let root = root.display();
            format!(
                "server:\n  rundir: \"{root}\"\n  listen: 127.0.0.1@{port}\n  answer-rotation: on\n\
                 log:\n  - target: \"{root}/log\"\n    any: warning\ndatabase:\n  storage: \"{root}/db\"\n\
                 zone:\n  - domain: mesh.internal\n    storage: \"{root}\"\n    file: zone\n    journal-content: none\n"
            )
        };
        Self::start("knot", "knotd", &["-c"], config, services).await
    }

    async fn start(
        name: &'static str,
        binary: &str,
        arguments: &[&str],
        config: impl Fn(&Path, u16) -> String,
        services: u64,
    ) -> Result<Option<Self>> {
        let (directory, address) = (tempfile::tempdir()?, free_address()?);
        std::fs::write(directory.path().join("zone"), zone(services)?)?;
        let path = directory.path().join("config");
        std::fs::write(&path, config(directory.path(), address.port()))?;
        let found = [binary.to_owned(), format!("/usr/sbin/{binary}")].into_iter().find_map(|binary| {
            let mut command = Command::new(binary);
            command.args(arguments).arg(&path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command.process_group(0).spawn().ok()
        });
        let Some(child) = found else { return Ok(None) };
        let server = Self { address, name, child, directory };
        eventually("the name server to answer", || async {
            let answer = ask(address, "svc-0.service.mesh.internal.", "A").await.ok();
            Ok(answer.filter(|answer| answer.records.len() == 3))
        })
        .await
        .with_context(|| format!("{binary}: {}", server.log()))?;
        Ok(Some(server))
    }

    /// CPU time of it and the processes that it forked.
    pub(super) fn cpu_time(&self) -> Result<Duration> {
        let mut ticks = 0;
        for entry in std::fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(id) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            // Processes come and go while the list is read.
            let Ok(stat) = std::fs::read_to_string(format!("/proc/{id}/stat")) else { continue };
            let Some((_, after)) = stat.rsplit_once(')') else { continue };
            let fields: Vec<&str> = after.split_whitespace().collect();
            // It forks, and its children fork: all of them are in the process group that it was given.
            if fields[2] == self.child.id().to_string() {
                ticks += fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
            }
        }
        Ok(Duration::from_millis(ticks * 10))
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        // Asked to end, it takes its children along.
        if signal(self.child.id(), "TERM").is_err() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

/// The zone as Muster would answer from it: three A and three SRV records for each service, with glue.
fn zone(services: u64) -> Result<String> {
    let mut zone = String::from(
        "$ORIGIN mesh.internal.\n$TTL 5\n@ SOA ns hostmaster 1 3600 600 86400 5\n@ NS ns\nns A 127.0.0.1\n",
    );
    for number in 0..services * 3 {
        let (high, low) = (number / 250, number % 250 + 1);
        let service = number % services;
        writeln!(zone, "svc-{service}.service A 10.1.{high}.{low}")?;
        writeln!(zone, "svc-{service}.service SRV 1 1 80 0a01{high:02x}{low:02x}.addr.dc1")?;
        writeln!(zone, "0a01{high:02x}{low:02x}.addr.dc1 A 10.1.{high}.{low}")?;
    }
    Ok(zone)
}
