//! Backup and restore: the catalog out of a member as a stream, and another one in through the log.

use std::{
    io::{self, Read, Write},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt, stream};
use tokio::{runtime::Handle, sync::mpsc};
use tonic::Status;

use super::Core;
use crate::{
    codec::encode_snapshot,
    limits::MAX_RESTORED_BYTES,
    machine::{Answer, encode_restore, restore::FIRST_FORMAT_TO_RESTORE},
    outbox::{Outbox, Ready, outbox},
    proto::{
        catalog,
        registry::{
            self as pb, backup_piece::Piece as BackupPiece, restore_reply::Outcome, restore_request::Piece as Asked,
        },
    },
    raft::{Member, ProposeError, ReadPolicy},
    service::{peers::surely_not_sent, reads::BARRIER_TIMEOUT},
};

/// One piece on the wire and in the log: a fraction of a message, and no burden for a log that others write to as well.
pub(crate) const PIECE_BYTES: usize = 256 * 1024;

/// Collects what is written into pieces.
struct Pieces {
    gathered: BytesMut,
    out: Outbox<pb::BackupPiece>,
    runtime: Handle,
}

impl Pieces {
    fn send(&mut self) -> io::Result<()> {
        let piece = pb::BackupPiece { piece: Some(BackupPiece::Data(self.gathered.split().freeze())) };
        let unsent = |unsent| io::Error::new(io::ErrorKind::BrokenPipe, Status::from(unsent).message());
        self.runtime.block_on(self.out.send(piece)).map_err(unsent)
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.gathered.extend_from_slice(bytes);
        if self.gathered.len() >= PIECE_BYTES {
            self.send()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.gathered.is_empty() { Ok(()) } else { self.send() }
    }
}

impl Core {
    /// Streams the catalog: all that was committed before it was asked, unless `stale`.
    pub(crate) async fn backup(self: Arc<Self>, request: pb::BackupRequest) -> Result<Ready<pb::BackupPiece>, Status> {
        let decided = self.agreement.borrow().own.as_ref().is_some_and(|found| found.decided);
        // Where nobody knows who is right, whatever one member has may be what is wanted.
        if decided || !request.stale {
            self.check_serves()?;
        }
        if !request.stale {
            let index = self.clone().read_index(ReadPolicy::Quorum).await;
            let index = index.map_err(|why| {
                Status::unavailable(format!("{why}; a member's own state, however old, is given with --stale"))
            })?;
            let mut snapshots = self.catalog.snapshot.clone();
            let reached = snapshots.wait_for(|snapshot| snapshot.index() >= index);
            if !matches!(tokio::time::timeout(BARRIER_TIMEOUT, reached).await, Ok(Ok(_))) {
                return Err(Status::unavailable(format!("this member has not caught up within {BARRIER_TIMEOUT:?}")));
            }
        }
        let snapshot = self.catalog.now();
        if snapshot.cluster().uuid.is_empty() {
            return Err(Status::unavailable("this member has no catalog yet"));
        }
        let taken = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let own = self.log.members().into_iter().find(|member| member.id == self.log.id());
        let header = pb::BackupHeader {
            cluster: Some(snapshot.cluster().into()),
            format: snapshot.format(),
            index: snapshot.index(),
            at_milliseconds: snapshot.at().0,
            taken_milliseconds: u64::try_from(taken).unwrap_or(u64::MAX),
            taken_by: own.map(|own| own.name).unwrap_or_default(),
            nodes: snapshot.node_count() as u64,
            services: snapshot.service_count() as u64,
            instances: snapshot.instance_count() as u64,
        };
        let ((out, pieces), runtime) = (outbox(), Handle::current());
        self.tasks.spawn_blocking(move || {
            let first = pb::BackupPiece { piece: Some(BackupPiece::Header(header)) };
            let begun = runtime.block_on(out.send(first)).is_ok();
            let mut to = Pieces { gathered: BytesMut::new(), out, runtime };
            if let Some(Err(error)) = begun.then(|| encode_snapshot(&snapshot, &mut to)) {
                // Where the asker has gone nobody hears it.
                to.out.end(Status::aborted(error.to_string()));
            }
        });
        Ok(pieces)
    }

    /// Takes a catalog, piece by piece, and puts it in place; or hands it on.
    pub(crate) async fn restore(
        &self,
        mut asked: impl Stream<Item = Result<pb::RestoreRequest, Status>> + Unpin + Send + 'static,
    ) -> pb::RestoreReply {
        let outcome = match asked.next().await {
            Some(Ok(pb::RestoreRequest { piece: Some(Asked::Start(start)) })) => self.restore_from(start, asked).await,
            _ => Outcome::Refused("a restore begins with its start".to_owned()),
        };
        pb::RestoreReply { outcome: Some(outcome) }
    }

