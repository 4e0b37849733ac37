use std::{collections::BTreeMap, net::SocketAddr};

use envoy_types::pb::envoy::config::{
    cluster::v3::{Cluster, cluster::ClusterDiscoveryType},
    core::v3::{HealthStatus, Locality as PbLocality, address::Address as PbAddress, socket_address::PortSpecifier},
    endpoint::v3::{ClusterLoadAssignment, LbEndpoint, lb_endpoint::HostIdentifier},
    listener::v3::Listener,
    route::v3::{RouteConfiguration, route::Action},
};
use muster_catalog::{
    Address, Change, Check, CheckKind, Entry, Freshness, Instance, Locality, Node, Origin, Port, Snapshot, Status,
    Timestamp, Weights,
};
use prost::Message;

use super::*;
use crate::resource::Lookup;

pub(super) fn node(name: &str, address: &str) -> Node {
    Node {
        name: Name::lookup(name),
        id: name.into(),
        address: Address::parse(address).unwrap(),
        tagged_addresses: BTreeMap::new(),
        meta: BTreeMap::new(),
        locality: None,
        origin: Origin::Agent,
    }
}

pub(crate) fn instance(node: &str, id: &str, service: &str, port: u16) -> Instance {
    Instance {
        node: Name::lookup(node),
        id: id.into(),
        service: Name::lookup(service),
        tags: Vec::new(),
        address: None,
        tagged_addresses: BTreeMap::new(),
        ports: vec![Port { name: "default".into(), number: port }],
        meta: BTreeMap::new(),
        weights: Weights::default(),
        locality: None,
        draining: false,
        maintenance: None,
        enable_tag_override: false,
        proxy: None,
        traffic: None,
        origin: Origin::Agent,
    }
}

pub(super) fn check(node: &str, instance: Option<&str>, status: Status) -> Change {
    Change::PutCheck(Arc::new(Check {
        node: Name::lookup(node),
        id: format!("check-{}", instance.unwrap_or("node")).into(),
        instance: instance.map(Text::from),
        name: "check".into(),
        status,
        notes: "".into(),
        output: "".into(),
        kind: CheckKind::default(),
        origin: Origin::Agent,
    }))
}

pub(crate) fn put(instance: Instance) -> Change {
    Change::PutInstance(Arc::new(instance))
}

pub(crate) fn fold(snapshot: &mut Snapshot, changes: Vec<Change>) {
    let index = snapshot.index() + 1;
    snapshot.fold(&Entry { index, at: Timestamp(index), changes });
}

pub(crate) fn view(snapshot: &Snapshot) -> View {
    View::new(Arc::new(snapshot.clone()), Freshness::Live)
}

pub(crate) fn with_nodes() -> Snapshot {
    let mut snapshot = Snapshot::default();
    let nodes = ["n1", "n2", "n3"].into_iter().enumerate();
    let put = |(at, name)| Change::PutNode(Arc::new(node(name, &format!("10.0.0.{}", at + 1))));
    fold(&mut snapshot, nodes.map(put).collect());
    snapshot
}

fn translate(snapshot: &Snapshot) -> Arc<Resources> {
    Translator::new(XdsConfig::default()).translate(&view(snapshot)).resources
}

pub(super) fn get<'r>(resources: &'r Resources, kind: ResourceKind, name: &str) -> &'r Arc<Resource> {
    let Lookup::Found(resource) = resources.find(kind, name) else { panic!("no {kind} {name}") };
    resource
}

pub(super) fn find<M: Message + Default>(resources: &Resources, kind: ResourceKind, name: &str) -> M {
    let resource = get(resources, kind, name);
    assert_eq!(resource.body.type_url, kind.type_url());
    M::decode(resource.body.value.as_slice()).unwrap()
}

fn address_of(endpoint: &LbEndpoint) -> SocketAddr {
    let Some(HostIdentifier::Endpoint(endpoint)) = &endpoint.host_identifier else { panic!("no endpoint") };
    let Some(PbAddress::SocketAddress(socket)) = endpoint.address.as_ref().unwrap().address.as_ref() else { panic!() };
    let Some(PortSpecifier::PortValue(port)) = socket.port_specifier else { panic!() };
    SocketAddr::new(socket.address.parse().unwrap(), u16::try_from(port).unwrap())
}

