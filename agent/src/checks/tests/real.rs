//! The real servers: what they say when all is well, and when it is not.

use std::{
    fs,
    os::unix::fs::chown,
    path::{Path, PathBuf},
};

use tokio::process::{Child, ChildStderr, ChildStdout, Command};

use super::*;

/// Debian's `nobody`: a database server refuses to run as root, which CI is.
const NOBODY: u32 = 65534;

/// A server that runs until this is dropped. It logs into a pipe, which has to stay open.
struct Peer {
    _process: Child,
    _log: Log,
}

enum Log {
    Stdout { _lines: tokio::io::Lines<BufReader<ChildStdout>> },
    Stderr { _lines: tokio::io::Lines<BufReader<ChildStderr>> },
}

/// Starts a server and waits until it says this; `None` where it is not installed, which CI minds.
async fn start(command: &mut Command, says: &str) -> Option<Peer> {
    let program = command.as_std().get_program().to_owned();
    let redis = program == "redis-server";
    command.stdin(Stdio::null()).kill_on_drop(true);
    if redis {
        command.stdout(Stdio::piped())
    } else {
        command.stderr(Stdio::piped())
    };
    let Ok(mut process) = command.spawn() else {
        assert!(std::env::var_os("CI").is_none(), "{program:?} is missing: run .ci/peers");
        eprintln!("passed over: {program:?} is not installed; .ci/peers installs it");
        return None;
    };
    let mut heard = String::new();
    let mut ready = |line: Option<String>| {
        let line = line.unwrap_or_else(|| panic!("{program:?} ended:\n{heard}"));
        heard += &(line + "\n");
        heard.contains(says)
    };
    let log = if redis {
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        while !ready(lines.next_line().await.unwrap()) {}
        Log::Stdout { _lines: lines }
    } else {
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        while !ready(lines.next_line().await.unwrap()) {}
        Log::Stderr { _lines: lines }
    };
    Some(Peer { _process: process, _log: log })
}

/// A port that was free a moment ago.
fn free_port() -> String {
    nobody().rsplit_once(':').unwrap().1.to_owned()
}

#[tokio::test]
async fn a_real_redis() {
    let port = free_port();
    let mut command = Command::new("redis-server");
    command.args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
    let Some(_redis) = start(command.args(["--maxclients", "1"]), "Ready to accept connections").await else { return };
    let check = CheckText { redis: Some(format!("127.0.0.1:{port}")), ..text() };
    expect(&run_once(&check).await, Status::Passing, "+PONG");
    // Its only place is taken: it answers, and does not do its work.
    let mut taken = tokio::net::TcpStream::connect(format!("127.0.0.1:{port}")).await.unwrap();
    taken.write_all(b"PING\r\n").await.unwrap();
    // The place of the probe above is free as soon as the server has read its end.
    let mut answer = [0; 7];
    taken.read_exact(&mut answer).await.unwrap();
    if &answer == b"+PONG\r\n" {
        expect(&run_once(&check).await, Status::Critical, "max number of clients");
    }
}

#[tokio::test]
async fn a_real_mariadb() {
    let (port, directory) = (free_port(), tempfile::tempdir().unwrap());
    let path = |name: &str| directory.path().join(name).display().to_string();
    fs::create_dir(path("data")).unwrap();
    let mut command = Command::new(find_program("mariadbd", &["/usr/sbin"]));
    // Without tables and users: nobody gets beyond the greeting.
    command.args(["--no-defaults", "--skip-grant-tables", "--skip-innodb", "--default-storage-engine=Aria"]);
    command.args(["--bind-address=127.0.0.1", "--max-connections=10", "--extra-max-connections=0"]);
    command.arg(format!("--datadir={}", path("data"))).arg(format!("--socket={}", path("socket")));
    command.arg(format!("--pid-file={}", path("pid"))).arg(format!("--port={port}"));
    if rustix::process::geteuid().is_root() {
        command.arg("--user=root");
    }
    let Some(_mariadb) = start(&mut command, "ready for connections").await else { return };
    let check = CheckText { mysql: Some(format!("127.0.0.1:{port}")), ..text() };
    let outcome = run_once(&check).await;
    expect(&outcome, Status::Passing, "greets as 1");
    assert!(outcome.output.contains("MariaDB"), "{outcome:?}");
    // All places are taken; the server keeps one more for its administrator.
    let mut taken = Vec::new();
    for _ in 0..11 {
        let mut stream = tokio::net::TcpStream::connect(format!("127.0.0.1:{port}")).await.unwrap();
        stream.read_exact(&mut [0; 5]).await.unwrap();
        taken.push(stream);
    }
    expect(&run_once(&check).await, Status::Critical, "Too many connections");
}

