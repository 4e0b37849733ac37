//! What a newcomer gets wrong, at the command line, in the configuration and around it: each answer says what is wanted
//! and ends with the code that scripts and units go by.

#![allow(clippy::unwrap_used)]

use std::{
    io::{BufRead, BufReader},
    net::{TcpListener, UdpSocket},
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

/// How long a condition may take before a test gives up.
const PATIENCE: Duration = Duration::from_secs(30);

fn muster(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_muster")).args(arguments).output().unwrap()
}

/// The exit code, and what was said to people.
fn said(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_wrong_command_line_ends_with_64_and_help_with_0() {
    for wrong in [
        &[][..],
        &["serivces"],
        &["register"],
        &["registry", "ad"],
        &["registry", "add"],
        &["services", "--jsn"],
        &["watch", "web", "--count", "many"],
        &["dev", "--http", "localhost:8500"],
    ] {
        let (code, text) = said(&muster(wrong));
        assert_eq!(code, Some(64), "{wrong:?}: {text}");
        assert!(!text.is_empty(), "{wrong:?} says nothing");
    }
    for asked in [&["--help"][..], &["--version"], &["help", "dev"], &["registry", "add", "--help"]] {
        assert_eq!(muster(asked).status.code(), Some(0), "{asked:?}");
    }
    let (_, text) = said(&muster(&["dev", "--http", "localhost:8501"]));
    assert!(text.contains("127.0.0.1:8501"), "{text}");
}

#[test]
fn a_directory_without_a_definition_is_no_valid_one() {
    let directory = tempfile::tempdir().unwrap();
    let below = directory.path().join("below");
    std::fs::create_dir(&below).unwrap();
    std::fs::write(below.join("web.toml"), "[service]\nname = \"web\"\n").unwrap();
    std::fs::write(directory.path().join(".hidden.toml"), "").unwrap();
    let (code, text) = said(&muster(&["validate", path(directory.path())]));
    assert_eq!(code, Some(64), "{text}");
    assert!(
        text.contains(path(directory.path())) && text.contains("no definition") && text.contains(".toml"),
        "{text}"
    );
    assert_eq!(muster(&["validate", path(&below)]).status.code(), Some(0));
}

#[test]
fn a_value_that_can_only_be_a_mistake_is_refused_with_what_is_wanted() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("muster.toml");
    for (text, expected) in [
        (
            "[registry]\nmembers = [\"http://127.0.0.1:8300\"]",
            "registry.members = http://127.0.0.1:8300: leave the scheme",
        ),
        ("[registry]\nmembers = [\"127.0.0.1/x:8300\"]", "write it as host:port"),
        ("[registry]\nadvertise = \"10.0.0.1\"", "registry.advertise = 10.0.0.1: write it as host:port"),
        ("[log]\nfilter = \"loud\"", "log.filter = loud: \"loud\" is no level: write off, error, warn, info"),
        ("[log]\nfilter = \"inof,muster_dns=debug\"", "\"inof\" is no level"),
        ("[log]\nfilter = \"\"", "log.filter = : write off, error"),
        ("[node]\ndata_dir = \"\"", "node.data_dir = \"\": it is empty"),
        ("[node]\ndata_dir = \"~/muster\"", "node.data_dir = \"~/muster\": no shell reads this"),
        ("[node]\ndata_dir = \"$HOME/muster\"", "write the whole path"),
        ("[agent]\nservices_dir = \"~/services.d\"", "agent.services_dir = \"~/services.d\": no shell"),
        ("[http]\nlisten = \"127.0.0.1:8600\"", "dns.listen = 127.0.0.1:8600: http.listen has this address"),
        ("[xds]\nlisten = \"127.0.0.1:8500\"", "xds.listen = 127.0.0.1:8500: http.listen has this address"),
        ("[registry]\nmetrics_listen = \"127.0.0.1:8300\"", "registry.listen has this address"),
        ("[http]\nlisten = \":8501\"", "\":8501\" is no address: give ip:port, for example \"127.0.0.1:8501\""),
        ("[http]\nlisten = \"localhost:8500\"", "for example \"127.0.0.1:8500\""),
        ("[xds]\nlisten = 8502", "8502 is no address: give ip:port, for example \"127.0.0.1:8502\""),
        ("[dns]\nlisten = \":53\"", "for example \"127.0.0.1:53\", or a list of them"),
        ("[checks]\nscripts = true", "unknown variant `true`, expected `off` or `files`"),
        ("[agent]\nreplica = [1]", "expected `scope` or `all`"),
    ] {
        std::fs::write(&file, format!("{text}\n")).unwrap();
        let (code, said) = said(&muster(&["validate", "--config", path(&file)]));
        assert_eq!(code, Some(64), "{text:?} gave {said:?}");
        assert!(said.contains(expected), "{text:?} gave {said:?}");
    }
    for good in [
        "[log]\nfilter = \"info,muster_dns=debug,muster_agent[push{node=a}]=trace\"",
        "[log]\nfilter = \"WARN\"",
        "[http]\nlisten = \"127.0.0.1:0\"\n[xds]\nlisten = \"127.0.0.1:0\"",
        "[http]\nlisten = \"127.0.0.1:8300\"",
        "[registry]\nmembers = [\"[::1]:8300\", \"registry-1.example.org:8300\"]",
        "[node]\ndata_dir = \"./data\"",
    ] {
        std::fs::write(&file, format!("{good}\n[node.meta]\na = \"b\"\n")).unwrap();
        let (code, said) = said(&muster(&["validate", "--config", path(&file)]));
        assert_eq!(code, Some(0), "{good:?} gave {said:?}");
    }
}

#[test]
fn dev_names_its_flags_and_the_directory_that_is_missing() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let any = "127.0.0.1:0";
    let free = |flag: &str| if flag == "--registry" { vec![] } else { vec!["--registry", any] };
    for flag in ["--http", "--xds", "--dns", "--registry"] {
        let mut arguments = vec!["dev"];
        arguments.extend(free(flag));
        for other in ["--http", "--xds", "--dns"].into_iter().filter(|other| *other != flag) {
            arguments.extend([other, any]);
        }
        arguments.extend([flag, &taken]);
        let (code, text) = said(&muster(&arguments));
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains(&format!("set {flag} to a free address")), "{flag}: {text}");
    }
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing");
    let (code, text) = said(&muster(&["dev", "--services", path(&missing)]));
    assert_eq!(code, Some(64), "{text}");
    assert!(text.contains("--services") && text.contains(path(&missing)) && !missing.exists(), "{text}");
    let (code, text) = said(&muster(&["dev", "--log", "loud"]));
    assert_eq!((code, text.contains("--log = loud: \"loud\" is no level")), (Some(64), true), "{text}");
    let output = Command::new(env!("CARGO_BIN_EXE_muster")).arg("dev").env("TMPDIR", &missing).output().unwrap();
    let (code, text) = said(&output);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains(path(&missing)) && text.contains("TMPDIR") && text.contains("--data"), "{text}");
}

