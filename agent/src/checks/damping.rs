//! Flap damping: a check that falls again and again is believed when it fails, and not when it recovers.
//!
//! The shape is RFC 2439's: each fall adds a penalty of one, which halves with each half-life. Above a limit good results
//! are held back; below half of that limit they count again. A penalty is capped, so that nothing is held back for
//! longer than the maximum after its last fall. Removal is never delayed. Pure; time is an argument.

use std::time::Duration;

use tokio::time::Instant;

use crate::definition::{FlapRules, format_duration};

/// The falls of one check.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct FlapDamper {
    /// `None` damps nothing.
    rules: Option<FlapRules>,
    /// As of `at`.
    penalty: f64,
    at: Instant,
    /// Falls since the penalty was last negligible, and when the first of them was.
    falls: u32,
    since: Instant,
    /// Good results are held back until then.
    until: Option<Instant>,
}

/// What is kept of a damper over a restart, as of the time it is kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct KeptFlaps {
    pub(crate) penalty: f64,
    pub(crate) falls: u32,
    /// How long ago the first fall was.
    pub(crate) lasting: Duration,
    /// Whether, and for how long, good results are held back.
    pub(crate) remaining: Option<Duration>,
}

impl FlapDamper {
    /// Of a check that has not fallen.
    pub(crate) fn new(rules: Option<FlapRules>, now: Instant) -> Self {
        Self { rules, penalty: 0.0, at: now, falls: 0, since: now, until: None }
    }

    /// Goes on under other rules: what is held back stays so, unless damping was turned off.
    pub(crate) fn under(self, rules: Option<FlapRules>) -> Self {
        let until = self.until.filter(|_| rules.is_some());
        Self { rules, until, ..self }
    }

    /// Takes note of a fall; true when good results are held back from now on.
    pub(crate) fn fall(&mut self, now: Instant) -> bool {
        let Some(rules) = self.rules else { return false };
        let penalty = self.decayed(&rules, now);
        if penalty < rules.reuse() / 2.0 {
            (self.falls, self.since) = (0, now);
        }
        self.falls = self.falls.saturating_add(1);
        (self.penalty, self.at) = ((penalty + 1.0).min(rules.ceiling()), now);
        let held = self.remaining(now).is_some();
        if held || self.penalty > f64::from(rules.falls) {
            // At most the maximum, since the penalty is at most the ceiling.
            let half_lives = (self.penalty / rules.reuse()).log2().max(0.0);
            self.until = Some(now + rules.half_life.mul_f64(half_lives));
        }
        !held && self.until.is_some_and(|until| until > now)
    }

    /// How long a good result is held back still.
    pub(crate) fn remaining(&self, now: Instant) -> Option<Duration> {
        let until = self.until.filter(|until| *until > now)?;
        Some(until - now)
    }

    /// When good results count again.
    pub(crate) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Why a good result is held back: `for another 43s after 5 failures in 2m`.
    pub(crate) fn explain(&self, remaining: Duration) -> String {
        let seconds = |time: Duration| format_duration(Duration::from_secs(time.as_secs().max(1)));
        let (remaining, lasting) = (seconds(remaining), seconds(self.at - self.since));
        format!("for another {remaining} after {} failures in {lasting}", self.falls)
    }

    /// What to keep over a restart; nothing of a check that has not fallen lately.
    pub(crate) fn keep(&self, now: Instant) -> Option<KeptFlaps> {
        let rules = self.rules?;
        let penalty = self.decayed(&rules, now);
        let worth = self.falls > 0 && penalty >= rules.reuse() / 2.0;
        worth.then(|| KeptFlaps {
            penalty,
            falls: self.falls,
            lasting: now.saturating_duration_since(self.since),
            remaining: self.remaining(now),
        })
    }

    /// Goes on from what was kept `age` ago.
    pub(crate) fn restore(rules: Option<FlapRules>, kept: KeptFlaps, age: Duration, now: Instant) -> Self {
        let Some(of) = rules else { return Self::new(None, now) };
        let ago = |time: Duration| now.checked_sub(time).unwrap_or(now);
        let mut damper = Self::new(rules, now);
        (damper.penalty, damper.at) = (kept.penalty.clamp(0.0, of.ceiling()), ago(age));
        (damper.falls, damper.since) = (kept.falls, ago(kept.lasting + age).min(damper.at));
        let remaining = kept.remaining.map(|time| time.min(of.max_hold).saturating_sub(age));
        damper.until = remaining.filter(|time| !time.is_zero()).map(|time| now + time);
        damper
    }

