//! Proxies and traffic settings over the dialect: taken, shown, written back, and refused by name.

// Integration tests are tests throughout, which the lint does not see.
#![allow(clippy::unwrap_used)]

mod support;

use serde_json::{Value, json};
use support::*;

fn proxy() -> Value {
    json!({
        "Kind": "connect-proxy", "ID": "web-1-proxy", "Name": "web-proxy", "Port": 20000,
        "Proxy": {
            "DestinationServiceName": "web", "DestinationServiceID": "web-1",
            "LocalServiceAddress": "127.0.0.1", "LocalServicePort": 8080,
            "Mode": "direct", "MeshGateway": {}, "Expose": {},
            "Config": {"protocol": "http", "http_listener": "127.0.0.1:10001"},
            "Upstreams": [
                {"DestinationType": "service", "DestinationName": "db", "LocalBindPort": 5432,
                 "Config": {"connect_timeout_ms": 250}},
                {"DestinationName": "api"},
            ],
        },
        "Traffic": {
            "ConnectTimeout": "2s", "PanicThreshold": 40, "PreferNear": false,
            "OutlierDetection": {"ConsecutiveFailures": 3, "Interval": "1s"},
        },
    })
}

/// What the answers hold of it.
fn shown() -> (Value, Value) {
    let proxy = json!({
        "DestinationServiceName": "web", "DestinationServiceID": "web-1",
        "LocalServiceAddress": "127.0.0.1", "LocalServicePort": 8080,
        "Mode": "", "MeshGateway": {}, "Expose": {},
        "Config": {
            "protocol": "http", "bind_address": "127.0.0.1", "bind_port": 20000, "http_listener": "127.0.0.1:10001",
        },
        "Upstreams": [
            {"DestinationType": "service", "DestinationName": "db", "Datacenter": "", "MeshGateway": {},
             "LocalBindAddress": "127.0.0.1", "LocalBindPort": 5432,
             "Config": {"protocol": "tcp", "connect_timeout_ms": 250}},
            {"DestinationType": "service", "DestinationName": "api", "Datacenter": "", "MeshGateway": {},
             "Config": {"protocol": "http"}},
        ],
    });
    let traffic = json!({
        "ConnectTimeout": "2s", "PanicThreshold": 40, "PreferNear": false,
        "OutlierDetection": {
            "ConsecutiveFailures": 3, "Interval": "1s", "EjectionTime": "30s", "MaxEjectedPercent": 50,
        },
    });
    (proxy, traffic)
}

#[tokio::test]
async fn a_proxy_is_taken_shown_and_written_back_as_it_is_read() {
    let house = House::start().await;
    let reply = house.put("/v1/agent/service/register", &proxy().to_string()).await;
    assert_eq!((reply.status, &*reply.text), (200, ""));
    let first = house.agent.registrations.lock().unwrap().remove(0);
    let service = house.get("/v1/agent/service/web-1-proxy").await.json();
    assert_eq!(service["Kind"], "connect-proxy");
    assert_eq!((service["Proxy"].clone(), service["Traffic"].clone()), shown());
    assert_eq!(house.get("/v1/agent/services").await.json()["web-1-proxy"]["Kind"], "connect-proxy");

    let again = json!({
        "Kind": service["Kind"], "ID": service["ID"], "Name": service["Service"], "Port": service["Port"],
        "Proxy": service["Proxy"], "Traffic": service["Traffic"],
    });
    assert_eq!(house.put("/v1/agent/service/register", &again.to_string()).await.status, 200);
    let second = house.agent.registrations.lock().unwrap().remove(0);
    assert_eq!(first.instance, second.instance);
}

#[tokio::test]
async fn the_catalog_takes_and_shows_proxies_too() {
    let house = House::start().await;
    house.catalog.raise_format();
    let mut service = proxy();
    service["Service"] = service.as_object_mut().unwrap().remove("Name").unwrap();
    let body = json!({"Node": "db1", "Address": "10.2.0.1", "Service": service});
    assert_eq!(house.put("/v1/catalog/register", &body.to_string()).await.text, "true");
    let flat = house.get("/v1/catalog/service/web-proxy").await.json()[0].clone();
    assert_eq!(flat["ServiceKind"], "connect-proxy");
    assert_eq!((flat["ServiceProxy"].clone(), flat["ServiceTraffic"].clone()), shown());
    let entry = house.get("/v1/health/service/web-proxy").await.json()[0]["Service"].clone();
    assert_eq!((&entry["Kind"], &entry["Proxy"]), (&json!("connect-proxy"), &shown().0));
}

#[tokio::test]
async fn what_is_wrong_or_not_built_is_refused_by_name() {
    let house = House::start().await;
    let table = [
        ("/Kind", json!("mesh-gateway"), r#"field "Kind": gateways are not supported yet"#),
        ("/Kind", json!(""), r#"field "Proxy": without Kind "connect-proxy" proxy settings are not"#),
        ("/Proxy", json!(null), r#"field "Proxy": missing"#),
        ("/Proxy/DestinationServiceName", json!(""), r#"field "Proxy.DestinationServiceName": missing"#),
        ("/Proxy/Bogus", json!(1), r#"json: unknown field "Proxy.Bogus""#),
        ("/Proxy/Mode", json!("transparent"), r#"field "Proxy.Mode": "transparent" is not supported"#),
        ("/Proxy/Expose", json!({"Checks": true}), r#"field "Proxy.Expose": exposed paths are not supported"#),
        ("/Proxy/Config/envoy_bootstrap_json_tpl", json!("{}"), r#"unknown field "Proxy.Config.envoy_bootstrap"#),
        ("/Proxy/Config/protocol", json!("grpc"), r#"field "Proxy.Config.protocol": "grpc" is not supported"#),
        ("/Proxy/Config/bind_address", json!("0.0.0.0"), "0.0.0.0:20000 is not a loopback address"),
        ("/Proxy/LocalServicePort", json!(0), r#"field "Proxy.LocalServicePort": missing"#),
        ("/Proxy/Upstreams/0/DestinationType", json!("prepared_query"), r#""Proxy.Upstreams[0].DestinationType""#),
        ("/Proxy/Upstreams/0/Datacenter", json!("dc2"), "upstreams in other datacenters are not supported"),
        ("/Proxy/Upstreams/0/LocalBindPort", json!(20000), r#""Proxy.Upstreams[0].LocalBindAddress": 127.0.0.1:20000"#),
        ("/Proxy/Upstreams/1/DestinationName", json!("a b"), r#""Proxy.Upstreams[1].DestinationName""#),
        ("/Traffic/PanicThreshold", json!(101), r#"field "Traffic.PanicThreshold": 101 is no percentage"#),
        (
            "/Traffic/OutlierDetection/Interval",
            json!("1ms"),
            r#"field "Traffic.OutlierDetection.Interval": 1ms is out"#,
        ),
        ("/Traffic/Bogus", json!(1), r#"json: unknown field "Traffic.Bogus""#),
    ];
    for (pointer, value, text) in table {
        let mut body = proxy();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        body.pointer_mut(parent).unwrap()[key] = value;
        let reply = house.put("/v1/agent/service/register", &body.to_string()).await;
        assert_eq!(reply.status, 400, "{pointer}: {}", reply.text);
        assert!(reply.text.contains(text), "{pointer}: {} has no {text}", reply.text);
    }
    assert!(house.agent.registrations.lock().unwrap().is_empty());
}
