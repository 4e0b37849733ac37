//! JSON bodies of the v1 API.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| muster_http::fuzzing::registration(bytes));
