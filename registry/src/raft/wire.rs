//! Between openraft's types and our protobuf, in both directions. Reading never panics: what is missing or unknown is
//! an [`WireError`].

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use openraft::raft::{AppendEntriesRequest, StreamAppendError, StreamAppendResult, VoteRequest, VoteResponse};
use prost::Message;

use super::{
    Entry, EntryPayload, LeaderId, LogId, Membership, Payload, Peer, SnapshotMeta, StoredMembership, Types, Vote,
};
use crate::store::{Ballot, Position, Record};

/// The generated code of `proto/raft.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod proto {
    #![allow(clippy::too_many_lines)]
    tonic::include_proto!("muster.raft.v1");
}

/// A message that says less, or other, than this version understands.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// A field that must be there is not.
    #[error("field `{0}` is missing: the sender's version does not speak this protocol")]
    Missing(&'static str),
    /// An entry of a kind that a newer version invented.
    #[error("a log entry is of an unknown kind: run the version that wrote it")]
    UnknownKind,
    /// Not protobuf, or not ours.
    #[error("undecodable: {0}")]
    Undecodable(#[from] prost::DecodeError),
    /// Voters that are no members, or none.
    #[error("bad membership: {0}")]
    Membership(String),
}

impl From<WireError> for std::io::Error {
    fn from(error: WireError) -> Self {
        Self::new(std::io::ErrorKind::InvalidData, error)
    }
}

impl From<WireError> for tonic::Status {
    fn from(error: WireError) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

pub(crate) fn position(id: &LogId) -> Position {
    Position { term: id.leader_id.term, node: id.leader_id.node_id, index: id.index }
}

pub(crate) fn log_id(at: Position) -> LogId {
    LogId::new(LeaderId { term: at.term, node_id: at.node }, at.index)
}

pub(crate) fn ballot(vote: &Vote) -> Ballot {
    Ballot { term: vote.leader_id.term, node: vote.leader_id.node_id, committed: vote.committed }
}

pub(crate) fn vote(ballot: Ballot) -> Vote {
    Vote { leader_id: LeaderId { term: ballot.term, node_id: ballot.node }, committed: ballot.committed }
}

pub(crate) fn log_id_to(id: &LogId) -> proto::LogId {
    let Position { term, node, index } = position(id);
    proto::LogId { term, node, index }
}

pub(crate) fn log_id_from(id: proto::LogId) -> LogId {
    log_id(Position { term: id.term, node: id.node, index: id.index })
}

pub(crate) fn vote_to(vote: &Vote) -> proto::Vote {
    let Ballot { term, node, committed } = ballot(vote);
    proto::Vote { term, node, committed }
}

pub(crate) fn vote_from(from: Option<proto::Vote>) -> Result<Vote, WireError> {
    let proto::Vote { term, node, committed } = from.ok_or(WireError::Missing("vote"))?;
    Ok(vote(Ballot { term, node, committed }))
}

fn membership_to(membership: &Membership) -> proto::Membership {
    let voters = membership.get_joint_config().iter();
    proto::Membership {
        voters: voters.map(|set| proto::Voters { ids: set.iter().copied().collect() }).collect(),
        members: membership.nodes().map(|(id, peer)| member_to(*id, peer)).collect(),
    }
}

fn membership_from(membership: proto::Membership) -> Result<Membership, WireError> {
    let voters: Vec<BTreeSet<u64>> = membership.voters.into_iter().map(|set| set.ids.into_iter().collect()).collect();
    let members: BTreeMap<u64, Peer> = membership.members.into_iter().map(member_from).collect();
    if voters.is_empty() && members.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(voters, members).map_err(|error| WireError::Membership(error.to_string()))
}

pub(crate) fn member_to(id: u64, peer: &Peer) -> proto::Member {
    proto::Member { id, name: peer.name.clone(), address: peer.address.clone(), read_only: peer.read_only }
}

pub(crate) fn member_from(member: proto::Member) -> (u64, Peer) {
    let proto::Member { id, name, address, read_only } = member;
    (id, Peer { name, address, read_only })
}

fn payload_to(payload: &EntryPayload) -> proto::Payload {
    use proto::payload::Kind;
    let kind = match payload {
        EntryPayload::Blank => Kind::Blank(proto::Blank {}),
        EntryPayload::Normal(Payload(bytes)) => Kind::Normal(bytes.clone()),
        EntryPayload::Membership(membership) => Kind::Membership(membership_to(membership)),
    };
    proto::Payload { kind: Some(kind) }
}

fn payload_from(payload: proto::Payload) -> Result<EntryPayload, WireError> {
    use proto::payload::Kind;
    match payload.kind.ok_or(WireError::UnknownKind)? {
        Kind::Blank(_) => Ok(EntryPayload::Blank),
        Kind::Normal(bytes) => Ok(EntryPayload::Normal(Payload(bytes))),
        Kind::Membership(membership) => membership_from(membership).map(EntryPayload::Membership),
    }
}

/// An entry as the log stores it.
pub(crate) fn record_to(entry: &Entry) -> Record {
    Record { position: position(&entry.log_id), payload: payload_to(&entry.payload).encode_to_vec().into() }
}

/// An entry as the log stored it.
pub(crate) fn record_from(record: Record) -> Result<Entry, WireError> {
    let payload = payload_from(proto::Payload::decode(record.payload)?)?;
    Ok(Entry { log_id: log_id(record.position), payload })
}

pub(crate) fn append_to(to: u64, request: &AppendEntriesRequest<Types>) -> proto::AppendRequest {
    let entries = request.entries.iter();
    proto::AppendRequest {
        to,
        vote: Some(vote_to(&request.vote)),
        previous: request.prev_log_id.as_ref().map(log_id_to),
        entries: entries
            .map(|e| proto::Entry { log_id: Some(log_id_to(&e.log_id)), payload: Some(payload_to(&e.payload)) })
            .collect(),
        committed: request.leader_commit.as_ref().map(log_id_to),
    }
}

pub(crate) fn append_from(request: proto::AppendRequest) -> Result<AppendEntriesRequest<Types>, WireError> {
    let mut entries = Vec::with_capacity(request.entries.len());
    for entry in request.entries {
        let log_id = log_id_from(entry.log_id.ok_or(WireError::Missing("entry.log_id"))?);
        let payload = payload_from(entry.payload.ok_or(WireError::Missing("entry.payload"))?)?;
        entries.push(Entry { log_id, payload });
    }
    Ok(AppendEntriesRequest {
        vote: vote_from(request.vote)?,
        prev_log_id: request.previous.map(log_id_from),
        entries,
        leader_commit: request.committed.map(log_id_from),
    })
}

pub(crate) fn append_reply_to(result: &StreamAppendResult<Types>) -> proto::AppendReply {
    use proto::append_reply::Result as Reply;
    let result = match result {
        Ok(matched) => Reply::Matched(proto::Matched { log_id: matched.as_ref().map(log_id_to) }),
        Err(StreamAppendError::Conflict(at)) => Reply::Conflict(log_id_to(at)),
        Err(StreamAppendError::HigherVote(vote)) => Reply::HigherVote(vote_to(vote)),
    };
    proto::AppendReply { result: Some(result) }
}

pub(crate) fn append_reply_from(reply: proto::AppendReply) -> Result<StreamAppendResult<Types>, WireError> {
    use proto::append_reply::Result as Reply;
    Ok(match reply.result.ok_or(WireError::Missing("result"))? {
        Reply::Matched(matched) => Ok(matched.log_id.map(log_id_from)),
        Reply::Conflict(at) => Err(StreamAppendError::Conflict(log_id_from(at))),
        Reply::HigherVote(vote) => Err(StreamAppendError::HigherVote(vote_from(Some(vote))?)),
    })
}

pub(crate) fn vote_request_to(to: u64, request: &VoteRequest<Types>, pre_vote: bool) -> proto::VoteRequest {
    proto::VoteRequest {
        to,
        vote: Some(vote_to(&request.vote)),
        last: request.last_log_id.as_ref().map(log_id_to),
        leadership_transfer: request.leadership_transfer,
        pre_vote,
    }
}

pub(crate) fn vote_request_from(request: proto::VoteRequest) -> Result<VoteRequest<Types>, WireError> {
    let mut asked = VoteRequest::new(vote_from(request.vote)?, request.last.map(log_id_from));
    asked.leadership_transfer = request.leadership_transfer;
    Ok(asked)
}

pub(crate) fn vote_reply_to(reply: &VoteResponse<Types>) -> proto::VoteReply {
    proto::VoteReply {
        vote: Some(vote_to(&reply.vote)),
        granted: reply.vote_granted,
        last: reply.last_log_id.as_ref().map(log_id_to),
    }
}

pub(crate) fn vote_reply_from(reply: proto::VoteReply) -> Result<VoteResponse<Types>, WireError> {
    Ok(VoteResponse::new(vote_from(reply.vote)?, reply.last.map(log_id_from), reply.granted))
}

/// The head of a snapshot file.
pub(crate) fn snapshot_header_to(meta: &SnapshotMeta) -> Vec<u8> {
    let membership = proto::StoredMembership {
        log_id: meta.last_membership.log_id().as_ref().map(log_id_to),
        membership: Some(membership_to(meta.last_membership.membership())),
    };
    let header = proto::SnapshotHeader { last: meta.last_log_id.as_ref().map(log_id_to), membership: Some(membership) };
    header.encode_to_vec()
}

/// The head of a snapshot file, read back.
pub(crate) fn snapshot_header_from(bytes: Bytes) -> Result<SnapshotMeta, WireError> {
    let header = proto::SnapshotHeader::decode(bytes)?;
    let stored = header.membership.ok_or(WireError::Missing("membership"))?;
    let membership = membership_from(stored.membership.unwrap_or_default())?;
    Ok(SnapshotMeta {
        last_log_id: header.last.map(log_id_from),
        last_membership: StoredMembership::new(stored.log_id.map(log_id_from), membership),
    })
}
