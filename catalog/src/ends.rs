//! How the names of nodes end: what stands below a name without a look at every node.

use imbl::OrdMap;

use crate::{Name, Text};

/// Every end of a node's name that begins after a dot, with how many nodes have it. It follows from the nodes, and is
/// never stored or sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct NameEnds(OrdMap<Text, usize>);

impl NameEnds {
    /// Adds a node that was not there.
    pub(crate) fn add(&mut self, name: &Name) {
        for end in ends(name) {
            *self.0.entry(end.into()).or_default() += 1;
        }
    }

    /// Takes out a node that was added.
    pub(crate) fn remove(&mut self, name: &Name) {
        for end in ends(name) {
            let Some(count) = self.0.get_mut(end) else { continue };
            *count -= 1;
            if *count == 0 {
                self.0.remove(end);
            }
        }
    }

    /// Whether some node's name is `<something>.<end>`.
    pub(crate) fn has(&self, end: &Name) -> bool {
        self.0.contains_key(end.as_key())
    }
}

fn ends(name: &Name) -> impl Iterator<Item = &str> {
    let name = name.as_key();
    name.match_indices('.').map(|(at, _)| &name[at + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_there_as_long_as_a_node_has_it() {
        let mut ends = NameEnds::default();
        let has = |ends: &NameEnds, name: &str| ends.has(&Name::lookup(name));
        for name in ["a.Rack.dc", "b.rack.DC", "alone"] {
            ends.add(&Name::lookup(name));
        }
        for (name, expected) in
            [("rack.dc", true), ("RACK.dc", true), ("dc", true), ("ack.dc", false), ("alone", false)]
        {
            assert_eq!(has(&ends, name), expected, "{name}");
        }
        ends.remove(&Name::lookup("a.rack.dc"));
        assert!(has(&ends, "rack.dc"));
        ends.remove(&Name::lookup("b.rack.dc"));
        ends.remove(&Name::lookup("alone"));
        assert_eq!(ends, NameEnds::default());
    }
}
