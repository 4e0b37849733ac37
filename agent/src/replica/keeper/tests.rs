use muster_catalog::{Change, DirectoryRow, Entry, Name, Scope};

use super::*;

fn clock() -> Timestamp {
    Timestamp(7)
}

fn advance(index: u64) -> ReplicaEvent {
    ReplicaEvent::Advance { index, at: Timestamp(index) }
}

fn entry(index: u64) -> ReplicaEvent {
    let changes = vec![Change::DeleteDirectory(Name::lookup("web"))];
    ReplicaEvent::Entry(Entry { index, at: Timestamp(index), changes })
}

fn at(index: u64) -> Snapshot {
    let mut snapshot = Snapshot::new(Scope::All);
    snapshot.advance(index, Timestamp(index));
    snapshot
}

#[test]
fn what_waits_is_bounded_and_nothing_of_it_is_forgotten() {
    let keeper = Keeper::new(Some(Timestamp(3)));
    assert!(keeper.take(clock).is_none());
    (1..=100).for_each(|index| keeper.note(&at(index), vec![advance(index)], Need::Advance));
    let unsaved = keeper.take(clock).unwrap();
    assert_eq!((unsaved.events, unsaved.since), (Some(vec![advance(100)]), Timestamp(3)), "not current yet");
    keeper.mark(None);
    keeper.note(&at(101), vec![entry(101), advance(102), advance(103), entry(104)], Need::Events);
    let unsaved = keeper.take(clock).unwrap();
    assert_eq!(unsaved.events, Some(vec![entry(101), advance(103), entry(104)]));
    assert_eq!(unsaved.since, Timestamp(7), "current");
    // What could not be written: events that come meanwhile do not say it.
    keeper.note(&at(105), vec![entry(105)], Need::Events);
    keeper.give_back(unsaved);
    keeper.note(&at(106), vec![entry(106)], Need::Events);
    let unsaved = keeper.take(clock).unwrap();
    assert_eq!((unsaved.snapshot.index(), unsaved.events), (106, None));
    for index in 0..=MAX_CHANGES as u64 {
        keeper.note(&at(index), vec![entry(index)], Need::Events);
        assert!(keeper.lock().events.len() <= MAX_CHANGES);
    }
    assert_eq!(keeper.take(clock).unwrap().events, None, "too many");
}

#[test]
fn an_advance_alone_waits_longer_a_large_file_longest_and_the_last_words_not_at_all() {
    let keeper = Keeper::new(None);
    let begun = Instant::now();
    let pace = Pace { written: begun, file_rests_until: begun + Duration::from_secs(40) };
    assert_eq!(pace.due(&keeper), None);
    keeper.note(&at(1), vec![advance(1)], Need::Advance);
    assert_eq!(pace.due(&keeper), Some(begun + ADVANCE_INTERVAL));
    keeper.note(&at(2), vec![entry(2)], Need::Events);
    assert_eq!(pace.due(&keeper), Some(begun + SAVE_INTERVAL));
    keeper.mark(Some(Timestamp(9)));
    assert_eq!(pace.due(&keeper), Some(begun));
    keeper.mark(None);
    keeper.note(&at(3), Vec::new(), Need::File);
    assert_eq!(pace.due(&keeper), Some(begun + Duration::from_secs(40)));
}

fn row(service: &str, index: u64, tags: &[&str]) -> Change {
    let tags = tags.iter().map(|tag| (*tag).into()).collect();
    Change::PutDirectory(DirectoryRow { service: Name::lookup(service), index, tags })
}

/// Folds an entry and notes it as the stream does.
fn happens(keeper: &Keeper, replica: &mut Snapshot, index: u64, changes: Vec<Change>) {
    let entry = Entry { index, at: Timestamp(index), changes };
    let topics = replica.fold(&entry).into_iter().collect();
    let events = vec![ReplicaEvent::Entry(entry)];
    let need = Need::of(&events, &topics, replica);
    keeper.note(replica, events, need);
}

#[test]
fn what_moves_indexes_alone_is_written_with_the_next_advance_and_once_for_each_service() {
    let begun = Instant::now();
    let pace = Pace { written: begun, file_rests_until: begun };
    let keeper = Keeper::new(None);
    let mut replica = Snapshot::new(Scope::Services { names: [Name::lookup("own")].into_iter().collect(), node: None });
    happens(&keeper, &mut replica, 1, vec![row("web", 1, &["v1"]), row("db", 1, &[])]);
    assert_eq!(pace.due(&keeper), Some(begun + SAVE_INTERVAL), "services came");
    assert_eq!(keeper.take(clock).unwrap().events.unwrap().len(), 1);
    let mut kept = replica.clone();
    for index in 2..100 {
        happens(&keeper, &mut replica, index, vec![row("web", index, &["v1"]), row("db", index - 1, &[])]);
    }
    replica.advance(100, Timestamp(100));
    keeper.note(&replica, vec![advance(100)], Need::Advance);
    assert_eq!(pace.due(&keeper), Some(begun + ADVANCE_INTERVAL));
    let events = keeper.take(clock).unwrap().events.unwrap();
    let changes = vec![row("db", 98, &[]), row("web", 99, &["v1"])];
    assert_eq!(events, [ReplicaEvent::Entry(Entry { index: 100, at: Timestamp(100), changes })]);
    for event in events {
        let ReplicaEvent::Entry(entry) = event else { unreachable!("it is one") };
        kept.fold(&entry);
    }
    assert_eq!(kept, replica);
    happens(&keeper, &mut replica, 101, vec![row("web", 101, &["v1"])]);
    happens(&keeper, &mut replica, 102, vec![row("web", 102, &["v2"])]);
    assert_eq!(pace.due(&keeper), Some(begun + SAVE_INTERVAL), "a tag came");
    assert_eq!(
        keeper.take(clock).unwrap().events.unwrap().len(),
        2,
        "as they came: the table of tags moved at the second"
    );
    // More than the journal is to take at once does not wait as long.
    for index in 103..103 + MANY_CHANGES as u64 {
        happens(&keeper, &mut replica, index, vec![row("web", index, &["v2"])]);
    }
    assert_eq!(pace.due(&keeper), Some(begun + SAVE_INTERVAL));
}
