//! Which instances of a service are answered, and in what order. Pure.

use std::hash::{DefaultHasher, Hash, Hasher};

use muster_catalog::{Address, Instance, InstanceEntry, NodeEntry, ServiceSet, ServiceSlot, Snapshot, health};
use rand::{Rng, RngExt, seq::SliceRandom};

use crate::Selector;

/// An instance that clients should be sent to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Serving<'v> {
    pub(crate) node: &'v NodeEntry,
    pub(crate) instance: &'v Instance,
    /// How much traffic it should take.
    pub(crate) weight: u16,
    /// The port that was asked for; 0 for an instance without ports, whose SRV still names its host.
    pub(crate) port: u16,
}

impl<'v> Serving<'v> {
    /// Where it is reached: its own address, else its node's.
    pub(crate) fn address(&self) -> &'v Address {
        self.instance.address.as_ref().unwrap_or(&self.node.node.value.address)
    }
}

/// What was found of a service.
#[derive(Debug)]
pub(crate) struct Picked<'v> {
    /// Whether the name exists: some instance, serving or not, is selected, or a longer name ends with it.
    pub(crate) exists: bool,
    /// Those that serve, in the catalog's order.
    pub(crate) serving: Vec<Serving<'v>>,
}

/// A selector with RFC 2782's ambiguity resolved.
enum Filter<'q> {
    All,
    Tag(&'q str),
    Port(&'q str),
}

impl Filter<'_> {
    fn admits(&self, instance: &Instance) -> bool {
        match self {
            Self::All => true,
            Self::Tag(tag) => instance.has_tag(tag),
            Self::Port(port) => instance.find_port(port).is_some(),
        }
    }

    fn port(&self, instance: &Instance) -> u16 {
        match self {
            Self::Port(port) => instance.find_port(port),
            Self::All | Self::Tag(_) => instance.default_port(),
        }
        .unwrap_or(0)
    }
}

/// Selects instances and keeps those that serve.
pub(crate) fn pick<'v>(
    snapshot: &'v Snapshot,
    slot: &ServiceSlot,
    set: &'v ServiceSet,
    selector: &Selector,
) -> Picked<'v> {
    let filter = match selector {
        Selector::All => Filter::All,
        Selector::Tag(tag) => Filter::Tag(tag),
        Selector::Port(port) => Filter::Port(port),
        Selector::PortOrTag(label) if instances(set).any(|instance| instance.find_port(label).is_some()) => {
            Filter::Port(label)
        }
        Selector::PortOrTag(label) => Filter::Tag(label),
    };
    let mut picked = Picked { exists: false, serving: Vec::with_capacity(set.instances.len()) };
    for entry in &set.instances {
        let instance = &*entry.instance.value;
        if !filter.admits(instance) {
            continue;
        }
        picked.exists = true;
        let Some(node) = snapshot.find_node(&instance.node) else { continue };
        picked.serving.extend(find_serving(node, entry, &filter));
    }
    if !picked.exists {
        picked.exists = match filter {
            Filter::Tag(tag) => has_names_below(slot, set, tag),
            Filter::All | Filter::Port(_) => false,
        };
    }
    picked
}

fn instances(set: &ServiceSet) -> impl Iterator<Item = &Instance> {
    set.instances.iter().map(|entry| &*entry.instance.value)
}

fn find_serving<'v>(node: &'v NodeEntry, entry: &'v InstanceEntry, filter: &Filter<'_>) -> Option<Serving<'v>> {
    let instance = &*entry.instance.value;
    health::is_serving(node, entry).then(|| Serving {
        node,
        instance,
        weight: health::weight(node, entry),
        port: filter.port(instance),
    })
}

/// Whether `<tag>.<service>` is the end of a longer name: of a tag with dots, or of ports by name.
fn has_names_below(slot: &ServiceSlot, set: &ServiceSet, tag: &str) -> bool {
    let is_port = tag.eq_ignore_ascii_case("port") && instances(set).any(|instance| !instance.ports.is_empty());
    is_port || slot.tags.iter().any(|longer| ends_with_labels(longer, tag))
}

/// Whether `name` is `<something>.<end>`, without regard to case.
fn ends_with_labels(name: &str, end: &str) -> bool {
    let split = name.len().checked_sub(end.len()).and_then(|at| name.as_bytes().split_at_checked(at));
    split.is_some_and(|(head, tail)| head.last() == Some(&b'.') && tail.eq_ignore_ascii_case(end.as_bytes()))
}

/// How the instances of a service are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// At random, anew each time.
    Drawn,
    /// At random, but always the same for this number: an instance that comes or goes leaves the order of the others.
    Fixed(u64),
}

/// Orders instances so that each comes first as often as its weight says.
pub(crate) fn sort(serving: &mut [Serving<'_>], order: Order, rng: &mut impl Rng) {
    let Some(first) = serving.first() else { return };
    let weight = first.weight;
    match order {
        Order::Drawn if serving.iter().all(|other| other.weight == weight) => serving.shuffle(rng),
        Order::Drawn => sort_by_draw(serving, |_| rng.random()),
        Order::Fixed(number) => sort_by_draw(serving, |one| {
            let mut hasher = DefaultHasher::new();
            (number, one.instance.node.as_key(), &one.instance.id).hash(&mut hasher);
            // The 53 bits that a fraction has room for.
            (hasher.finish() >> 11) as f64 / (1_u64 << 53) as f64
        }),
    }
}

/// An exponential time with the weight as rate, from a fraction below 1: whoever has the earliest comes first.
pub(crate) fn draw(fraction: f64, weight: u16) -> f64 {
    -f64::ln(1.0 - fraction) / f64::from(weight.max(1))
}

fn sort_by_draw<'v>(serving: &mut [Serving<'v>], mut fraction: impl FnMut(&Serving<'v>) -> f64) {
    let mut drawn: Vec<_> = serving.iter().map(|one| (draw(fraction(one), one.weight), *one)).collect();
    drawn.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    for (slot, (_, one)) in serving.iter_mut().zip(drawn) {
        *slot = one;
    }
}
