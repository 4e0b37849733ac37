//! Group commit: one thread that flushes for everybody who wrote since its last flush.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;
use tracing::error;

use super::Engine;

/// Writes that may wait for one flush. Above it writers wait in turn, which is the back pressure of a slow disk.
const QUEUE_LENGTH: usize = 4096;

/// What to do once a write is on disk, or has failed to get there.
pub type Completion = Box<dyn FnOnce(io::Result<()>) + Send>;

/// What to do when the disk can no longer be trusted. In production it does not return.
pub type Fault = Arc<dyn Fn(&str) + Send + Sync>;

/// The production [`Fault`]: says why and ends the process. After a failed sync the kernel may have dropped the very
/// pages it failed to write, so nothing that this process still holds in memory can be acknowledged; the log is
/// read back from disk by the next start.
pub fn abort_on_fault() -> Fault {
    Arc::new(|why| {
        error!(
            why,
            "storage failed; ending the process so that nothing unwritten is acknowledged. Check the disk, unless the reason is another"
        );
        std::process::abort();
    })
}

/// Hands writes to the flushing thread. The thread ends when the last clone is gone.
#[derive(Clone)]
pub struct Flusher {
    queue: mpsc::Sender<Completion>,
}

impl Flusher {
    /// Starts the thread.
    pub fn start(engine: Arc<dyn Engine>, fault: Fault) -> io::Result<Self> {
        let (queue, waiting) = mpsc::channel(QUEUE_LENGTH);
        std::thread::Builder::new().name("registry-flush".into()).spawn(move || drain(&*engine, waiting, &fault))?;
        Ok(Self { queue })
    }

    /// Calls `completion` once everything written before this call is on disk, in the order of these calls.
    pub async fn enqueue(&self, completion: Completion) -> io::Result<()> {
        self.queue.send(completion).await.map_err(|_| io::Error::other("the flushing thread has stopped"))
    }
}

fn drain(engine: &dyn Engine, mut waiting: mpsc::Receiver<Completion>, fault: &Fault) {
    let mut batch = Vec::new();
    while let Some(first) = waiting.blocking_recv() {
        batch.push(first);
        // Bounded by the queue's length: what arrives during the flush belongs to the next one.
        while batch.len() < QUEUE_LENGTH
            && let Ok(next) = waiting.try_recv()
        {
            batch.push(next);
        }
        let began = Instant::now();
        match engine.flush() {
            Ok(()) => {
                metrics::histogram!("muster_registry_append_seconds").record(began.elapsed());
                metrics::counter!("muster_registry_appends_total").increment(batch.len() as u64);
                batch.drain(..).for_each(|completion| completion(Ok(())));
            }
            Err(error) => {
                fault(&format!("the log could not be flushed: {error}"));
                let again = || io::Error::new(error.kind(), error.to_string());
                batch.drain(..).for_each(|completion| completion(Err(again())));
                // What is on disk is unknown from here on: nothing later may be acknowledged.
                return;
            }
        }
    }
}
