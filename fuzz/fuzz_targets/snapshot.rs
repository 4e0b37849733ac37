//! Snapshots of the catalog: what members exchange, and an agent's replica file.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| muster_registry::fuzzing::snapshot(bytes));
