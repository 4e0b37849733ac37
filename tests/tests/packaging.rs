//! The packaged units, users and directories as systemd reads them.

#![allow(clippy::unwrap_used, reason = "a helper of tests may fail as they do")]

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::{Command, Output},
};

const UNITS: [&str; 2] = ["muster-agent.service", "muster-registry.service"];
/// How exposed a unit may be by systemd's own measure (0.0 safe to 10.0 unsafe), times ten as the option takes it.
const EXPOSURE_MOST: &str = "20";

fn packaging() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("packaging")
}

/// Runs a tool of systemd. Where it is not installed the test is passed over, except in CI, which installs it.
fn run(program: &str, arguments: &[&str]) -> Option<Output> {
    match Command::new(program).args(arguments).env("SYSTEMD_COLORS", "0").output() {
        Ok(output) => Some(output),
        Err(error) if error.kind() == ErrorKind::NotFound && std::env::var_os("CI").is_none() => {
            eprintln!("passed over: {program} is not installed");
            None
        }
        Err(error) => panic!("{program}: {error}; apt-get install systemd"),
    }
}

fn assert_accepted(what: &str, output: &Output) {
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{what}: {said}");
    // Unknown keys and values are only warned of.
    let about_ours = said.lines().filter(|line| line.contains("muster-") && line.contains(".service:"));
    assert_eq!(about_ours.collect::<Vec<_>>(), Vec::<&str>::new(), "{what}");
}

/// The units with a binary that exists: `systemd-analyze verify` wants one, and none is installed here.
fn copies() -> (tempfile::TempDir, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let paths = UNITS.map(|unit| {
        let text = fs::read_to_string(packaging().join("systemd").join(unit)).unwrap();
        assert!(text.contains("ExecStart=/usr/bin/muster "), "{unit} starts something else");
        let path = folder.path().join(unit);
        let text = text.replace("/usr/bin/muster", "/bin/true").replace("Documentation=man:muster(1)\n", "");
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    });
    (folder, paths.to_vec())
}

#[test]
fn systemd_accepts_the_units() {
    let (_folder, paths) = copies();
    for path in paths {
        let Some(output) = run("systemd-analyze", &["verify", "--recursive-errors=no", "--man=no", &path]) else {
            return;
        };
        assert_accepted(&path, &output);
    }
}

#[test]
fn the_units_are_hardened() {
    let (_folder, paths) = copies();
    for path in paths {
        let threshold = format!("--threshold={EXPOSURE_MOST}");
        let Some(output) = run("systemd-analyze", &["security", "--offline=true", &threshold, &path]) else { return };
        let report = String::from_utf8_lossy(&output.stdout);
        let last = report.lines().rfind(|line| line.contains("exposure level")).unwrap_or_default();
        println!("{path}: {last}");
        assert!(output.status.success(), "{path} is too exposed:\n{report}");
    }
}

#[test]
fn a_script_under_the_agents_unit_can_read_what_checks_read() {
    let text = fs::read_to_string(packaging().join("systemd/muster-agent.service")).unwrap();
    assert!(!text.contains("ProcSubset=pid"), "/proc/loadavg and /proc/meminfo are hidden from scripts");
}

#[test]
fn the_packaged_configuration_is_one() {
    let text = fs::read_to_string(packaging().join("etc/muster.toml")).unwrap();
    // Also with every key that it only shows.
    let uncommented = text.lines().map(|line| match line.strip_prefix("# ") {
        Some(key) if key.starts_with('[') || key.contains(" = ") => key,
        _ => line,
    });
    let all: Vec<&str> = uncommented.collect();
    for text in [text.clone(), all.join("\n")] {
        let config: muster_agent::config::Config = toml::from_str(&text).unwrap();
        let named = muster_agent::config::NodeConfig { name: Some("web-17".into()), ..config.node.clone() };
        muster_agent::config::Config { node: named, ..config }.validate().unwrap();
    }
}

#[test]
fn the_user_and_the_directories_can_be_made() {
    let root = tempfile::tempdir().unwrap();
    let root_option = format!("--root={}", root.path().display());
    let users = packaging().join("sysusers.d/muster.conf");
    let Some(output) = run("systemd-sysusers", &["--dry-run", &root_option, users.to_str().unwrap()]) else { return };
    assert_accepted("sysusers", &output);
    // Every unit runs as that user, and finds its files where the packages put them.
    assert!(fs::read_to_string(&users).unwrap().lines().any(|line| line.starts_with("u muster ")));
    let folders = fs::read_to_string(packaging().join("tmpfiles.d/muster.conf")).unwrap();
    for line in folders.lines().filter(|line| !line.starts_with('#')) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        assert!(
            matches!(fields[..], ["d", path, mode, _, _, "-"] if path.starts_with('/') && mode.len() == 4),
            "{line}"
        );
    }
    for unit in UNITS {
        let text = fs::read_to_string(packaging().join("systemd").join(unit)).unwrap();
        assert!(text.contains("\nUser=muster\n") && text.contains("\nNoNewPrivileges=yes\n"), "{unit}");
        assert!(text.contains("\nExecReload=/bin/kill -HUP $MAINPID\n"), "{unit}: systemctl reload does nothing");
    }
}