#[tokio::test]
async fn a_real_postgres() {
    let (port, directory, issuer) = (free_port(), tempfile::tempdir().unwrap(), Issuer::new());
    let root = rustix::process::geteuid().is_root();
    if root {
        chown(directory.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let path = |name: &str| directory.path().join(name).display().to_string();
    let (initdb, postgres) = (find_postgres("initdb"), find_postgres("postgres"));
    let unprivileged = |program: &Path| {
        if !root || !program.exists() {
            return Command::new(program);
        }
        let mut command = Command::new("setpriv");
        command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"]).arg(program);
        command
    };
    if initdb.exists() {
        let mut command = unprivileged(&initdb);
        command.args(["-D", &path("data"), "-U", "muster", "-A", "trust", "--no-sync", "--locale=C"]);
        let made = command.output().await.unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let (certificate, key) = issuer.issue(&["db.internal"]);
        for (name, pem) in [("server.crt", certificate), ("server.key", key)] {
            let file = directory.path().join("data").join(name);
            fs::write(&file, pem).unwrap();
            fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
            if root {
                chown(&file, Some(NOBODY), Some(NOBODY)).unwrap();
            }
        }
    }
    let mut command = unprivileged(&postgres);
    command.args(["-D", &path("data"), "-h", "127.0.0.1", "-p", &port, "-k", &directory.path().display().to_string()]);
    command.args(["-c", "fsync=off", "-c", "ssl=on", "-c", "max_connections=4", "-c", "autovacuum=off"]);
    command.args(["-c", "superuser_reserved_connections=0", "-c", "max_wal_senders=0"]);
    let Some(_postgres) = start(&mut command, "ready to accept connections").await else { return };
    let target = Some(format!("127.0.0.1:{port}"));
    let check = CheckText { postgres: target.clone(), ..text() };
    expect(&run_once(&check).await, Status::Passing, "accepts sessions");
    let secret = CheckText { tls: Some(true), ca_file: issuer.ca_file(), ..check.clone() };
    let named = CheckText { tls_server_name: Some("db.internal".into()), ..secret.clone() };
    expect(&run_once(&named).await, Status::Passing, "accepts sessions");
    expect(&run_once(&secret).await, Status::Critical, "not valid for name");
}

/// Where the program is: on the path, or in one of these directories.
fn find_program(name: &str, directories: &[&str]) -> PathBuf {
    let found = directories.iter().map(|directory| Path::new(directory).join(name)).find(|path| path.exists());
    found.unwrap_or_else(|| name.into())
}

/// Debian keeps each version's programs apart and off the path: the newest of them.
fn find_postgres(name: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let programs = versions.map(|version| version.path().join("bin").join(name)).filter(|path| path.exists());
    programs.max().unwrap_or_else(|| name.into())
}

/// A unit that the host's own systemd has, where there is one: containers have none, and for those the tests have a
/// manager of their own on a real bus.
#[tokio::test]
async fn a_real_systemd() {
    if !Path::new("/run/systemd/system").is_dir() {
        eprintln!("passed over: systemd does not run this host");
        return;
    }
    let unit = |name: &str| CheckText { systemd: Some(name.into()), ..text() };
    expect(&run_once(&unit("sysinit.target")).await, Status::Passing, "active (active)");
    expect(&run_once(&unit("muster-nowhere.service")).await, Status::Critical, "its file is not-found");
}