/// An agent whose registry is a port that nobody listens on.
struct Lonely {
    child: Child,
    _directory: tempfile::TempDir,
}

impl Lonely {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let gone = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (data, services) = (directory.path().join("data"), directory.path().join("services.d"));
        std::fs::create_dir(&services).unwrap();
        std::fs::write(services.join("web.toml"), "[service]\nname = \"web\"\nport = 80\n").unwrap();
        let any = "listen = \"127.0.0.1:0\"";
        let text = format!(
            "[node]\nname = \"lonely\"\ndata_dir = {data:?}\n[agent]\nservices_dir = {services:?}\n[http]\n{any}\n\
             [dns]\n{any}\n[xds]\n{any}\n[registry]\nmembers = [\"{gone}\"]\n"
        );
        let file = directory.path().join("muster.toml");
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
        command.args(["agent", "--json", "--config", path(&file)]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        // It tells its addresses once it listens to signals.
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("http"), "{line}");
        Self { child, _directory: directory }
    }
}

impl Drop for Lonely {
    fn drop(&mut self) {
        // It may be gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn an_agent_that_never_reached_a_registry_has_nothing_to_wait_for() {
    let mut agent = Lonely::start();
    let pid = Pid::from_child(&agent.child);
    let asked = Instant::now();
    kill_process(pid, Signal::INT).unwrap();
    let ended = loop {
        if let Some(ended) = agent.child.try_wait().unwrap() {
            break ended;
        }
        assert!(asked.elapsed() < PATIENCE, "it runs on");
        std::thread::yield_now();
    };
    // agent.stop_timeout is ten seconds; what is open is closed within three.
    assert!(ended.success() && asked.elapsed() < Duration::from_secs(7), "{ended} after {:?}", asked.elapsed());
}
