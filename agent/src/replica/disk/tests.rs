use muster_catalog::{
    Address, Change, ClusterId, Entry, Instance, InstanceId, Name, Node, Origin, Port, Scope, Weights,
};

use super::*;

/// A replica that lives on a disk of its own.
struct World {
    folder: tempfile::TempDir,
    disk: Disk,
    working: Snapshot,
    events: Vec<ReplicaEvent>,
    clock: u64,
}

fn node(name: &str) -> Change {
    let node = Node {
        name: Name::lookup(name),
        id: format!("agent-{name}").into(),
        address: Address::parse("10.0.0.1").unwrap(),
        tagged_addresses: Default::default(),
        meta: Default::default(),
        locality: None,
        origin: Origin::Agent,
    };
    Change::PutNode(node.into())
}

fn instance(id: &str, note: &str) -> Change {
    let instance = Instance {
        node: Name::lookup("a"),
        id: InstanceId::from(id),
        service: Name::lookup("web"),
        tags: Vec::new(),
        address: None,
        tagged_addresses: Default::default(),
        ports: vec![Port { name: "default".into(), number: 80 }],
        meta: [("note".into(), note.into())].into(),
        weights: Weights::default(),
        locality: None,
        draining: false,
        maintenance: None,
        enable_tag_override: false,
        proxy: None,
        traffic: None,
        origin: Origin::Agent,
    };
    Change::PutInstance(instance.into())
}

impl World {
    /// With so many instances.
    fn new(instances: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (disk, kept) = Disk::load(&folder.path().join("replica")).unwrap();
        assert!(kept.is_none());
        let mut world = Self { folder, disk, working: Snapshot::new(Scope::All), events: Vec::new(), clock: 100 };
        let cluster = ClusterId { uuid: "ours".into(), incarnation: 1 };
        world.fold(vec![Change::SetCluster(cluster), node("a")]);
        world.fold((0..instances).map(|at| instance(&format!("web-{at}"), "begun")).collect());
        world
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("replica")
    }

    fn fold(&mut self, changes: Vec<Change>) {
        let entry = Entry { index: self.working.index() + 1, at: Timestamp(self.working.index() + 1), changes };
        self.working.fold(&entry);
        self.events.push(ReplicaEvent::Entry(entry));
    }

    /// Returns what it cost: the bytes of the file, where that was written anew.
    fn save(&mut self, replaced: bool) -> Option<u64> {
        self.clock += 1;
        let events = std::mem::take(&mut self.events);
        let events = (!replaced).then_some(events);
        self.disk.save(&Unsaved { snapshot: self.working.clone(), events, since: Timestamp(self.clock) }).unwrap()
    }

    fn restart(&mut self) -> Option<(Snapshot, u64)> {
        let (disk, kept) = Disk::load(&self.path()).unwrap();
        self.disk = disk;
        kept.map(|(snapshot, since)| (snapshot, since.0))
    }

    fn journal_bytes(&self) -> u64 {
        fs::metadata(self.disk.journal_path()).map_or(0, |journal| journal.len())
    }
}

#[test]
fn little_is_written_when_little_changed_and_a_restart_has_it_all() {
    let mut world = World::new(2_000);
    let file = world.save(false).expect("nothing is there to go on from");
    for at in 0..50 {
        world.fold(vec![instance("web-7", &at.to_string())]);
        assert_eq!(world.save(false), None);
        let index = world.working.index() + 1;
        world.working.advance(index, Timestamp(index));
        world.events.push(ReplicaEvent::Advance { index, at: Timestamp(index) });
        assert_eq!(world.save(false), None);
    }
    assert!(world.journal_bytes() < file / 10, "{} of {file}", world.journal_bytes());
    assert_eq!(world.restart(), Some((world.working.clone(), world.clock)));
    // And on from there.
    world.fold(vec![instance("web-8", "again")]);
    assert_eq!(world.save(false), None);
    assert_eq!(world.restart(), Some((world.working.clone(), world.clock)));
    // The time alone.
    assert_eq!(world.save(false), None);
    assert_eq!(world.restart(), Some((world.working.clone(), world.clock)));
    assert!(world.save(true).is_some(), "what events do not say");
    assert_eq!(world.journal_bytes(), 0);
    assert_eq!(world.restart(), Some((world.working.clone(), world.clock)));
}

