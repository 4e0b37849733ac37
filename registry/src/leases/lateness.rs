//! What is said of a lease clock that is late: on a busy host it is so many times a minute.

use std::time::{Duration, Instant};

/// One line of the log in this time says how often it was.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// How late the lease clock was since that was last told.
#[derive(Debug, Default)]
pub(super) struct Lateness {
    told: Option<Instant>,
    times: u32,
    worst: Duration,
}

impl Lateness {
    /// Notes that the clock was late.
    pub(super) fn note(&mut self, late: Duration) {
        self.times += 1;
        self.worst = self.worst.max(late);
    }

    /// How often it was late since this was last told, and by how much at most; nothing while that is not long ago.
    pub(super) fn tell(&mut self, now: Instant) -> Option<(u32, Duration)> {
        let lately = self.told.is_some_and(|told| now.saturating_duration_since(told) < TELL_EVERY);
        if self.times == 0 || lately {
            return None;
        }
        let told = (self.times, self.worst);
        *self = Self { told: Some(now), ..Self::default() };
        Some(told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_told_at_once_and_those_that_follow_together() {
        let (mut lateness, now) = (Lateness::default(), Instant::now());
        let seconds = Duration::from_secs;
        assert_eq!(lateness.tell(now), None);
        lateness.note(seconds(2));
        assert_eq!(lateness.tell(now), Some((1, seconds(2))));
        for late in [1, 4, 3] {
            lateness.note(seconds(late));
            assert_eq!(lateness.tell(now + seconds(late)), None);
        }
        assert_eq!(lateness.tell(now + seconds(10)), Some((3, seconds(4))));
        assert_eq!(lateness.tell(now + seconds(30)), None);
    }
}
