use super::*;
use crate::resource::{Digest, Lookup, ResourceSet};
use ResourceKind::{Cluster, Endpoint, Listener, Route};
use envoy_types::pb::google::protobuf::Any;

fn resource(name: &str, content: &str) -> Arc<Resource> {
    let version = Digest::new(content).text(name).finish();
    Arc::new(Resource { name: name.into(), version, body: Any::default() })
}

/// Resources of the services given as (name, cluster content, endpoint content); no endpoint content: not known yet.
fn world(epoch: u64, services: &[(&str, &str, &str)]) -> Resources {
    let names: Vec<&str> = services.iter().map(|service| service.0).collect();
    let routes = names.join(",");
    let one = |name: &str, content: &str| (Text::from(name), resource(name, content));
    let set = |kind| {
        let mut set = ResourceSet::default();
        match kind {
            Cluster => set.listed = services.iter().map(|(name, cluster, _)| one(name, cluster)).collect(),
            Endpoint => {
                let content = |content: &&str| !content.is_empty();
                let some = |(name, _, endpoints): &(&str, &str, &str)| {
                    (Text::from(*name), Some(*endpoints).filter(content).map(|endpoints| resource(name, endpoints)))
                };
                set.named = services.iter().map(some).collect();
            }
            Listener => {
                set.listed = [one("mesh.http", "listener")].into();
                set.named = names.iter().map(|name| (Text::from(*name), Some(resource(name, "api")))).collect();
            }
            Route => set.named = [("mesh.http".into(), Some(resource("mesh.http", &routes)))].into(),
        }
        Arc::new(set)
    };
    Resources { sets: KindMap::from_fn(set), epochs: KindMap::from_fn(|_| epoch) }
}

fn get<'r>(world: &'r Resources, kind: ResourceKind, name: &str) -> &'r Arc<Resource> {
    let Lookup::Found(found) = world.find(kind, name) else { panic!("no {kind} {name}") };
    found
}

struct Client(Subscriptions);

impl Client {
    fn sotw() -> Self {
        Self(Subscriptions::new(Variant::Sotw))
    }

    fn delta() -> Self {
        Self(Subscriptions::new(Variant::Delta))
    }

    fn send(&mut self, kind: ResourceKind, nonce: &str, error: Option<&str>, asked: Asked) -> Verdict {
        let error = error.map(str::to_owned);
        self.0.take(Request { kind, nonce: nonce.to_owned(), error, asked }).unwrap()
    }

    fn state(&mut self, kind: ResourceKind, nonce: &str, names: &[&str]) -> Verdict {
        self.send(kind, nonce, None, Asked::State { names: owned(names), version: String::new() })
    }

    fn subscribe(&mut self, kind: ResourceKind, names: &[&str]) {
        self.resume(kind, names, &[]);
    }

    fn resume(&mut self, kind: ResourceKind, names: &[&str], initial: &[(&str, Version)]) -> Verdict {
        let initial = initial.iter().map(|(name, version)| ((*name).to_owned(), version.to_string())).collect();
        self.send(kind, "", None, Asked::Delta { subscribe: owned(names), unsubscribe: Vec::new(), initial })
    }

    fn unsubscribe(&mut self, kind: ResourceKind, names: &[&str]) {
        let (subscribe, initial) = (Vec::new(), HashMap::new());
        self.send(kind, "", None, Asked::Delta { subscribe, unsubscribe: owned(names), initial });
    }

    /// Accepts a delta push.
    fn ack(&mut self, push: &Push) -> Verdict {
        let asked = Asked::Delta { subscribe: Vec::new(), unsubscribe: Vec::new(), initial: HashMap::new() };
        self.send(push.kind, &push.nonce, None, asked)
    }

    fn pushes(&mut self, resources: &Resources) -> Vec<Push> {
        std::iter::from_fn(|| self.0.next_push(resources)).collect()
    }

    /// The only push there is to be.
    fn push(&mut self, resources: &Resources) -> Push {
        let mut pushes = self.pushes(resources);
        assert_eq!(pushes.len(), 1, "{pushes:?}");
        pushes.remove(0)
    }

