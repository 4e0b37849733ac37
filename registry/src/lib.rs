//! The registry.
mod codec;
mod convert;
mod leases;
mod log;
mod machine;
mod proto;
mod watch;
pub use convert::ConvertError;