/// Address, health and weight of every endpoint of a service.
pub(super) fn endpoints(resources: &Resources, name: &str) -> Vec<(String, HealthStatus, u32)> {
    let assignment: ClusterLoadAssignment = find(resources, ResourceKind::Endpoint, name);
    assert_eq!(assignment.cluster_name, name, "a mismatch is ignored or rejected");
    let all = assignment.endpoints.iter().flat_map(|locality| {
        assert!(locality.locality.is_some() && locality.load_balancing_weight.unwrap().value > 0, "gRPC needs both");
        &locality.lb_endpoints
    });
    let row = |e: &LbEndpoint| (address_of(e).to_string(), e.health_status(), e.load_balancing_weight.unwrap().value);
    all.map(row).collect()
}

#[test]
fn health_maps_as_the_table_in_the_manual_says() {
    use HealthStatus::{Draining, Healthy, Unhealthy};
    let weights = Weights { passing: 10, warning: 3 };
    let muted = Weights { passing: 10, warning: 0 };
    let table = [
        ("passing", Status::Passing, weights, false, false, Healthy, 10),
        ("warning keeps its own weight", Status::Warning, weights, false, false, Healthy, 3),
        ("warning without weight is out", Status::Warning, muted, false, false, Unhealthy, 10),
        ("critical", Status::Critical, weights, false, false, Unhealthy, 10),
        ("draining", Status::Passing, weights, true, false, Draining, 10),
        ("draining and critical", Status::Critical, weights, true, false, Unhealthy, 10),
        ("maintenance", Status::Passing, weights, false, true, Unhealthy, 10),
        ("maintenance while draining", Status::Passing, weights, true, true, Unhealthy, 10),
    ];
    for (case, status, weights, draining, maintenance, health, weight) in table {
        let mut snapshot = with_nodes();
        let maintenance = maintenance.then(|| Text::from("upgrade"));
        let row = Instance { weights, draining, maintenance, ..instance("n1", "web", "web", 80) };
        fold(&mut snapshot, vec![put(row), check("n1", Some("web"), status)]);
        let found = endpoints(&translate(&snapshot), "web");
        assert_eq!(found, [("10.0.0.1:80".to_owned(), health, weight)], "{case}");
    }
}

#[test]
fn a_node_without_life_takes_its_instances_out() {
    let mut snapshot = with_nodes();
    fold(&mut snapshot, vec![put(instance("n1", "web", "web", 80)), put(instance("n2", "web", "web", 80))]);
    let mut translator = Translator::new(XdsConfig::default());
    translator.translate(&view(&snapshot));
    fold(&mut snapshot, vec![check("n1", None, Status::Critical)]);
    // The instance's own row did not change: only the service's index says that something did.
    let resources = translator.translate(&view(&snapshot)).resources;
    let health: Vec<HealthStatus> = endpoints(&resources, "web").into_iter().map(|row| row.1).collect();
    assert_eq!(health, [HealthStatus::Unhealthy, HealthStatus::Healthy]);
}

#[test]
fn addresses_are_unique_ip_addresses_with_ports() {
    let mut snapshot = with_nodes();
    let at = |address: &str, row: Instance| Instance { address: Address::parse(address), ..row };
    let changes = vec![
        put(at("192.0.2.1", instance("n1", "a", "web", 80))),
        check("n1", Some("a"), Status::Critical),
        // The same address by a healthy instance: this one speaks for it, whatever the order.
        put(at("192.0.2.1", instance("n2", "b", "web", 80))),
        put(at("192.0.2.1", instance("n3", "c", "web", 80))),
        check("n3", Some("c"), Status::Critical),
        put(at("2001:db8::1", instance("n1", "d", "web", 80))),
        put(at("web.example.internal", instance("n1", "e", "web", 80))),
        put(Instance { ports: Vec::new(), ..instance("n1", "f", "web", 0) }),
        put(instance("n1", "g", "web", 0)),
    ];
    fold(&mut snapshot, changes);
    let found = endpoints(&translate(&snapshot), "web");
    let expected = ["192.0.2.1:80", "[2001:db8::1]:80"].map(|at| (at.to_owned(), HealthStatus::Healthy, 1));
    assert_eq!(found, expected);
}

