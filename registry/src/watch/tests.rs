//! Watches whose Scope is a part of the catalog, on members with a log in memory and real connections.

use std::{
    pin::pin,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use futures_util::{FutureExt, StreamExt, stream};
use muster_catalog::{
    Command, Name, Proposal, Scope, Snapshot, Wide,
    port::{Consistency, Sink, WideError, WideRead},
    project_snapshot,
};
use prost::Message;
use tokio::{sync::mpsc, task::unconstrained, time::timeout};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    pace::{HEARTBEAT, ROUND},
    stream::follow,
    watchers::Watcher,
};
use crate::{
    client::{Client, Hello},
    limits::PIECE_BYTES,
    machine::{Catalog, CatalogMachine, encode_proposal},
    outbox::{MAX_BYTES, Ready, STALL, outbox},
    proto::registry::{self as pb, watch_event::Kind, watch_request::Kind as Asked},
    raft::{Committed, Machine, plaintext},
    server,
    service::{
        Core, peers,
        tests::{PATIENCE, Replica, TestRegistry, all, push},
    },
};

fn names(services: &[&str]) -> Vec<Name> {
    services.iter().map(|service| Name::lookup(service)).collect()
}

fn scope(services: &[&str], node: Option<&str>) -> Scope {
    Scope::Services { names: names(services).into_iter().collect(), node: node.map(Name::lookup) }
}

async fn open(client: &Client, scope: Scope) -> Replica {
    let hello = Hello { scope: scope.clone(), ..all() };
    Replica::open(client, hello, Snapshot::new(scope)).await
}

/// What a replica of that Scope holds at that index, by way of one that holds all.
async fn expected(client: &Client, scope: &Scope, index: u64) -> Snapshot {
    let mut full = Replica::open(client, all(), Snapshot::default()).await;
    full.until_index(index).await;
    project_snapshot(scope, &full.snapshot)
}

#[tokio::test]
async fn a_scope_grows_and_shrinks_in_its_place_among_the_entries() {
    let registry = TestRegistry::start_quiet(1).await;
    let client = registry.client([0]);
    client.submit(push("a", 1, &["web", "db"])).await.unwrap();
    client.submit(push("b", 1, &["db", "cache"])).await.unwrap();
    let mut replica = open(&client, scope(&["web"], Some("b"))).await;
    replica.until(|replica| replica.snapshot.instance_count() == 3).await;
    assert_eq!(replica.snapshot.service_count(), 3, "the directory names the others");
    replica.heard.clear();
    // The entry is committed before the member hears of the change of Scope: it comes first, by the old one.
    let first = client.submit(push("a", 2, &["web", "db", "api"])).await.unwrap();
    replica.asking.add_services(&names(&["db", "gone"])).unwrap();
    replica.asking.remove_services(&names(&["web"])).unwrap();
    replica.until(|replica| *replica.snapshot.scope() == scope(&["db", "gone"], Some("b"))).await;
    let entry = format!("entry {}", first.index);
    assert!(replica.heard.iter().position(|heard| *heard == entry) < Some(replica.heard.len() - 1));
    assert!(replica.heard.iter().all(|heard| !heard.starts_with("loaded")), "{:?}", replica.heard);
    assert_eq!(replica.loaded, 3, "no row came twice");
    let last = client.submit(push("a", 3, &["db"])).await.unwrap();
    replica.until_index(last.index).await;
    assert_eq!(replica.snapshot, expected(&client, &scope(&["db", "gone"], Some("b")), last.index).await);
    // A service that did not exist when it joined is held once it does.
    let came = client.submit(push("c", 1, &["gone", "web"])).await.unwrap();
    replica.until_index(came.index).await;
    assert_eq!(replica.snapshot, expected(&client, &scope(&["db", "gone"], Some("b")), came.index).await);
}

