//! The agent's rooms that a host needs to check its services: definitions, checks and local state.

mod checks;
pub mod definition;
pub mod definitions;
pub mod local;
