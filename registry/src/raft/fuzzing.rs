//! The part of [`crate::fuzzing`] that needs this module's own words.

use std::path::Path;

use bytes::Bytes;
use prost::Message;

use super::{
    snapshot::SnapshotStore,
    wire::{self, proto},
};
use crate::store::Record;

/// A batch of entries as a leader would send it.
pub(crate) fn append(bytes: &[u8]) {
    let Ok(request) = proto::AppendRequest::decode(bytes) else { return };
    let to = request.to;
    let Ok(request) = wire::append_from(request) else { return };
    let again = wire::append_from(wire::append_to(to, &request)).expect("what was read is written readably");
    assert_eq!(again.entries.len(), request.entries.len());
    assert_eq!(again.prev_log_id, request.prev_log_id);
}

/// A candidate's request.
pub(crate) fn vote(bytes: &[u8]) {
    let Ok(request) = proto::VoteRequest::decode(bytes) else { return };
    let (to, pre_vote) = (request.to, request.pre_vote);
    let Ok(request) = wire::vote_request_from(request) else { return };
    let again = wire::vote_request_from(wire::vote_request_to(to, &request, pre_vote));
    assert_eq!(again.expect("what was read is written readably").vote, request.vote);
}

/// What comes back from other members, and the head of a snapshot.
pub(crate) fn replies(bytes: &[u8]) {
    drop(proto::AppendReply::decode(bytes).map(wire::append_reply_from));
    drop(proto::VoteReply::decode(bytes).map(wire::vote_reply_from));
    drop(wire::snapshot_header_from(Bytes::copy_from_slice(bytes)));
}

/// A record that a log gave back.
pub(crate) fn record(record: Record) {
    drop(wire::record_from(record));
}

/// A snapshot file, put into `folder` (made by the caller, and empty). Where the first byte is odd its checksum is made
/// right, since chance finds none.
///
/// # Panics
///
/// When the caller's folder takes no files.
pub fn snapshot_file(folder: &Path, bytes: &[u8]) {
    let Some((kind, body)) = bytes.split_first() else { return };
    let mut content = body.to_vec();
    if kind % 2 == 1 {
        content.extend(crc32fast::hash(body).to_be_bytes());
    }
    std::fs::write(folder.join("current"), content).expect("the caller's folder takes files");
    let Ok(store) = SnapshotStore::open(folder.to_path_buf(), crate::store::DiskGuard::new(folder, 0)) else { return };
    let Some(current) = store.current() else { return };
    drop(current.snapshot.read_body(|body| std::io::copy(body, &mut std::io::sink())));
}
