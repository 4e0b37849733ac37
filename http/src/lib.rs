//! The HTTP API: Consul's v1 dialect over the catalog, metrics and health endpoints.
//!
//! **Owns**: paths, parameters, bodies, JSON shapes, headers and status codes; blocking reads; the connections.
//!
//! **Deliberately does not**: know where data comes from. It reads Views from a `Source`, hands Commands to a
//! `Sink`, and asks the agent ([`port::LocalAgent`]), the operator's side ([`port::Operator`]) and the process
//! ([`port::Readiness`]) for the rest. It runs no check and keeps nothing but the index of the last write.
//!
//! The flow:
//!
//! ```text
//! connection ─▶ router ─▶ Ask (?index ?wait ?stale …) ─▶ barrier ─▶ subscribe, read, sleep ─▶ View ─▶ json ─▶ answer
//!                  │                                                                            headers: how current
//!                  ├─▶ body ─▶ decode ─▶ ServiceRegistration, CheckDefinition ─▶ LocalAgent   (agent/*)
//!                  └─▶ body ─▶ decode ─▶ Command ─▶ Sink ─▶ index, which later reads wait for (catalog/*)
//! ```

mod api;
mod ask;
mod budget;
mod connection;
mod decode;
mod duration;
mod error;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod host;
mod json;
mod made;
pub mod port;
mod probes;
mod reading;
mod router;
mod server;
mod v1;
mod wide;

pub use server::{Http, HttpConfig, HttpHandle, Ports};
