//! Recovery after a quorum was lost for good, as `muster registry recover` does it.

use std::path::PathBuf;

use crate::{
    machine::{CatalogMachine, Fault},
    raft::{self, Peer, RecoverError, Recovered},
    store::EngineKind,
};

/// The member that survived.
#[derive(Debug, Clone)]
pub struct Survivor {
    /// Its data folder.
    pub data_dir: PathBuf,
    /// The engine of its log.
    pub log_engine: EngineKind,
    /// Its name.
    pub name: String,
    /// `host:port` that others will reach it at.
    pub address: String,
}

/// Why a member cannot be recovered from.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// The folder.
    #[error(transparent)]
    Folder(#[from] RecoverError),
    /// An entry of its log.
    #[error("{0}")]
    Fault(Fault),
}

/// Makes the survivor the only member of its registry, in the registry's next incarnation. With `dry_run` it only says
/// what would be. The member must not run.
pub fn recover(survivor: Survivor, dry_run: bool) -> Result<Recovered, RecoveryError> {
    let Survivor { data_dir, log_engine, name, address } = survivor;
    let (machine, catalog) = CatalogMachine::new();
    let me = Peer { name, address, read_only: false };
    let raise = CatalogMachine::raise_incarnation;
    let recovered = raft::recover(&data_dir, log_engine, me, machine, raise, dry_run);
    // A machine that met an entry it does not know gives no snapshot either; what it met says more.
    let fault = catalog.fault.borrow().clone();
    match fault {
        Some(fault) => Err(RecoveryError::Fault((*fault).clone())),
        None => Ok(recovered?),
    }
}
