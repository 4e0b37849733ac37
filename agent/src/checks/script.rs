//! The script probe: exit 0 is good, 1 half good, all else bad. It runs in a process group of its own, which is killed
//! whole when its time is over or its check goes.
//!
//! A bounded number runs at once ([`Places`]). One that took long the last time may only have some of the places, so that
//! those which hang do not keep the quick ones waiting; one that gets no place in time says so.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::process::ExitStatusExt,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use muster_catalog::{Status, Text};
use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, waitpid};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
    sync::{AcquireError, OwnedSemaphorePermit, Semaphore},
    task::JoinHandle,
    time::{Instant, timeout_at},
};

use super::{MAX_OUTPUT, Outcome, Tools};

/// All that a script finds in its environment: the agent's own may hold what is nobody's business.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How long a killed script may take to be gone; beyond it the runtime sees to it.
const GONE_WITHIN: Duration = Duration::from_secs(1);
/// Scripts that run at one time: more of them belong to a host that is overloaded already.
const MAX_RUNNING: usize = 32;
/// So many of these may be slow or new ones: the other places are for those that are done at once.
const MAX_SLOW: usize = MAX_RUNNING / 2;
/// A run that takes longer than this makes a script a slow one, until it is quick again.
const SLOW_AFTER: Duration = Duration::from_secs(1);
/// Room in an output for the words around it.
const MAX_TAIL: usize = MAX_OUTPUT - 128;

/// Whose scripts are run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scripts {
    /// Nobody's.
    #[default]
    Off,
    /// Those of definition files; never the API's.
    Files,
}

/// Kills the whole group unless it is known to be gone. The leader is reaped last, so the number is still its own.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0.take() {
            // It may have ended just now.
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

/// The end of what was written, and how much that was.
#[derive(Default)]
struct Tail {
    kept: Vec<u8>,
    total: u64,
}

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        self.kept.extend_from_slice(bytes);
        self.kept.drain(..self.kept.len().saturating_sub(MAX_TAIL));
    }

    fn text(&self) -> String {
        let kept = String::from_utf8_lossy(&self.kept);
        if self.total > self.kept.len() as u64 {
            return format!("Captured {} of {} bytes\n...\n{kept}", self.kept.len(), self.total);
        }
        kept.into_owned()
    }
}

/// The places that scripts run in, shared by all checks.
#[derive(Debug)]
pub(super) struct Places {
    all: Arc<Semaphore>,
    slow: Arc<Semaphore>,
    /// The processes that were started here and are not known to be gone.
    started: Arc<Mutex<BTreeSet<i32>>>,
}

impl Default for Places {
    fn default() -> Self {
        let places = |count| Arc::new(Semaphore::new(count));
        Self { all: places(MAX_RUNNING), slow: places(MAX_SLOW), started: Arc::default() }
    }
}

/// A place that is taken.
struct Place {
    _slow: Option<OwnedSemaphorePermit>,
    _any: OwnedSemaphorePermit,
}

/// What is known of the earlier runs of one check.
#[derive(Debug, Default)]
pub(super) struct Past {
    /// Whether the last run was done at once. One that never ran may hang as well as any.
    quick: bool,
    /// Ends when the process of an earlier run, which was killed, is gone.
    leaving: Option<JoinHandle<()>>,
}

impl Places {
    async fn take(&self, slow: bool) -> Result<Place, AcquireError> {
        // The slow wait for each other before they wait with the others.
        let slow = if slow { Some(self.slow.clone().acquire_owned().await?) } else { None };
        Ok(Place { _slow: slow, _any: self.all.clone().acquire_owned().await? })
    }

    /// Takes leave of ended processes that were left to this one and that nobody waits for. Scripts leave such behind,
    /// and the first process of a container inherits them: each would stay in the table of processes for ever.
    pub(super) fn reap_orphans(&self) {
        // Held while looking, so that no script is started that is not known yet.
        let started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        for pid in find_zombies() {
            if !started.contains(&pid.as_raw_nonzero().get()) {
                // Another one may have waited for it meanwhile.
                let _ = waitpid(Some(pid), WaitOptions::NOHANG);
            }
        }
    }
}

