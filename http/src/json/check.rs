//! A check, and the one that maintenance amounts to.

use std::{borrow::Cow, collections::BTreeMap, time::Duration};

use muster_catalog::{Check as CheckRow, Instance, InstanceEntry, NodeEntry, Row, Status, Text};
use serde::Serialize;

use crate::duration;

/// The type of the check that maintenance amounts to.
const MAINTENANCE: &str = "maintenance";

/// A check as `health/*` and `agent/checks` show it.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Check<'a> {
    node: &'a str,
    #[serde(rename = "CheckID")]
    check_id: Cow<'a, str>,
    name: &'a str,
    status: &'static str,
    notes: &'a str,
    output: &'a str,
    #[serde(rename = "ServiceID")]
    service_id: &'a str,
    service_name: &'a str,
    service_tags: &'a [Text],
    r#type: &'a str,
    interval: String,
    timeout: String,
    exposed_port: u16,
    definition: BTreeMap<&'static str, Cow<'a, str>>,
    create_index: u64,
    modify_index: u64,
}

impl<'a> Check<'a> {
    /// The row of a check, with the instance that it speaks for.
    pub(crate) fn new(row: &'a Row<CheckRow>, instance: Option<&'a Instance>) -> Self {
        let shown = Self::local(&row.value, instance);
        Self { create_index: row.created, modify_index: row.modified, ..shown }
    }

    /// A check that has no indexes yet: the agent's own.
    fn local(check: &'a CheckRow, instance: Option<&'a Instance>) -> Self {
        Self {
            node: check.node.as_str(),
            check_id: Cow::Borrowed(&check.id),
            name: &check.name,
            status: check.status.as_str(),
            notes: &check.notes,
            output: &check.output,
            service_id: check.instance.as_deref().unwrap_or(""),
            service_name: instance.map_or("", |instance| instance.service.as_str()),
            service_tags: instance.map_or(&[], |instance| &instance.tags),
            r#type: &check.kind.kind,
            interval: time_text(check.kind.interval),
            timeout: time_text(check.kind.timeout),
            exposed_port: 0,
            definition: definition(check),
            create_index: 0,
            modify_index: 0,
        }
    }

    /// Maintenance is a field of an instance here; clients of the dialect look for it among the checks.
    fn maintenance(instance: &'a Instance) -> Option<Self> {
        let reason = instance.maintenance.as_deref()?;
        Some(Self {
            node: instance.node.as_str(),
            check_id: Cow::Owned(format!("_service_maintenance:{}", instance.id)),
            name: "Service Maintenance Mode",
            status: Status::Critical.as_str(),
            notes: reason,
            output: "",
            service_id: &instance.id,
            service_name: instance.service.as_str(),
            service_tags: &instance.tags,
            r#type: MAINTENANCE,
            interval: String::new(),
            timeout: String::new(),
            exposed_port: 0,
            definition: BTreeMap::new(),
            create_index: 0,
            modify_index: 0,
        })
    }

    /// Its id.
    pub(crate) fn id(&self) -> &str {
        &self.check_id
    }

    /// Its status in the dialect's word.
    pub(crate) fn status(&self) -> &'static str {
        self.status
    }

    /// Whether it stands for the maintenance of an instance.
    pub(crate) fn is_maintenance(&self) -> bool {
        self.r#type == MAINTENANCE
    }

    /// The id of the instance that it speaks for; empty for the whole node.
    pub(crate) fn instance(&self) -> &str {
        self.service_id
    }
}

/// The checks of an instance alone.
pub(crate) fn service_checks(entry: &InstanceEntry) -> impl Iterator<Item = Check<'_>> {
    let (instance, row) = (&*entry.instance.value, &entry.instance);
    let maintenance = Check::maintenance(instance);
    let maintenance = maintenance.map(|check| Check { create_index: row.created, modify_index: row.modified, ..check });
    entry.checks.iter().map(move |check| Check::new(check, Some(instance))).chain(maintenance)
}

/// The checks that decide about an instance: its node's and its own.
pub(crate) fn entry_checks<'a>(node: &'a NodeEntry, entry: &'a InstanceEntry) -> Vec<Check<'a>> {
    node.checks.iter().map(|check| Check::new(check, None)).chain(service_checks(entry)).collect()
}

/// The agent's own checks, by id.
pub(crate) fn local_checks<'a>(
    checks: &'a [std::sync::Arc<CheckRow>],
    instances: &'a [std::sync::Arc<Instance>],
) -> BTreeMap<String, Check<'a>> {
    let by_id: BTreeMap<&str, &Instance> = instances.iter().map(|instance| (&*instance.id, &**instance)).collect();
    let own = checks.iter().map(|check| {
        let instance = check.instance.as_deref().and_then(|id| by_id.get(id).copied());
        Check::local(check, instance)
    });
    let maintenance = instances.iter().filter_map(|instance| Check::maintenance(instance));
    own.chain(maintenance).map(|check| (check.id().to_owned(), check)).collect()
}

fn definition(check: &CheckRow) -> BTreeMap<&'static str, Cow<'_, str>> {
    let mut fields = BTreeMap::new();
    let target = match &*check.kind.kind {
        "http" => Some("HTTP"),
        "tcp" => Some("TCP"),
        "udp" => Some("UDP"),
        "grpc" => Some("GRPC"),
        _ => None,
    };
    if let Some(field) = target.filter(|_| !check.kind.target.is_empty()) {
        fields.insert(field, Cow::Borrowed(&*check.kind.target));
    }
    for (field, time) in [("Interval", check.kind.interval), ("Timeout", check.kind.timeout)] {
        if !time.is_zero() {
            fields.insert(field, Cow::Owned(duration::format(time)));
        }
    }
    fields
}

fn time_text(time: Duration) -> String {
    if time.is_zero() { String::new() } else { duration::format(time) }
}
