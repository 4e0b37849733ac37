//! Harness, scenarios, real-peer tests and benchmarks.

pub mod linearizability;
