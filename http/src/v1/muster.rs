//! `muster/*`: what the v1 dialect has no words for.

use std::collections::BTreeMap;

use axum::extract::State;
use muster_catalog::{Instance, Snapshot, Status, Topic, Wide, health};
use serde::Serialize;

use super::{ApiState, HandlerResult};
use crate::{
    ask::Ask,
    reading::{json, large_json},
};

/// The registry's members with their roles.
pub(crate) async fn list_members(State(api): ApiState, ask: Ask) -> HandlerResult {
    json(&ask, &api.ports.operator.members().await)
}

/// The connected proxies: what each took and what it refused.
pub(crate) async fn list_proxies(State(api): ApiState, ask: Ask) -> HandlerResult {
    large_json(&ask, || api.ports.operator.xds_proxies()).await
}

/// How many instances of a service are in which state; each is counted once.
#[derive(Default, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Counts {
    passing: usize,
    warning: usize,
    critical: usize,
    maintenance: usize,
    draining: usize,
}

impl Counts {
    fn add(&mut self, instance: &Instance, status: Status) {
        let count = match status {
            _ if instance.draining => &mut self.draining,
            _ if instance.maintenance.is_some() => &mut self.maintenance,
            Status::Passing => &mut self.passing,
            Status::Warning => &mut self.warning,
            Status::Critical => &mut self.critical,
        };
        *count += 1;
    }
}

/// All services with the states of their instances.
pub(crate) async fn list_services(State(api): ApiState, ask: Ask) -> HandlerResult {
    // Of two tables no one index says which answer is newer: it is never waited for.
    let ask = Ask { index: 0, ..ask };
    // Instances first: one that comes to be before its checks are read is not there without them.
    let instances = api.read_wide(&ask, Topic::Services, Wide::Instances(Vec::new())).await?;
    let checks = api.read_wide(&ask, Topic::Checks, Wide::Checks(None)).await?;
    large_json(&ask, || count_instances(&instances.view.local, &checks.view.local)).await
}

fn count_instances<'a>(instances: &'a Snapshot, checks: &Snapshot) -> BTreeMap<&'a str, Counts> {
    let mut services = BTreeMap::<&str, Counts>::new();
    for node in instances.nodes() {
        let checked = checks.find_node(&node.node.value.name);
        for entry in &node.instances {
            let instance = &*entry.instance.value;
            let status = checked.map_or(Status::Passing, |node| match node.find_instance(&instance.id) {
                Some(entry) => health::status(node, entry),
                // It has no checks of its own.
                None => node.checks.worst(),
            });
            services.entry(instance.service.as_str()).or_default().add(instance, status);
        }
    }
    services
}