    fn is_quiet(&mut self, resources: &Resources) {
        let pushes = self.pushes(resources);
        assert!(pushes.is_empty(), "{pushes:?}");
    }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn names(push: &Push) -> Vec<&str> {
    push.resources.iter().map(|resource| &*resource.name).collect()
}

fn removed(push: &Push) -> Vec<&str> {
    push.removed.iter().map(|name| &**name).collect()
}

#[test]
fn sotw_wildcard_is_an_empty_list_and_an_empty_one_is_answered_once() {
    let empty = world(1, &[]);
    let mut client = Client::sotw();
    client.state(Cluster, "", &[]);
    let push = client.push(&empty);
    assert_eq!((push.kind, push.resources.len()), (Cluster, 0));
    assert_eq!(client.state(Cluster, &push.nonce, &[]), Verdict::Accepted(push.version));
    client.is_quiet(&empty);
    let one = world(2, &[("web", "c", "e")]);
    assert_eq!(names(&client.push(&one)), ["web"]);
}

#[test]
fn sotw_stale_nonces_are_ignored_and_one_push_absorbs_what_comes_meanwhile() {
    let mut client = Client::sotw();
    client.state(Endpoint, "", &["web"]);
    let first = client.push(&world(1, &[("web", "c", "e1")]));
    client.is_quiet(&world(2, &[("web", "c", "e2")]));
    // A request that crossed with the push: neither its names nor its word count.
    assert_eq!(client.state(Endpoint, "", &["db"]), Verdict::Nothing);
    client.is_quiet(&world(3, &[("web", "c", "e3")]));
    assert_eq!(client.state(Endpoint, &first.nonce, &["web"]), Verdict::Accepted(first.version));
    let last = world(4, &[("web", "c", "e4")]);
    let second = client.push(&last);
    assert_eq!(second.resources[0].version, get(&last, Endpoint, "web").version);
    assert_eq!(client.state(Endpoint, &first.nonce, &["web"]), Verdict::Nothing, "an old nonce");
}

#[test]
fn sotw_the_same_request_again_is_a_request_for_the_same_again() {
    let world = world(1, &[("web", "c", "e"), ("db", "c", "e")]);
    let mut client = Client::sotw();
    client.state(Endpoint, "", &["web", "db"]);
    let first = client.push(&world);
    client.state(Endpoint, &first.nonce, &["web", "db"]);
    client.is_quiet(&world);
    client.state(Endpoint, &first.nonce, &["web", "db"]);
    let again = client.push(&world);
    assert_eq!(names(&again), ["db", "web"]);
    assert_eq!(again.version, first.version);
    client.state(Endpoint, &again.nonce, &["web", "db"]);
    client.is_quiet(&world);
}

#[test]
fn sotw_names_come_and_go_and_unknown_endpoints_are_not_answered() {
    let world = world(1, &[("web", "c", "e"), ("db", "c", "e")]);
    let mut client = Client::sotw();
    client.state(Endpoint, "", &["nothing"]);
    client.is_quiet(&world);
    client.state(Endpoint, "", &["nothing", "web"]);
    let push = client.push(&world);
    assert_eq!(names(&push), ["web"]);
    client.state(Endpoint, &push.nonce, &["db", "web"]);
    let push = client.push(&world);
    assert_eq!(names(&push), ["db"], "what it has is not sent again");
    client.state(Endpoint, &push.nonce, &["db"]);
    client.is_quiet(&world);
    client.state(Endpoint, &push.nonce, &["db", "web"]);
    assert_eq!(names(&client.push(&world)), ["web"], "what it dropped is");
}

#[test]
fn sotw_names_stand_beside_the_wildcard_and_end_it_without_a_star() {
    let world = world(1, &[("web", "c", "e"), ("db", "c", "e")]);
    let mut client = Client::sotw();
    client.state(Cluster, "", &["*"]);
    let push = client.push(&world);
    client.state(Cluster, &push.nonce, &["*", "later"]);
    let push = client.push(&world);
    assert_eq!(names(&push), ["db", "web"], "the whole says that the name is unknown");
    client.state(Cluster, &push.nonce, &["web"]);
    let push = client.push(&world);
    assert_eq!(names(&push), ["web"]);
    client.state(Cluster, &push.nonce, &[]);
    // Named ones were given up: that is none, not all.
    assert_eq!(client.pushes(&world).iter().flat_map(|push| &push.resources).count(), 0);
}

#[test]
fn endpoints_that_vanish_are_emptied_not_removed() {
    for variant in [Variant::Sotw, Variant::Delta] {
        let mut client = Client(Subscriptions::new(variant));
        match variant {
            Variant::Sotw => drop(client.state(Endpoint, "", &["web"])),
            Variant::Delta => client.subscribe(Endpoint, &["web"]),
        }
        let push = client.push(&world(1, &[("web", "c", "e")]));
        match variant {
            Variant::Sotw => drop(client.state(Endpoint, &push.nonce, &["web"])),
            Variant::Delta => drop(client.ack(&push)),
        }
        let push = client.push(&world(2, &[]));
        assert_eq!((names(&push), removed(&push)), (vec!["web"], vec![]));
        assert_eq!(*push.resources[0], *crate::translate::empty_endpoints("web".into()));
    }
}

#[test]
fn a_returning_client_is_told_of_endpoints_that_vanished_meanwhile() {
    let mut client = Client::sotw();
    client.send(Endpoint, "", None, Asked::State { names: owned(&["web"]), version: "of before".into() });
    assert_eq!(*client.push(&world(1, &[])).resources[0], *crate::translate::empty_endpoints("web".into()));
    let mut client = Client::delta();
    client.resume(Endpoint, &["web"], &[("web", Version::default())]);
    assert_eq!(*client.push(&world(1, &[])).resources[0], *crate::translate::empty_endpoints("web".into()));
}

#[test]
fn endpoints_are_sent_again_after_their_cluster_changed() {
    let (before, after) =
        (world(1, &[("db", "c", "e"), ("web", "c1", "e")]), world(2, &[("db", "c", "e"), ("web", "c2", "e")]));
    let mut client = Client::delta();
    client.subscribe(Cluster, &[]);
    client.subscribe(Endpoint, &["db", "web"]);
    for push in client.pushes(&before) {
        client.ack(&push);
    }
    client.is_quiet(&before);
    let pushes = client.pushes(&after);
    assert_eq!(
        pushes.iter().map(|push| (push.kind, names(push))).collect::<Vec<_>>(),
        [(Cluster, vec!["web"]), (Endpoint, vec!["web"]),]
    );
    let mut client = Client::sotw();
    client.state(Cluster, "", &[]);
    client.state(Endpoint, "", &["db", "web"]);
    for push in client.pushes(&before) {
        client.state(push.kind, &push.nonce, if push.kind == Endpoint { &["db", "web"] } else { &[] });
    }
    client.is_quiet(&before);
    let pushes = client.pushes(&after);
    assert_eq!(
        pushes.iter().map(|push| (push.kind, names(push))).collect::<Vec<_>>(),
        [(Cluster, vec!["db", "web"]), (Endpoint, vec!["web"]),]
    );
}

#[test]
fn a_returning_delta_client_whose_cluster_changed_gets_its_endpoints_though_it_has_them() {
    let world = world(1, &[("web", "c2", "e")]);
    let endpoints = get(&world, Endpoint, "web").version;
    let mut client = Client::delta();
    client.resume(Cluster, &[], &[("web", Version::default())]);
    assert_eq!(names(&client.push(&world)), ["web"]);
    client.resume(Endpoint, &["web"], &[("web", endpoints)]);
    assert_eq!(names(&client.push(&world)), ["web"]);
}

#[test]
fn a_returning_delta_client_is_sent_the_difference_only() {
    let world = world(1, &[("web", "c", "e"), ("db", "c", "e")]);
    let mut client = Client::delta();
    let web = get(&world, Cluster, "web").version;
    client.resume(Cluster, &[], &[("web", web), ("gone", web), ("db", Version::default())]);
    let push = client.push(&world);
    assert_eq!((names(&push), removed(&push)), (vec!["db"], vec!["gone"]));
    let mut client = Client::delta();
    let db = get(&world, Cluster, "db").version;
    let accepted = Version::of_set([(&"db".into(), db), (&"web".into(), web)]);
    assert_eq!(client.resume(Cluster, &["*"], &[("web", web), ("db", db)]), Verdict::Accepted(accepted));
    client.is_quiet(&world);
}

#[test]
fn delta_answers_every_name_that_is_asked_for() {
    let world = world(1, &[("web", "c", "e")]);
    let mut client = Client::delta();
    client.subscribe(Cluster, &[]);
    let push = client.push(&world);
    client.ack(&push);
    // On demand, beside the wildcard: one it has, one that is unknown.
    client.subscribe(Cluster, &["web", "nothing"]);
    let push = client.push(&world);
    assert_eq!((names(&push), removed(&push)), (vec!["web"], vec!["nothing"]));
    client.ack(&push);
    client.is_quiet(&world);
    client.unsubscribe(Cluster, &["web"]);
    assert_eq!(names(&client.push(&world)), ["web"], "the wildcard still covers it");
}

#[test]
fn delta_wildcard_is_answered_when_empty_and_can_be_given_up() {
    let mut client = Client::delta();
    client.subscribe(Cluster, &["*"]);
    let push = client.push(&world(1, &[]));
    assert!(push.resources.is_empty() && push.removed.is_empty());
    client.ack(&push);
    client.unsubscribe(Cluster, &["*"]);
    client.is_quiet(&world(2, &[("web", "c", "e")]));
}

fn rejects(client: &mut Client, variant: Variant, push: &Push, names: &[&str]) {
    let asked = match variant {
        Variant::Sotw => Asked::State { names: owned(names), version: String::new() },
        Variant::Delta => Asked::Delta { subscribe: Vec::new(), unsubscribe: Vec::new(), initial: HashMap::new() },
    };
    let verdict = client.send(push.kind, &push.nonce, Some("bad"), asked);
    assert_eq!(verdict, Verdict::Rejected(push.version, "bad".into()));
}

/// Of each kind and variant: not at once, after a pause, with the next push, and no more once it was accepted.
#[test]
fn what_was_rejected_is_sent_again_until_it_is_accepted() {
    let before = world(1, &[("web", "c1", "e1"), ("db", "c1", "e1")]);
    let after = world(2, &[("web", "c2", "e2"), ("db", "c1", "e1"), ("new", "c", "e")]);
    let routes = &["mesh.http"][..];
    let table: [(_, &[&str], &[&str]); 4] = [
        (Cluster, &[], &["db", "new", "web"]),
        (Endpoint, &["db", "web"], &["db", "web"]),
        (Listener, &[], &["mesh.http"]),
        (Route, routes, routes),
    ];
    for (kind, asked, expected) in table {
        for variant in [Variant::Sotw, Variant::Delta] {
            let mut client = Client(Subscriptions::new(variant));
            match variant {
                Variant::Sotw => drop(client.state(kind, "", asked)),
                Variant::Delta => client.subscribe(kind, asked),
            }
            let first = client.push(&before);
            rejects(&mut client, variant, &first, asked);
            client.is_quiet(&before);
            assert!(client.0.is_rejected(kind), "{kind} {variant:?}");
            client.0.retry(kind);
            let second = client.push(&before);
            assert_eq!(names(&second), names(&first), "{kind} {variant:?}");
            rejects(&mut client, variant, &second, asked);
            client.is_quiet(&before);
            let third = if kind == Listener {
                client.0.retry(kind);
                client.push(&after)
            } else {
                client.push(&after)
            };
            assert_eq!(names(&third), expected, "{kind} {variant:?}: the rejected go with what changed");
            match variant {
                Variant::Sotw => drop(client.state(kind, &third.nonce, asked)),
                Variant::Delta => drop(client.ack(&third)),
            }
            assert!(!client.0.is_rejected(kind), "{kind} {variant:?}");
            client.0.retry(kind);
            client.is_quiet(&after);
        }
    }
}

#[test]
fn what_was_rejected_and_is_gone_is_removed() {
    let mut client = Client::delta();
    client.subscribe(Cluster, &[]);
    let push = client.push(&world(1, &[("web", "c1", "e")]));
    rejects(&mut client, Variant::Delta, &push, &[]);
    let push = client.push(&world(2, &[]));
    assert_eq!((names(&push), removed(&push)), (vec![], vec!["web"]));
    client.ack(&push);
    assert!(!client.0.is_rejected(Cluster));
}

#[test]
fn a_cluster_that_is_accepted_late_is_sent_its_endpoints() {
    let (before, after) = (world(1, &[("web", "c1", "e")]), world(2, &[("web", "c2", "e")]));
    let mut client = settled(Variant::Delta, &before, &["web"]);
    let pushes = client.pushes(&after);
    assert_eq!(pushes.iter().map(|push| push.kind).collect::<Vec<_>>(), [Cluster, Endpoint]);
    client.ack(&pushes[1]);
    rejects(&mut client, Variant::Delta, &pushes[0], &[]);
    client.0.retry(Cluster);
    let pushes = client.pushes(&after);
    assert_eq!(pushes.iter().map(|push| push.kind).collect::<Vec<_>>(), [Cluster, Endpoint], "it warms");
}

/// A port was taken: nothing older is in force that could lead to clusters, so those that are gone go.
#[test]
fn a_rejected_listener_does_not_hold_clusters_that_are_gone() {
    let (before, after) = (world(1, &[("old", "c", "e")]), world(2, &[]));
    for variant in [Variant::Sotw, Variant::Delta] {
        let mut client = Client(Subscriptions::new(variant));
        for kind in [Cluster, Listener] {
            match variant {
                Variant::Sotw => drop(client.state(kind, "", &[])),
                Variant::Delta => client.subscribe(kind, &[]),
            }
            let push = client.push(&before);
            match kind {
                Cluster => accept(&mut client, variant, &push, &[]),
                _ => rejects(&mut client, variant, &push, &[]),
            }
        }
        let push = client.push(&after);
        assert_eq!((push.kind, names(&push)), (Cluster, vec![]), "{variant:?}");
    }
}

/// A client that has all of `before`.
fn settled(variant: Variant, before: &Resources, endpoints: &[&str]) -> Client {
    let mut client = Client(Subscriptions::new(variant));
    for (kind, names) in [(Cluster, &[][..]), (Endpoint, endpoints), (Listener, &[]), (Route, &["mesh.http"])] {
        match variant {
            Variant::Sotw => drop(client.state(kind, "", names)),
            Variant::Delta => client.subscribe(kind, names),
        }
    }
    loop {
        let pushes = client.pushes(before);
        if pushes.is_empty() {
            return client;
        }
        pushes.iter().for_each(|push| accept(&mut client, variant, push, endpoints));
    }
}

fn accept(client: &mut Client, variant: Variant, push: &Push, endpoints: &[&str]) {
    match (variant, push.kind) {
        (Variant::Delta, _) => drop(client.ack(push)),
        (Variant::Sotw, Endpoint) => drop(client.state(Endpoint, &push.nonce, endpoints)),
        (Variant::Sotw, Route) => drop(client.state(Route, &push.nonce, &["mesh.http"])),
        (Variant::Sotw, kind) => drop(client.state(kind, &push.nonce, &[])),
    }
}

#[test]
fn a_swap_makes_before_it_breaks() {
    let (before, after) = (world(1, &[("old", "c", "e")]), world(2, &[("new", "c", "e")]));
    for variant in [Variant::Sotw, Variant::Delta] {
        let mut client = settled(variant, &before, &["old"]);
        let pushes = client.pushes(&after);
        // The new cluster joins the old one, whose endpoints are gone; routes wait until it is warm.
        assert_eq!(pushes.iter().map(|push| push.kind).collect::<Vec<_>>(), [Cluster, Endpoint], "{variant:?}");
        let expected = if variant == Variant::Sotw { vec!["new", "old"] } else { vec!["new"] };
        assert_eq!((names(&pushes[0]), removed(&pushes[0])), (expected, vec![]));
        assert_eq!(names(&pushes[1]), ["old"]);
        client.is_quiet(&after);
        accept(&mut client, variant, &pushes[1], &["old"]);
        client.is_quiet(&after);
        accept(&mut client, variant, &pushes[0], &["old"]);
        let routes = client.push(&after);
        assert_eq!(routes.kind, Route);
        client.is_quiet(&after);
        // Only once the routes are in force may the old cluster go.
        accept(&mut client, variant, &routes, &["old"]);
        let last = client.push(&after);
        assert_eq!(last.kind, Cluster);
        let (kept, gone) = if variant == Variant::Sotw { (vec!["new"], vec![]) } else { (vec![], vec!["old"]) };
        assert_eq!((names(&last), removed(&last)), (kept, gone), "{variant:?}");
        accept(&mut client, variant, &last, &["new"]);
    }
}

#[test]
fn rejected_routes_keep_the_clusters_they_replaced() {
    let (before, after) = (world(1, &[("old", "c", "e")]), world(2, &[]));
    let mut client = settled(Variant::Delta, &before, &[]);
    let routes = client.push(&after);
    let asked = || Asked::Delta { subscribe: Vec::new(), unsubscribe: Vec::new(), initial: HashMap::new() };
    client.send(Route, &routes.nonce, Some("bad route"), asked());
    client.is_quiet(&after);
    let next = world(3, &[("other", "c", "e")]);
    let pushes = client.pushes(&next);
    assert_eq!((names(&pushes[0]), removed(&pushes[0])), (vec!["other"], vec![]));
    client.ack(&pushes[0]);
    let routes = client.push(&next);
    client.ack(&routes);
    assert_eq!(removed(&client.push(&next)), ["old"]);
}

#[test]
fn what_is_not_known_yet_is_neither_sent_nor_removed() {
    let mut client = Client::delta();
    client.subscribe(Endpoint, &["web"]);
    client.is_quiet(&world(1, &[("web", "c", "")]));
    assert_eq!(names(&client.push(&world(2, &[("web", "c", "e")]))), ["web"]);
}

#[test]
fn grpc_asks_by_name_and_listeners_first() {
    let world = world(1, &[("web", "c", "e"), ("db", "c", "e")]);
    let mut client = Client::sotw();
    client.state(Listener, "", &["web"]);
    let push = client.push(&world);
    assert_eq!((push.kind, names(&push)), (Listener, vec!["web"]));
    client.state(Listener, &push.nonce, &["web"]);
    client.state(Cluster, "", &["web"]);
    let push = client.push(&world);
    assert_eq!((push.kind, names(&push)), (Cluster, vec!["web"]));
}

#[test]
fn subscriptions_are_bounded() {
    let many: Vec<String> = (0..=MAX_NAMES).map(|at| at.to_string()).collect();
    let request = |asked| Request { kind: Endpoint, nonce: String::new(), error: None, asked };
    let state = |names| request(Asked::State { names, version: String::new() });
    let delta = |subscribe| request(Asked::Delta { subscribe, unsubscribe: Vec::new(), initial: HashMap::new() });
    let too_many = Err(RequestError::TooManyNames { kind: Endpoint });
    assert_eq!(Subscriptions::new(Variant::Sotw).take(state(many.clone())), too_many);
    assert_eq!(Subscriptions::new(Variant::Delta).take(delta(many.clone())), too_many);
    // Not by a little at a time either.
    let mut subscriptions = Subscriptions::new(Variant::Delta);
    subscriptions.take(delta(many[..MAX_NAMES].to_vec())).unwrap();
    assert_eq!(subscriptions.take(delta(many[MAX_NAMES..].to_vec())), too_many);
    let long = vec!["x".repeat(MAX_NAME_BYTES + 1)];
    assert!(matches!(Subscriptions::new(Variant::Sotw).take(state(long)), Err(RequestError::NameTooLong { .. })));
}

#[test]
fn a_long_reason_is_cut() {
    let mut client = Client::delta();
    client.subscribe(Cluster, &[]);
    let push = client.push(&world(1, &[]));
    let asked = Asked::Delta { subscribe: Vec::new(), unsubscribe: Vec::new(), initial: HashMap::new() };
    let Verdict::Rejected(_, reason) = client.send(Cluster, &push.nonce, Some(&"ü".repeat(9_999)), asked) else {
        panic!("not rejected")
    };
    assert_eq!(reason.chars().count(), MAX_REASON_CHARS);
}

/// The texts of a subscription's names, each allocation once.
fn texts(subscription: &Subscription) -> BTreeSet<*const u8> {
    let sets = [&subscription.names, &subscription.asked, &subscription.resend, &subscription.rejected];
    sets.into_iter().flatten().chain(subscription.sent.keys()).map(|name| name.as_ptr()).collect()
}

#[test]
fn a_name_is_held_once_and_is_the_resources_own_where_there_is_one() {
    let world = world(1, &[("api", "c", "e"), ("web", "c", "e")]);
    let own: BTreeSet<*const u8> = ["api", "web"].map(|name| get(&world, Endpoint, name).name.as_ptr()).into();
    let mut client = Client::sotw();
    client.state(Endpoint, "", &["api", "nosuch", "web"]);
    let before = client.0.cost();
    let nonce = client.push(&world).nonce;
    assert_eq!(client.0.kinds[Endpoint].own_texts, TEXT + "nosuch".len());
    let held = texts(&client.0.kinds[Endpoint]);
    assert!(held.is_superset(&own) && held.len() == 3, "{held:?} {own:?}");
    // The same names again, as with every ACK.
    client.state(Endpoint, &nonce, &["api", "nosuch", "web"]);
    client.state(Endpoint, &nonce, &["api", "nosuch", "web"]);
    assert_eq!(texts(&client.0.kinds[Endpoint]), held);
    assert!(client.0.cost() > before, "what was sent counts too");
    client.state(Endpoint, &nonce, &["nosuch"]);
    assert_eq!(client.0.cost(), before - 2 * (2 * LISTED + TEXT + 3));

    // What a returning client brings along counts until it is a resource's.
    let mut client = Client::delta();
    client.resume(Endpoint, &["api", "web"], &[("api", Version::default()), ("web", Version::default())]);
    assert_eq!(texts(&client.0.kinds[Endpoint]).len(), 2);
    assert_eq!(client.0.kinds[Endpoint].own_texts, 2 * (TEXT + 3));
    client.push(&world);
    assert_eq!(texts(&client.0.kinds[Endpoint]), own);
    assert_eq!(client.0.kinds[Endpoint].own_texts, 0);
}

#[test]
fn a_registered_proxy_with_all_upstreams_stays_within_its_share() {
    // Its own cluster too, and names as long as they may be.
    let long: Vec<String> = (0..=muster_catalog::MAX_UPSTREAMS).map(|at| format!("{at:063}")).collect();
    let services: Vec<(&str, &str, &str)> = long.iter().map(|name| (name.as_str(), "c", "e")).collect();
    let mut world = world(1, &services);
    let listener = |name: &String| (Text::from(name.as_str()), resource(name, "l"));
    let listed = long.iter().map(listener).collect();
    world.sets[Listener] = Arc::new(ResourceSet { listed, ..ResourceSet::default() });
    let names: Vec<&str> = long.iter().map(String::as_str).collect();
    let initial = || long.iter().map(|name| (name.clone(), Version::default().to_string())).collect();
    for variant in [Variant::Sotw, Variant::Delta] {
        let (mut client, mut most) = (Client(Subscriptions::new(variant)), 0);
        for (kind, names) in [(Cluster, &[][..]), (Endpoint, &names), (Listener, &[]), (Route, &["mesh.http"])] {
            let asked = match variant {
                Variant::Sotw => Asked::State { names: owned(names), version: String::new() },
                Variant::Delta => Asked::Delta { subscribe: owned(names), unsubscribe: Vec::new(), initial: initial() },
            };
            let request = Request { kind, nonce: String::new(), error: None, asked };
            most = most.max(client.0.cost() + request.cost());
            client.0.take(request).unwrap();
        }
        while let Some(push) = client.0.next_push(&world) {
            most = most.max(client.0.cost());
            match (variant, push.kind) {
                (Variant::Delta, _) => client.ack(&push),
                (_, Endpoint) => client.state(Endpoint, &push.nonce, &names),
                (_, Route) => client.state(Route, &push.nonce, &["mesh.http"]),
                (_, kind) => client.state(kind, &push.nonce, &[]),
            };
        }
        // The transport has its buffer: names of 63 bytes, twice, with versions of 32.
        let buffer = long.len() * (2 * 63 + 32 + 8);
        assert!(most + buffer <= crate::budget::SHARE, "{variant:?}: {most} bytes, and {buffer} of a request");
    }
}
