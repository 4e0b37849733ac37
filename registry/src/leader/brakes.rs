//! What the leader holds back, shown to whoever asks, and what operators decide about it.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use muster_catalog::{Name, Snapshot};

use super::Leader;
use crate::{
    leases::{
        LeaseTable,
        brake::{Decision, Hold, MassExpiry},
        cause::{Shared, Traits, find_shared},
    },
    proto::registry as pb,
};

/// Nodes that are shown by name: more than anybody reads, and a small message.
const MAX_SHOWN: usize = 1000;
/// Nodes that the log names.
const MAX_LOGGED: usize = 10;

/// What is held, for the calls of this member.
pub(crate) type Shown = Option<Arc<ShownHold>>;

/// What is held, with its explanation.
#[derive(Debug)]
pub(crate) struct ShownHold {
    hold: Hold,
    message: pb::HeldExpiry,
}

impl ShownHold {
    /// How many nodes are held.
    pub(crate) fn count(&self) -> usize {
        self.hold.nodes.len()
    }

    /// As a message, at this time.
    pub(crate) fn to_message(&self, now: Instant) -> pb::HeldExpiry {
        pb::HeldExpiry {
            held_milliseconds: milliseconds(now.saturating_duration_since(self.hold.since)),
            remaining_milliseconds: milliseconds(self.hold.until.saturating_duration_since(now)),
            ..self.message.clone()
        }
    }
}

impl Leader {
    /// An operator's decision; `None` when nothing is held under this id. Its effect begins with the next tick.
    pub(super) fn decide(&mut self, id: &str, decision: Decision) -> Option<usize> {
        let reign = self.reign.as_mut()?;
        let nodes = reign.table.decide(Instant::now(), id, decision)?;
        tracing::warn!(id, nodes, decision = decision.as_str(), "an operator decided on a mass expiry");
        self.tick();
        Some(nodes)
    }

    /// Shows what is held now, if it is something else than before.
    pub(super) fn show_held(&self) {
        let hold = self.reign.as_ref().and_then(|reign| reign.table.hold());
        metrics::gauge!("muster_registry_lease_mass_held").set(hold.map_or(0, |hold| hold.nodes.len()) as f64);
        let before = self.held.borrow().clone();
        if before.as_ref().map(|shown| &shown.hold) == hold {
            return;
        }
        let (snapshot, mass) = (self.core.catalog.now(), &self.config.mass);
        let members: BTreeMap<u64, String> =
            self.core.log.members().into_iter().map(|member| (member.id, member.name)).collect();
        let shown = self.reign.as_ref().zip(hold).map(|(reign, hold)| {
            Arc::new(ShownHold { hold: hold.clone(), message: explain(&reign.table, hold, mass, &snapshot, &members) })
        });
        match (&before, &shown) {
            (Some(before), None) => tracing::warn!(id = before.hold.id, "no loss of nodes is held back any more"),
            (before, Some(shown)) if before.as_ref().is_none_or(|before| before.hold.id != shown.hold.id) => {
                announce(shown, mass.hold);
            }
            _ => {}
        }
        self.held.send_replace(shown);
    }
}

/// The one line that an operator needs.
fn announce(shown: &ShownHold, hold: Duration) {
    let (id, message) = (&shown.hold.id, &shown.message);
    let shared: Vec<String> = message.shared.iter().map(|one| format!("{} {}", one.kind, one.value)).collect();
    let first: Vec<&str> = shown.hold.nodes.keys().take(MAX_LOGGED).map(Name::as_str).collect();
    tracing::warn!(
        id,
        nodes = shown.count(),
        together = message.together,
        living = message.living,
        ?shared,
        ?first,
        "many nodes went silent at once: their loss is held for {hold:?}. See `muster brakes`; then \
         `muster brakes release {id}` if they live, `muster brakes commit {id}` if they are lost indeed; \
         without a decision they are lost when the time is up"
    );
}

fn explain(
    table: &LeaseTable,
    hold: &Hold,
    mass: &MassExpiry,
    snapshot: &Snapshot,
    members: &BTreeMap<u64, String>,
) -> pb::HeldExpiry {
    let (mut held, mut others, mut nodes) = (Vec::new(), Vec::new(), Vec::new());
    for (name, contact) in table.contacts() {
        let locality = snapshot.find_node(name).and_then(|entry| entry.node.value.locality.as_ref());
        let (region, zone) = locality.map(|at| (at.region.to_string(), at.zone.to_string())).unwrap_or_default();
        let member = members.get(&contact.member).cloned().unwrap_or_default();
        let stream = if contact.broken { "broken" } else { "" }.to_owned();
        let traits: Traits =
            vec![("member", member.clone()), ("stream", stream), ("region", region.clone()), ("zone", zone.clone())];
        if !hold.nodes.contains_key(name) {
            others.push(traits);
            continue;
        }
        held.push(traits);
        if nodes.len() < MAX_SHOWN {
            nodes.push(pb::HeldNode { name: name.to_string(), member, broken: contact.broken, region, zone });
        }
    }
    let shared = find_shared(&held, &others).into_iter().map(|Shared { kind, value, held, others }| pb::SharedTrait {
        kind: kind.to_owned(),
        value,
        held: held as u64,
        others: others as u64,
    });
    pb::HeldExpiry {
        id: hold.id.clone(),
        held_milliseconds: 0,
        remaining_milliseconds: 0,
        together: hold.together as u64,
        living: hold.living as u64,
        percent: u32::try_from(mass.percent).unwrap_or(u32::MAX),
        least: mass.nodes as u64,
        window_milliseconds: milliseconds(mass.window),
        count: hold.nodes.len() as u64,
        nodes,
        shared: shared.collect(),
    }
}

pub(super) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
