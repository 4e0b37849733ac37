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
    followed: Snapshot,
    table: LeaseTable,
    now: Instant,
}

impl World {
    fn new(nodes: usize) -> Self {
        let mut snapshot = Snapshot::default();
        (0..nodes).for_each(|number| push(&mut snapshot, number, 1));
        let now = Instant::now();
        let table = LeaseTable::new(LeaseConfig::default(), 7, now, &snapshot);
        Self { followed: snapshot.clone(), snapshot, table, now }
    }

    /// Ticks for so long, renewing the nodes of `alive`; commits all verdicts and returns those of loss and return.
    fn run(&mut self, time: Duration, alive: impl Fn(usize) -> bool) -> (usize, usize) {
        let (end, mut counts) = (self.now + time, (0, 0));
        while self.now < end {
            self.now += LeaseTable::tick_interval(&self.table.config);
            for number in (0..self.table.len()).filter(|number| alive(*number)) {
                self.table.renew(self.now, &name(number), 1, 0, 0);
            }
            let verdicts = self.table.tick(self.now);
            counts = (counts.0 + verdicts.lost.len(), counts.1 + verdicts.returned.len());
            commit(&mut self.snapshot, Command::Liveness { nodes: verdicts.lost, status: Status::Critical });
            commit(&mut self.snapshot, Command::Liveness { nodes: verdicts.returned, status: Status::Passing });
            self.follow();
        }
        counts
    }
}

impl World {
    fn follow(&mut self) {
        let old = std::mem::replace(&mut self.followed, self.snapshot.clone());
        self.table.follow(self.now, &old, &self.snapshot);
    }

    fn held(&self) -> usize {
        self.table.hold().map_or(0, |hold| hold.nodes.len())
    }