    fn decayed(&self, rules: &FlapRules, now: Instant) -> f64 {
        let half_lives = now.saturating_duration_since(self.at).as_secs_f64() / rules.half_life.as_secs_f64();
        self.penalty * (-half_lives).exp2()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn damper(now: Instant) -> FlapDamper {
        FlapDamper::new(Some(FlapRules::default()), now)
    }

    #[test]
    fn falls_in_quick_succession_hold_good_results_back() {
        // (seconds between falls, how many it takes until good results are held back, for how many seconds then)
        let table = [
            (0, Some(4), 169),
            (1, Some(4), 168),
            (30, Some(4), 128),
            (60, Some(7), 126),
            // Rare falls are no flapping.
            (90, None, 0),
            (600, None, 0),
        ];
        for (every, needed, seconds) in table {
            let mut now = Instant::now();
            let mut damper = damper(now);
            let mut found = None;
            for fall in 1..=50 {
                let begins = damper.fall(now);
                if begins && found.is_none() {
                    found = Some((fall, damper.remaining(now).unwrap().as_secs()));
                }
                now += SECOND * every;
            }
            assert_eq!(found, needed.map(|needed| (needed, seconds)), "every {every} s");
        }
    }

    #[test]
    fn the_longest_hold_is_bounded_and_ends_by_itself() {
        let start = Instant::now();
        let mut damper = damper(start);
        for second in 0..100 {
            damper.fall(start + SECOND * second);
        }
        let last = start + SECOND * 99;
        let remaining = damper.remaining(last).unwrap();
        assert!(remaining <= SECOND * 300 && remaining > SECOND * 299, "{remaining:?}");
        assert_eq!(damper.explain(SECOND * 43), "for another 43s after 100 failures in 99s");
        assert_eq!(damper.remaining(last + SECOND * 300), None);
        // A single fall long after is a first one.
        let later = last + SECOND * 3600;
        assert!(!damper.fall(later));
        assert_eq!((damper.falls, damper.remaining(later)), (1, None));
    }

    #[test]
    fn a_fall_meanwhile_prolongs_it_and_none_does_not() {
        let start = Instant::now();
        let mut damper = damper(start);
        (0..4).for_each(|_| _ = damper.fall(start));
        let until = damper.until().unwrap();
        assert!(!damper.fall(start + SECOND * 60), "it is held back already");
        assert!(damper.until().unwrap() > until + SECOND * 30);
    }

    #[test]
    fn a_restart_and_a_new_rule_go_on_from_what_was() {
        let start = Instant::now();
        let mut before = damper(start);
        assert_eq!(before.keep(start), None);
        (0..5).for_each(|_| _ = before.fall(start));
        let (stop, age) = (start + SECOND * 10, SECOND * 20);
        let kept = before.keep(stop).unwrap();
        let again = start + SECOND * 5000;
        let after = FlapDamper::restore(Some(FlapRules::default()), kept, age, again);
        let close = |a: Duration, b: Duration| a.abs_diff(b) < SECOND;
        let remaining = before.remaining(start + SECOND * 30).unwrap();
        assert!(close(after.remaining(again).unwrap(), remaining), "{after:?}");
        assert_eq!(after.falls, 5);
        let decayed = before.keep(start + SECOND * 30).unwrap().penalty;
        assert!((after.keep(again).unwrap().penalty - decayed).abs() < 0.01);
        assert_eq!(FlapDamper::restore(None, kept, age, again).remaining(again), None);
        assert_eq!(after.under(None).remaining(again), None);
        let forged = KeptFlaps { penalty: 1e300, remaining: Some(SECOND * 1_000_000), ..kept };
        let forged = FlapDamper::restore(Some(FlapRules::default()), forged, Duration::ZERO, again);
        assert!(forged.remaining(again).unwrap() <= SECOND * 300);
    }
}
