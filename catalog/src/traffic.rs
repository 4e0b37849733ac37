//! How a service wants to be called, as its instances carry it.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    ServiceSet,
    proxy::{MAX_CONNECT_TIMEOUT, is_connect_timeout},
};

/// More failures in a row than this never eject anything.
const MAX_FAILURES: u32 = 10_000;
/// How often ejection is considered at least: a data plane looks this seldom at most.
const MAX_INTERVAL: Duration = Duration::from_secs(3600);
/// Shorter ones would have every data plane busy with looking.
const MIN_INTERVAL: Duration = Duration::from_millis(100);
/// The longest first ejection: what stays out longer should be taken out by a check.
const MAX_EJECTION: Duration = Duration::from_secs(24 * 3600);

/// How a service wants to be called. What is absent is left to who calls. It came with catalog format 2.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Traffic {
    /// How long a caller tries to connect.
    pub connect_timeout: Option<Duration>,
    /// Below this share of healthy instances, in percent, callers spread over all of them. 0 never does.
    pub panic_threshold: Option<u8>,
    /// Whether callers prefer instances of their own zone, then of their region.
    pub prefer_near: Option<bool>,
    /// When a caller leaves an instance out that fails it, whatever its checks say.
    pub outlier_detection: Option<OutlierDetection>,
}

/// When a caller leaves out an instance that fails it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct OutlierDetection {
    /// Failures in a row: connections that fail, answers of 500 and over.
    pub consecutive_failures: u32,
    /// How often it is considered.
    pub interval: Duration,
    /// How long the first ejection lasts; each further one longer.
    pub ejection_time: Duration,
    /// How many of the instances may be out at once, in percent.
    pub max_ejected_percent: u8,
}

impl Default for OutlierDetection {
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            interval: Duration::from_secs(10),
            ejection_time: Duration::from_secs(30),
            // Half of them left out is a fault of the service, or of the caller: the rest stays.
            max_ejected_percent: 50,
        }
    }
}

/// Where traffic settings break a rule: each way in has its own key for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrafficField {
    /// The connect timeout.
    ConnectTimeout,
    /// The panic threshold.
    PanicThreshold,
    /// Failures in a row.
    ConsecutiveFailures,
    /// How often ejection is considered.
    Interval,
    /// How long an ejection lasts.
    EjectionTime,
    /// How many may be out.
    MaxEjectedPercent,
}

/// A rule that traffic settings break: where, and the value with its remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrafficFault {
    /// Where.
    pub field: TrafficField,
    /// The value, the offence and the remedy.
    pub message: String,
}

impl Traffic {
    /// The first rule that they break, if any. Every way in asks.
    pub fn find_fault(&self) -> Option<TrafficFault> {
        let fault = |field, message| Some(TrafficFault { field, message });
        if let Some(timeout) = self.connect_timeout.filter(|timeout| !is_connect_timeout(*timeout)) {
            let message = format!("{timeout:?} is no connect timeout: give 1 ms to {MAX_CONNECT_TIMEOUT:?}");
            return fault(TrafficField::ConnectTimeout, message);
        }
        if let Some(percent) = self.panic_threshold.filter(|percent| *percent > 100) {
            let message = format!("{percent} is no percentage: give 0 (never call sick instances) to 100");
            return fault(TrafficField::PanicThreshold, message);
        }
        let outlier = self.outlier_detection.as_ref()?;
        if !(1..=MAX_FAILURES).contains(&outlier.consecutive_failures) {
            let message = format!("{} is out of range: give 1 to {MAX_FAILURES}", outlier.consecutive_failures);
            return fault(TrafficField::ConsecutiveFailures, message);
        }
        if !(MIN_INTERVAL..=MAX_INTERVAL).contains(&outlier.interval) {
            let message = format!("{:?} is out of range: give {MIN_INTERVAL:?} to {MAX_INTERVAL:?}", outlier.interval);
            return fault(TrafficField::Interval, message);
        }
        if !(MIN_INTERVAL..=MAX_EJECTION).contains(&outlier.ejection_time) {
            let time = outlier.ejection_time;
            let message = format!("{time:?} is out of range: give {MIN_INTERVAL:?} to {MAX_EJECTION:?}");
            return fault(TrafficField::EjectionTime, message);
        }
        if !(1..=100).contains(&outlier.max_ejected_percent) {
            let message = format!("{} is out of range: give 1 to 100 percent", outlier.max_ejected_percent);
            return fault(TrafficField::MaxEjectedPercent, message);
        }
        None
    }
}

/// The traffic settings of a service, of which each instance carries a copy.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AgreedTraffic {
    /// What holds for the service.
    pub traffic: Traffic,
    /// How many instances carry other settings: during a roll-out some do, afterwards none should.
    pub dissenters: usize,
}

impl ServiceSet {
    /// The traffic settings that most of the instances that carry any agree on; of several as frequent ones the
    /// greatest in order of their values. So all readers come to the same, and a roll-out changes them once, half way.
    pub fn agreed_traffic(&self) -> AgreedTraffic {
        let mut votes: BTreeMap<&Traffic, usize> = BTreeMap::new();
        let carried = self.instances.iter().filter_map(|entry| entry.instance.value.traffic.as_deref());
        for traffic in carried {
            *votes.entry(traffic).or_default() += 1;
        }
        let all: usize = votes.values().sum();
        let most = votes.into_iter().max_by_key(|(_, count)| *count);
        most.map(|(traffic, count)| AgreedTraffic { traffic: traffic.clone(), dissenters: all - count })
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_names_its_place_and_the_remedy() {
        let outlier = |edit: fn(&mut OutlierDetection)| {
            let mut outlier = OutlierDetection::default();
            edit(&mut outlier);
            Traffic { outlier_detection: Some(outlier), ..Traffic::default() }
        };
        assert_eq!(outlier(|_| {}).find_fault(), None);
        let table = [
            (
                Traffic { connect_timeout: Some(Duration::ZERO), ..Traffic::default() },
                TrafficField::ConnectTimeout,
                "no connect timeout",
            ),
            (
                Traffic { panic_threshold: Some(101), ..Traffic::default() },
                TrafficField::PanicThreshold,
                "no percentage",
            ),
            (outlier(|o| o.consecutive_failures = 0), TrafficField::ConsecutiveFailures, "1 to 10000"),
            (outlier(|o| o.interval = Duration::ZERO), TrafficField::Interval, "100ms to 3600s"),
            (outlier(|o| o.ejection_time = Duration::ZERO), TrafficField::EjectionTime, "100ms to 86400s"),
            (outlier(|o| o.max_ejected_percent = 0), TrafficField::MaxEjectedPercent, "1 to 100"),
        ];
        for (traffic, field, words) in table {
            let fault = traffic.find_fault().unwrap_or_else(|| panic!("{words} was let pass"));
            assert_eq!(fault.field, field, "{}", fault.message);
            assert!(fault.message.contains(words), "{}", fault.message);
        }
    }
}