    fn held_id(&self) -> String {
        self.table.hold().expect("nothing is held").id.clone()
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
    world.table.suspect(world.now, &name(0), 1, 0, 0);
    world.table.suspect(world.now, &name(1), 1, 0, 0);
    assert!(world.table.renew(world.now, &name(1), 1, 0, 0));
    assert_eq!(world.run(GRACE - TICK, |_| false), (0, 0));
    assert_eq!(world.run(TICK, |_| false), (1, 0));
    assert!(world.table.leases[&name(0)].lost);
}

#[test]
fn a_suspicion_about_an_older_stream_or_start_says_nothing() {
    let mut world = World::new(1);
    assert!(world.table.renew(world.now, &name(0), 1, 7, 0));
    for (incarnation, stream) in [(1, 6), (2, 7), (0, 7)] {
        world.table.suspect(world.now, &name(0), incarnation, stream, 0);
    }
    assert_eq!(world.run(GRACE * 2, |_| false), (0, 0));
    world.table.suspect(world.now, &name(0), 1, 7, 0);
    assert_eq!(world.run(GRACE, |_| false), (1, 0));
}

#[test]
fn only_the_start_that_pushed_is_known() {
    let mut world = World::new(1);
    let now = world.now;
    assert!(!world.table.renew(now, &name(5), 1, 0, 0), "a node that the catalog does not have");
    assert!(!world.table.renew(now, &name(0), 2, 0, 0), "a start that has not pushed yet");
    push(&mut world.snapshot, 0, 2);
    world.follow();
    assert!(world.table.renew(now, &name(0), 2, 0, 0));
    assert!(!world.table.renew(now, &name(0), 1, 0, 0), "a start that a newer one followed");
    commit(&mut world.snapshot, Command::Leave { node: name(0), writer: Writer { incarnation: 2, sequence: 2 } });
    world.follow();
    assert_eq!(world.table.len(), 0);
}

#[test]
fn a_late_clock_and_an_election_take_nothing_from_anybody() {
    let mut world = World::new(3);
    world.run(TTL / 2, |_| false);
    // The leader did not run for a minute.
    world.now += Duration::from_secs(60);
    assert_eq!(world.run(TTL / 2 - TICK * 2, |_| false), (0, 0));
    world.table = LeaseTable::new(LeaseConfig::default(), 7, world.now, &world.snapshot);
    assert_eq!(world.run(TTL - TICK, |_| false), (0, 0));
    assert_eq!(world.run(TICK, |_| false), (3, 0));
    // A node that the former leader lost stays lost until it is heard.
    world.table = LeaseTable::new(LeaseConfig::default(), 7, world.now, &world.snapshot);
    assert_eq!(world.run(TTL * 2, |number| number == 0), (0, 1));
}

#[test]
fn a_mass_expiry_is_held_shown_and_then_committed() {
    let mut world = World::new(40);
    let dead = |number: usize| number >= 15;
    assert_eq!(world.run(TTL + TICK, |number| !dead(number)), (0, 0));
    assert_eq!(world.held(), 25);
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

/// A world of forty of which those from 15 on fall silent and are held.
fn held_world() -> World {
    let mut world = World::new(40);
    assert_eq!(world.run(TTL + TICK, |number| number < 15), (0, 0));
    assert_eq!(world.held(), 25);
    world
}

#[test]
fn a_committed_hold_lets_its_losses_through_and_holds_back_the_next_ones() {
    let mut world = held_world();
    let id = world.held_id();
    assert_eq!((world.table.hold().unwrap().together, world.table.hold().unwrap().living), (25, 40));
    assert_eq!(world.table.decide(world.now, "expiry-7-0", Decision::Commit), None, "a stale id does nothing");
    assert_eq!(world.held(), 25);
    assert_eq!(world.table.decide(world.now, &id, Decision::Commit), Some(25));
    assert_eq!(world.table.decide(world.now, &id, Decision::Commit), None, "once is enough");
    assert_eq!(world.run(TICK, |number| number < 15), (25, 0));
    // Twelve of the fifteen that are left: a new event, which nobody has decided on.
    assert_eq!(world.run(TTL + TICK, |number| number < 3), (0, 0));
    assert_eq!(world.held(), 12);
    assert_ne!(world.held_id(), id);
    assert_eq!(world.table.decide(world.now, &id, Decision::Commit), None);
}

#[test]
fn a_released_hold_gives_a_full_lease_to_those_that_are_silent_still() {
    let mut world = held_world();
    let id = world.held_id();
    // Five come back by themselves.
    assert_eq!(world.run(TICK, |number| number < 20), (0, 0));
    assert_eq!(world.table.decide(world.now, &id, Decision::Release), Some(20));
    assert_eq!(world.held(), 0);
    assert_eq!(world.run(TTL - TICK, |number| number < 20), (0, 0));
    // Silent for another lease: held again, under another id.
    assert_eq!(world.run(TICK * 2, |number| number < 20), (0, 0));
    assert_eq!(world.held(), 20);
    assert_ne!(world.held_id(), id);
}

#[test]
fn a_hold_does_not_end_because_some_came_back_and_takes_in_those_that_follow() {
    let mut world = held_world();
    let (id, until) = (world.held_id(), world.table.hold().unwrap().until);
    // Of 25 silent nodes 20 come back, and one more goes: too few by themselves.
    assert_eq!(world.run(TTL + TICK, |number| (1..35).contains(&number)), (0, 0));
    assert_eq!((world.held_id(), world.held(), world.table.hold().unwrap().until), (id, 6, until));
    assert_eq!(world.run(TICK, |_| true), (0, 0));
    assert_eq!(world.held(), 0);
    // With nothing held, a single loss is a loss.
    assert_eq!(world.run(TTL + TICK, |number| number != 3), (1, 0));
}

#[test]
fn losses_that_trickle_in_within_the_window_count_together() {
    let mut world = World::new(40);
    assert_eq!(world.run(TTL + TICK, |number| number >= 12), (12, 0));
    assert_eq!(world.run(TTL + TICK, |number| number >= 17), (0, 0), "twelve were lost a moment ago");
    assert_eq!((world.held(), world.table.hold().unwrap().together), (5, 17));
    // A leader that was late takes none of the time that is left.
    let until = world.table.hold().unwrap().until;
    world.now += Duration::from_secs(60);
    world.table.tick(world.now);
    assert!(world.table.hold().is_none_or(|hold| hold.until >= until + Duration::from_secs(59)));
}
