//! Writes as members take them: read, let in, logged, decided, folded, and the catalog written and read back.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| muster_registry::fuzzing::commands(bytes));
