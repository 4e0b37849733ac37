//! What `fuzz/` runs, and the replay of its seeds in `tests/`: only in builds with the feature `fuzzing`.
//!
//! Each function takes bytes as an attacker, a neighbouring version or a broken disk would give them. What may come of
//! them is an error; a panic, a catalog that does not come back from its own bytes or memory without bound is a defect.

use std::path::Path;

use bytes::Bytes;
use muster_catalog::{Command, Entry, Proposal, Scope, Snapshot, SnapshotRow, Timestamp};
use prost::Message;

use crate::{
    codec::{decode_snapshot, encode_snapshot},
    machine::{CatalogMachine, encode_proposal},
    proto::{catalog, registry},
    raft::{Committed, Machine, fuzzing as raft},
    service::door,
    store::{Ballot, EngineKind, LogSettings, Position, Record},
};

pub use crate::raft::fuzzing::snapshot_file;

/// So many pieces of an input are looked at.
const MOST_PIECES: usize = 64;

/// Cuts an input into pieces that carry their length in two bytes.
fn pieces(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let next = move || {
        let (length, rest) = bytes.split_first_chunk::<2>()?;
        let (piece, rest) = rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len()));
        bytes = rest;
        Some(piece)
    };
    std::iter::from_fn(next).take(MOST_PIECES)
}

/// Writes, one after the other: read, let in at the door, logged, decided and folded. The catalog that results comes
/// back from its own bytes.
///
/// # Panics
///
/// When it does not, or when a Command changes on its way through the log.
pub fn commands(bytes: &[u8]) {
    let (mut machine, readers) = CatalogMachine::new();
    for (index, piece) in (1..).zip(pieces(bytes)) {
        let Ok(command) = catalog::Command::decode(piece) else { continue };
        let length = command.encoded_len();
        let Ok(command) = Command::try_from(command) else { continue };
        if door::check(&command, length).is_err() {
            continue;
        }
        let again = Command::try_from(catalog::Command::from(&command)).expect("what was read is written readably");
        assert_eq!(again, command, "a Command changes when it is written");
        let payload = encode_proposal(&Proposal { at: Timestamp(index), command });
        machine.apply(vec![Committed { index, payload: Some(payload) }]);
        assert!(readers.fault.borrow().is_none(), "the machine cannot apply what the door let in");
    }
    let snapshot = readers.now();
    let mut file = Vec::new();
    encode_snapshot(&snapshot, &mut file).expect("memory takes it");
    let again = decode_snapshot(&mut file.as_slice(), Scope::All).expect("a snapshot comes back from its bytes");
    assert_eq!(again, *snapshot, "a snapshot changes when it is written");
}

/// Messages between members, agents and servers; the first byte says which.
pub fn message(bytes: &[u8]) {
    let Some((kind, body)) = bytes.split_first() else { return };
    match kind % 8 {
        0 => drop(registry::WatchRequest::decode(body)),
        1 => {
            let Ok(event) = registry::WatchEvent::decode(body) else { return };
            use registry::watch_event::Kind;
            match event.kind {
                Some(Kind::Entry(entry)) => drop(catalog::Entry::decode(entry).map(Entry::try_from)),
                Some(Kind::Rows(rows)) => rows.rows.into_iter().for_each(|row| drop(SnapshotRow::try_from(row))),
                _ => {}
            }
        }
        2 => drop(registry::RenewBatchRequest::decode(body)),
        3 => {
            let reply = registry::MembersReply::decode(body);
            drop(reply.map(crate::client::RegistryStatus::try_from));
        }
        4 => {
            // A log entry's own bytes: what the machine reads back.
            let (mut machine, _) = CatalogMachine::new();
            machine.apply(vec![Committed { index: 1, payload: Some(Bytes::copy_from_slice(body)) }]);
        }
        5 => raft::append(body),
        6 => raft::vote(body),
        _ => raft::replies(body),
    }
}

/// A Snapshot's bytes: as they are, or, where the first byte is odd, as rows in a sound frame, since chance finds no
/// checksum.
///
/// # Panics
///
/// When what was read does not come back from its own bytes.
pub fn snapshot(bytes: &[u8]) {
    let Some((kind, body)) = bytes.split_first() else { return };
    let mut file = body.to_vec();
    if kind % 2 == 1 {
        file = b"MUSTERSN".to_vec();
        file.extend(1_u32.to_le_bytes());
        for piece in pieces(body).filter(|piece| !piece.is_empty()) {
            file.extend((piece.len() as u32).to_le_bytes());
            file.extend(piece);
        }
        file.extend(0_u32.to_le_bytes());
        file.extend(crc32fast::hash(&file).to_le_bytes());
    }
    let Ok(snapshot) = decode_snapshot(&mut file.as_slice(), Scope::All) else { return };
    let write_and_read = |snapshot: &Snapshot| {
        let mut bytes = Vec::new();
        encode_snapshot(snapshot, &mut bytes).expect("memory takes it");
        decode_snapshot(&mut bytes.as_slice(), Scope::All).expect("a snapshot comes back from its bytes")
    };
    // Rows in a sound frame may say things twice, which no member writes: then the last counts.
    assert_eq!(write_and_read(&snapshot), snapshot, "a snapshot changes when it is written");
}

/// The first segment of a log, put into `folder` (made by the caller, and empty). Where the first byte is odd it begins
/// with sound records, and what follows replaces their tail.
///
/// # Panics
///
/// When a log that was opened cannot be read or written.
pub fn log_segment(folder: &Path, bytes: &[u8]) {
    let Some((kind, body)) = bytes.split_first() else { return };
    let settings = LogSettings::new(folder.to_path_buf());
    let segment = folder.join("r-00_000_000_000_000_000_000.wal");
    let mut content = Vec::new();
    if kind % 2 == 1 {
        write_segment(&settings);
        content = std::fs::read(&segment).expect("the segment that was just written");
        content.truncate(content.len().saturating_sub(usize::from(kind / 2)));
    }
    content.extend(body);
    std::fs::write(&segment, content).expect("the caller's folder takes files");
    let Ok(engine) = EngineKind::RaftLog.open(&settings, None) else { return };
    let bounds = engine.bounds();
    let Ok(records) = engine.read(0..u64::MAX, usize::MAX) else { return };
    for record in &records {
        raft::record(record.clone());
    }
    let (Some(last), false) = (bounds.last, records.is_empty()) else { return };
    let Some(index) = last.index.checked_add(1) else { return };
    let next = Record { position: Position { index, ..last }, payload: Bytes::from_static(b"next") };
    engine.append(vec![next.clone()]).expect("an opened log takes the next record");
    assert_eq!(engine.read(index..index.saturating_add(1), usize::MAX).expect("what was written"), [next]);
}

fn write_segment(settings: &LogSettings) {
    let engine = EngineKind::RaftLog.open(settings, None).expect("an empty folder");
    let record =
        |index| Record { position: Position { term: 1, node: 7, index }, payload: Bytes::from_static(b"sound") };
    engine.append((0..3).map(record).collect()).expect("a new log takes records");
    engine.save_vote(Ballot { term: 1, node: 7, committed: true }).expect("a new log takes a vote");
    engine.flush().expect("the caller's folder takes files");
}