/// The ended children of this process, as /proc tells.
fn find_zombies() -> Vec<Pid> {
    let own = std::process::id().to_string();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let zombies = entries.filter_map(|entry| {
        let name = entry.ok()?.file_name();
        let pid = Pid::from_raw(name.to_str()?.parse().ok()?)?;
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
        // Behind the name, which may hold anything: its state and its parent.
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
        (fields.next()? == "Z" && fields.next()? == own).then_some(pid)
    });
    zombies.collect()
}

/// A process of a script; forgotten with this.
struct Process {
    child: Child,
    pid: Option<Pid>,
    started: Arc<Mutex<BTreeSet<i32>>>,
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(pid) = self.pid {
            let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
            started.remove(&pid.as_raw_nonzero().get());
        }
    }
}

/// Runs the program; done when it has ended and nothing holds its output open any more.
pub(super) async fn probe(args: &[Text], timeout: Duration, tools: &Tools, past: &mut Past) -> Outcome {
    let Some((program, arguments)) = args.split_first() else {
        return Outcome::critical("the script has no program");
    };
    if tools.scripts == Scripts::Off {
        let why = "scripts are off on this agent: set scripts = \"files\" under [checks] in its configuration";
        return Outcome::critical(&format!("script {program}: {why}"));
    }
    if past.leaving.as_ref().is_some_and(|leaving| !leaving.is_finished()) {
        let why = "the process of an earlier run was killed and is still there: it waits for a disk or a network file \
                   system, and is not started again until it is gone";
        return Outcome::critical(&format!("script {program} is not run: {why}"));
    }
    let place = match timeout_at(Instant::now() + timeout, tools.places.take(!past.quick)).await {
        Ok(Ok(place)) => place,
        Ok(Err(_)) => return Outcome::critical("the agent is stopping"),
        Err(_) => {
            let (most, kind) = if past.quick { (MAX_RUNNING, "") } else { (MAX_SLOW, " that take long or are new") };
            let why = format!("{most} scripts{kind} run already, and none ended within {timeout:?}");
            return Outcome::critical(&format!("script {program} is not run: {why}; see to those that hang"));
        }
    };
    let began = Instant::now();
    let outcome = run(program, arguments, timeout, tools, place, past).await;
    past.quick = began.elapsed() < SLOW_AFTER;
    outcome
}

async fn run(
    program: &str,
    arguments: &[Text],
    timeout: Duration,
    tools: &Tools,
    place: Place,
    past: &mut Past,
) -> Outcome {
    let mut process = match start(program, arguments, &tools.places) {
        Ok(process) => process,
        Err(error) => return Outcome::critical(&format!("script {program} cannot be started: {error}")),
    };
    let mut group = Group(process.pid);
    let mut tail = Tail::default();
    match tokio::time::timeout(timeout, follow(&mut process.child, &mut tail)).await {
        Ok(Ok(status)) => {
            group.0 = None;
            judge(program, status, &tail.text())
        }
        Ok(Err(error)) => Outcome::critical(&format!("script {program}: {error}\n{}", tail.text())),
        Err(_) => {
            drop(group);
            // The next run must not meet this one, and its place is taken until it is gone.
            if tokio::time::timeout(GONE_WITHIN, process.child.wait()).await.is_err() {
                past.leaving = Some(tokio::spawn(async move {
                    let _ = process.child.wait().await;
                    drop(place);
                }));
            }
            Outcome::critical(&format!("Timed out ({timeout:?}) running {program}, killed\n{}", tail.text()))
        }
    }
}

fn start(program: &str, arguments: &[Text], places: &Places) -> std::io::Result<Process> {
    let arguments = arguments.iter().map(|argument| &**argument);
    let mut command = Command::new(program);
    command.args(arguments).env_clear().env("PATH", PATH).current_dir("/").process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut started = places.started.lock().unwrap_or_else(PoisonError::into_inner);
    let child = command.spawn()?;
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    started.extend(pid.map(|pid| pid.as_raw_nonzero().get()));
    Ok(Process { child, pid, started: places.started.clone() })
}

async fn follow(child: &mut Child, tail: &mut Tail) -> std::io::Result<ExitStatus> {
    let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
    let (mut out_chunk, mut err_chunk) = ([0; 1024], [0; 1024]);
    while out.is_some() || err.is_some() {
        tokio::select! {
            length = read(&mut out, &mut out_chunk) => tail.push(&out_chunk[..length]),
            length = read(&mut err, &mut err_chunk) => tail.push(&err_chunk[..length]),
        }
    }
    child.wait().await
}

