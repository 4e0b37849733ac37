use std::collections::BTreeMap;

use muster_catalog::{Instance, Scope, Status, project_snapshot};
use rand::{SeedableRng, rngs::SmallRng};

use super::*;
use crate::{
    DnsConfig,
    fixture::{add_big, check, instance, live, node, register, sample},
    question,
};

fn config() -> DnsConfig {
    DnsConfig { ns_addresses: vec!["10.0.0.53".parse().unwrap()], ..DnsConfig::default() }
}

fn ask_with(view: &View, config: &DnsConfig, name: &str, qtype: RecordType, seed: u64) -> Result<Answer, NotHeld> {
    ask_in(Order::Drawn, view, config, name, qtype, seed)
}

fn ask_in(
    order: Order,
    view: &View,
    config: &DnsConfig,
    name: &str,
    qtype: RecordType,
    seed: u64,
) -> Result<Answer, NotHeld> {
    let zones = Zones::new(config).unwrap();
    let owner = DnsName::from_ascii(name).unwrap();
    let question = question::parse(&owner, &zones);
    let now = Timestamp(61_000);
    let asked = Asked { question: &question, owner: &owner, qtype, most: 4096, order, now };
    answer(view, &zones, asked, &mut SmallRng::seed_from_u64(seed))
}

fn ask(name: &str, qtype: RecordType) -> Answer {
    ask_with(&live(sample()), &config(), &format!("{name}.mesh.internal."), qtype, 1).unwrap()
}

/// The data of records as text, sorted, as a zone file shows them.
fn texts(records: &[Record]) -> Vec<String> {
    let mut texts: Vec<_> = records.iter().map(|record| record.data.to_string()).collect();
    texts.sort();
    texts
}

#[test]
fn addresses_and_targets_of_every_form() {
    use RecordType::{A, AAAA, CNAME, SRV};
    let node_target = |node: &str, port: u16| format!("1 1 {port} {node}.node.dc1.mesh.internal.");
    let own_target = "1 1 80 0a010003.addr.dc1.mesh.internal.".to_owned();
    let table: Vec<(&str, RecordType, Vec<String>)> = vec![
        ("web.service", A, vec!["10.0.0.1".into(), "10.0.0.2".into(), "10.1.0.3".into()]),
        ("WEB.service.dc1", A, vec!["10.0.0.1".into(), "10.0.0.2".into(), "10.1.0.3".into()]),
        ("green.web.service", A, vec!["10.0.0.1".into(), "10.0.0.2".into()]),
        ("Blue.web.service", A, vec!["10.1.0.3".into()]),
        ("v1.2.web.service", A, vec!["10.0.0.1".into(), "10.0.0.2".into(), "10.1.0.3".into()]),
        ("web.service", SRV, vec![own_target.clone(), node_target("n1", 80), node_target("n2", 80)]),
        ("_web._tcp", SRV, vec![own_target.clone(), node_target("n1", 80), node_target("n2", 80)]),
        ("_web._blue.service", SRV, vec![own_target.clone()]),
        ("_web._metrics", SRV, vec![node_target("n1", 9100), node_target("n2", 9100)]),
        ("metrics.port.web.service", SRV, vec![node_target("n1", 9100), node_target("n2", 9100)]),
        ("metrics.port.web.service.dc1.dc", A, vec!["10.0.0.1".into(), "10.0.0.2".into()]),
        ("six.service", AAAA, vec!["2001:db8::6".into()]),
        ("six.service", SRV, vec!["1 1 80 20010db8000000000000000000000006.addr.dc1.mesh.internal.".into()]),
        ("mail.service", A, vec!["mx.example.com.".into()]),
        ("mail.service", CNAME, vec!["mx.example.com.".into()]),
        ("mail.service", SRV, vec!["1 1 80 mx.example.com.".into()]),
        ("edge.service", AAAA, vec!["edge.example.com.".into()]),
        ("edge.service", SRV, vec!["1 1 80 edge.example.com.".into()]),
        ("edge.node", A, vec!["edge.example.com.".into()]),
        ("warned.service", SRV, vec!["1 3 80 n2.node.dc1.mesh.internal.".into()]),
        ("db.service", SRV, vec!["1 1 80 db.rack-1.node.dc1.mesh.internal.".into()]),
        ("n1.node", A, vec!["10.0.0.1".into()]),
        ("DB.rack-1.node.dc1", AAAA, vec!["2001:db8::1".into()]),
        ("0a000007.addr", A, vec!["10.0.0.7".into()]),
        ("ns", A, vec!["10.0.0.53".into()]),
    ];
    for (name, qtype, expected) in table {
        let answer = ask(name, qtype);
        assert_eq!(texts(&answer.answers), expected, "{name} {qtype}");
        assert_eq!((answer.rcode, answer.authoritative), (ResponseCode::NoError, true), "{name} {qtype}");
        assert!(answer.soa.is_none() && answer.ede.is_none(), "{name} {qtype}");
    }
}

