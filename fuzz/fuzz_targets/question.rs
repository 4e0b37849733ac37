//! DNS questions as they arrive, answered from a catalog.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| muster_dns::fuzzing::question(bytes));
