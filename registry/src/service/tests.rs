//! Members on a log in memory, with real connections between them and to the client.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use muster_catalog::{
    Address, Entry, Name, Node, NodeSync, Origin, Port, Scope, Snapshot, SnapshotBuilder, SnapshotRow,
    Status as Health, Weights, Writer,
    port::{Consistency, Sink, SubmitError},
};
use muster_catalog::{Command, Instance, NODE_LIVENESS_CHECK};
use prost::Message;
use tokio::{net::TcpListener, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;

use super::*;
use crate::{
    Decision, agreement, autopilot,
    client::{Client, ClientConfig, HeldExpiry, Hello, WatchError, WatchEvent, WatchSender, WatchStream},
    leader,
    leases::LeaseConfig,
    log::memory::MemoryCluster,
    machine::CatalogMachine,
    proto::registry::registry_server,
    raft::{Ahead, plaintext},
    server,
};

/// Longer than anything here takes; a test that gets there has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct TestRegistry {
    pub(crate) cluster: Arc<MemoryCluster>,
    pub(crate) members: Vec<TestMember>,
}

pub(crate) struct TestMember {
    pub(crate) address: String,
    pub(crate) catalog: Catalog,
    /// Unchanged since the start as long as nothing was found.
    pub(crate) agreement: watch::Receiver<agreement::Agreement>,
    ahead: watch::Receiver<Option<Ahead>>,
    stop: CancellationToken,
    server: tokio::task::JoinHandle<()>,
}

impl TestRegistry {
    pub(crate) async fn start(members: usize) -> Self {
        Self::start_settled(members, Duration::from_secs(1)).await
    }

    /// One in which no lease ends by itself: all entries are the test's, however slow it is.
    pub(crate) async fn start_quiet(members: usize) -> Self {
        Self::start_settled(members, Duration::from_secs(3_600)).await
    }

    async fn start_settled(members: usize, ttl: Duration) -> Self {
        let registry = Self::start_with(members, ttl, |_| ()).await;
        // The last entry that the registry writes by itself: from here on indexes are the test's.
        for member in &registry.members {
            eventually(&member.catalog, |snapshot| snapshot.format() == muster_catalog::FORMAT).await;
        }
        registry
    }

    async fn start_with(members: usize, ttl: Duration, before: impl FnOnce(&MemoryCluster)) -> Self {
        Self::start_as(members, ttl, before, server::routes).await
    }

    pub(crate) async fn start_as(
        members: usize,
        ttl: Duration,
        before: impl FnOnce(&MemoryCluster),
        routes: impl Fn(Arc<Core>) -> Routes,
    ) -> Self {
        let cluster = Arc::new(MemoryCluster::default());
        let mut started = Vec::new();
        for _ in 0..members {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let (machine, catalog) = CatalogMachine::new();
            let log = cluster.join(address.clone(), machine);
            let stop = CancellationToken::new();
            let (core, queues) = Core::new(log, catalog.clone(), plaintext(), stop.clone());
            let leases = LeaseConfig { ttl, grace: Duration::from_millis(200), ..LeaseConfig::default() };
            tokio::spawn(leader::run(core.clone(), leases, queues.signs, queues.decisions, queues.held, stop.clone()));
            tokio::spawn(renewals::run(core.clone(), queues.pulses, stop.clone()));
            tokio::spawn(contact::run(core.clone(), queues.contact, stop.clone()));
            let (agreement, ahead) = (queues.agreement.subscribe(), core.ahead.subscribe());
            tokio::spawn(agreement::task::run(core.clone(), None, queues.agreement, stop.clone()));
            let piloting = autopilot::task::run(core.clone(), Default::default(), queues.autopilot, stop.clone());
            tokio::spawn(piloting);
            let serving = server::serve(routes(core), listener, 100, stop.clone());
            let server = tokio::spawn(async move { serving.await.unwrap() });
            started.push(TestMember { address, catalog, agreement, ahead, stop, server });
        }
        before(&cluster);
        cluster.elect(Some(1));
        let registry = Self { cluster, members: started };
        for member in &registry.members {
            eventually(&member.catalog, |snapshot| !snapshot.cluster().uuid.is_empty()).await;
        }
        registry
    }

    pub(crate) fn client(&self, members: impl IntoIterator<Item = usize>) -> Client {
        let members = members.into_iter().map(|at| self.members[at].address.clone());
        Client::new(ClientConfig::new(members.collect()))
    }

    /// As if the member's process had ended.
    async fn stop(&mut self, at: usize) {
        self.members[at].stop.cancel();
        (&mut self.members[at].server).await.unwrap();
    }
}

async fn eventually(catalog: &Catalog, ready: impl Fn(&Snapshot) -> bool) {
    let mut snapshots = catalog.snapshot.clone();
    timeout(PATIENCE, snapshots.wait_for(|snapshot| ready(snapshot))).await.expect("not in time").unwrap();
}

