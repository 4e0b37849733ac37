//! Harness, scenarios, real-peer tests and benchmarks.
//!
//! **Owns**: what starts, kills and questions real processes ([`harness`]), scenarios as data ([`scenario`]), a
//! writer that remembers what was acknowledged ([`writer`]), the linearizability checker, and what benchmarks load a registry with ([`load`]).
//!
//! **Deliberately does not**: reach into a room. Tests here use what users use: the binary, its ports, its files.

#![allow(clippy::print_stdout, reason = "tests report what they measured and what they passed over")]

pub mod harness;
pub mod linearizability;
pub mod load;
pub mod scenario;
pub mod writer;
