//! The server behind unbound, as docs/dns.md sets it up: a resolver that asks for a name label by label (RFC 9156), and takes
//! `NXDOMAIN` of a part for the end of all that stands below it (RFC 8020).
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests are tests too")]

mod support;

use std::{
    io::Write,
    net::{SocketAddr, UdpSocket},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RecordType},
};
use muster_catalog::Snapshot;
use support::{TestServer, catalog, config};

/// Far longer than a start or an answer takes: a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(20);
/// A lost datagram is sent again.
const RETRY: Duration = Duration::from_millis(500);

/// unbound with a stub zone, until it is dropped.
struct Unbound {
    process: Child,
    socket: UdpSocket,
}

impl Drop for Unbound {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The lines that docs/dns.md gives for unbound, with the server's port.
fn documented(server: SocketAddr) -> String {
    let page = include_str!("../../docs/dns.md");
    let block = page.split("\nunbound:\n\n```\n").nth(1).and_then(|rest| rest.split("```").next());
    block.expect("a block for unbound").replace("127.0.0.1@8600", &format!("127.0.0.1@{}", server.port()))
}

impl Unbound {
    /// Starts one with this configuration; `None` where unbound is missing. In CI it must be there.
    fn start(configuration: &str) -> Option<Self> {
        let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let own = format!(
            "server:
    directory: \"\"
    chroot: \"\"
    username: \"\"
    pidfile: \"\"
    use-syslog: no
    interface: 127.0.0.1
    port: {port}
    module-config: iterator
    qname-minimisation-strict: yes
    harden-below-nxdomain: yes
"
        );
        let spawn = |program| {
            let mut command = Command::new(program);
            command.args(["-d", "-p", "-c", "/dev/stdin"]).stdin(Stdio::piped()).stderr(Stdio::null()).spawn()
        };
        // Where it is, for those whose PATH has no programs of administrators.
        let Ok(mut process) = spawn("unbound").or_else(|_| spawn("/usr/sbin/unbound")) else {
            let remedy = "unbound is missing: install unbound";
            assert!(std::env::var_os("CI").is_none(), "{remedy}");
            println!("not run: {remedy}");
            return None;
        };
        process.stdin.take().unwrap().write_all(format!("{own}{configuration}").as_bytes()).unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(("127.0.0.1", port)).unwrap();
        socket.set_read_timeout(Some(RETRY)).unwrap();
        Some(Self { process, socket })
    }

    /// Asks until there is an answer: it may still be starting.
    fn ask(&self, name: &str, qtype: RecordType) -> Message {
        let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(format!("{name}.mesh.internal.")).unwrap(), qtype));
        let (bytes, until, mut buffer) = (message.to_vec().unwrap(), Instant::now() + PATIENCE, [0; 4096]);
        loop {
            let sent = self.socket.send(&bytes).and_then(|_| self.socket.recv(&mut buffer));
            match sent.ok().and_then(|length| Message::from_vec(&buffer[..length]).ok()) {
                Some(reply) if reply.queries == message.queries => return reply,
                _ => assert!(Instant::now() < until, "unbound does not answer {name} {qtype}"),
            }
            // Nobody listens yet: that is said at once.
            std::thread::yield_now();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_form_is_found_by_who_asks_label_by_label() {
    use RecordType::{A, AAAA, SRV};
    let server = TestServer::sample().await;
    let whole = documented(server.udp);
    // Also for those who remember that there is none: what was answered for a part must not hide what is below it.
    let remembering = whole.replace("stub-no-cache: yes", "stub-no-cache: no");
    assert_ne!(whole, remembering);
    for configuration in [whole, remembering] {
        let Some(unbound) = Unbound::start(&configuration) else { return };
        let (found, nodata, nxdomain) =
            ((ResponseCode::NoError, true), (ResponseCode::NoError, false), (ResponseCode::NXDomain, false));
        for (name, qtype, expected) in [
            // Parts first, as answers for them are remembered.
            ("service", A, nodata),
            ("dc1", A, nodata),
            ("rack-1.node", A, nodata),
            ("2.web.service", A, nodata),
            ("port.web.service", A, nodata),
            ("_tcp", SRV, nodata),
            ("_metrics.service.dc1", SRV, nodata),
            ("web.service", A, found),
            ("WEB.service.dc1", A, found),
            ("web.service.dc1.dc", A, found),
            ("green.web.service", A, found),
            ("v1.2.web.service", A, found),
            ("metrics.port.web.service", SRV, found),
            ("_web._tcp.service", SRV, found),
            ("_web._tcp", SRV, found),
            ("_web._metrics.service.dc1", SRV, found),
            ("_web._metrics", SRV, found),
            ("_web._blue.service", SRV, found),
            ("six.service", AAAA, found),
            ("db.rack-1.node.dc1", AAAA, found),
            ("n1.node", A, found),
            ("0a000007.addr", A, found),
            ("gone.service", A, nodata),
            ("nope.service", A, nxdomain),
            ("red.web.service", A, nxdomain),
            ("nope.node", A, nxdomain),
            ("web.service.dc2", A, nxdomain),
        ] {
            let reply = unbound.ask(name, qtype);
            let answered = (reply.metadata.response_code, !reply.answers.is_empty());
            assert_eq!(answered, expected, "{name} {qtype} with\n{configuration}\n{reply}");
        }
    }
}

/// What docs/dns.md says of `stub-no-cache`.
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_back_is_found_at_once() {
    let server = TestServer::start(config(), catalog::live(Snapshot::default()), None).await;
    let Some(unbound) = Unbound::start(&documented(server.udp)) else { return };
    assert_eq!(unbound.ask("web.service", RecordType::A).metadata.response_code, ResponseCode::NXDomain);
    server.source.set(catalog::live(catalog::sample()));
    assert_eq!(unbound.ask("web.service", RecordType::A).answers.len(), 3);
}
