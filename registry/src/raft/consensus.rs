//! The handle of the replicated log.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use openraft::errors::{ClientWriteError, Fatal, ForwardToLeader, LinearizableReadError, RaftError};
use openraft::raft::WriteResult;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::ahead::{Ahead, Guard};
use super::apply::{Applier, SnapshotDue, State};
use super::change::{ChangeError, MemberChange};
use super::config::{ConsensusConfig, StartError};
use super::leadership::{self, Leadership};
use super::log::Log;
use super::membership::{Contacts, Greeting, Membership};
use super::network::{MESSAGE_BYTES, Network};
use super::service::{LogService, Receiver};
use super::snapshot::SnapshotStore;
use super::standing::Removed;
use super::wire::proto::raft_server::RaftServer;
use super::{Machine, Member, Payload, Peer, Raft, Types, settings};
use crate::store::directory::{self, DataDirectory, DirectoryError};
use crate::store::{DiskGuard, Engine, EngineKind, LogSettings, mark};

/// Largest proposal. A quarter of a message, so that an entry and its frame always fit one.
pub const MAX_PAYLOAD_BYTES: usize = MESSAGE_BYTES / 4;
/// How long a stopped log may take to let go of its folder.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long after a snapshot that failed the next is tried: room is made by people, or by other programs.
const SNAPSHOT_PAUSE: Duration = Duration::from_secs(30);

/// How sure a read must be that nobody else leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadPolicy {
    /// A quorum answered within the leader's lease: as right as the members' clocks run at the same speed.
    Lease,
    /// A quorum answers now.
    Quorum,
}

/// Why a proposal has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// Nothing was written: ask the leader, or, where none is known, again in a moment.
    #[error("this member does not lead: {}", describe(leader))]
    NotLeader {
        /// Where known.
        leader: Option<Member>,
    },
    /// It may be written, now or later, or not. Only a proposal that may happen twice may be sent again.
    #[error("the outcome of the write is unknown: {0}")]
    UnknownOutcome(String),
    /// Nothing was written: the log takes no proposal of this kind.
    #[error("the write was refused: {0}")]
    Refused(String),
    /// Nothing was written, and nothing will be until there is room on the disks of a majority.
    #[error("the write was refused: {0}")]
    NoRoom(String),
    /// The log of this member has ended; what it was doing has an unknown outcome.
    #[error("the log of this member has stopped: {0}")]
    Stopped(String),
}

/// Why a read has no index.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Ask the leader, or, where none is known, again in a moment.
    #[error("this member does not lead: {}", describe(leader))]
    NotLeader {
        /// Where known.
        leader: Option<Member>,
    },
    /// This member led a moment ago and hears no quorum now.
    #[error("no quorum of members answers: {0}")]
    NoQuorum(String),
    /// The index was not applied here in time.
    #[error("index {index} was not applied within {timeout:?}")]
    Late {
        /// Waited for.
        index: u64,
        /// So long.
        timeout: Duration,
    },
    /// The log of this member has ended.
    #[error("the log of this member has stopped: {0}")]
    Stopped(String),
}

fn describe(leader: &Option<Member>) -> String {
    match leader {
        Some(leader) => format!("{} at {} does", leader.name, leader.address),
        None => "nobody does, as far as it knows; try again".into(),
    }
}

/// What became of one proposal: its index and the machine's answer.
pub type Proposed<M> = Result<(u64, <M as Machine>::Answer), ProposeError>;

/// What openraft says of one entry of several.
type Written = Result<WriteResult<Types>, Fatal<Types>>;

/// A member of the replicated log.
pub struct Consensus<M: Machine> {
    raft: Raft<M>,
    node_id: u64,
    snapshots: SnapshotStore,
    membership: Membership<M>,
    propose_timeout: Duration,
    leadership: watch::Receiver<Leadership>,
    applied: watch::Receiver<u64>,
    removed: watch::Receiver<Option<Removed>>,
    guard: Guard,
    released: watch::Receiver<()>,
    stop: CancellationToken,
}

