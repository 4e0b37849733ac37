//! HAProxy fills a `server-template` from SRV records over UDP, as docs/dns.md sets it up. It does not ask again over TCP where
//! an answer was cut: what is missing counts as gone.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests are tests too")]

mod support;

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    os::unix::net::UnixStream,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use support::{TestServer, catalog, config};

/// Far longer than anything here takes: a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks at a condition: a fifth of the time after which HAProxy asks again.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// How many answers are looked at.
const ANSWERS: u64 = 15;

/// HAProxy with one template of 100 servers, until it is dropped.
struct Haproxy {
    process: Child,
    directory: tempfile::TempDir,
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Haproxy {
    /// Starts one that asks the server; `None` where HAProxy is missing. In CI it must be there.
    fn start(server: &TestServer, payload_size: u16) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let (path, socket) = (directory.path().join("haproxy.cfg"), directory.path().join("socket"));
        let configuration = format!(
            "global
    stats socket unix@{}
resolvers muster
    nameserver local {}
    accepted_payload_size {payload_size}
    timeout resolve 50ms
    timeout retry 1s
    hold valid 50ms
    hold obsolete 100ms
defaults
    mode tcp
    timeout connect 1s
    timeout client 1s
    timeout server 1s
backend big
    server-template s- 100 _big._tcp.service.mesh.internal resolvers muster resolve-prefer ipv4 resolve-opts allow-dup-ip init-addr none
",
            socket.display(),
            server.udp
        );
        std::fs::write(&path, configuration).unwrap();
        let spawn = |program| {
            let mut command = Command::new(program);
            command.args(["-db", "-f"]).arg(&path).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
        };
        // Where it is, for those whose PATH has no programs of administrators.
        let Ok(process) = spawn("haproxy").or_else(|_| spawn("/usr/sbin/haproxy")) else {
            let remedy = "haproxy is missing: install haproxy";
            assert!(std::env::var_os("CI").is_none(), "{remedy}");
            println!("not run: {remedy}");
            return None;
        };
        Some(Self { process, directory })
    }

    /// What it prints on a command, once it listens.
    fn say(&self, command: &str) -> String {
        let mut text = String::new();
        let told = UnixStream::connect(self.directory.path().join("socket")).and_then(|mut stream| {
            writeln!(stream, "{command}")?;
            stream.read_to_string(&mut text)
        });
        if told.is_ok() { text } else { String::new() }
    }

    /// The addresses and ports of the servers that have one.
    fn servers(&self) -> BTreeSet<String> {
        let state = self.say("show servers state big");
        let fields = state.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let addresses = fields.filter_map(|fields| Some(format!("{}:{}", fields.get(4)?, fields.get(18)?)));
        addresses.filter(|address| address.starts_with("10.9.")).collect()
    }

    /// How many valid answers it has had.
    fn answers(&self) -> u64 {
        let counts = self.say("show resolvers muster");
        let valid = counts.lines().find_map(|line| line.trim().strip_prefix("valid:"));
        valid.and_then(|count| count.trim().parse().ok()).unwrap_or_default()
    }
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < until, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(LOOK_AGAIN);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_servers_of_a_template_stay_also_where_answers_are_cut() {
    let mut snapshot = catalog::sample();
    catalog::add_big(&mut snapshot, 60);
    let server = TestServer::start(config(), catalog::live(snapshot), None).await;
    // With room for all, and for some 20.
    for (payload_size, expected) in [(8192, 60..=60), (1232, 15..=30)] {
        let Some(haproxy) = Haproxy::start(&server, payload_size) else { return };
        let mut servers = BTreeSet::new();
        eventually("every instance of the first answers is a server", || {
            servers = haproxy.servers();
            expected.contains(&servers.len()) && haproxy.answers() > 5
        });
        let begun = haproxy.answers();
        eventually("answers go on", || {
            assert_eq!(haproxy.servers(), servers, "servers come and go with {payload_size} bytes");
            haproxy.answers() > begun + ANSWERS
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_of_one_address_are_servers_each() {
    let mut snapshot = catalog::sample();
    catalog::add_ports(&mut snapshot, 40);
    let server = TestServer::start(config(), catalog::live(snapshot), None).await;
    let Some(haproxy) = Haproxy::start(&server, 8192) else { return };
    eventually("every port is a server", || haproxy.servers().len() == 40);
}
