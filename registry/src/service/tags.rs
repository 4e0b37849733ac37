//! Room for the tags of services: what is on its way to the log counts as if it was in the catalog.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use muster_catalog::{Command, MAX_TAG_BYTES, Name, ServiceLookup, Snapshot, added_tags, tag_bytes};

/// The tags under way, in bytes for each service.
#[derive(Debug, Clone, Default)]
pub(super) struct TagRoom(Arc<Mutex<BTreeMap<Name, usize>>>);

/// A place for the tags of one write, free again when it is dropped: then the catalog has them, or never will.
#[derive(Debug)]
pub(super) struct Reserved {
    room: TagRoom,
    tags: BTreeMap<Name, usize>,
}

impl TagRoom {
    /// Takes room for what the Command adds; the error says which service would have too much.
    pub(super) fn reserve(&self, snapshot: &Snapshot, command: &Command) -> Result<Option<Reserved>, String> {
        let added = added_tags(snapshot, command);
        if added.is_empty() {
            return Ok(None);
        }
        let mut under_way = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (service, added) in &added {
            let there = match snapshot.service(service) {
                ServiceLookup::Held(slot, _) | ServiceLookup::NotHeld(slot) => tag_bytes(slot.tags.iter()),
                ServiceLookup::Absent => 0,
            };
            let sum = there + under_way.get(service).copied().unwrap_or_default() + added;
            if sum > MAX_TAG_BYTES {
                return Err(format!(
                    "service {service}: all different tags of its instances would have {sum} bytes, over {MAX_TAG_BYTES}: \
                     put what differs from instance to instance into the meta of each"
                ));
            }
        }
        for (service, added) in &added {
            *under_way.entry(service.clone()).or_default() += added;
        }
        drop(under_way);
        Ok(Some(Reserved { room: self.clone(), tags: added }))
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let mut under_way = self.room.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (service, added) in &self.tags {
            if let Some(sum) = under_way.get_mut(service) {
                *sum = sum.saturating_sub(*added);
                if *sum == 0 {
                    under_way.remove(service);
                }
            }
        }
    }
}
