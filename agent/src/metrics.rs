//! The process's metrics: one recorder behind the `metrics` facade, rendered as Prometheus text.

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

/// Upper bounds of duration histograms, in seconds: from a lookup in memory to a blocking read's limit.
const SECONDS: [f64; 12] = [0.000_1, 0.000_5, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 600.0];

/// A text is answered again for so long. Rendering takes about a millisecond of a thread that also carries heartbeats and
/// writes, and a client may ask for as many as it likes.
const RENDERED_FOR: Duration = Duration::from_millis(100);

/// The handle that renders them.
#[derive(Clone)]
pub(crate) struct Metrics {
    handle: PrometheusHandle,
    rendered: Arc<Mutex<Option<(Instant, String)>>>,
}

impl Metrics {
    /// Installs the recorder; several Apps in one process (tests) share it.
    pub(crate) fn install() -> Result<Self, BuildError> {
        static INSTALLED: OnceLock<PrometheusHandle> = OnceLock::new();
        if let Some(handle) = INSTALLED.get() {
            return Ok(Self::new(handle.clone()));
        }
        let builder = PrometheusBuilder::new().set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)?;
        let handle = match builder.install_recorder() {
            Ok(handle) => handle,
            Err(error) => match INSTALLED.get() {
                Some(handle) => handle.clone(),
                None => return Err(error),
            },
        };
        let installed = Self::new(INSTALLED.get_or_init(|| handle).clone());
        crate::log::declare_metrics();
        Ok(installed)
    }

    fn new(handle: PrometheusHandle) -> Self {
        Self { handle, rendered: Arc::default() }
    }

    /// The values as Prometheus text, at most [`RENDERED_FOR`] old.
    pub(crate) fn render(&self) -> String {
        self.render_at(Instant::now())
    }

    fn render_at(&self, now: Instant) -> String {
        let mut rendered = self.rendered.lock().unwrap_or_else(PoisonError::into_inner);
        match &*rendered {
            Some((at, text)) if now.saturating_duration_since(*at) < RENDERED_FOR => text.clone(),
            _ => rendered.insert((now, self.handle.render())).1.clone(),
        }
    }

    /// Folds what histograms have collected; called now and then so that an unscraped process does not grow.
    pub(crate) fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_without_a_pause_gets_the_same_text_for_a_moment() {
        let metrics = Metrics::install().unwrap();
        let start = Instant::now();
        let asked = |after: Duration| metrics.render_at(start + after).contains("muster_tests_rendered_total 1");
        assert!(!asked(Duration::ZERO));
        metrics::counter!("muster_tests_rendered_total").increment(1);
        assert!(!asked(RENDERED_FOR / 2));
        assert!(asked(RENDERED_FOR));
    }
}
