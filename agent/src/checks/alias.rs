//! The alias: what the checks of another service of this node, and of the node itself, come to. Told by each change,
//! so it has no interval. Other aliases are not counted, so that two of them cannot hold each other.

use std::sync::Arc;

use muster_catalog::{Check, CheckId, InstanceId, Status};
use tokio::sync::{mpsc, watch};

use super::{Outcome, Report};
use crate::local::LocalRows;

/// Follows the rows for ever, and reports whenever they come to something else; ends if nobody listens any more.
pub(super) async fn follow(
    check: CheckId,
    service: Option<InstanceId>,
    run: u64,
    mut rows: watch::Receiver<Arc<LocalRows>>,
    reports: mpsc::Sender<Report>,
) -> CheckId {
    let mut last = None;
    loop {
        let outcome = judge(&rows.borrow_and_update(), service.as_ref());
        if last.as_ref() != Some(&outcome) {
            last = Some(outcome.clone());
            if reports.send(Report { check: check.clone(), run, outcome }).await.is_err() {
                return check;
            }
        }
        if rows.changed().await.is_err() {
            return check;
        }
    }
}

/// The worst of the checks.
fn judge(rows: &LocalRows, service: Option<&InstanceId>) -> Outcome {
    if let Some(id) = service {
        match rows.instances.iter().find(|instance| instance.id == *id) {
            None => return Outcome::critical(&format!("service {id:?} is not in this node's catalog")),
            Some(instance) if instance.maintenance.is_some() => {
                return Outcome::critical(&format!("service {id:?} is in maintenance"));
            }
            Some(_) => {}
        }
    }
    let followed = |check: &&Arc<Check>| {
        &*check.kind.kind != "alias" && (check.instance.is_none() || check.instance.as_ref() == service)
    };
    let worst = rows.checks.iter().filter(followed).max_by_key(|check| severity(check.status));
    match worst {
        None => Outcome::passing("No checks found."),
        Some(check) if check.status == Status::Passing => Outcome::passing("All checks passing."),
        Some(check) => {
            Outcome::new(check.status, &format!("Aliased check {:?} is {}: {}", check.name, check.status, check.output))
        }
    }
}

fn severity(status: Status) -> u8 {
    match status {
        Status::Passing => 0,
        Status::Warning => 1,
        Status::Critical => 2,
    }
}
