use crate::checks::Scripts;
use std::time::Duration;

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::definition::{CheckText, ServiceText};

mod kept;

/// Longer than any condition takes, shorter than a person waits.
const PATIENCE: Duration = Duration::from_secs(20);

struct Agent {
    handle: LocalHandle,
    shutdown: CancellationToken,
    owner: JoinHandle<Result<(), LocalFailure>>,
}

impl Agent {
    fn start(data_dir: Option<&TempDir>) -> Self {
        let node = Name::host("node", "n1").unwrap();
        let data_dir = data_dir.map(|directory| directory.path().to_owned());
        let (state, handle) = LocalState::open(LocalConfig { node, data_dir, scripts: Scripts::Files }).unwrap();
        let shutdown = CancellationToken::new();
        Self { handle, owner: tokio::spawn(state.run(shutdown.clone())), shutdown }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.owner.await.unwrap().unwrap();
    }

    async fn wait_for(&self, what: &str, condition: impl Fn(&LocalRows) -> bool) -> Arc<LocalRows> {
        let mut rows = self.handle.watch();
        match tokio::time::timeout(PATIENCE, rows.wait_for(|rows| condition(rows))).await {
            Ok(found) => found.unwrap().clone(),
            Err(_) => panic!("waited for {what}; have {:?}", self.handle.rows()),
        }
    }

    async fn wait_status(&self, id: &str, status: Status) -> Arc<Check> {
        let found = |rows: &LocalRows| rows.checks.iter().any(|check| &*check.id == id && check.status == status);
        let rows = self.wait_for(&format!("{id} {status}"), found).await;
        rows.checks.iter().find(|check| &*check.id == id).unwrap().clone()
    }
}

fn service(id: &str, checks: Vec<CheckText>) -> ServiceDefinition {
    let text = ServiceText { name: "web".into(), id: Some(id.into()), port: Some(80), checks, ..Default::default() };
    text.validate("service").unwrap()
}

fn probe(text: CheckText) -> CheckText {
    CheckText { interval: Some("100ms".into()), timeout: Some("50ms".into()), fall: Some(2), ..text }
}

fn http(url: String) -> CheckText {
    let timeout = Some("5s".into());
    CheckText { timeout, ..probe(CheckText { http: Some(url), ..Default::default() }) }
}

fn ttl(term: &str) -> CheckText {
    CheckText { ttl: Some(term.into()), ..Default::default() }
}

fn passing(output: &str) -> TtlUpdate {
    TtlUpdate { status: Status::Passing, output: output.into() }
}

/// Answers every connection with the same bytes.
async fn serve(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    address.to_string()
}

#[tokio::test]
async fn rows_say_how_much_was_read() {
    let agent = Agent::start(None);
    agent.handle.register_service(service("api", vec![]), false).await.unwrap();
    assert_eq!(agent.handle.rows().sources, Sources::Reading);
    agent.handle.set_last_file_services(vec![]).await.unwrap();
    assert_eq!(agent.handle.rows().sources, Sources::Part);
    let before = agent.handle.rows().generation;
    agent.handle.set_file_services(vec![]).await.unwrap();
    let rows = agent.handle.rows();
    assert_eq!(rows.sources, Sources::Whole);
    assert!(rows.generation > before, "the push waits for it");
    agent.stop().await;
}

