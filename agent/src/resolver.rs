//! Host names to addresses, without a thread that waits for a name server.
//!
//! getaddrinfo holds a thread for as long as a name server is silent, 40 seconds and more, and the threads that it may
//! have are those that files are written on: with enough names nothing else goes on. So names are asked for by tasks,
//! as /etc/resolv.conf says and after /etc/hosts; both are read again when they change. The other sources that
//! /etc/nsswitch.conf may name are not asked, as in a binary that is linked with musl.
//!
//! A name is asked for once, however many wait for it, and goes on being asked for when those have lost their patience:
//! the next one finds the answer. IP addresses, `localhost` and the names of /etc/hosts wait for nobody.

use std::{
    collections::HashMap,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use hickory_resolver::{
    Hosts, TokioResolver,
    config::LookupIpStrategy,
    net::runtime::TokioRuntimeProvider,
    proto::{
        op::Query,
        rr::{Name, RecordType},
    },
    system_conf::parse_resolv_conf,
};
use muster_registry::Resolve;
use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, timeout},
};

/// How long a name is asked for. Longer than most who wait have patience, so that a name server which is slow, or the
/// second one where the first is dead, is heard before they ask again.
const ASK_WITHIN: Duration = Duration::from_secs(5);
/// For one request to one name server, so that a lost datagram is sent again within [`ASK_WITHIN`].
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Names that are asked for at one time: each holds up to four sockets (two families, two name servers).
const MAX_ASKED: usize = 128;
/// How often it is looked whether the files of the system changed.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Larger files than this name more hosts than one host knows.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;
/// Answers are kept for their TTL, but not for longer: a check is to notice that a name has moved.
const MAX_KEPT: Duration = Duration::from_secs(60);
/// The same for the answer that there is no such name: it may be there any moment.
const MAX_ABSENCE_KEPT: Duration = Duration::from_secs(5);
/// Names whose answers are kept.
const MAX_CACHED: u64 = 4096;

/// What was found, or why nothing was.
type Found = Result<Arc<[IpAddr]>, String>;

/// Finds the addresses of host names. Clones share what they know.
#[derive(Debug, Clone)]
pub(crate) struct Resolver(Arc<Shared>);

struct Shared {
    resolv_conf: PathBuf,
    hosts: PathBuf,
    system: Mutex<Option<System>>,
    /// The names that are being asked for, and where the answer will be seen.
    asked: Mutex<HashMap<String, watch::Receiver<Option<Found>>>>,
    places: Semaphore,
    ask_within: Duration,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("resolv_conf", &self.resolv_conf).field("hosts", &self.hosts).finish()
    }
}

/// What the files of the system say.
struct System {
    looked_at: Instant,
    stamps: [Stamp; 2],
    hosts: Arc<Hosts>,
    servers: Result<TokioResolver, String>,
}

/// What tells a changed file from an unchanged one.
type Stamp = Option<(u64, Option<SystemTime>)>;

impl Default for Resolver {
    fn default() -> Self {
        Self::with_files("/etc/resolv.conf", "/etc/hosts", ASK_WITHIN)
    }
}

impl Resolver {
    fn with_files(resolv_conf: impl Into<PathBuf>, hosts: impl Into<PathBuf>, ask_within: Duration) -> Self {
        Self(Arc::new(Shared {
            resolv_conf: resolv_conf.into(),
            hosts: hosts.into(),
            system: Mutex::new(None),
            asked: Mutex::default(),
            places: Semaphore::new(MAX_ASKED),
            ask_within,
        }))
    }

    /// The same for the registry: the names of its members.
    pub(crate) fn for_members(&self) -> Resolve {
        let resolver = self.clone();
        Resolve::by(move |target| {
            let resolver = resolver.clone();
            async move { resolver.resolve_target(&target).await }
        })
    }

    /// The addresses of `host:port`.
    pub(crate) async fn resolve_target(&self, target: &str) -> Result<Vec<SocketAddr>, String> {
        let (host, port) = target.rsplit_once(':').ok_or("it names no port")?;
        let port = port.parse().map_err(|_| format!("{port:?} is no port"))?;
        let found = self.resolve(host).await.map_err(|why| format!("{host} cannot be resolved: {why}"))?;
        Ok(found.iter().map(|ip| SocketAddr::new(*ip, port)).collect())
    }

