//! The script probe: exit 0 is good, 1 half good, all else bad. It runs in a process group of its own, which is killed
//! whole when its time is over or its check goes.
//!
//! A bounded number runs at once ([`Places`]). Those that take long may only have some of the places, and those of which it
//! is not known some others, so that those which hang keep neither the quick ones waiting nor the new ones. Each kind is
//! served in turn. One that gets no place in time says so, and keeps its turn.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::process::ExitStatusExt,
    pin::{Pin, pin},
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
    time::{Instant, sleep, timeout},
};

use super::{MAX_OUTPUT, Outcome, Tools};

/// All that a script finds in its environment: the agent's own may hold what is nobody's business.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How long a killed script may take to be gone; beyond it the runtime sees to it.
const GONE_WITHIN: Duration = Duration::from_secs(1);
/// Scripts that run at one time: more of them belong to a host that is overloaded already.
const MAX_RUNNING: usize = 32;
/// So many of these may be known to be slow.
const MAX_SLOW: usize = MAX_RUNNING / 2;
/// And so many may be such as may be quick, or hang. The other places are for those that are done at once.
const MAX_UNSURE: usize = MAX_RUNNING / 4;
/// A run that takes longer than this makes a quick script one that may be slow, and the next one makes it one that is.
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
    unsure: Arc<Semaphore>,
    /// The processes that were started here and are not known to be gone.
    started: Arc<Mutex<BTreeSet<i32>>>,
}

impl Default for Places {
    fn default() -> Self {
        let places = |count| Arc::new(Semaphore::new(count));
        let (all, slow, unsure) = (places(MAX_RUNNING), places(MAX_SLOW), places(MAX_UNSURE));
        Self { all, slow, unsure, started: Arc::default() }
    }
}

/// A place that is taken.
struct Place {
    _of_its_kind: Option<OwnedSemaphorePermit>,
    _any: OwnedSemaphorePermit,
    /// Of a script that may be slow: where it belongs once it has proved to be.
    slow: Option<Arc<Semaphore>>,
}

impl Place {
    /// Does the work. If that takes long in a place of those that may be slow, it leaves the place to others as soon as
    /// there is one among the slow.
    async fn hold<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        if let Some(slow) = self.slow.clone() {
            let moved = async {
                sleep(SLOW_AFTER).await;
                slow.acquire_owned().await
            };
            tokio::select! {
                done = &mut work => return done,
                Ok(place) = moved => (self._of_its_kind, self.slow) = (Some(place), None),
            }
        }
        work.await
    }
}

/// How long a script takes, as far as that is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Pace {
    /// It never ran, or took long once: on a busy host a quick one does, and is not to wait behind all that hang.
    #[default]
    Unsure,
    Quick,
    Slow,
}

/// A wait for a place, which goes on where it was left.
type Turn = Pin<Box<dyn Future<Output = Result<Place, AcquireError>> + Send>>;

/// What is known of the earlier runs of one check.
#[derive(Default)]
pub(super) struct Past {
    pace: Pace,
    /// It waits for a place: to queue anew each time would be to wait for ever behind those that wait longer at a time.
    turn: Option<Turn>,
    /// Ends when the process of an earlier run, which was killed, is gone.
    leaving: Option<JoinHandle<()>>,
}

impl Past {
    /// Waits until the place that was waited for is there; for ever if none was.
    pub(super) async fn turn_comes(&mut self) {
        let Some(turn) = &mut self.turn else { return std::future::pending().await };
        let place = turn.await;
        self.turn = Some(Box::pin(std::future::ready(place)));
    }
}