#[tokio::test]
async fn http_answers_become_statuses() {
    let agent = Agent::start(None);
    let cases = [
        ("ok", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine", Status::Passing, "200 OK Output: fine"),
        ("busy", "HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n", Status::Warning, "429 Too Many"),
        ("bad", "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n", Status::Critical, "500 Internal"),
        ("moved", "HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n", Status::Critical, "302 Found"),
        ("noise", "no HTTP at all\r\n\r\n", Status::Critical, "HTTP GET"),
    ];
    for (id, answer, status, output) in cases {
        let url = format!("http://{}/healthz", serve(answer).await);
        agent.handle.register_service(service(id, vec![http(url)]), false).await.unwrap();
        let check = format!("service:{id}");
        if status != Status::Critical {
            agent.wait_status(&check, status).await;
        }
        // Outputs do not wake the watch, so ask until it ran.
        let row = eventually(&agent, &check, |row| &*row.output != NOT_RUN_YET).await;
        assert_eq!(row.status, status, "{row:?}");
        assert!(row.output.contains(output), "{row:?}");
        assert_eq!(&*row.kind.kind, "http");
    }
    agent.stop().await;
}

#[tokio::test]
async fn an_endless_answer_is_cut() {
    let agent = Agent::start(None);
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n{}", "ü".repeat(100_000));
    let url = format!("http://{}/", serve(Box::leak(answer.into_boxed_str())).await);
    agent.handle.register_service(service("big", vec![http(url)]), false).await.unwrap();
    let row = agent.wait_status("service:big", Status::Passing).await;
    assert!((4000..=4096).contains(&row.output.len()), "{} bytes", row.output.len());
    agent.stop().await;
}

async fn eventually(agent: &Agent, id: &str, condition: impl Fn(&Check) -> bool) -> Arc<Check> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let listing = agent.handle.list().await.unwrap();
        let row = listing.checks.iter().find(|check| &*check.check.id == id).unwrap().check.clone();
        if condition(&row) {
            return row;
        }
        assert!(tokio::time::Instant::now() < deadline, "{row:?}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_closed_port_falls_and_rises_again() {
    let agent = Agent::start(None);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let check = probe(CheckText { tcp: Some(address.to_string()), ..Default::default() });
    agent.handle.register_service(service("web", vec![check]), false).await.unwrap();
    let first = agent.handle.rows();
    assert_eq!((first.checks[0].status, &*first.checks[0].output), (Status::Critical, NOT_RUN_YET));
    let row = agent.wait_status("service:web", Status::Passing).await;
    assert_eq!(&*row.output, format!("TCP connect {address}: Success"));
    drop(listener);
    let row = agent.wait_status("service:web", Status::Critical).await;
    assert!(row.output.contains("refused"), "{row:?}");
    let _listener = TcpListener::bind(address).await.unwrap();
    agent.wait_status("service:web", Status::Passing).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_hanging_server_needs_fall_timeouts() {
    let agent = Agent::start(None);
    // Accepts and says nothing.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let (count, mut connections) = tokio::sync::watch::channel(0u32);
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            open.push(stream);
            count.send_modify(|count| *count += 1);
        }
    });
    let check = CheckText { timeout: Some("50ms".into()), fall: Some(5), status: Some("passing".into()), ..http(url) };
    agent.handle.register_service(service("web", vec![check]), false).await.unwrap();
    connections.wait_for(|count| *count >= 2).await.unwrap();
    // The second probe has only begun, so hardly more than one timeout has counted.
    assert_eq!(agent.handle.rows().checks[0].status, Status::Passing);
    let row = agent.wait_status("service:web", Status::Critical).await;
    assert!(*connections.borrow() >= 5, "critical after {} probes", *connections.borrow());
    assert!(row.output.contains("no answer within 50ms"), "{row:?}");
    agent.stop().await;
}

#[tokio::test]
async fn a_ttl_expires_and_is_renewed() {
    let agent = Agent::start(None);
    agent.handle.register_service(service("web", vec![ttl("150ms")]), false).await.unwrap();
    agent.handle.update_ttl("service:web", passing("all well")).await.unwrap();
    assert_eq!(&*agent.wait_status("service:web", Status::Passing).await.output, "all well");
    let row = agent.wait_status("service:web", Status::Critical).await;
    assert!(row.output.starts_with("TTL expired") && row.output.contains("all well"), "{row:?}");
    agent.handle.update_ttl("service:web", passing("back")).await.unwrap();
    agent.wait_status("service:web", Status::Passing).await;
    agent.stop().await;
}

#[tokio::test]
async fn an_output_alone_makes_no_generation() {
    let agent = Agent::start(None);
    agent.handle.register_service(service("web", vec![ttl("1h")]), false).await.unwrap();
    agent.handle.update_ttl("service:web", passing("one")).await.unwrap();
    let mut watch = agent.handle.watch();
    let before = watch.borrow_and_update().clone();
    agent.handle.update_ttl("service:web", passing("two")).await.unwrap();
    agent.handle.register_service(service("web", vec![ttl("1h")]), false).await.unwrap();
    assert!(!watch.has_changed().unwrap(), "nobody is woken");
    let after = agent.handle.rows();
    assert_eq!((&*after.checks[0].output, after.generation), ("two", before.generation));
    assert!(Arc::ptr_eq(&before.instances[0], &after.instances[0]), "unchanged rows keep their Arc");
    agent.stop().await;
}

