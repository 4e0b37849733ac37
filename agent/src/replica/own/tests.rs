use muster_catalog::{Address, CheckKind, Scope, ServiceLookup, Status, Timestamp, Weights};

use super::*;

fn name(text: &str) -> muster_catalog::Name {
    muster_catalog::Name::lookup(text)
}

fn node(of: &str) -> Node {
    Node {
        name: name(of),
        id: format!("id of {of}").into(),
        address: Address::parse("127.0.0.1").unwrap(),
        tagged_addresses: BTreeMap::new(),
        meta: BTreeMap::new(),
        locality: None,
        origin: Origin::Agent,
    }
}

fn instance(of: &str, service: &str) -> Arc<Instance> {
    Arc::new(Instance {
        node: name(of),
        id: service.into(),
        service: name(service),
        tags: Vec::new(),
        address: None,
        tagged_addresses: BTreeMap::new(),
        ports: Vec::new(),
        meta: BTreeMap::new(),
        weights: Weights::default(),
        locality: None,
        draining: false,
        maintenance: None,
        enable_tag_override: false,
        proxy: None,
        traffic: None,
        origin: Origin::Agent,
    })
}

fn check(service: &str, status: Status) -> Arc<Check> {
    Arc::new(Check {
        node: name("own"),
        id: service.into(),
        instance: Some(service.into()),
        name: service.into(),
        status,
        notes: "".into(),
        output: format!("it is {status}").into(),
        kind: CheckKind::default(),
        origin: Origin::Agent,
    })
}

fn rows(instances: &[&str], checks: &[(&str, Status)]) -> Arc<LocalRows> {
    Arc::new(LocalRows {
        sources: Sources::Whole,
        instances: instances.iter().map(|service| instance("own", service)).collect(),
        checks: checks.iter().map(|(service, status)| check(service, *status)).collect(),
        ..LocalRows::default()
    })
}

/// A registry, the overlay of the agent on node `own`, and what its readers saw.
struct World {
    registry: Snapshot,
    overlay: Overlay,
    view: Arc<View>,
    woken: BTreeSet<Topic>,
}

impl World {
    /// Both nodes have an instance of `web`, which is passing.
    fn new(scope: Scope) -> Self {
        let registry = Snapshot::new(scope);
        let view = Arc::new(View::new(Arc::new(registry.clone()), Freshness::Empty));
        let mut world = Self { registry, overlay: Overlay::new(view.clone()), view, woken: BTreeSet::new() };
        let web = |of| Change::PutInstance(instance(of, "web"));
        world.commit(vec![
            Change::PutNode(Arc::new(node("own"))),
            Change::PutNode(Arc::new(node("other"))),
            web("own"),
            web("other"),
            Change::PutCheck(check("web", Status::Passing)),
        ]);
        world.know(rows(&["web"], &[("web", Status::Passing)]));
        world
    }

    fn commit(&mut self, changes: Vec<Change>) {
        let entry = Entry { index: self.registry.index() + 1, at: Timestamp(1), changes };
        let topics: BTreeSet<Topic> = self.registry.fold(&entry).into_iter().collect();
        let told = Arc::new(View::new(Arc::new(self.registry.clone()), Freshness::Live));
        let laid = self.overlay.tell(told, &Moved::Topics(&topics));
        self.woken = laid.topics.into_iter().chain(topics).collect();
        self.view = laid.view;
    }

    fn know(&mut self, rows: Arc<LocalRows>) {
        let laid = self.overlay.know(&node("own"), rows);
        (self.view, self.woken) = (laid.view, laid.topics);
    }

    fn index(&self, service: &str) -> u64 {
        self.view.local.service_index(&name(service))
    }

    fn statuses(&self, service: &str) -> Vec<Status> {
        let ServiceLookup::Held(_, set) = self.view.local.service(&name(service)) else { return Vec::new() };
        set.instances.iter().flat_map(|entry| &entry.checks).map(|check| check.value.status).collect()
    }

    fn woke(&self, service: &str) -> bool {
        self.woken.contains(&Topic::Service(name(service)))
    }
}