pub(crate) fn push(node: &str, sequence: u64, services: &[&str]) -> Command {
    let name = Name::lookup(node);
    let instance = |service: &&str| Instance {
        node: name.clone(),
        id: (*service).into(),
        service: Name::lookup(service),
        tags: Vec::new(),
        address: None,
        tagged_addresses: Default::default(),
        ports: vec![Port { name: "default".into(), number: 80 }],
        meta: Default::default(),
        weights: Weights::default(),
        locality: None,
        draining: false,
        maintenance: None,
        enable_tag_override: false,
        proxy: None,
        traffic: None,
        origin: Origin::Agent,
    };
    Command::Sync(NodeSync {
        writer: Writer { incarnation: 1, sequence },
        node: Node {
            name: name.clone(),
            id: format!("agent-{node}").into(),
            address: Address::parse("10.0.0.1").unwrap(),
            tagged_addresses: Default::default(),
            meta: Default::default(),
            locality: None,
            origin: Origin::Agent,
        },
        complete: true,
        instances: services.iter().map(instance).collect(),
        checks: Vec::new(),
        removed_instances: Vec::new(),
        removed_checks: Vec::new(),
    })
}

pub(crate) fn all() -> Hello {
    Hello { scope: Scope::All, resume: None, watcher: None, accept_new_cluster: false }
}

/// An agent's replica, as small as it can be.
pub(crate) struct Replica {
    pub(crate) snapshot: Snapshot,
    loading: Option<SnapshotBuilder>,
    pub(crate) asking: WatchSender,
    events: WatchStream,
    pub(crate) resumed: bool,
    pub(crate) heard: Vec<String>,
    /// Instances that came as rows of a load.
    pub(crate) loaded: usize,
}

impl Replica {
    pub(crate) async fn open(client: &Client, hello: Hello, snapshot: Snapshot) -> Self {
        let (asking, events) = client.watch(hello).await.unwrap();
        let (loading, resumed, heard) = (None, false, Vec::new());
        Self { snapshot, loading, asking, events, resumed, heard, loaded: 0 }
    }

    pub(crate) async fn step(&mut self) -> Result<(), WatchError> {
        let event = timeout(PATIENCE, futures_util::StreamExt::next(&mut self.events)).await.expect("nothing heard");
        match event.expect("the watch ended")? {
            WatchEvent::Hello { resumed, .. } => self.resumed = resumed,
            WatchEvent::Row(row) => {
                if matches!(row, SnapshotRow::Instance(_)) {
                    self.loaded += 1;
                }
                if matches!(row, SnapshotRow::Header(_)) {
                    self.loading = Some(SnapshotBuilder::new(self.snapshot.scope().clone()));
                }
                self.loading.as_mut().expect("rows start with the header").push(row);
            }
            WatchEvent::Loaded { index, sets_after } => {
                let builder = self.loading.take().unwrap();
                self.heard.push(format!("loaded after {sets_after:?}"));
                self.snapshot = match sets_after {
                    Some(after) => builder.finish_after(after, &self.snapshot).unwrap(),
                    None => builder.finish(),
                };
                assert_eq!(self.snapshot.index(), index);
            }
            WatchEvent::Splice(splice) => {
                assert_eq!(splice.index, self.snapshot.index(), "a splice out of its place");
                self.heard.push(format!("splice {:?} {:?}", splice.joined, splice.left));
                self.snapshot.splice(splice);
            }
            WatchEvent::Entry(entry) => {
                assert!(entry.index > self.snapshot.index(), "an entry came twice");
                self.heard.push(format!("entry {}", entry.index));
                self.snapshot.fold(&entry);
            }
            WatchEvent::Advance { index, at } => self.snapshot.advance(index, at),
            WatchEvent::Barrier { id, result } => {
                self.heard.push(format!("barrier {id}"));
                assert!(result.unwrap() <= self.snapshot.index(), "a barrier overtook its entries");
            }
        }
        Ok(())
    }

    pub(crate) async fn until(&mut self, ready: impl Fn(&Self) -> bool) {
        while !ready(self) {
            self.step().await.unwrap();
        }
    }

    pub(crate) async fn until_index(&mut self, index: u64) {
        self.until(|replica| replica.snapshot.index() >= index).await;
    }

    pub(crate) fn rows(&self) -> Vec<SnapshotRow> {
        self.snapshot.rows().collect()
    }
}

#[tokio::test]
async fn a_write_at_any_member_is_seen_by_a_watcher_at_any_other() {
    let registry = TestRegistry::start(3).await;
    let mut replica = Replica::open(&registry.client([2]), all(), Snapshot::default()).await;
    for (sequence, member) in [(1, 0), (2, 1), (3, 2)] {
        let services = ["web", "db", "cache"];
        let written =
            registry.client([member]).submit(push("a", sequence, &services[..sequence as usize])).await.unwrap();
        replica.until_index(written.index).await;
        assert_eq!(replica.snapshot.instance_count(), sequence as usize);
    }
    let refused = registry.client([1]).submit(push("no spaces", 1, &[])).await.unwrap_err();
    assert!(matches!(&refused, SubmitError::Refused(why) if why.contains("node.name")), "{refused}");
    let status = registry.client([1]).members().await.unwrap();
    assert_eq!(status.members.len(), 3);
    assert_eq!(status.members.iter().filter(|member| member.is_leader).count(), 1);
}