/// RFC 1034 §4.3.2, for resolvers that do not ask on.
#[test]
fn an_alias_of_a_name_here_comes_with_its_address() {
    use RecordType::{A, AAAA, CNAME};
    let mut snapshot = sample();
    let hosts = [
        ("al", "N1.node.mesh.internal"),
        ("hex", "0a000007.addr.mesh.internal"),
        ("named", "web.service.mesh.internal"),
        ("tagged", "blue.web.service.dc1.mesh.internal"),
        ("twice", "al.service.mesh.internal"),
        ("out", "edge.node.mesh.internal"),
        ("self", "self.service.mesh.internal"),
        ("left", "right.service.mesh.internal"),
        ("right", "left.service.mesh.internal"),
    ];
    let alias =
        |(service, host)| Instance { address: Some(Address::parse(host).unwrap()), ..instance("n9", service, service) };
    register(&mut snapshot, node("n9", "10.0.0.99"), hosts.map(alias).into(), Vec::new());
    let view = live(snapshot);
    let table = [
        ("al.service", A, vec!["10.0.0.1", "n1.node.mesh.internal."]),
        ("al.service", AAAA, vec!["n1.node.mesh.internal."]),
        ("al.service", CNAME, vec!["n1.node.mesh.internal."]),
        ("hex.service", A, vec!["0a000007.addr.mesh.internal.", "10.0.0.7"]),
        ("named.service", A, vec!["10.0.0.1", "10.0.0.2", "10.1.0.3", "web.service.mesh.internal."]),
        ("named.service", CNAME, vec!["web.service.mesh.internal."]),
        ("tagged.service", A, vec!["10.1.0.3", "blue.web.service.dc1.mesh.internal."]),
        ("twice.service", A, vec!["10.0.0.1", "al.service.mesh.internal.", "n1.node.mesh.internal."]),
        ("out.service", A, vec!["edge.example.com.", "edge.node.mesh.internal."]),
        ("self.service", A, vec!["self.service.mesh.internal."]),
        ("left.service", A, vec!["left.service.mesh.internal.", "right.service.mesh.internal."]),
    ];
    for (name, qtype, expected) in table {
        let answer = ask_with(&view, &config(), &format!("{name}.mesh.internal."), qtype, 1).unwrap();
        let mut texts: Vec<_> = texts(&answer.answers).iter().map(|text| text.to_ascii_lowercase()).collect();
        texts.sort();
        assert_eq!(texts, expected, "{name} {qtype}");
        assert_eq!(answer.answers[0].record_type(), CNAME, "the alias goes first");
        for pair in answer.answers.windows(2) {
            let RData::CNAME(target) = &pair[0].data else { continue };
            assert_eq!(pair[1].name, target.0, "{name}: records stand under the name that the alias leads to");
        }
    }
    let limited = DnsConfig { answer_limit: 1, ..config() };
    let answer = ask_with(&view, &limited, "twice.service.mesh.internal.", A, 1).unwrap();
    assert_eq!(answer.answers.len(), 3, "aliases do not count");
}

