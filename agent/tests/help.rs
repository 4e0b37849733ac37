//! The command line teaches: every command shows examples, and a mistake says what is right.
//! (That this test exists also makes `cargo test --workspace` build the binary that the scenarios run.)

#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

fn muster(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_muster")).args(arguments).output().unwrap()
}

#[test]
fn every_command_explains_itself_with_an_example() {
    let help = String::from_utf8(muster(&["--help"]).stdout).unwrap();
    let commands = [
        "dev",
        "registry",
        "agent",
        "register",
        "deregister",
        "services",
        "nodes",
        "members",
        "brakes",
        "watch",
        "validate",
    ];
    for command in commands {
        assert!(help.contains(&format!("  {command} ")), "{command} is not in the help:\n{help}");
        let output = muster(&[command, "--help"]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && text.contains(&format!("muster {command}")), "{text}");
        assert!(text.contains("Example"), "{command} --help has no example:\n{text}");
    }
}

#[test]
fn every_command_about_the_registry_explains_itself() {
    let commands = [
        "members",
        "add",
        "promote",
        "remove",
        "replace",
        "transfer-leader",
        "backup",
        "inspect",
        "restore",
        "recover",
    ];
    let help = String::from_utf8(muster(&["registry", "--help"]).stdout).unwrap();
    for command in commands {
        assert!(help.contains(&format!("  {command} ")), "{command} is not in the help:\n{help}");
        let output = muster(&["registry", command, "--help"]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && text.contains("Example"), "{command} --help has no example:\n{text}");
    }
}

#[test]
fn a_missing_configuration_says_which_and_ends_with_64() {
    let output = muster(&["agent", "--config", "/nonexistent/muster.toml"]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(64), "{text}");
    assert!(text.contains("/nonexistent/muster.toml") && text.contains("--config"), "{text}");
}

#[test]
fn the_registry_is_not_served_off_loopback() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("muster.toml");
    let data = directory.path().join("data");
    std::fs::write(&config, format!("[node]\ndata_dir = {data:?}\n[registry]\nlisten = \"0.0.0.0:0\"\n")).unwrap();
    let output = muster(&["registry", "--config", config.to_str().unwrap()]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{text}");
    assert!(text.contains("loopback") && text.contains("127.0.0.1"), "{text}");
}
