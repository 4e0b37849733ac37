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
        prop_assert_eq!(all.now().index(), log.len() as u64);

        // What is frozen half-way and installed elsewhere goes on alike.
        let (mut first, _) = CatalogMachine::new();
        first.apply(log[..log.len() / 2].to_vec());
        let mut bytes = Vec::new();
        first.freeze()(&mut bytes).unwrap();
        let (mut second, installed) = CatalogMachine::new();
        second.install(&mut bytes.as_slice()).unwrap();
        second.apply(log[log.len() / 2..].to_vec());
        prop_assert_eq!(rows(&all.now()), rows(&installed.now()));
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
