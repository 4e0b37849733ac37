//! What one stream asked for, was sent and has accepted: a pure state machine for both variants of the protocol.
//!
//! State of the world (SotW): each request names all that is wanted. Delta: each request adds and removes names. Both
//! become a [`Request`]; [`Subscriptions::next_push`] says what is to be sent now, one push per kind at a time.

mod plan;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use muster_catalog::Text;

use crate::{
    kind::{KindMap, ResourceKind},
    resource::{Resource, Resources, Version},
};

/// How many names one subscription may hold: more than the services of any registry this is made for. What all hold together
/// is bounded by [`crate::budget`].
pub(crate) const MAX_NAMES: usize = 65_536;

/// The longest name that is remembered. Names that are served are DNS labels; this leaves room for foreign ones.
const MAX_NAME_BYTES: usize = 512;

/// How much of the reason of a NACK is kept.
const MAX_REASON_CHARS: usize = 2_000;

/// What it costs to have a name in a set, in bytes: two words, in nodes that are half full.
const LISTED: usize = 32;

/// What it costs to know what was sent under a name: [`Sent`] and two words, in nodes that are half full.
const SENT: usize = 160;

/// What a text costs beside its bytes: its counts, and what the allocator adds.
const TEXT: usize = 32;

/// The name that stands for all.
const WILDCARD: &str = "*";

/// Which of the two protocols a stream speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// State of the world.
    Sotw,
    /// Incremental.
    Delta,
}

/// A request of either variant.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) kind: ResourceKind,
    pub(crate) nonce: String,
    /// The reason, when the push of that nonce was rejected.
    pub(crate) error: Option<String>,
    pub(crate) asked: Asked,
}

impl Request {
    /// What it costs to have it at hand, in bytes.
    pub(crate) fn cost(&self) -> usize {
        let texts = |names: &[String]| names.iter().map(|name| TEXT + LISTED + name.len()).sum::<usize>();
        match &self.asked {
            Asked::State { names, .. } => texts(names),
            Asked::Delta { subscribe, unsubscribe, initial } => {
                let versions = initial.iter().map(|(name, version)| 2 * TEXT + 3 * LISTED + name.len() + version.len());
                texts(subscribe) + texts(unsubscribe) + versions.sum::<usize>()
            }
        }
    }
}

/// What a request says of names.
#[derive(Debug)]
pub(crate) enum Asked {
    /// All that is wanted, and the version that the client has.
    State { names: Vec<String>, version: String },
    /// What is wanted more and less, and what a reconnecting client has.
    Delta { subscribe: Vec<String>, unsubscribe: Vec<String>, initial: HashMap<String, String> },
}

/// What a request said of the last push.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Accepted(Version),
    Rejected(Version, String),
    Nothing,
}

/// Why a stream is ended.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RequestError {
    #[error(
        "the subscription to {kind} resources names more than {MAX_NAMES} resources: subscribe to the wildcard instead"
    )]
    TooManyNames { kind: ResourceKind },
    #[error("a resource name of {length} bytes was asked for: names of services are at most 63 bytes long")]
    NameTooLong { length: usize },
}

/// What is to be sent.
#[derive(Debug)]
pub(crate) struct Push {
    pub(crate) kind: ResourceKind,
    pub(crate) nonce: String,
    pub(crate) version: Version,
    pub(crate) resources: Vec<Arc<Resource>>,
    /// Delta only.
    pub(crate) removed: Vec<Text>,
}

/// What the client was sent last under a name.
#[derive(Debug)]
struct Sent {
    version: Version,
    /// Kept where a push holds all of a kind, for those that may not go yet.
    resource: Option<Arc<Resource>>,
    /// A reconnecting delta client brought it along: its name is no resource's.
    is_brought: bool,
    /// The version that the client accepted last, and has in force if it rejected what came after.
    in_force: Option<Version>,
}

#[derive(Debug)]
struct Outstanding {
    version: Version,
    /// What is in it.
    names: Vec<Text>,
}

/// One kind on one stream.
#[derive(Debug, Default)]
struct Subscription {
    /// Whether it was ever asked for.
    is_active: bool,
    wildcard: bool,
    names: BTreeSet<Text>,
    sent: BTreeMap<Text, Sent>,
    /// Names the client waits for, whatever it was sent before.
    asked: BTreeSet<Text>,
    /// Names to be sent once more though unchanged, as soon as they are subscribed to.
    resend: BTreeSet<Text>,
    /// An answer is owed even if it is empty.
    answer_owed: bool,
    /// A SotW client came with state from an earlier stream, and we do not know which.
    resumed: bool,
    outstanding: Option<Outstanding>,
    last_nonce: String,
    /// What was in rejected pushes and was not accepted since. A rejection does not say which of its push is meant.
    rejected: BTreeSet<Text>,
    /// What stands rejected is to be sent again, though nothing else is.
    retry: bool,
    /// The epoch of the resources that were compared last; `None` when something else changed since.
    compared: Option<u64>,
    /// What those names cost that are not shared with a resource.
    own_texts: usize,
}