#[test]
fn localities_are_grouped_and_weigh_as_much_as_their_healthy_endpoints() {
    let mut snapshot = with_nodes();
    let zone = |zone: &str| Some(Locality { region: "eu".into(), zone: zone.into() });
    let weights = Weights { passing: 5, warning: 1 };
    let n2 = Node { locality: zone("b"), ..node("n2", "10.0.0.2") };
    fold(
        &mut snapshot,
        vec![
            Change::PutNode(Arc::new(n2)),
            put(Instance { locality: zone("a"), weights, ..instance("n1", "1", "web", 80) }),
            put(Instance { locality: zone("a"), weights, ..instance("n1", "2", "web", 81) }),
            put(Instance { locality: zone("a"), weights, draining: true, ..instance("n1", "3", "web", 82) }),
            put(instance("n2", "4", "web", 80)),
            put(instance("n3", "5", "web", 80)),
        ],
    );
    let assignment: ClusterLoadAssignment = find(&translate(&snapshot), ResourceKind::Endpoint, "web");
    let localities = assignment.endpoints.iter().map(|locality| {
        let PbLocality { region, zone, .. } = locality.locality.clone().unwrap();
        (region, zone, locality.load_balancing_weight.unwrap().value, locality.lb_endpoints.len())
    });
    let row = |region: &str, zone: &str, weight, count| (region.to_owned(), zone.to_owned(), weight, count);
    assert_eq!(localities.collect::<Vec<_>>(), [row("", "", 1, 1), row("eu", "a", 10, 3), row("eu", "b", 1, 1)]);
}

#[test]
fn a_cluster_takes_its_endpoints_from_the_stream_and_its_settings_from_the_configuration() {
    let mut snapshot = with_nodes();
    fold(&mut snapshot, vec![put(instance("n1", "web", "Web", 80))]);
    let cluster = |config: XdsConfig| -> (Cluster, String) {
        let resources = Translator::new(config).translate(&view(&snapshot)).resources;
        let Lookup::Found(found) = resources.find(ResourceKind::Cluster, "web") else { panic!("no cluster") };
        (find(&resources, ResourceKind::Cluster, "web"), found.version.to_string())
    };
    let (default, version) = cluster(XdsConfig::default());
    assert_eq!(default.name, "web", "the key of the name, whatever the case it is shown in");
    assert_eq!(default.cluster_discovery_type, Some(ClusterDiscoveryType::Type(3)));
    assert_eq!(default.lb_policy, 0, "ROUND_ROBIN");
    assert!(default.eds_cluster_config.unwrap().service_name.is_empty());
    assert_eq!(default.common_lb_config.unwrap().healthy_panic_threshold.unwrap().value, 0.0);
    let (tuned, other) = cluster(XdsConfig { healthy_panic_threshold: 50.0, ..XdsConfig::default() });
    assert_eq!(tuned.common_lb_config.unwrap().healthy_panic_threshold.unwrap().value, 50.0);
    assert_ne!(version, other);
}

#[test]
fn routes_know_every_name_of_a_service_once_and_answer_for_the_rest() {
    let mut snapshot = with_nodes();
    fold(&mut snapshot, vec![put(instance("n1", "web", "web", 80))]);
    let zones = ["mesh.internal", "Mesh.Internal", "consul"].map(Name::lookup).to_vec();
    let config = XdsConfig { zones, ..XdsConfig::default() };
    let resources = Translator::new(config).translate(&view(&snapshot)).resources;
    let routes: RouteConfiguration = find(&resources, ResourceKind::Route, "mesh.http");
    assert!(routes.ignore_port_in_host_matching);
    assert_eq!(
        routes.virtual_hosts[0].domains,
        [
            "web",
            "web.service.consul",
            "web.service.dc1.consul",
            "web.service.dc1.mesh.internal",
            "web.service.mesh.internal",
        ]
    );
    let last = routes.virtual_hosts.last().unwrap();
    assert_eq!(last.domains, ["*"]);
    assert!(matches!(&last.routes[0].action, Some(Action::DirectResponse(direct)) if direct.status == 404));
}

