use std::net::SocketAddr;

use envoy_types::pb::envoy::{
    config::{
        cluster::v3::Cluster,
        endpoint::v3::ClusterLoadAssignment,
        listener::v3::{Listener, filter::ConfigType},
        route::v3::RouteConfiguration,
    },
    extensions::filters::network::{
        http_connection_manager::v3::{HttpConnectionManager, http_connection_manager::RouteSpecifier},
        tcp_proxy::v3::{TcpProxy, tcp_proxy::ClusterSpecifier},
    },
};
use muster_catalog::{
    Change, Inbound, Instance, Locality, Node, OutlierDetection, Protocol, Scope, Snapshot, project_snapshot,
};
use prost::Message;

use super::*;
use crate::{
    config::XdsConfig,
    kind::ResourceKind,
    resource::Lookup,
    translate::tests::{endpoints, find, fold, get, instance, node, put, view, with_nodes},
};

fn at(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn upstream(service: &str, port: Option<u16>) -> Upstream {
    Upstream { service: Name::lookup(service), listen: port.map(at), protocol: Protocol::Http, connect_timeout: None }
}

fn row(upstreams: Vec<Upstream>) -> Proxy {
    Proxy { service: Name::lookup("web"), instance: None, inbound: None, http_listener: None, upstreams }
}

fn register(snapshot: &mut Snapshot, host: &str, id: &str, proxy: Proxy) {
    let proxy = Some(Arc::new(proxy));
    fold(snapshot, vec![put(Instance { proxy, ..instance(host, id, "web-proxy", 20_000) })]);
}

/// Three services, each on a node of its own; the agent's is `n1`.
fn world() -> Snapshot {
    let mut snapshot = with_nodes();
    let instances = [("n1", "web"), ("n2", "db"), ("n3", "api")];
    fold(&mut snapshot, instances.map(|(host, name)| put(instance(host, name, name, 80))).into());
    snapshot
}

/// An agent's publisher, as far as it is pure.
struct Agent {
    translator: Translator,
    proxies: Proxies,
    now: Instant,
}

impl Agent {
    fn new() -> Self {
        let config = XdsConfig { node: Some(Name::lookup("n1")), ..XdsConfig::default() };
        Self { translator: Translator::new(config), proxies: Proxies::default(), now: Instant::now() }
    }

    fn see(&mut self, snapshot: &Snapshot) -> ProxyUpdate {
        let view = view(snapshot);
        self.translator.translate(&view);
        self.proxies.update(&self.translator, &view, self.now)
    }

    /// What the proxy `proxy` is served.
    fn serve(&mut self, snapshot: &Snapshot) -> Arc<Resources> {
        self.see(snapshot).audience.get("proxy").expect("the proxy is registered").clone()
    }
}

fn names(resources: &Resources, kind: ResourceKind) -> Vec<String> {
    resources.wildcard(kind).map(|resource| resource.name.to_string()).collect()
}

/// The one cluster that a listener leads to.
fn target(resources: &Resources, listener: &str) -> String {
    let listener: Listener = find(resources, ResourceKind::Listener, listener);
    let filter = &listener.filter_chains[0].filters[0];
    let Some(ConfigType::TypedConfig(any)) = &filter.config_type else { panic!("no filter") };
    if filter.name.ends_with("tcp_proxy") {
        let Some(ClusterSpecifier::Cluster(cluster)) = TcpProxy::decode(&*any.value).unwrap().cluster_specifier else {
            panic!("no cluster")
        };
        return cluster;
    }
    let manager = HttpConnectionManager::decode(&*any.value).unwrap();
    match manager.route_specifier {
        Some(RouteSpecifier::RouteConfig(routes)) => routes.virtual_hosts[0].name.clone(),
        Some(RouteSpecifier::Rds(rds)) => rds.route_config_name,
        other => panic!("no routes: {other:?}"),
    }
}

#[test]
fn a_proxy_is_served_its_upstreams_and_its_own_service_and_nothing_else() {
    let mut snapshot = world();
    let tcp = Upstream { protocol: Protocol::Tcp, ..upstream("web", Some(9002)) };
    let inbound = Inbound { listen: at(20_000), local: at(8080), protocol: Protocol::Http };
    let proxy = Proxy { inbound: Some(inbound), ..row(vec![upstream("db", Some(9001)), tcp, upstream("API", None)]) };
    register(&mut snapshot, "n1", "proxy", proxy);
    register(&mut snapshot, "n1", "small", row(vec![upstream("db", Some(9003))]));
    register(&mut snapshot, "n2", "elsewhere", row(vec![upstream("db", Some(9004))]));
    let update = Agent::new().see(&snapshot);
    let ids: Vec<&str> = update.audience.keys().map(|id| &**id).collect();
    assert_eq!(ids, ["proxy", "small"], "those of other nodes are served by their agents");

    let all = &update.audience["proxy"];
    assert_eq!(names(all, ResourceKind::Cluster), ["api", "db", "mesh.local", "web"]);
    let listeners = ["mesh.http", "mesh.inbound", "mesh.upstream.127.0.0.1:9001", "mesh.upstream.127.0.0.1:9002"];
    assert_eq!(names(all, ResourceKind::Listener), listeners);
    let targets = listeners.map(|listener| target(all, listener));
    assert_eq!(targets, ["mesh.http", "mesh.local", "db", "web"]);
    let routes: RouteConfiguration = find(all, ResourceKind::Route, "mesh.http");
    let hosts: Vec<&str> = routes.virtual_hosts.iter().map(|host| &*host.domains[0]).collect();
    assert_eq!(hosts, ["api", "*"], "what has a listener of its own is not reached by its Host");
    assert_eq!(endpoints(all, "db").len(), 1);

    let small = &update.audience["small"];
    assert_eq!(names(small, ResourceKind::Cluster), ["db"]);
    assert_eq!(names(small, ResourceKind::Listener), ["mesh.upstream.127.0.0.1:9003"]);
    assert!(matches!(small.find(ResourceKind::Endpoint, "api"), Lookup::Absent));
    for kind in [ResourceKind::Cluster, ResourceKind::Endpoint, ResourceKind::Listener] {
        assert!(Arc::ptr_eq(get(small, kind, "db"), get(all, kind, "db")), "what is the same is made once");
    }
}

#[test]
fn an_upstream_that_left_the_scope_is_served_as_last_known_and_asked_for() {
    let mut snapshot = world();
    register(&mut snapshot, "n1", "proxy", row(vec![upstream("db", Some(9001))]));
    let mut agent = Agent::new();
    assert!(agent.see(&snapshot).not_held.is_empty());
    let scope = Scope::Services { names: Default::default(), node: Some(Name::lookup("n1")) };
    let update = agent.see(&project_snapshot(&scope, &snapshot));
    assert_eq!(endpoints(&update.audience["proxy"], "db").len(), 1);
    assert_eq!(update.not_held, [Name::lookup("db")].into());
}

#[test]
fn of_an_upstream_outside_the_scope_nothing_is_said_and_one_that_does_not_exist_is_empty() {
    let mut snapshot = world();
    register(&mut snapshot, "n1", "proxy", row(vec![upstream("db", Some(9001)), upstream("none", Some(9002))]));
    let scope = Scope::Services { names: Default::default(), node: Some(Name::lookup("n1")) };
    let outside = project_snapshot(&scope, &snapshot);
    let mut agent = Agent::new();
    let update = agent.see(&outside);
    assert_eq!(update.not_held, [Name::lookup("db")].into());
    assert_eq!(update.used, ["db", "none"].map(Name::lookup).into());
    // It waits for it, or it would be told that it is gone, but not for ever.
    assert!(update.audience.is_empty() && update.expected.contains("proxy"));
    assert_eq!(update.next, Some(agent.now + PATIENCE));
    agent.now += PATIENCE;
    let update = agent.see(&outside);
    assert!(update.expected.is_empty());
    let early = &update.audience["proxy"];
    assert_eq!(names(early, ResourceKind::Listener), ["mesh.upstream.127.0.0.1:9002"]);
    assert_eq!(names(early, ResourceKind::Cluster), ["none"]);
    assert_eq!(endpoints(early, "none"), []);
    // Once it is held it is served, and stays as last known should it leave the Scope.
    assert_eq!(endpoints(&agent.serve(&snapshot), "db").len(), 1);
    let again = agent.see(&outside);
    assert_eq!(endpoints(&again.audience["proxy"], "db").len(), 1);
}

#[test]
fn the_cluster_of_an_upstream_that_goes_outlives_the_drain_of_its_listener() {
    let mut snapshot = world();
    let mut agent = Agent::new();
    register(&mut snapshot, "n1", "proxy", row(vec![upstream("db", Some(9001)), upstream("api", Some(9002))]));
    agent.serve(&snapshot);
    register(&mut snapshot, "n1", "proxy", row(vec![upstream("api", Some(9002))]));
    let update = agent.see(&snapshot);
    let left = &update.audience["proxy"];
    assert_eq!(names(left, ResourceKind::Listener), ["mesh.upstream.127.0.0.1:9002"]);
    assert_eq!(names(left, ResourceKind::Cluster), ["api", "db"]);
    assert_eq!(update.next, Some(agent.now + DRAIN));
    agent.now += DRAIN - Duration::from_secs(1);
    assert_eq!(names(&agent.serve(&snapshot), ResourceKind::Cluster), ["api", "db"]);
    agent.now += Duration::from_secs(1);
    let update = agent.see(&snapshot);
    assert_eq!(names(&update.audience["proxy"], ResourceKind::Cluster), ["api"]);
    assert_eq!(update.next, None);
}

#[test]
fn epochs_rise_with_what_changed_for_the_proxy_alone() {
    let mut snapshot = world();
    let mut agent = Agent::new();
    register(&mut snapshot, "n1", "proxy", row(vec![upstream("db", Some(9001))]));
    let first = agent.serve(&snapshot);
    let routes = agent.proxies.states["proxy"].made.own.http_routes.clone();
    // A service that it does not call changes: its resources are the same object.
    fold(&mut snapshot, vec![put(instance("n2", "api-2", "api", 81))]);
    assert!(Arc::ptr_eq(&first, &agent.serve(&snapshot)));
    fold(&mut snapshot, vec![put(instance("n3", "db-2", "db", 81))]);
    let second = agent.serve(&snapshot);
    let rose = ResourceKind::ALL.map(|kind| second.epoch(kind) > first.epoch(kind));
    assert_eq!(ResourceKind::ALL.into_iter().zip(rose).filter(|(_, rose)| *rose).count(), 1);
    assert!(second.epoch(ResourceKind::Endpoint) > first.epoch(ResourceKind::Endpoint));
    // What leads there is the same object still: with hundreds of proxies, making it anew was most of a change.
    assert!(Arc::ptr_eq(&routes, &agent.proxies.states["proxy"].made.own.http_routes));
    for kind in ResourceKind::ALL {
        let same = Arc::ptr_eq(&first.sets[kind], &second.sets[kind]);
        assert_eq!(same, kind != ResourceKind::Endpoint, "{kind}");
    }
}

#[test]
fn near_instances_have_the_lowest_priority_without_gaps() {
    let place =
        |place: &str| place.split_once('/').map(|(region, zone)| Locality { region: region.into(), zone: zone.into() });
    /// Where the agent is, where the instances are, whether near ones are preferred, and places with their priorities.
    type Case = (&'static str, &'static [&'static str], Option<bool>, &'static [(&'static str, u32)]);
    let table: [Case; 7] = [
        ("eu/a", &["eu/a", "eu/b", "us/a"], None, &[("eu/a", 0), ("eu/b", 1), ("us/a", 2)]),
        ("eu/a", &["eu/a", "us/a"], None, &[("eu/a", 0), ("us/a", 1)]),
        ("eu/a", &["eu/b", "us/a"], None, &[("eu/b", 0), ("us/a", 1)]),
        ("eu/a", &["us/a", "us/b"], None, &[("us/a", 0), ("us/b", 0)]),
        ("eu/a", &["eu/a", "eu/b"], Some(false), &[("eu/a", 0), ("eu/b", 0)]),
        ("eu/a", &["eu/a", ""], None, &[("/", 1), ("eu/a", 0)]),
        ("", &["eu/a", "eu/b"], None, &[("eu/a", 0), ("eu/b", 0)]),
    ];
    for (own, places, prefer_near, expected) in table {
        let mut snapshot = with_nodes();
        let n1 = Node { locality: place(own), ..node("n1", "10.0.0.1") };
        fold(&mut snapshot, vec![Change::PutNode(Arc::new(n1))]);
        for (at, at_place) in places.iter().enumerate() {
            let traffic = Some(Arc::new(Traffic { prefer_near, ..Traffic::default() }));
            let db = instance("n2", &format!("db-{at}"), "db", 80 + u16::try_from(at).unwrap());
            fold(&mut snapshot, vec![put(Instance { locality: place(at_place), traffic, ..db })]);
        }
        register(&mut snapshot, "n1", "proxy", row(vec![upstream("db", Some(9001))]));
        let resources = Agent::new().serve(&snapshot);
        let assignment: ClusterLoadAssignment = find(&resources, ResourceKind::Endpoint, "db");
        let found: Vec<(String, u32)> = assignment
            .endpoints
            .iter()
            .map(|group| {
                let place = group.locality.clone().unwrap();
                (format!("{}/{}", place.region, place.zone), group.priority)
            })
            .collect();
        let expected: Vec<(String, u32)> =
            expected.iter().map(|(at, priority)| ((*at).to_owned(), *priority)).collect();
        assert_eq!(found, expected, "from {own} to {places:?}, prefer_near = {prefer_near:?}");
    }
}

#[test]
fn the_agents_move_to_another_zone_moves_the_priorities() {
    let zone = |zone: &str| Some(Locality { region: "eu".into(), zone: zone.into() });
    let mut snapshot = with_nodes();
    fold(&mut snapshot, vec![Change::PutNode(Arc::new(Node { locality: zone("a"), ..node("n1", "10.0.0.1") }))]);
    for name in ["a", "b"] {
        fold(
            &mut snapshot,
            vec![put(Instance { locality: zone(name), ..instance("n2", name, "db", 80 + u16::from(name == "b")) })],
        );
    }
    register(&mut snapshot, "n1", "proxy", row(vec![upstream("db", Some(9001))]));
    let mut agent = Agent::new();
    let mut priorities = |snapshot: &Snapshot| -> Vec<u32> {
        let assignment: ClusterLoadAssignment = find(&agent.serve(snapshot), ResourceKind::Endpoint, "db");
        assignment.endpoints.iter().map(|group| group.priority).collect()
    };
    assert_eq!(priorities(&snapshot), [0, 1]);
    fold(&mut snapshot, vec![Change::PutNode(Arc::new(Node { locality: zone("b"), ..node("n1", "10.0.0.1") }))]);
    assert_eq!(priorities(&snapshot), [1, 0]);
}

#[test]
fn a_cluster_is_as_most_instances_of_the_service_say() {
    let outlier_detection = Some(OutlierDetection { consecutive_failures: 3, ..OutlierDetection::default() });
    let agreed = Traffic {
        connect_timeout: Some(Duration::from_millis(250)),
        panic_threshold: Some(40),
        outlier_detection,
        ..Traffic::default()
    };
    let mut snapshot = with_nodes();
    let other = Traffic { panic_threshold: Some(90), ..Traffic::default() };
    for (id, port, traffic) in [("1", 80, &agreed), ("2", 81, &agreed), ("3", 82, &other)] {
        let traffic = Some(Arc::new(traffic.clone()));
        fold(&mut snapshot, vec![put(Instance { traffic, ..instance("n2", id, "db", port) })]);
    }
    let hasty = Upstream { connect_timeout: Some(Duration::from_millis(100)), ..upstream("db", Some(9002)) };
    register(&mut snapshot, "n1", "proxy", row(vec![upstream("db", Some(9001))]));
    register(&mut snapshot, "n1", "hasty", row(vec![hasty]));
    let mut agent = Agent::new();
    assert_eq!(agent.translator.translate(&view(&snapshot)).disagreements, 1);
    let update = agent.see(&snapshot);
    let cluster: Cluster = find(&update.audience["proxy"], ResourceKind::Cluster, "db");
    assert_eq!(cluster.connect_timeout.unwrap().nanos, 250_000_000);
    assert_eq!(cluster.common_lb_config.unwrap().healthy_panic_threshold.unwrap().value, 40.0);
    let outlier = cluster.outlier_detection.unwrap();
    assert_eq!(outlier.consecutive_5xx.unwrap().value, 3);
    assert_eq!(outlier.max_ejection_percent.unwrap().value, 50);
    assert_eq!(outlier.enforcing_success_rate.unwrap().value, 0, "only what was declared ejects");
    let cluster: Cluster = find(&update.audience["hasty"], ResourceKind::Cluster, "db");
    assert_eq!(cluster.connect_timeout.unwrap().nanos, 100_000_000, "the proxy's own word goes first");
    assert_eq!(cluster.common_lb_config.unwrap().healthy_panic_threshold.unwrap().value, 40.0);

    // The last dissenter comes round; one that says nothing does not disagree.
    let traffic = Some(Arc::new(agreed));
    fold(&mut snapshot, vec![put(Instance { traffic, ..instance("n2", "3", "db", 82) })]);
    fold(&mut snapshot, vec![put(instance("n2", "4", "db", 83))]);
    assert_eq!(agent.translator.translate(&view(&snapshot)).disagreements, 0);
}