/// All that one stream subscribed to.
#[derive(Debug)]
pub(crate) struct Subscriptions {
    variant: Variant,
    kinds: KindMap<Subscription>,
    pushes: u64,
}

impl Subscriptions {
    pub(crate) fn new(variant: Variant) -> Self {
        Self { variant, kinds: Default::default(), pushes: 0 }
    }

    /// Takes a request in.
    pub(crate) fn take(&mut self, request: Request) -> Result<Verdict, RequestError> {
        let kind = request.kind;
        let subscription = &mut self.kinds[kind];
        let verdict = match request.asked {
            Asked::State { names, version } => {
                subscription.take_state(kind, &request.nonce, request.error, &names, &version)?
            }
            Asked::Delta { subscribe, unsubscribe, initial } => {
                let (verdict, is_first) =
                    (subscription.take_verdict(&request.nonce, request.error), !subscription.is_active);
                subscription.take_delta(kind, &subscribe, &unsubscribe, &initial)?;
                // What a client brings along is what it accepted on an earlier stream.
                if is_first && !subscription.sent.is_empty() { subscription.brought() } else { verdict }
            }
        };
        subscription.compared = None;
        if kind.names_clusters() {
            // Clusters that waited for listeners and routes to let go of them may leave now.
            self.kinds[ResourceKind::Cluster].compared = None;
        }
        Ok(verdict)
    }

    /// What all of this costs, in bytes: names in sets, and texts that are not the catalog's anyway.
    pub(crate) fn cost(&self) -> usize {
        self.kinds.values().map(Subscription::cost).sum()
    }

    /// Whether the client has rejected something of this kind that it did not accept since.
    pub(crate) fn is_rejected(&self, kind: ResourceKind) -> bool {
        !self.kinds[kind].rejected.is_empty()
    }

    /// Sends again what stands rejected: what was in its way may be gone.
    pub(crate) fn retry(&mut self, kind: ResourceKind) {
        let subscription = &mut self.kinds[kind];
        subscription.retry = true;
        subscription.compared = None;
    }

    /// Compares all anew: the client is served other resources than before.
    pub(crate) fn compare_anew(&mut self) {
        self.kinds.values_mut().for_each(|subscription| subscription.compared = None);
    }

    /// The next thing to send, if any: in the order clusters, endpoints, listeners, routes; what is gone last.
    pub(crate) fn next_push(&mut self, resources: &Resources) -> Option<Push> {
        ResourceKind::ALL.into_iter().find_map(|kind| {
            if self.must_wait(kind, resources) {
                return None;
            }
            let plan = self.plan(kind, resources);
            self.kinds[kind].compared = Some(resources.epoch(kind));
            plan.map(|plan| self.commit(kind, plan))
        })
    }

    fn must_wait(&self, kind: ResourceKind, resources: &Resources) -> bool {
        let subscription = &self.kinds[kind];
        // One push per kind at a time: what changes meanwhile is absorbed by the next.
        if !subscription.is_active || subscription.outstanding.is_some() {
            return true;
        }
        // The answer to clusters waits until they are warm. Routes to cold clusters are 503s.
        if kind.names_clusters() && self.kinds[ResourceKind::Cluster].outstanding.is_some() {
            return true;
        }
        subscription.compared == Some(resources.epoch(kind))
    }
}

impl Subscription {
    fn take_verdict(&mut self, nonce: &str, error: Option<String>) -> Verdict {
        if nonce != self.last_nonce {
            return Verdict::Nothing;
        }
        let Some(outstanding) = self.outstanding.take() else { return Verdict::Nothing };
        let Outstanding { version, names } = outstanding;
        match error {
            None => {
                for name in &names {
                    if let Some(sent) = self.sent.get_mut(name) {
                        sent.in_force = Some(sent.version);
                    }
                }
                Verdict::Accepted(version)
            }
            Some(reason) => {
                self.rejected.extend(names.into_iter().filter(|name| self.sent.contains_key(name)));
                Verdict::Rejected(version, reason.chars().take(MAX_REASON_CHARS).collect())
            }
        }
    }

    fn take_state(
        &mut self,
        kind: ResourceKind,
        nonce: &str,
        error: Option<String>,
        names: &[String],
        version: &str,
    ) -> Result<Verdict, RequestError> {
        let is_first = !self.is_active;
        if !is_first && nonce != self.last_nonce {
            // It crossed with a newer push; the client repeats what it wants when it answers that.
            return Ok(Verdict::Nothing);
        }
        let rejects = error.is_some();
        let was_answered = self.outstanding.is_none() && !self.last_nonce.is_empty();
        let verdict = if is_first { Verdict::Nothing } else { self.take_verdict(nonce, error) };
        let wanted = self.read_names(kind, names.iter().filter(|name| *name != WILDCARD))?;
        // Without a name all are meant, unless some were named before: then it is none.
        let implied = kind.is_whole() && names.is_empty() && (is_first || (self.wildcard && self.names.is_empty()));
        let wildcard = kind.is_whole() && (implied || names.iter().any(|name| name == WILDCARD));
        let is_same = wanted == self.names && wildcard == self.wildcard;
        if is_first {
            self.is_active = true;
            self.resumed = !version.is_empty();
            self.answer_owed = kind.is_whole();
        } else if is_same && was_answered && !rejects {
            // An answered nonce again, and nothing new: it asks for the same once more (its cluster warms anew).
            self.asked.extend(wanted.iter().cloned());
            self.answer_owed = kind.is_whole();
        } else if kind.is_whole() && (wildcard && !self.wildcard || !wanted.is_subset(&self.names)) {
            self.answer_owed = true;
        }
        self.asked.extend(wanted.difference(&self.names).cloned());
        self.names = wanted;
        self.wildcard = wildcard;
        self.forget_unwanted();
        Ok(verdict)
    }

