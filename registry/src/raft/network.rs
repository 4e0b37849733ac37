//! Speaking to the other members: one kept connection for the log, one for votes and heartbeats, one per snapshot.

use std::collections::HashMap;
use std::future::Future;
use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use hyper_util::rt::TokioIo;
use openraft::OptionalSend;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2, stream_append_sequential};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use tracing::{error, info, warn};

use super::wire::proto::raft_client::RaftClient;
use super::wire::{self, proto};
use super::{Peer, RaftSnapshot, SnapshotFile, Types, Vote};
use crate::resolve::Resolve;

/// Largest message between members: one batch of entries (1 MiB) or one entry of the largest size, with room.
pub(crate) const MESSAGE_BYTES: usize = 16 * 1024 * 1024;
/// How long a connection, or the start of a stream, may take before the member counts as unreachable.
const SETUP_TIMEOUT: Duration = Duration::from_secs(1);
/// How long one vote may take; a candidate's round is over after an election timeout anyway.
const VOTE_TIMEOUT: Duration = Duration::from_secs(1);
/// A peer that vanished without closing is noticed after interval plus timeout: openraft's streams have no end of
/// their own.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(1);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes of the log in flight to one follower before HTTP/2 waits for it: several batches, for long fat links.
const WINDOW_BYTES: u32 = 8 * 1024 * 1024;
/// One piece of a snapshot: large enough to be cheap, small enough to share a link.
const PIECE_BYTES: usize = 256 * 1024;
/// Pieces read ahead of the network.
const PIECES_AHEAD: usize = 4;
/// A whole snapshot has to arrive and be installed within this.
pub(crate) const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(600);
/// Of the time that openraft gives a heartbeat.
const SHARE_OF_HEARTBEAT: f64 = 0.9;
/// A member whose calls have failed for so long is logged as lost: one lost heartbeat, or a restart, is not worth a line.
const LOST_AFTER: Duration = Duration::from_secs(1);
/// Kept connections; far above the members of any registry, it only bounds what a long life of changes leaves.
const MAX_CHANNELS: usize = 64;

/// Opens a lazy connection to `host:port`. The default is plaintext; identity brings its own.
pub type Dial = Arc<dyn Fn(&str) -> Result<Channel, tonic::transport::Error> + Send + Sync>;

/// Plaintext over TCP. The name is resolved anew at every connection, by the system's resolver.
pub fn plaintext() -> Dial {
    Arc::new(|address| Ok(endpoint(format!("http://{address}"))?.connect_lazy()))
}

/// Plaintext over TCP, with a way of one's own to resolve the name, anew at every connection.
pub fn plaintext_by(resolve: Resolve) -> Dial {
    Arc::new(move |address| {
        let (resolve, target) = (resolve.clone(), address.to_owned());
        let connector = tower::service_fn(move |_| {
            let (resolve, target) = (resolve.clone(), target.clone());
            async move { connect(&resolve, &target).await.map(TokioIo::new) }
        });
        Ok(endpoint(format!("http://{address}"))?.connect_with_connector_lazy(connector))
    })
}

