//! The rules for a check.

use std::time::Duration;

use muster_catalog::{InstanceId, NODE_LIVENESS_CHECK, Status, Text};

use super::{
    CheckDefinition, CheckText, FlapRules, InvalidDefinition, Probe, Thresholds, parse_duration,
    service::{key, shorten, validate_id, validate_text},
};
use crate::local::NODE_MAINTENANCE_CHECK;

/// From start to start, unless written.
pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);
/// For one probe, unless written or the interval is shorter: a local answer that takes longer is not a good one.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(2);
/// The same for a script, which has more to do.
pub const DEFAULT_SCRIPT_TIMEOUT: Duration = Duration::from_secs(30);
/// Good results that end critical, unless written.
pub const DEFAULT_RISE: u32 = 1;
/// Bad results that end passing, unless written: one slow answer must not take an instance out.
pub const DEFAULT_FALL: u32 = 2;

/// Faster than this, probing is load and no news.
pub(super) const MIN_INTERVAL: Duration = Duration::from_millis(100);
/// Slower than this, a status says nothing any more.
pub(super) const MAX_INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// A connection on the same host takes about this.
const MIN_TIMEOUT: Duration = Duration::from_millis(1);
/// Longer, a hanging probe holds its socket for nothing.
const MAX_TIMEOUT: Duration = Duration::from_secs(600);
/// `deregister_critical_after` any shorter would race the check itself; any longer means never.
const MIN_DEREGISTER: Duration = Duration::from_millis(100);
const MAX_DEREGISTER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Beyond this a threshold is a typing error.
const MAX_THRESHOLD: u32 = 1000;
/// More falls than this are never in quick succession.
const MAX_FLAP_FAILURES: u32 = 100;
/// Slower than this, a fall is never forgotten.
const MAX_FLAP_HALF_LIFE: Duration = Duration::from_secs(3600);
/// For names and notes.
const MAX_TEXT: usize = 1024;

type Invalid = InvalidDefinition;

/// Whether a check of this id would stand where the registry, or the agent itself, keeps the node's own state: the one
/// would be overwritten at every push, and be missed at every look.
pub(crate) fn is_reserved(id: &str) -> bool {
    [NODE_LIVENESS_CHECK, NODE_MAINTENANCE_CHECK].contains(&id)
}

impl CheckText {
    /// Checks every rule; `at` is the key it stands under, for errors. The defaults are for what is not written.
    pub fn validate(
        &self,
        at: &str,
        default_id: &str,
        default_name: &str,
        instance: Option<InstanceId>,
    ) -> Result<CheckDefinition, InvalidDefinition> {
        let id = validate_id(&key(at, "id"), self.id.as_deref().unwrap_or(default_id))?;
        if is_reserved(&id) {
            let message = format!("{id:?} is kept for the node's own state: give the check another");
            return Err(Invalid::new(key(at, "id"), message));
        }
        let name = self.name.as_deref().filter(|name| !name.is_empty()).unwrap_or(default_name);
        validate_text(&key(at, "name"), name, MAX_TEXT)?;
        let notes = self.notes.as_deref().unwrap_or_default();
        if notes.len() > MAX_TEXT {
            return Err(Invalid::new(
                key(at, "notes"),
                format!("{} bytes are too many: at most {MAX_TEXT}", notes.len()),
            ));
        }
        let probe = self.probe(at)?;
        let (interval, timeout) = self.times(at, &probe)?;
        let range = (MIN_DEREGISTER, MAX_DEREGISTER);
        let after = self.deregister_critical_after.as_deref();
        let deregister_critical_after = duration(&key(at, "deregister_critical_after"), after, range)?;
        if instance.is_none() && deregister_critical_after.is_some() {
            let message = "a check of the node has no service to deregister: leave it out";
            return Err(Invalid::new(key(at, "deregister_critical_after"), message));
        }
        Ok(CheckDefinition {
            id,
            instance,
            name: Text::from(name),
            notes: Text::from(notes),
            probe,
            interval,
            timeout,
            thresholds: self.thresholds(at)?,
            flaps: self.flaps(at)?,
            initial: self.initial(at)?,
            deregister_critical_after,
        })
    }

    fn times(&self, at: &str, probe: &Probe) -> Result<(Duration, Duration), Invalid> {
        if probe.is_told() {
            self.refuse_probe_keys(at)?;
            return Ok((Duration::ZERO, Duration::ZERO));
        }
        let interval = duration(&key(at, "interval"), self.interval.as_deref(), (MIN_INTERVAL, MAX_INTERVAL))?;
        let interval = interval.unwrap_or(DEFAULT_INTERVAL);
        let timeout = duration(&key(at, "timeout"), self.timeout.as_deref(), (MIN_TIMEOUT, MAX_TIMEOUT))?;
        let default = if matches!(probe, Probe::Script { .. }) { DEFAULT_SCRIPT_TIMEOUT } else { DEFAULT_TIMEOUT };
        Ok((interval, timeout.unwrap_or(default.min(interval))))
    }

