//! The servers that replicate the catalog.

pub mod raft;
pub mod store;
