//! The renewal of the node's lease: small, often, and apart from the push so that a slow push does not cost it.

use std::{sync::Arc, time::Duration};

use muster_registry::client::Client;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::{Pusher, SyncStatus};

/// Renews the lease of one node.
pub(crate) struct LeaseTask {
    /// Whose lease it is.
    pub(crate) pusher: Arc<Pusher>,
    /// The way to the registry.
    pub(crate) client: Arc<Client>,
    /// Notified when the registry does not know the node.
    pub(crate) unknown: Arc<Notify>,
    /// Renewals begin once the registry knows the node.
    pub(crate) status: watch::Receiver<SyncStatus>,
    /// The lease's time to live.
    pub(crate) ttl: Duration,
}

impl LeaseTask {
    /// Renews at a third of the time to live until told to stop.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let known = async { self.status.wait_for(|status| status.known).await.is_ok() };
        tokio::select! {
            known = known => if !known { return },
            () = stop.cancelled() => return,
        }
        let third = self.ttl / 3;
        let mut tick = tokio::time::interval(third);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = stop.cancelled() => return,
            }
            let node = &self.pusher.node;
            match self.client.renew(&node.name, &node.id, self.pusher.incarnation).await {
                Ok(answer) if answer.known => {}
                Ok(_) => self.unknown.notify_one(),
                // The client goes to another member by itself.
                Err(error) => tracing::debug!(%error, "the lease was not renewed"),
            }
        }
    }
}
