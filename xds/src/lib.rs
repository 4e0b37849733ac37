//! Serves the catalog as xDS: to Envoy over both variants of aggregated discovery, and to gRPC without a proxy.
//!
//! **Owns**: what a service looks like to a data plane (`translate`); what each stream was sent, accepted and rejected
//! (`subscription`); the order in which a change is told, so that nothing is routed to what is not there yet.
//!
//! **Deliberately does not**: check health (it passes on what the catalog says), read the catalog per stream, keep
//! anything per node id but which were registered proxies, or send a time to live.
//!
//! The flow:
//!
//! ```text
//! Source ──View──▶ publisher ──translate──▶ Arc<Resources> (each changed service encoded once, for all streams)
//!                                                │ watch
//! client ──requests──▶ stream task ──▶ Subscriptions ──▶ pushes: clusters, endpoints, listeners, routes, removals
//!                           │                                          one outstanding per kind, the next absorbs
//!                           └──ACK, NACK──▶ Roster (`XdsHandle::proxies`)
//! ```
//!
//! Nothing is answered before the catalog was loaded once; afterwards the last known is served however old it is.

mod budget;
mod config;
mod connection;
mod kind;
mod publisher;
mod request;
mod resource;
mod roster;
mod server;
mod stream;
mod subscription;
mod translate;
mod wire;

pub use config::{ConfigError, Unregistered, XdsConfig};
pub use kind::ResourceKind;
pub use roster::{KindStatus, ProxyStatus, Rejected, Roster};
pub use server::{ServeError, StartError, Xds, XdsHandle};
pub use subscription::Variant;