#[tokio::test]
async fn registrations_results_and_maintenance_survive_a_restart() {
    let data = TempDir::new().unwrap();
    let agent = Agent::start(Some(&data));
    agent.handle.register_service(service("web/1", vec![ttl("1h")]), false).await.unwrap();
    agent.handle.register_service(service("gone", vec![]), false).await.unwrap();
    agent.handle.deregister_service("gone").await.unwrap();
    let alone = CheckText { name: Some("disk".into()), ..ttl("1h") };
    let alone = alone.validate("check", "disk", "disk", None).unwrap();
    agent.handle.register_check(alone).await.unwrap();
    agent.handle.update_ttl("service:web/1", passing("well")).await.unwrap();
    agent.handle.set_service_maintenance("web/1", Some("moving".into())).await.unwrap();
    agent.handle.set_node_maintenance(Some("kernel".into())).await.unwrap();
    agent.stop().await;

    let agent = Agent::start(Some(&data));
    let rows = agent.handle.rows();
    assert_eq!(rows.instances.iter().map(|row| &*row.id).collect::<Vec<_>>(), ["web/1"]);
    assert_eq!(rows.instances[0].maintenance.as_deref(), Some("moving"));
    let checks: Vec<_> = rows.checks.iter().map(|row| (&*row.id, row.status)).collect();
    let expected =
        [(NODE_MAINTENANCE_CHECK, Status::Critical), ("disk", Status::Critical), ("service:web/1", Status::Passing)];
    assert_eq!(checks, expected);
    assert!(rows.checks[2].output.starts_with("well (0 s old"), "{:?}", rows.checks[2]);
    agent.handle.set_node_maintenance(None).await.unwrap();
    assert_eq!(agent.handle.rows().checks.len(), 2);
    agent.stop().await;
}

#[tokio::test]
async fn a_corrupt_file_is_set_aside() {
    let data = TempDir::new().unwrap();
    let agent = Agent::start(Some(&data));
    agent.handle.register_service(service("web", vec![]), false).await.unwrap();
    agent.stop().await;
    let services = data.path().join("services");
    std::fs::write(services.join("bad.json"), "{\"name\": ").unwrap();
    std::fs::write(services.join("wrong.json"), "{\"name\": \"no_name\"}").unwrap();
    std::fs::write(data.path().join("results.json"), [0xff, 0]).unwrap();
    let agent = Agent::start(Some(&data));
    assert_eq!(agent.handle.rows().instances.len(), 1);
    for aside in ["bad.json.corrupt", "wrong.json.corrupt"] {
        assert!(services.join(aside).exists(), "{aside}");
    }
    assert!(data.path().join("results.json.corrupt").exists());
    let damaged = agent.handle.damaged();
    assert!(damaged.len() == 2 && damaged[0].contains("bad.json.corrupt"), "an operator is told: {damaged:?}");
    agent.stop().await;
}

#[tokio::test]
async fn an_agent_does_not_start_without_a_file_that_may_be_whole_nor_without_knowing_what_is_in_maintenance() {
    let data = TempDir::new().unwrap();
    let open = || {
        let (node, data_dir) = (Name::host("node", "n1").unwrap(), Some(data.path().to_owned()));
        LocalState::open(LocalConfig { node, data_dir, scripts: Scripts::Files }).map(drop)
    };
    open().unwrap();
    for file in ["services/web.json", "checks/disk.json", "maintenance.json", "results.json", "files.json"] {
        // It is there and cannot be read: by root, who runs tests too, anything else can be.
        let path = data.path().join(file);
        std::fs::create_dir(&path).unwrap();
        let refused = open().unwrap_err().to_string();
        assert!(refused.contains(file) && path.exists(), "{refused}");
        std::fs::remove_dir(&path).unwrap();
    }
    std::fs::write(data.path().join("maintenance.json"), "{\"node\": nul").unwrap();
    let refused = open().unwrap_err().to_string();
    assert!(refused.contains("maintenance.json") && refused.contains("put the file back"), "{refused}");
}