impl<M: Machine> Consensus<M> {
    /// Opens log and snapshot, puts `machine` where they left it, and begins to take part. The caller mounts
    /// [`service`](Self::service) and then calls [`bootstrap_or_join`](Self::bootstrap_or_join).
    pub async fn start(config: ConsensusConfig, machine: M) -> Result<Self, StartError> {
        let config = config.validated()?;
        let openraft = Arc::new(settings::openraft(&config)?);
        let (data_dir, kind) = (config.data_dir.clone(), config.log_engine);
        let disk = DiskGuard::new(&config.data_dir, config.disk_reserve);
        let room = disk.clone();
        let opened = tokio::task::spawn_blocking(move || open(&data_dir, kind, room)).await;
        let (directory, engine, snapshots) = opened.map_err(|error| StartError::Raft(error.to_string()))??;
        let (node_id, released) = (directory.node_id(), directory.lock().watch_release());
        drop(directory);

        let engine = (config.layer)(engine);
        let guard = Guard::new(&engine);
        let log = Log::new(engine, Some(config.data_dir.clone()), Arc::clone(&config.fault));
        let log = log.map_err(failed("the log", &config.data_dir))?;
        let network = Network::new(Arc::clone(&config.dial));
        let (applied_sender, applied) = watch::channel(0);
        let (due, wanted) = SnapshotDue::new(config.snapshot_entries);
        let applier = Applier::new(machine, snapshots.clone(), applied_sender, due);
        let state = applier.state();
        let raft = Raft::<M>::new(node_id, openraft, network.clone(), log.clone(), applier).await;
        let raft = raft.map_err(|error| StartError::Raft(error.to_string()))?;

        let stop = CancellationToken::new();
        tokio::spawn(log.keep_marked(stop.clone()));
        let (leadership_sender, leadership) = watch::channel(Leadership::default());
        tokio::spawn(leadership::follow(raft.clone(), leadership_sender, stop.clone(), config.fault));
        tokio::spawn(write_snapshots(raft.clone(), state, wanted, stop.clone()));
        let me = Peer { name: config.name, address: config.address, read_only: false };
        let membership = Membership::new(raft.clone(), network, node_id, me, config.members, config.formats, disk);
        tokio::spawn(membership.clone().watch_room(stop.clone()));
        let (removed_sender, removed) = watch::channel(None);
        tokio::spawn(watch_standing(membership.clone(), config.data_dir, removed_sender, stop.clone()));
        let propose_timeout = config.propose_timeout;
        Ok(Self {
            raft,
            node_id,
            snapshots,
            membership,
            propose_timeout,
            leadership,
            applied,
            removed,
            guard,
            released,
            stop,
        })
    }

    /// This member's id.
    pub fn node_id(&self) -> u64 {
        self.node_id
    }

    /// What the other members talk to. Set `TCP_NODELAY` on the sockets it is served on: replies are small and many,
    /// and would otherwise wait for acknowledgements (20 ms per write instead of 1).
    pub fn service(&self) -> LogService<M> {
        let receiver = Receiver {
            node_id: self.node_id,
            raft: self.raft.clone(),
            snapshots: self.snapshots.clone(),
            membership: self.membership.clone(),
            guard: self.guard.clone(),
        };
        RaftServer::new(receiver).max_decoding_message_size(MESSAGE_BYTES).max_encoding_message_size(MESSAGE_BYTES)
    }

    /// Begins the registry or comes into it, in the background and for as long as it takes. The task ends when this
    /// member belongs to a registry.
    pub fn bootstrap_or_join(&self) -> JoinHandle<()> {
        let (membership, stop) = (self.membership.clone(), self.stop.clone());
        tokio::spawn(async move { membership.settle(stop).await })
    }

    /// Writes `payload` to the log and gives its index and the machine's answer once a quorum has it on disk and this
    /// member has applied it.
    pub async fn propose(&self, payload: Bytes) -> Proposed<M> {
        let outcome = self.propose_many(vec![payload]).await.pop();
        outcome.unwrap_or_else(|| Err(ProposeError::Stopped("it gave no outcome".into())))
    }

    /// As [`propose`](Self::propose) for each payload, in this order: an entry, an index and an outcome of its own for
    /// each. They reach the log as one message, which is all that they share.
    pub async fn propose_many(&self, payloads: Vec<Bytes>) -> Vec<Proposed<M>> {
        let mut outcomes: Vec<Option<Proposed<M>>> = payloads.iter().map(|payload| self.refusal(payload)).collect();
        let accepted = payloads.into_iter().zip(&outcomes).filter(|(_, refused)| refused.is_none());
        let accepted: Vec<Payload> = accepted.map(|(payload, _)| Payload(payload)).collect();
        let deadline = Instant::now() + self.propose_timeout;
        if !accepted.is_empty() {
            let mut written = self.raft.client_write_many(accepted).await;
            for outcome in outcomes.iter_mut().filter(|outcome| outcome.is_none()) {
                *outcome = Some(match &mut written {
                    Ok(written) => self.outcome(timeout_at(deadline, written.next()).await),
                    Err(fatal) => Err(ProposeError::Stopped(fatal.to_string())),
                });
            }
        }
        outcomes.into_iter().flatten().collect()
    }

    /// Why a payload is not proposed at all, where there is a reason.
    fn refusal(&self, payload: &Bytes) -> Option<Proposed<M>> {
        if payload.len() > MAX_PAYLOAD_BYTES {
            let message = format!("it has {} bytes, at most {MAX_PAYLOAD_BYTES} are possible", payload.len());
            return Some(Err(ProposeError::Refused(message)));
        }
        self.membership.no_room().map(Err)
    }

