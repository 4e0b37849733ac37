//! How others ask the owner of LocalState.

use std::sync::Arc;

use muster_catalog::{CheckId, InstanceId, Text};
use tokio::sync::{mpsc, oneshot, watch};

use super::{FileService, LocalError, LocalListing, LocalRows, Sources, TtlUpdate};
use crate::definition::{CheckDefinition, ServiceDefinition};

/// What may be asked of the owner.
#[derive(Debug)]
pub(super) enum Request {
    RegisterService { definition: Box<ServiceDefinition>, replace_existing_checks: bool },
    RegisterCheck(Box<CheckDefinition>),
    DeregisterService(InstanceId),
    DeregisterCheck(CheckId),
    UpdateTtl(CheckId, TtlUpdate),
    SetServiceMaintenance(InstanceId, Option<Text>),
    SetNodeMaintenance(Option<Text>),
    SetFileServices(Vec<FileService>, Sources),
    Drain,
}

/// A request or question on its way to the owner, and where the answer goes.
#[derive(Debug)]
pub(super) enum Letter {
    Request(Request, oneshot::Sender<Result<(), LocalError>>),
    List(oneshot::Sender<LocalListing>),
}

/// The door to LocalState. Cheap to clone; a full queue makes callers wait.
#[derive(Debug, Clone)]
pub struct LocalHandle {
    pub(super) letters: mpsc::Sender<Letter>,
    pub(super) rows: watch::Receiver<Arc<LocalRows>>,
    pub(super) damaged: Arc<[String]>,
}

impl LocalHandle {
    /// The rows as they are now.
    pub fn rows(&self) -> Arc<LocalRows> {
        self.rows.borrow().clone()
    }

    /// Registrations that were found damaged when the agent started, each with what to do.
    pub fn damaged(&self) -> &[String] {
        &self.damaged
    }

    /// Wakes on every new generation; new outputs are seen without being woken.
    pub fn watch(&self) -> watch::Receiver<Arc<LocalRows>> {
        self.rows.clone()
    }

    /// Registers a service from the API, or changes it. Checks of an earlier registration that this one does not name
    /// stay, unless `replace_existing_checks`.
    pub async fn register_service(
        &self,
        definition: ServiceDefinition,
        replace_existing_checks: bool,
    ) -> Result<(), LocalError> {
        self.ask(Request::RegisterService { definition: Box::new(definition), replace_existing_checks }).await
    }

    /// Registers a check from the API, for an instance or the node.
    pub async fn register_check(&self, definition: CheckDefinition) -> Result<(), LocalError> {
        self.ask(Request::RegisterCheck(Box::new(definition))).await
    }

    /// Removes a service of the API and its checks.
    pub async fn deregister_service(&self, id: &str) -> Result<(), LocalError> {
        self.ask(Request::DeregisterService(id.into())).await
    }

    /// Removes a check of the API.
    pub async fn deregister_check(&self, id: &str) -> Result<(), LocalError> {
        self.ask(Request::DeregisterCheck(id.into())).await
    }

    /// Tells a TTL check its status.
    pub async fn update_ttl(&self, id: &str, update: TtlUpdate) -> Result<(), LocalError> {
        self.ask(Request::UpdateTtl(id.into(), update)).await
    }

    /// Takes a service out on purpose, or (`None`) back in.
    pub async fn set_service_maintenance(&self, id: &str, reason: Option<Text>) -> Result<(), LocalError> {
        self.ask(Request::SetServiceMaintenance(id.into(), reason)).await
    }

    /// Takes the whole node out on purpose, or (`None`) back in.
    pub async fn set_node_maintenance(&self, reason: Option<Text>) -> Result<(), LocalError> {
        self.ask(Request::SetNodeMaintenance(reason)).await
    }

    /// Puts these services in place of all that came from files before. [`LocalError::NotTakenUp`] names those that
    /// cannot stand beside what the API registered; they keep what they had before, and all others are taken up.
    pub async fn set_file_services(&self, services: Vec<FileService>) -> Result<(), LocalError> {
        self.ask(Request::SetFileServices(services, Sources::Whole)).await
    }

    /// The same with the last known ones, as long as the files cannot be looked through.
    pub async fn set_last_file_services(&self, services: Vec<FileService>) -> Result<(), LocalError> {
        self.ask(Request::SetFileServices(services, Sources::Part)).await
    }

    /// Marks every instance draining, for good: the agent is about to leave.
    pub async fn drain(&self) -> Result<(), LocalError> {
        self.ask(Request::Drain).await
    }

    /// All that stands here.
    pub async fn list(&self) -> Result<LocalListing, LocalError> {
        let (answer, listing) = oneshot::channel();
        self.letters.send(Letter::List(answer)).await.map_err(|_| LocalError::Stopping)?;
        listing.await.map_err(|_| LocalError::Stopping)
    }

    async fn ask(&self, request: Request) -> Result<(), LocalError> {
        let (answer, outcome) = oneshot::channel();
        self.letters.send(Letter::Request(request, answer)).await.map_err(|_| LocalError::Stopping)?;
        outcome.await.map_err(|_| LocalError::Stopping)?
    }
}
