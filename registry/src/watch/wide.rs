//! One read of more than a Scope holds: wait until the answer is as current and as new as asked, then stream its rows.

use std::{sync::Arc, time::Duration};

use muster_catalog::Wide;
use tokio::{sync::OwnedSemaphorePermit, time::timeout};
use tonic::Status;

use super::{
    rows::Pieces,
    stream::{cut_off, lost},
};
use crate::{
    convert::required,
    outbox::Outbox,
    proto::registry as pb,
    service::{
        Core,
        reads::{BARRIER_TIMEOUT, policy},
    },
};

/// Reads that wait or are answered at once on one member: each holds a stream, and while it is answered a Snapshot.
pub(crate) const MAX_READS: usize = 512;
/// The longest wait: the dialect's ten minutes and their jitter.
const MAX_WAIT: Duration = Duration::from_secs(11 * 60);

/// Answers one read; its place among the reads is given back at its end.
pub(crate) async fn read(
    core: Arc<Core>,
    request: pb::ReadRequest,
    out: Outbox<pb::ReadReply>,
    _place: OwnedSemaphorePermit,
) {
    let (stop, mut contact) = (core.stop.clone(), core.contact.clone());
    let ended = tokio::select! {
        ended = answer(&core, request, &out) => ended,
        () = out.closed() => return,
        () = stop.cancelled() => Err(Status::unavailable("this member is stopping")),
        true = lost(&mut contact) => Err(cut_off(&core)),
    };
    if let Err(status) = ended {
        out.end(status);
    }
}

async fn answer(core: &Arc<Core>, request: pb::ReadRequest, out: &Outbox<pb::ReadReply>) -> Result<(), Status> {
    let policy = policy(request.consistency());
    let wide = required("read.what", request.what).and_then(Wide::try_from);
    let wide = wide.map_err(|error| Status::invalid_argument(error.to_string()))?;
    let mut snapshots = core.catalog.snapshot.clone();
    if !request.stale {
        let index = core.clone().read_index(policy).await.map_err(Status::unavailable)?;
        let reached = timeout(BARRIER_TIMEOUT, snapshots.wait_for(|snapshot| snapshot.index() >= index)).await;
        let late =
            || Status::unavailable(format!("this member did not reach index {index} within {BARRIER_TIMEOUT:?}"));
        reached.map_err(|_| late())?.map_err(|_| late())?;
    }
    if request.after_index > 0 {
        let cluster = snapshots.borrow().cluster().clone();
        let wait = Duration::from_millis(request.wait_milliseconds).min(MAX_WAIT);
        // After a restore indexes start anew: what the reader has says nothing any more. Time that runs out is an answer.
        let is_newer = |index: u64| index.max(1) > request.after_index;
        let newer = async {
            loop {
                // Others' entries wake it as little as they wake a watcher: it waits for its own topic.
                let moved = core.catalog.waiters.subscribe(wide.topic());
                let now = core.catalog.now();
                if is_newer(wide.index(&now)) || *now.cluster() != cluster {
                    return;
                }
                drop(now);
                moved.await;
            }
        };
        let _ = timeout(wait, newer).await;
    }
    metrics::counter!("muster_registry_wide_reads_total").increment(1);
    let snapshot = snapshots.borrow().clone();
    let mut pieces = Pieces::wide(&snapshot, &wide);
    while let Some((rows, _)) = pieces.take() {
        out.send(pb::ReadReply { rows }).await?;
    }
    Ok(())
}
