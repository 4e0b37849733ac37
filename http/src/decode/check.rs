//! Check definitions, as `agent/check/register` and a service's `Check` and `Checks` hold them.

use std::time::Duration;

use muster_catalog::{InstanceId, Status, Text};

use super::{
    DecodeError,
    object::{Object, clean_output},
    probe,
};
use crate::port::{CheckDefinition, Probe};

/// The shortest critical time after which an instance is deregistered, as in the dialect: a restart is no death.
const MIN_DEREGISTER_AFTER: Duration = Duration::from_secs(60);
/// More results in a row than this would take days at any interval: a slip of the pen.
const MAX_THRESHOLD: u32 = 10_000;

/// Fields of the dialect that no check of the API may have, and why.
const UNSUPPORTED: [(&str, &str); 6] = [
    ("Args", "script checks over the API are (write them into a definition file)"),
    ("ScriptArgs", "script checks over the API are (write them into a definition file)"),
    ("Script", "script checks over the API are (write them into a definition file)"),
    ("DockerContainerID", "docker checks are"),
    ("Shell", "docker checks are"),
    ("Token", "tokens are"),
];

/// What a check is called when its definition does not say.
pub(super) struct Defaults {
    /// Its id.
    pub(super) id: Text,
    /// Its name.
    pub(super) name: Text,
    /// The instance that it stands in.
    pub(super) instance: InstanceId,
}

/// The body of `agent/check/register`.
pub(crate) fn decode_check(body: &[u8]) -> Result<CheckDefinition, DecodeError> {
    let mut object = Object::parse(body)?;
    let instance = object.find_text("ServiceID")?;
    let check = read_check(&mut object, None, instance)?;
    object.finish()?;
    Ok(check)
}

/// A check inside a service.
pub(super) fn decode_nested(mut object: Object, defaults: Defaults) -> Result<CheckDefinition, DecodeError> {
    let given = object.find_text("ServiceID")?;
    if given.is_some_and(|given| given != defaults.instance) {
        return Err(object.broken("ServiceID", "names another service than the one it stands in; leave it out"));
    }
    let instance = defaults.instance.clone();
    let check = read_check(&mut object, Some(defaults), Some(instance))?;
    object.finish()?;
    Ok(check)
}

/// The body of `agent/check/update`: a status and what it rests on.
pub(crate) fn decode_ttl_update(body: &[u8]) -> Result<(Status, Text), DecodeError> {
    let mut object = Object::parse(body)?;
    let status = object.text("Status")?;
    let output = clean_output(&object.raw_text("Output")?);
    object.finish()?;
    let status = Status::parse(&status).ok_or_else(|| invalid_status("Status", &status))?;
    Ok((status, output))
}

pub(super) fn invalid_status(field: &str, status: &str) -> DecodeError {
    let reason = format!("invalid check status {status:?}: it must be passing, warning or critical");
    DecodeError::Value { field: field.to_owned(), reason }
}

fn read_check(
    object: &mut Object,
    defaults: Option<Defaults>,
    instance: Option<InstanceId>,
) -> Result<CheckDefinition, DecodeError> {
    for (field, what) in UNSUPPORTED {
        object.refuse(field, what)?;
    }
    object.refuse("Namespace", "namespaces are")?;
    object.refuse("Partition", "partitions are")?;
    object.pass_over(&["ExposedPort"]);
    let id = match (object.find_text("CheckID")?, object.find_text("ID")?) {
        (Some(id), None) | (None, Some(id)) => Some(id),
        (Some(id), Some(other)) if id == other => Some(id),
        (Some(_), Some(_)) => return Err(object.broken("ID", "differs from CheckID: give one of them")),
        (None, None) => None,
    };
    let name = object.find_text("Name")?;
    let (id, name) = match defaults {
        Some(defaults) => (id.unwrap_or(defaults.id), name.unwrap_or(defaults.name)),
        None => {
            let name = name.ok_or_else(|| DecodeError::Rule("Missing check name".into()))?;
            (id.unwrap_or_else(|| name.clone()), name)
        }
    };
    let notes = object.lines("Notes")?;
    let initial = match object.find_text("Status")? {
        None => None,
        Some(status) => Some(Status::parse(&status).ok_or_else(|| invalid_status(&object.path("Status"), &status))?),
    };
    let deregister_critical_after = object.duration("DeregisterCriticalServiceAfter")?;
    let output_limit = object.number("OutputMaxSize", u32::MAX)?.filter(|limit| *limit > 0);
    let (rise, fall, failures_before_warning) = read_thresholds(object)?;
    let (probe, interval, timeout) = probe::read_probe(object)?;
    let flap_damping = object.find_flag("FlapDamping")?;
    if flap_damping.is_some() && matches!(probe, Probe::Alias { .. }) {
        return Err(object.broken("FlapDamping", "is not for an alias: what it follows is damped; leave it out"));
    }
    Ok(CheckDefinition {
        id,
        name,
        instance,
        notes,
        initial,
        probe,
        interval,
        timeout,
        rise,
        fall,
        failures_before_warning,
        flap_damping,
        deregister_critical_after: deregister_critical_after.map(|after| after.max(MIN_DEREGISTER_AFTER)),
        output_limit,
    })
}

fn read_thresholds(object: &mut Object) -> Result<(u32, u32, u32), DecodeError> {
    // The dialect counts from 0 and acts at the first result that reaches the number: 0 and 1 are the same.
    let rise = object.number("SuccessBeforePassing", MAX_THRESHOLD)?.unwrap_or(0).max(1);
    let fall = object.number("FailuresBeforeCritical", MAX_THRESHOLD)?.unwrap_or(0).max(1);
    let warning = object.number("FailuresBeforeWarning", MAX_THRESHOLD)?.filter(|count| *count > 0).unwrap_or(fall);
    if warning > fall {
        return Err(DecodeError::Rule("FailuresBeforeWarning can't be higher than FailuresBeforeCritical".into()));
    }
    Ok((rise, fall, warning))
}