#[tokio::test]
async fn a_large_set_comes_in_pieces_and_is_taken_up_whole() {
    let registry = TestRegistry::start_quiet(1).await;
    let client = registry.client([0]);
    let mut last = 0;
    for node in 0..300 {
        let mut command = push(&format!("n{node}"), 1, &["web"]);
        if let Command::Sync(sync) = &mut command {
            sync.instances[0].meta = [("note".into(), "x".repeat(1_000).into())].into();
        }
        last = client.submit(command).await.unwrap().index;
    }
    let mut replica = open(&client, scope(&[], None)).await;
    replica.until_index(last).await;
    replica.asking.add_services(&names(&["web"])).unwrap();
    replica.until(|replica| replica.heard.iter().any(|heard| heard.starts_with("splice"))).await;
    assert_eq!(replica.snapshot, expected(&client, &scope(&["web"], None), last).await);
}

#[tokio::test]
async fn a_member_that_is_behind_its_watcher_splices_nothing_old() {
    let registry = TestRegistry::start_quiet(2).await;
    let (leader, behind) = (registry.client([0]), registry.client([1]));
    leader.submit(push("a", 1, &["web"])).await.unwrap();
    let mut ahead = open(&leader, scope(&[], None)).await;
    registry.cluster.lag(2, true);
    let last = leader.submit(push("a", 2, &["web", "db"])).await.unwrap();
    leader.submit(push("b", 1, &["web"])).await.unwrap();
    ahead.until_index(last.index + 1).await;
    let resume = Some((ahead.snapshot.cluster().clone(), last.index + 1));
    let hello = Hello { scope: scope(&[], None), resume, ..all() };
    let mut replica = Replica::open(&behind, hello, ahead.snapshot.clone()).await;
    replica.asking.add_services(&names(&["web"])).unwrap();
    // The hello and two signs of life come at once; with the next ones the member has long heard what is asked.
    for _ in 0..6 {
        replica.step().await.unwrap();
    }
    assert_eq!(replica.heard, Vec::<String>::new(), "it knows an older set only");
    registry.cluster.lag(2, false);
    replica.until(|replica| replica.snapshot.instance_count() == 2).await;
    let index = replica.snapshot.index();
    assert_eq!(replica.snapshot, expected(&leader, &scope(&["web"], None), index).await);
}

#[tokio::test]
async fn beyond_the_ring_only_what_moved_comes_and_what_vanished_is_gone() {
    let registry = TestRegistry::start_quiet(2).await;
    let leader = registry.client([0]);
    leader.submit(push("a", 1, &["web", "db", "cache"])).await.unwrap();
    let first = leader.submit(push("b", 1, &["web", "old"])).await.unwrap();
    let held = scope(&["web", "db", "cache", "old"], Some("b"));
    let mut before = open(&leader, held.clone()).await;
    before.until_index(first.index).await;
    registry.cluster.lag(2, true);
    leader.submit(push("b", 2, &["web"])).await.unwrap();
    let last = leader.submit(push("c", 1, &["db"])).await.unwrap();
    // The member has the catalog as a Raft snapshot: its ring begins there.
    registry.cluster.install(1, 2);
    let resume = Some((before.snapshot.cluster().clone(), first.index));
    let hello = Hello { scope: held.clone(), resume, ..all() };
    let mut replica = Replica::open(&registry.client([1]), hello.clone(), before.snapshot.clone()).await;
    replica.until_index(last.index).await;
    assert!(!replica.resumed);
    assert_eq!(replica.heard, [format!("loaded after Some({})", first.index)]);
    // `db` moved and came with both its instances, and so did the own node; `web` on a, and `cache`, did not.
    assert_eq!(replica.loaded, 3);
    assert_eq!(replica.snapshot, expected(&leader, &held, last.index).await);
    // Of an earlier incarnation nothing is believed.
    let mut hello = hello;
    if let Some((cluster, _)) = &mut hello.resume {
        cluster.incarnation -= 1;
    }
    let mut replica = Replica::open(&registry.client([1]), hello, before.snapshot).await;
    replica.until_index(last.index).await;
    assert_eq!((replica.heard.as_slice(), replica.loaded), (["loaded after None".to_owned()].as_slice(), 5));
}

