//! What differs between two configurations, by key.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Config;

/// The keys whose values differ, with their sections: `http.listen`.
pub(crate) fn find_changes(old: &Config, new: &Config) -> Vec<String> {
    let (old, new) = (flatten(old), flatten(new));
    let keys: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    keys.into_iter().filter(|key| old.get(*key) != new.get(*key)).cloned().collect()
}

fn flatten(config: &Config) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    // A value that cannot be written as JSON is none that TOML can hold.
    let whole = serde_json::to_value(config).unwrap_or_default();
    put(&mut found, String::new(), whole);
    found
}

fn put(found: &mut BTreeMap<String, Value>, key: String, value: Value) {
    match value {
        // Free text of the operator is one value: its keys may have dots of their own.
        Value::Object(fields) if key != "node.meta" => {
            for (name, value) in fields {
                let key = if key.is_empty() { name } else { format!("{key}.{name}") };
                put(found, key, value);
            }
        }
        value => drop(found.insert(key, value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(old: &str, new: &str) -> Vec<String> {
        find_changes(&toml::from_str(old).unwrap(), &toml::from_str(new).unwrap())
    }

    #[test]
    fn keys_are_named_and_a_default_that_is_written_out_is_no_change() {
        let old = "[log]\nfilter = \"info\"";
        let new = "[log]\nfilter = \"debug\"\n[node]\nmeta = { \"a.b\" = \"c\" }\nzone = \"a\"\n\
                   [registry]\nlease_ttl = \"10s\"\nmembers = [\"a:1\"]\nmass_expiry.nodes = 11";
        assert_eq!(
            changed(old, new),
            ["log.filter", "node.meta", "node.zone", "registry.mass_expiry.nodes", "registry.members"]
        );
        assert_eq!(changed(old, "[dns]\nlisten = [\"127.0.0.1:8600\"]"), Vec::<String>::new());
    }
}