    fn take_delta(
        &mut self,
        kind: ResourceKind,
        subscribe: &[String],
        unsubscribe: &[String],
        initial: &HashMap<String, String>,
    ) -> Result<(), RequestError> {
        let is_first = !self.is_active;
        self.is_active = true;
        if initial.len() > MAX_NAMES {
            return Err(RequestError::TooManyNames { kind });
        }
        let is_wildcard = |names: &[String]| names.iter().any(|name| name == WILDCARD);
        for name in unsubscribe {
            self.names.remove(name.as_str());
            self.asked.remove(name.as_str());
            if self.wildcard {
                // The wildcard still covers it: the client is to hear of it again.
                self.sent.remove(name.as_str());
            }
        }
        self.wildcard &= !is_wildcard(unsubscribe);
        let implied = is_first && subscribe.is_empty();
        if kind.is_whole() && (implied || is_wildcard(subscribe)) {
            self.wildcard = true;
            self.answer_owed = initial.is_empty();
        }
        if is_first {
            for (name, version) in initial {
                check_name(name)?;
                let version = Version::parse(version);
                let sent = Sent { version, resource: None, is_brought: true, in_force: Some(version) };
                self.sent.insert(name.as_str().into(), sent);
            }
        }
        let wanted = self.read_names(kind, subscribe.iter().filter(|name| *name != WILDCARD))?;
        for name in wanted {
            if !(is_first && initial.contains_key(&*name)) {
                self.asked.insert(name.clone());
            }
            self.names.insert(name);
        }
        if self.names.len() > MAX_NAMES {
            return Err(RequestError::TooManyNames { kind });
        }
        self.forget_unwanted();
        Ok(())
    }

    fn brought(&self) -> Verdict {
        Verdict::Accepted(Version::of_set(self.sent.iter().map(|(name, sent)| (name, sent.version))))
    }

    /// A client drops what it no longer names; should it want it again, it has to be sent.
    fn forget_unwanted(&mut self) {
        let (names, wildcard) = (&self.names, self.wildcard);
        self.asked.retain(|name| names.contains(name));
        self.sent.retain(|name, _| wildcard || names.contains(name));
        self.rejected.retain(|name| wildcard || names.contains(name));
        self.weigh();
    }

    /// Names as they are asked for. Each that is known has one text, however often it is named.
    fn read_names<'a>(
        &self,
        kind: ResourceKind,
        names: impl Iterator<Item = &'a String>,
    ) -> Result<BTreeSet<Text>, RequestError> {
        let mut read = BTreeSet::new();
        for name in names {
            check_name(name)?;
            let known = self.names.get(name.as_str());
            let known = known.or_else(|| self.sent.get_key_value(name.as_str()).map(|(name, _)| name));
            read.insert(known.cloned().unwrap_or_else(|| name.as_str().into()));
            if read.len() > MAX_NAMES {
                return Err(RequestError::TooManyNames { kind });
            }
        }
        Ok(read)
    }

    /// Counts the texts that no resource has.
    fn weigh(&mut self) {
        let cost = |name: &Text| TEXT + name.len();
        let mut sent = self.sent.keys().peekable();
        // Both are in order.
        let is_unsent = |name: &&Text| {
            while sent.next_if(|sent| sent < name).is_some() {}
            sent.peek() != Some(name)
        };
        let unsent: usize = self.names.iter().filter(is_unsent).map(cost).sum();
        let brought = self.sent.iter().filter(|(_, sent)| sent.is_brought).map(|(name, _)| cost(name));
        self.own_texts = unsent + brought.sum::<usize>();
    }

    fn cost(&self) -> usize {
        let under_way = self.outstanding.as_ref().map_or(0, |outstanding| outstanding.names.len());
        let sets = [&self.names, &self.asked, &self.resend, &self.rejected].map(BTreeSet::len);
        (sets.iter().sum::<usize>() + under_way) * LISTED + self.sent.len() * SENT + self.own_texts
    }

    fn is_sent(&self, resource: &Resource) -> bool {
        self.sent.get(&resource.name).is_some_and(|sent| sent.version == resource.version)
    }
}

fn check_name(name: &str) -> Result<(), RequestError> {
    if name.len() > MAX_NAME_BYTES {
        return Err(RequestError::NameTooLong { length: name.len() });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
