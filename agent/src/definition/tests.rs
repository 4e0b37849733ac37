use std::path::Path;

use muster_catalog::{OutlierDetection, Protocol};

use super::*;

const FULL: &str = r#"
[service]
name = "Web"
id = "web-1"
tags = ["v1", "blue", "v1"]
address = "10.0.0.7"
default_port = "http"
meta = { version = "1.2" }
weights = { passing = 10, warning = 2 }
locality = { region = "eu", zone = "eu-1" }

[service.ports]
admin = 9090
http = 8080

[[service.checks]]
http = "http://127.0.0.1:8080/healthz"
interval = "10s"
timeout = "2s"
rise = 2
fall = 3
warn_after = 1
headers = { Host = "web.example" }
deregister_critical_after = "90s"

[[service.checks]]
tcp = "[::1]:9090"

[[service.checks]]
id = "beat"
name = "heartbeat"
ttl = "30s"
status = "passing"
"#;

fn parse_text(text: &str) -> Result<Vec<ServiceDefinition>, FileError> {
    parse(Path::new("web.toml"), text)
}

#[test]
fn every_key_is_read() {
    let web = parse_text(FULL).unwrap().remove(0);
    assert_eq!((&*web.id, web.name.as_str(), web.name.as_key()), ("web-1", "Web", "web"));
    assert_eq!(web.tags.iter().map(|tag| &**tag).collect::<Vec<_>>(), ["v1", "blue"]);
    assert_eq!(web.address, Address::parse("10.0.0.7"));
    let ports: Vec<_> = web.ports.iter().map(|port| (&*port.name, port.number)).collect();
    assert_eq!(ports, [("http", 8080), ("admin", 9090)], "the default stands first");
    assert_eq!(web.weights, Weights { passing: 10, warning: 2 });
    assert_eq!(web.locality.as_ref().map(|at| &*at.zone), Some("eu-1"));
    let ids: Vec<_> = web.checks.iter().map(|check| &*check.id).collect();
    assert_eq!(ids, ["service:web-1:1", "service:web-1:2", "beat"]);
    assert_eq!(web.checks[0].thresholds, Thresholds { rise: 2, fall: 3, warn_after: Some(1) });
    assert_eq!(web.checks[0].deregister_critical_after, Some(Duration::from_secs(90)));
    assert_eq!((web.checks[1].interval, web.checks[1].timeout), (DEFAULT_INTERVAL, DEFAULT_TIMEOUT));
    assert_eq!(web.checks[1].initial, Status::Critical);
    assert_eq!((&*web.checks[2].name, web.checks[2].initial), ("heartbeat", Status::Passing));
    assert_eq!(web.checks[2].probe, Probe::Ttl { ttl: Duration::from_secs(30) });
}

#[test]
fn the_written_form_of_a_definition_gives_it_back() {
    let web = parse_text(FULL).unwrap().remove(0);
    let json = serde_json::to_string(&ServiceText::from(&web)).unwrap();
    let back: ServiceText = serde_json::from_str(&json).unwrap();
    assert_eq!(back.validate("service").unwrap(), web);
}

#[test]
fn a_target_that_can_never_work_is_refused_with_the_remedy() {
    let parse =
        |target: &str| parse_text(&format!("[service]\nname = \"web\"\n[[service.checks]]\ntcp = \"{target}\"\n"));
    for good in
        ["127.0.0.1:1", "localhost:80", "[::1]:80", "[fd99::1]:65535", "db_1.internal:5432", "db.internal.:5432"]
    {
        assert!(parse(good).is_ok(), "{good}: {:?}", parse(good));
    }
    for (bad, part) in [
        ("tcp://a:1", "leave out the scheme"),
        ("fd99::1", "\\\"[fd99::1]:5432\\\""),
        ("fd99::zz:80", "stands in brackets"),
        ("[fd99::1", "write host:port"),
        ("[fd99::1]", "write host:port"),
        ("[a]:1", "no IPv6 address"),
        ("10.0.0.256:80", "neither a host name nor an IP address"),
        ("a b:1", "neither a host name"),
        ("a:0", "1 to 65535"),
        ("a:http", "1 to 65535"),
        (":80", "write host:port"),
        ("a", "write host:port"),
    ] {
        let error = parse(bad).unwrap_err().to_string().replace('"', "\\\"");
        assert!(error.contains("is no target") && error.contains(part), "{bad}: {error}");
    }
}

