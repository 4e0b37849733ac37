//! The rules for a check.

use std::{collections::BTreeMap, time::Duration};

use muster_catalog::{InstanceId, NODE_LIVENESS_CHECK, Status, Text};
use reqwest::{
    Method, Url,
    header::{HeaderName, HeaderValue},
};

use super::{
    CheckDefinition, CheckText, HttpProbe, InvalidDefinition, Probe, Thresholds, parse_duration,
    service::{key, limit, shorten, validate_id, validate_text},
};
use crate::local::NODE_MAINTENANCE_CHECK;

/// From start to start, unless written.
pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);
/// For one probe, unless written or the interval is shorter: a local answer that takes longer is not a good one.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(2);
/// Good results that end critical, unless written.
pub const DEFAULT_RISE: u32 = 1;
/// Bad results that end passing, unless written: one slow answer must not take an instance out.
pub const DEFAULT_FALL: u32 = 2;

/// Faster than this, probing is load and no news.
const MIN_INTERVAL: Duration = Duration::from_millis(100);
/// Slower than this, a status says nothing any more.
const MAX_INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// A connection on the same host takes about this.
const MIN_TIMEOUT: Duration = Duration::from_millis(1);
/// Longer, a hanging probe holds its socket for nothing.
const MAX_TIMEOUT: Duration = Duration::from_secs(600);
/// `deregister_critical_after` any shorter would race the check itself; any longer means never.
const MIN_DEREGISTER: Duration = Duration::from_millis(100);
const MAX_DEREGISTER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Beyond this a threshold is a typing error.
const MAX_THRESHOLD: u32 = 1000;
/// For names and notes.
const MAX_TEXT: usize = 1024;
const MAX_URL: usize = 2048;
const MAX_HEADERS: usize = 32;
const MAX_HEADER: usize = 4096;
/// A request that needs more is not a health check.
const MAX_BODY: usize = 16 * 1024;

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
            initial: self.initial(at)?,
            deregister_critical_after,
        })
    }

    fn probe(&self, at: &str) -> Result<Probe, Invalid> {
        match (&self.http, &self.tcp, &self.ttl) {
            (Some(url), None, None) => self.http_probe(at, url),
            (None, Some(target), None) => {
                self.refuse_http_keys(at)?;
                tcp_probe(&key(at, "tcp"), target)
            }
            (None, None, Some(ttl)) => {
                self.refuse_http_keys(at)?;
                self.refuse_probe_keys(at)?;
                let ttl = duration(&key(at, "ttl"), Some(ttl), (MIN_INTERVAL, MAX_INTERVAL))?;
                Ok(Probe::Ttl { ttl: ttl.unwrap_or(DEFAULT_INTERVAL) })
            }
            (None, None, None) => Err(Invalid::new(at, "it probes nothing: write exactly one of http, tcp and ttl")),
            _ => Err(Invalid::new(
                at,
                "it probes several ways: write exactly one of http, tcp and ttl, and a check for each",
            )),
        }
    }

    fn http_probe(&self, at: &str, url: &str) -> Result<Probe, Invalid> {
        let at_url = key(at, "http");
        validate_text(&at_url, url, MAX_URL)?;
        let parsed = Url::parse(url).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        if parsed.is_none() {
            let message =
                format!("{:?} is no URL to ask: write for example \"http://127.0.0.1:8080/healthz\"", shorten(url));
            return Err(Invalid::new(at_url, message));
        }
        let method = self.method.as_deref().filter(|method| !method.is_empty()).unwrap_or("GET");
        if Method::from_bytes(method.as_bytes()).is_err() {
            let message = format!("{:?} is no HTTP method: write for example \"GET\" or \"HEAD\"", shorten(method));
            return Err(Invalid::new(key(at, "method"), message));
        }
        let body = self.body.as_deref().unwrap_or_default();
        limit(&key(at, "body"), "bytes", body.len(), MAX_BODY)?;
        Ok(Probe::Http(HttpProbe {
            url: Text::from(url),
            method: Text::from(method),
            headers: self.headers(at)?,
            body: Text::from(body),
            follow_redirects: self.follow_redirects.unwrap_or(false),
            tls_skip_verify: self.tls_skip_verify.unwrap_or(false),
        }))
    }

    fn headers(&self, at: &str) -> Result<BTreeMap<Text, Text>, Invalid> {
        limit(&key(at, "headers"), "headers", self.headers.len(), MAX_HEADERS)?;
        let mut headers = BTreeMap::new();
        for (name, value) in &self.headers {
            let valid = HeaderName::from_bytes(name.as_bytes()).is_ok() && HeaderValue::from_str(value).is_ok();
            if !valid || name.len() + value.len() > MAX_HEADER {
                let message = format!("{:?} is no HTTP header: write a token and printable text", shorten(value));
                return Err(Invalid::new(format!("{}.{name}", key(at, "headers")), message));
            }
            headers.insert(Text::from(name.as_str()), Text::from(value.as_str()));
        }
        Ok(headers)
    }

    fn times(&self, at: &str, probe: &Probe) -> Result<(Duration, Duration), Invalid> {
        if matches!(probe, Probe::Ttl { .. }) {
            return Ok((Duration::ZERO, Duration::ZERO));
        }
        let interval = duration(&key(at, "interval"), self.interval.as_deref(), (MIN_INTERVAL, MAX_INTERVAL))?;
        let interval = interval.unwrap_or(DEFAULT_INTERVAL);
        let timeout = duration(&key(at, "timeout"), self.timeout.as_deref(), (MIN_TIMEOUT, MAX_TIMEOUT))?;
        Ok((interval, timeout.unwrap_or(DEFAULT_TIMEOUT.min(interval))))
    }

    fn thresholds(&self, at: &str) -> Result<Thresholds, Invalid> {
        let count = |name: &str, value: Option<u32>, default: u32| match value.unwrap_or(default) {
            count @ 1..=MAX_THRESHOLD => Ok(count),
            other => Err(Invalid::new(key(at, name), format!("{other} is out of range: write 1 to {MAX_THRESHOLD}"))),
        };
        let (rise, fall) = (count("rise", self.rise, DEFAULT_RISE)?, count("fall", self.fall, DEFAULT_FALL)?);
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

    fn refuse_http_keys(&self, at: &str) -> Result<(), Invalid> {
        let written = [
            ("method", self.method.is_some()),
            ("headers", !self.headers.is_empty()),
            ("body", self.body.is_some()),
            ("follow_redirects", self.follow_redirects.is_some()),
            ("tls_skip_verify", self.tls_skip_verify.is_some()),
        ];
        refuse(at, &written, "only http checks have it")
    }

    fn refuse_probe_keys(&self, at: &str) -> Result<(), Invalid> {
        let written = [
            ("interval", self.interval.is_some()),
            ("timeout", self.timeout.is_some()),
            ("rise", self.rise.is_some()),
            ("fall", self.fall.is_some()),
            ("warn_after", self.warn_after.is_some()),
        ];
        refuse(at, &written, "a ttl check is told its status and does not probe")
    }
}

fn refuse(at: &str, written: &[(&str, bool)], why: &str) -> Result<(), Invalid> {
    match written.iter().find(|(_, set)| *set) {
        Some((name, _)) => Err(Invalid::new(key(at, name), format!("{why}: leave it out"))),
        None => Ok(()),
    }
}

fn tcp_probe(at: &str, target: &str) -> Result<Probe, Invalid> {
    validate_text(at, target, MAX_URL)?;
    let split = target.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    let port = split.and_then(|(_, port)| port.parse::<u16>().ok()).filter(|port| *port != 0);
    if port.is_none() {
        let message = format!("{:?} is no target: write host:port, for example \"127.0.0.1:5432\"", shorten(target));
        return Err(Invalid::new(at, message));
    }
    Ok(Probe::Tcp { target: Text::from(target) })
}

fn duration(at: &str, text: Option<&str>, range: (Duration, Duration)) -> Result<Option<Duration>, Invalid> {
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
