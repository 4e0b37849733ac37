//! gRPC messages between members, agents and servers.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| muster_registry::fuzzing::message(bytes));