#[tokio::test]
async fn a_watcher_that_knows_no_sets_gets_all_rows_when_its_scope_changes() {
    let registry = TestRegistry::start_quiet(1).await;
    registry.client([0]).submit(push("a", 1, &["web", "db"])).await.unwrap();
    let mut raw = peers::client(plaintext()(&registry.members[0].address).unwrap());
    let ask = |kind| pb::WatchRequest { kind: Some(kind) };
    let hello =
        pb::Hello { scope: Some(pb::Scope::default()), known_changes: (1..=11).collect(), ..Default::default() };
    let (asking, asked) = mpsc::channel(2);
    asking.send(ask(Asked::Hello(hello))).await.unwrap();
    asking.send(ask(Asked::AddServices(pb::ServiceNames { names: vec!["web".into()] }))).await.unwrap();
    let mut events = raw.watch(ReceiverStream::new(asked)).await.unwrap().into_inner();
    let (mut loads, mut instances) = (0, 0);
    while loads < 2 {
        match events.message().await.unwrap().unwrap().kind {
            Some(Kind::Rows(rows)) => {
                let is_instance = |row: &&crate::proto::catalog::SnapshotRow| {
                    matches!(row.kind, Some(crate::proto::catalog::snapshot_row::Kind::Instance(_)))
                };
                instances += rows.rows.iter().filter(is_instance).count();
            }
            Some(Kind::Loaded(loaded)) => {
                assert_eq!(loaded.sets_after, None);
                loads += 1;
            }
            Some(Kind::Sets(sets)) => panic!("{sets:?} was sent to one who does not know it"),
            _ => {}
        }
    }
    assert_eq!(instances, 1, "none in the first load, `web` in the second");
}

#[tokio::test]
async fn a_wide_read_is_as_current_as_asked_and_waits_for_what_is_newer() {
    let registry = TestRegistry::start_quiet(2).await;
    let (leader, other) = (registry.client([0]), registry.client([1]));
    let first = leader.submit(push("a", 1, &["web"])).await.unwrap();
    let read =
        |wide: Wide, after| WideRead { wide, consistency: Consistency::Lease, after, wait: Duration::from_secs(20) };
    let node = Wide::Node(Name::lookup("A"));
    let answer = other.read(&read(node.clone(), 0)).await.unwrap().snapshot;
    assert_eq!((answer.instance_count(), node.index(&answer)), (1, first.index));
    registry.cluster.lag(2, true);
    leader.submit(push("a", 2, &["web", "db"])).await.unwrap();
    let stale = WideRead { consistency: Consistency::Stale, ..read(node.clone(), 0) };
    assert_eq!(other.read(&stale).await.unwrap().snapshot.instance_count(), 1, "what that member knows");
    let current = read(node.clone(), 0);
    let (current, ()) = tokio::join!(other.read(&current), async {
        tokio::task::yield_now().await;
        registry.cluster.lag(2, false);
    });
    let current = current.unwrap().snapshot;
    assert_eq!(current.instance_count(), 2, "what was committed before it asked");
    // Parked, it hears of its own node and not of another.
    let parked = read(node.clone(), node.index(&current));
    let (answer, last) = tokio::join!(other.read(&parked), async {
        leader.submit(push("b", 1, &["web"])).await.unwrap();
        leader.submit(push("a", 3, &["web"])).await.unwrap()
    });
    assert_eq!(node.index(&answer.unwrap().snapshot), last.index);
    let checks = other.read(&read(Wide::Checks(None), 0)).await.unwrap().snapshot;
    assert_eq!((checks.node_count(), checks.instance_count()), (2, 0), "each node has its liveness check");
    let instances = Wide::Instances(vec![("rack".into(), "1".into())]);
    assert_eq!(other.read(&read(instances, 0)).await.unwrap().snapshot.node_count(), 0);
}

