//! What is out on purpose: services, and the node.

use std::sync::Arc;

use muster_catalog::{Check, CheckKind, InstanceId, Origin, Status, Text};

use super::{MAX_SERVICES, Table};
use crate::local::{LocalError, NODE_MAINTENANCE_CHECK, store::SavedMaintenance};

impl Table {
    /// What is out on purpose once the service's (or, without id, the node's) maintenance is set or ended.
    pub(in crate::local) fn plan_maintenance(
        &self,
        id: Option<&InstanceId>,
        reason: Option<Text>,
    ) -> Result<SavedMaintenance, LocalError> {
        let mut maintenance = self.maintenance.clone();
        match (id, reason) {
            (None, reason) => maintenance.node = reason,
            (Some(id), _) if !self.services.contains_key(id) => return Err(LocalError::UnknownService(id.clone())),
            (Some(id), Some(reason)) => drop(maintenance.services.insert(id.clone(), reason)),
            (Some(id), None) => drop(maintenance.services.remove(id)),
        }
        // Reasons for services that no longer stand here are forgotten once they could pile up.
        if maintenance.services.len() > MAX_SERVICES {
            maintenance.services.retain(|id, _| self.services.contains_key(id));
        }
        Ok(maintenance)
    }

    /// What is out on purpose once that service is gone; `None` where it is not out.
    pub(in crate::local) fn maintenance_without(&self, id: &InstanceId) -> Option<SavedMaintenance> {
        let mut maintenance = self.maintenance.clone();
        maintenance.services.remove(id).map(|_| maintenance)
    }

    pub(in crate::local) fn set_maintenance(&mut self, maintenance: SavedMaintenance) {
        self.maintenance = maintenance;
        self.node_row = self.node_maintenance_row();
        self.rebuild_instances();
    }

    /// The check that says so of the node.
    pub(super) fn node_maintenance_row(&self) -> Option<Arc<Check>> {
        let reason = self.maintenance.node.clone()?;
        Some(Arc::new(Check {
            node: self.node.clone(),
            id: NODE_MAINTENANCE_CHECK.into(),
            instance: None,
            name: "Node Maintenance Mode".into(),
            status: Status::Critical,
            notes: reason,
            output: Text::default(),
            kind: CheckKind { kind: "maintenance".into(), ..CheckKind::default() },
            origin: Origin::Agent,
        }))
    }
}
