//! Signals: which end the process in order, which make it look at its configuration again, and that no other ends it.

use std::{
    future::poll_fn,
    io,
    task::Poll,
    time::{Duration, Instant},
};

use rustix::process::Signal as Number;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Stop in order and leave. `by_hand` is Ctrl-C: a second one ends at once.
    Leave { by_hand: bool },
    /// Stop in order, and leave or stay registered as the configuration says.
    Terminate,
    /// Stop in order and stay registered: the next start is near.
    Restart,
    /// Take up the configuration anew.
    Reload,
    /// Nothing that this process knows; the number is for the log.
    Nothing(i32),
}

/// What a hangup means: the service manager sends it on `reload`, a terminal when it is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hangup {
    /// There is a configuration file to read again.
    Reload,
    /// The terminal is gone.
    Stop,
}

/// Without a handler each of these ends the process at once, before it could leave. They are caught rather than
/// ignored, as what is ignored stays so in the scripts of checks.
const UNKNOWN: [Number; 8] = [
    Number::USR2,
    Number::ALARM,
    Number::VTALARM,
    Number::PROF,
    Number::IO,
    Number::POWER,
    Number::STKFLT,
    Number::XFSZ,
];
/// Linux's real-time signals, without those that a C library keeps for itself.
const REAL_TIME: std::ops::RangeInclusive<i32> = 35..=64;

/// A shell and `timeout` both pass one Ctrl-C on, and it comes twice: two within this time are one. Nobody presses it
/// twice as fast.
const ONE_PRESS: Duration = Duration::from_millis(100);

/// The signals of this process, from here on.
pub(crate) struct Signals {
    heard: Vec<(Signal, Asked)>,
    presses: Presses,
}

/// How often Ctrl-C was pressed.
#[derive(Debug, Default)]
struct Presses(Option<Instant>);

impl Presses {
    /// Whether the signal that came now is a press of its own.
    fn count(&mut self, now: Instant) -> bool {
        let again = self.0.is_some_and(|last| now.saturating_duration_since(last) < ONE_PRESS);
        if !again {
            self.0 = Some(now);
        }
        !again
    }
}

impl Signals {
    /// Listens to all that can be caught.
    pub(crate) fn listen(hangup: Hangup) -> io::Result<Self> {
        let mut known = vec![
            (Number::INT, Asked::Leave { by_hand: true }),
            (Number::TERM, Asked::Terminate),
            (Number::USR1, Asked::Restart),
            (Number::QUIT, Asked::Leave { by_hand: false }),
            (Number::XCPU, Asked::Leave { by_hand: false }),
        ];
        match hangup {
            Hangup::Reload => known.push((Number::HUP, Asked::Reload)),
            // Started by nohup it is to outlive the terminal.
            Hangup::Stop if is_ignored(Number::HUP) => {}
            Hangup::Stop => known.push((Number::HUP, Asked::Leave { by_hand: false })),
        }
        let known = known.into_iter().map(|(number, asked)| (number.as_raw(), asked));
        let mut listening =
            known.map(|(number, asked)| Ok((listen(number)?, asked))).collect::<io::Result<Vec<_>>>()?;
        let unknown = UNKNOWN.map(Number::as_raw).into_iter().chain(REAL_TIME);
        // Some of them are not to be had on every system.
        listening.extend(unknown.filter_map(|number| Some((listen(number).ok()?, Asked::Nothing(number)))));
        Ok(Self { heard: listening, presses: Presses::default() })
    }

    /// The next signal. Signals that come together may be told as one.
    pub(crate) async fn next(&mut self) -> Asked {
        loop {
            let asked = poll_fn(|context| {
                for (signal, asked) in &mut self.heard {
                    if let Poll::Ready(Some(())) = signal.poll_recv(context) {
                        return Poll::Ready(*asked);
                    }
                }
                Poll::Pending
            })
            .await;
            if asked != (Asked::Leave { by_hand: true }) || self.presses.count(Instant::now()) {
                return asked;
            }
        }
    }

    /// Waits for Ctrl-C, whatever else comes.
    pub(crate) async fn by_hand(&mut self) {
        while self.next().await != (Asked::Leave { by_hand: true }) {}
    }
}

fn listen(number: i32) -> io::Result<Signal> {
    signal(SignalKind::from_raw(number))
}

/// Whether this process was started with a signal ignored. Where that cannot be read it was not.
fn is_ignored(number: Number) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    is_in_mask(&status, number)
}

fn is_in_mask(status: &str, number: Number) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (number.as_raw() - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_ctrl_c_that_comes_twice_is_one() {
        let (mut presses, now) = (Presses::default(), Instant::now());
        let after = |milliseconds| now + Duration::from_millis(milliseconds);
        assert!(presses.count(now));
        assert!(!presses.count(now) && !presses.count(after(99)));
        assert!(presses.count(after(101)), "the second press");
    }

    #[test]
    fn what_was_ignored_at_the_start_is_read_from_the_mask() {
        assert!(is_in_mask("Name:\tmuster\nSigIgn:\t0000000000001001\nSigCgt:\t0\n", Number::HUP));
        assert!(!is_in_mask("Name:\tmuster\nSigIgn:\t0000000000001000\nSigCgt:\t1\n", Number::HUP));
        assert!(!is_in_mask("", Number::HUP));
    }
}
