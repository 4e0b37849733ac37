//! Who holds the places for TCP connections: one host never holds all of them (RFC 7766 section 6.2.2).

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
};

/// The places for connections, over all listeners.
pub(crate) struct Places {
    total: usize,
    /// As many as one host may hold: half of them, so that one that opens connections and asks nothing leaves room.
    per_host: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    total: usize,
    /// Has only hosts that hold a place: never more entries than there are places.
    by_host: HashMap<IpAddr, usize>,
}

impl Places {
    /// `total` places, none taken.
    pub(crate) fn new(total: usize) -> Arc<Self> {
        Arc::new(Self { total, per_host: total.div_ceil(2), taken: Mutex::default() })
    }

    /// A place for a connection of `client`, until it is dropped; `None` where it has its share, or all are taken.
    pub(crate) fn take(self: &Arc<Self>, client: IpAddr) -> Option<Place> {
        let host = host_of(client);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let held = taken.by_host.get(&host).copied().unwrap_or(0);
        if taken.total >= self.total || held >= self.per_host {
            return None;
        }
        taken.total += 1;
        taken.by_host.insert(host, held + 1);
        Some(Place { places: self.clone(), host })
    }

    fn give_back(&self, host: IpAddr) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.total -= 1;
        let held = taken.by_host.remove(&host).unwrap_or(0);
        if held > 1 {
            taken.by_host.insert(host, held - 1);
        }
    }
}

/// A connection's place.
pub(crate) struct Place {
    places: Arc<Places>,
    host: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.give_back(self.host);
    }
}

/// An IPv6 host has all addresses of its /64; an IPv4 host may come as a mapped address.
fn host_of(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_host_holds_half_of_the_places_and_what_it_gives_back_is_free() {
        let places = Places::new(4);
        let first = places.take(ip("192.0.2.1")).expect("all are free");
        let mapped = places.take(ip("::ffff:192.0.2.1")).expect("half are for it");
        assert!(places.take(ip("192.0.2.1")).is_none(), "it has its half");
        let _other = places.take(ip("2001:db8::1")).expect("there is room for others");
        let _same = places.take(ip("2001:db8::ffff:2")).expect("half are for it");
        assert!(places.take(ip("2001:db8::3")).is_none(), "one /64 is one host");
        assert!(places.take(ip("192.0.2.9")).is_none(), "all are taken");
        drop((first, mapped));
        let _again = places.take(ip("192.0.2.9")).expect("two are free");
        assert_eq!(places.taken.lock().unwrap().by_host.len(), 2, "who holds none is forgotten");
    }

    #[test]
    fn a_single_place_is_for_anybody() {
        let places = Places::new(1);
        assert!(places.take(ip("192.0.2.1")).is_some());
        assert!(places.take(ip("192.0.2.2")).is_some(), "it was given back");
    }
}
