//! One task translates the catalog whenever it changes, for all streams.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use muster_catalog::{Freshness, Name, Text, Topic, port::Source};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    resource::Resources,
    translate::{Audience, Proxies, Translation, Translator},
};

/// How many services are asked for at once that are not held yet: one round of them is as much as a replica takes up
/// in its half second.
const MAX_HOLDS: usize = 64;

/// How often services that proxies call are said to be in use, and those that are not held yet are asked for again: far
/// below the time after which a replica lets go of what is not used.
const RENEWAL: Duration = Duration::from_secs(10);

/// How many ids of proxies are remembered: far more than a host has.
const MAX_KNOWN: usize = 4_096;

/// What everyone is served at one moment.
#[derive(Debug)]
pub(crate) struct Served {
    /// For who is no registered proxy; `None` where such are refused: what nobody is served wakes nobody.
    pub(crate) all: Option<Arc<Resources>>,
    /// For registered proxies, by their ids.
    pub(crate) proxies: Audience,
    /// Registered proxies that wait until their upstreams are here.
    pub(crate) expected: BTreeSet<Text>,
    /// Ids under which a proxy is registered, or was: they are never taken for any client. A proxy that is registered anew,
    /// or whose definition is away for a moment, would lose its listeners.
    pub(crate) known: Arc<BTreeSet<Text>>,
}

impl Served {
    fn new(all: Arc<Resources>, proxies: Audience, expected: BTreeSet<Text>, serves_all: bool) -> Self {
        Self { all: serves_all.then_some(all), proxies, expected, known: Arc::default() }
    }

    /// Remembers who is registered now. Where they are too many over time, those who are not any more are forgotten.
    fn remembered(mut self, known: &mut Arc<BTreeSet<Text>>) -> Self {
        let registered = || self.proxies.keys().chain(&self.expected);
        if !registered().all(|id| known.contains(id)) {
            let known = Arc::make_mut(known);
            if known.len() >= MAX_KNOWN {
                known.clear();
            }
            known.extend(registered().cloned());
        }
        self.known = known.clone();
        self
    }

    fn is_same(&self, other: &Self) -> bool {
        let same = |(left, right): ((&_, &Arc<Resources>), (&_, &Arc<Resources>))| {
            left.0 == right.0 && Arc::ptr_eq(left.1, right.1)
        };
        let address = |all: &Option<Arc<Resources>>| all.as_ref().map(Arc::as_ptr);
        address(&self.all) == address(&other.all)
            && self.expected == other.expected
            && self.proxies.len() == other.proxies.len()
            && self.proxies.iter().zip(&other.proxies).all(same)
    }
}

/// What is served at the moment; `None` until the catalog is loaded. An empty answer before that would be an outage.
pub(crate) type Published = watch::Receiver<Option<Arc<Served>>>;

/// Receivers that are there without any stream: the one that streams get theirs from.
const UNUSED: usize = 1;

/// Translates and publishes until stopped, as long as there is a stream; `opened` says that one came. Changes that come
/// meanwhile are taken together in the next round.
pub(crate) async fn publish(
    mut translator: Translator,
    source: Arc<dyn Source>,
    published: watch::Sender<Option<Arc<Served>>>,
    opened: Arc<Notify>,
    stop: CancellationToken,
    serves_all: bool,
) {
    let (mut proxies, mut known) = (Proxies::default(), Arc::default());
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
        let (mut not_held, mut used, mut wake) = (BTreeSet::new(), BTreeSet::new(), None);
        if view.freshness != Freshness::Empty {
            let started = Instant::now();
            let translation = translator.translate(&view);
            let update = proxies.update(&translator, &view, started);
            metrics::histogram!("muster_xds_translate_seconds").record(started.elapsed());
            report(&translation);
            (not_held, used, wake) = (update.not_held, update.used, update.next);
            // Where nobody is served every service, nobody needs every set.
            if serves_all {
                not_held.extend(translation.not_held);
            }
            let next = Served::new(translation.resources, update.audience, update.expected, serves_all);
            let next = next.remembered(&mut known);
            published.send_if_modified(|current| {
                let is_new = current.as_ref().is_none_or(|current| !current.is_same(&next));
                if is_new {
                    *current = Some(Arc::new(next));
                }
                is_new
            });
        } else if !is_empty {
            // It was loaded a moment ago and is not any more; what was published stays. Wait for the right topic.
            continue;
        }
        drop(view);
        let pause = wake.map_or(RENEWAL, |at: Instant| at.saturating_duration_since(Instant::now()).min(RENEWAL));
        tokio::select! {
            () = stop.cancelled() => return,
            () = async { hold(&*source, &not_held, &used).await; changed.await } => {}
            () = tokio::time::sleep(pause), if wake.is_some() || !not_held.is_empty() || !used.is_empty() => {}
        }
    }
}

async fn hold(source: &dyn Source, not_held: &BTreeSet<Name>, used: &BTreeSet<Name>) {
    used.iter().for_each(|service| source.used(service));
    join_all(not_held.iter().take(MAX_HOLDS).map(|service| source.hold(service))).await;
}

fn report(translation: &Translation) {
    metrics::counter!("muster_xds_translations_total").increment(translation.translated);
    metrics::gauge!("muster_xds_traffic_disagreements").set(translation.disagreements as f64);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::XdsConfig,
        translate::tests::{fold, instance, put, view, with_nodes},
    };

    #[test]
    fn a_service_that_nobody_is_served_wakes_nobody() {
        let mut snapshot = with_nodes();
        for (serves_all, wakes) in [(false, false), (true, true)] {
            let mut translator = Translator::new(XdsConfig::default());
            let mut serve = |snapshot: &_| {
                let all = translator.translate(&view(snapshot)).resources;
                Served::new(all, Audience::new(), BTreeSet::new(), serves_all)
            };
            let before = serve(&snapshot);
            fold(&mut snapshot, vec![put(instance("n1", "new", &format!("for-{serves_all}"), 80))]);
            assert_eq!(!serve(&snapshot).is_same(&before), wakes, "unregistered ones are served: {serves_all}");
        }
    }

    #[test]
    fn proxies_are_remembered_until_they_are_too_many() {
        let translator = &mut Translator::new(XdsConfig::default());
        let all = translator.translate(&view(&with_nodes())).resources;
        let mut known = Arc::default();
        let mut serve = |ids: &[&str]| {
            let (last, rest) = ids.split_last().unwrap();
            let audience = rest.iter().map(|id| (Text::from(*id), all.clone())).collect();
            Served::new(all.clone(), audience, [Text::from(*last)].into(), true).remembered(&mut known).known
        };
        let first = serve(&["served", "awaited"]);
        assert!(Arc::ptr_eq(&serve(&["awaited"]), &first), "nobody new is no work");
        for number in 2..MAX_KNOWN {
            serve(&[&format!("proxy-{number}")]);
        }
        assert!(["served", "awaited"].iter().all(|id| serve(&["served"]).contains(*id)));
        let known = serve(&["served", "new"]);
        assert_eq!(known.iter().map(|id| &**id).collect::<Vec<_>>(), ["new", "served"]);
    }
}