#[tokio::test]
async fn a_resumed_watch_ends_where_a_full_one_does_and_another_registry_is_refused() {
    let registry = TestRegistry::start(1).await;
    let client = registry.client([0]);
    let first = client.submit(push("a", 1, &["web"])).await.unwrap();
    let mut before = Replica::open(&client, all(), Snapshot::default()).await;
    before.until_index(first.index).await;
    let last = client.submit(push("a", 2, &["web", "db"])).await.unwrap();
    client.submit(push("b", 1, &["web"])).await.unwrap();

    let cluster = before.snapshot.cluster().clone();
    let hello = Hello { resume: Some((cluster.clone(), first.index)), ..all() };
    let mut resumed = Replica::open(&client, hello, before.snapshot.clone()).await;
    let mut full = Replica::open(&client, all(), Snapshot::default()).await;
    resumed.until_index(last.index + 1).await;
    full.until_index(last.index + 1).await;
    assert!(resumed.resumed && !full.resumed);
    assert_eq!(resumed.rows(), full.rows());

    // Who has seen a later incarnation is not sent back to an earlier one.
    let mut later = cluster.clone();
    later.incarnation += 1;
    let hello = Hello { resume: Some((later, 1)), ..all() };
    let mut refused = Replica::open(&client, hello, Snapshot::default()).await;
    assert!(matches!(refused.step().await, Err(WatchError::Call(why)) if why.to_string().contains("incarnation 2")));

    // One who has more than was ever committed saw entries that the registry lost.
    let hello = Hello { resume: Some((cluster.clone(), last.index + 100)), ..all() };
    let mut refused = Replica::open(&client, hello, Snapshot::default()).await;
    let Err(WatchError::Lost(why)) = refused.step().await else { panic!("what was lost is not missed") };
    assert!(why.contains(&format!("entry {}", last.index + 100)) && why.contains("restore"), "{why}");

    let mut other = cluster;
    other.uuid = "another".into();
    let hello = Hello { resume: Some((other.clone(), 1)), ..all() };
    let mut refused = Replica::open(&client, hello, Snapshot::default()).await;
    assert!(matches!(refused.step().await, Err(WatchError::OtherRegistry(why)) if why.contains("another")));
    let hello = Hello { resume: Some((other, 1)), accept_new_cluster: true, ..all() };
    let mut taken = Replica::open(&client, hello, Snapshot::default()).await;
    taken.until_index(last.index).await;
    assert!(!taken.resumed);
}

#[tokio::test]
async fn a_watcher_that_is_ahead_of_its_member_alone_has_lost_nothing() {
    let registry = TestRegistry::start_quiet(2).await;
    let mut before = Replica::open(&registry.client([0]), all(), Snapshot::default()).await;
    registry.cluster.lag(2, true);
    let written = registry.client([0]).submit(push("a", 1, &["web"])).await.unwrap();
    before.until_index(written.index).await;
    let hello = Hello { resume: Some((before.snapshot.cluster().clone(), written.index)), ..all() };
    let mut resumed = Replica::open(&registry.client([1]), hello, before.snapshot.clone()).await;
    resumed.step().await.unwrap();
    assert!(resumed.resumed);
    registry.cluster.lag(2, false);
    let next = registry.client([0]).submit(push("a", 2, &["db"])).await.unwrap();
    resumed.until_index(next.index).await;
    before.until_index(next.index).await;
    assert_eq!(resumed.rows(), before.rows());
}

#[tokio::test]
async fn a_member_that_takes_connections_and_is_silent_holds_up_no_call_for_long() {
    const LIMIT: Duration = Duration::from_millis(200);
    let registry = TestRegistry::start_quiet(1).await;
    registry.client([0]).submit(push("a", 1, &[])).await.unwrap();
    // Its backlog takes connections, as that of a process which stands still.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let members = vec![silent.local_addr().unwrap().to_string(), registry.members[0].address.clone()];
    let config = ClientConfig::new(members);
    let connect = || {
        let client = Client::new(config.clone());
        client.set_lease(3 * LIMIT);
        client
    };
    // Which one is tried first is chance: some of these begin with the silent one.
    for _ in 0..20 {
        let (client, node) = (connect(), Name::lookup("a"));
        let soon = async {
            for step in 0.. {
                let renewed = timeout(4 * LIMIT, client.renew(&node, "", 1)).await.expect("a renewal hangs");
                if renewed.is_ok() {
                    return;
                }
                assert!(step < 2, "the silent member is asked again and again");
            }
        };
        soon.await;
    }
    for _ in 0..8 {
        let client = connect();
        assert!(timeout(8 * LIMIT, client.members()).await.expect("it hangs").is_ok());
        let watched = connect();
        let opened = async { while watched.watch(all()).await.is_err() {} };
        timeout(8 * LIMIT, opened).await.expect("the silent member's watch hangs");
    }
}

#[tokio::test]
async fn a_barrier_comes_after_all_that_was_committed_before_it_was_asked() {
    let registry = TestRegistry::start(2).await;
    let leader = registry.client([0]);
    let mut replica = Replica::open(&registry.client([1]), all(), Snapshot::default()).await;
    replica.until(|replica| replica.snapshot.index() > 0).await;
    registry.cluster.lag(2, true);
    let written = leader.submit(push("a", 1, &["web"])).await.unwrap();
    for (id, consistency) in [(1, Consistency::Lease), (2, Consistency::Linearizable), (3, Consistency::Lease)] {
        replica.asking.barrier(id, consistency).unwrap();
    }
    replica.heard.clear();
    // The member is behind: it says that it lives, but answers no barrier.
    let index = replica.snapshot.index();
    for _ in 0..2 {
        replica.step().await.unwrap();
    }
    assert_eq!((replica.snapshot.index(), replica.heard.len()), (index, 0));
    registry.cluster.lag(2, false);
    replica.until(|replica| replica.heard.len() == 4).await;
    assert_eq!(
        replica.heard,
        [format!("entry {}", written.index), "barrier 1".into(), "barrier 2".into(), "barrier 3".into()]
    );
}