#[tokio::test]
async fn a_result_is_believed_over_a_restart_and_not_after_a_boot_nor_once_the_agent_had_left() {
    let data = TempDir::new().unwrap();
    let (closed, saved) = ("127.0.0.1:9".to_owned(), data.path().join("results.json"));
    let slow = CheckText { tcp: Some(closed), interval: Some("1h".into()), ..Default::default() };
    let two =
        || vec![CheckText { id: Some("up".into()), ..slow.clone() }, CheckText { id: Some("ttl".into()), ..ttl("1h") }];
    for (leaves, boots, expected) in [
        (false, false, [Status::Passing, Status::Passing]),
        (true, false, [Status::Passing, Status::Critical]),
        (false, true, [Status::Critical, Status::Critical]),
    ] {
        let agent = Agent::start(Some(&data));
        agent.handle.register_service(service("web", two()), true).await.unwrap();
        agent.handle.update_ttl("ttl", passing("well")).await.unwrap();
        if leaves {
            agent.handle.drain().await.unwrap();
        }
        agent.stop().await;
        let mut results: serde_json::Value = serde_json::from_slice(&std::fs::read(&saved).unwrap()).unwrap();
        let mut up = results["ttl"].clone();
        assert!(up["boot"].is_string() && up["status"] == "passing", "{up}");
        if boots {
            up["boot"] = "another".into();
            results["ttl"] = up.clone();
        }
        results["up"] = up;
        std::fs::write(&saved, results.to_string()).unwrap();
        let agent = Agent::start(Some(&data));
        let rows = agent.handle.rows();
        let statuses = ["ttl", "up"].map(|id| rows.checks.iter().find(|check| &*check.id == id).unwrap().status);
        assert_eq!(statuses, expected, "leaves {leaves}, boots {boots}");
        agent.stop().await;
    }
}