    /// The addresses of a host name or IP address, at least one.
    pub(crate) async fn resolve(&self, host: &str) -> Result<Arc<[IpAddr]>, String> {
        let host = host.trim_matches(['[', ']']);
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok([ip].into());
        }
        let host = host.to_ascii_lowercase();
        let bare = host.trim_end_matches('.');
        // RFC 6761: they never leave the host.
        if bare == "localhost" || bare.ends_with(".localhost") {
            return Ok([Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()].into());
        }
        let name = Name::from_str_relaxed(&host).map_err(|_| "it is no host name".to_owned())?;
        if let Some(known) = self.0.find_in_hosts(&name) {
            return Ok(known);
        }
        let mut answer = self.0.clone().join(host, name);
        let found = answer.wait_for(Option::is_some).await.map_err(|_| "the agent is stopping".to_owned())?;
        found.clone().unwrap_or_else(|| Err("nobody was asked".to_owned()))
    }
}

impl Shared {
    fn asked(&self) -> MutexGuard<'_, HashMap<String, watch::Receiver<Option<Found>>>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the answer for the name will be seen, by whoever asked first.
    fn join(self: Arc<Self>, host: String, name: Name) -> watch::Receiver<Option<Found>> {
        let mut asked = self.asked();
        if let Some(answer) = asked.get(&host) {
            return answer.clone();
        }
        let (sender, answer) = watch::channel(None);
        asked.insert(host.clone(), answer.clone());
        drop(asked);
        tokio::spawn(async move {
            let within = self.ask_within;
            let found = timeout(within, self.ask(name)).await;
            let found = found.unwrap_or_else(|_| Err(format!("no name server answered within {within:?}")));
            self.asked().remove(&host);
            sender.send_replace(Some(found));
        });
        answer
    }

    async fn ask(&self, name: Name) -> Found {
        let _place = self.places.acquire().await.map_err(|error| error.to_string())?;
        let servers = self.system(|system| system.servers.clone())?;
        let found = servers.lookup_ip(name).await.map_err(|error| match error {
            error if error.is_nx_domain() => "there is no such name".to_owned(),
            error if error.is_no_records_found() => "the name has no address".to_owned(),
            error => format!("no name server answered: {error}"),
        })?;
        let addresses: Arc<[IpAddr]> = found.iter().collect();
        if addresses.is_empty() { Err("the name has no address".to_owned()) } else { Ok(addresses) }
    }

    fn find_in_hosts(&self, name: &Name) -> Option<Arc<[IpAddr]>> {
        let hosts = self.system(|system| system.hosts.clone());
        let of_kind = |kind| hosts.lookup_static_host(&Query::query(name.clone(), kind));
        let lookups: Vec<_> = [RecordType::AAAA, RecordType::A].into_iter().filter_map(of_kind).collect();
        let records = lookups.iter().flat_map(|lookup| lookup.answers());
        let addresses: Arc<[IpAddr]> = records.filter_map(|record| record.data.ip_addr()).collect();
        (!addresses.is_empty()).then_some(addresses)
    }

    /// Asks what the files say, which are read again if they changed. They lie on the system's own disk.
    fn system<T>(&self, question: impl FnOnce(&System) -> T) -> T {
        let mut kept = self.system.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some(system) = kept.as_mut()
            && now.saturating_duration_since(system.looked_at) >= LOOK_EVERY
        {
            system.looked_at = now;
            if self.stamps() != system.stamps {
                *kept = None;
            }
        }
        question(kept.get_or_insert_with(|| self.read(now)))
    }

    fn stamps(&self) -> [Stamp; 2] {
        [&self.resolv_conf, &self.hosts].map(|path| {
            let meta = fs::metadata(path).ok()?;
            Some((meta.len(), meta.modified().ok()))
        })
    }

    fn read(&self, now: Instant) -> System {
        let stamps = self.stamps();
        let mut hosts = Hosts::default();
        let read = read_file(&self.hosts).and_then(|bytes| hosts.read_hosts_conf(&*bytes).map_err(|e| e.to_string()));
        if let Err(why) = read {
            tracing::warn!(file = %self.hosts.display(), %why, "the host's own names are not known");
        }
        let servers = self.servers();
        if let Err(why) = &servers {
            tracing::warn!(%why, "host names cannot be resolved, but for those of the hosts file");
        }
        System { looked_at: now, stamps, hosts: Arc::new(hosts), servers }
    }

