//! The process's metrics: one recorder behind the `metrics` facade, rendered as Prometheus text.

use std::sync::OnceLock;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

/// Upper bounds of duration histograms, in seconds: from a lookup in memory to a blocking read's limit.
const SECONDS: [f64; 12] = [0.000_1, 0.000_5, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 600.0];

/// The handle that renders them.
#[derive(Clone)]
pub(crate) struct Metrics(PrometheusHandle);

impl Metrics {
    /// Installs the recorder; several Apps in one process (tests) share it.
    pub(crate) fn install() -> Result<Self, BuildError> {
        static INSTALLED: OnceLock<PrometheusHandle> = OnceLock::new();
        if let Some(handle) = INSTALLED.get() {
            return Ok(Self(handle.clone()));
        }
        let builder = PrometheusBuilder::new().set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)?;
        let handle = match builder.install_recorder() {
            Ok(handle) => handle,
            Err(error) => match INSTALLED.get() {
                Some(handle) => handle.clone(),
                None => return Err(error),
            },
        };
        let installed = Self(INSTALLED.get_or_init(|| handle).clone());
        crate::log::declare_metrics();
        Ok(installed)
    }

    /// The current values as Prometheus text.
    pub(crate) fn render(&self) -> String {
        self.0.render()
    }

    /// Folds what histograms have collected; called now and then so that an unscraped process does not grow.
    pub(crate) fn upkeep(&self) {
        self.0.run_upkeep();
    }
}
