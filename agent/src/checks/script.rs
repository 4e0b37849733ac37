//! The script probe: exit 0 is good, 1 half good, all else bad. It runs in a process group of its own, which is killed
//! whole when its time is over or its check goes.

use std::{
    os::unix::process::ExitStatusExt,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use muster_catalog::{Status, Text};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
};

use super::{MAX_OUTPUT, Outcome, Tools};

/// All that a script finds in its environment: the agent's own may hold what is nobody's business.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How long a killed script may take to be gone; beyond it the runtime sees to it.
const GONE_WITHIN: Duration = Duration::from_secs(1);
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

/// Runs the program; done when it has ended and nothing holds its output open any more.
pub(super) async fn probe(args: &[Text], timeout: Duration, tools: &Tools) -> Outcome {
    let Some((program, arguments)) = args.split_first() else {
        return Outcome::critical("the script has no program");
    };
    if tools.scripts == Scripts::Off {
        let why = "scripts are off on this agent: set scripts = \"files\" under [checks] in its configuration";
        return Outcome::critical(&format!("script {program}: {why}"));
    }
    let Ok(_turn) = tools.script_turns.acquire().await else {
        return Outcome::critical("the agent is stopping");
    };
    let mut child = match start(program, arguments) {
        Ok(child) => child,
        Err(error) => return Outcome::critical(&format!("script {program} cannot be started: {error}")),
    };
    let leader = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    let mut group = Group(leader);
    let mut tail = Tail::default();
    match tokio::time::timeout(timeout, follow(&mut child, &mut tail)).await {
        Ok(Ok(status)) => {
            group.0 = None;
            judge(program, status, &tail.text())
        }
        Ok(Err(error)) => Outcome::critical(&format!("script {program}: {error}\n{}", tail.text())),
        Err(_) => {
            drop(group);
            // The next run must not meet this one.
            let _ = tokio::time::timeout(GONE_WITHIN, child.wait()).await;
            Outcome::critical(&format!("Timed out ({timeout:?}) running {program}, killed\n{}", tail.text()))
        }
    }
}

fn start(program: &str, arguments: &[Text]) -> std::io::Result<Child> {
    let arguments = arguments.iter().map(|argument| &**argument);
    let mut command = Command::new(program);
    command.args(arguments).env_clear().env("PATH", PATH).current_dir("/").process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn()
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
