//! TTL checks: told their status by the API, critical when they are not told in time.

use std::time::Duration;

use muster_catalog::{Status, Text};
use tokio::time::Instant;

use super::Outcome;

/// How long the last update of a TTL check holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TtlDeadline {
    ttl: Duration,
    /// `None` once expired, or before the first update.
    until: Option<Instant>,
}

impl TtlDeadline {
    /// Waits for the first update. `held` starts a full term: for a status that was restored or given as initial, so
    /// that the agent's own restart is not held against the service.
    pub(crate) fn new(ttl: Duration, held: bool, now: Instant) -> Self {
        Self { ttl, until: held.then(|| now + ttl) }
    }

    /// When it expires unless it is told again.
    pub(crate) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// An update: a new term.
    pub(crate) fn renew(&mut self, now: Instant) {
        self.until = Some(now + self.ttl);
    }

    /// The outcome of the expiry, once, when the term is over.
    pub(crate) fn expire(&mut self, now: Instant, last_output: &Text) -> Option<Outcome> {
        self.until.take_if(|until| *until <= now)?;
        let ttl = self.ttl;
        let text = if last_output.is_empty() {
            format!("TTL expired: no update within {ttl:?}")
        } else {
            format!("TTL expired: no update within {ttl:?}; the last one said: {last_output}")
        };
        Some(Outcome::new(Status::Critical, &text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expires_once_and_is_renewed() {
        let (now, ttl) = (Instant::now(), Duration::from_secs(10));
        let mut deadline = TtlDeadline::new(ttl, false, now);
        assert_eq!(deadline.expire(now + ttl * 5, &Text::default()), None, "never told, so nothing to expire");
        deadline.renew(now);
        assert_eq!(deadline.expire(now + ttl - Duration::from_millis(1), &Text::default()), None);
        let outcome = deadline.expire(now + ttl, &"fine".into()).unwrap();
        assert_eq!(&*outcome.output, "TTL expired: no update within 10s; the last one said: fine");
        assert_eq!(deadline.expire(now + ttl * 2, &Text::default()), None);
    }
}
