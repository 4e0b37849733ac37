//! Log lines on their way out: a bounded queue and the thread that writes them.
//!
//! The other end of standard error is not ours: a disk that is full, a reader that has gone, one that stands still.
//! That costs lines, which are counted, and nothing else. Once lines pass again, one says how many are missing.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, Write},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// What waits to be written: the chatter of a busy second at `debug`, and little beside what an agent holds.
const QUEUE_BYTES: usize = 4 * 1024 * 1024;
/// Whoever logs an error waits so long for it to be written: it may be the last thing that the process says. A writer
/// that was not done in that time is not waited for again before it has written something.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// The pause where standard error takes nothing at present and says so instead of waiting.
const FULL_PAUSE: Duration = Duration::from_millis(20);

const DROPPED: &str = "muster_log_lines_dropped_total";

/// Shows the metrics before anything is counted.
pub(crate) fn declare_metrics() {
    metrics::counter!(DROPPED).increment(0);
}

/// The way to the writing thread. Clones lead to the same one.
#[derive(Clone)]
pub(crate) struct Lines(Arc<Shared>);

struct Shared {
    queue: Mutex<Queue>,
    /// A line has come.
    filled: Condvar,
    /// A line was written, or lost.
    passed: Condvar,
}

#[derive(Default)]
struct Queue {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Lines that were lost since the log last said so.
    dropped: u64,
    /// Lines taken in, and lines that are done with: the difference waits.
    taken: u64,
    done: u64,
    /// The writer kept somebody waiting for too long and has written nothing since.
    stalled: bool,
}

