use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};
use proptest::prelude::*;

use super::*;
use crate::DnsConfig;

fn zones() -> Zones {
    let alt_zones = vec!["consul".to_owned()];
    Zones::new(&DnsConfig { alt_zones, ..DnsConfig::default() }).unwrap()
}

fn subject(name: &str) -> Option<Subject> {
    // Label by label: the library's own parser refuses some that arrive on the wire.
    let labels = name.trim_end_matches('.').split('.').filter(|label| !label.is_empty()).map(str::as_bytes);
    match parse(&DnsName::from_labels(labels).unwrap(), &zones()) {
        Question::Outside => None,
        Question::Inside { subject, .. } => Some(subject),
    }
}

fn service(name: &str, selector: Selector) -> Subject {
    Subject::Service { service: Name::lookup(name), selector }
}

fn tag(text: &str) -> Selector {
    Selector::Tag(text.to_owned())
}

#[test]
fn every_form_is_read_in_every_place() {
    let port = |text: &str| Selector::Port(text.to_owned());
    let either = |text: &str| Selector::PortOrTag(text.to_owned());
    let node = |name: &str| Subject::Node(Name::lookup(name));
    let forms = [
        ("web.service", service("web", Selector::All)),
        ("v1.web.service", service("web", tag("v1"))),
        ("v1.2.3.web.service", service("web", tag("v1.2.3"))),
        ("_web._tcp", service("web", Selector::All)),
        ("_web._tcp.service", service("web", Selector::All)),
        ("_web._v1.service", service("web", either("v1"))),
        ("_web._metrics", service("web", either("metrics"))),
        ("metrics.port.web.service", service("web", port("metrics"))),
        ("a.metrics.port.web.service", service("web", tag("a.metrics.port"))),
        ("port.web.service", service("web", tag("port"))),
        ("node.service", service("node", Selector::All)),
        ("service.node", node("service")),
        ("n1.node", node("n1")),
        ("n1.rack.example.node", node("n1.rack.example")),
        ("0a000001.addr", Subject::Addr("10.0.0.1".parse().unwrap())),
        ("20010db8000000000000000000000001.addr", Subject::Addr("2001:db8::1".parse().unwrap())),
        ("service", Subject::Subtree),
        ("node", Subject::Subtree),
        ("addr", Subject::Subtree),
        ("_tcp", Subject::Subtree),
        ("_tcp.service", Subject::Subtree),
        ("_metrics", Subject::Subtree),
        ("_metrics.service", Subject::Subtree),
        ("0a00000g.addr", Subject::Nothing),
        ("+a000001.addr", Subject::Nothing),
        ("0a0001.addr", Subject::Nothing),
        ("x.0a000001.addr", Subject::Nothing),
        ("web", Subject::Nothing),
        ("web.query", Subject::Nothing),
        ("a._web._tcp", Subject::Nothing),
    ];
    for (form, expected) in forms {
        for place in ["", ".dc1", ".dc1.dc", ".DC1", ".dc1.DC"] {
            for zone in ["mesh.internal", "consul", "MESH.Internal"] {
                let name = format!("{form}{place}.{zone}.");
                assert_eq!(subject(&name), Some(expected.clone()), "{name}");
            }
        }
    }
}

#[test]
fn apex_subtrees_and_what_is_not_there() {
    let table = [
        ("mesh.internal.", Some(Subject::Apex)),
        ("consul.", Some(Subject::Apex)),
        ("ns.mesh.internal.", Some(Subject::NameServer)),
        ("ns.dc1.mesh.internal.", Some(Subject::Nothing)),
        ("dc1.mesh.internal.", Some(Subject::Subtree)),
        ("dc1.dc.mesh.internal.", Some(Subject::Subtree)),
        ("dc.mesh.internal.", Some(Subject::Subtree)),
        ("dc2.mesh.internal.", Some(Subject::Nothing)),
        ("web.service.dc2.mesh.internal.", Some(Subject::Nothing)),
        ("web.service.dc2.dc.mesh.internal.", Some(Subject::Nothing)),
        ("WEB.SERVICE.mesh.internal.", Some(service("web", Selector::All))),
        ("internal.", None),
        ("example.com.", None),
        (".", None),
        ("xmesh.internal.", None),
    ];
    for (name, expected) in table {
        assert_eq!(subject(name), expected, "{name}");
    }
}

#[test]
fn a_dot_or_a_byte_within_a_label_names_nothing() {
    for label in [b"a.b".as_slice(), b"a b", b"\x00", b"\xff\xfe", "ü".as_bytes()] {
        let name = DnsName::from_labels(vec![label, b"web", b"service", b"mesh", b"internal"]).unwrap();
        let zones = zones();
        let Question::Inside { subject, .. } = parse(&name, &zones) else { panic!("outside") };
        assert_eq!(subject, Subject::Nothing);
    }
}

proptest! {
    #[test]
    fn no_wire_form_panics(mut bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let zones = zones();
        if let Ok(name) = DnsName::read(&mut BinDecoder::new(&bytes)) {
            parse(&name, &zones);
        }
        // Most bytes are no name; these end as one in the zone, whatever they begin with.
        bytes.truncate(50);
        bytes.insert(0, bytes.len() as u8);
        bytes.extend(b"\x07service\x04mesh\x08internal\x00");
        if let Ok(name) = DnsName::read(&mut BinDecoder::new(&bytes)) {
            parse(&name, &zones);
        }
    }

    #[test]
    fn no_bytes_panic(labels in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 0..30)) {
        let zones = zones();
        let mut inside: Vec<&[u8]> = labels.iter().map(Vec::as_slice).collect();
        inside.extend([b"service".as_slice(), b"mesh", b"internal"]);
        for labels in [labels.iter().map(Vec::as_slice).collect::<Vec<_>>(), inside] {
            if let Ok(name) = DnsName::from_labels(labels) {
                parse(&name, &zones);
            }
        }
    }

    #[test]
    fn no_likely_words_panic(words in prop::collection::vec(
        prop::sample::select(vec!["_", "__", "_tcp", "port", "service", "node", "addr", "dc", "dc1", "web", "ns"]), 0..9)
    ) {
        let zones = zones();
        let name = DnsName::from_ascii(format!("{}.mesh.internal.", words.join("."))).unwrap_or_default();
        parse(&name, &zones);
    }
}
