use muster_catalog::{Change, Command, DirectoryRow, Entry, Proposal, Snapshot, SnapshotRow, decide};
use proptest::{collection::vec, prelude::*};
use prost::Message;

use super::{strategies::command, *};

/// Through bytes and back.
fn carried<T, P>(value: &T) -> T
where
    P: Message + Default + for<'a> From<&'a T>,
    T: TryFrom<P, Error = ConvertError>,
{
    let bytes = P::from(value).encode_to_vec();
    P::decode(bytes.as_slice()).unwrap().try_into().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn commands_changes_and_rows_come_back_as_they_went(commands in vec(command(), 1..12)) {
        let mut snapshot = Snapshot::default();
        for (index, command) in (1_u64..).zip(commands) {
            prop_assert_eq!(&carried::<Command, pb::Command>(&command), &command);
            let proposal = Proposal { at: Timestamp(index * 10), command };
            prop_assert_eq!(&carried::<Proposal, pb::Proposal>(&proposal), &proposal);
            let Ok(changes) = decide(&snapshot, &proposal) else { continue };
            let entry = Entry { index, at: proposal.at, changes };
            prop_assert_eq!(&carried::<Entry, pb::Entry>(&entry), &entry);
            snapshot.fold(&entry);
        }
        for row in snapshot.rows() {
            prop_assert_eq!(&carried::<SnapshotRow, pb::SnapshotRow>(&row), &row);
        }
    }
}

#[test]
fn every_change_kind_is_known_by_its_number_on_the_wire() {
    let row = DirectoryRow { service: Name::lookup("web"), index: 7, tags: vec!["a".into()] };
    for change in [
        Change::PutDirectory(row),
        Change::DeleteDirectory(Name::lookup("web")),
        Change::SetFormat(2),
        Change::DeleteNode(Name::lookup("a")),
        Change::DeleteCheck { node: Name::lookup("a"), id: "one".into() },
    ] {
        assert_eq!(carried::<Change, pb::Change>(&change), change);
        // The first bytes of a message with one field are its tag: number << 3 | wire type.
        let bytes = pb::Change::from(&change).encode_to_vec();
        assert_eq!(u32::from(bytes[0]) >> 3, change_kind(&change));
        assert!(KNOWN_CHANGES.contains(&change_kind(&change)));
    }
}

#[test]
fn the_case_of_names_survives() {
    let change = Change::DeleteNode(Name::lookup("Web-1"));
    let Change::DeleteNode(name) = carried::<Change, pb::Change>(&change) else { panic!("another change") };
    assert_eq!(name.as_str(), "Web-1");
}

#[test]
fn what_a_newer_build_wrote_is_an_error_that_names_the_field() {
    // Field 900 of a Command is nobody's yet.
    let unknown = pb::Command::decode([0xa2, 0x38, 0x00].as_slice()).unwrap();
    assert_eq!(Command::try_from(unknown), Err(ConvertError::Missing("command.kind")));
    let check = pb::Check { node: "a".into(), status: 77, kind: Some(pb::CheckKind::default()), ..Default::default() };
    let error = muster_catalog::Check::try_from(check).unwrap_err();
    assert_eq!(error, ConvertError::Unknown { field: "check.status", value: 77 });
    let port = pb::Port { name: "http".into(), number: 70_000 };
    let instance = pb::Instance {
        node: "a".into(),
        service: "web".into(),
        ports: vec![port],
        weights: Some(pb::Weights::default()),
        ..Default::default()
    };
    let error = muster_catalog::Instance::try_from(instance).unwrap_err();
    assert!(error.to_string().starts_with("instance.ports.number is 70000"), "{error}");
}