#[test]
fn aliases_are_followed_so_far_and_no_further() {
    let mut snapshot = sample();
    let alias = |at: usize| {
        let service = format!("al-{at}");
        let address = Address::parse(&format!("al-{}.service.mesh.internal", at + 1));
        Instance { address, ..instance("n9", &service, &service) }
    };
    register(&mut snapshot, node("n9", "10.0.0.99"), (0..30).map(alias).collect(), Vec::new());
    let answer = ask_with(&live(snapshot), &config(), "al-0.service.mesh.internal.", RecordType::A, 1).unwrap();
    assert_eq!(answer.answers.len(), MAX_ALIASES);
}

#[test]
fn the_target_of_an_alias_is_held_too() {
    let mut snapshot = sample();
    let address = Address::parse("web.service.mesh.internal");
    let alias = Instance { address, ..instance("n9", "al", "al") };
    register(&mut snapshot, node("n9", "10.0.0.99"), vec![alias], Vec::new());
    let scope = Scope::Services { names: [Name::lookup("al")].into_iter().collect(), node: None };
    let view = live(project_snapshot(&scope, &snapshot));
    let answer = ask_with(&view, &config(), "al.service.mesh.internal.", RecordType::A, 1);
    assert_eq!(answer, Err(NotHeld(Name::lookup("web"))));
}

#[test]
fn a_fixed_order_is_another_for_each_number_and_outlives_those_that_come_and_go() {
    let addresses = |count, number| {
        let mut snapshot = Snapshot::default();
        add_big(&mut snapshot, count);
        let name = "big.service.mesh.internal.";
        let answer = ask_in(Order::Fixed(number), &live(snapshot), &config(), name, RecordType::A, number).unwrap();
        answer.answers.iter().map(|record| record.data.to_string()).collect::<Vec<_>>()
    };
    let all = addresses(60, 7);
    assert_eq!(all, addresses(60, 7));
    assert_ne!(all, addresses(60, 8));
    let without_the_last: Vec<_> = all.into_iter().filter(|address| address != "10.9.0.59").collect();
    assert_eq!(without_the_last, addresses(59, 7));
}

#[test]
fn a_fixed_order_is_drawn_by_weight_too() {
    let mut snapshot = Snapshot::default();
    for (name, address, passing) in [("n1", "10.0.0.1", 3), ("n2", "10.0.0.2", 1)] {
        let mut web = instance(name, "web", "web");
        web.weights.passing = passing;
        register(&mut snapshot, node(name, address), vec![web], Vec::new());
    }
    let view = live(snapshot);
    let first = |number| {
        let name = "web.service.mesh.internal.";
        let answer = ask_in(Order::Fixed(number), &view, &config(), name, RecordType::A, 1).unwrap();
        answer.answers[0].data.to_string()
    };
    let heavy = (0..4000).filter(|number| first(*number) == "10.0.0.1").count();
    assert!((2850..3150).contains(&heavy), "{heavy} of 4000 for three quarters of the weight");
}

/// RFC 6604 §3 and RFC 2308 §2: who asks learns from one answer that there is nothing, and for how long.
#[test]
fn an_alias_that_leads_to_nothing_here_says_so() {
    use RecordType::{A, AAAA, CNAME};
    let mut snapshot = sample();
    let hosts = [
        ("lost", "x.node.mesh.internal"),
        ("twice", "lost.service.mesh.internal"),
        ("idle", "gone.service.mesh.internal"),
        ("four", "n1.node.consul"),
        ("out", "mx.example.com"),
    ];
    let alias = |(service, host)| Instance { address: Address::parse(host), ..instance("n9", service, service) };
    register(&mut snapshot, node("n9", "10.0.0.99"), hosts.map(alias).into(), Vec::new());
    let (view, config) = (live(snapshot), DnsConfig { alt_zones: vec!["consul".to_owned()], ..config() });
    let (nodata, nxdomain) = (ResponseCode::NoError, ResponseCode::NXDomain);
    let table = [
        ("lost", A, 1, nxdomain, Some("mesh.internal.")),
        ("twice", AAAA, 2, nxdomain, Some("mesh.internal.")),
        ("lost", CNAME, 1, nodata, None),
        ("idle", A, 1, nodata, Some("mesh.internal.")),
        ("four", AAAA, 1, nodata, Some("consul.")),
        ("four", A, 2, nodata, None),
        ("out", A, 1, nodata, None),
    ];
    for (service, qtype, answers, rcode, soa) in table {
        let name = format!("{service}.service.mesh.internal.");
        let answer = ask_with(&view, &config, &name, qtype, 1).unwrap();
        assert_eq!((answer.answers.len(), answer.rcode), (answers, rcode), "{service} {qtype}");
        assert_eq!(answer.soa.map(|soa| soa.name.to_string()).as_deref(), soa, "{service} {qtype}");
    }
}