#[tokio::test]
async fn a_watcher_whose_place_is_gone_from_the_ring_gets_what_moved_and_goes_on() {
    let registry = TestRegistry::start_quiet(2).await;
    let leader = registry.client([0]);
    let first = leader.submit(push("a", 1, &["web"])).await.unwrap();
    let mut replica = Replica::open(&registry.client([1]), all(), Snapshot::default()).await;
    replica.until_index(first.index).await;
    registry.cluster.lag(2, true);
    leader.submit(push("a", 2, &["web", "db"])).await.unwrap();
    let last = leader.submit(push("b", 1, &["web"])).await.unwrap();
    registry.cluster.install(1, 2);
    replica.heard.clear();
    replica.until_index(last.index).await;
    assert_eq!(replica.heard, [format!("loaded after Some({})", first.index)], "rows, not entries");
    let mut full = Replica::open(&leader, all(), Snapshot::default()).await;
    full.until_index(last.index).await;
    assert_eq!(replica.rows(), full.rows());
    // And on it goes by entries.
    replica.heard.clear();
    let more = leader.submit(push("b", 2, &[])).await.unwrap();
    replica.until_index(more.index).await;
    assert_eq!(replica.heard, [format!("entry {}", more.index)]);
}

#[tokio::test]
async fn a_client_finds_another_member_and_rides_out_an_election() {
    let mut registry = TestRegistry::start(3).await;
    let client = registry.client([0, 1, 2]);
    client.submit(push("a", 1, &["web"])).await.unwrap();
    registry.cluster.elect(None);
    registry.stop(0).await;
    let (write, ()) = tokio::join!(client.submit(push("a", 2, &["web", "db"])), async {
        // The write is refused for want of a leader before there is one.
        tokio::task::yield_now().await;
        registry.cluster.elect(Some(2));
    });
    let index = write.unwrap().index;
    eventually(&registry.members[2].catalog, |snapshot| snapshot.index() >= index).await;
    let mut replica = Replica::open(&registry.client([2]), all(), Snapshot::default()).await;
    replica.until_index(index).await;
    assert_eq!(replica.snapshot.instance_count(), 2);
}

#[tokio::test]
async fn without_a_leader_a_write_is_surely_not_proposed() {
    let registry = TestRegistry::start(2).await;
    registry.cluster.elect(None);
    let members = registry.members.iter().map(|member| member.address.clone()).collect();
    let config = ClientConfig { write_deadline: Duration::from_millis(300), ..ClientConfig::new(members) };
    let error = Client::new(config).submit(push("a", 1, &[])).await.unwrap_err();
    assert!(matches!(error, SubmitError::Unavailable(_)), "{error}");
    let none = Client::new(ClientConfig { write_deadline: Duration::ZERO, ..ClientConfig::new(Vec::new()) });
    let error = none.submit(push("a", 1, &[])).await.unwrap_err();
    assert!(error.to_string().contains("registry.members"), "{error}");
}

fn encoded(command: &Command) -> Bytes {
    crate::proto::catalog::Command::from(command).encode_to_vec().into()
}

#[tokio::test]
async fn writes_in_one_message_have_an_outcome_each_at_any_member() {
    let registry = TestRegistry::start(2).await;
    for (at, member) in registry.members.iter().enumerate() {
        let mut client = peers::client(plaintext()(&member.address).unwrap());
        let node = |name: &str| encoded(&push(&format!("{name}-{at}"), 1, &["web"]));
        let bootstrap = encoded(&Command::SetFormat(9));
        let commands =
            vec![node("a"), node("no spaces"), Bytes::from_static(b"\xff\xff"), Bytes::new(), bootstrap, node("b")];
        let reply =
            client.write_batch(pb::WriteBatchRequest { commands, forwarded: false }).await.unwrap().into_inner();
        let outcomes: Vec<_> = reply.replies.into_iter().map(|reply| reply.outcome.unwrap()).collect();
        use pb::write_reply::Outcome::{Index, Refused};
        let [Index(first), Refused(name), Refused(_), Refused(_), Refused(internal), Index(last)] = &outcomes[..]
        else {
            panic!("{outcomes:?}");
        };
        assert!(name.contains("node.name") && internal.contains("only the registry"), "{name}, {internal}");
        assert!(first < last, "an entry for each");
        eventually(&member.catalog, |snapshot| snapshot.index() >= *last).await;
        assert_eq!(member.catalog.now().node_count(), 2 * (at + 1));
        assert_eq!(reply.leader, if at == 0 { "" } else { &registry.members[0].address });
    }
    let mut client = peers::client(plaintext()(&registry.members[0].address).unwrap());
    let commands = vec![Bytes::new(); write::MAX_BATCH + 1];
    let status = client.write_batch(pb::WriteBatchRequest { commands, forwarded: false }).await.unwrap_err();
    assert!(status.message().contains("send fewer"), "{status}");
}

