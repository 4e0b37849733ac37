use muster_catalog::{Address, Command, Entry, Node, NodeSync, Origin, Proposal, Timestamp, Writer, decide};

use super::*;

const TTL: Duration = Duration::from_secs(10);
const GRACE: Duration = Duration::from_secs(1);

fn commit(snapshot: &mut Snapshot, command: Command) {
    let (index, at) = (snapshot.index() + 1, Timestamp(0));
    let changes = decide(snapshot, &Proposal { at, command }).unwrap();
    snapshot.fold(&Entry { index, at, changes });
}

fn name(number: usize) -> Name {
    Name::lookup(&format!("node-{number}"))
}

fn push(snapshot: &mut Snapshot, number: usize, incarnation: u64) {
    let node = Node {
        name: name(number),
        id: format!("agent-{number}").into(),
        address: Address::parse("10.0.0.1").unwrap(),
        tagged_addresses: Default::default(),
        meta: Default::default(),
        locality: None,
        origin: Origin::Agent,
    };
    let writer = Writer { incarnation, sequence: 1 };
    let (instances, checks, removed_instances, removed_checks) = Default::default();
    let sync = NodeSync { writer, node, complete: true, instances, checks, removed_instances, removed_checks };
    commit(snapshot, Command::Sync(sync));
}

/// A table and its catalog, with a clock that ticks as the leader does.
struct World {
    snapshot: Snapshot,
    table: LeaseTable,
    now: Instant,
}

impl World {
    fn new(nodes: usize) -> Self {
        let mut snapshot = Snapshot::default();
        (0..nodes).for_each(|number| push(&mut snapshot, number, 1));
        let now = Instant::now();
        let table = LeaseTable::new(LeaseConfig::default(), now, &snapshot);
        Self { snapshot, table, now }
    }

    /// Ticks for so long, renewing the nodes of `alive`; commits all verdicts and returns those of loss and return.
    fn run(&mut self, time: Duration, alive: impl Fn(usize) -> bool) -> (usize, usize) {
        let (end, mut counts) = (self.now + time, (0, 0));
        while self.now < end {
            self.now += LeaseTable::tick_interval(&self.table.config);
            for number in (0..self.table.len()).filter(|number| alive(*number)) {
                self.table.renew(self.now, &name(number), 1, 0);
            }
            let verdicts = self.table.tick(self.now);
            counts = (counts.0 + verdicts.lost.len(), counts.1 + verdicts.returned.len());
            self.table.committed(self.now, verdicts.lost.len());
            commit(&mut self.snapshot, Command::Liveness { nodes: verdicts.lost, status: Status::Critical });
            commit(&mut self.snapshot, Command::Liveness { nodes: verdicts.returned, status: Status::Passing });
            self.table.reconcile(self.now, &self.snapshot);
        }
        counts
    }
}

const TICK: Duration = Duration::from_millis(250);

#[test]
fn a_silent_node_is_lost_once_after_its_term_and_returns_once_when_heard() {
    let mut world = World::new(3);
    assert_eq!(world.run(TTL - TICK, |number| number != 1), (0, 0));
    assert_eq!(world.run(TICK * 2, |number| number != 1), (1, 0));
    assert_eq!(world.run(TTL, |number| number != 1), (0, 0));
    let liveness = world.snapshot.find_node(&name(1)).unwrap().liveness().unwrap().value.status;
    assert_eq!(liveness, Status::Critical);
    assert_eq!(world.run(TICK * 2, |_| true), (0, 1));
    assert_eq!(world.run(TTL, |_| true), (0, 0));
}

#[test]
fn a_broken_stream_leaves_the_grace_and_a_renewal_ends_the_suspicion() {
    let mut world = World::new(2);
    world.table.suspect(world.now, &name(0), 1, 0);
    world.table.suspect(world.now, &name(1), 1, 0);
    assert!(world.table.renew(world.now, &name(1), 1, 0));
    assert_eq!(world.run(GRACE - TICK, |_| false), (0, 0));
    assert_eq!(world.run(TICK, |_| false), (1, 0));
    assert!(world.table.leases[&name(0)].lost);
}

#[test]
fn a_suspicion_about_an_older_stream_or_start_says_nothing() {
    let mut world = World::new(1);
    assert!(world.table.renew(world.now, &name(0), 1, 7));
    for (incarnation, stream) in [(1, 6), (2, 7), (0, 7)] {
        world.table.suspect(world.now, &name(0), incarnation, stream);
    }
    assert_eq!(world.run(GRACE * 2, |_| false), (0, 0));
    world.table.suspect(world.now, &name(0), 1, 7);
    assert_eq!(world.run(GRACE, |_| false), (1, 0));
}

#[test]
fn only_the_start_that_pushed_is_known() {
    let mut world = World::new(1);
    let now = world.now;
    assert!(!world.table.renew(now, &name(5), 1, 0), "a node that the catalog does not have");
    assert!(!world.table.renew(now, &name(0), 2, 0), "a start that has not pushed yet");
    push(&mut world.snapshot, 0, 2);
    world.table.reconcile(now, &world.snapshot);
    assert!(world.table.renew(now, &name(0), 2, 0));
    assert!(!world.table.renew(now, &name(0), 1, 0), "a start that a newer one followed");
    commit(&mut world.snapshot, Command::Leave { node: name(0), writer: Writer { incarnation: 2, sequence: 2 } });
    world.table.reconcile(now, &world.snapshot);
    assert_eq!(world.table.len(), 0);
}

#[test]
fn a_late_clock_and_an_election_take_nothing_from_anybody() {
    let mut world = World::new(3);
    world.run(TTL / 2, |_| false);
    // The leader did not run for a minute.
    world.now += Duration::from_secs(60);
    assert_eq!(world.run(TTL / 2 - TICK * 2, |_| false), (0, 0));
    world.table = LeaseTable::new(LeaseConfig::default(), world.now, &world.snapshot);
    assert_eq!(world.run(TTL - TICK, |_| false), (0, 0));
    assert_eq!(world.run(TICK, |_| false), (3, 0));
    // A node that the former leader lost stays lost until it is heard.
    world.table = LeaseTable::new(LeaseConfig::default(), world.now, &world.snapshot);
    assert_eq!(world.run(TTL * 2, |number| number == 0), (0, 1));
}

#[test]
fn a_mass_expiry_is_held_shown_and_then_committed() {
    let mut world = World::new(40);
    let dead = |number: usize| number >= 15;
    assert_eq!(world.run(TTL + TICK, |number| !dead(number)), (0, 0));
    assert_eq!(world.table.tick(world.now).held, 25);
    assert_eq!(world.run(Duration::from_secs(29), |number| !dead(number)), (0, 0));
    assert_eq!(world.run(Duration::from_secs(2), |number| !dead(number)), (25, 0));

    // Those that come back in time were never lost.
    let mut world = World::new(40);
    assert_eq!(world.run(TTL + Duration::from_secs(5), |number| number < 15), (0, 0));
    assert_eq!(world.run(TTL * 6, |_| true), (0, 0));

    // A third of many, or all of a few, is no mass expiry.
    let mut world = World::new(40);
    assert_eq!(world.run(TTL + TICK, |number| number >= 12), (12, 0));
    let mut world = World::new(9);
    assert_eq!(world.run(TTL + TICK, |_| false), (9, 0));
}
