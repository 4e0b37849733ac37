//! The v1 dialect over loopback: requests, statuses, bodies, headers.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use muster_catalog::{Command, Freshness, Instance, Name, Status, Timestamp};
use muster_http::port::{Probe, Talk, Tls};
use serde_json::json;
use support::{House, request};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

#[allow(clippy::too_many_lines, reason = "a table: one row for each answer")]
#[tokio::test]
async fn statuses_and_texts_are_the_dialects() {
    let house = House::start().await;
    house.catalog.push("n1", "web", &["a"], Status::Passing);
    let table = [
        ("GET", "/v1/health/service/nope", "", 200, "[]"),
        ("GET", "/v1/catalog/service/nope", "", 200, "[]"),
        ("GET", "/v1/health/checks/nope", "", 200, "[]"),
        ("GET", "/v1/health/node/nope", "", 200, "[]"),
        ("GET", "/v1/health/state/critical", "", 200, "[]"),
        ("GET", "/v1/health/state/odd", "", 400, "Invalid state"),
        ("GET", "/v1/catalog/node/nope", "", 200, "null"),
        ("GET", "/v1/catalog/node-services/nope", "", 200, "{\"Node\":null,\"Services\":[]}"),
        ("GET", "/v1/catalog/datacenters", "", 200, "[\"dc1\"]"),
        ("GET", "/v1/catalog/services", "", 200, "{\"web\":[\"a\"]}"),
        ("GET", "/v1/catalog/services?node-meta=rack:n1", "", 200, "{\"web\":[\"a\"]}"),
        ("GET", "/v1/catalog/services?node-meta=rack:n2", "", 200, "{}"),
        ("GET", "/v1/status/leader", "", 200, "\"10.0.0.7:8300\""),
        ("GET", "/v1/status/peers", "", 200, "[\"10.0.0.7:8300\"]"),
        ("GET", "/v1/agent/services", "", 200, "{}"),
        ("GET", "/v1/agent/checks", "", 200, "{}"),
        ("GET", "/v1/agent/service/nope", "", 404, "unknown service ID: nope"),
        ("GET", "/v1/muster/xds/proxies", "", 200, "[]"),
        ("GET", "/v1/foo", "", 404, "Invalid URL path: not a recognized HTTP API endpoint"),
        ("GET", "/foo", "", 404, "Invalid URL path: if attempting to use the HTTP API"),
        ("POST", "/v1/catalog/nodes", "", 405, "method POST not allowed"),
        ("GET", "/v1/agent/service/register", "", 405, "method GET not allowed"),
        ("GET", "/v1/catalog/nodes?stale&consistent", "", 400, "Cannot specify ?stale with ?consistent"),
        ("GET", "/v1/catalog/nodes?index=x", "", 400, "Invalid index"),
        ("GET", "/v1/catalog/nodes?wait=x", "", 400, "Invalid wait time"),
        ("GET", "/v1/catalog/nodes?filter=Meta.x==y", "", 400, "?filter: filter expressions are not supported yet"),
        ("GET", "/v1/catalog/nodes?ns=a", "", 400, "?ns: namespaces are not supported yet"),
        ("GET", "/v1/catalog/nodes?dc=dc2", "", 500, "No path to datacenter"),
        ("GET", "/v1/health/service/web?passing=odd", "", 400, "Invalid value for ?passing"),
        ("PUT", "/v1/agent/service/register", "{}", 400, "Request decode failed: Missing service name"),
        ("PUT", "/v1/agent/service/register", "{", 400, "Request decode failed: EOF"),
        ("PUT", "/v1/agent/service/register", "[]", 400, "Request decode failed: field \"body\" must be an object"),
        ("PUT", "/v1/agent/service/register", r#"{"Name":"a","Bogus":1}"#, 400, "json: unknown field \"Bogus\""),
        ("PUT", "/v1/agent/service/register", r#"{"Name":"a","name":"b"}"#, 400, "is given twice"),
        ("PUT", "/v1/agent/service/register", r#"{"Name":"a_b"}"#, 400, "'_' at position 2"),
        ("PUT", "/v1/agent/service/register", r#"{"Name":"a","Address":"0.0.0.0"}"#, 400, "Invalid service address"),
        ("PUT", "/v1/agent/service/register", r#"{"Name":"a","Port":70000}"#, 400, "field \"Port\": 70000"),
        (
            "PUT",
            "/v1/agent/service/register",
            r#"{"Name":"a","Check":{"Args":["/bin/true"],"Interval":"10s"}}"#,
            400,
            "\"Check.Args\": script checks over the API are (write them into a definition file) not supported yet",
        ),
        (
            "PUT",
            "/v1/agent/service/register",
            r#"{"Name":"a","Checks":[{"TTL":"5s","Odd":1}]}"#,
            400,
            "unknown field \"Checks[0].Odd\"",
        ),
        (
            "PUT",
            "/v1/agent/service/register",
            r#"{"Name":"a","Check":{"HTTP":"http://x/","TTL":"1s","Interval":"1s"}}"#,
            400,
            "Interval and TTL cannot both be specified",
        ),
        (
            "PUT",
            "/v1/agent/service/register",
            r#"{"Name":"a","Check":{"HTTP":"http://x/"}}"#,
            400,
            "Interval must be > 0",
        ),
        (
            "PUT",
            "/v1/agent/service/register",
            r#"{"Name":"a","Connect":{"SidecarService":{"Port":1}}}"#,
            400,
            "\"Connect.SidecarService\": sidecars are",
        ),
        ("PUT", "/v1/agent/service/register", r#"{"Name":"a","Connect":{"SidecarService":{}}}"#, 400, "sidecars are"),
        ("PUT", "/v1/agent/service/register", r#"{"Name":"a","Connect":{"Native":true}}"#, 400, "Connect.Native"),
        ("PUT", "/v1/agent/service/register", r#"{"Name":"a","ID":"a\u0000b"}"#, 400, "control character '\\0'"),
        ("PUT", "/v1/agent/service/register", r#"{"Name":"a","Meta":{"k":"\u001b[31m"}}"#, 400, "control character"),
        ("PUT", "/v1/agent/service/register", r#"{"Name":"a","Weights":{"Passing":0,"Warning":0}}"#, 400, "Passing"),
        ("GET", "/v1/kv/a/b", "", 501, "/v1/kv/a/b: not built yet in Muster: the key-value store"),
        ("PUT", "/v1/session/create", "{}", 501, "sessions"),
        ("PUT", "/v1/txn", "[]", 501, "transactions"),
        ("GET", "/v1/nothing", "", 404, "not a recognized HTTP API endpoint"),
        ("PUT", "/v1/agent/service/register", r#"{"Name":"from-file"}"#, 409, "defined by a file"),
        ("PUT", "/v1/agent/service/deregister/nope", "", 404, "Unknown service ID"),
        ("PUT", "/v1/agent/service/maintenance/nope", "", 400, "Missing value for enable"),
        ("PUT", "/v1/agent/check/register", r#"{"TTL":"1s"}"#, 400, "Missing check name"),
        (
            "PUT",
            "/v1/agent/check/register",
            r#"{"Name":"c","TTL":"1s","ServiceID":"x"}"#,
            404,
            "ServiceID \"x\" does not exist",
        ),
        ("PUT", "/v1/agent/check/pass/nope", "", 404, "Unknown check ID"),
        ("PUT", "/v1/agent/check/update/nope", r#"{"Status":"fine"}"#, 400, "invalid check status"),
        ("PUT", "/v1/catalog/register", "{}", 500, "Must provide node"),
        ("PUT", "/v1/catalog/register", r#"{"Node":"x"}"#, 500, "Must provide address if SkipNodeUpdate is not set"),
        (
            "PUT",
            "/v1/catalog/register",
            r#"{"Node":"x","Address":"10.1.1.1","Service":{"ID":"a"}}"#,
            500,
            "Must provide service name",
        ),
        (
            "PUT",
            "/v1/catalog/register",
            r#"{"Node":"x","Address":"10.1.1.1","Datacenter":"dc9"}"#,
            500,
            "No path to datacenter",
        ),
        ("PUT", "/v1/catalog/register", r#"{"Node":"x","SkipNodeUpdate":true}"#, 409, "node x does not exist"),
        ("PUT", "/v1/catalog/deregister", r#"{"Node":"n1"}"#, 409, "belongs to the agent on node n1"),
        ("GET", "/v1/muster/brakes", "", 200, r#""ID":"expiry-7-1","Kind":"mass-expiry""#),
        ("GET", "/v1/muster/brakes", "", 200, r#""HeldForMs":3000,"RemainingMs":27000"#),
        ("PUT", "/v1/muster/brakes/commit/expiry-7-1", "", 200, r#"{"Count":25}"#),
        ("PUT", "/v1/muster/brakes/release/expiry-6-1", "", 409, "expiry-6-1 is over"),
        ("GET", "/livez", "", 200, "ok"),
        ("GET", "/metrics", "", 200, "muster_up 1"),
        ("GET", "/readyz", "", 503, "no complete set yet"),
    ];
    for (method, path, body, status, text) in table {
        let reply = request(house.handle.address, method, path, body).await;
        assert_eq!(reply.status, status, "{method} {path} {body}: {}", reply.text);
        assert!(reply.text.contains(text), "{method} {path} {body}: {} has no {text}", reply.text);
    }
    house.gate.0.store(true, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(house.get("/readyz").await.status, 200);
    let refused = request(house.handle.address, "DELETE", "/v1/catalog/nodes", "").await;
    assert_eq!(refused.header("allow"), "OPTIONS,GET");
    let options = request(house.handle.address, "OPTIONS", "/v1/catalog/register", "").await;
    assert_eq!((options.status, options.header("allow")), (200, "OPTIONS,PUT"));
}

#[tokio::test]
async fn an_instance_is_shown_in_the_dialects_fields() {
    let house = House::start().await;
    house.catalog.push("n1", "web", &["a", "b"], Status::Passing);
    let reply = house.get("/v1/health/service/web?passing").await;
    assert_eq!(reply.header("x-consul-knownleader"), "true");
    assert_eq!(reply.header("x-consul-lastcontact"), "0");
    assert_eq!(reply.header("x-consul-effective-consistency"), "leader");
    assert_eq!(reply.header("content-type"), "application/json");
    let entry = &reply.json()[0];
    assert_eq!(entry["Node"]["Node"], "n1");
    assert_eq!(entry["Node"]["TaggedAddresses"]["lan_ipv4"], "10.0.0.1");
    assert_eq!(
        entry["Service"],
        json!({
            "ID": "web", "Service": "web", "Tags": ["a", "b"], "Address": "10.0.0.9", "Port": 8080, "Meta": {},
            "TaggedAddresses": {
                "lan_ipv4": {"Address": "10.0.0.9", "Port": 8080}, "wan_ipv4": {"Address": "10.0.0.9", "Port": 8080},
            },
            "Weights": {"Passing": 1, "Warning": 1}, "EnableTagOverride": false, "Connect": {}, "PeerName": "",
            "Proxy": {"Mode": "", "MeshGateway": {}, "Expose": {}}, "CreateIndex": 1, "ModifyIndex": 1,
        })
    );
    let checks = entry["Checks"].as_array().unwrap();
    assert_eq!(checks.len(), 2, "the node's liveness and the instance's own");
    assert_eq!(checks[1]["CheckID"], "service:web");
    assert_eq!(checks[1]["ServiceTags"], json!(["a", "b"]));
    let flat = &house.get("/v1/catalog/service/web?tag=a&tag=B").await.json()[0];
    assert_eq!(
        (&flat["ServiceName"], &flat["ServicePort"], &flat["Node"]),
        (&json!("web"), &json!(8080), &json!("n1"))
    );
    assert_eq!(house.get("/v1/catalog/service/web?tag=a&tag=c").await.text, "[]");
    assert_eq!(house.get("/v1/health/service/web?node-meta=rack:n2").await.text, "[]");
    assert!(house.get("/v1/catalog/nodes?pretty").await.text.contains("\n    {\n        \"ID\": \"id-n1\""));
    let members = house.get("/v1/agent/members").await.json();
    assert_eq!((&members[0]["Name"], &members[0]["Status"]), (&json!("n1"), &json!(1)));
    assert_eq!((&members[1]["Tags"]["role"], &members[1]["Port"]), (&json!("consul"), &json!(8300)));
    let own = house.get("/v1/agent/self").await.json();
    assert_eq!((&own["Config"]["NodeName"], &own["Member"]["Addr"]), (&json!("n1"), &json!("10.0.0.1")));
}

#[tokio::test]
async fn a_critical_instance_is_not_passing() {
    let house = House::start().await;
    house.catalog.push("n1", "web", &[], Status::Critical);
    assert_eq!(house.get("/v1/health/service/web?passing").await.text, "[]");
    assert_eq!(house.get("/v1/health/service/web?passing=0").await.json().as_array().unwrap().len(), 1);
    assert_eq!(house.get("/v1/health/state/critical").await.json()[0]["CheckID"], "service:web");
}

#[tokio::test]
async fn a_definition_reaches_the_agent_whole() {
    let house = House::start().await;
    let body = json!({
        "name": "Web", "id": "web-1", "tags": ["a", "a", "b"], "address": "10.0.0.5", "meta": {"k": "v"},
        "Ports": [{"Name": "admin", "Port": 9000}, {"Name": "http", "Port": 8080, "Default": true}],
        "Weights": {"Passing": 10, "Warning": 0}, "enable_tag_override": true,
        "Checks": [
            {"http": "http://127.0.0.1:8080/health", "interval": "10s", "timeout": 2_000_000_000_u64,
             "Header": {"X": ["1"]}, "success_before_passing": 2, "FailuresBeforeCritical": 3,
             "DeregisterCriticalServiceAfter": "90m"},
            {"TCP": "127.0.0.1:9000", "Interval": "100ms"},
            {"TTL": "30s", "CheckID": "beat", "Status": "passing"},
        ],
    });
    let reply = house.put("/v1/agent/service/register?replace-existing-checks", &body.to_string()).await;
    assert_eq!((reply.status, &*reply.text), (200, ""));
    let taken = house.agent.registrations.lock().unwrap().remove(0);
    assert!(taken.replace_existing_checks);
    assert_eq!((taken.instance.default_port(), taken.instance.find_port("admin")), (Some(8080), Some(9000)));
    assert_eq!((taken.instance.tags.len(), taken.instance.enable_tag_override), (2, true));
    let [http, tcp, ttl] = &*taken.checks else { panic!("{:?}", taken.checks) };
    assert_eq!((&*http.id, &*http.name), ("service:web-1:1", "Service 'Web' check"));
    assert_eq!((http.rise, http.fall, http.failures_before_warning), (2, 3, 3));
    assert_eq!((http.interval.as_secs(), http.timeout.as_secs()), (10, 2));
    assert_eq!(http.deregister_critical_after.unwrap().as_secs(), 5400);
    assert!(matches!(&http.probe, Probe::Http { url, method, .. } if url.ends_with("/health") && &**method == "GET"));
    assert_eq!((tcp.interval.as_secs(), tcp.timeout.as_secs()), (1, 10));
    assert_eq!((&*ttl.id, ttl.initial), ("beat", Some(Status::Passing)));

    let shown = house.get("/v1/agent/service/web-1").await;
    assert_eq!(shown.json()["Port"], 8080);
    assert_eq!(shown.json()["Ports"][0], json!({"Name": "http", "Port": 8080, "Default": true}));
    assert_eq!(shown.json()["ContentHash"], shown.header("x-consul-contenthash"));
    assert_eq!(house.put("/v1/agent/check/warn/beat?note=slow", "").await.status, 200);
    let beat = house.get("/v1/agent/checks").await.json()["beat"].clone();
    assert_eq!((&beat["Status"], &beat["Output"]), (&json!("warning"), &json!("slow")));
    let url = "/v1/agent/service/maintenance/web-1?enable=true&reason=disk";
    assert_eq!(house.put(url, "").await.status, 200);
    let checks = house.get("/v1/agent/checks").await.json();
    assert_eq!(checks["_service_maintenance:web-1"]["Status"], "critical");
    assert_eq!(house.put("/v1/agent/service/deregister/web-1", "").await.status, 200);
    assert_eq!(house.get("/v1/agent/services").await.text, "{}");
}

#[tokio::test]
async fn a_catalog_write_is_there_in_the_next_read() {
    let house = House::start().await;
    let body = json!({
        "Node": "db1", "Address": "10.2.0.1", "NodeMeta": {"external": "yes"},
        "Service": {"Service": "postgres", "Port": 5432, "Tags": null},
        "Check": {"Name": "up", "Status": "passing", "ServiceID": "postgres", "Definition": {"TCP": "10.2.0.1:5432"}},
    });
    let reply = house.put("/v1/catalog/register", &body.to_string()).await;
    assert_eq!((reply.status, &*reply.text), (200, "true"));
    let node = house.get("/v1/catalog/node/DB1").await.json();
    assert_eq!(node["Services"]["postgres"]["Port"], 5432);
    let check = house.get("/v1/health/checks/postgres").await.json()[0].clone();
    assert_eq!((&check["Status"], &check["Definition"]["TCP"]), (&json!("passing"), &json!("10.2.0.1:5432")));
    let body = r#"{"Node":"db1","ServiceID":"postgres"}"#;
    assert_eq!(house.put("/v1/catalog/deregister", body).await.text, "true");
    assert_eq!(house.get("/v1/catalog/services").await.text, "{}");

    // The registry acknowledges before the replica hears of it: default reads wait, stale ones do not.
    house.catalog.hold_back();
    let body = r#"{"Node":"db2","Address":"10.2.0.2"}"#;
    assert_eq!(house.put("/v1/catalog/register", body).await.text, "true");
    assert_eq!(house.get("/v1/catalog/nodes?stale").await.json().as_array().unwrap().len(), 1);
    let (address, before) = (house.handle.address, house.subscriptions());
    let read = tokio::spawn(async move { request(address, "GET", "/v1/catalog/nodes", "").await });
    house.until_subscribed(before).await;
    house.catalog.catch_up();
    assert_eq!(read.await.unwrap().json().as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn what_the_registry_refuses_is_not_called_a_missing_leader() {
    let house = House::start().await;
    house.catalog.push("n1", "web", &[], Status::Passing);
    house.catalog.refuse("entries that it had acknowledged are lost");
    for path in ["/v1/health/service/web", "/v1/catalog/nodes?consistent", "/v1/catalog/services?max_stale=10s"] {
        let refused = house.get(path).await;
        assert_eq!(refused.status, 503, "{path}");
        assert!(!refused.text.to_lowercase().contains("cluster leader"), "{path}: {}", refused.text);
        assert!(refused.text.contains("acknowledged are lost") && refused.text.contains("?stale"), "{}", refused.text);
        assert!(!refused.headers.contains_key("x-consul-knownleader"), "{path}");
    }
    assert_eq!(house.get("/v1/health/service/web?stale").await.status, 200);
}

#[tokio::test]
async fn without_a_leader_only_stale_reads_answer_and_say_how_old_they_are() {
    let house = House::start().await;
    house.catalog.push("n1", "web", &[], Status::Passing);
    house.catalog.set_freshness(Freshness::Stale { since: Timestamp(1) });
    for path in ["/v1/health/service/web", "/v1/catalog/nodes?consistent", "/v1/catalog/services?max_stale=10s"] {
        let refused = house.get(path).await;
        assert_eq!((refused.status, refused.header("x-consul-knownleader")), (500, "false"), "{path}");
        assert!(refused.text.starts_with("No cluster leader"), "{}", refused.text);
        assert!(refused.text.contains("?stale"), "{}", refused.text);
    }
    let stale = house.get("/v1/health/service/web?stale").await;
    assert_eq!((stale.status, stale.json().as_array().unwrap().len()), (200, 1));
    assert_eq!(stale.header("x-consul-knownleader"), "false");
    assert_eq!(stale.header("x-consul-effective-consistency"), "stale");
    assert!(stale.header("x-consul-lastcontact").parse::<u64>().unwrap() > 1_000_000);
    assert_eq!(stale.header("x-consul-lastcontact"), stale.header("x-muster-stale"));
    house.catalog.set_freshness(Freshness::Empty);
    assert_eq!(house.get("/v1/catalog/nodes?stale").await.status, 500, "an empty View is no empty catalog");
    assert_eq!(house.get("/v1/agent/services").await.status, 200, "the agent's own state needs no registry");
}

#[tokio::test]
async fn bodies_and_connections_are_bounded() {
    let house = House::start_with(|config| config.max_body = 1024).await;
    let big = format!("{{\"Name\":\"{}\"}}", "a".repeat(2048));
    let reply = house.put("/v1/agent/service/register", &big).await;
    assert_eq!((reply.status, &*reply.text), (413, "Request body too large: at most 1024 bytes are taken"));

    let house = House::start_with(|config| config.max_connections = 0).await;
    let mut stream = tokio::net::TcpStream::connect(house.handle.address).await.unwrap();
    let mut refusal = String::new();
    stream.read_to_string(&mut refusal).await.unwrap();
    assert!(refusal.starts_with("HTTP/1.1 503 "), "{refusal}");
    let (head, body) = refusal.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(&format!("Content-Length: {}", body.len())), "{refusal}");
}

#[tokio::test]
async fn who_calls_by_a_foreign_name_may_be_a_web_page_and_is_refused() {
    let house = House::start_with(|config| config.allowed_hosts = vec![".mesh.internal".into()]).await;
    let table = [
        ("GET", "localhost:8500", "", 200),
        ("GET", "127.0.0.1", "", 200),
        ("GET", "web-17.node.mesh.internal:8500", "", 200),
        ("GET", "evil.example:8500", "", 403),
        ("GET", "localhost", "http://evil.example", 200),
        ("PUT", "localhost", "http://evil.example", 403),
        ("PUT", "localhost", "null", 403),
        ("PUT", "localhost", "http://localhost:3000", 200),
    ];
    for (method, host, origin, status) in table {
        let (path, body) =
            if method == "PUT" { ("/v1/agent/service/register", r#"{"Name":"a"}"#) } else { ("/v1/catalog/nodes", "") };
        let origin = if origin.is_empty() { String::new() } else { format!("Origin: {origin}\r\n") };
        let mut stream = tokio::net::TcpStream::connect(house.handle.address).await.unwrap();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{origin}Connection: close\r\n");
        let text = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{method} {host} {origin}: {answer}");
        assert_eq!(status == 403, answer.contains("http.allowed_hosts"), "{answer}");
    }
}

#[tokio::test]
async fn the_health_of_an_own_instance_is_in_the_status_code() {
    let house = House::start().await;
    let body = r#"{"Name":"web","ID":"web-1","Check":{"TTL":"30s","CheckID":"beat","Status":"passing"}}"#;
    assert_eq!(house.put("/v1/agent/service/register", body).await.status, 200);
    let table = [("pass/beat", 200, "passing"), ("warn/beat", 429, "warning"), ("fail/beat", 503, "critical")];
    for (report, status, word) in table {
        assert_eq!(house.put(&format!("/v1/agent/check/{report}"), "").await.status, 200);
        let reply = house.get("/v1/agent/health/service/id/web-1").await;
        assert_eq!((reply.status, reply.header("x-consul-reason")), (status, word));
        assert_eq!(reply.json()["AggregatedStatus"], word);
        assert_eq!(
            (&reply.json()["Service"]["ID"], &reply.json()["Checks"][0]["Status"]),
            (&json!("web-1"), &json!(word))
        );
        let by_name = house.get("/v1/agent/health/service/name/web").await;
        assert_eq!((by_name.status, &by_name.json()[0]["AggregatedStatus"]), (status, &json!(word)));
        let text = house.get("/v1/agent/health/service/name/web?format=text").await;
        assert_eq!((text.status, &*text.text), (status, word));
    }
    house.put("/v1/agent/check/pass/beat", "").await;
    house.put("/v1/agent/service/maintenance/web-1?enable=true&reason=disk", "").await;
    let reply = house.get("/v1/agent/health/service/id/web-1?format=text").await;
    assert_eq!((reply.status, &*reply.text), (503, "maintenance"));
    let unknown = house.get("/v1/agent/health/service/id/nope").await;
    assert_eq!((unknown.status, &unknown.json()["Service"]), (404, &json!(null)));
    assert_eq!(house.get("/v1/agent/health/service/name/nope").await.text, "[]");
}

#[tokio::test]
async fn output_is_taken_without_what_would_steer_a_terminal() {
    let house = House::start().await;
    let body = r#"{"Name":"web","Check":{"TTL":"30s","CheckID":"beat"}}"#;
    assert_eq!(house.put("/v1/agent/service/register", body).await.status, 200);
    let body = r#"{"Status":"passing","Output":"\u001b[32mfine\u0000\nsecond line"}"#;
    assert_eq!(house.put("/v1/agent/check/update/beat", body).await.status, 200);
    assert_eq!(house.get("/v1/agent/checks").await.json()["beat"]["Output"], "\u{fffd}[32mfine\u{fffd}\nsecond line");
}

#[tokio::test]
async fn a_client_that_sends_slowly_is_let_go() {
    let house = House::start_with(|config| {
        config.body_timeout = Duration::from_millis(50);
        config.header_read_timeout = Duration::from_millis(50);
    })
    .await;
    let table = [
        ("PUT /v1/catalog/register HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{", "HTTP/1.1 408 "),
        ("GET /v1/catalog/nodes HTTP/1.1\r\nHost: localhost", ""),
    ];
    for (half, expected) in table {
        let mut stream = tokio::net::TcpStream::connect(house.handle.address).await.unwrap();
        stream.write_all(half.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with(expected), "{half}: {answer}");
    }
}

#[tokio::test]
async fn header_names_are_written_as_clients_print_them() {
    let house = House::start().await;
    let mut stream = tokio::net::TcpStream::connect(house.handle.address).await.unwrap();
    stream.write_all(b"GET /v1/catalog/nodes HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    for header in ["X-Consul-Index: 1\r\n", "X-Consul-Knownleader: true\r\n", "X-Consul-Lastcontact: 0\r\n"] {
        assert!(answer.contains(header), "{answer}");
    }
}

#[tokio::test]
async fn every_kind_of_check_is_taken() {
    let house = House::start().await;
    let tls = Tls { server_name: "web.internal".into(), skip_verify: true };
    let socket = |talk, tls| Probe::Socket { address: "a:1".into(), talk, tls, identity: None };
    let kinds = [
        (json!({"UDP": "a:1", "UDPSend": "x"}), socket(Talk::Udp { send: "x".into(), expect: "".into() }, None)),
        (json!({"GRPC": "a:1/web"}), socket(Talk::Grpc { service: "web".into() }, None)),
        (
            json!({"TCP": "a:1", "TCPUseTLS": true, "TLSServerName": "web.internal", "TLSSkipVerify": true}),
            socket(Talk::Tcp, Some(tls)),
        ),
        (json!({"H2PING": "a:1"}), socket(Talk::H2Ping, Some(Tls::default()))),
        (json!({"h2ping": "a:1", "h2ping_use_tls": false}), socket(Talk::H2Ping, None)),
        (json!({"Redis": "a:1"}), socket(Talk::Redis, None)),
        (json!({"Postgres": "a:1", "PostgresUseTLS": true}), socket(Talk::Postgres, Some(Tls::default()))),
        (json!({"MySQL": "a:1"}), socket(Talk::Mysql, None)),
        (json!({"OSService": "nginx.service"}), Probe::Unit { name: "nginx.service".into() }),
    ];
    for (body, probe) in kinds {
        let mut body = json!({"Name": "web", "Check": body});
        body["Check"]["Interval"] = json!("10s");
        let reply = house.put("/v1/agent/service/register", &body.to_string()).await;
        assert_eq!((reply.status, &*reply.text), (200, ""), "{body}");
        assert_eq!(house.agent.registrations.lock().unwrap().remove(0).checks[0].probe, probe);
    }
    let alias = json!({"Name": "web", "Check": {"AliasService": "db", "AliasNode": "n1"}});
    assert_eq!(house.put("/v1/agent/service/register", &alias.to_string()).await.status, 200);
    let probe = house.agent.registrations.lock().unwrap().remove(0).checks.remove(0).probe;
    assert_eq!(probe, Probe::Alias { service: Some("db".into()), node: Some("n1".into()) });
    for (check, why) in [
        (json!({"TCP": "a:1", "UDP": "a:1", "Interval": "1s"}), "not several"),
        (json!({"GRPC": "a", "Interval": "1s"}), "Check.GRPC"),
        (json!({"AliasService": "db", "Interval": "1s"}), "Interval cannot be set for Alias checks"),
        (json!({"TCP": "a:1", "Interval": "1s", "CAFile": "/etc/passwd"}), "CAFile"),
        (json!({"TCP": "a:1", "Interval": "1s", "AllowLinkLocal": true}), "AllowLinkLocal"),
        (json!({"TCP": "a:1", "Interval": "1s", "ExpectIdentity": {"Header": "a", "Value": "b"}}), "only Certificate"),
    ] {
        let body = json!({"Name": "web", "Check": check}).to_string();
        let reply = house.put("/v1/agent/service/register", &body).await;
        assert!(reply.status == 400 && reply.text.contains(why), "{body}: {} {}", reply.status, reply.text);
    }
}

#[tokio::test]
async fn instances_are_counted_by_what_is_made_of_them() {
    let house = House::start().await;
    house.catalog.push("n1", "web", &[], Status::Passing);
    house.catalog.push("n2", "web", &[], Status::Critical);
    house.catalog.push("n3", "web", &[], Status::Warning);
    let counts = house.get("/v1/muster/services").await.json();
    let expected = |passing: u8, warning: u8, critical: u8, maintenance: u8, draining: u8| {
        json!({
            "Passing": passing, "Warning": warning, "Critical": critical, "Maintenance": maintenance,
            "Draining": draining
        })
    };
    assert_eq!(counts["web"], expected(1, 1, 1, 0, 0), "{counts}");
    // Two that are passing by their checks and sent nothing, and one without checks.
    let write = |node: &str, change: fn(&mut Instance)| {
        let mut instance = support::instance(node, "db", &[]);
        change(&mut instance);
        house.catalog.put(instance, Vec::new());
    };
    write("n1", |instance| instance.maintenance = Some("disk swap".into()));
    write("n2", |instance| instance.draining = true);
    write("n3", |_| {});
    let counts = house.get("/v1/muster/services?index=1000000&wait=60s").await.json();
    assert_eq!(counts["db"], expected(1, 0, 0, 1, 1), "{counts}");
    // A node whose agent is dead takes its instances along, also those without checks.
    let nodes = vec![(Name::lookup("n3"), 1)];
    house.catalog.apply(Command::Liveness { nodes, status: Status::Critical }).unwrap();
    let counts = house.get("/v1/muster/services").await.json();
    assert_eq!(counts["db"], expected(0, 0, 1, 1, 1), "{counts}");
    assert_eq!(counts["web"], expected(1, 0, 2, 0, 0), "{counts}");
}
