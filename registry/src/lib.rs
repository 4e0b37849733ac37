//! The registry.
mod client;
mod codec;
mod convert;
mod leader;
mod leases;
mod log;
mod machine;
mod proto;
mod server;
mod service;
mod watch;
pub use convert::ConvertError;