#[test]
fn answers_in_a_fixed_order_are_drawn_anew_by_weight() {
    let mut snapshot = Snapshot::default();
    for (name, address, passing) in [("n1", "10.0.0.1", 3), ("n2", "10.0.0.2", 1)] {
        let mut web = instance(name, "web", "web");
        web.weights.passing = passing;
        register(&mut snapshot, node(name, address), vec![web], Vec::new());
    }
    let (view, mut rng) = (live(snapshot), SmallRng::seed_from_u64(1));
    for qtype in [RecordType::A, RecordType::SRV] {
        let fixed = ask_in(Order::Fixed(1), &view, &config(), "web.service.mesh.internal.", qtype, 1).unwrap();
        let first = || {
            let mut answer = fixed.clone();
            answer.draw_order(&mut rng);
            assert_eq!(texts(&answer.answers), texts(&fixed.answers), "none goes");
            answer.answers[0].data.to_string()
        };
        let heavy =
            iter::repeat_with(first).take(4000).filter(|data| data == "10.0.0.1" || data.contains(" n1.")).count();
        assert!((2850..3150).contains(&heavy), "{heavy} of 4000 for three quarters of the weight");
    }
}

/// As programs with one socket for both families know themselves.
#[test]
fn an_ipv4_address_mapped_into_ipv6_is_answered_as_one_of_ipv4() {
    let mut snapshot = sample();
    let address = Some(Address::Ip("::ffff:10.0.0.9".parse().unwrap()));
    let mapped = Instance { address, ..instance("n9", "mapped", "mapped") };
    register(&mut snapshot, node("n9", "10.0.0.99"), vec![mapped], Vec::new());
    let view = live(snapshot);
    let ask = |qtype| ask_with(&view, &config(), "mapped.service.mesh.internal.", qtype, 1).unwrap();
    assert_eq!(texts(&ask(RecordType::A).answers), ["10.0.0.9"]);
    assert!(ask(RecordType::AAAA).answers.is_empty());
    let srv = ask(RecordType::SRV);
    assert_eq!(texts(&srv.answers), ["1 1 80 0a000009.addr.dc1.mesh.internal."]);
    assert_eq!(texts(&srv.additionals), ["10.0.0.9"]);
}

#[test]
fn what_exists_without_such_records_is_nodata_what_does_not_exist_is_nxdomain() {
    use RecordType::{A, AAAA, ANY, MX, SRV, TXT};
    let nodata = [
        ("gone.service", A),
        ("gone.service", SRV),
        ("gone.service", ANY),
        ("web.service", TXT),
        ("web.service", AAAA),
        ("web.service", MX),
        ("six.service", A),
        ("mail.service", TXT),
        ("n1.node", AAAA),
        ("n1.node", SRV),
        ("0a000007.addr", AAAA),
        ("service", A),
        ("service", ANY),
        ("node", A),
        ("dc1", A),
        ("service.dc1", A),
        ("_tcp", SRV),
        ("_metrics.service", SRV),
        ("rack-1.node", A),
        ("2.web.service", A),
        ("port.web.service", A),
        ("ns", AAAA),
    ];
    let nxdomain = [
        "nope.service",
        "red.web.service",
        "nope.port.web.service",
        "_web._nope",
        "_nope._tcp",
        "nope.node",
        "web",
        "zz.addr",
        "web.service.dc2",
    ];
    let rows = nodata.map(|(name, qtype)| (name, qtype, ResponseCode::NoError)).into_iter();
    for (name, qtype, rcode) in rows.chain(nxdomain.map(|name| (name, A, ResponseCode::NXDomain))) {
        let answer = ask(name, qtype);
        assert_eq!((answer.rcode, answer.authoritative), (rcode, true), "{name} {qtype}");
        assert!(answer.answers.is_empty() && answer.additionals.is_empty(), "{name} {qtype}");
        let soa = answer.soa.unwrap();
        assert_eq!((soa.name.to_string().as_str(), soa.ttl), ("mesh.internal.", 5), "{name} {qtype}");
    }
    let apex = ask_with(&live(sample()), &config(), "mesh.internal.", A, 1).unwrap();
    assert_eq!((apex.rcode, apex.soa.is_some()), (ResponseCode::NoError, true));
}

