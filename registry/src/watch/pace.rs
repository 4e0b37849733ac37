//! When a stream speaks of what does not touch its Scope: with a heartbeat, or for a change of the Directory at once and
//! then not again for a while.

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
/// How long the Directory rests after it was told: a fleet that starts moves it hundreds of times a second.
const DIRECTORY_REST: Duration = Duration::from_millis(250);

/// The clocks of one stream.
pub(super) struct Pace {
    heartbeat: Interval,
    directory: watch::Receiver<u64>,
    /// Nothing is heard of the Directory before.
    rests_until: Option<Instant>,
}

/// What it is time for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// What happened, and a sign of life in any case.
    Heartbeat,
    /// What happened.
    Directory,
}

impl Pace {
    pub(super) fn new(watchers: &Watchers, watcher: &Watcher) -> Self {
        let mut heartbeat = interval_at(first_beat(watchers.began(), watcher.id()), HEARTBEAT);
        // It stays with the others of its moment.
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Skip);
        Self { heartbeat, directory: watchers.directory(), rests_until: None }
    }

    pub(super) async fn due(&mut self) -> Due {
        loop {
            let rests_until = self.rests_until;
            tokio::select! {
                _ = self.heartbeat.tick() => return Due::Heartbeat,
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

fn first_beat(began: Instant, id: u64) -> Instant {
    let moment = HEARTBEAT / MOMENTS * u32::try_from(id % u64::from(MOMENTS)).unwrap_or_default();
    let now = Instant::now();
    let beats = now.saturating_duration_since(began).as_millis() / HEARTBEAT.as_millis();
    let last = began + HEARTBEAT * u32::try_from(beats).unwrap_or(u32::MAX) + moment;
    if last > now { last } else { last + HEARTBEAT }
}
