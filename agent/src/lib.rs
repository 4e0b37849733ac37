//! The agent and the one binary, `muster`.
//!
//! **Owns**: configuration, service definitions, check runners, LocalState, Sync, the replica, identity, the command
//! line, and [`app`], which wires every room and returns the bound addresses.
//!
//! **Deliberately does not**: know a wire format of clients (rooms do), or decide what a write does (the registry does).
//! Nothing but tests imports it.
//!
//! The flow:
//!
//! ```text
//! definitions, HTTP ──▶ local ──▶ sync ──▶ registry
//!                         ▲                   │ Changes
//!            checks ──────┘    rooms ◀── replica
//! ```

pub mod app;
mod checks;
pub mod cli;
pub mod config;
pub mod definition;
pub mod definitions;
mod host;
pub mod identity;
pub mod local;
mod log;
mod members;
mod metrics;
mod ports;
mod reload;
pub mod replica;
mod resolver;
mod signals;
pub mod supervisor;
mod sync;

/// The cryptography of all TLS here: every connection prefers X25519MLKEM768, which who records it today cannot open
/// with a quantum computer later.
pub(crate) fn crypto() -> rustls::crypto::CryptoProvider {
    rustls::crypto::aws_lc_rs::default_provider()
}

/// Chooses the TLS implementation of the process; calling it again changes nothing.
pub(crate) fn install_crypto() {
    // An error only says that one is installed already.
    let _ = crypto().install_default();
}