/// Tries each address in turn; the error is the last one's. The endpoint's timeout is for all of them.
async fn connect(resolve: &Resolve, target: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in resolve.resolve(target).await.map_err(io::Error::other)? {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// An endpoint with this module's timeouts and windows, for a [`Dial`] of one's own.
pub fn endpoint(uri: String) -> Result<Endpoint, tonic::transport::Error> {
    Ok(Endpoint::from_shared(uri)?
        .connect_timeout(SETUP_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Use {
    /// The pipelined log.
    Log,
    /// Votes, heartbeats, bootstrap: never behind a batch of entries.
    Control,
}

/// The connections of this member. Clones share them.
#[derive(Clone)]
pub(crate) struct Network {
    dial: Dial,
    channels: Arc<Mutex<HashMap<(Use, String), Channel>>>,
    silent: Arc<Mutex<HashMap<String, Silence>>>,
}

/// Calls that failed one after the other.
#[derive(Debug)]
struct Silence {
    since: Instant,
    /// Whether it was logged.
    told: bool,
}

impl Network {
    pub(crate) fn new(dial: Dial) -> Self {
        Self { dial, channels: Arc::default(), silent: Arc::default() }
    }

    /// A client on the kept connection of that use.
    pub(crate) fn client(&self, usage: Use, address: &str) -> Result<RaftClient<Channel>, Status> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if channels.len() >= MAX_CHANNELS {
            channels.clear();
        }
        let channel = match channels.get(&(usage, address.to_owned())) {
            Some(channel) => channel.clone(),
            None => {
                let channel = self.open(address)?;
                channels.insert((usage, address.to_owned()), channel.clone());
                channel
            }
        };
        Ok(sized(channel))
    }

    /// Logs the loss of a member and its return, once each; what is tried in between is not news.
    fn note(&self, address: &str, failure: Option<&str>) {
        let mut silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(why) = failure else {
            if let Some(silence) = silent.remove(address).filter(|silence| silence.told) {
                let silent_for = silence.since.elapsed();
                info!(address, ?silent_for, "a member of the registry answers again");
            }
            return;
        };
        if silent.len() >= MAX_CHANNELS {
            silent.clear();
        }
        let silence =
            silent.entry(address.to_owned()).or_insert_with(|| Silence { since: Instant::now(), told: false });
        if !silence.told && silence.since.elapsed() >= LOST_AFTER {
            silence.told = true;
            warn!(address, why, "a member of the registry does not answer; it is tried again until it does");
        }
    }

    fn open(&self, address: &str) -> Result<Channel, Status> {
        (self.dial)(address).map_err(|error| Status::unavailable(format!("member address {address:?}: {error}")))
    }
}

fn sized(channel: Channel) -> RaftClient<Channel> {
    RaftClient::new(channel).max_decoding_message_size(MESSAGE_BYTES).max_encoding_message_size(MESSAGE_BYTES)
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: u64, peer: &Peer) -> Link {
        let (network, address, acknowledged) = (self.clone(), peer.address.clone(), AtomicU64::new(0));
        Link { network, target, address, usage: Use::Log, acknowledged }
    }

    async fn new_heartbeat_client(&mut self, target: u64, peer: &Peer) -> Link {
        Link { usage: Use::Control, ..self.new_client(target, peer).await }
    }
}

/// One member as a target.
pub(crate) struct Link {
    network: Network,
    target: u64,
    address: String,
    usage: Use,
    /// The last entry that it said it has on disk, on this link.
    acknowledged: AtomicU64,
}

impl Link {
    fn client(&self, usage: Use) -> Result<RaftClient<Channel>, RPCError<Types>> {
        self.network.client(usage, &self.address).map_err(|status| self.failed(status))
    }

    /// Every failure backs off: there is none that an immediate retry would cure.
    fn failed(&self, why: impl std::fmt::Display) -> RPCError<Types> {
        RPCError::Unreachable(self.unreachable(why))
    }

    fn unreachable(&self, why: impl std::fmt::Display) -> Unreachable<Types> {
        Unreachable::from_string(format!("member {} at {}: {why}", self.target, self.address))
    }

    async fn within<T>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, RPCError<Types>> {
        match tokio::time::timeout(limit, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.failed(status)),
            Err(_) => Err(self.failed(format!("no answer within {limit:?}"))),
        }
    }

    async fn ask(&self, rpc: VoteRequest<Types>, pre_vote: bool) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let mut client = self.client(Use::Control)?;
        let reply = self.within(VOTE_TIMEOUT, client.vote(wire::vote_request_to(self.target, &rpc, pre_vote))).await?;
        wire::vote_reply_from(reply).map_err(|error| self.failed(error))
    }

    /// Logs that the member lacks an entry which it had acknowledged.
    fn note_conflict(&self, index: u64) {
        let acknowledged = self.acknowledged.load(Ordering::Relaxed);
        if acknowledged > 0 && index <= acknowledged {
            self.acknowledged.store(0, Ordering::Relaxed);
            error!(
                address = self.address,
                acknowledged,
                lacks = index,
                "the disk of a member went back in time: it lacks entries that it had acknowledged. It is sent them again; \
                 while it lacked them they were as safe as on one member less. Do not restore members from disk images"
            );
        }
    }

    async fn append_once(
        &self,
        rpc: &AppendEntriesRequest<Types>,
        limit: Duration,
    ) -> Result<proto::AppendReply, RPCError<Types>> {
        let mut client = self.client(self.usage)?;
        // openraft cuts a heartbeat off after `limit`: ours has to end before, or nobody hears how it ended.
        let limit = limit.mul_f64(SHARE_OF_HEARTBEAT);
        self.within(limit, client.append_once(wire::append_to(self.target, rpc))).await
    }

    /// The log as a stream of requests and answers. It connects only once there is a first request: openraft pauses after a
    /// failure before it gives one, and what fails earlier would be tried again without any pause.
    fn pipeline<S>(&self, mut input: S) -> Answers<'_>
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
    {
        let connecting = async move {
            let Some(first) = input.next().await else {
                return Ok::<_, RPCError<Types>>(stream::empty().left_stream());
            };
            let mut client = self.client(Use::Log)?;
            let target = self.target;
            let requests = stream::iter([first]).chain(input).map(move |request| wire::append_to(target, &request));
            let replies = self.within(SETUP_TIMEOUT, client.append(requests)).await?;
            let answers = replies.map(move |reply| {
                let reply = reply.map_err(|status| self.failed(status))?;
                let answer = wire::append_reply_from(reply).map_err(|error| self.failed(error))?;
                match &answer {
                    Ok(Some(matched)) => drop(self.acknowledged.fetch_max(matched.index, Ordering::Relaxed)),
                    Err(StreamAppendError::Conflict(at)) => self.note_conflict(at.index),
                    _ => {}
                }
                Ok(answer)
            });
            Ok(answers.right_stream())
        };
        Box::pin(stream::once(connecting).try_flatten())
    }
}

/// What a follower answers to the requests of the log, in their order.
type Answers<'a> = BoxStream<'a, Result<StreamAppendResult<Types>, RPCError<Types>>>;

impl RaftNetworkV2<Types> for Link {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let reply = self.append_once(&rpc, option.hard_ttl()).await;
        self.network.note(&self.address, reply.as_ref().err().map(ToString::to_string).as_deref());
        let last = rpc.entries.last().map(|entry| entry.log_id).or(rpc.prev_log_id);
        Ok(match wire::append_reply_from(reply?).map_err(|error| self.failed(error))? {
            Ok(matched) if matched < last => AppendEntriesResponse::PartialSuccess(matched),
            Ok(_) => AppendEntriesResponse::Success,
            Err(StreamAppendError::Conflict(_)) => AppendEntriesResponse::Conflict,
            Err(StreamAppendError::HigherVote(vote)) => AppendEntriesResponse::HigherVote(vote),
        })
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult<Types>, RPCError<Types>>>, RPCError<Types>>>
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
    {
        match self.usage {
            // A heartbeat is one request on a stream of its own: a plain call does the same for less.
            Use::Control => stream_append_sequential(self, input, option),
            Use::Log => Box::pin(std::future::ready(Ok(self.pipeline(input)))),
        }
    }

    async fn vote(&mut self, rpc: VoteRequest<Types>, _: RPCOption) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.ask(rpc, false).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types>,
        _: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.ask(rpc, true).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: RaftSnapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        // A connection of its own, gone afterwards: a snapshot must not fill the log's window.
        let channel = self.network.open(&self.address).map_err(|status| self.unreachable(status))?;
        let offer = proto::SnapshotOffer { to: self.target, vote: Some(wire::vote_to(&vote)) };
        let pieces = ReceiverStream::new(read_ahead(offer, snapshot.snapshot));
        let mut client = sized(channel);
        let sent = self.within(SNAPSHOT_TIMEOUT, client.install_snapshot(pieces));
        let reply = tokio::select! {
            closed = cancel => return Err(StreamingError::Closed(closed)),
            reply = sent => reply?,
        };
        let vote = wire::vote_from(reply.vote).map_err(|error| self.unreachable(error))?;
        Ok(SnapshotResponse::new(vote))
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        let mut client = self.client(Use::Control)?;
        let message = proto::TransferLeaderRequest {
            to: *request.to_node_id(),
            from: Some(wire::vote_to(request.from_leader())),
            last: request.last_log_id().map(wire::log_id_to),
        };
        let reply = self.within(option.hard_ttl(), client.transfer_leader(message)).await?;
        if reply.accepted {
            return Ok(Ok(()));
        }
        tracing::info!(target = self.target, reason = reply.reason, "leadership was not taken over");
        let (expected, actual) = (request.last_log_id().copied(), None);
        Ok(Err(TransferLeaderError::LogNotFlushed { expected, actual }))
    }
}

/// Reads a snapshot on a blocking thread, a few pieces ahead of whoever takes them. A file that cannot be read ends
/// the stream early, and the receiver finds the checksum missing.
fn read_ahead(offer: proto::SnapshotOffer, snapshot: SnapshotFile) -> mpsc::Receiver<proto::SnapshotPiece> {
    use proto::snapshot_piece::Piece;
    let (pieces, taken) = mpsc::channel(PIECES_AHEAD);
    tokio::task::spawn_blocking(move || {
        let send = |piece| pieces.blocking_send(proto::SnapshotPiece { piece: Some(piece) }).is_ok();
        let mut reader = snapshot.reader();
        let mut more = send(Piece::Offer(offer));
        while more {
            let mut piece = Vec::with_capacity(PIECE_BYTES);
            more = match (&mut reader).take(PIECE_BYTES as u64).read_to_end(&mut piece) {
                Ok(0) => false,
                Ok(_) => send(Piece::Data(Bytes::from(piece))),
                Err(error) => {
                    tracing::error!(%error, "a snapshot cannot be read; check the disk");
                    false
                }
            };
        }
    });
    taken
}
