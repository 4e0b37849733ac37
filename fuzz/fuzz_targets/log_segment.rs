//! The log's segments on disk.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let folder = tempfile::tempdir().expect("a folder");
    muster_registry::fuzzing::log_segment(folder.path(), bytes);
});