#[test]
fn flap_damping_is_on_unless_said_otherwise_and_survives_the_written_form() {
    let rules = |falls, half_life, max_hold| {
        let (half_life, max_hold) = (Duration::from_secs(half_life), Duration::from_secs(max_hold));
        Some(FlapRules { falls, half_life, max_hold })
    };
    for (check, expected) in [
        ("tcp = \"localhost:80\"", rules(3, 120, 300)),
        // What is told its status is believed, unless asked otherwise.
        ("ttl = \"10s\"", None),
        ("ttl = \"10s\"\nflap_damping = false", None),
        ("ttl = \"10s\"\nflap_damping = true", rules(3, 120, 300)),
        ("ttl = \"10s\"\nflap_failures = 5", rules(5, 120, 300)),
        ("tcp = \"localhost:80\"\nflap_damping = false", None),
        ("tcp = \"localhost:80\"\nflap_failures = 5\nflap_half_life = \"1h\"", rules(5, 3600, 7200)),
        ("tcp = \"localhost:80\"\nflap_max_hold = \"1h\"", rules(3, 120, 3600)),
        ("alias_node = true", None),
    ] {
        let text = format!("[service]\nname = \"web\"\nport = 80\n[[service.checks]]\n{check}\n");
        let web = parse_text(&text).unwrap().remove(0);
        assert_eq!(web.checks[0].flaps, expected, "{check}");
        assert_eq!(ServiceText::from(&web).validate("service").unwrap(), web, "{check}");
    }
    for (check, line, part) in [
        ("flap_failures = 1", 6, "flap_failures: 1 is out of range: write 2 to 100"),
        ("flap_damping = false\nflap_half_life = \"1m\"", 7, "flap_half_life: flap_damping is false: leave it out"),
        ("flap_max_hold = \"2m\"", 6, "flap_max_hold: 2m is not over flap_half_life = 2m"),
        ("flap_half_life = \"2h\"", 6, "write 100ms to 1h"),
    ] {
        let text =
            format!("[service]\nname = \"web\"\nport = 80\n[[service.checks]]\ntcp = \"localhost:80\"\n{check}\n");
        let error = parse_text(&text).unwrap_err().to_string();
        assert!(error.contains(part) && error.starts_with(&format!("web.toml:{line}: ")), "{check}: {error}");
    }
}

#[test]
fn defaults_are_small() {
    let web = parse_text("[service]\nname = \"web\"\nport = 80\n[[service.checks]]\ntcp = \"localhost:80\"\n").unwrap();
    assert_eq!((&*web[0].id, &*web[0].checks[0].id), ("web", "service:web"));
    assert_eq!(&*web[0].checks[0].name, "Service 'web' check");
    assert_eq!(web[0].ports, [Port { name: "default".into(), number: 80 }]);
}

#[test]
fn the_examples_are_valid() {
    let proxy = parse_text(include_str!("../../../examples/proxy/web-proxy.toml")).unwrap().remove(0);
    let settings = proxy.proxy.as_deref().unwrap();
    assert_eq!((&*proxy.id, settings.service.as_str(), settings.upstreams.len()), ("web-proxy", "web", 2));
    assert!(settings.inbound.is_some());
    let web = parse_text(include_str!("../../../examples/quickstart/web.toml")).unwrap().remove(0);
    assert_eq!((&*web.id, web.ports[0].number, web.checks.len()), ("web", 8080, 1));
}

#[test]
fn a_list_of_services_in_one_file() {
    let both = parse_text("[[services]]\nname = \"a\"\n[[services]]\nname = \"b\"\n").unwrap();
    assert_eq!(both.iter().map(|service| &*service.id).collect::<Vec<_>>(), ["a", "b"]);
}