    fn thresholds(&self, at: &str) -> Result<Thresholds, Invalid> {
        let count = |name: &str, value: Option<u32>, default: u32| match value.unwrap_or(default) {
            count @ 1..=MAX_THRESHOLD => Ok(count),
            other => Err(Invalid::new(key(at, name), format!("{other} is out of range: write 1 to {MAX_THRESHOLD}"))),
        };
        // What an alias follows has passed thresholds already.
        let (default_rise, default_fall) = if self.follows() { (1, 1) } else { (DEFAULT_RISE, DEFAULT_FALL) };
        let (rise, fall) = (count("rise", self.rise, default_rise)?, count("fall", self.fall, default_fall)?);
        let warn_after = self.warn_after.map(|after| count("warn_after", Some(after), 1)).transpose()?;
        if let Some(after) = warn_after.filter(|after| *after > fall) {
            let message = format!("{after} lies beyond fall = {fall}, so it would never warn: write at most {fall}");
            return Err(Invalid::new(key(at, "warn_after"), message));
        }
        Ok(Thresholds { rise, fall, warn_after })
    }

    fn initial(&self, at: &str) -> Result<Status, Invalid> {
        let Some(word) = self.status.as_deref().filter(|word| !word.is_empty()) else {
            return Ok(Status::Critical);
        };
        Status::parse(word).ok_or_else(|| {
            let message = format!("{:?} is no status: write passing, warning or critical", shorten(word));
            Invalid::new(key(at, "status"), message)
        })
    }

    /// What is told its status knows it: a TTL check is damped only where its definition asks for it.
    fn flaps(&self, at: &str) -> Result<Option<FlapRules>, Invalid> {
        let details = [
            ("flap_failures", self.flap_failures.is_some()),
            ("flap_half_life", self.flap_half_life.is_some()),
            ("flap_max_hold", self.flap_max_hold.is_some()),
        ];
        if self.follows() {
            refuse(at, &[("flap_damping", self.flap_damping.is_some())], "an alias is not damped, what it follows is")?;
            refuse(at, &details, "an alias is not damped, what it follows is")?;
            return Ok(None);
        }
        if self.flap_damping == Some(false) {
            refuse(at, &details, "flap_damping is false")?;
            return Ok(None);
        }
        let asked = self.flap_damping.is_some() || details.iter().any(|(_, written)| *written);
        if self.ttl.is_some() && !asked {
            return Ok(None);
        }
        let defaults = FlapRules::default();
        let falls = self.flap_failures.unwrap_or(defaults.falls);
        if !(2..=MAX_FLAP_FAILURES).contains(&falls) {
            let message = format!("{falls} is out of range: write 2 to {MAX_FLAP_FAILURES}");
            return Err(Invalid::new(key(at, "flap_failures"), message));
        }
        let range = (MIN_INTERVAL, MAX_FLAP_HALF_LIFE);
        let half_life = duration(&key(at, "flap_half_life"), self.flap_half_life.as_deref(), range)?;
        let half_life = half_life.unwrap_or(defaults.half_life);
        let range = (MIN_INTERVAL, MAX_INTERVAL);
        let max_hold = duration(&key(at, "flap_max_hold"), self.flap_max_hold.as_deref(), range)?;
        let max_hold = max_hold.unwrap_or_else(|| defaults.max_hold.max(half_life * 2));
        if max_hold <= half_life {
            let (max_hold, half_life) = (super::format_duration(max_hold), super::format_duration(half_life));
            let message =
                format!("{max_hold} is not over flap_half_life = {half_life}, so it would never hold: raise it");
            return Err(Invalid::new(key(at, "flap_max_hold"), message));
        }
        Ok(Some(FlapRules { falls, half_life, max_hold }))
    }

    /// The keys that say how flapping is damped.
    pub(super) fn write_flaps(&mut self, definition: &CheckDefinition) {
        match definition.flaps {
            _ if self.follows() => {}
            None => self.flap_damping = self.ttl.is_none().then_some(false),
            Some(rules) if rules == FlapRules::default() => self.flap_damping = self.ttl.is_some().then_some(true),
            Some(FlapRules { falls, half_life, max_hold }) => {
                self.flap_failures = Some(falls);
                self.flap_half_life = Some(super::format_duration(half_life));
                self.flap_max_hold = Some(super::format_duration(max_hold));
            }
        }
    }

    fn follows(&self) -> bool {
        self.alias_service.is_some() || self.alias_node.is_some()
    }

    fn refuse_probe_keys(&self, at: &str) -> Result<(), Invalid> {
        let written = [
            ("interval", self.interval.is_some()),
            ("timeout", self.timeout.is_some()),
            ("rise", self.rise.is_some()),
            ("fall", self.fall.is_some()),
            ("warn_after", self.warn_after.is_some()),
        ];
        refuse(at, &written, "a ttl or alias check is told its status and does not probe")
    }
}

fn refuse(at: &str, written: &[(&str, bool)], why: &str) -> Result<(), Invalid> {
    match written.iter().find(|(_, set)| *set) {
        Some((name, _)) => Err(Invalid::new(key(at, name), format!("{why}: leave it out"))),
        None => Ok(()),
    }
}

pub(super) fn duration(at: &str, text: Option<&str>, range: (Duration, Duration)) -> Result<Option<Duration>, Invalid> {
    let Some(text) = text else { return Ok(None) };
    let Some(duration) = parse_duration(text) else {
        let message = format!("{:?} is no duration: write for example \"10s\", \"500ms\" or \"1m\"", shorten(text));
        return Err(Invalid::new(at, message));
    };
    let (least, most) = range;
    if duration < least || duration > most {
        let (least, most) = (super::format_duration(least), super::format_duration(most));
        return Err(Invalid::new(at, format!("{text:?} is out of range: write {least} to {most}")));
    }
    Ok(Some(duration))
}
