//! What is to be sent now: the difference between what a stream wants and what it was sent.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use muster_catalog::Text;

use super::{Outstanding, Push, Sent, Subscription, Subscriptions, Variant};
use crate::{
    kind::ResourceKind,
    resource::{Lookup, Resource, Resources, Version},
    translate::{HTTP, empty_endpoints},
};

/// A push that is not numbered yet.
pub(super) struct Plan {
    version: Version,
    resources: Vec<Arc<Resource>>,
    removed: Vec<Text>,
    /// Those of `resources` that differ from what was sent, or were rejected.
    changed: Vec<Text>,
}

/// What a subscription is to hold.
#[derive(Default)]
struct Wanted {
    resources: BTreeMap<Text, Arc<Resource>>,
    /// It exists but nothing can be said of it yet: not sent, not removed.
    pending: BTreeSet<Text>,
}

impl Subscriptions {
    pub(super) fn plan(&self, kind: ResourceKind, resources: &Resources) -> Option<Plan> {
        let subscription = &self.kinds[kind];
        let wanted = subscription.wanted(kind, resources);
        let retained = if kind == ResourceKind::Cluster && !self.callers_are_settled(resources) {
            subscription.gone(&wanted).cloned().collect()
        } else {
            BTreeSet::new()
        };
        match self.variant {
            Variant::Sotw if kind.is_whole() => subscription.plan_whole(wanted, &retained),
            Variant::Sotw => subscription.plan_changes(wanted, Vec::new(), false),
            Variant::Delta => {
                let gone = subscription.gone(&wanted).filter(|name| !retained.contains(*name));
                let unknown = subscription.asked.iter().filter(|name| !wanted.knows(name));
                let removed: BTreeSet<Text> = gone.chain(unknown).cloned().collect();
                subscription.plan_changes(wanted, removed.into_iter().collect(), subscription.answer_owed)
            }
        }
    }

    /// Numbers a plan and takes it for sent. A rejected push is partly applied, and we cannot tell which part: all of it goes
    /// with the next one once more.
    pub(super) fn commit(&mut self, kind: ResourceKind, plan: Plan) -> Push {
        self.pushes += 1;
        let nonce = self.pushes.to_string();
        let is_whole = self.variant == Variant::Sotw && kind.is_whole();
        let subscription = &mut self.kinds[kind];
        let mut before = if is_whole { std::mem::take(&mut subscription.sent) } else { BTreeMap::new() };
        for resource in &plan.resources {
            subscription.asked.remove(&resource.name);
            subscription.resend.remove(&resource.name);
            subscription.rejected.remove(&resource.name);
            // What is held under this name is given up for the resource's own text, which all share.
            let last = before.remove(&resource.name).or_else(|| subscription.sent.remove(&resource.name));
            if subscription.names.contains(&resource.name) {
                subscription.names.replace(resource.name.clone());
            }
            // What a SotW client brought along is not known, and equals no version.
            let brought = subscription.resumed.then(Version::default);
            let in_force = last.map_or(brought, |last| last.in_force);
            let kept = is_whole.then(|| resource.clone());
            let sent = Sent { version: resource.version, resource: kept, is_brought: false, in_force };
            subscription.sent.insert(resource.name.clone(), sent);
        }
        for name in &plan.removed {
            subscription.asked.remove(name);
            subscription.sent.remove(name);
            subscription.rejected.remove(name);
        }
        if is_whole {
            subscription.asked.clear();
            subscription.rejected.clear();
        }
        subscription.weigh();
        subscription.answer_owed = false;
        subscription.retry = false;
        subscription.last_nonce.clone_from(&nonce);
        subscription.outstanding =
            Some(Outstanding { version: plan.version, names: plan.resources.iter().map(name_of).collect() });
        if kind == ResourceKind::Cluster {
            self.resend_endpoints(&plan);
        }
        Push { kind, nonce, version: plan.version, resources: plan.resources, removed: plan.removed }
    }

    /// A cluster that was changed warms until it is sent endpoints, the same ones too. It may subscribe to them later.
    fn resend_endpoints(&mut self, plan: &Plan) {
        let clusters = std::mem::take(&mut self.kinds[ResourceKind::Cluster]);
        let endpoints = &mut self.kinds[ResourceKind::Endpoint];
        endpoints.resend.extend(plan.changed.iter().cloned());
        endpoints.resend.retain(|name| clusters.sent.contains_key(name));
        endpoints.compared = None;
        self.kinds[ResourceKind::Cluster] = clusters;
    }