#[tokio::test]
async fn large_answers_wait_for_room_and_small_ones_do_not() {
    let registry = TestRegistry::start_quiet(1).await;
    let names: Vec<String> = (0..1_500).map(|number| format!("service-with-some-name-{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    registry.client([0]).submit(push("a", 1, &names)).await.unwrap();
    registry.client([0]).submit(push("b", 1, &["web"])).await.unwrap();
    let client = registry.client([0]).with_room(1, Duration::from_millis(300));
    let read = |wide| WideRead { wide, consistency: Consistency::Lease, after: 0, wait: Duration::ZERO };
    let (large, small) = (read(Wide::Node(Name::lookup("a"))), read(Wide::Node(Name::lookup("b"))));
    let first = client.read(&large).await.unwrap();
    let refused = client.read(&large).await.unwrap_err();
    assert!(
        matches!(&refused, WideError::Refused(why) if why.contains("agent.replica = \"all\"")),
        "no more than one beyond the limit: {refused:?}"
    );
    assert_eq!(client.read(&small).await.unwrap().snapshot.instance_count(), 1, "small ones go on");
    let client = client.with_room(1, Duration::from_secs(20));
    let held = (first, client.read(&large).await.unwrap());
    let (second, ()) = tokio::join!(client.read(&large), async {
        tokio::task::yield_now().await;
        drop(held);
    });
    assert_eq!(second.unwrap().snapshot.instance_count(), names.len());
}

#[tokio::test]
async fn a_member_without_a_leader_refuses_a_wide_read() {
    let registry = TestRegistry::start_quiet(1).await;
    registry.client([0]).submit(push("a", 1, &["web"])).await.unwrap();
    registry.cluster.elect(None);
    let read = WideRead {
        wide: Wide::Checks(None),
        consistency: Consistency::Stale,
        after: u64::MAX,
        wait: Duration::from_secs(600),
    };
    let refused = registry.client([0]).read(&read).await.unwrap_err();
    assert!(matches!(&refused, WideError::Unreachable(why) if why.contains("hears no leader")), "{refused}");
}

/// A machine alone, and who watches it.
struct Stage {
    machine: CatalogMachine,
    catalog: Catalog,
    index: u64,
}

impl Stage {
    fn new() -> Self {
        let (machine, catalog) = CatalogMachine::new();
        let mut stage = Self { machine, catalog, index: 0 };
        stage.push("a", &["web", "db"]);
        stage.push("b", &["web"]);
        stage
    }

    fn push(&mut self, node: &str, services: &[&str]) {
        self.index += 1;
        let at = muster_catalog::Timestamp(self.index);
        let payload = encode_proposal(&Proposal { at, command: push(node, self.index, services) });
        self.machine.apply(vec![Committed { index: self.index, payload: Some(payload) }]);
    }

    fn watch(&self, services: &[&str], node: Option<&str>) -> Watcher {
        self.catalog.watchers.join(&scope(services, node))
    }
}

fn was_woken(watcher: &Watcher) -> bool {
    watcher.woken().now_or_never().is_some()
}

#[test]
fn an_entry_wakes_those_alone_whose_scope_it_touches() {
    let mut stage = Stage::new();
    let (mut idle, node, all) = (stage.watch(&["old"], None), stage.watch(&[], Some("b")), Scope::All);
    let (db, all) = (stage.watch(&["db"], None), stage.catalog.watchers.join(&all));
    let others: Vec<Watcher> = (0..1_000).map(|_| stage.watch(&["other"], Some("c"))).collect();
    let woken = || [was_woken(&idle), was_woken(&node), was_woken(&db), was_woken(&all)];
    // It may have missed what came before it, and looks for itself.
    assert!(others[0].is_touched_after(1) && !others[0].is_touched_after(2));
    stage.push("b", &["web", "new"]);
    assert_eq!(woken(), [false, true, false, true]);
    stage.push("a", &["web"]);
    assert_eq!(woken(), [false, false, true, true]);
    stage.push("d", &["old"]);
    assert_eq!(woken(), [true, false, false, true]);
    assert!(!others.iter().any(was_woken), "nothing touched them");
    assert!(!others.iter().any(|watcher| watcher.is_touched_after(2)));
    // One whose Scope grew has to look at what came just before.
    idle.rescope(&names(&["db"]), &names(&["old"]));
    assert!(idle.is_touched_after(4) && !idle.is_touched_after(5));
    stage.push("a", &["web", "db"]);
    assert!(was_woken(&idle));
    stage.push("d", &[]);
    assert!(!was_woken(&idle), "it gave up `old`");
    // Nobody falls out of the ring for having slept.
    for _ in 0..super::ring::MAX_ENTRIES / 4 {
        stage.push("a", if stage.index.is_multiple_of(2) { &["web"] } else { &["web", "db"] });
    }
    assert!(others.iter().all(was_woken));
    let cursor = stage.index - 100;
    let first = stage.catalog.ring.gather(cursor, stage.index).unwrap();
    let second = stage.catalog.ring.gather(cursor, stage.index).unwrap();
    assert!(std::sync::Arc::ptr_eq(&first, &second), "encoded once");
}

/// A push that moves its services and nothing else of the Directory.
fn noted(node: &str, sequence: u64, services: &[&str]) -> Command {
    let Command::Sync(mut sync) = push(node, sequence, services) else { unreachable!("it is one") };
    for instance in &mut sync.instances {
        instance.meta = [("sequence".into(), sequence.to_string().as_str().into())].into();
    }
    Command::Sync(sync)
}

#[tokio::test]
async fn a_watcher_hears_of_what_it_does_not_hold_once_a_round_and_of_what_it_holds_at_once() {
    let registry = TestRegistry::start_quiet(1).await;
    let client = registry.client([0]);
    client.submit(push("a", 1, &["web", "db"])).await.unwrap();
    let before = client.submit(push("b", 1, &["cache", "web"])).await.unwrap();
    let held = scope(&["cache"], Some("c"));
    let mut idle = open(&client, held.clone()).await;
    idle.until_index(before.index).await;
    idle.heard.clear();
    let (begun, mut last) = (Instant::now(), 0);
    for sequence in 2..202 {
        last = client.submit(noted("a", sequence, &["web", "db"])).await.unwrap().index;
    }
    idle.until_index(last).await;
    let rounds = begun.elapsed().as_millis() / ROUND.as_millis() + 1;
    assert!((idle.heard.len() as u128) <= rounds, "{:?} in {rounds} rounds", idle.heard);
    assert_eq!(idle.snapshot, expected(&client, &held, last).await);
    // A barrier brings what was gathered, and comes after it.
    idle.heard.clear();
    let unrelated = client.submit(noted("a", 202, &["web", "db"])).await.unwrap();
    idle.asking.barrier(7, Consistency::Lease).unwrap();
    idle.until(|idle| idle.heard.contains(&"barrier 7".to_owned())).await;
    assert!(idle.snapshot.index() >= unrelated.index);
    assert_eq!(idle.snapshot, expected(&client, &held, idle.snapshot.index()).await);
    // By heartbeats alone these would take ten seconds.
    let begun = Instant::now();
    for sequence in 2..42 {
        let written = client.submit(noted("b", sequence, &["cache"])).await.unwrap();
        idle.until_index(written.index).await;
        assert!(idle.heard.contains(&format!("entry {}", written.index)));
    }
    assert!(begun.elapsed() < HEARTBEAT * 10, "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_ends_at_the_projection_whatever_is_written_asked_and_rescoped_in_whatever_order() {
    use rand::{Rng, SeedableRng};
    let mut random = rand::rngs::StdRng::seed_from_u64(7);
    let registry = TestRegistry::start_quiet(2).await;
    let client = registry.client([0]);
    let services = ["web", "db", "cache", "api"];
    let mut some = |most: usize| -> Vec<&str> {
        (0..random.random_range(0..=most)).map(|_| services[random.random_range(0..services.len())]).collect()
    };
    let mut watchers = Vec::new();
    for number in 0..6 {
        let node = ["a", "b", "c"].get(number).copied();
        let scope = scope(&some(2), node);
        let watching = open(&registry.client([number % 2]), scope.clone()).await;
        let asking = watching.asking.clone();
        let (end, ended) = tokio::sync::oneshot::channel::<(u64, Scope)>();
        let task = tokio::spawn(async move {
            let (mut watching, mut ended) = (watching, ended);
            let (last, scope) = loop {
                tokio::select! {
                    end = &mut ended => break end.unwrap(),
                    step = watching.step() => step.unwrap(),
                }
            };
            watching.until(|now| now.snapshot.index() >= last && *now.snapshot.scope() == scope).await;
            watching.snapshot
        });
        watchers.push((asking, scope, end, task));
    }
    let mut last = 0;
    for step in 1..200 {
        let node = ["a", "b", "c", "d"][step as usize % 4];
        last = client.submit(push(node, step, &some(4))).await.unwrap().index;
        let (asking, held, ..) = &mut watchers[step as usize % 6];
        let (joined, left) = (names(&some(2)), names(&some(2)));
        let Scope::Services { names, .. } = held else { unreachable!("made above") };
        if step % 3 == 0 {
            asking.remove_services(&left).unwrap();
            left.iter().for_each(|name| _ = names.remove(name));
            asking.add_services(&joined).unwrap();
            names.extend(joined);
        } else {
            asking.barrier(step, Consistency::Lease).unwrap();
        }
    }
    for (_, scope, end, task) in watchers {
        end.send((last, scope.clone())).unwrap();
        let snapshot = timeout(PATIENCE, task).await.expect("in time").unwrap();
        assert_eq!(snapshot, expected(&client, &scope, snapshot.index()).await);
    }
}

/// A push whose services have so many bytes of tags each, no two tags alike.
fn tagged(node: &str, sequence: u64, services: &[String], bytes: usize) -> Command {
    let services: Vec<&str> = services.iter().map(String::as_str).collect();
    let Command::Sync(mut sync) = push(node, sequence, &services) else { panic!("no push") };
    sync.complete = false;
    for instance in &mut sync.instances {
        instance.tags = (0..bytes / 500).map(|at| format!("{node}-{sequence}-{at:0>480}").as_str().into()).collect();
    }
    Command::Sync(sync)
}

#[tokio::test]
async fn the_tags_of_a_service_stay_within_what_every_message_and_file_takes() {
    let registry = TestRegistry::start_quiet(1).await;
    let client = registry.client([0]);
    let web = ["web".to_owned()];
    let pushes = (0..12).map(|at| client.submit(tagged(&format!("n{at}"), 1, &web, 450_000)));
    // At once: those under way count too.
    let outcomes = futures_util::future::join_all(pushes).await;
    let taken = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    assert_eq!(taken, 2, "{outcomes:?}");
    let refused = outcomes.into_iter().find_map(Result::err).unwrap().to_string();
    assert!(refused.contains("service web") && refused.contains("meta"), "{refused}");
    let scope = scope(&[], None);
    let mut replica = open(&client, scope.clone()).await;
    replica.until(|replica| replica.snapshot.service_count() == 1).await;
    assert_eq!(replica.snapshot, expected(&client, &scope, replica.snapshot.index()).await);
    // A service that is full takes all that adds no tag.
    client.submit(push("n20", 1, &["web"])).await.unwrap();
}

#[tokio::test]
async fn an_entry_whose_effect_is_larger_than_a_message_comes_in_rows() {
    let registry = TestRegistry::start_quiet(1).await;
    let client = registry.client([0]);
    // Services that stand on one node, each with many tags, in pushes that are legal one by one.
    let services: Vec<String> = (0..12).map(|at| format!("s{at}")).collect();
    for (at, service) in services.iter().enumerate() {
        let sequence = at as u64 + 1;
        client.submit(tagged("n1", sequence, std::slice::from_ref(service), 500_000)).await.unwrap();
    }
    let scope = scope(&[], None);
    let mut replica = open(&client, scope.clone()).await;
    replica.until(|replica| replica.snapshot.service_count() == services.len()).await;
    let Command::Sync(mut sync) = push("n1", 100, &[]) else { panic!("no push") };
    sync.complete = false;
    sync.node.meta.insert("rack".into(), "7".into());
    let written = client.submit(Command::Sync(sync)).await.unwrap();
    // The node's row moves the index of every service on it: 6 MB of Directory.
    replica.until_index(written.index).await;
    assert_eq!(replica.snapshot, expected(&client, &scope, written.index).await);
}

/// A member of one whose `web` has some MB of rows, and what it is made of.
async fn laden() -> (TestRegistry, Arc<Core>) {
    let made = OnceLock::new();
    let routes = |core: Arc<Core>| {
        made.set(core.clone()).ok();
        server::routes(core)
    };
    let registry = TestRegistry::start_as(1, Duration::from_secs(3_600), |_| (), routes).await;
    let client = registry.client([0]);
    for node in 0..40 {
        let Command::Sync(mut sync) = push(&format!("n{node}"), 1, &["web"]) else { panic!("no push") };
        // Some rows are larger than all that may be ready.
        let notes = if node % 8 == 0 { 300 } else { 30 };
        let notes = (0..notes).map(|at| (format!("note{at}").as_str().into(), "x".repeat(1_000).as_str().into()));
        sync.instances[0].meta = notes.collect();
        client.submit(Command::Sync(sync)).await.unwrap();
    }
    (registry, made.into_inner().unwrap())
}

/// A watcher that goes on asking for nothing more.
fn asks(asks: Vec<Asked>) -> impl futures_util::Stream<Item = Result<pb::WatchRequest, tonic::Status>> + Unpin + Send {
    stream::iter(asks.into_iter().map(|kind| Ok(pb::WatchRequest { kind: Some(kind) }))).chain(stream::pending())
}

fn hello(scope: &Scope) -> Asked {
    let scope = Some(scope.into());
    let (known_changes, known_events) = (crate::convert::KNOWN_CHANGES.to_vec(), crate::convert::KNOWN_EVENTS.to_vec());
    Asked::Hello(pb::Hello { scope, known_changes, known_events, ..Default::default() })
}

/// All that the watchers of these tests can be sent in rows: a load of everything, and a splice.
fn ways() -> [Vec<Asked>; 2] {
    let web = pb::ServiceNames { names: vec!["web".into()] };
    [vec![hello(&Scope::All)], vec![hello(&scope(&[], None)), Asked::AddServices(web)]]
}

/// The bytes of each event that is ready.
fn take_ready(ready: &mut Ready<pb::WatchEvent>) -> Vec<usize> {
    let next = || ready.next().now_or_never().flatten();
    std::iter::from_fn(next).map(|event| event.unwrap().encoded_len()).collect()
}

/// Takes what is ready after so many turns of its stream, again and again, until it was far more than may be ready at once.
async fn take_all(core: &Arc<Core>, asked: Vec<Asked>, turns: usize, look: impl Fn(&[usize])) {
    let (out, mut ready) = outbox();
    let mut following = pin!(unconstrained(follow(core.clone(), asks(asked), out)));
    let mut total = 0;
    for _ in 0..2_000 {
        for _ in 0..turns {
            assert!(following.as_mut().now_or_never().is_none(), "it ended");
        }
        let sizes = take_ready(&mut ready);
        look(&sizes);
        total += sizes.iter().sum::<usize>();
        if total > 8 * MAX_BYTES {
            return;
        }
    }
    panic!("only {total} bytes came");
}

#[tokio::test]
async fn for_one_who_does_not_read_a_few_pieces_are_made_however_much_it_lacks() {
    let (_registry, core) = laden().await;
    for asked in ways() {
        // More turns than there are pieces: whatever is not made after these waits for room.
        take_all(&core, asked, 200, |sizes| {
            let held: usize = sizes.iter().sum();
            assert!(held <= MAX_BYTES || sizes.len() == 1, "{held} bytes are ready in {} messages", sizes.len());
        })
        .await;
    }
}

#[tokio::test]
async fn others_have_their_turn_after_each_piece_also_where_the_reader_is_fast() {
    let (_registry, core) = laden().await;
    for asked in ways() {
        take_all(&core, asked, 1, |sizes| {
            let pieces = sizes.iter().filter(|size| **size > PIECE_BYTES / 2).count();
            assert!(pieces <= 1, "{pieces} pieces in one turn");
        })
        .await;
    }
}

#[tokio::test]
async fn one_who_makes_no_room_is_cut_off_and_keeps_neither_rows_nor_an_old_catalog() {
    let (registry, core) = laden().await;
    for (sequence, asked) in (2..).zip(ways()) {
        let (out, mut ready) = outbox();
        let mut following = pin!(follow(core.clone(), asks(asked), out));
        for _ in 0..200 {
            assert!((&mut following).now_or_never().is_none(), "it ended");
            tokio::task::yield_now().await;
        }
        let old = Arc::downgrade(&core.catalog.now());
        registry.client([0]).submit(push("n1", sequence, &["web"])).await.unwrap();
        assert!(old.upgrade().is_some(), "it has all rows");
        tokio::time::pause();
        let begun = tokio::time::Instant::now();
        following.await;
        assert!(begun.elapsed() <= STALL * 2, "{:?}", begun.elapsed());
        tokio::time::resume();
        assert!(old.upgrade().is_none(), "the old catalog is kept");
        let why = ready.next().await.unwrap().expect_err("what it did not take is kept");
        assert_eq!(why.code(), tonic::Code::ResourceExhausted, "{why}");
        assert!(ready.next().await.is_none());
    }
}
