//! When a stream speaks of what does not touch its Scope: every few heartbeats, or for a change of the Directory at once
//! and then not again for a while.

use std::{future::pending, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until},
};

use super::watchers::{Watcher, Watchers};

/// How often the index is told when nothing happens: an agent takes a stream that is silent for some of these as dead.
pub(super) const HEARTBEAT: Duration = Duration::from_millis(500);
/// Heartbeats of a member's watchers come at so many moments of that time: not all at once, and those that come together
/// are told the same.
const MOMENTS: u32 = 10;
/// With one heartbeat of so many a watcher hears what moved nothing but indexes that it does not hold. Nobody waits for
/// that: who begins to use a service is told of it first. Those of one moment hear it with the same heartbeat, those of
/// another moment with another one.
const BEATS_A_ROUND: u32 = MOMENTS;
/// How late a watcher may hear of it.
pub(super) const ROUND: Duration = HEARTBEAT.saturating_mul(BEATS_A_ROUND);
/// How long the Directory rests after it was told: a fleet that starts moves it hundreds of times a second.
const DIRECTORY_REST: Duration = Duration::from_millis(250);

/// The clocks of one stream.
pub(super) struct Pace {
    heartbeat: Interval,
    /// The first heartbeat from then on says what happened.
    tells_at: Instant,
    directory: watch::Receiver<u64>,
    /// Nothing is heard of the Directory before.
    rests_until: Option<Instant>,
}

/// What it is time for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// A sign of life.
    Heartbeat,
    /// What happened, and a sign of life in any case.
    Round,
    /// What happened.
    Directory,
}

impl Pace {
    pub(super) fn new(watchers: &Watchers, watcher: &Watcher) -> Self {
        let (began, now) = (watchers.began(), Instant::now());
        let moment = u32::try_from(watcher.id() % u64::from(MOMENTS)).unwrap_or_default();
        let beat = began + HEARTBEAT / MOMENTS * moment;
        let mut heartbeat = interval_at(next_after(now, beat, HEARTBEAT), HEARTBEAT);
        // It stays with the others of its moment.
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let tells_at = next_after(now, beat + HEARTBEAT * moment, ROUND);
        Self { heartbeat, tells_at, directory: watchers.directory(), rests_until: None }
    }

    pub(super) async fn due(&mut self) -> Due {
        loop {
            let rests_until = self.rests_until;
            tokio::select! {
                tick = self.heartbeat.tick() => {
                    if tick < self.tells_at {
                        return Due::Heartbeat;
                    }
                    self.tells_at = next_after(tick, self.tells_at, ROUND);
                    return Due::Round;
                }
                moved = self.directory.changed(), if rests_until.is_none() => {
                    if moved.is_err() {
                        pending::<()>().await;
                    }
                    self.rests_until = Some(Instant::now() + DIRECTORY_REST);
                    return Due::Directory;
                }
                () = sleep_until(rests_until.unwrap_or_else(Instant::now)), if rests_until.is_some() => {
                    self.rests_until = None;
                }
            }
        }
    }
}

/// The first moment after `now` of those that come `every` so often from `first` on.
fn next_after(now: Instant, first: Instant, every: Duration) -> Instant {
    let past = now.saturating_duration_since(first).as_millis() / every.as_millis();
    let last = first + every * u32::try_from(past).unwrap_or(u32::MAX);
    if last > now { last } else { last + every }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::Arc};

    use muster_catalog::Scope;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_watcher_lives_with_each_heartbeat_and_is_told_once_a_round_together_with_those_of_its_moment() {
        let watchers = Arc::new(Watchers::default());
        let mut told = Vec::new();
        for _ in 0..MOMENTS * 2 {
            let watcher = watchers.join(&Scope::All);
            // They come one after the other, and are told together all the same. The clock is paused, so nobody waits;
            // it is no even part of a heartbeat, so that each comes at another moment of one.
            tokio::time::sleep(Duration::from_millis(130)).await;
            let mut pace = Pace::new(&watchers, &watcher);
            told.push(tokio::spawn(async move {
                let (mut rounds, mut last) = (Vec::new(), Instant::now());
                while rounds.len() < 4 {
                    let due = pace.due().await;
                    assert!(last.elapsed() <= HEARTBEAT, "silent for {:?}", last.elapsed());
                    last = Instant::now();
                    if due == Due::Round {
                        rounds.push(last);
                    }
                }
                rounds
            }));
        }
        let mut rounds = Vec::new();
        for told in told {
            rounds.push(told.await.expect("it ends"));
        }
        let mut of_a_moment = BTreeSet::new();
        for (first, second) in rounds.iter().zip(&rounds[MOMENTS as usize..]) {
            assert!(first.windows(2).all(|pair| pair[1] - pair[0] == ROUND), "{first:?}");
            assert!(first.contains(&second[0]), "{first:?} and {second:?}");
            of_a_moment.insert(first[3].duration_since(watchers.began()).as_millis() % ROUND.as_millis());
        }
        assert_eq!(of_a_moment.len(), MOMENTS as usize, "not all at once");
    }
}