    /// Whether the client has accepted the listeners and routes as they are now, so that the clusters which they no
    /// longer name may go. What it rejected counts only where an older form may be in force that names others.
    fn callers_are_settled(&self, resources: &Resources) -> bool {
        ResourceKind::ALL.into_iter().filter(|kind| kind.names_clusters()).all(|kind| {
            let callers = &self.kinds[kind];
            if !callers.is_active {
                return true;
            }
            let wanted = callers.wanted(kind, resources);
            let is_told = wanted.resources.values().all(|caller| callers.is_sent(caller));
            // A route that is gone is not told of in every variant; a listener always is.
            let is_let_go = !kind.is_whole() || callers.gone(&wanted).next().is_none();
            callers.outstanding.is_none() && !callers.has_older_in_force(kind) && is_told && is_let_go
        })
    }
}

impl Subscription {
    fn wanted(&self, kind: ResourceKind, resources: &Resources) -> Wanted {
        let mut wanted = Wanted::default();
        if self.wildcard {
            let all = resources.wildcard(kind).map(|resource| (resource.name.clone(), resource.clone()));
            wanted.resources.extend(all);
        }
        for name in &self.names {
            match resources.find(kind, name) {
                Lookup::Found(resource) => {
                    wanted.resources.insert(name.clone(), resource.clone());
                }
                Lookup::Pending => {
                    wanted.pending.insert(name.clone());
                }
                // Endpoints that vanish are emptied in so many words: a client keeps what is merely left out.
                Lookup::Absent if kind == ResourceKind::Endpoint && (self.resumed || self.sent.contains_key(name)) => {
                    wanted.resources.insert(name.clone(), empty_endpoints(name.clone()));
                }
                Lookup::Absent => {}
            }
        }
        wanted
    }

    /// Whether something stands rejected of which the client has an older form in force, with clusters of its own. The
    /// listener for Hosts has none: it leads to its routes.
    fn has_older_in_force(&self, kind: ResourceKind) -> bool {
        let leads_to_clusters = |name: &&Text| kind == ResourceKind::Route || ***name != *HTTP;
        let is_older = |sent: &Sent| sent.in_force.is_some_and(|version| version != sent.version);
        self.rejected.iter().filter(leads_to_clusters).any(|name| self.sent.get(name).is_some_and(is_older))
    }

    /// Whether what stands rejected is due though nothing else is.
    fn is_retried(&self) -> bool {
        self.retry && !self.rejected.is_empty()
    }

    /// What was sent and is no more.
    fn gone<'a>(&'a self, wanted: &'a Wanted) -> impl Iterator<Item = &'a Text> {
        self.sent.keys().filter(|name| !wanted.knows(name))
    }

    /// SotW clusters and listeners: always all of them, with those that may not go yet.
    fn plan_whole(&self, wanted: Wanted, retained: &BTreeSet<Text>) -> Option<Plan> {
        let mut whole = wanted.resources;
        for name in retained {
            if let Some(resource) = self.sent.get(name).and_then(|sent| sent.resource.clone()) {
                whole.insert(name.clone(), resource);
            }
        }
        let is_changed = |resource: &&Arc<Resource>| !self.is_sent(resource);
        let is_new = whole.values().any(|resource| is_changed(&resource));
        if !is_new && !self.is_retried() && whole.len() == self.sent.len() && !self.answer_owed {
            return None;
        }
        let is_told = |resource: &&Arc<Resource>| is_changed(resource) || self.rejected.contains(&resource.name);
        let changed = whole.values().filter(is_told).map(name_of).collect();
        let version = version_of(&whole);
        Some(Plan { version, resources: whole.into_values().collect(), removed: Vec::new(), changed })
    }

    fn plan_changes(&self, wanted: Wanted, removed: Vec<Text>, answer_owed: bool) -> Option<Plan> {
        let version = |wanted: &Wanted| version_of(&wanted.resources);
        let is_due = |resource: &&Arc<Resource>| {
            let name = &resource.name;
            !self.is_sent(resource) || self.asked.contains(name) || self.resend.contains(name)
        };
        let is_push = !removed.is_empty() || answer_owed || self.is_retried();
        if !is_push && !wanted.resources.values().any(|resource| is_due(&resource)) {
            return None;
        }
        let goes = |resource: &&Arc<Resource>| is_due(resource) || self.rejected.contains(&resource.name);
        let resources: Vec<Arc<Resource>> = wanted.resources.values().filter(goes).cloned().collect();
        let changed = resources.iter().map(name_of).collect();
        Some(Plan { version: version(&wanted), resources, removed, changed })
    }
}

impl Wanted {
    fn knows(&self, name: &Text) -> bool {
        self.resources.contains_key(name) || self.pending.contains(name)
    }
}

fn name_of(resource: &Arc<Resource>) -> Text {
    resource.name.clone()
}

fn version_of(set: &BTreeMap<Text, Arc<Resource>>) -> Version {
    Version::of_set(set.iter().map(|(name, resource)| (name, resource.version)))
}
