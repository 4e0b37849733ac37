//! The brakes' thresholds, as sub-tables of the rooms they belong to.

use std::time::Duration;

use muster_registry::MassExpiry;
use serde::{Deserialize, Serialize};

use super::{ConfigError, Seconds, bad};
use crate::definitions::brake::MassRemoval;

/// `[registry.mass_expiry]`: when the loss of many nodes at once is held.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct MassExpiryConfig {
    /// Fewer nodes than this are never held. Default 10.
    pub nodes: usize,
    /// More than this share of the living nodes is held, 1 to 100. Default 30; 100 never holds.
    pub percent: usize,
    /// Losses this close together count as one event. Default 15s.
    pub window: Seconds,
    /// How long they are held without a decision. Default 30s.
    pub hold: Seconds,
}

impl Default for MassExpiryConfig {
    fn default() -> Self {
        let MassExpiry { nodes, percent, window, hold } = MassExpiry::default();
        Self { nodes, percent, window: Seconds(window), hold: Seconds(hold) }
    }
}

/// `[agent.mass_removal]`: when the removal of many definitions at once is held.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct MassRemovalConfig {
    /// Fewer services than this are never held, unless they are all. Default 10.
    pub services: usize,
    /// More than this share of the services is held, 1 to 100. Default 30; 100 never holds.
    pub percent: usize,
    /// All services are held if they are so many. Default 3.
    pub all_of: usize,
    /// Removals this close together count as one event. Default 15s.
    pub window: Seconds,
    /// How long they are held without a decision. Default 10m.
    pub hold: Seconds,
}

impl Default for MassRemovalConfig {
    fn default() -> Self {
        let MassRemoval { services, percent, all_of, window, hold } = MassRemoval::default();
        Self { services, percent, all_of, window: Seconds(window), hold: Seconds(hold) }
    }
}

/// A hold longer than this is forgotten by whoever set it.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

impl MassExpiryConfig {
    /// What the registry takes.
    pub(crate) fn to_room(&self) -> MassExpiry {
        let Self { nodes, percent, window: Seconds(window), hold: Seconds(hold) } = *self;
        MassExpiry { nodes, percent, window, hold }
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        count("registry.mass_expiry.nodes", self.nodes)?;
        percent("registry.mass_expiry.percent", self.percent)?;
        time("registry.mass_expiry.window", self.window)?;
        time("registry.mass_expiry.hold", self.hold)
    }
}

impl MassRemovalConfig {
    /// What the directory's brake takes.
    pub(crate) fn to_room(&self) -> MassRemoval {
        let Self { services, percent, all_of, window: Seconds(window), hold: Seconds(hold) } = *self;
        MassRemoval { services, percent, all_of, window, hold }
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        count("agent.mass_removal.services", self.services)?;
        count("agent.mass_removal.all_of", self.all_of)?;
        percent("agent.mass_removal.percent", self.percent)?;
        time("agent.mass_removal.window", self.window)?;
        time("agent.mass_removal.hold", self.hold)
    }
}

fn count(key: &'static str, value: usize) -> Result<(), ConfigError> {
    if value == 0 { Err(bad(key, value, "every single loss would be held: write at least 1")) } else { Ok(()) }
}

fn percent(key: &'static str, value: usize) -> Result<(), ConfigError> {
    if (1..=100).contains(&value) { Ok(()) } else { Err(bad(key, value, "it is a share in percent: write 1 to 100")) }
}

fn time(key: &'static str, Seconds(value): Seconds) -> Result<(), ConfigError> {
    if value <= LONGEST { Ok(()) } else { Err(bad(key, format!("{value:?}"), "write at most 24h")) }
}