fn all_scopes() -> [Scope; 2] {
    [Scope::All, Scope::Services { names: [name("web")].into_iter().collect(), node: Some(name("own")) }]
}

#[test]
fn what_the_host_knows_is_answered_before_the_registry_tells_it_and_nothing_moves_when_it_does() {
    for scope in all_scopes() {
        let mut world = World::new(scope);
        let (before, log) = (world.index("web"), world.view.local.index());
        world.know(rows(&["web"], &[("web", Status::Critical)]));
        assert_eq!(world.statuses("web"), [Status::Critical]);
        assert!(world.woke("web") && world.index("web") > before);
        assert_eq!(world.view.local.index(), log, "the log has not moved");
        world.commit(vec![Change::PutCheck(check("web", Status::Critical))]);
        assert_eq!(world.statuses("web"), [Status::Critical]);
        world.commit(vec![]);
        assert!(world.overlay.changes.is_empty(), "nothing is laid over what the registry tells the same");
        assert!(!world.woke("web"));
    }
}

#[test]
fn indexes_never_fall_and_every_move_is_seen_while_they_are_ahead_of_the_log() {
    for scope in all_scopes() {
        let mut world = World::new(scope);
        let mut seen = world.index("web");
        for status in [Status::Critical, Status::Passing, Status::Critical, Status::Passing] {
            world.know(rows(&["web"], &[("web", status)]));
            assert!(world.woke("web") && world.index("web") > seen, "{status}");
            seen = world.index("web");
        }
        // It is again as the registry has it, and the client's index is ahead of the log.
        assert!(seen > world.view.local.index());
        world.commit(vec![Change::PutNode(Arc::new(node("third")))]);
        assert!(!world.woke("web") && world.index("web") == seen);
        // The instance elsewhere goes: at an index that the client has seen already.
        world.commit(vec![Change::DeleteInstance { node: name("other"), id: "web".into() }]);
        assert!(world.registry.service_index(&name("web")) <= seen);
        assert!(world.woke("web") && world.index("web") > seen);
        seen = world.index("web");
        while world.registry.index() <= seen {
            world.commit(vec![]);
            assert_eq!(world.index("web"), seen);
        }
        world.commit(vec![Change::PutInstance(instance("other", "web"))]);
        assert!(world.index("web") > seen);
        let web = Topic::Service(name("web"));
        assert!(!world.overlay.floors.contains_key(&web), "what the log has passed is forgotten");
    }
}

#[test]
fn a_new_service_is_held_and_one_that_went_is_absent_at_once() {
    for scope in all_scopes() {
        let mut world = World::new(scope);
        world.know(rows(&["web", "new"], &[("web", Status::Passing)]));
        assert!(world.woke("new"));
        assert!(
            matches!(world.view.local.service(&name("new")), ServiceLookup::Held(_, set) if set.instances.len() == 1)
        );
        let seen = world.index("new");
        world.know(rows(&["web"], &[("web", Status::Passing)]));
        assert!(matches!(world.view.local.service(&name("new")), ServiceLookup::Absent));
        assert!(world.woke("new") && world.index("new") >= seen);
        world.know(rows(&[], &[]));
        let ServiceLookup::Held(_, set) = world.view.local.service(&name("web")) else {
            panic!("the other one stands")
        };
        assert_eq!(set.instances.len(), 1);
    }
}

#[test]
fn nothing_is_laid_over_before_all_is_read_nor_over_another_hosts_node() {
    let mut world = World::new(Scope::All);
    let reading = LocalRows { sources: Sources::Reading, ..LocalRows::default() };
    world.know(Arc::new(reading));
    assert_eq!(world.statuses("web"), [Status::Passing], "what stands in unread files is not missed");
    let part = LocalRows { sources: Sources::Part, ..LocalRows::default() };
    world.know(Arc::new(part));
    assert_eq!(world.statuses("web"), [Status::Passing], "nor what stands in those that cannot be read");
    let twin = Node { id: "another".into(), ..node("own") };
    world.commit(vec![Change::PutNode(Arc::new(twin))]);
    world.know(rows(&[], &[]));
    assert_eq!(world.statuses("web"), [Status::Passing], "the name is another host's");
}
