//! A new configuration for a process that runs: what counts at once, and what waits for a restart.

use crate::config::{Config, find_changes};

/// Which process it is: others' keys may stand in the same file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// The agent of a host.
    Agent,
    /// A member of the registry.
    Member,
}

/// The keys that changed and are this process's.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// Those that count at once.
    pub(crate) live: Vec<String>,
    /// Those that were read at the start and are not read again.
    pub(crate) waiting: Vec<String>,
}

impl Changes {
    /// What a process that runs with one configuration makes of another.
    pub(crate) fn between(role: Role, running: &Config, new: &Config) -> Self {
        let ours = find_changes(running, new).into_iter().filter(|key| role.reads(key));
        let (live, waiting) = ours.partition(|key| role.takes_live(key));
        Self { live, waiting }
    }
}

impl Role {
    fn reads(self, key: &str) -> bool {
        let section = key.split('.').next().unwrap_or_default();
        match (self, section) {
            (Self::Agent, "registry") => matches!(key, "registry.members" | "registry.lease_ttl"),
            (Self::Agent, _) | (Self::Member, "registry" | "log") => true,
            (Self::Member, "node") => matches!(key, "node.name" | "node.datacenter" | "node.data_dir"),
            (Self::Member, _) => key == "http.max_connections",
        }
    }

    fn takes_live(self, key: &str) -> bool {
        match key {
            "log.filter" => true,
            "registry.members" | "agent.stop_timeout" | "agent.leave_on_terminate" => self == Self::Agent,
            _ => false,
        }
    }

    /// The configuration that runs once `new` is taken up: what waits stays as it is.
    pub(crate) fn take_up(self, running: &mut Config, new: &Config) {
        running.log.filter.clone_from(&new.log.filter);
        if self == Self::Agent {
            running.registry.members.clone_from(&new.registry.members);
            running.agent.stop_timeout = new.agent.stop_timeout;
            running.agent.leave_on_terminate = new.agent.leave_on_terminate;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_process_names_what_is_its_own_until_it_is_taken_up() {
        let mut running = Config::default();
        let new = "[log]\nfilter = \"debug\"\n[node]\naddress = \"10.0.0.1\"\n[http]\nlisten = \"127.0.0.1:1\"\n\
                   [registry]\nlisten = \"127.0.0.1:2\"\nmembers = [\"a:1\"]\n[agent]\nstop_timeout = \"5s\"";
        let new: Config = toml::from_str(new).unwrap();
        let told = |role, running: &Config| {
            let Changes { live, waiting } = Changes::between(role, running, &new);
            (live.join(" "), waiting.join(" "))
        };
        let told_member = told(Role::Member, &running);
        assert_eq!(told_member, ("log.filter".into(), "registry.listen registry.members".into()));
        let live = "agent.stop_timeout log.filter registry.members".to_owned();
        let waiting = "http.listen node.address".to_owned();
        assert_eq!(told(Role::Agent, &running), (live, waiting.clone()));
        Role::Agent.take_up(&mut running, &new);
        assert_eq!(told(Role::Agent, &running), (String::new(), waiting));
    }

    #[test]
    fn what_is_told_as_live_is_taken_up() {
        for role in [Role::Agent, Role::Member] {
            let mut running = Config::default();
            let mut new = Config::default();
            new.log.filter = "debug".into();
            new.registry.members = vec!["a:1".into()];
            new.agent.stop_timeout = crate::config::Seconds(std::time::Duration::from_secs(1));
            assert_ne!(Changes::between(role, &running, &new).live, Vec::<String>::new());
            role.take_up(&mut running, &new);
            assert_eq!(Changes::between(role, &running, &new).live, Vec::<String>::new(), "{role:?}");
        }
    }
}