/// (text, line, what the message must hold)
const BAD: &[(&str, Option<usize>, &[&str])] = &[
    ("[service]\nname = \"my_web\"", Some(2), &["service.name", "'_' at position 3"]),
    ("[service]\nport = 80", Some(1), &["service.name", "is empty"]),
    ("[service]\nname = \"web\"\nprot = 80", Some(3), &["service.prot", "unknown field `prot`", "`port`"]),
    ("[service]\nname = \"web\"\nport = 99999", Some(3), &["service.port", "99999", "65535"]),
    (
        "[service]\nname = \"web\"\nports = { http = \"x\" }",
        Some(3),
        &["service.ports.http", "expected a port number up to 65535, for example 8080"],
    ),
    ("[service]\nname = \"web\"\nport = \"80\"", Some(3), &["service.port", "string", "\"80\""]),
    ("[service]\nname = \"web\"\nport = 0", Some(3), &["service.port", "0 is no port"]),
    ("[service]\nname = \"web\"\nport = 80\nname = \"x\"", Some(4), &["duplicate key"]),
    ("[service]\nname = \"web", Some(2), &["basic string"]),
    ("[service]\nname = \"web\"\nport = 1\nports = { a = 2 }", Some(3), &["service.port", "`ports`"]),
    ("[service]\nname = \"web\"\nports = { a = 2, b = 3 }", Some(3), &["service.ports", "default_port = \"a\""]),
    ("[service]\nname = \"web\"\nports = { a = 2 }\ndefault_port = \"b\"", Some(4), &["service.default_port", "\"b\""]),
    ("[service]\nname = \"web\"\naddress = \"0.0.0.0\"", Some(3), &["service.address", "\"0.0.0.0\""]),
    ("[service]\nname = \"web\"\nweights = { passing = 0 }", Some(3), &["service.weights.passing", "maintenance"]),
    (
        "[service]\nname = \"web\"\n\n[service.meta]\n\"a b\" = \"c\"",
        Some(5),
        &["service.meta.a b", "is not a meta key"],
    ),
    (
        "[service]\nname = \"web\"\n[[service.checks]]\ninterval = \"1s\"",
        Some(3),
        &["service.checks[0]", "exactly one"],
    ),
    (
        "[[services]]\nname = \"a\"\n[[services]]\nname = \"b\"\n[[services.checks]]\ntcp = \"x:1\"\ninterval = \"10 parsecs\"",
        Some(7),
        &["services[1].checks[0].interval", "\"10 parsecs\"", "\"500ms\""],
    ),
    ("[service]\nname = \"w\"\n[[service.checks]]\ntcp = \"x:1\"\ninterval = \"1ms\"", Some(5), &["100ms to 1d"]),
    ("[service]\nname = \"w\"\n[[service.checks]]\ntcp = \"x\"", Some(4), &["service.checks[0].tcp", "host:port"]),
    (
        "[service]\nname = \"w\"\n[[service.checks]]\nhttp = \"ftp://x\"",
        Some(4),
        &["service.checks[0].http", "ftp://x"],
    ),
    ("[service]\nname = \"w\"\n[[service.checks]]\nttl = \"5s\"\nfall = 2", Some(5), &["service.checks[0].fall"]),
    ("[service]\nname = \"w\"\n[[service.checks]]\ntcp = \"x:1\"\nmethod = \"GET\"", Some(5), &["only http checks"]),
    ("[service]\nname = \"w\"\n[[service.checks]]\ntcp = \"x:1\"\nrise = 0", Some(5), &["1 to 1000"]),
    ("[service]\nname = \"w\"\n[[service.checks]]\ntcp = \"x:1\"\nfall = 2\nwarn_after = 3", Some(6), &["never warn"]),
    ("[service]\nname = \"w\"\n[[service.checks]]\ntcp = \"x:1\"\nstatus = \"ok\"", Some(5), &["\"ok\"", "passing"]),
    ("[service]\nname = \"a\"\n[[services]]\nname = \"a\"", Some(3), &["services[0].id", "own id"]),
    ("", None, &["defines no service"]),
];

#[test]
fn an_error_names_file_line_key_value_and_remedy() {
    for (text, line, holds) in BAD {
        let error = parse_text(text).unwrap_err();
        assert_eq!(error.line, *line, "{text}\n{error}");
        assert!(error.to_string().starts_with("web.toml"), "{error}");
        for part in *holds {
            assert!(error.to_string().contains(part), "{text}\nlacks {part:?}: {error}");
        }
    }
}

#[test]
fn sizes_are_limited() {
    let tags = (0..65).map(|n| format!("\"t{n}\"")).collect::<Vec<_>>().join(",");
    let error = parse_text(&format!("[service]\nname = \"w\"\ntags = [{tags}]")).unwrap_err();
    assert!(error.to_string().contains("65 tags are too many: at most 64"), "{error}");
    let services = "[[services]]\nname = \"w\"\n".repeat(MAX_SERVICES_PER_FILE + 1);
    assert!(parse_text(&services).unwrap_err().to_string().contains("257 services are too many"));
    let meta = format!("[service]\nname = \"w\"\nmeta = {{ k = \"{}\" }}", "v".repeat(513));
    assert!(parse_text(&meta).unwrap_err().to_string().contains("service.meta.k: the value is 513 bytes long"));
}