/// Reads once; at the end the stream is gone, and then this waits for ever.
async fn read<R: AsyncRead + Unpin>(stream: &mut Option<R>, chunk: &mut [u8]) -> usize {
    let Some(open) = stream else { return std::future::pending().await };
    let length = open.read(chunk).await.unwrap_or(0);
    if length == 0 {
        *stream = None;
    }
    length
}

fn judge(program: &str, status: ExitStatus, output: &str) -> Outcome {
    match status.code() {
        Some(0) => Outcome::new(Status::Passing, output),
        Some(1) => Outcome::new(Status::Warning, output),
        Some(code) => Outcome::critical(&format!("{program} exited with {code}\n{output}")),
        None => {
            let signal = status.signal().unwrap_or_default();
            Outcome::critical(&format!("{program} was ended by signal {signal}\n{output}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(line: &str) -> Vec<Text> {
        ["/bin/sh", "-c", line].map(Text::from).to_vec()
    }

    async fn eventually(condition: impl Fn() -> bool) {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Twice as many as there are places hang, for good, from their first run on.
    #[tokio::test]
    async fn scripts_that_hang_do_not_keep_the_quick_ones_from_running() {
        let tools = Arc::new(Tools::new(Scripts::Files));
        let hanging: Vec<_> = (0..MAX_RUNNING * 2)
            .map(|_| {
                let tools = tools.clone();
                tokio::spawn(async move {
                    probe(&args("exec sleep 1000"), Duration::from_secs(600), &tools, &mut Past::default()).await
                })
            })
            .collect();
        eventually(|| tools.places.slow.available_permits() == 0 && tools.places.all.available_permits() == MAX_SLOW)
            .await;
        let (mut quick, mut slow) = (Past { quick: true, ..Past::default() }, Past::default());
        for _ in 0..3 {
            let outcome = probe(&args("echo fine"), Duration::from_secs(60), &tools, &mut quick).await;
            assert_eq!((outcome.status, outcome.output.trim()), (Status::Passing, "fine"));
        }
        let crowded = probe(&args("echo fine"), Duration::from_millis(50), &tools, &mut slow).await;
        assert_eq!(crowded.status, Status::Critical);
        assert!(crowded.output.contains("is not run: 16 scripts that take long or are new run already"), "{crowded:?}");
        hanging.iter().for_each(JoinHandle::abort);
        eventually(|| tools.places.all.available_permits() == MAX_RUNNING).await;
        // A place was free after all, so it is known to be quick again.
        let outcome = probe(&args("echo fine"), Duration::from_secs(60), &tools, &mut slow).await;
        assert!(outcome.status == Status::Passing && slow.quick, "{outcome:?}");
    }

    #[tokio::test]
    async fn one_that_takes_long_is_known_to_be_slow() {
        let (tools, mut past) = (Tools::new(Scripts::Files), Past { quick: true, ..Past::default() });
        let outcome = probe(&args("exec sleep 1000"), SLOW_AFTER, &tools, &mut past).await;
        assert!(outcome.output.contains("Timed out") && !past.quick, "{outcome:?}");
        assert_eq!(tools.places.all.available_permits(), MAX_RUNNING);
        assert!(tools.places.started.lock().unwrap().is_empty(), "it is gone");
    }

    #[tokio::test]
    async fn a_process_that_does_not_go_is_not_joined_by_others() {
        let (tools, mut past) = (Tools::new(Scripts::Files), Past::default());
        past.leaving = Some(tokio::spawn(std::future::pending()));
        let outcome = probe(&args("echo fine"), Duration::from_secs(60), &tools, &mut past).await;
        assert!(outcome.status == Status::Critical && outcome.output.contains("is still there"), "{outcome:?}");
    }

    #[tokio::test]
    async fn ended_children_that_nobody_waits_for_are_found() {
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).unwrap();
        eventually(|| find_zombies().contains(&pid)).await;
        // One that was started as a script is left to those who wait for it.
        let places = Places::default();
        places.started.lock().unwrap().extend(find_zombies().iter().map(|pid| pid.as_raw_nonzero().get()));
        places.reap_orphans();
        assert!(find_zombies().contains(&pid));
        child.wait().unwrap();
        assert!(!find_zombies().contains(&pid));
    }
}