async fn write_nodes(client: &Client, names: std::ops::Range<usize>) -> BTreeSet<u64> {
    let writes = names.map(|name| client.submit(push(&format!("node-{name}"), 1, &["web"])));
    futures_util::future::join_all(writes).await.into_iter().map(|written| written.unwrap().index).collect()
}

#[tokio::test]
async fn a_client_that_writes_much_goes_to_the_leader_itself_and_follows_it() {
    let mut registry = TestRegistry::start(3).await;
    let client = registry.client([2]);
    assert_eq!(write_nodes(&client, 0..100).await.len(), 100, "an index for each");
    let address = |registry: &TestRegistry, at: usize| registry.members[at].address.parse().unwrap();
    for leader in [0, 1] {
        registry.cluster.elect(Some(leader as u64 + 1));
        let moved = async {
            while client.writes_to().await != Some(address(&registry, leader)) {
                write_nodes(&client, 100..120).await;
            }
        };
        timeout(PATIENCE, moved).await.expect("it goes on through another member");
    }
    // The only member that it was told of is gone, the leader is not.
    registry.stop(2).await;
    let index = client.submit(push("node-0", 2, &["web", "db"])).await.unwrap().index;
    eventually(&registry.members[1].catalog, |snapshot| snapshot.index() >= index).await;
    assert_eq!(registry.members[1].catalog.now().node_count(), 120);
}

#[tokio::test]
async fn a_write_waits_at_its_member_for_a_leader() {
    let registry = TestRegistry::start(2).await;
    let mut client = peers::client(plaintext()(&registry.members[1].address).unwrap());
    registry.cluster.elect(None);
    let commands = vec![encoded(&push("a", 1, &[]))];
    let (reply, ()) = tokio::join!(client.write_batch(pb::WriteBatchRequest { commands, forwarded: false }), async {
        tokio::task::yield_now().await;
        registry.cluster.elect(Some(1));
    });
    let replies = reply.unwrap().into_inner().replies;
    assert!(matches!(replies[0].outcome, Some(pb::write_reply::Outcome::Index(_))), "{replies:?}");
}

/// A member of a version that knows neither batches nor checksums.
pub(crate) struct Earlier(pub(crate) RegistryService);

#[tonic::async_trait]
impl Registry for Earlier {
    type WatchStream = EventStream;
    type BackupStream = BackupStream;
    type ReadStream = Ready<pb::ReadReply>;

    async fn write(&self, request: Request<pb::WriteRequest>) -> Result<Response<pb::WriteReply>, Status> {
        self.0.write(request).await
    }

    async fn write_batch(&self, _: Request<pb::WriteBatchRequest>) -> Result<Response<pb::WriteBatchReply>, Status> {
        // As tonic answers a path that no service has.
        Err(Status::unimplemented(""))
    }

    async fn watch(&self, request: Request<Streaming<pb::WatchRequest>>) -> Result<Response<EventStream>, Status> {
        self.0.watch(request).await
    }

    async fn read(&self, request: Request<pb::ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        self.0.read(request).await
    }

    async fn renew(&self, request: Request<pb::RenewRequest>) -> Result<Response<pb::RenewReply>, Status> {
        self.0.renew(request).await
    }

    async fn renew_batch(
        &self,
        request: Request<pb::RenewBatchRequest>,
    ) -> Result<Response<pb::RenewBatchReply>, Status> {
        self.0.renew_batch(request).await
    }

    async fn read_index(&self, request: Request<pb::ReadIndexRequest>) -> Result<Response<pb::ReadIndexReply>, Status> {
        self.0.read_index(request).await
    }

    async fn members(&self, request: Request<pb::MembersRequest>) -> Result<Response<pb::MembersReply>, Status> {
        self.0.members(request).await
    }

    async fn change_members(
        &self,
        request: Request<pb::ChangeMembersRequest>,
    ) -> Result<Response<pb::ChangeMembersReply>, Status> {
        self.0.change_members(request).await
    }

    async fn checksum(&self, _: Request<pb::ChecksumRequest>) -> Result<Response<pb::ChecksumReply>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn backup(&self, request: Request<pb::BackupRequest>) -> Result<Response<BackupStream>, Status> {
        self.0.backup(request).await
    }

    async fn restore(
        &self,
        request: Request<Streaming<pb::RestoreRequest>>,
    ) -> Result<Response<pb::RestoreReply>, Status> {
        self.0.restore(request).await
    }

    async fn brakes(&self, request: Request<pb::BrakesRequest>) -> Result<Response<pb::BrakesReply>, Status> {
        self.0.brakes(request).await
    }

    async fn decide_brake(
        &self,
        request: Request<pb::DecideBrakeRequest>,
    ) -> Result<Response<pb::DecideBrakeReply>, Status> {
        self.0.decide_brake(request).await
    }
}

