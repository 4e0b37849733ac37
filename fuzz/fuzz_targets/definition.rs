//! Files of service definitions (TOML).
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Err(error) = muster_agent::definition::parse("fuzz.toml".as_ref(), text) {
        assert!(!error.to_string().is_empty(), "an error without words");
    }
});
