//! The process on its host: trouble with its log, signals, its name, and a host without root certificates.

use std::{
    io::Write,
    net::SocketAddr,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use muster_tests::harness::{
    Launch, PATIENCE, Process, TestAgent, TestCluster, eventually, free_address, http_client, muster_binary, signal,
};

/// What a pipe of Linux holds.
const PIPE_BYTES: usize = 64 * 1024;

/// `muster dev` whose output goes where a test says, killed when dropped.
struct Dev {
    child: Child,
    http: SocketAddr,
}

impl Dev {
    fn start(log: &str, stdout: Stdio, stderr: Stdio) -> Result<Self> {
        let (http, any) = (free_address()?, "127.0.0.1:0");
        let mut command = Command::new(muster_binary()?);
        command.args(["dev", "--node", "laptop", "--log", log, "--http", &http.to_string()]);
        command.args(["--dns", any, "--xds", any, "--registry", any]);
        let child = command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).spawn()?;
        Ok(Self { child, http })
    }

    async fn get(&self, path: &str) -> Result<String> {
        let client = http_client(Duration::from_secs(5))?;
        Ok(client.get(format!("http://{}{path}", self.http)).send().await?.text().await?)
    }

    async fn ready(&self) -> Result<()> {
        eventually("dev to be ready", || async {
            let client = http_client(Duration::from_secs(5))?;
            let response = client.get(format!("http://{}/readyz", self.http)).send().await?;
            Ok(response.status().is_success().then_some(()))
        })
        .await
    }

    /// Lines that are counted as lost.
    async fn lost(&self) -> Result<u64> {
        let metrics = self.get("/metrics").await?;
        let line = metrics.lines().find(|line| line.starts_with("muster_log_lines_dropped_total "));
        let value = line.and_then(|line| line.split(' ').nth(1)).context("no muster_log_lines_dropped_total")?;
        Ok(value.parse()?)
    }

    fn stop(mut self) -> Result<ExitStatus> {
        signal(self.child.id(), "TERM")?;
        ended(&mut self.child)
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ended(child: &mut Child) -> Result<ExitStatus> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        ensure!(Instant::now() < deadline, "it did not end");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_the_log_costs_lines_and_nothing_else() -> Result<()> {
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full");
    let dev = Dev::start("info", full()?.into(), full()?.into())?;
    dev.ready().await?;
    eventually("lost lines to be counted", || async { Ok((dev.lost().await? > 0).then_some(())) }).await?;
    let status = dev.stop()?;
    ensure!(status.success(), "{status}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_whose_reader_is_gone_costs_lines_and_nothing_else() -> Result<()> {
    let mut dev = Dev::start("info", Stdio::piped(), Stdio::piped())?;
    drop((dev.child.stdout.take(), dev.child.stderr.take()));
    dev.ready().await?;
    eventually("lost lines to be counted", || async { Ok((dev.lost().await? > 0).then_some(())) }).await?;
    let status = dev.stop()?;
    ensure!(status.success(), "{status}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_whose_reader_stands_still_holds_up_neither_answers_nor_the_stop() -> Result<()> {
    // Full from the start, as nobody reads it.
    let (_reader, mut writer) = std::io::pipe()?;
    writer.write_all(&[b'.'; PIPE_BYTES])?;
    let dev = Dev::start("trace", Stdio::null(), writer.into())?;
    dev.ready().await?;
    dev.get("/v1/catalog/services").await?;
    let status = dev.stop()?;
    ensure!(status.success(), "{status}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_signal_ends_an_agent_before_it_has_left() -> Result<()> {
    let cluster = TestCluster::start(1)?;
    let mut agent = TestAgent::start(&cluster, "agent-0").await?;
    // 16 is SIGSTKFLT, of which dash knows no name.
    for name in ["HUP", "USR2", "PIPE", "ALRM", "VTALRM", "PROF", "IO", "PWR", "16", "XFSZ", "RTMIN+1"] {
        agent.process.signal(name)?;
        agent.ready().await.with_context(|| format!("after SIG{name}"))?;
        ensure!(agent.process.ended()?.is_none(), "SIG{name} ended it");
    }
    for name in ["QUIT", "XCPU", "INT"] {
        agent.process.signal(name)?;
        let status = agent.process.wait_ended()?;
        ensure!(status.success(), "SIG{name}: {status}");
        ensure!(agent.process.log_tail().contains("left the registry"), "SIG{name}: {}", agent.process.log_tail());
        agent.restart()?;
        agent.ready().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_does_not_end_a_member_and_makes_dev_leave() -> Result<()> {
    let mut cluster = TestCluster::start(1)?;
    let member = cluster.process(0).context("no member")?;
    for name in ["HUP", "USR2"] {
        member.signal(name)?;
    }
    member.wait_log(&["the configuration is read again"]).await?;
    ensure!(member.ended()?.is_none(), "it ended");

    // Whatever started this test may ignore hangups, which is inherited.
    let any = "127.0.0.1:0";
    let directory = tempfile::tempdir()?;
    let launch = Launch { through: vec!["env".into(), "--default-signal=HUP".into()], ..Launch::default() };
    let arguments = ["dev", "--json", "--log", "info", "--http", any, "--dns", any, "--xds", any, "--registry", any];
    let (mut dev, _) = Process::start(&launch, &arguments, &directory.path().join("dev.log"))?;
    dev.wait_log(&["the registry has this node's state"]).await?;
    dev.signal("HUP")?;
    let status = dev.wait_ended()?;
    ensure!(status.success() && dev.log().contains("left the registry"), "{status}: {}", dev.log_tail());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_takes_up_what_can_change_and_names_what_cannot() -> Result<()> {
    let cluster = TestCluster::start(1)?;
    let mut agent = TestAgent::start(&cluster, "agent-0").await?;
    let file = agent.config().to_owned();
    let text = std::fs::read_to_string(&file)?;
    let (member, nobody) = (&cluster.members()[0], free_address()?.to_string());

    std::fs::write(&file, text.replace(member, &nobody))?;
    agent.restart()?;
    agent.process.wait_log(&["has not taken this node's state", &nobody]).await?;
    std::fs::write(&file, text.replace("[dns]\n", "[dns]\nlisten_to = 3\n"))?;
    agent.process.signal("HUP")?;
    agent.process.wait_log(&["ERROR", "the new configuration is refused", "listen_to"]).await?;

    let text = text.replace("info,muster_agent", "debug,muster_agent");
    std::fs::write(&file, text.replace("[dns]\n", "[dns]\nzone = \"other.internal\"\n"))?;
    agent.process.signal("HUP")?;
    agent.process.wait_log(&["read again", "log.filter, registry.members"]).await?;
    agent.process.wait_log(&["needs a restart: dns.zone"]).await?;
    agent.register("web", "web-0", 80).await?;
    agent.wait_passing("web", &["web-0"]).await?;
    agent.process.wait_log(&[" DEBUG "]).await?;
    ensure!(agent.process.ended()?.is_none(), "it ended");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_interrupt_ends_at_once() -> Result<()> {
    let cluster = TestCluster::start(1)?;
    let mut agent =
        TestAgent::start_with(&cluster, "agent-0", "drain_time = \"10m\"\nstop_timeout = \"20m\"\n", "").await?;
    // A shell and `timeout` both pass one Ctrl-C on: it comes twice at once, and is one.
    agent.process.signal("INT")?;
    agent.process.signal("INT")?;
    agent.process.wait_log(&["stopping"]).await?;
    agent.process.wait_log(&["waiting for the registry to take this node out", "a second Ctrl-C ends at once"]).await?;
    ensure!(agent.process.ended()?.is_none(), "it ended");
    agent.process.signal("INT")?;
    let status = agent.process.wait_ended()?;
    ensure!(status.code() == Some(130), "{status}");
    ensure!(agent.process.log_tail().contains("without leaving"), "{}", agent.process.log_tail());
    Ok(())
}

/// Runs `muster` on a host of this name whose `/proc/sys` is hidden, as the packaged unit hides it. `None`, with a
/// notice, where namespaces cannot be made.
fn on_host(name: &str) -> Result<Option<Launch>> {
    let script = "mount -t tmpfs none /proc/sys && hostname \"$0\" && exec \"$@\"";
    let through: Vec<String> =
        ["unshare", "--user", "--map-root-user", "--mount", "--uts", "sh", "-c", script, name].map(Into::into).into();
    let works = Command::new(&through[0]).args(&through[1..]).arg("true").output();
    if !works.is_ok_and(|output| output.status.success()) {
        eprintln!("NOTICE: passed over: namespaces for a host of its own cannot be made here (unshare)");
        return Ok(None);
    }
    Ok(Some(Launch { through, ..Launch::default() }))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_has_its_own_name_where_proc_is_hidden_and_none_is_called_localhost() -> Result<()> {
    let Some(web) = on_host("web-17")? else { return Ok(()) };
    let cluster = TestCluster::start(1)?;
    let directory = tempfile::tempdir()?;
    let (config, log) = (directory.path().join("muster.toml"), directory.path().join("log"));
    let arguments = |command| Ok::<_, anyhow::Error>([command, "--json", "--config", config.to_str().context("path")?]);
    let any = "listen = \"127.0.0.1:0\"\n";
    let text = format!(
        "[node]\ndata_dir = {:?}\n[registry]\nmembers = {:?}\n[http]\n{any}[dns]\n{any}[xds]\n{any}",
        directory.path().join("data"),
        cluster.members(),
    );
    std::fs::write(&config, text)?;
    let (mut agent, bound) = Process::start(&web, &arguments("agent")?, &log)?;
    let url = format!("http://{}/v1/catalog/nodes", bound["http"].as_str().context("http")?);
    eventually("the node to be known by the host's name", || async {
        let text = http_client(PATIENCE)?.get(&url).send().await?.text().await?;
        ensure!(text.contains("\"Node\":\"web-17\""), "{text}");
        Ok(Some(()))
    })
    .await?;
    agent.kill()?;

    let launch = on_host("localhost")?.context("no namespace")?;
    for command in ["agent", "registry"] {
        let refused = Process::start(&launch, &arguments(command)?, &log).err().context("it started")?;
        let said = format!("{refused:#}");
        ensure!(said.contains("node.name") && said.contains("localhost") && said.contains("set a name"), "{said}");
    }
    // A newcomer's machine may be called so.
    let any = "127.0.0.1:0";
    let arguments = ["dev", "--json", "--http", any, "--dns", any, "--xds", any, "--registry", any];
    let (mut dev, _) = Process::start(&launch, &arguments, &log)?;
    ensure!(dev.stop()?.success(), "{}", dev.log_tail());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_needs_no_root_certificates_for_plain_http() -> Result<()> {
    let dev = Dev::start("warn", Stdio::null(), Stdio::null())?;
    dev.ready().await?;
    let ask = |base: String| -> Result<std::process::Output> {
        let mut command = Command::new(muster_binary()?);
        command.args(["services", "--http-addr", &base]);
        Ok(command.env("SSL_CERT_FILE", "/nonexistent").env("SSL_CERT_DIR", "/nonexistent").output()?)
    };
    let output = ask(dev.http.to_string())?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let output = ask(format!("https://{}", dev.http))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1) && said.contains("ca-certificates") && said.contains("http://"), "{said}");
    Ok(())
}

#[test]
fn a_reader_that_wants_no_more_ends_a_command_quietly() -> Result<()> {
    let script = format!("{{ {:?} --help; echo $? >&3; }} 3>&1 >&2 2>/dev/null | cat", muster_binary()?);
    let output = Command::new("sh").args(["-c", &script]).output()?;
    ensure!(String::from_utf8_lossy(&output.stdout).trim() == "0", "{output:?}");
    Ok(())
}
