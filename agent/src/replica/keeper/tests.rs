use muster_catalog::{Change, Entry, Name, Scope};

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
    (1..=100).for_each(|index| keeper.note(&at(index), vec![advance(index)], false));
    let unsaved = keeper.take(clock).unwrap();
    assert_eq!((unsaved.events, unsaved.since), (Some(vec![advance(100)]), Timestamp(3)), "not current yet");
    keeper.mark(None);
    keeper.note(&at(101), vec![entry(101), advance(102), advance(103), entry(104)], false);
    let unsaved = keeper.take(clock).unwrap();
    assert_eq!(unsaved.events, Some(vec![entry(101), advance(103), entry(104)]));
    assert_eq!(unsaved.since, Timestamp(7), "current");
    // What could not be written: events that come meanwhile do not say it.
    keeper.note(&at(105), vec![entry(105)], false);
    keeper.give_back(unsaved);
    keeper.note(&at(106), vec![entry(106)], false);
    let unsaved = keeper.take(clock).unwrap();
    assert_eq!((unsaved.snapshot.index(), unsaved.events), (106, None));
    for index in 0..=MAX_CHANGES as u64 {
        keeper.note(&at(index), vec![entry(index)], false);
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
    keeper.note(&at(1), vec![advance(1)], false);
    assert_eq!(pace.due(&keeper), Some(begun + ADVANCE_INTERVAL));
    keeper.note(&at(2), vec![entry(2)], false);
    assert_eq!(pace.due(&keeper), Some(begun + SAVE_INTERVAL));
    keeper.mark(Some(Timestamp(9)));
    assert_eq!(pace.due(&keeper), Some(begun));
    keeper.mark(None);
    keeper.note(&at(3), Vec::new(), true);
    assert_eq!(pace.due(&keeper), Some(begun + Duration::from_secs(40)));
}