#[test]
fn the_wildcard_has_one_listener_and_grpc_gets_its_own_by_name() {
    let mut snapshot = with_nodes();
    fold(&mut snapshot, vec![put(instance("n1", "web", "web", 80))]);
    let resources = translate(&snapshot);
    let names: Vec<&str> = resources.wildcard(ResourceKind::Listener).map(|resource| &*resource.name).collect();
    assert_eq!(names, ["mesh.http"]);
    let http: Listener = find(&resources, ResourceKind::Listener, "mesh.http");
    assert!(http.api_listener.is_none() && http.address.is_some());
    let api: Listener = find(&resources, ResourceKind::Listener, "web");
    assert!(api.api_listener.is_some() && api.address.is_none() && api.filter_chains.is_empty());
}

#[test]
fn versions_depend_on_content_alone() {
    let mut snapshot = with_nodes();
    fold(&mut snapshot, vec![put(instance("n1", "web", "web", 80)), put(instance("n2", "web", "web", 80))]);
    // Another server folded the same in another order, at other indexes.
    let mut other = Snapshot::default();
    fold(&mut other, Vec::new());
    for name in ["n3", "n2", "n1"] {
        let address = format!("10.0.0.{}", &name[1..]);
        fold(&mut other, vec![Change::PutNode(Arc::new(node(name, &address)))]);
    }
    fold(&mut other, vec![put(instance("n2", "web", "web", 80))]);
    fold(&mut other, vec![put(instance("n1", "web", "web", 80))]);
    let (left, right) = (translate(&snapshot), translate(&other));
    for (kind, name) in ResourceKind::ALL.into_iter().zip(["web", "web", "mesh.http", "mesh.http"]) {
        let (Lookup::Found(left), Lookup::Found(right)) = (left.find(kind, name), right.find(kind, name)) else {
            panic!("no {kind}")
        };
        assert_eq!(left, right, "{kind}");
    }
}

#[test]
fn only_what_changed_is_translated_again() {
    let mut snapshot = with_nodes();
    fold(&mut snapshot, vec![put(instance("n1", "web", "web", 80)), put(instance("n1", "db", "db", 5432))]);
    let mut translator = Translator::new(XdsConfig::default());
    let first = translator.translate(&view(&snapshot)).resources;
    assert!(Arc::ptr_eq(&first, &translator.translate(&view(&snapshot)).resources));
    fold(&mut snapshot, vec![put(instance("n2", "web", "web", 80))]);
    let second = translator.translate(&view(&snapshot)).resources;
    let is_kept = |kind, name| Arc::ptr_eq(get(&first, kind, name), get(&second, kind, name));
    assert!(is_kept(ResourceKind::Endpoint, "db") && is_kept(ResourceKind::Cluster, "web"));
    assert_ne!(get(&first, ResourceKind::Endpoint, "web"), get(&second, ResourceKind::Endpoint, "web"));
    assert!(is_kept(ResourceKind::Route, "mesh.http"));
    assert_eq!(first.epoch(ResourceKind::Cluster), second.epoch(ResourceKind::Cluster));
    // A new output of a check says nothing to a data plane.
    fold(&mut snapshot, vec![check("n2", Some("web"), Status::Passing)]);
    assert!(Arc::ptr_eq(&second, &translator.translate(&view(&snapshot)).resources));
    fold(&mut snapshot, vec![Change::DeleteInstance { node: Name::lookup("n1"), id: "db".into() }]);
    let third = translator.translate(&view(&snapshot)).resources;
    assert!(matches!(third.find(ResourceKind::Endpoint, "db"), Lookup::Absent));
    assert_ne!(get(&second, ResourceKind::Route, "mesh.http"), get(&third, ResourceKind::Route, "mesh.http"));
}

#[test]
fn of_a_service_outside_the_scope_nothing_is_said() {
    use muster_catalog::{Scope, project_snapshot};
    let mut snapshot = with_nodes();
    fold(&mut snapshot, vec![put(instance("n1", "web", "web", 80))]);
    let scope = Scope::Services { names: Default::default(), node: None };
    let outside = project_snapshot(&scope, &snapshot);
    let mut translator = Translator::new(XdsConfig::default());
    let translation = translator.translate(&view(&outside));
    assert_eq!(translation.not_held, [Name::lookup("web")]);
    assert!(matches!(translation.resources.find(ResourceKind::Endpoint, "web"), Lookup::Pending));
    // Once held it is known, and stays known when it leaves the scope again.
    translator.translate(&view(&snapshot));
    let again = translator.translate(&view(&outside)).resources;
    assert_eq!(endpoints(&again, "web").len(), 1);
}
