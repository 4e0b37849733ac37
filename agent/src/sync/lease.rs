//! The renewal of the node's lease: small, often, and apart from the push so that a slow push does not cost it.
//!
//! How long the lease is the registry says with each renewal: it ends leases by its own clock, whatever is configured
//! here. The configured one counts until then, and with members of earlier builds, which do not say.

use std::{sync::Arc, time::Duration};

use muster_registry::client::Client;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{Pusher, SyncStatus};

/// The shortest lease, here and as a registry tells it: to keep up a shorter one would be more work than the rest.
pub(crate) const SHORTEST_LEASE: Duration = Duration::from_millis(300);

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
    /// The lease's time to live: as configured, then as the registry says.
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
        loop {
            let begun = Instant::now();
            let node = &self.pusher.node;
            let renewal = self.client.renew(&node.name, &node.id, self.pusher.incarnation);
            let answer = tokio::select! {
                answer = renewal => answer,
                () = stop.cancelled() => return,
            };
            match answer {
                Ok(answer) => {
                    if !answer.known {
                        self.unknown.notify_one();
                    }
                    self.learn(answer.lease);
                }
                // The client goes to another member by itself.
                Err(error) => tracing::debug!(%error, "the lease was not renewed"),
            }
            tokio::select! {
                () = sleep_until(begun + self.ttl / 3) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    fn learn(&mut self, told: Option<Duration>) {
        let Some(told) = told.map(|told| told.max(SHORTEST_LEASE)).filter(|told| *told != self.ttl) else { return };
        let here = self.ttl;
        tracing::info!("the registry's registry.lease_ttl counts, which is {told:?}: here it was taken for {here:?}");
        self.client.set_lease(told);
        self.ttl = told;
    }
}
