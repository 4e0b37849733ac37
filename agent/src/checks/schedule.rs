//! When a check probes: at its own phase of the interval, for ever, without jitter.
//!
//! The phase is a hash of node and check, so a host's checks spread over the interval and so do the hosts of a fleet.
//! Starts lie on a grid (`base + phase + k × interval`); a probe that overruns skips the starts it missed. Only the
//! first probe is early, so that a new check is not critical for a whole interval.

use std::time::Duration;

use tokio::time::Instant;

/// The first probe comes within this time (or the interval, if shorter), spread by the same hash.
const FIRST_WITHIN: Duration = Duration::from_secs(2);

/// The starts of one check.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Schedule {
    /// A start on the grid; all others are whole intervals away.
    grid: Instant,
    interval: Duration,
    next: Instant,
}

impl Schedule {
    /// The schedule of a check that is taken up at `now`. `base` is the same for all checks of the agent.
    pub(crate) fn new(node: &str, check: &str, interval: Duration, base: Instant, now: Instant) -> Self {
        let interval = interval.max(Duration::from_millis(1));
        let share = phase_share(node, check);
        let grid = base + interval.mul_f64(share);
        let next = now + interval.min(FIRST_WITHIN).mul_f64(share);
        Self { grid, interval, next }
    }

    /// The next start.
    pub(crate) fn next(&self) -> Instant {
        self.next
    }

    /// Moves to the start after this one: on the grid, not before `now`, and never nearer than half an interval to
    /// the last start (which only the first, early one can be).
    pub(crate) fn advance(&mut self, now: Instant) {
        let earliest = now.max(self.next + self.interval / 2);
        let gone = earliest.saturating_duration_since(self.grid);
        let intervals = gone.as_nanos().div_ceil(self.interval.as_nanos());
        let offset = self.interval.as_nanos().saturating_mul(intervals);
        self.next = self.grid + Duration::from_nanos(u64::try_from(offset).unwrap_or(u64::MAX));
    }
}

/// Where in its interval a check stands, 0 to 1: FNV-1a with a final mix, the same on every start and every build.
fn phase_share(node: &str, check: &str) -> f64 {
    let hash = |seed: u64, byte: u8| (seed ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let mut mixed = node.bytes().chain([0]).chain(check.bytes()).fold(0xcbf2_9ce4_8422_2325, hash);
    mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    mixed ^= mixed >> 33;
    // 53 bits are what a float holds exactly.
    (mixed >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const INTERVAL: Duration = Duration::from_secs(10);

    #[test]
    fn the_checks_of_a_host_spread_over_the_interval() {
        let base = Instant::now();
        let mut slots = [0u32; 10];
        for check in 0..500 {
            let mut schedule = Schedule::new("host-1", &format!("service:web-{check}"), INTERVAL, base, base);
            assert!(schedule.next() <= base + FIRST_WITHIN);
            schedule.advance(schedule.next());
            let phase = (schedule.next() - base).as_millis() % INTERVAL.as_millis();
            slots[usize::try_from(phase / 1000).unwrap()] += 1;
        }
        assert!(slots.iter().all(|&n| (25..=80).contains(&n)), "500 checks in ten slots: {slots:?}");
    }

    #[test]
    fn hosts_differ() {
        assert_ne!(phase_share("a", "service:web"), phase_share("b", "service:web"));
        assert_eq!(phase_share("a", "service:web"), phase_share("a", "service:web"));
    }

    proptest! {
        #[test]
        fn starts_keep_the_interval_and_never_pile_up(
            check in "[a-z]{1,8}", late in 0u64..100_000, runs in prop::collection::vec(0u64..35_000, 1..20)
        ) {
            let base = Instant::now();
            let mut schedule = Schedule::new("n", &check, INTERVAL, base, base + Duration::from_millis(late));
            let mut first = true;
            for took in runs {
                let started = schedule.next();
                let ended = started + Duration::from_millis(took);
                schedule.advance(ended);
                let gap = schedule.next() - started;
                prop_assert!(schedule.next() >= ended, "overlaps itself");
                if first {
                    prop_assert!(gap >= INTERVAL / 2);
                } else {
                    prop_assert_eq!(gap.as_nanos() % INTERVAL.as_nanos(), 0, "left the grid");
                    prop_assert!(gap >= INTERVAL);
                }
                let wait = schedule.next() - ended;
                prop_assert!(wait <= INTERVAL + INTERVAL / 2);
                first = false;
            }
        }
    }
}