#[tokio::test]
async fn members_of_an_earlier_version_are_written_to_one_by_one() {
    let first = std::sync::atomic::AtomicBool::new(true);
    // The leader is of the earlier version, the follower of this one: one client writes at each.
    let registry = TestRegistry::start_as(
        2,
        Duration::from_secs(1),
        |_| (),
        |core| {
            if first.swap(false, Ordering::Relaxed) {
                Routes::new(registry_server::RegistryServer::new(Earlier(RegistryService(core))))
            } else {
                server::routes(core)
            }
        },
    )
    .await;
    for (member, names) in [(0, 0..50), (1, 50..100)] {
        assert_eq!(write_nodes(&registry.client([member]), names).await.len(), 50);
        let refused = registry.client([member]).submit(push("no spaces", 1, &[])).await.unwrap_err();
        assert!(matches!(refused, SubmitError::Refused(_)), "{refused}");
    }
    assert_eq!(registry.members[0].catalog.now().node_count(), 100);
}

#[tokio::test]
async fn a_member_without_a_leader_passes_off_no_old_catalog_as_the_present_one() {
    let registry = TestRegistry::start(1).await;
    let client = registry.client([0]);
    let mut replica = Replica::open(&client, all(), Snapshot::default()).await;
    replica.until(|replica| replica.snapshot.index() > 0).await;
    registry.cluster.elect(None);
    sent_away(&client, replica).await;
    registry.cluster.elect(Some(1));
    let_in(&client).await;
}

/// Waits until a watch is ended by its member, which takes no other one then.
pub(crate) async fn sent_away(client: &Client, mut replica: Replica) {
    let follow = async { while replica.step().await.is_ok() {} };
    timeout(PATIENCE, follow).await.expect("the watch goes on with an old catalog");
    let mut refused = Replica::open(client, all(), Snapshot::default()).await;
    assert!(refused.step().await.is_err(), "a watch began with an old catalog");
}

/// A watch, once the member takes one.
pub(crate) async fn let_in(client: &Client) -> Replica {
    loop {
        let mut replica = Replica::open(client, all(), Snapshot::default()).await;
        if replica.step().await.is_ok() {
            return replica;
        }
    }
}

#[tokio::test]
async fn a_member_that_is_left_behind_sends_its_watchers_away_until_it_has_caught_up() {
    let registry = TestRegistry::start(2).await;
    let client = registry.client([1]);
    let mut replica = Replica::open(&client, all(), Snapshot::default()).await;
    replica.until(|replica| replica.snapshot.index() > 0).await;
    registry.cluster.lag(2, true);
    // It hears its leader well enough.
    let index = client.submit(push("a", 1, &[])).await.unwrap().index;
    sent_away(&client, replica).await;
    registry.cluster.lag(2, false);
    let_in(&client).await.until(|replica| replica.snapshot.index() >= index).await;
}

#[tokio::test]
async fn a_member_whose_leader_lacks_what_it_has_sends_its_watchers_away_and_ends() {
    let registry = TestRegistry::start_quiet(3).await;
    let client = registry.client([1]);
    let first = client.submit(push("a", 1, &["web"])).await.unwrap();
    let last = client.submit(push("a", 2, &["db"])).await.unwrap();
    let mut replica = Replica::open(&client, all(), Snapshot::default()).await;
    replica.until_index(last.index).await;
    registry.cluster.go_back(first.index);
    // Nothing is written, and nobody connects anew.
    sent_away(&client, replica).await;
    assert_eq!(*registry.members[1].ahead.borrow(), Some(Ahead { committed: last.index }));
    assert_eq!(*registry.members[0].ahead.borrow(), None, "it leads");
}

fn liveness(snapshot: &Snapshot, node: &str) -> Option<Health> {
    Some(snapshot.find_node(&Name::lookup(node))?.liveness()?.value.status)
}

#[tokio::test]
async fn renewals_at_any_member_keep_a_node_alive_and_silence_loses_it() {
    let registry = TestRegistry::start(2).await;
    let client = registry.client([1]);
    let (node, catalog) = (Name::lookup("a"), &registry.members[0].catalog);
    assert!(!client.renew(&node, "agent-a", 1).await.unwrap().known, "it has not pushed");
    client.submit(push("a", 1, &[])).await.unwrap();
    for member in [0, 1] {
        let renewed = registry.client([member]).renew(&node, "agent-a", 1).await.unwrap();
        assert_eq!((renewed.known, renewed.lease), (true, Some(Duration::from_secs(1))), "at {member}");
    }
    assert!(!client.renew(&node, "agent-b", 1).await.unwrap().known, "another agent of that name");
    let index = catalog.now().index();
    let begun = tokio::time::Instant::now();
    while begun.elapsed() < Duration::from_millis(1500) {
        assert!(client.renew(&node, "agent-a", 1).await.unwrap().known);
    }
    assert_eq!(catalog.now().index(), index, "renewals are not written");
    eventually(catalog, |snapshot| liveness(snapshot, "a") == Some(Health::Critical)).await;
    assert!(client.renew(&node, "agent-a", 1).await.unwrap().known);
    eventually(catalog, |snapshot| liveness(snapshot, "a") == Some(Health::Passing)).await;
    assert_eq!(NODE_LIVENESS_CHECK, "serfHealth");
}

