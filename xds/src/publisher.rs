//! One task translates the catalog whenever it changes, for all streams.

use std::sync::Arc;

use futures_util::future::join_all;
use muster_catalog::{Freshness, Topic, port::Source};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::{resource::Resources, translate::Translator};

/// How many services are asked for at once that are not held yet: one round of them is as much as a replica takes up
/// in its half second.
const MAX_HOLDS: usize = 64;

/// The resources of the moment; `None` until the catalog is loaded. An empty answer before that would be an outage.
pub(crate) type Published = watch::Receiver<Option<Arc<Resources>>>;

/// Receivers that are there without any stream: the one that streams get theirs from.
const UNUSED: usize = 1;

/// Translates and publishes until stopped, as long as there is a stream; `opened` says that one came. Changes that come
/// meanwhile are taken together in the next round.
pub(crate) async fn publish(
    mut translator: Translator,
    source: Arc<dyn Source>,
    published: watch::Sender<Option<Arc<Resources>>>,
    opened: Arc<Notify>,
    stop: CancellationToken,
    serves_all: bool,
) {
    loop {
        if published.receiver_count() <= UNUSED {
            // Looked at when something changed: what was published is old now, and the next stream is not shown it.
            published.send_replace(None);
            tokio::select! {
                () = stop.cancelled() => return,
                () = opened.notified() => continue,
            }
        }
        let view = source.view();
        let is_empty = view.freshness == Freshness::Empty;
        // Subscribe, read, then wait. An empty catalog may become a loaded one without any service in it.
        let changed = source.subscribe(if is_empty { Topic::Index } else { Topic::AnyService });
        let view = source.view();
        let mut not_held = Vec::new();
        if view.freshness != Freshness::Empty {
            let started = std::time::Instant::now();
            let translation = translator.translate(&view);
            metrics::histogram!("muster_xds_translate_seconds").record(started.elapsed());
            // Where nobody is served every service, nobody needs every set.
            if serves_all {
                not_held = translation.not_held;
            }
            published.send_if_modified(|current| {
                let is_new = current.as_ref().is_none_or(|current| !Arc::ptr_eq(current, &translation.resources));
                if is_new {
                    *current = Some(translation.resources);
                }
                is_new
            });
        } else if !is_empty {
            // It was loaded a moment ago and is not any more; what was published stays. Wait for the right topic.
            continue;
        }
        drop(view);
        let holds = join_all(not_held.iter().take(MAX_HOLDS).map(|service| source.hold(service)));
        tokio::select! {
            () = stop.cancelled() => return,
            () = async { holds.await; changed.await } => {}
        }
    }
}
