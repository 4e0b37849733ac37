//! Raft's snapshot files on disk.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let folder = tempfile::tempdir().expect("a folder");
    muster_registry::fuzzing::snapshot_file(folder.path(), bytes);
});