#[tokio::test]
async fn a_broken_watch_loses_its_node_within_the_grace_and_another_one_saves_it() {
    let registry = TestRegistry::start(2).await;
    let client = registry.client([1]);
    client.submit(push("a", 1, &[])).await.unwrap();
    let hello = Hello { watcher: Some((Name::lookup("a"), 1)), ..all() };
    let catalog = &registry.members[0].catalog;
    let replica = Replica::open(&client, hello.clone(), Snapshot::default()).await;
    drop(replica);
    let broke = tokio::time::Instant::now();
    eventually(catalog, |snapshot| liveness(snapshot, "a") == Some(Health::Critical)).await;
    assert!(broke.elapsed() < Duration::from_millis(900), "it took {:?}", broke.elapsed());
    let _replica = Replica::open(&client, hello, Snapshot::default()).await;
    eventually(catalog, |snapshot| liveness(snapshot, "a") == Some(Health::Passing)).await;
}

#[tokio::test]
async fn a_watch_that_ends_for_a_restart_leaves_the_lease_as_it_is() {
    let registry = TestRegistry::start(1).await;
    let client = registry.client([0]);
    client.submit(push("a", 1, &[])).await.unwrap();
    client.submit(push("b", 1, &[])).await.unwrap();
    let catalog = &registry.members[0].catalog;
    let watch = |node| client.watch(Hello { watcher: Some((Name::lookup(node), 1)), ..all() });
    let (sender, mut events) = watch("a").await.unwrap();
    let other = watch("b").await.unwrap();
    sender.restart().unwrap();
    while futures_util::StreamExt::next(&mut events).await.is_some() {}
    drop((sender, events, other));
    // What broke after it is noticed, and it is not.
    eventually(catalog, |snapshot| liveness(snapshot, "b") == Some(Health::Critical)).await;
    assert_eq!(liveness(&catalog.snapshot.borrow(), "a"), Some(Health::Passing));
    eventually(catalog, |snapshot| liveness(snapshot, "a") == Some(Health::Critical)).await;
}

