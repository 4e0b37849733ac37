//! What happened to a replica since its file was written, as bytes that are appended: steps, each whole or not there.
//!
//! `(length, crc32, since, (event)…)…`: an event is a `WatchEvent` of the wire with its length before it, `since` the time
//! at which the replica was last known to be current.

use std::io::{self, Read};

use muster_catalog::{Entry, Splice, Timestamp};
use prost::Message;

use crate::{
    client::{WatchEvent, watch},
    proto::{
        catalog as pb_catalog,
        registry::{self as pb, watch_event::Kind},
    },
};

/// A length above this is damage: whoever has more to say writes the replica anew.
pub const MAX_STEP_BYTES: usize = 64 * 1024 * 1024;

/// What happened to a replica.
#[derive(Debug, Clone, PartialEq)]
pub enum ReplicaEvent {
    /// An entry was folded.
    Entry(Entry),
    /// Its Scope changed.
    Splice(Splice),
    /// Its index advanced.
    Advance {
        /// The index.
        index: u64,
        /// The time of that entry.
        at: Timestamp,
    },
}

/// Appends an event to those of a step.
pub fn encode_event(event: &ReplicaEvent, to: &mut Vec<u8>) -> io::Result<()> {
    let kind = match event {
        ReplicaEvent::Entry(entry) => Kind::Entry(pb_catalog::Entry::from(entry).encode_to_vec().into()),
        ReplicaEvent::Advance { index, at } => Kind::Advance(pb::Advance { index: *index, at_milliseconds: at.0 }),
        ReplicaEvent::Splice(splice) => Kind::Sets(pb::Sets {
            index: splice.index,
            rows: splice.rows.iter().map(Into::into).collect(),
            last: true,
            joined: splice.joined.iter().map(ToString::to_string).collect(),
            left: splice.left.iter().map(ToString::to_string).collect(),
        }),
    };
    pb::WatchEvent { kind: Some(kind) }.encode_length_delimited(to).map_err(io::Error::other)
}

/// A step of these events.
pub fn encode_step(since: Timestamp, events: &[u8]) -> io::Result<Vec<u8>> {
    let length = u32::try_from(events.len() + 8).ok().filter(|length| *length as usize <= MAX_STEP_BYTES);
    let length = length.ok_or_else(|| io::Error::other(format!("a step of {} bytes is too large", events.len())))?;
    let mut sum = crc32fast::Hasher::new();
    sum.update(&since.0.to_be_bytes());
    sum.update(events);
    let head = [&length.to_le_bytes()[..], &sum.finalize().to_le_bytes(), &since.0.to_be_bytes()].concat();
    Ok([&head, events].concat())
}

/// Reads the next step: its time, its events and its bytes. `None` at the end; an error where what stands there is none,
/// and all before it is whole.
pub fn decode_step(from: &mut dyn Read) -> Result<Option<(Timestamp, Vec<ReplicaEvent>, u64)>, String> {
    let mut head = Vec::new();
    (&mut *from).take(8).read_to_end(&mut head).map_err(|error| error.to_string())?;
    let Some((length, sum)) = head.split_first_chunk::<4>() else {
        return if head.is_empty() { Ok(None) } else { Err("it ends within a step".into()) };
    };
    let length = u32::from_le_bytes(*length);
    let Ok(sum) = <[u8; 4]>::try_from(sum) else { return Err("it ends within a step".into()) };
    if !(8..=MAX_STEP_BYTES).contains(&(length as usize)) {
        return Err(format!("a step claims {length} bytes"));
    }
    let mut body = Vec::new();
    (&mut *from).take(u64::from(length)).read_to_end(&mut body).map_err(|error| error.to_string())?;
    let (found, expected) = (crc32fast::hash(&body), u32::from_le_bytes(sum));
    if body.len() < length as usize {
        return Err("it ends within a step".into());
    }
    if found != expected {
        return Err(format!("the checksum of a step is {found:08x}, {expected:08x} was written"));
    }
    let Some((since, mut rest)) = body.split_first_chunk::<8>() else { return Err("a step has no time".into()) };
    let mut events = Vec::new();
    while !rest.is_empty() {
        let event = pb::WatchEvent::decode_length_delimited(&mut rest).map_err(|error| error.to_string())?;
        events.push(event_of(event)?);
    }
    Ok(Some((Timestamp(u64::from_be_bytes(*since)), events, u64::from(length) + 8)))
}

fn event_of(event: pb::WatchEvent) -> Result<ReplicaEvent, String> {
    match watch::read_one(event).map_err(|error| error.to_string())? {
        Some(WatchEvent::Entry(entry)) => Ok(ReplicaEvent::Entry(entry)),
        Some(WatchEvent::Splice(splice)) => Ok(ReplicaEvent::Splice(splice)),
        Some(WatchEvent::Advance { index, at }) => Ok(ReplicaEvent::Advance { index, at }),
        other => Err(format!("{other:?} is nothing that happened to a replica: a newer build wrote it")),
    }
}

#[cfg(test)]
mod tests {
    use muster_catalog::{Change, Name};

    use super::*;
    use crate::machine::tests::busy_snapshot;

    #[test]
    fn steps_come_back_and_what_is_cut_or_damaged_is_the_end() {
        let rows = busy_snapshot().services().map(|slot| slot.name.clone()).collect::<Vec<_>>();
        let rows = rows.iter().flat_map(|name| busy_snapshot().set_rows(name).collect::<Vec<_>>()).collect();
        let splice = Splice { index: 7, joined: vec![Name::lookup("web")], left: vec![Name::lookup("db")], rows };
        let gone = Change::DeleteNode(Name::lookup("n1"));
        let steps = [
            vec![ReplicaEvent::Advance { index: 6, at: Timestamp(60) }],
            vec![
                ReplicaEvent::Entry(Entry { index: 7, at: Timestamp(70), changes: vec![gone] }),
                ReplicaEvent::Splice(splice),
            ],
        ];
        let mut bytes = Vec::new();
        for (since, step) in (1..).zip(&steps) {
            let mut events = Vec::new();
            step.iter().for_each(|event| encode_event(event, &mut events).unwrap());
            bytes.extend(encode_step(Timestamp(since), &events).unwrap());
        }
        let mut from = bytes.as_slice();
        let (since, events, first) = decode_step(&mut from).unwrap().unwrap();
        assert_eq!((since, &events), (Timestamp(1), &steps[0]));
        let (since, events, _) = decode_step(&mut from).unwrap().unwrap();
        assert_eq!((since, &events), (Timestamp(2), &steps[1]));
        assert!(decode_step(&mut from).unwrap().is_none());
        let first = usize::try_from(first).unwrap();
        for cut in [1, 5, 8, 9, 20] {
            let mut from = &bytes[..first + cut];
            assert!(decode_step(&mut from).unwrap().is_some());
            assert!(decode_step(&mut from).is_err(), "cut after {cut} bytes");
        }
        for at in 0..first {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x40;
            assert!(decode_step(&mut damaged.as_slice()).is_err(), "damage at {at} was not seen");
        }
    }
}