#[test]
fn a_journal_that_is_larger_than_the_file_gives_way_to_a_new_one() {
    let mut world = World::new(10);
    world.save(false);
    let (note, mut written) = ("x".repeat(10_000), 0);
    for at in 0..100 {
        world.fold(vec![instance("web-7", &format!("{at}{note}"))]);
        written += u32::from(world.save(false).is_some());
        assert!(world.journal_bytes() <= MIN_JOURNAL_BYTES + 100);
    }
    assert!((3..=5).contains(&written), "a megabyte in journals of a quarter: {written}");
    assert_eq!(world.restart(), Some((world.working.clone(), world.clock)));
}

#[test]
fn what_a_crash_or_damage_leaves_of_a_journal_is_an_older_replica_and_never_another_one() {
    let mut world = World::new(10);
    world.save(false);
    let mut states = vec![(world.working.clone(), world.clock)];
    let mut ends = Vec::new();
    for at in 0..3 {
        world.fold(vec![instance("web-7", &at.to_string())]);
        world.save(false);
        ends.push(world.journal_bytes());
        states.push((world.working.clone(), world.clock));
    }
    let journal = fs::read(world.disk.journal_path()).unwrap();
    for length in 0..=journal.len() {
        fs::write(world.disk.journal_path(), &journal[..length]).unwrap();
        let whole = ends.iter().filter(|end| **end <= length as u64).count();
        assert_eq!(world.restart(), Some(states[whole].clone()), "{length} bytes");
        if length % 97 == 0 {
            world.working = states[whole].0.clone();
            world.fold(vec![instance("web-9", "went on")]);
            world.save(false);
            assert_eq!(world.restart(), Some((world.working.clone(), world.clock)));
        }
        fs::write(world.path().with_extension("tmp"), b"half of a file").unwrap();
    }
    for at in (0..journal.len()).step_by(7) {
        let mut damaged = journal.clone();
        damaged[at] ^= 0x40;
        fs::write(world.disk.journal_path(), &damaged).unwrap();
        let found = world.restart().unwrap();
        assert!(states.contains(&found), "damage at {at}");
    }
}

#[test]
fn a_journal_beside_a_file_that_an_older_build_wrote_says_nothing() {
    let mut world = World::new(10);
    world.save(false);
    let older = fs::read(world.path()).unwrap();
    world.fold(vec![instance("web-7", "in the journal")]);
    world.save(false);
    let journal = fs::read(world.disk.journal_path()).unwrap();
    // It reads the file alone: its time, and its rows to their end.
    let (alone, since) = read(older.as_slice()).unwrap();
    assert!(alone.index() < world.working.index() && since.0 < world.clock);
    world.fold(vec![instance("web-8", "by the older build")]);
    world.save(true);
    fs::write(world.disk.journal_path(), journal).unwrap();
    assert_eq!(world.restart(), Some((world.working.clone(), world.clock)));
    world.fold(vec![instance("web-9", "and on")]);
    world.events.drain(..world.events.len() - 1);
    assert_eq!(world.save(false), None);
    assert_eq!(world.restart(), Some((world.working.clone(), world.clock)));
}

#[test]
fn a_save_that_failed_is_made_good_by_a_whole_one() {
    let mut world = World::new(10);
    world.save(false);
    world.fold(vec![instance("web-7", "lost?")]);
    // A folder stands where the journal should.
    fs::create_dir(world.disk.journal_path()).unwrap();
    let events = Some(std::mem::take(&mut world.events));
    let unsaved = Unsaved { snapshot: world.working.clone(), events, since: Timestamp(500) };
    assert!(world.disk.save(&unsaved).is_err());
    fs::remove_dir(world.disk.journal_path()).unwrap();
    world.fold(vec![instance("web-8", "after it")]);
    assert!(world.save(false).is_some(), "nothing goes on from what may be half there");
    assert_eq!(world.restart(), Some((world.working.clone(), world.clock)));
    fs::write(world.path(), b"no replica").unwrap();
    assert_eq!(world.restart(), None);
    assert!(world.path().with_extension("damaged").exists());
}
