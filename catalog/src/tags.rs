//! How large the tags of a service may become over all its instances: one row of the Directory names them all.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Command, Instance, Name, Snapshot, Text};

/// Most bytes of all different tags of one service, as [`tag_bytes`] counts them. The row that holds them goes to every
/// agent whenever an instance of the service changes; ten thousand instances with a tag of their own each fit.
pub const MAX_TAG_BYTES: usize = 1024 * 1024;
/// What a tag costs beside its text, encoded.
const TAG_FRAME: usize = 6;

/// What these tags cost in a row.
pub fn tag_bytes<'a>(tags: impl IntoIterator<Item = &'a Text>) -> usize {
    tags.into_iter().map(|tag| tag.len() + TAG_FRAME).sum()
}

/// The tags that a Command would add to each service, in bytes. Services that get none are not named, so that one which
/// has too many of an earlier build can still be changed and reduced.
pub fn added_tags(snapshot: &Snapshot, command: &Command) -> BTreeMap<Name, usize> {
    let instances: &[Instance] = match command {
        Command::Sync(sync) => &sync.instances,
        Command::Register(registration) => &registration.instances,
        _ => &[],
    };
    let mut added: BTreeMap<&Name, BTreeSet<&Text>> = BTreeMap::new();
    for instance in instances {
        let known = snapshot.services.get(&instance.service).map_or(&[][..], |slot| &slot.tags);
        let new = instance.tags.iter().filter(|tag| known.binary_search(tag).is_err());
        for tag in new {
            added.entry(&instance.service).or_default().insert(tag);
        }
    }
    added.into_iter().map(|(service, tags)| (service.clone(), tag_bytes(tags))).collect()
}