    async fn restore_from(
        &self,
        start: pb::RestoreStart,
        asked: impl Stream<Item = Result<pb::RestoreRequest, Status>> + Unpin + Send + 'static,
    ) -> Outcome {
        let leadership = self.log.leadership().borrow().clone();
        if !leadership.is_leader {
            return match leadership.leader.filter(|leader| leader.id != self.log.id() && !start.forwarded) {
                Some(leader) => self.hand_restore_on(leader, start, asked).await,
                None => Outcome::NotDone("no member leads at the moment".to_owned()),
            };
        }
        let format = self.catalog.now().format();
        if format < FIRST_FORMAT_TO_RESTORE {
            return Outcome::Refused(format!(
                "the registry's catalog has format {format}, and members of that format cannot restore: upgrade all members \
                 first"
            ));
        }
        if start.format > format {
            return Outcome::Refused(format!(
                "the backup has catalog format {}, this registry has {format}: upgrade all members first",
                start.format
            ));
        }
        self.propose_pieces(asked).await
    }

    async fn propose_pieces(
        &self,
        mut asked: impl Stream<Item = Result<pb::RestoreRequest, Status>> + Unpin + Send,
    ) -> Outcome {
        let (id, mut bytes) = (uuid::Uuid::new_v4().to_string(), 0_usize);
        for number in 0_u32.. {
            let Some(Ok(pb::RestoreRequest { piece: Some(Asked::Data(pb::RestoreData { data, last })) })) =
                asked.next().await
            else {
                return Outcome::NotDone("the catalog broke off before its end".to_owned());
            };
            bytes += data.len();
            if bytes > MAX_RESTORED_BYTES {
                return Outcome::Refused(format!("the catalog is larger than {MAX_RESTORED_BYTES} bytes"));
            }
            let piece = catalog::RestorePiece { id: id.clone(), number, data, last };
            let proposed = self.log.propose_many(vec![encode_restore(self.stamp(), piece)]).await.pop();
            let missing = || Err(ProposeError::UnknownOutcome("the log gave no outcome".to_owned()));
            match proposed.unwrap_or_else(missing) {
                Ok((_, Answer::RestoreRefused(why))) => return Outcome::Refused(why),
                Ok((index, _)) if last => return Outcome::Index(index),
                Ok(_) => {}
                Err(ProposeError::NotLeader { .. }) => return Outcome::NotDone("the leader just changed".to_owned()),
                Err(error @ (ProposeError::Refused(_) | ProposeError::NoRoom(_))) => {
                    return Outcome::Refused(error.to_string());
                }
                // Without its last piece nothing is put in place.
                Err(error) if !last => return Outcome::NotDone(error.to_string()),
                Err(error) => return Outcome::UnknownOutcome(error.to_string()),
            }
        }
        Outcome::Refused("the catalog comes in too many pieces".to_owned())
    }

    async fn hand_restore_on(
        &self,
        leader: Member,
        start: pb::RestoreStart,
        asked: impl Stream<Item = Result<pb::RestoreRequest, Status>> + Unpin + Send + 'static,
    ) -> Outcome {
        let to = format!("leader {} at {}", leader.name, leader.address);
        let mut client = match self.peers.client(&leader.address) {
            Ok(client) => client,
            Err(status) => return Outcome::NotDone(status.message().to_owned()),
        };
        let start = pb::RestoreStart { forwarded: true, ..start };
        let first = stream::iter([pb::RestoreRequest { piece: Some(Asked::Start(start)) }]);
        // A stream that breaks here breaks there: before the last piece nothing is done.
        let rest = asked.take_while(|next| std::future::ready(next.is_ok())).filter_map(|next| async { next.ok() });
        match client.restore(first.chain(rest)).await {
            Ok(reply) => {
                let outcome = reply.into_inner().outcome;
                outcome.unwrap_or_else(|| Outcome::UnknownOutcome(format!("{to} gave no outcome")))
            }
            Err(status) if surely_not_sent(&status) => Outcome::NotDone(format!("{to}: {}", status.message())),
            Err(status) => Outcome::UnknownOutcome(format!("{to}: {}", status.message())),
        }
    }
}

/// A file of rows as what is sent, the last piece marked.
pub(crate) fn pieces(mut rows: impl Read, format: u32, out: &mpsc::Sender<pb::RestoreRequest>) -> io::Result<()> {
    let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the registry took no more");
    let start = pb::RestoreStart { format, forwarded: false };
    out.blocking_send(pb::RestoreRequest { piece: Some(Asked::Start(start)) }).map_err(gone)?;
    let mut next = piece(&mut rows)?;
    loop {
        let data = next;
        next = piece(&mut rows)?;
        let last = next.is_empty();
        let request = pb::RestoreRequest { piece: Some(Asked::Data(pb::RestoreData { data, last })) };
        out.blocking_send(request).map_err(gone)?;
        if last {
            return Ok(());
        }
    }
}

fn piece(rows: &mut impl Read) -> io::Result<Bytes> {
    let mut piece = Vec::with_capacity(PIECE_BYTES);
    rows.take(PIECE_BYTES as u64).read_to_end(&mut piece)?;
    Ok(piece.into())
}