#[test]
fn apex_any_and_outside() {
    let view = live(sample());
    let at = |qtype| ask_with(&view, &config(), "Mesh.internal.", qtype, 1).unwrap();
    let index = view.local.index();
    let soa = format!("ns.mesh.internal. hostmaster.mesh.internal. {index} 3600 600 86400 5");
    assert_eq!(texts(&at(RecordType::SOA).answers), [soa]);
    let ns = at(RecordType::NS);
    assert_eq!(texts(&ns.answers), ["ns.mesh.internal."]);
    assert_eq!(texts(&ns.additionals), ["10.0.0.53"]);
    assert_eq!(ns.answers[0].name.to_string(), "Mesh.internal.", "the case of the question is kept");
    for name in ["web.service", "n1.node", "0a000001.addr", "ns"] {
        let any = ask(name, RecordType::ANY);
        assert_eq!((any.answers.len(), any.answers[0].record_type()), (1, RecordType::HINFO), "{name}");
    }
    let outside = ask_with(&view, &config(), "example.com.", RecordType::A, 1).unwrap();
    assert_eq!((outside.rcode, outside.authoritative), (ResponseCode::Refused, false));
}

#[test]
fn targets_come_with_their_addresses_in_the_zone_that_was_asked() {
    let config = DnsConfig { alt_zones: vec!["consul".to_owned()], ..config() };
    let answer = ask_with(&live(sample()), &config, "web.service.consul.", RecordType::SRV, 1).unwrap();
    let glue: BTreeMap<_, _> =
        answer.additionals.iter().map(|glue| (glue.name.to_string(), glue.data.to_string())).collect();
    let expected = [
        ("0a010003.addr.dc1.consul.", "10.1.0.3"),
        ("n1.node.dc1.consul.", "10.0.0.1"),
        ("n2.node.dc1.consul.", "10.0.0.2"),
    ];
    assert_eq!(glue, expected.map(|(name, ip)| (name.to_owned(), ip.to_owned())).into());
    // A target resolves to the address that its glue gives.
    for (name, ip) in expected {
        let again = ask_with(&live(sample()), &config, name, RecordType::A, 1).unwrap();
        assert_eq!(texts(&again.answers), [ip]);
    }
}

#[test]
fn one_address_is_answered_once_and_the_limit_holds() {
    let mut snapshot = Snapshot::default();
    let twice = vec![instance("n1", "a", "twin"), instance("n1", "b", "twin")];
    register(&mut snapshot, node("n1", "10.0.0.1"), twice, Vec::new());
    add_big(&mut snapshot, 50);
    let view = live(snapshot);
    let ask = |config: &DnsConfig, name: &str, qtype| ask_with(&view, config, name, qtype, 1).unwrap().answers.len();
    assert_eq!(ask(&config(), "twin.service.mesh.internal.", RecordType::A), 1);
    assert_eq!(ask(&config(), "twin.service.mesh.internal.", RecordType::SRV), 1);
    assert_eq!(ask(&config(), "big.service.mesh.internal.", RecordType::A), 50);
    let limited = DnsConfig { answer_limit: 8, ..config() };
    assert_eq!(ask(&limited, "big.service.mesh.internal.", RecordType::A), 8);
    assert_eq!(ask(&limited, "big.service.mesh.internal.", RecordType::SRV), 8);
}

