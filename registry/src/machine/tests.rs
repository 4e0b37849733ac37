use muster_catalog::{Command, SnapshotRow, Timestamp};
use proptest::{collection::vec, prelude::*, strategy::ValueTree, test_runner::TestRunner};

use super::*;
use crate::convert::strategies::command;

fn payloads(commands: Vec<Command>) -> Vec<Committed> {
    let committed = (1_u64..).zip(commands).map(|(index, command)| {
        // Every fourth entry is blank, as those of an election are.
        let proposal = Proposal { at: Timestamp(index * 7), command };
        Committed { index, payload: (index % 4 != 0).then(|| encode_proposal(&proposal)) }
    });
    committed.collect()
}

/// A catalog with something of everything in it; always the same.
pub(crate) fn busy_snapshot() -> Snapshot {
    let mut runner = TestRunner::deterministic();
    let commands = vec(command(), 60).new_tree(&mut runner).unwrap().current();
    let (mut machine, catalog) = CatalogMachine::new();
    machine.apply(payloads(commands));
    let snapshot = catalog.now();
    assert!(snapshot.instance_count() > 0, "the catalog should hold something");
    (*snapshot).clone()
}

fn rows(snapshot: &Snapshot) -> Vec<SnapshotRow> {
    snapshot.rows().collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_log_gives_the_same_catalog_however_it_is_cut_into_batches(commands in vec(command(), 1..20), cut in 1..20_usize) {
        let log = payloads(commands);
        let (mut whole, all) = CatalogMachine::new();
        whole.apply(log.clone());
        let (mut parts, some) = CatalogMachine::new();
        for batch in log.chunks(cut) {
            parts.apply(batch.to_vec());
        }
        prop_assert_eq!(rows(&all.now()), rows(&some.now()));
        let sums = |catalog: &Catalog| (1..=log.len() as u64).map(|index| catalog.sums.at(index)).collect::<Vec<_>>();
        prop_assert_eq!(sums(&all), sums(&some));
        prop_assert!(!sums(&all).contains(&None));
        prop_assert_eq!(all.now().index(), log.len() as u64);

        // What is frozen half-way and installed elsewhere goes on alike.
        let (mut first, _) = CatalogMachine::new();
        first.apply(log[..log.len() / 2].to_vec());
        let mut bytes = Vec::new();
        first.freeze()(&mut bytes).unwrap();
        let (mut second, installed) = CatalogMachine::new();
        second.install(&mut bytes.as_slice()).unwrap();
        let half = log.len() / 2;
        // It can be compared before the next entry comes.
        prop_assert!(half == 0 || installed.sums.last() == Some((half as u64, sums(&all)[half - 1].unwrap())));
        second.apply(log[half..].to_vec());
        prop_assert_eq!(rows(&all.now()), rows(&installed.now()));
        prop_assert_eq!(&sums(&all)[half..], &sums(&installed)[half..]);
    }
}

#[test]
fn an_unknown_command_stops_the_member_and_nothing_after_it_is_applied() {
    let (mut machine, catalog) = CatalogMachine::new();
    let known = encode_proposal(&Proposal { at: Timestamp(1), command: Command::SetFormat(3) });
    // A Command whose only field is number 900.
    let unknown = Bytes::from_static(&[0x08, 0x05, 0x12, 0x03, 0xa2, 0x38, 0x00]);
    let answers = machine.apply(vec![
        Committed { index: 1, payload: None },
        Committed { index: 2, payload: Some(unknown) },
        Committed { index: 3, payload: Some(known) },
    ]);
    assert!(matches!(answers[0], Answer::Applied));
    assert!(matches!(answers[1], Answer::Unapplied));
    assert!(matches!(answers[2], Answer::Unapplied));
    assert_eq!(catalog.now().index(), 1);
    let fault = catalog.fault.borrow().clone().unwrap();
    assert!(fault.to_string().contains("log entry 2 cannot be applied: command.kind is missing"), "{fault}");
    assert!(machine.freeze()(&mut Vec::new()).is_err());
}

#[test]
fn time_does_not_run_back_and_readers_see_whole_batches() {
    let (mut machine, catalog) = CatalogMachine::new();
    let mut readers = catalog.snapshot.clone();
    let at = |at, format| {
        let proposal = Proposal { at: Timestamp(at), command: Command::SetFormat(format) };
        Some(encode_proposal(&proposal))
    };
    machine.apply(vec![Committed { index: 1, payload: at(500, 2) }, Committed { index: 2, payload: at(100, 3) }]);
    assert_eq!(readers.borrow_and_update().at(), Timestamp(500));
    assert!(!readers.has_changed().unwrap());
    assert_eq!(catalog.now().format(), 3);
}

#[test]
fn a_reader_at_any_time_sees_no_half_of_a_batch() {
    let (mut machine, catalog) = CatalogMachine::new();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                assert_eq!(catalog.now().index() % 8, 0, "a batch has eight entries");
            }
        });
        for first in (1..20_000).step_by(8) {
            machine.apply((first..first + 8).map(|index| Committed { index, payload: None }).collect());
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        reader.join().unwrap();
    });
}

/// A catalog as pieces of a restore.
fn pieces(snapshot: &Snapshot, size: usize) -> Vec<Bytes> {
    let mut bytes = Vec::new();
    encode_snapshot(snapshot, &mut bytes).unwrap();
    let count = bytes.len().div_ceil(size);
    let piece = |(number, data): (usize, &[u8])| {
        let (data, last) = (Bytes::copy_from_slice(data), number + 1 == count);
        let piece = pb::RestorePiece { id: "r".into(), number: number as u32, data, last };
        encode_restore(Timestamp(9_000 + number as u64), piece)
    };
    bytes.chunks(size).enumerate().map(piece).collect()
}

