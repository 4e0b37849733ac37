//! The servers that replicate the catalog, and the client that agents use.
//!
//! **Owns**: the replicated log and its disk ([`raft`], [`store`]), the catalog as the machine that the log drives, the
//! gRPC service of a member, leases and their verdicts, watch streams, and the [`client`]; the wire and disk formats
//! under `proto/`.
//!
//! **Deliberately does not**: know DNS, xDS or HTTP, decide what a Command does (`muster_catalog::decide`), or read
//! the environment: it takes a bound socket, a [`RegistryConfig`] and a cancellation token.
//!
//! The flow:
//!
//! ```text
//! Client::submit ─Write─▶ any member ─(forwarded once)─▶ leader: door, stamp, propose
//!        ─▶ log (quorum on disk) ─▶ every member: decide, fold ─▶ one Snapshot for each batch ─▶ ring
//!        ─▶ watch streams, each at its own cursor, barriers in-band ─▶ Client::watch ─▶ an agent's replica
//! Client::renew ─▶ any member ─(gathered)─▶ leader: leases ─▶ only a loss or return is proposed
//! ```

mod agreement;
mod autopilot;
pub mod backup;
pub mod client;
mod codec;
mod convert;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod journal;
mod leader;
mod leases;
mod limits;
mod log;
mod machine;
mod outbox;
mod proto;
pub mod raft;
mod recover;
mod registry;
mod resolve;
mod server;
mod service;
pub mod store;
mod watch;

pub use agreement::{Agreement, Disagreement};
pub use autopilot::AutopilotConfig;
pub use client::{Client, ClientConfig, Hello, WatchError, WatchEvent, WatchSender, WatchStream};
pub use codec::{SnapshotError, decode_replica, decode_snapshot, encode_replica, encode_snapshot};
pub use convert::ConvertError;
pub use leases::{
    LeaseConfig,
    brake::{Decision, MassExpiry},
};
pub use limits::MAX_COMMAND_BYTES;
pub use machine::Fault;
pub use recover::{RecoveryError, Survivor, recover};
pub use registry::{Registry, RegistryConfig, StartError, StopReason};
pub use resolve::Resolve;