#[test]
fn the_first_answer_is_drawn_by_weight() {
    let mut snapshot = Snapshot::default();
    let weighted = |node: &str, passing| {
        let mut web = instance(node, "web", "web");
        web.weights.passing = passing;
        web
    };
    register(&mut snapshot, node("n1", "10.0.0.1"), vec![weighted("n1", 3)], Vec::new());
    register(&mut snapshot, node("n2", "10.0.0.2"), vec![weighted("n2", 1)], Vec::new());
    let view = live(snapshot);
    let first = |seed| {
        let answer = ask_with(&view, &config(), "web.service.mesh.internal.", RecordType::A, seed).unwrap();
        texts(&answer.answers[..1]).remove(0)
    };
    let heavy = (0..4000).filter(|seed| first(*seed) == "10.0.0.1").count();
    assert!((2850..3150).contains(&heavy), "{heavy} of 4000 for three quarters of the weight");
    assert_eq!(first(7), first(7), "the seed decides");
}

#[test]
fn equal_instances_come_first_equally_often() {
    let view = live(sample());
    let mut counts = BTreeMap::new();
    for seed in 0..3000 {
        let answer = ask_with(&view, &config(), "web.service.mesh.internal.", RecordType::A, seed).unwrap();
        *counts.entry(answer.answers[0].data.to_string()).or_insert(0) += 1;
    }
    assert!(counts.len() == 3 && counts.values().all(|count| (850..1150).contains(count)), "{counts:?}");
}

#[test]
fn a_node_check_takes_out_all_on_the_node() {
    let mut snapshot = Snapshot::default();
    let mut sick = check("n1", "", Status::Critical);
    sick.instance = None;
    register(&mut snapshot, node("n1", "10.0.0.1"), vec![instance("n1", "web", "web")], vec![sick]);
    let view = live(snapshot);
    let answer = ask_with(&view, &config(), "web.service.mesh.internal.", RecordType::A, 1).unwrap();
    assert_eq!((answer.rcode, answer.answers.len()), (ResponseCode::NoError, 0));
    let node = ask_with(&view, &config(), "n1.node.mesh.internal.", RecordType::A, 1).unwrap();
    assert_eq!(texts(&node.answers), ["10.0.0.1"], "a node is named whatever its health");
}

#[test]
fn freshness_is_told() {
    let ede = |view: &View, name: &str| {
        let answer = ask_with(view, &config(), name, RecordType::A, 1).unwrap();
        (answer.rcode, answer.stale, answer.ede.map(|ede| (ede.code.number(), ede.text)))
    };
    let since = Timestamp(1_000);
    let stale = View { freshness: Freshness::Stale { since }, ..live(sample()) };
    let told = |code| Some((code, "as the registry told it 60 s ago".to_owned()));
    assert_eq!(ede(&stale, "web.service.mesh.internal."), (ResponseCode::NoError, true, told(3)));
    assert_eq!(ede(&stale, "gone.service.mesh.internal."), (ResponseCode::NoError, true, told(19)));
    assert_eq!(ede(&stale, "nope.service.mesh.internal."), (ResponseCode::NXDomain, true, told(19)));
    let empty = View { freshness: Freshness::Empty, ..live(Snapshot::default()) };
    let (rcode, _, told) = ede(&empty, "web.service.mesh.internal.");
    assert_eq!((rcode, told.unwrap().0), (ResponseCode::ServFail, 14));
}

#[test]
fn a_service_outside_the_scope_is_asked_for_never_denied() {
    let scope = Scope::Services { names: Default::default(), node: None };
    let view = live(project_snapshot(&scope, &sample()));
    let ask = |name| ask_with(&view, &config(), name, RecordType::A, 1);
    assert_eq!(ask("web.service.mesh.internal."), Err(NotHeld(Name::lookup("web"))));
    assert_eq!(ask("nope.service.mesh.internal.").unwrap().rcode, ResponseCode::NXDomain);
    assert_eq!(ask("n1.node.mesh.internal.").unwrap().answers.len(), 1);
}