    fn servers(&self) -> Result<TokioResolver, String> {
        let file = self.resolv_conf.display();
        let bytes = read_file(&self.resolv_conf).map_err(|why| format!("{file}: {why}"))?;
        let (config, mut options) = parse_resolv_conf(bytes).map_err(|error| format!("{file}: {error}"))?;
        options.timeout = options.timeout.min(ANSWER_WITHIN);
        options.ip_strategy = LookupIpStrategy::Ipv6AndIpv4;
        (options.positive_max_ttl, options.negative_max_ttl) = (Some(MAX_KEPT), Some(MAX_ABSENCE_KEPT));
        options.cache_size = MAX_CACHED;
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = options;
        builder.build().map_err(|error| format!("{file}: {error}"))
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let file = crate::definition::open_regular(path).map_err(|error| error.to_string())?;
    file.take(MAX_FILE_BYTES).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::net::UdpSocket;

    use super::*;

    /// A name server on a port of its own is not in resolv.conf's reach, which knows port 53 alone: one that is silent
    /// is enough, and an address of the loopback net that this test has for itself.
    struct Silence {
        directory: tempfile::TempDir,
        questions: Arc<AtomicUsize>,
    }

    impl Silence {
        /// `None` where port 53 cannot be had.
        async fn start(address: &str) -> Option<Self> {
            let socket = UdpSocket::bind((address, 53)).await.ok()?;
            let questions = Arc::new(AtomicUsize::new(0));
            let count = questions.clone();
            tokio::spawn(async move {
                let mut bytes = [0; 512];
                while socket.recv(&mut bytes).await.is_ok() {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
            let directory = tempfile::tempdir().unwrap();
            fs::write(directory.path().join("resolv.conf"), format!("nameserver {address}\n")).unwrap();
            fs::write(directory.path().join("hosts"), "192.0.2.7 known.test alias.test\n2001:db8::7 known.test\n")
                .unwrap();
            Some(Self { directory, questions })
        }

        fn resolver(&self) -> Resolver {
            let path = |name| self.directory.path().join(name);
            Resolver::with_files(path("resolv.conf"), path("hosts"), Duration::from_secs(2))
        }
    }

    #[tokio::test]
    async fn a_silent_name_server_delays_only_those_who_ask_it() {
        let Some(silence) = Silence::start("127.53.0.9").await else {
            eprintln!("passed over: port 53 cannot be had");
            return;
        };
        let resolver = silence.resolver();
        let far: Vec<_> = (0..MAX_ASKED + 50)
            .map(|index| {
                let resolver = resolver.clone();
                tokio::spawn(async move { resolver.resolve(&format!("far{index}.test.")).await })
            })
            .collect();
        // All of the places are taken by now.
        while silence.questions.load(Ordering::Relaxed) < MAX_ASKED {
            tokio::task::yield_now().await;
        }
        let start = std::time::Instant::now();
        for (host, addresses) in [
            ("localhost", vec!["127.0.0.1", "::1"]),
            ("x.LocalHost.", vec!["127.0.0.1", "::1"]),
            ("10.0.0.1", vec!["10.0.0.1"]),
            ("[2001:db8::1]", vec!["2001:db8::1"]),
            ("known.test", vec!["2001:db8::7", "192.0.2.7"]),
            ("Alias.Test", vec!["192.0.2.7"]),
        ] {
            let expected: Vec<IpAddr> = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
            assert_eq!(&*resolver.resolve(host).await.unwrap(), expected, "{host}");
        }
        assert!(start.elapsed() < Duration::from_secs(1), "they waited: {:?}", start.elapsed());
        for task in far {
            let why = task.await.unwrap().unwrap_err();
            assert!(why.contains("no name server answered"), "{why}");
        }
        assert_eq!(resolver.0.asked().len(), 0, "nothing is left behind");
    }

    #[tokio::test]
    async fn a_name_is_asked_for_once_and_goes_on_when_nobody_waits() {
        let Some(silence) = Silence::start("127.53.0.10").await else { return };
        let resolver = silence.resolver();
        for _ in 0..20 {
            assert!(timeout(Duration::from_millis(5), resolver.resolve("far.test.")).await.is_err());
            assert_eq!(resolver.0.asked().len(), 1);
        }
        // Both families, and at most one repetition of each by now.
        assert!(silence.questions.load(Ordering::Relaxed) <= 4, "asked {:?} times", silence.questions);
    }

    #[tokio::test]
    async fn what_cannot_be_asked_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let resolver = Resolver::with_files(directory.path().join("none"), directory.path().join("none"), ASK_WITHIN);
        let why = resolver.resolve("far.test").await.unwrap_err();
        assert!(why.contains("none") && why.contains("No such file"), "{why}");
        assert_eq!(resolver.resolve("localhost").await.unwrap().len(), 2);
        assert!(resolver.resolve("a b").await.is_err());
    }
}