#[tokio::test]
async fn an_entry_is_told_apart_by_the_kinds_that_the_watcher_knows() {
    let registry = TestRegistry::start(1).await;
    let mut raw = peers::client(plaintext()(&registry.members[0].address).unwrap());
    let hello = pb::Hello {
        scope: Some(pb::Scope { all: true, ..Default::default() }),
        // Nodes, but neither instances nor checks.
        known_changes: vec![4, 5],
        ..Default::default()
    };
    let hello = pb::WatchRequest { kind: Some(pb::watch_request::Kind::Hello(hello)) };
    let (asking, asked) = mpsc::channel(1);
    asking.send(hello).await.unwrap();
    let mut events = raw.watch(ReceiverStream::new(asked)).await.unwrap().into_inner();
    let written = registry.client([0]).submit(push("a", 1, &["web"])).await.unwrap();
    loop {
        let event = events.message().await.unwrap().unwrap();
        if let Some(pb::watch_event::Kind::Entry(entry)) = event.kind {
            let entry = Entry::try_from(crate::proto::catalog::Entry::decode(entry).unwrap()).unwrap();
            assert_eq!(entry.index, written.index);
            assert!(matches!(entry.changes.as_slice(), [muster_catalog::Change::PutNode(_)]));
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_format_rises_once_every_member_knows_it_and_the_leader_alone_tells_of_health() {
    // The others know more; one that does not holds the format back.
    const PRESENT: u32 = muster_catalog::FORMAT;
    let newest = PRESENT + 1;
    let registry = TestRegistry::start_with(3, Duration::from_secs(1), |cluster| {
        cluster.set_build(1, newest);
        cluster.set_build(2, newest);
    })
    .await;
    let client = registry.client([1]);
    let own = client.members().await.unwrap();
    assert!(own.failure_tolerance.is_none() && own.health.is_empty(), "a follower made it up: {own:?}");
    let told = timeout(PATIENCE, async {
        loop {
            let told = client.members_by_leader().await.unwrap();
            let all = told.health.values().filter(|health| health.format > 0).count() == 3;
            if all && told.format >= PRESENT {
                return told;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let told = told.await.unwrap();
    assert_eq!((told.answered_by, told.failure_tolerance, told.format), (1, Some(1), PRESENT));
    assert_eq!(told.health[&3].format, PRESENT);
    assert!(told.health.values().all(|health| health.healthy && health.silent.is_some()), "{told:?}");

    registry.cluster.set_build(3, newest);
    for member in &registry.members {
        eventually(&member.catalog, |snapshot| snapshot.format() == newest).await;
    }
    // A change goes to the leader, and what it says comes back.
    let refused = client.change_members(crate::raft::MemberChange::Promote("x".into())).await.unwrap_err();
    assert_eq!(refused, SubmitError::Refused("member 1 keeps the members of its test".into()));
}

/// Twelve nodes live and fall silent together; returns what is held, as the last member tells it.
async fn hold_twelve(registry: &TestRegistry) -> HeldExpiry {
    let client = registry.client([1]);
    let nodes: Vec<Name> = (0..12).map(|node| Name::lookup(&format!("n{node}"))).collect();
    for node in &nodes {
        client.submit(push(node.as_str(), 1, &["web"])).await.unwrap();
    }
    // All at one time, and until all live: on a busy machine some are lost before the last one is there.
    let live = async {
        while !{
            let renewals = nodes.iter().map(|node| client.renew(node, "", 1));
            futures_util::future::try_join_all(renewals).await.unwrap();
            lost(&registry.members[0].catalog.now()) == 0
        } {}
        loop {
            match registry.client([2]).held_expiry().await.unwrap() {
                Some(held) if held.count == 12 => return held,
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    timeout(PATIENCE, live).await.expect("nothing is held")
}

fn lost(snapshot: &Snapshot) -> usize {
    let lost = |entry: &&Arc<muster_catalog::NodeEntry>| {
        entry.liveness().is_some_and(|check| check.value.status == Health::Critical)
    };
    snapshot.nodes().filter(lost).count()
}

#[tokio::test]
async fn a_mass_expiry_is_explained_and_decided_on_at_any_member() {
    let registry = TestRegistry::start(3).await;
    let held = hold_twelve(&registry).await;
    assert!(held.together >= 10 && held.living >= 12 && (held.percent, held.least) == (30, 10), "{held:?}");
    assert!(held.remaining > Duration::ZERO && held.remaining <= Duration::from_secs(30), "{held:?}");
    assert_eq!(held.nodes.iter().map(|node| node.name.as_str()).filter(|name| name.starts_with('n')).count(), 12);
    assert!(held.nodes.iter().all(|node| !node.member.is_empty()), "each was heard by a member: {held:?}");
    assert_eq!(lost(&registry.members[0].catalog.now()), 0, "nobody knows yet");

    let stale = registry.client([2]).decide_brake("expiry-0-1", Decision::Commit).await.unwrap_err();
    assert!(matches!(&stale, SubmitError::Refused(why) if why.contains("muster brakes")), "{stale:?}");
    assert_eq!(registry.client([2]).decide_brake(&held.id, Decision::Commit).await.unwrap(), 12);
    eventually(&registry.members[2].catalog, |snapshot| lost(snapshot) == 12).await;
    let stale = registry.client([0]).decide_brake(&held.id, Decision::Release).await.unwrap_err();
    assert!(matches!(&stale, SubmitError::Refused(why) if why.contains("nothing is held")), "{stale:?}");
    assert_eq!(registry.client([1]).held_expiry().await.unwrap(), None);
}

#[tokio::test]
async fn a_released_mass_expiry_loses_nobody_and_another_leader_knows_nothing_of_the_old_one() {
    let registry = TestRegistry::start(3).await;
    let held = hold_twelve(&registry).await;
    assert_eq!(registry.client([1]).decide_brake(&held.id, Decision::Release).await.unwrap(), 12);
    assert_eq!(lost(&registry.members[0].catalog.now()), 0);
    let again = hold_twelve(&registry).await;
    assert_ne!(again.id, held.id);
    registry.cluster.elect(Some(2));
    let stale = registry.client([0]).decide_brake(&again.id, Decision::Commit).await.unwrap_err();
    assert!(matches!(stale, SubmitError::Refused(_)), "{stale:?}");
    assert_eq!(lost(&registry.members[0].catalog.now()), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_at_any_member_is_whole_and_a_restore_reaches_every_watcher() {
    let registry = TestRegistry::start(2).await;
    let client = registry.client([1]);
    for (number, node) in ["a", "b", "c"].into_iter().enumerate() {
        client.submit(push(node, 1, &["web", "db"][..1 + number % 2])).await.unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("catalog.backup");
    // The member lags, and is waited for.
    registry.cluster.lag(2, true);
    let last = client.submit(push("d", 1, &["web"])).await.unwrap();
    let taking = {
        let (client, path) = (client.clone(), path.clone());
        tokio::spawn(async move { client.backup(&path, false).await })
    };
    registry.cluster.lag(2, false);
    let backup = timeout(PATIENCE, taking).await.unwrap().unwrap().unwrap();
    assert!(backup.snapshot.index() >= last.index);
    assert_eq!(
        (backup.snapshot.node_count(), backup.header.nodes, backup.header.taken_by.as_str()),
        (4, 4, "member-2")
    );

    for member in &registry.members {
        eventually(&member.catalog, |snapshot| snapshot.format() == muster_catalog::FORMAT).await;
    }
    let mut watcher = Replica::open(&client, all(), Snapshot::default()).await;
    client.submit(push("e", 1, &["late"])).await.unwrap();
    watcher.until(|replica| replica.snapshot.node_count() == 5).await;
    let index = timeout(PATIENCE, client.restore(&backup)).await.unwrap().unwrap();
    watcher.until_index(index).await;
    assert_eq!((watcher.snapshot.node_count(), watcher.snapshot.cluster().incarnation), (4, 2));
    for member in &registry.members {
        // The order of writes is the registry's own, and never watched.
        let rows = member.catalog.now();
        let rows = rows.rows().filter(|row| !matches!(row, SnapshotRow::Writer { .. }));
        assert_eq!(rows.collect::<Vec<_>>(), watcher.rows());
    }
    // Writes go on from there.
    let written = client.submit(push("a", 2, &["new"])).await.unwrap();
    watcher.until_index(written.index).await;
    let sums = registry.members.iter().map(|member| member.catalog.sums.at(written.index));
    let sums: BTreeSet<_> = sums.collect();
    assert!(sums.len() == 1 && !sums.contains(&None), "{sums:?}");
}