#[tokio::test]
async fn a_result_from_long_before_the_restart_is_turned_by_the_first_probe() {
    let data = TempDir::new().unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (interval, timeout) = (Some("60s".into()), Some("1s".into()));
    let slow = CheckText { tcp: Some(closed.to_string()), interval, timeout, fall: Some(3), ..Default::default() };
    for (age, expected) in [(200u128, Status::Critical), (5, Status::Passing)] {
        let agent = Agent::start(Some(&data));
        agent.handle.register_service(service("web", vec![slow.clone()]), true).await.unwrap();
        agent.stop().await;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let at = now.as_millis() - age * 1_000;
        let saved = format!(r#"{{"service:web": {{"status": "passing", "output": "well", "at_ms": {at}}}}}"#);
        std::fs::write(data.path().join("results.json"), saved).unwrap();
        let agent = Agent::start(Some(&data));
        assert_eq!(agent.handle.rows().checks[0].status, Status::Passing, "it is believed until the first probe");
        let row = eventually(&agent, "service:web", |check| !check.output.contains("restart")).await;
        assert_eq!(row.status, expected, "{age} s: {row:?}");
        agent.stop().await;
    }
}

#[tokio::test]
async fn files_win_over_the_api() {
    let data = TempDir::new().unwrap();
    let agent = Agent::start(Some(&data));
    agent.handle.register_service(service("web", vec![ttl("1h")]), false).await.unwrap();
    let definition = Arc::new(service("web", vec![]));
    let path: Arc<Path> = Arc::from(Path::new("/etc/muster/services.d/web.toml"));
    agent.handle.set_file_services(vec![FileService { definition, path }]).await.unwrap();
    assert!(agent.handle.rows().checks.is_empty(), "the API's check went with its registration");

    let refused = agent.handle.register_service(service("web", vec![]), false).await.unwrap_err();
    assert!(refused.to_string().contains("/etc/muster/services.d/web.toml, which wins over the API"), "{refused}");
    assert!(matches!(agent.handle.deregister_service("web").await, Err(LocalError::OwnedByFile { .. })));
    let unknown = agent.handle.deregister_service("zzz").await.unwrap_err();
    let text = "Unknown service ID \"zzz\". Ensure that the service ID is passed, not the service name.";
    assert_eq!(unknown.to_string(), text);

    agent.handle.set_file_services(Vec::new()).await.unwrap();
    assert!(agent.handle.rows().instances.is_empty());
    agent.stop().await;
    let agent = Agent::start(Some(&data));
    assert!(agent.handle.rows().instances.is_empty(), "the replaced registration does not return");
    agent.stop().await;
}

#[tokio::test]
async fn a_check_of_another_service_is_not_taken_over() {
    let directory = TempDir::new().unwrap();
    let agent = Agent::start(Some(&directory));
    let named = |id: &str| CheckText { id: Some(id.into()), ..ttl("1h") };
    agent.handle.register_service(service("api", vec![named("c1")]), false).await.unwrap();
    let node_check = named("c2").validate("check", "", "", None).unwrap();
    agent.handle.register_check(node_check).await.unwrap();
    let path: Arc<Path> = Arc::from(Path::new("/d/f.toml"));
    let file = |id: &str, check: &str| FileService {
        definition: Arc::new(service(id, vec![named(check)])),
        path: path.clone(),
    };
    let files = vec![file("f", "c1"), file("g", "c2"), file("h", "c3")];
    let LocalError::NotTakenUp(reasons) = agent.handle.set_file_services(files.clone()).await.unwrap_err() else {
        panic!("another refusal")
    };
    assert_eq!(reasons.len(), 2);
    for (reason, parts) in reasons.iter().zip([["/d/f.toml", "\"c1\"", "\"api\""], ["/d/f.toml", "\"c2\"", "the node"]])
    {
        assert!(parts.iter().all(|part| reason.contains(part)) && reason.contains("an id of its own"), "{reason}");
    }
    let has = |rows: &LocalRows, check: &str, owner: Option<&str>| {
        rows.checks.iter().any(|row| &*row.id == check && row.instance.as_deref() == owner)
    };
    let rows = agent.handle.rows();
    assert!(has(&rows, "c1", Some("api")) && has(&rows, "c2", None) && has(&rows, "c3", Some("h")), "{rows:?}");
    assert_eq!(rows.instances.len(), 2, "api and h");
    // Nor by the API: a check does not move from one service to another.
    let moved = named("c1").validate("check", "", "", Some("h".into())).unwrap();
    let why = agent.handle.register_check(moved).await.unwrap_err().to_string();
    assert!(why.contains("belongs to service \"api\" already, registered by the API"), "{why}");
    // It is taken up once the id is free.
    agent.handle.deregister_service("api").await.unwrap();
    agent.handle.deregister_check("c2").await.unwrap();
    agent.handle.set_file_services(files).await.unwrap();
    assert_eq!(agent.handle.rows().instances.len(), 3);
    agent.stop().await;
}

#[tokio::test]
async fn checks_of_the_api_come_and_go() {
    let agent = Agent::start(None);
    let extra = ttl("1h").validate("check", "extra", "extra", Some("web".into())).unwrap();
    let unknown = agent.handle.register_check(extra.clone()).await.unwrap_err();
    assert_eq!(unknown, LocalError::UnknownService("web".into()));
    agent.handle.register_service(service("web", vec![ttl("1h")]), false).await.unwrap();
    agent.handle.register_check(extra).await.unwrap();
    let ids = |rows: &LocalRows| rows.checks.iter().map(|row| row.id.to_string()).collect::<Vec<_>>();
    assert_eq!(ids(&agent.handle.rows()), ["extra", "service:web"]);
    agent.handle.register_service(service("web", vec![]), false).await.unwrap();
    assert_eq!(ids(&agent.handle.rows()), ["extra", "service:web"], "what is not named stays");
    agent.handle.register_service(service("web", vec![]), true).await.unwrap();
    assert!(ids(&agent.handle.rows()).is_empty(), "unless it is to be replaced");
    let unknown = agent.handle.deregister_check("extra").await.unwrap_err();
    assert_eq!(unknown, LocalError::UnknownCheck("extra".into()));
    agent.stop().await;
}

#[tokio::test]
async fn a_critical_service_is_deregistered_or_withdrawn() {
    let agent = Agent::start(None);
    let check = CheckText { deregister_critical_after: Some("150ms".into()), ..ttl("1h") };
    let file = Arc::new(service("file", vec![check.clone()]));
    let path: Arc<Path> = Arc::from(Path::new("file.toml"));
    agent.handle.set_file_services(vec![FileService { definition: file, path }]).await.unwrap();
    agent.handle.register_service(service("api", vec![check]), false).await.unwrap();
    assert_eq!(agent.handle.rows().instances.len(), 2);
    agent.wait_for("both gone", |rows| rows.instances.is_empty() && rows.checks.is_empty()).await;
    let listing = agent.handle.list().await.unwrap();
    assert_eq!(listing.services.len(), 1);
    assert!(listing.services[0].withdrawn, "the file still stands");
    agent.handle.update_ttl("service:file", passing("")).await.unwrap();
    agent.wait_for("the file's return", |rows| rows.instances.len() == 1).await;
    agent.stop().await;
}

#[tokio::test]
async fn draining_marks_every_instance() {
    let agent = Agent::start(None);
    agent.handle.register_service(service("a", vec![]), false).await.unwrap();
    agent.handle.register_service(service("b", vec![]), false).await.unwrap();
    agent.handle.drain().await.unwrap();
    let rows = agent.handle.rows();
    assert!(rows.draining && rows.instances.iter().all(|row| row.draining));
    agent.stop().await;
}

#[tokio::test]
async fn the_api_cannot_take_the_ids_of_the_nodes_own_state() {
    let agent = Agent::start(None);
    for id in ["serfHealth", NODE_MAINTENANCE_CHECK] {
        let check = CheckDefinition { id: id.into(), ..service("web", vec![ttl("10s")]).checks.remove(0) };
        let of_node = CheckDefinition { instance: None, ..check.clone() };
        let refused = agent.handle.register_check(of_node).await;
        assert!(matches!(refused, Err(LocalError::Invalid(_))), "{refused:?}");
        let of_service = ServiceDefinition { checks: vec![check], ..service("web", Vec::new()) };
        let refused = agent.handle.register_service(of_service, false).await;
        assert!(matches!(refused, Err(LocalError::Invalid(_))), "{refused:?}");
    }
    agent.stop().await;
}

#[tokio::test]
async fn an_alias_follows_and_two_do_not_hold_each_other() {
    let agent = Agent::start(None);
    let alias = |to: &str| CheckText { alias_service: Some(to.into()), ..Default::default() };
    let with_id = |id: &str, check: CheckText| CheckText { id: Some(id.into()), ..check };
    let web = vec![with_id("beat", ttl("60s")), with_id("web-to-db", alias("db"))];
    agent.handle.register_service(service("web", web), false).await.unwrap();
    let missing = eventually(&agent, "web-to-db", |row| &*row.output != NOT_RUN_YET).await;
    assert!(missing.status == Status::Critical && missing.output.contains("\"db\" is not in"), "{missing:?}");
    agent.handle.register_service(service("db", vec![with_id("db-to-web", alias("web"))]), false).await.unwrap();
    agent.wait_status("web-to-db", Status::Passing).await;
    agent.handle.update_ttl("beat", passing("fine")).await.unwrap();
    agent.wait_status("db-to-web", Status::Passing).await;
    let update = TtlUpdate { status: Status::Warning, output: "slow".into() };
    agent.handle.update_ttl("beat", update).await.unwrap();
    let row = agent.wait_status("db-to-web", Status::Warning).await;
    assert!(row.output.contains("slow"), "{row:?}");
    agent.handle.set_service_maintenance("web", Some("disk".into())).await.unwrap();
    agent.wait_status("db-to-web", Status::Critical).await;
    agent.stop().await;
}

#[tokio::test]
async fn the_api_cannot_register_what_only_files_may_hold() {
    let agent = Agent::start(None);
    let tcp = || probe(CheckText { tcp: Some("127.0.0.1:1".into()), ..Default::default() });
    for (key, check) in [
        ("args", probe(CheckText { args: vec!["/bin/true".into()], ..Default::default() })),
        ("allow_link_local", CheckText { allow_link_local: Some(true), ..tcp() }),
        ("ca_file", CheckText { tls: Some(true), ca_file: Some("/etc/passwd".into()), ..tcp() }),
    ] {
        let error = agent.handle.register_service(service("web", vec![check]), false).await.unwrap_err();
        assert!(error.to_string().contains(&format!("has {key}, which only a definition file may")), "{error}");
    }
    assert!(agent.handle.rows().instances.is_empty());
    agent.stop().await;
}

#[tokio::test]
async fn a_flapping_check_falls_at_once_and_returns_late_also_over_a_restart() {
    let directory = TempDir::new().unwrap();
    let agent = Agent::start(Some(&directory));
    let damped = CheckText { flap_half_life: Some("1h".into()), flap_max_hold: Some("2h".into()), ..ttl("1h") };
    let free = CheckText { id: Some("free".into()), flap_damping: Some(false), ..ttl("1h") };
    agent.handle.register_service(service("web", vec![damped, free]), false).await.unwrap();
    let id = "service:web:1";
    let tell = |agent: &Agent, id: &'static str, status| {
        let handle = agent.handle.clone();
        async move { handle.update_ttl(id, TtlUpdate { status, output: "so".into() }).await.unwrap() }
    };
    let shown = |agent: &Agent, id: &str| {
        let rows = agent.handle.rows();
        rows.checks.iter().find(|check| &*check.id == id).unwrap().clone()
    };
    for fall in 1..=5 {
        for check in [id, "free"] {
            tell(&agent, check, Status::Passing).await;
            // The fourth fall is one too many: from then on it stays critical.
            let expected = if fall <= 4 || check == "free" { Status::Passing } else { Status::Critical };
            assert_eq!(shown(&agent, check).status, expected, "{check} before fall {fall}");
            tell(&agent, check, Status::Critical).await;
            let check = shown(&agent, check);
            assert_eq!((check.status, &*check.output), (Status::Critical, "so"), "removal is never delayed");
        }
    }
    tell(&agent, id, Status::Warning).await;
    let held = shown(&agent, id);
    assert_eq!(held.status, Status::Critical);
    assert!(
        held.output.starts_with("warning, but held back for another ") && held.output.ends_with("s: so"),
        "{held:?}"
    );
    assert!(held.output.contains(" after 5 failures in "), "{held:?}");
    agent.stop().await;

    let agent = Agent::start(Some(&directory));
    let held = agent.wait_status(id, Status::Critical).await;
    assert!(held.output.contains("warning, but held back") && held.output.contains("after 5 failures"), "{held:?}");
    tell(&agent, id, Status::Passing).await;
    assert_eq!(shown(&agent, id).status, Status::Critical);
    // Turned off, it is believed at once.
    let believed = CheckText { id: Some(id.into()), flap_damping: Some(false), ..ttl("1h") };
    agent.handle.register_service(service("web", vec![believed]), false).await.unwrap();
    assert_eq!(shown(&agent, id).status, Status::Passing);
    agent.stop().await;
}

#[tokio::test]
async fn a_recovery_that_was_held_back_comes_by_itself_and_is_not_deregistered_for_it() {
    let agent = Agent::start(None);
    let check = CheckText {
        flap_half_life: Some("1s".into()),
        flap_max_hold: Some("3s".into()),
        deregister_critical_after: Some("1s".into()),
        ..ttl("1h")
    };
    agent.handle.register_service(service("web", vec![check]), false).await.unwrap();
    let tell = |status| agent.handle.update_ttl("service:web", TtlUpdate { status, output: "so".into() });
    for _ in 0..8 {
        tell(Status::Passing).await.unwrap();
        tell(Status::Critical).await.unwrap();
    }
    tell(Status::Passing).await.unwrap();
    assert_eq!(agent.handle.rows().checks[0].status, Status::Critical);
    // Longer than deregister_critical_after: it is good by itself.
    let check = agent.wait_status("service:web", Status::Passing).await;
    assert_eq!(&*check.output, "so");
    agent.stop().await;
}
