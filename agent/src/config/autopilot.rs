//! `[registry.autopilot]`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{ConfigError, Seconds, bad};

/// `[registry.autopilot]`: what the leader does about the members by itself. The same at all of them.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct AutopilotConfig {
    /// A member that has not answered the leader for longer is not healthy. Default 1s.
    pub last_contact: Seconds,
    /// A member that lacks more entries than this is not healthy. Default 1000.
    pub trailing_entries: u64,
    /// How long a new member has to be healthy before it gets its vote. Default 10s.
    pub stable_after: Seconds,
    /// Whether dead members are taken out. Default true.
    pub remove_dead: bool,
    /// A member that has not answered for so long is dead. Default 5m.
    pub dead_after: Seconds,
    /// Dead voters are taken out only while more voters than this would be there. Default 3.
    pub min_voters: usize,
}

impl Default for AutopilotConfig {
    fn default() -> Self {
        let room = muster_registry::AutopilotConfig::default();
        Self {
            last_contact: Seconds(room.last_contact),
            trailing_entries: room.trailing_entries,
            stable_after: Seconds(room.stable_after),
            remove_dead: room.remove_dead,
            dead_after: Seconds(room.dead_after),
            min_voters: room.min_voters,
        }
    }
}

impl AutopilotConfig {
    /// Less than two heartbeats says nothing, and a host needs some seconds to start.
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let (contact, dead) = (self.last_contact.0, self.dead_after.0);
        if contact < Duration::from_millis(200) {
            return Err(bad("registry.autopilot.last_contact", format!("{contact:?}"), "at least 200ms"));
        }
        if dead < Duration::from_secs(5) || dead <= contact {
            let why = "at least 5s, and longer than last_contact";
            return Err(bad("registry.autopilot.dead_after", format!("{dead:?}"), why));
        }
        if !(1..=7).contains(&self.min_voters) {
            return Err(bad("registry.autopilot.min_voters", self.min_voters, "1 to 7"));
        }
        Ok(())
    }

    /// As the registry takes it.
    pub(crate) fn room(&self) -> muster_registry::AutopilotConfig {
        muster_registry::AutopilotConfig {
            last_contact: self.last_contact.0,
            trailing_entries: self.trailing_entries,
            stable_after: self.stable_after.0,
            remove_dead: self.remove_dead,
            dead_after: self.dead_after.0,
            min_voters: self.min_voters,
        }
    }
}
