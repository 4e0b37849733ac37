//! The registry.
mod convert;
mod proto;
pub use convert::ConvertError;