#[test]
fn ids_of_the_nodes_own_state_are_refused() {
    for id in ["serfHealth", "_node_maintenance"] {
        let text = format!("[service]\nname = \"web\"\n[[service.checks]]\nid = \"{id}\"\nttl = \"30s\"\n");
        let error = parse_text(&text).unwrap_err().to_string();
        assert!(error.contains("kept for the node's own state"), "{error}");
    }
}

const PROXY: &str = r#"
[service]
name = "web-proxy"
port = 20000

[service.proxy]
service = "web"
instance = "web-1"
local_port = 8080
protocol = "http"
http_listener = "127.0.0.1:10001"

[[service.proxy.upstreams]]
service = "db"
listen = "127.0.0.1:5432"
connect_timeout = "250ms"

[[service.proxy.upstreams]]
service = "api"

[service.traffic]
connect_timeout = "2s"
panic_threshold = 40
prefer_near = false
outlier_detection = { consecutive_failures = 3, interval = "1s" }
"#;

#[test]
fn a_proxy_and_traffic_settings_are_read_and_written_back() {
    let definition = parse_text(PROXY).unwrap().remove(0);
    let proxy = definition.proxy.as_deref().unwrap();
    assert_eq!((proxy.service.as_str(), proxy.instance.as_deref()), ("web", Some("web-1")));
    let inbound = proxy.inbound.as_ref().unwrap();
    assert_eq!(
        (inbound.listen.to_string(), inbound.local.to_string()),
        ("127.0.0.1:20000".into(), "127.0.0.1:8080".into())
    );
    assert_eq!(inbound.protocol, Protocol::Http);
    let [db, api] = &*proxy.upstreams else { panic!("{proxy:?}") };
    assert_eq!((db.protocol, db.connect_timeout), (Protocol::Tcp, Some(Duration::from_millis(250))));
    assert_eq!((api.listen, api.protocol), (None, Protocol::Http), "without a listener it is reached by its Host");
    let outlier = definition.traffic.as_deref().unwrap().outlier_detection.clone().unwrap();
    let usual = OutlierDetection::default();
    assert_eq!((outlier.consecutive_failures, outlier.interval), (3, Duration::from_secs(1)));
    assert_eq!((outlier.ejection_time, outlier.max_ejected_percent), (usual.ejection_time, usual.max_ejected_percent));

    let json = serde_json::to_string(&ServiceText::from(&definition)).unwrap();
    let back: ServiceText = serde_json::from_str(&json).unwrap();
    assert_eq!(back.validate("service").unwrap(), definition);
}

#[test]
fn what_is_wrong_with_a_proxy_is_said_with_its_line_and_key() {
    let table = [
        ("service = \"db\"", "service = \"d b\"", 14, "service.proxy.upstreams[0].service"),
        ("127.0.0.1:5432", "0.0.0.0:5432", 15, "service.proxy.upstreams[0].listen: 0.0.0.0:5432 is not a loopback"),
        ("127.0.0.1:5432", "5432", 15, "\"5432\" is no place to listen"),
        ("127.0.0.1:10001", "127.0.0.1:20000", 11, "service.proxy.http_listener: 127.0.0.1:20000 is taken"),
        ("\"http\"", "\"udp\"", 10, "\"udp\" is no protocol"),
        ("local_port = 8080", "", 10, "service.proxy.protocol: stands without local_port"),
        ("port = 20000\n", "", 5, "service.proxy.listen: local_port stands without a place to listen"),
        ("service = \"api\"", "service = \"api\"\nprotocol = \"tcp\"", 20, "give api a listener of its own"),
        ("40", "140", 23, "service.traffic.panic_threshold: 140 is no percentage"),
        ("interval = \"1s\"", "interval = \"1\"", 25, "service.traffic.outlier_detection.interval"),
        ("[service.traffic]", "[service.trafic]", 21, "trafic"),
    ];
    for (from, to, line, words) in table {
        let broken = PROXY.replacen(from, to, 1);
        let error = parse_text(&broken).unwrap_err();
        assert!(error.to_string().contains(words), "{from} → {to}: {error}");
        assert_eq!(error.line, Some(line), "{from} → {to}: {error}");
    }
}
