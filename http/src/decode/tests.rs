use muster_catalog::Name;
use proptest::prelude::*;
use serde_json::{Map, Value};

use super::*;

/// Keys that the decoders know, and a few that they do not.
const KEYS: [&str; 59] = [
    "Name",
    "name",
    "ID",
    "Tags",
    "Address",
    "TaggedAddresses",
    "Meta",
    "Port",
    "Ports",
    "Check",
    "Checks",
    "Weights",
    "Passing",
    "Default",
    "Locality",
    "Region",
    "Zone",
    "HTTP",
    "TCP",
    "TTL",
    "Interval",
    "Timeout",
    "Header",
    "Method",
    "Status",
    "ServiceID",
    "service_id",
    "CheckID",
    "SuccessBeforePassing",
    "FlapDamping",
    "FailuresBeforeWarning",
    "DeregisterCriticalServiceAfter",
    "OutputMaxSize",
    "Node",
    "Service",
    "Datacenter",
    "SkipNodeUpdate",
    "NodeMeta",
    "Definition",
    "Output",
    "GRPC",
    "H2PING",
    "AliasNode",
    "ExpectIdentity",
    "Certificate",
    "Kind",
    "Proxy",
    "DestinationServiceName",
    "LocalServicePort",
    "Config",
    "protocol",
    "Upstreams",
    "DestinationName",
    "LocalBindPort",
    "Traffic",
    "OutlierDetection",
    "PanicThreshold",
    "Bogus",
    "ü",
];

fn any_json() -> impl Strategy<Value = Value> {
    let texts =
        prop_oneof![Just("web"), Just("10s"), Just("http://a/"), Just("127.0.0.1:1"), Just("passing"), Just("")];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (0..70_000_u64).prop_map(Value::from),
        texts.prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 64, 8, |inner| {
        let key = prop::sample::select(&KEYS[..]).prop_map(str::to_owned);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..8).prop_map(|pairs| Value::Object(Map::from_iter(pairs))),
        ]
    })
}

/// Bodies are objects: the rest is refused at the door and tests little.
fn any_body() -> impl Strategy<Value = Value> {
    let key = prop::sample::select(&KEYS[..]).prop_map(str::to_owned);
    prop::collection::vec((key, any_json()), 0..12).prop_map(|pairs| Value::Object(Map::from_iter(pairs)))
}

fn decode_all(body: &[u8]) {
    let _ = decode_service(body, &Name::lookup("n1"));
    let _ = decode_check(body);
    let _ = decode_ttl_update(body);
    let _ = decode_registration(body);
    let _ = decode_deregistration(body);
}

proptest! {
    #[test]
    fn no_json_makes_a_decoder_panic(value in any_body()) {
        decode_all(value.to_string().as_bytes());
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
        decode_all(&body);
    }
}

#[test]
fn ports_are_one_or_several_with_one_default() {
    let node = Name::lookup("n1");
    let table = [
        (r#"{"Name":"a","Port":80}"#, Ok(vec![("default", 80)])),
        (r#"{"Name":"a","Port":0}"#, Ok(vec![])),
        (r#"{"Name":"a","Ports":[{"Name":"x","Port":1}]}"#, Ok(vec![("x", 1)])),
        (
            r#"{"Name":"a","Ports":[{"Name":"x","Port":1},{"Name":"y","Port":2,"Default":true}],"Port":2}"#,
            Ok(vec![("y", 2), ("x", 1)]),
        ),
        (r#"{"Name":"a","Ports":[{"Name":"x","Port":1}],"Port":2}"#, Err("Port and Ports are both given")),
        (r#"{"Name":"a","Ports":[{"Name":"x","Port":1},{"Name":"y","Port":2}]}"#, Err("none is the default")),
        (r#"{"Name":"a","Ports":[{"Name":"x","Port":1},{"Name":"X","Port":2}]}"#, Err("\"Ports[1].Name\"")),
        (r#"{"Name":"a","Ports":[{"Name":"x"}]}"#, Err("\"Ports[0].Port\": missing")),
    ];
    for (body, expected) in table {
        match (decode_service(body.as_bytes(), &node), expected) {
            (Ok(taken), Ok(ports)) => {
                let given: Vec<(&str, u16)> = taken.instance.ports.iter().map(|p| (&*p.name, p.number)).collect();
                assert_eq!(given, ports, "{body}");
            }
            (Err(error), Err(text)) => assert!(error.to_string().contains(text), "{body}: {error}"),
            (given, expected) => panic!("{body}: {given:?}, not {expected:?}"),
        }
    }
}

#[test]
fn flap_damping_is_the_clients_to_say() {
    let decode = |fields: &str| super::check::decode_check(format!(r#"{{"Name": "c", {fields}}}"#).as_bytes());
    for (fields, expected) in [
        (r#""TTL": "10s""#, None),
        (r#""TTL": "10s", "FlapDamping": false"#, Some(false)),
        (r#""TTL": "10s", "FlapDamping": true"#, Some(true)),
        (r#""HTTP": "http://a/", "Interval": "10s", "FlapDamping": false"#, Some(false)),
        (r#""AliasNode": "n1""#, None),
    ] {
        assert_eq!(decode(fields).unwrap().flap_damping, expected, "{fields}");
    }
    let why = decode(r#""AliasNode": "n1", "FlapDamping": true"#).unwrap_err().to_string();
    assert!(why.contains("FlapDamping") && why.contains("leave it out"), "{why}");
}