    fn outcome(&self, written: Result<Option<Written>, Elapsed>) -> Proposed<M> {
        let written = match written {
            Ok(Some(Ok(Ok(written)))) => written,
            Ok(Some(Ok(Err(error)))) => return Err(propose_error(error)),
            Ok(Some(Err(fatal))) => return Err(ProposeError::Stopped(fatal.to_string())),
            Ok(None) => return Err(ProposeError::Stopped("it gave no outcome".into())),
            Err(_) => {
                let disks = self.membership.known_without_room().map(|disks| format!(" ({disks})"));
                let (disks, waited) = (disks.unwrap_or_default(), self.propose_timeout);
                let message = format!("no quorum of members has it on disk after {waited:?}{disks}");
                return Err(ProposeError::UnknownOutcome(message));
            }
        };
        let answer = written.response.0.and_then(|answer| answer.downcast::<M::Answer>().ok());
        match answer {
            Some(answer) => Ok((written.log_id.index, *answer)),
            None => Err(ProposeError::UnknownOutcome("the machine gave no answer".into())),
        }
    }

    /// The index up to which a member has to be to serve a read that begins now. The leader alone can say.
    pub async fn read_index(&self, policy: ReadPolicy) -> Result<u64, ReadError> {
        let policy = match policy {
            ReadPolicy::Lease => openraft::ReadPolicy::LeaseRead,
            ReadPolicy::Quorum => openraft::ReadPolicy::ReadIndex,
        };
        let linearizer = self.raft.get_read_linearizer(policy).await.map_err(|error| match error {
            RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)) => {
                ReadError::NotLeader { leader: hint(forward) }
            }
            RaftError::APIError(LinearizableReadError::QuorumNotEnough(error)) => {
                ReadError::NoQuorum(error.to_string())
            }
            RaftError::Fatal(fatal) => ReadError::Stopped(fatal.to_string()),
        })?;
        Ok(linearizer.read_log_id().index())
    }

    /// Returns once this member's machine has applied `index`.
    pub async fn wait_applied(&self, index: u64, timeout: Duration) -> Result<(), ReadError> {
        let mut applied = self.applied.clone();
        match tokio::time::timeout(timeout, applied.wait_for(|next| *next > index)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(ReadError::Stopped("it was shut down".into())),
            Err(_) => Err(ReadError::Late { index, timeout }),
        }
    }

    /// The last index applied here, where there is one.
    pub fn last_applied(&self) -> Option<u64> {
        self.applied.borrow().checked_sub(1)
    }

    /// Returns once everything this member held before its start is applied again. Until then no read may be served
    /// from it, not even a stale one: it could be older than one served before the restart.
    pub async fn wait_recovered(&self, timeout: Duration) -> Result<(), ReadError> {
        let late = |_| ReadError::Stopped(format!("no leader has confirmed this member's log within {timeout:?}"));
        self.raft.wait_for_recovery(Some(timeout)).await.map(drop).map_err(late)
    }

    /// Asks the other voters at once whether they would elect this one, instead of waiting out a random time after the
    /// leader's lease. For when the leader's process is known to be gone. A guess that is wrong does no harm: while the
    /// lease of a leader runs here, nothing is asked, and nobody whose lease still runs agrees. A lease read is as safe
    /// as before.
    pub async fn stand_for_election(&self) {
        // An error says that the log has stopped, which its watchers hear of elsewhere.
        let _ = self.raft.trigger().elect(true).await;
    }

    /// Who leads, as it changes.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    /// The members, as this one knows them.
    pub fn members(&self) -> Vec<Member> {
        self.leadership.borrow().members.clone()
    }

    /// Changes the members and says what was done. The leader alone can.
    pub async fn change_members(&self, change: MemberChange) -> Result<String, ChangeError> {
        self.membership.change(change).await
    }

    /// What this member hears of the others as their leader; `None` when it does not lead.
    pub fn contacts(&self) -> Option<Contacts> {
        self.membership.contacts()
    }

    /// What each member that answers says of itself, this one among them.
    pub async fn greetings(&self) -> BTreeMap<u64, Greeting> {
        self.membership.greetings().await
    }

    /// Keeps the members as they are for as long as the guard lives; while this member leads, that is.
    pub async fn hold_members(&self) -> impl Send + use<M> {
        self.membership.hold().await
    }

    /// Why this member does not belong to the registry any more, once that is so.
    pub fn removed(&self) -> watch::Receiver<Option<Removed>> {
        self.removed.clone()
    }

    /// That a leader lacks what is committed here, once one was found to.
    pub fn ahead(&self) -> watch::Receiver<Option<Ahead>> {
        self.guard.found()
    }

    #[cfg(test)]
    pub(crate) fn raft(&self) -> &Raft<M> {
        &self.raft
    }

    /// Hands the lead to another voter, so that a planned stop costs no election timeout. Best effort.
    pub async fn hand_over(&self) -> Result<(), Fatal<Types>> {
        match self.membership.next_leader() {
            Some(next) => self.raft.trigger().transfer_leader(next).await,
            None => Ok(()),
        }
    }

    /// Stops taking part and returns once the data folder is free again.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        if let Err(error) = self.raft.shutdown().await {
            warn!(%error, "the log did not stop cleanly");
        }
        // An error is the expected end: the lock, and with it the sender, is gone.
        let mut released = self.released.clone();
        if tokio::time::timeout(RELEASE_TIMEOUT, released.changed()).await.is_err() {
            warn!("the data folder is still held {RELEASE_TIMEOUT:?} after the log stopped");
        }
    }
}

