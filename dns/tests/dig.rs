//! The server as `dig` sees it: a peer that shares no code with it.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests are tests too")]

mod support;

use std::process::Command;

use muster_catalog::{Freshness, Timestamp, View};
use support::{TestServer, catalog::sample};

/// Whether `dig` can be run. In CI it must be; elsewhere the test says how to get it.
fn has_dig() -> bool {
    let found = Command::new("dig").arg("-v").output().is_ok_and(|output| output.status.success());
    let remedy = "dig is missing: install bind9-dnsutils";
    if !found {
        assert!(std::env::var_os("CI").is_none(), "{remedy}");
        println!("not run: {remedy}");
    }
    found
}

/// Runs `dig` with these arguments and returns what it printed.
async fn dig(server: &TestServer, arguments: &str) -> String {
    let port = server.udp.port().to_string();
    let mut command = tokio::process::Command::new("dig");
    command.args(["-r", "@127.0.0.1", "-p", &port, "+tries=1", "+time=10"]).args(arguments.split_whitespace());
    let output = command.output().await.unwrap();
    assert!(output.status.success(), "dig {arguments}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stdout).unwrap()
}

/// The lines that `+short` prints, sorted.
async fn short(server: &TestServer, arguments: &str) -> Vec<String> {
    let printed = dig(server, &format!("{arguments} +short")).await;
    let mut lines: Vec<_> = printed.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[tokio::test(flavor = "multi_thread")]
async fn every_form_resolves() {
    if !has_dig() {
        return;
    }
    let server = TestServer::sample().await;
    let webs = ["10.0.0.1", "10.0.0.2", "10.1.0.3"].as_slice();
    let targets = [
        "1 1 80 0a010003.addr.dc1.mesh.internal.",
        "1 1 80 n1.node.dc1.mesh.internal.",
        "1 1 80 n2.node.dc1.mesh.internal.",
    ];
    let metrics = ["1 1 9100 n1.node.dc1.mesh.internal.", "1 1 9100 n2.node.dc1.mesh.internal."];
    let table: Vec<(&str, &[&str])> = vec![
        ("web.service.mesh.internal A", webs),
        ("web.service.consul A", webs),
        ("web.service.dc1.mesh.internal A", webs),
        ("web.service.dc1.dc.mesh.internal A", webs),
        ("web.service.mesh.internal A +tcp", webs),
        ("green.web.service.mesh.internal A", &webs[..2]),
        ("v1.2.web.service.mesh.internal A", webs),
        ("web.service.mesh.internal SRV", &targets),
        ("_web._tcp.mesh.internal SRV", &targets),
        ("_web._tcp.service.mesh.internal SRV", &targets),
        ("_web._blue.service.mesh.internal SRV", &targets[..1]),
        ("_web._metrics.service.mesh.internal SRV", &metrics),
        ("metrics.port.web.service.mesh.internal SRV", &metrics),
        ("metrics.port.web.service.mesh.internal A", &webs[..2]),
        ("six.service.mesh.internal AAAA", &["2001:db8::6"]),
        ("mail.service.mesh.internal A", &["mx.example.com."]),
        ("warned.service.mesh.internal SRV", &["1 3 80 n2.node.dc1.mesh.internal."]),
        ("n1.node.mesh.internal A", &["10.0.0.1"]),
        ("db.rack-1.node.dc1.mesh.internal AAAA", &["2001:db8::1"]),
        ("0a010003.addr.dc1.mesh.internal A", &["10.1.0.3"]),
        ("mesh.internal NS", &["ns.mesh.internal."]),
        ("ns.mesh.internal A", &["10.0.0.53"]),
        ("web.service.mesh.internal ANY +notcp", &["\"RFC8482\" \"\""]),
    ];
    for (arguments, expected) in table {
        assert_eq!(short(&server, arguments).await, expected, "dig {arguments}");
    }
    let soa = short(&server, "mesh.internal SOA").await;
    assert!(
        soa[0].starts_with("ns.mesh.internal. hostmaster.mesh.internal. ") && soa[0].ends_with(" 3600 600 86400 5")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_sections_and_negative_answers() {
    if !has_dig() {
        return;
    }
    let server = TestServer::sample().await;
    let srv = dig(&server, "WeB.service.mesh.internal SRV").await;
    for expected in [
        "status: NOERROR",
        "flags: qr aa rd; QUERY: 1, ANSWER: 3, AUTHORITY: 0, ADDITIONAL: 4",
        "recursion requested but not available",
        "EDNS: version: 0, flags:; udp: 1232",
        "WeB.service.mesh.internal. 0\tIN\tSRV",
        "n1.node.dc1.mesh.internal. 0\tIN\tA\t10.0.0.1",
    ] {
        assert!(srv.contains(expected), "no {expected:?} in {srv}");
    }
    for (name, status, authority) in [
        ("nope.service.mesh.internal", "NXDOMAIN", 1),
        ("web.service.dc2.mesh.internal", "NXDOMAIN", 1),
        ("gone.service.mesh.internal", "NOERROR", 1),
        ("web.service.mesh.internal AAAA", "NOERROR", 1),
        ("web.service.mesh.internal TXT", "NOERROR", 1),
        ("service.mesh.internal", "NOERROR", 1),
        ("mesh.internal A", "NOERROR", 1),
        ("example.com", "REFUSED", 0),
        ("version.bind CH TXT", "REFUSED", 0),
        ("web.service.mesh.internal +edns=1 +noednsnegotiation", "BADVERS", 0),
        ("web.service.mesh.internal +opcode=notify", "NOTIMP", 0),
    ] {
        let printed = dig(&server, name).await;
        assert!(printed.contains(&format!("status: {status}")), "{name}: {printed}");
        assert!(printed.contains(&format!("ANSWER: 0, AUTHORITY: {authority}")), "{name}: {printed}");
        assert!(!printed.contains("WARNING: Message parser"), "{name}: {printed}");
        if authority == 1 {
            assert!(printed.contains("mesh.internal.\t\t5\tIN\tSOA\tns.mesh.internal."), "{name}: {printed}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn long_answers_are_cut_and_asked_again_over_tcp() {
    if !has_dig() {
        return;
    }
    let server = TestServer::sample().await;
    let name = "big.service.mesh.internal A";
    for (options, most) in [("+noedns", 512), ("+bufsize=512", 512), ("+bufsize=900", 900), ("+bufsize=2500", 2500)] {
        let cut = dig(&server, &format!("{name} {options} +ignore")).await;
        assert!(cut.contains("flags: qr aa tc rd;"), "{options}: {cut}");
        assert_eq!(cut.contains("EDNS: version: 0"), options != "+noedns", "{options}: {cut}");
        let size = cut.lines().find_map(|line| line.strip_prefix(";; MSG SIZE  rcvd: ")).unwrap();
        assert!(size.parse::<usize>().unwrap() <= most, "{size} for {options}");
        let whole = dig(&server, &format!("{name} {options}")).await;
        assert!(whole.contains(";; Truncated, retrying in TCP mode."), "{whole}");
        assert!(whole.contains("flags: qr aa rd; QUERY: 1, ANSWER: 200,"), "{whole}");
    }
    assert_eq!(short(&server, &format!("{name} +tcp")).await.len(), 200);
    let whole = dig(&server, &format!("{name} +bufsize=4096")).await;
    assert!(whole.contains("flags: qr aa rd; QUERY: 1, ANSWER: 200,") && !whole.contains("TCP mode"), "{whole}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_answer_says_so() {
    if !has_dig() {
        return;
    }
    let view = View { freshness: Freshness::Stale { since: Timestamp(58_000) }, ..support::catalog::live(sample()) };
    let server = TestServer::start(support::config(), view, None).await;
    let printed = dig(&server, "web.service.mesh.internal").await;
    assert!(printed.contains("ANSWER: 3"), "{printed}");
    assert!(printed.contains("EDE: 3 (Stale Answer): (as the registry told it 42 s ago)"), "{printed}");
    let printed = dig(&server, "nope.service.mesh.internal").await;
    assert!(printed.contains("EDE: 19") && printed.contains("status: NXDOMAIN"), "{printed}");
    let printed = dig(&server, "web.service.mesh.internal +noedns").await;
    assert!(!printed.contains("EDE"), "{printed}");
}
