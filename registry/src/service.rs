//! The gRPC service of a member. Thin: requests come in, [`Core`] knows what to do, replies go out.

pub(crate) mod backup;
pub(crate) mod brakes;
pub(crate) mod contact;
pub(crate) mod door;
pub(crate) mod members;
mod meters;
pub(crate) mod peers;
pub(crate) mod reads;
pub(crate) mod renewals;
mod tags;
pub(crate) mod write;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use muster_catalog::Timestamp;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    agreement::Agreement,
    autopilot::task::{AutopilotStatus, StatusSender},
    leader::brakes::Shown,
    log::Log,
    machine::Catalog,
    outbox::{Ready, outbox},
    proto::registry::{self as pb, registry_server::Registry},
    raft::{Ahead, Dial, ReadError},
    watch::{
        stream::follow,
        wide::{self, MAX_READS},
    },
};
use brakes::Decide;
use meters::Meters;
use peers::Peers;
use renewals::{Pulse, Signs};
use write::MAX_BATCH;

/// What one member is made of, shared by its calls and tasks.
pub(crate) struct Core {
    pub(crate) log: Arc<dyn Log>,
    pub(crate) catalog: Catalog,
    pub(crate) peers: Peers,
    /// Signs of life on their way to the leader.
    pub(crate) pulses: mpsc::Sender<Pulse>,
    /// Signs of life for this member, should it lead.
    pub(crate) signs: mpsc::Sender<Signs>,
    /// What operators decide, for this member, should it lead.
    pub(crate) decisions: mpsc::Sender<Decide>,
    /// Which losses are held back, should it lead.
    pub(crate) held: watch::Receiver<Shown>,
    /// Whether a leader is heard, and kept up with.
    pub(crate) contact: watch::Receiver<bool>,
    /// Whether the members hold the same catalog.
    pub(crate) agreement: watch::Receiver<Agreement>,
    /// That the leader lacks what is committed here, once it has said so.
    pub(crate) ahead: watch::Sender<Option<Ahead>>,
    /// How the members do, while this one leads.
    pub(crate) autopilot: watch::Receiver<Option<Arc<AutopilotStatus>>>,
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: TaskTracker,
    /// Places for reads that wait or are answered.
    reads: Arc<Semaphore>,
    meters: Meters,
    stamped: AtomicU64,
    tags: tags::TagRoom,
}

/// What the tasks of a member receive from.
pub(crate) struct Queues {
    pub(crate) pulses: mpsc::Receiver<Pulse>,
    pub(crate) signs: mpsc::Receiver<Signs>,
    pub(crate) decisions: mpsc::Receiver<Decide>,
    pub(crate) held: watch::Sender<Shown>,
    pub(crate) contact: watch::Sender<bool>,
    pub(crate) agreement: watch::Sender<Agreement>,
    pub(crate) autopilot: StatusSender,
}

impl Core {
    /// A member over its log.
    pub(crate) fn new(log: Arc<dyn Log>, catalog: Catalog, dial: Dial, stop: CancellationToken) -> (Arc<Self>, Queues) {
        let (pulses, pulses_receiver) = mpsc::channel(renewals::MAX_WAITING);
        // One batch of each other member, and the own.
        let (signs, signs_receiver) = mpsc::channel(16);
        // Operators are few.
        let (decisions, decisions_receiver) = mpsc::channel(16);
        let (held_sender, held) = watch::channel(None);
        let (contact_sender, contact) = watch::channel(true);
        let (agreement_sender, agreement) = watch::channel(Agreement::default());
        let (autopilot_sender, autopilot) = watch::channel(None);
        let (peers, tasks, meters, stamped) = (Peers::new(dial), TaskTracker::new(), Meters::new(), AtomicU64::new(0));
        let reads = Arc::new(Semaphore::new(MAX_READS));
        let core = Self {
            log,
            catalog,
            peers,
            pulses,
            signs,
            decisions,
            held,
            contact,
            agreement,
            ahead: watch::Sender::new(None),
            autopilot,
            stop,
            tasks,
            reads,
            meters,
            stamped,
            tags: tags::TagRoom::default(),
        };
        let queues = Queues {
            pulses: pulses_receiver,
            signs: signs_receiver,
            decisions: decisions_receiver,
            held: held_sender,
            contact: contact_sender,
            agreement: agreement_sender,
            autopilot: autopilot_sender,
        };
        (Arc::new(core), queues)
    }

    /// The time of a proposal: the clock's, but never before the last one's.
    fn stamp(&self) -> Timestamp {
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let clock = u64::try_from(clock).unwrap_or(u64::MAX).max(self.catalog.snapshot.borrow().at().0);
        Timestamp(self.stamped.fetch_max(clock, Ordering::Relaxed).max(clock))
    }
}

/// The gRPC face of a [`Core`].
pub(crate) struct RegistryService(pub(crate) Arc<Core>);

type EventStream = Ready<pb::WatchEvent>;

type BackupStream = Ready<pb::BackupPiece>;

#[tonic::async_trait]
impl Registry for RegistryService {
    type WatchStream = EventStream;
    type BackupStream = BackupStream;
    type ReadStream = Ready<pb::ReadReply>;

