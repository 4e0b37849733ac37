//! Being spoken to by the other members.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};

use futures_util::{Stream, StreamExt, stream};
use openraft::raft::{AppendEntriesRequest, StreamAppendResult, TransferLeaderRequest};
use tonic::{Request, Response, Status, Streaming};

use super::ahead::Guard;
use super::machine::Machine;
use super::membership::Membership;
use super::snapshot::SnapshotStore;
use super::wire::proto::raft_server::{Raft as Service, RaftServer};
use super::wire::{self, proto};
use super::{Raft, Types};

/// What [`Consensus::service`](super::Consensus::service) returns: mount it on the members' listener.
pub type LogService<M> = RaftServer<Receiver<M>>;

/// The receiving side of the members' protocol.
pub struct Receiver<M: Machine> {
    pub(super) node_id: u64,
    pub(super) raft: Raft<M>,
    pub(super) snapshots: SnapshotStore,
    pub(super) membership: Membership<M>,
    pub(super) guard: Guard,
}

impl<M: Machine> Receiver<M> {
    /// A request for an earlier tenant of this address must not reach this log.
    fn check_target(&self, to: u64) -> Result<(), Status> {
        check_target(self.node_id, to)
    }
}

fn check_target(node_id: u64, to: u64) -> Result<(), Status> {
    if to == node_id {
        return Ok(());
    }
    Err(Status::failed_precondition(format!("this is member {node_id}, not {to}: its disk was replaced")))
}

fn stopped(error: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("the log of this member has stopped: {error}"))
}

/// Decodes one append, refusing what this member cannot take.
async fn accept(
    node_id: u64,
    membership: &Membership<impl Machine>,
    guard: &Guard,
    request: proto::AppendRequest,
) -> Result<AppendEntriesRequest<Types>, Status> {
    check_target(node_id, request.to)?;
    membership.check_room(&request)?;
    let request = wire::append_from(request)?;
    guard.check(&request).await?;
    Ok(request)
}

fn reply(result: &StreamAppendResult<Types>) -> proto::AppendReply {
    wire::append_reply_to(result)
}

#[tonic::async_trait]
impl<M: Machine> Service for Receiver<M> {
    type AppendStream = Pin<Box<dyn Stream<Item = Result<proto::AppendReply, Status>> + Send>>;

    async fn append(
        &self,
        request: Request<Streaming<proto::AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        // openraft's side of the stream knows no errors: the first one ends it, and is said after the last answer.
        let refused = Arc::new(OnceLock::new());
        let (node_id, membership, guard) = (self.node_id, self.membership.clone(), self.guard.clone());
        let refusal = Arc::clone(&refused);
        let requests = request.into_inner().then(move |next| {
            let (membership, guard) = (membership.clone(), guard.clone());
            async move { accept(node_id, &membership, &guard, next?).await }
        });
        let requests = requests.scan((), move |(), next| {
            let next = next.map_err(|status| refusal.set(status)).ok();
            std::future::ready(next)
        });
        let answers =
            self.raft.stream_append(requests.boxed()).map(|answer| answer.as_ref().map(reply).map_err(stopped));
        let ending = stream::once(async move { refused.get().cloned() }).filter_map(|status| async { status.map(Err) });
        Ok(Response::new(Box::pin(answers.chain(ending))))
    }

    async fn append_once(
        &self,
        request: Request<proto::AppendRequest>,
    ) -> Result<Response<proto::AppendReply>, Status> {
        let request = accept(self.node_id, &self.membership, &self.guard, request.into_inner()).await?;
        let mut answers = Box::pin(self.raft.stream_append(stream::once(std::future::ready(request))));
        let answer = answers.next().await.ok_or_else(|| stopped("no answer"))?;
        Ok(Response::new(reply(&answer.map_err(stopped)?)))
    }

    async fn vote(&self, request: Request<proto::VoteRequest>) -> Result<Response<proto::VoteReply>, Status> {
        let request = request.into_inner();
        self.check_target(request.to)?;
        let pre_vote = request.pre_vote;
        let asked = wire::vote_request_from(request)?;
        let answer = if pre_vote { self.raft.pre_vote(asked).await } else { self.raft.vote(asked).await };
        Ok(Response::new(wire::vote_reply_to(&answer.map_err(stopped)?)))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<proto::SnapshotPiece>>,
    ) -> Result<Response<proto::SnapshotReply>, Status> {
        use proto::snapshot_piece::Piece;
        let mut pieces = request.into_inner();
        let first = pieces.message().await?.and_then(|message| message.piece);
        let Some(Piece::Offer(offer)) = first else {
            return Err(Status::invalid_argument("a snapshot begins with an offer"));
        };
        self.check_target(offer.to)?;
        let vote = wire::vote_from(offer.vote)?;
        let failed = |error: std::io::Error| Status::aborted(format!("the snapshot was not taken: {error}"));
        let store = self.snapshots.clone();
        let mut upload = blocking(move || store.begin()).await.map_err(failed)?;
        while let Some(message) = pieces.message().await? {
            let Some(Piece::Data(data)) = message.piece else {
                return Err(Status::invalid_argument("a snapshot consists of data after its offer"));
            };
            upload = blocking(move || std::io::Write::write_all(&mut upload, &data).map(|()| upload))
                .await
                .map_err(failed)?;
        }
        let snapshot = blocking(move || upload.complete()).await.map_err(failed)?;
        self.guard.check_snapshot(&vote, snapshot.meta.last_log_id.as_ref()).await?;
        let answer = self.raft.install_full_snapshot(vote, snapshot).await.map_err(stopped)?;
        Ok(Response::new(proto::SnapshotReply { vote: Some(wire::vote_to(&answer.vote)) }))
    }

    async fn transfer_leader(
        &self,
        request: Request<proto::TransferLeaderRequest>,
    ) -> Result<Response<proto::TransferLeaderReply>, Status> {
        let request = request.into_inner();
        self.check_target(request.to)?;
        let from = wire::vote_from(request.from)?;
        let asked = TransferLeaderRequest::new(from, request.to, request.last.map(wire::log_id_from));
        let answer = self.raft.handle_transfer_leader(asked).await.map_err(stopped)?;
        let reason = answer.as_ref().err().map(ToString::to_string).unwrap_or_default();
        Ok(Response::new(proto::TransferLeaderReply { accepted: answer.is_ok(), reason }))
    }

    async fn hello(&self, _: Request<proto::HelloRequest>) -> Result<Response<proto::HelloReply>, Status> {
        self.membership.hello().await.map(Response::new)
    }

    async fn join(&self, request: Request<proto::JoinRequest>) -> Result<Response<proto::JoinReply>, Status> {
        let member =
            request.into_inner().member.ok_or_else(|| Status::invalid_argument("field `member` is missing"))?;
        self.membership.admit(member).await.map(Response::new)
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> std::io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other)?
}