type Opened = (DataDirectory, Arc<dyn Engine>, SnapshotStore);

fn open(data_dir: &Path, kind: EngineKind, disk: DiskGuard) -> Result<Opened, StartError> {
    let directory = DataDirectory::open(data_dir, kind)?;
    let engine = kind.open(&LogSettings::new(directory.log()), Some(directory.lock()));
    let engine = engine.map_err(failed("the log", data_dir))?;
    let snapshots = SnapshotStore::open(directory.snapshots(), disk);
    let snapshots = snapshots.map_err(failed("the snapshot", data_dir))?;
    let snapshot = snapshots.current().and_then(|current| current.meta.last_log_id).map(|last| last.index);
    mark::check(directory.path(), &engine.bounds(), snapshot)?;
    let begins = engine.begins_where_it_should().map_err(failed("the log", data_dir))?;
    if !begins {
        let why = "the first entries of the log are gone: a file of it was deleted".to_owned();
        return Err(DirectoryError::LogLost { path: directory.path().to_path_buf(), why }.into());
    }
    Ok((directory, engine, snapshots))
}

/// What an error of the system or of a file is to whoever starts a member.
pub(super) fn failed(what: &'static str, data_dir: &Path) -> impl FnOnce(io::Error) -> StartError + use<> {
    let path = data_dir.to_path_buf();
    move |source| StartError::Storage { what, path, source }
}

/// Writes a snapshot whenever one is wanted, and only then has openraft take it up: for openraft a snapshot that fails is the
/// end of the log. One that fails here is tried again later, and meanwhile the log grows for as long as it has room.
async fn write_snapshots<M: Machine>(raft: Raft<M>, state: State<M>, wanted: Arc<Notify>, stop: CancellationToken) {
    let mut failed = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = wanted.notified() => {}
        }
        match state.write_snapshot().await {
            Ok(()) if failed => info!("a snapshot was written again"),
            Ok(()) => {}
            Err(error) => {
                metrics::counter!("muster_registry_snapshot_failures_total").increment(1);
                if !failed {
                    error!(%error, "a snapshot could not be written: the log grows until one is; it is tried again every {SNAPSHOT_PAUSE:?}");
                }
                failed = true;
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(SNAPSHOT_PAUSE) => {}
                }
                wanted.notify_one();
                continue;
            }
        }
        failed = false;
        // An error says that the log has stopped, which its watchers hear of elsewhere.
        if raft.trigger().snapshot().await.is_err() {
            return;
        }
    }
}

/// Waits until this member is removed, and notes it in the data folder: a restart must not take part again.
async fn watch_standing<M: Machine>(
    membership: Membership<M>,
    data_dir: PathBuf,
    removed: watch::Sender<Option<Removed>>,
    stop: CancellationToken,
) {
    let Some(why) = membership.removed(stop).await else { return };
    let note = why.to_string();
    let marked = tokio::task::spawn_blocking(move || directory::mark_removed(&data_dir, &note)).await;
    if let Ok(Err(error)) = marked {
        warn!(%error, "the data folder could not be marked as a removed member's");
    }
    removed.send_replace(Some(why));
}

fn propose_error(error: ClientWriteError<Types>) -> ProposeError {
    match error {
        ClientWriteError::ForwardToLeader(forward) => ProposeError::NotLeader { leader: hint(forward) },
        other => ProposeError::UnknownOutcome(other.to_string()),
    }
}

fn hint(forward: ForwardToLeader<Types>) -> Option<Member> {
    let (id, peer) = forward.leader_id.zip(forward.leader_node)?;
    let super::Peer { name, address, read_only } = peer;
    Some(Member { id, name, address, voter: true, read_only, is_leader: true })
}