    async fn write(&self, request: Request<pb::WriteRequest>) -> Result<Response<pb::WriteReply>, Status> {
        // A write goes on when its caller gives up: the log has it or not, and the metrics should say so.
        let core = self.0.clone();
        let write = self.0.tasks.spawn(async move { core.write(request.into_inner()).await });
        write.await.map(Response::new).map_err(|error| Status::internal(format!("the write broke off: {error}")))
    }

    async fn write_batch(
        &self,
        request: Request<pb::WriteBatchRequest>,
    ) -> Result<Response<pb::WriteBatchReply>, Status> {
        let pb::WriteBatchRequest { commands, forwarded } = request.into_inner();
        if commands.len() > MAX_BATCH {
            let message = format!("{} writes in one message are over {MAX_BATCH}: send fewer", commands.len());
            return Err(Status::invalid_argument(message));
        }
        let core = self.0.clone();
        let write = self.0.tasks.spawn(async move { core.write_many(commands, forwarded).await });
        write.await.map(Response::new).map_err(|error| Status::internal(format!("the writes broke off: {error}")))
    }

    async fn watch(&self, request: Request<Streaming<pb::WatchRequest>>) -> Result<Response<EventStream>, Status> {
        let (out, events) = outbox();
        self.0.tasks.spawn(follow(self.0.clone(), request.into_inner(), out));
        Ok(Response::new(events))
    }

    async fn read(&self, request: Request<pb::ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        self.0.check_serves()?;
        let place = self.0.reads.clone().try_acquire_owned();
        let place = place.map_err(|_| Status::resource_exhausted("as many reads wait here as this member takes"))?;
        let (out, replies) = outbox();
        self.0.tasks.spawn(wide::read(self.0.clone(), request.into_inner(), out, place));
        Ok(Response::new(replies))
    }

    async fn renew(&self, request: Request<pb::RenewRequest>) -> Result<Response<pb::RenewReply>, Status> {
        self.0.check_serves()?;
        self.0.renew(request.into_inner()).await.map(Response::new)
    }

    async fn renew_batch(
        &self,
        request: Request<pb::RenewBatchRequest>,
    ) -> Result<Response<pb::RenewBatchReply>, Status> {
        self.0.hear(request.into_inner()).await.map(Response::new)
    }

    async fn read_index(&self, request: Request<pb::ReadIndexRequest>) -> Result<Response<pb::ReadIndexReply>, Status> {
        let policy = reads::policy(request.into_inner().consistency());
        match self.0.log.read_index(policy).await {
            Ok(index) => Ok(Response::new(pb::ReadIndexReply { index })),
            Err(error @ ReadError::NotLeader { .. }) => Err(Status::failed_precondition(error.to_string())),
            Err(error) => Err(Status::unavailable(error.to_string())),
        }
    }

    async fn members(&self, request: Request<pb::MembersRequest>) -> Result<Response<pb::MembersReply>, Status> {
        Ok(Response::new(self.0.members(request.into_inner()).await))
    }

    async fn checksum(&self, request: Request<pb::ChecksumRequest>) -> Result<Response<pb::ChecksumReply>, Status> {
        Ok(Response::new(self.0.checksum(request.into_inner().index)))
    }

    async fn backup(&self, request: Request<pb::BackupRequest>) -> Result<Response<BackupStream>, Status> {
        let pieces = self.0.clone().backup(request.into_inner()).await?;
        Ok(Response::new(pieces))
    }

    async fn restore(
        &self,
        request: Request<Streaming<pb::RestoreRequest>>,
    ) -> Result<Response<pb::RestoreReply>, Status> {
        let core = self.0.clone();
        let restore = self.0.tasks.spawn(async move { core.restore(request.into_inner()).await });
        restore.await.map(Response::new).map_err(|error| Status::internal(format!("the restore broke off: {error}")))
    }

    async fn change_members(
        &self,
        request: Request<pb::ChangeMembersRequest>,
    ) -> Result<Response<pb::ChangeMembersReply>, Status> {
        // It goes on when its caller gives up, so that no change is left half done for that.
        let core = self.0.clone();
        let change = self.0.tasks.spawn(async move { core.change_members(request.into_inner()).await });
        change.await.map(Response::new).map_err(|error| Status::internal(format!("the change broke off: {error}")))
    }

    async fn brakes(&self, request: Request<pb::BrakesRequest>) -> Result<Response<pb::BrakesReply>, Status> {
        self.0.brakes(request.into_inner()).await.map(Response::new)
    }

    async fn decide_brake(
        &self,
        request: Request<pb::DecideBrakeRequest>,
    ) -> Result<Response<pb::DecideBrakeReply>, Status> {
        // A decision goes on when its caller gives up.
        let core = self.0.clone();
        let decide = self.0.tasks.spawn(async move { core.decide_brake(request.into_inner()).await });
        decide.await.map(Response::new).map_err(|error| Status::internal(format!("the decision broke off: {error}")))
    }
}

#[cfg(test)]
pub(crate) mod tests;