impl Places {
    fn take(&self, pace: Pace) -> Turn {
        let all = self.all.clone();
        let kind = match pace {
            Pace::Unsure => Some(self.unsure.clone()),
            Pace::Quick => None,
            Pace::Slow => Some(self.slow.clone()),
        };
        let slow = (pace == Pace::Unsure).then(|| self.slow.clone());
        Box::pin(async move {
            // Those of a kind wait for each other before they wait with the others.
            let of_its_kind = match kind {
                Some(kind) => Some(kind.acquire_owned().await?),
                None => None,
            };
            Ok(Place { _of_its_kind: of_its_kind, _any: all.acquire_owned().await?, slow })
        })
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
pub(super) async fn probe(args: &[Text], limit: Duration, tools: &Tools, past: &mut Past) -> Outcome {
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
    let mut turn = past.turn.take().unwrap_or_else(|| tools.places.take(past.pace));
    let place = match timeout(limit, &mut turn).await {
        Ok(Ok(place)) => place,
        Ok(Err(_)) => return Outcome::critical("the agent is stopping"),
        Err(_) => {
            past.turn = Some(turn);
            let (most, kind) = match past.pace {
                Pace::Unsure => (MAX_UNSURE, " that are new or took long once"),
                Pace::Quick => (MAX_RUNNING, ""),
                Pace::Slow => (MAX_SLOW, " that take long"),
            };
            let why = format!("{most} scripts{kind} run already, and its turn did not come within {limit:?}");
            return Outcome::critical(&format!("script {program} is not run: {why}; see to those that hang"));
        }
    };
    let began = Instant::now();
    let outcome = run(program, arguments, limit, tools, place, past).await;
    past.pace = match past.pace {
        _ if began.elapsed() < SLOW_AFTER => Pace::Quick,
        Pace::Quick => Pace::Unsure,
        Pace::Unsure | Pace::Slow => Pace::Slow,
    };
    outcome
}

async fn run(
    program: &str,
    arguments: &[Text],
    limit: Duration,
    tools: &Tools,
    mut place: Place,
    past: &mut Past,
) -> Outcome {
    let mut process = match start(program, arguments, &tools.places) {
        Ok(process) => process,
        Err(error) => return Outcome::critical(&format!("script {program} cannot be started: {error}")),
    };
    let mut group = Group(process.pid);
    let mut tail = Tail::default();
    match timeout(limit, place.hold(follow(&mut process.child, &mut tail))).await {
        Ok(Ok(status)) => {
            group.0 = None;
            judge(program, status, &tail.text())
        }
        Ok(Err(error)) => Outcome::critical(&format!("script {program}: {error}\n{}", tail.text())),
        Err(_) => {
            drop(group);
            // The next run must not meet this one, and its place is taken until it is gone.
            if timeout(GONE_WITHIN, process.child.wait()).await.is_err() {
                past.leaving = Some(tokio::spawn(async move {
                    let _ = place.hold(process.child.wait()).await;
                }));
            }
            Outcome::critical(&format!("Timed out ({limit:?}) running {program}, killed\n{}", tail.text()))
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

    fn of(pace: Pace) -> Past {
        Past { pace, ..Past::default() }
    }

    /// So many hang, each so long and again and again.
    fn hang(count: usize, limit: Duration, tools: &Arc<Tools>) -> Vec<JoinHandle<()>> {
        let one = |_| {
            let tools = tools.clone();
            tokio::spawn(async move {
                let mut past = Past::default();
                loop {
                    probe(&args("exec sleep 1000"), limit, &tools, &mut past).await;
                }
            })
        };
        (0..count).map(one).collect()
    }

    /// It waits for a short time again and again.
    async fn comes_to_its_turn(past: &mut Past, tools: &Tools) {
        let tried = async {
            loop {
                let outcome = probe(&args("echo fine"), Duration::from_millis(200), tools, past).await;
                if !outcome.output.contains("is not run") {
                    return outcome;
                }
            }
        };
        let outcome = timeout(Duration::from_secs(60), tried).await.expect("its turn never comes");
        assert!(outcome.status == Status::Passing && past.pace == Pace::Quick, "{outcome:?}");
    }

    /// Twice as many as there are places hang, for good, from their first run on.
    #[tokio::test]
    async fn scripts_that_hang_do_not_keep_the_quick_ones_from_running() {
        let tools = Arc::new(Tools::new(Scripts::Files));
        let hanging = hang(MAX_RUNNING * 2, Duration::from_secs(600), &tools);
        let free = |tools: &Tools| {
            [&tools.places.unsure, &tools.places.slow, &tools.places.all].map(|it| it.available_permits())
        };
        eventually(|| free(&tools) == [0, 0, MAX_RUNNING - MAX_SLOW - MAX_UNSURE]).await;
        let (mut quick, mut slow) = (of(Pace::Quick), of(Pace::Slow));
        for _ in 0..3 {
            let outcome = probe(&args("echo fine"), Duration::from_secs(60), &tools, &mut quick).await;
            assert_eq!((outcome.status, outcome.output.trim()), (Status::Passing, "fine"));
        }
        let crowded = probe(&args("echo fine"), Duration::from_millis(50), &tools, &mut slow).await;
        assert_eq!(crowded.status, Status::Critical);
        assert!(crowded.output.contains("is not run: 16 scripts that take long run already"), "{crowded:?}");
        hanging.iter().for_each(JoinHandle::abort);
        eventually(|| tools.places.all.available_permits() == MAX_RUNNING).await;
        // Its turn has come, so it is known to be quick again.
        slow.turn_comes().await;
        let outcome = probe(&args("echo fine"), Duration::from_secs(60), &tools, &mut slow).await;
        assert!(outcome.status == Status::Passing && slow.pace == Pace::Quick, "{outcome:?}");
        eventually(|| free(&tools) == [MAX_UNSURE, MAX_SLOW, MAX_RUNNING]).await;
    }

    /// More hang than have places, again and again, and each waits for longer than this one before it says so.
    #[tokio::test]
    async fn a_script_that_never_ran_has_its_turn_however_many_hang() {
        let tools = Arc::new(Tools::new(Scripts::Files));
        let hanging = hang(MAX_RUNNING + MAX_UNSURE, SLOW_AFTER * 2, &tools);
        eventually(|| tools.places.unsure.available_permits() == 0).await;
        let mut new = Past::default();
        let crowded = probe(&args("echo fine"), Duration::from_millis(20), &tools, &mut new).await;
        assert!(crowded.output.contains("is not run: 8 scripts that are new or took long once"), "{crowded:?}");
        comes_to_its_turn(&mut new, &tools).await;
        // Soon all that hang are known to be slow, and so is this one.
        eventually(|| tools.places.slow.available_permits() == 0).await;
        comes_to_its_turn(&mut of(Pace::Slow), &tools).await;
        hanging.iter().for_each(JoinHandle::abort);
    }

    #[tokio::test]
    async fn a_new_script_that_proves_slow_leaves_its_place_to_other_new_ones() {
        let tools = Arc::new(Tools::new(Scripts::Files));
        let hanging = hang(MAX_UNSURE, Duration::from_secs(600), &tools);
        eventually(|| tools.places.unsure.available_permits() == 0).await;
        let outcome = probe(&args("echo fine"), Duration::from_secs(60), &tools, &mut Past::default()).await;
        assert_eq!(outcome.status, Status::Passing, "{outcome:?}");
        hanging.iter().for_each(JoinHandle::abort);
    }

    #[tokio::test]
    async fn one_that_takes_long_twice_is_known_to_be_slow_until_it_is_quick() {
        let (tools, mut past) = (Tools::new(Scripts::Files), of(Pace::Quick));
        for pace in [Pace::Unsure, Pace::Slow, Pace::Slow] {
            let outcome = probe(&args("exec sleep 1000"), SLOW_AFTER, &tools, &mut past).await;
            assert!(outcome.output.contains("Timed out") && past.pace == pace, "{outcome:?}");
        }
        probe(&args("echo fine"), Duration::from_secs(60), &tools, &mut past).await;
        assert_eq!(past.pace, Pace::Quick);
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