/// A registry that has an identity and the newest format, and something in its catalog.
fn registry() -> Vec<Bytes> {
    let commands = [
        Command::Bootstrap(ClusterId { uuid: "u".into(), incarnation: 4 }),
        Command::SetFormat(9),
        Command::Deregister(muster_catalog::Removal::Node(muster_catalog::Name::lookup("nobody"))),
    ];
    commands.into_iter().map(|command| encode_proposal(&Proposal { at: Timestamp(7), command })).collect()
}

fn log(payloads: impl IntoIterator<Item = Bytes>) -> Vec<Committed> {
    (1_u64..).zip(payloads).map(|(index, payload)| Committed { index, payload: Some(payload) }).collect()
}

#[test]
fn a_restored_catalog_is_in_place_at_one_index_in_the_next_incarnation_however_the_log_is_cut() {
    let restored = busy_snapshot();
    let payloads: Vec<Bytes> = registry().into_iter().chain(pieces(&restored, 200)).collect();
    let entries = log(payloads);
    let last = entries.len() as u64;
    let (mut machine, catalog) = CatalogMachine::new();
    let mut answers = machine.apply(entries[..entries.len() - 1].to_vec());
    assert_eq!(catalog.now().instance_count(), 0, "it was put in place before it was whole");
    answers.extend(machine.apply(entries[entries.len() - 1..].to_vec()));
    assert!(answers.iter().all(|answer| matches!(answer, Answer::Applied)), "{answers:?}");
    let now = catalog.now();
    assert_eq!((now.cluster().incarnation, &*now.cluster().uuid, now.format(), now.index()), (5, "u", 9, last));
    assert_eq!(now.instance_count(), restored.instance_count());
    // Nothing in it is newer than the log: waiters would wait for ever.
    for row in now.rows() {
        match row {
            SnapshotRow::Node { row, index } => assert_eq!((row.created, row.modified, index), (last, last, last)),
            SnapshotRow::Instance(row) => assert_eq!((row.created, row.modified), (last, last)),
            SnapshotRow::Check(row) => assert_eq!(row.modified, last),
            SnapshotRow::Service(row) => assert_eq!(row.index, last),
            SnapshotRow::Header(header) => assert_eq!((header.nodes_index, header.extinction_index), (last, last)),
            SnapshotRow::Writer { .. } => {}
        }
    }
    assert!(catalog.ring.after(last - 1, 1).is_none(), "a watcher would be told of another history");

    // A member that was sent a Raft snapshot in the middle of it ends alike.
    for cut in 1..entries.len() {
        let (mut first, _) = CatalogMachine::new();
        first.apply(entries[..cut].to_vec());
        let mut bytes = Vec::new();
        first.freeze()(&mut bytes).unwrap();
        let (mut second, installed) = CatalogMachine::new();
        second.install(&mut bytes.as_slice()).unwrap();
        second.apply(entries[cut..].to_vec());
        assert_eq!(rows(&now), rows(&installed.now()), "cut at {cut}");
        assert!(catalog.sums.at(last).is_some());
        assert_eq!(catalog.sums.at(last), installed.sums.at(last), "cut at {cut}");
    }
}

#[test]
fn a_restore_that_cannot_be_is_refused_and_changes_nothing() {
    let restored = busy_snapshot();
    let all = pieces(&restored, 100);
    let gap: Vec<Bytes> =
        all.iter().enumerate().filter(|(number, _)| *number != 1).map(|(_, piece)| piece.clone()).collect();
    let late = {
        let at = Timestamp(9_000 + 60 * 60 * 1000);
        let other = encode_proposal(&Proposal { at, command: Command::SetFormat(1) });
        [all[..2].to_vec(), vec![other], all[2..].to_vec()].concat()
    };
    let mut damaged = Vec::new();
    encode_snapshot(&restored, &mut damaged).unwrap();
    *damaged.last_mut().unwrap() ^= 1;
    let piece = pb::RestorePiece { id: "r".into(), number: 0, data: damaged.into(), last: true };
    for (what, payloads, expected) in [
        ("a gap", gap, "expected"),
        ("nobody came for an hour", late, "expected"),
        ("damage", vec![encode_restore(Timestamp(1), piece)], "checksum"),
    ] {
        let (mut machine, catalog) = CatalogMachine::new();
        let answers = machine.apply(log(registry().into_iter().chain(payloads)));
        let refused =
            answers.iter().any(|answer| matches!(answer, Answer::RestoreRefused(why) if why.contains(expected)));
        assert!(refused, "{what}: {answers:?}");
        let now = catalog.now();
        assert_eq!((now.cluster().incarnation, now.instance_count()), (4, 0), "{what}");
    }
    // Of a newer format than the registry's.
    let (mut newer, catalog) = CatalogMachine::new();
    newer.apply(log(registry()));
    let all = pieces(&catalog.now(), 100);
    let (mut machine, catalog) = CatalogMachine::new();
    let answers = machine.apply(log(registry().into_iter().take(1).chain(all)));
    let refused = matches!(answers.last(), Some(Answer::RestoreRefused(why)) if why.contains("upgrade all members"));
    assert!(refused && catalog.now().cluster().incarnation == 4, "{answers:?}");
}