impl Lines {
    /// Starts the thread that writes to `out`. It ends with the process.
    pub(crate) fn start(out: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared { queue: Mutex::default(), filled: Condvar::new(), passed: Condvar::new() });
        let lines = Self(shared.clone());
        std::thread::Builder::new().name("log".into()).spawn(move || write_all(&shared, out))?;
        Ok(lines)
    }

    /// Waits until all that was logged so far is written or lost, at most so long; says whether it is.
    pub(crate) fn flush(&self, patience: Duration) -> bool {
        let queue = self.0.lock();
        let last = queue.taken;
        let (queue, _) = self.0.wait_for(queue, last, patience);
        queue.done >= last
    }

    fn push(&self, line: &[u8], urgent: bool) {
        let mut queue = self.0.lock();
        if queue.bytes + line.len() > QUEUE_BYTES {
            queue.dropped += 1;
            drop(queue);
            metrics::counter!(DROPPED).increment(1);
            return;
        }
        let line = as_one_line(line);
        queue.bytes += line.len();
        queue.lines.push_back(line);
        queue.taken += 1;
        self.0.filled.notify_one();
        if urgent && !queue.stalled {
            let last = queue.taken;
            let (mut queue, in_time) = self.0.wait_for(queue, last, LAST_WORDS);
            queue.stalled |= !in_time;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the line of this number is done with; says whether it is.
    fn wait_for<'a>(
        &self,
        queue: MutexGuard<'a, Queue>,
        number: u64,
        patience: Duration,
    ) -> (MutexGuard<'a, Queue>, bool) {
        let waited = self.passed.wait_timeout_while(queue, patience, |queue| queue.done < number);
        let (queue, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        (queue, !timeout.timed_out())
    }

    fn next(&self) -> Vec<u8> {
        let mut queue = self.lock();
        loop {
            if let Some(line) = queue.lines.pop_front() {
                queue.bytes -= line.len();
                return line;
            }
            queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes note of a line's fate; says how many were lost before the one that was written.
    fn settle(&self, written: bool) -> u64 {
        let mut queue = self.lock();
        queue.done += 1;
        self.passed.notify_all();
        if !written {
            queue.dropped += 1;
            return 0;
        }
        queue.stalled = false;
        std::mem::take(&mut queue.dropped)
    }
}

/// The line with control characters in it written out: what a checked service or a client says is part of it, and must
/// neither begin a line of its own nor steer a terminal.
fn as_one_line(line: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(line));
    let is_plain = |c: char| c == '\t' || !c.is_control();
    if text.chars().all(is_plain) {
        return line.to_vec();
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match is_plain(c) {
            true => safe.push(c),
            false => safe.extend(c.escape_default()),
        }
    }
    safe.push('\n');
    safe.into_bytes()
}

fn write_all(shared: &Shared, mut out: impl Write) {
    // Half a line stands at the end of what was written.
    let mut torn = false;
    loop {
        let line = shared.next();
        let written = write_line(&mut out, &line, &mut torn);
        let lost = shared.settle(written);
        if !written {
            metrics::counter!(DROPPED).increment(1);
        }
        if lost > 0 {
            tracing::warn!(lines = lost, "log lines are missing here: they could not be written, or not fast enough");
        }
    }
}

fn write_line(out: &mut impl Write, line: &[u8], torn: &mut bool) -> bool {
    if *torn {
        match write_part(out, b"\n") {
            1 => *torn = false,
            _ => return false,
        }
    }
    let written = write_part(out, line);
    *torn = written > 0 && written < line.len();
    written == line.len()
}

/// Writes as much as can be written, waiting for a reader that is slow; says how much that was.
fn write_part(out: &mut impl Write, bytes: &[u8]) -> usize {
    let mut written = 0;
    while written < bytes.len() {
        match out.write(&bytes[written..]) {
            Ok(0) => break,
            Ok(more) => written += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(FULL_PAUSE),
            Err(_) => break,
        }
    }
    written
}

/// Takes one whole line, as the subscriber writes it.
pub(crate) struct LineWriter<'a> {
    lines: &'a Lines,
    urgent: bool,
}

impl Write for LineWriter<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.lines.push(line, self.urgent);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = LineWriter<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        LineWriter { lines: self, urgent: false }
    }

    fn make_writer_for(&'a self, about: &Metadata<'_>) -> Self::Writer {
        LineWriter { lines: self, urgent: *about.level() == Level::ERROR }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// Standard error as a test sets it: whether it takes anything, and what it took.
    #[derive(Clone, Default)]
    struct Out(Arc<(Mutex<Taken>, Condvar)>);

    #[derive(Default)]
    struct Taken {
        closed: bool,
        fails: bool,
        bytes: Vec<u8>,
    }

    impl Out {
        fn set(&self, change: impl FnOnce(&mut Taken)) {
            change(&mut self.0.0.lock().unwrap());
            self.0.1.notify_all();
        }

        fn text(&self) -> String {
            String::from_utf8(self.0.0.lock().unwrap().bytes.clone()).unwrap()
        }
    }

    impl Write for Out {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut taken = self.0.1.wait_while(self.0.0.lock().unwrap(), |taken| taken.closed).unwrap();
            if taken.fails {
                return Err(io::Error::from(ErrorKind::StorageFull));
            }
            taken.bytes.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A log of its own for this thread, and where its lines go.
    fn log() -> (Lines, Out, tracing::subscriber::DefaultGuard) {
        let out = Out::default();
        let lines = Lines::start(out.clone()).unwrap();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(lines.clone()).finish();
        (lines, out, tracing::subscriber::set_default(subscriber))
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn what_was_said_by_others_begins_no_line_and_steers_no_terminal() {
        assert_eq!(as_one_line(b"INFO output=fine\tso far\n"), b"INFO output=fine\tso far\n");
        let forged = b"INFO output=fine\n2026-01-01 ERROR the disk is on fire \x1b[31m\xc2\x9b\n";
        let shown = br"INFO output=fine\n2026-01-01 ERROR the disk is on fire \u{1b}[31m\u{9b}";
        assert_eq!(as_one_line(forged), [&shown[..], b"\n"].concat());
    }

    #[test]
    fn a_reader_that_stands_still_holds_up_nobody_and_costs_what_does_not_fit() {
        let (lines, out, _guard) = log();
        out.set(|taken| taken.closed = true);
        let text = "x".repeat(64 * 1024);
        let most = QUEUE_BYTES / text.len();
        let started = Instant::now();
        for _ in 0..2 * most {
            tracing::info!("{text}");
        }
        for _ in 0..100 {
            tracing::error!("an error is waited for once, and not while nothing is written");
        }
        assert!(started.elapsed() < LONG, "logging waited for the reader: {:?}", started.elapsed());
        assert!(!lines.flush(Duration::from_millis(20)), "nothing can be written");
        let (dropped, bytes) = {
            let queue = lines.0.lock();
            (queue.dropped, queue.bytes)
        };
        assert!(dropped >= most as u64 - 1 && bytes <= QUEUE_BYTES, "{dropped} dropped, {bytes} bytes wait");
        out.set(|taken| taken.closed = false);
        assert!(lines.flush(LONG));
        let written = out.text().lines().count() as u64;
        assert_eq!(written + dropped, 2 * most as u64 + 100, "each line is written or counted");
    }

    #[test]
    fn a_full_disk_costs_the_lines_that_it_does_not_take_and_the_next_ones_are_written() {
        let (lines, out, _guard) = log();
        out.set(|taken| taken.fails = true);
        (0..3).for_each(|at| tracing::error!("lost {at}"));
        assert!(lines.flush(LONG));
        assert_eq!(lines.0.lock().dropped, 3);
        out.set(|taken| taken.fails = false);
        tracing::error!("it has room again");
        assert!(lines.flush(LONG));
        assert!(out.text().ends_with("it has room again\n") && !out.text().contains("lost"), "{}", out.text());
        assert_eq!(lines.0.lock().dropped, 0, "it was told");
    }

    #[test]
    fn an_error_is_written_when_the_call_returns() {
        let (_lines, out, _guard) = log();
        tracing::error!("the last words");
        assert!(out.text().contains("the last words"));
    }

    #[test]
    fn a_torn_line_is_not_joined_with_the_next() {
        struct Half(Vec<u8>, u8);
        impl Write for Half {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.1 += 1;
                match self.1 {
                    1 => {
                        self.0.extend_from_slice(&bytes[..2]);
                        Ok(2)
                    }
                    2 => Err(io::Error::from(ErrorKind::StorageFull)),
                    _ => {
                        self.0.extend_from_slice(bytes);
                        Ok(bytes.len())
                    }
                }
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (mut out, mut torn) = (Half(Vec::new(), 0), false);
        assert!(!write_line(&mut out, b"first\n", &mut torn));
        assert!(write_line(&mut out, b"second\n", &mut torn));
        assert_eq!(out.0, b"fi\nsecond\n");
    }
}
