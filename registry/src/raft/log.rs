//! openraft's log storage on any [`Engine`], with group commit.

use std::fmt::Debug;
use std::future::Future;
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{OptionalSend, RaftTypeConfig};
use tokio::sync::{Mutex, oneshot};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::network::MESSAGE_BYTES;
use super::{Ahead, Entry, LogId, MAX_PAYLOAD_BYTES, Types, Vote, wire};
use crate::store::directory::DirectoryError;
use crate::store::mark::LogMark;
use crate::store::watched::Watched;
use crate::store::{Engine, Fault, Flusher};

/// Most payload bytes of one append to a follower: far below the message limit, and short enough that one batch does
/// not hold up the next heartbeat on a slow link.
const READ_BYTES: usize = 1024 * 1024;
const _: () = assert!(READ_BYTES + MAX_PAYLOAD_BYTES < MESSAGE_BYTES, "a batch that ends with the largest entry fits");
/// Entries this close to the end are in the engine's cache; older ones may need the disk, which is no place for a
/// thread of the runtime.
const CACHED_TAIL: u64 = 4096;
/// How often what is committed is noted beside the log, where it moved: one more sync of the disk in a second, and an end
/// of the log that vanishes is noticed unless it is younger than this.
const MARK_INTERVAL: Duration = Duration::from_secs(1);
/// How long files have to be missed before the process ends: whoever stops it may be taking its folder away already.
const MISSED_FOR: Duration = Duration::from_millis(250);

/// The log of this member. Clones share it.
#[derive(Clone)]
pub(crate) struct Log {
    engine: Arc<dyn Engine>,
    flusher: Flusher,
    fault: Fault,
    mark: Arc<Mark>,
}

/// The mark beside the log, as it was last written.
#[derive(Default)]
struct Mark {
    /// `None` in a test of the log alone.
    folder: Option<PathBuf>,
    written: Mutex<Option<LogMark>>,
}

impl Log {
    /// A log on `engine`, with its mark in `folder`; `fault` is told when a flush fails, or files go.
    pub(crate) fn new(engine: Arc<dyn Engine>, folder: Option<PathBuf>, fault: Fault) -> io::Result<Self> {
        let flusher = Flusher::start(Arc::clone(&engine), Arc::clone(&fault))?;
        Ok(Self { engine, flusher, fault, mark: Arc::new(Mark { folder, written: Mutex::default() }) })
    }

    /// Flushes the log and notes beside it what it holds, where that changed.
    async fn flush_and_mark(&self) -> io::Result<()> {
        let mut written = self.mark.written.lock().await;
        let mark = LogMark::of(&self.engine.bounds());
        self.flushed().await?;
        let Some(folder) = self.mark.folder.clone().filter(|_| *written != Some(mark)) else { return Ok(()) };
        blocking(move || mark.write(&folder)).await?;
        *written = Some(mark);
        Ok(())
    }

    /// Keeps the mark near what is committed, until cancelled and once more then; and ends the process when the folder
    /// or the log's files are no more those that are open here.
    pub(crate) async fn keep_marked(self, stop: CancellationToken) {
        let Some(folder) = self.mark.folder.clone() else { return };
        let files = self.engine.files();
        let mut watched = match blocking(move || Watched::new(&folder, files)).await {
            Ok(watched) => watched,
            Err(error) => return (self.fault)(&format!("the log's files cannot be looked at: {error}")),
        };
        let mut ticks = interval(MARK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stopping = false;
        while !stopping {
            stopping = tokio::select! {
                () = stop.cancelled() => true,
                _ = ticks.tick() => false,
            };
            // Before anything is written at a path where another folder may lie.
            if !stopping && let Some(lost) = self.find_lost(&watched, &stop).await {
                return (self.fault)(&lost.to_string());
            }
            let now = LogMark::of(&self.engine.bounds());
            // Before the first vote there is nothing to lose, and the folder may be begun again.
            if self.engine.bounds().vote.is_none() || *self.mark.written.lock().await == Some(now) {
                continue;
            }
            let files = self.engine.files();
            let marked = match self.flush_and_mark().await {
                Ok(()) => {
                    let watched = watched.clone();
                    blocking(move || watched.with_files(files)).await
                }
                Err(error) => Err(error),
            };
            match marked {
                Ok(next) => watched = next,
                Err(error) => {
                    tracing::warn!(%error, "what the log holds was not noted beside it; it is tried again");
                }
            }
        }
    }

    /// What is not there any more of the files that are open here; `None` also when this member is being stopped.
    async fn find_lost(&self, watched: &Watched, stop: &CancellationToken) -> Option<DirectoryError> {
        let look = || async {
            let (engine, watched) = (Arc::clone(&self.engine), watched.clone());
            blocking(move || watched.check(|| engine.files())).await.unwrap_or_else(|error| {
                tracing::warn!(%error, "the log's files could not be looked at; it is tried again");
                Ok(())
            })
        };
        look().await.err()?;
        tokio::select! {
            () = stop.cancelled() => None,
            () = tokio::time::sleep(MISSED_FOR) => look().await.err(),
        }
    }

    /// Waits until everything written so far is on disk.
    async fn flushed(&self) -> io::Result<()> {
        let (done, wait) = oneshot::channel();
        self.flusher.enqueue(Box::new(move |result| drop(done.send(result)))).await?;
        wait.await.map_err(|_| io::Error::other("the flushing thread stopped before the write was on disk"))?
    }

    async fn read(&self, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<Entry>> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let last = self.engine.bounds().last.map_or(0, |last| last.index);
        let records = if range.start.saturating_add(CACHED_TAIL) >= last {
            self.engine.read(range, max_bytes)?
        } else {
            let engine = Arc::clone(&self.engine);
            blocking(move || engine.read(range, max_bytes)).await?
        };
        records.into_iter().map(|record| wire::record_from(record).map_err(io::Error::from)).collect()
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

fn range(bounds: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match bounds.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match bounds.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        bounds: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        self.read(range(&bounds), usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.read(start..end, READ_BYTES).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.engine.bounds().vote.map(wire::vote))
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let bounds = self.engine.bounds();
        Ok(LogState { last_purged_log_id: bounds.purged.map(wire::log_id), last_log_id: bounds.last.map(wire::log_id) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.engine.save_vote(wire::ballot(vote))?;
        self.flush_and_mark().await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        match committed {
            Some(committed) => self.engine.save_committed(wire::position(&committed)),
            None => Ok(()),
        }
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.engine.bounds().committed.map(wire::log_id))
    }

    fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<Types>,
    ) -> impl Future<Output = Result<(), io::Error>> + Send
    where
        I: IntoIterator<Item = <Types as RaftTypeConfig>::Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        // Encoded here, so that the iterator need not live across an await. Readable once this line is done.
        let appended = self.engine.append(entries.into_iter().map(|entry| wire::record_to(&entry)).collect());
        async move {
            appended?;
            self.flusher.enqueue(Box::new(move |result| callback.io_completed(result))).await
        }
    }

    async fn truncate_after(&mut self, keep: Option<LogId>) -> Result<(), io::Error> {
        // Need not be durable now: the next append's flush covers it, and until then the old tail was never
        // acknowledged to this leader.
        let keep = keep.as_ref().map(wire::position);
        if let Some(committed) = self.engine.bounds().committed.filter(|committed| keep < Some(*committed)) {
            return Err(io::Error::other(Ahead { committed: committed.index }));
        }
        self.engine.truncate_after(keep)
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        self.engine.purge(wire::position(&upto))?;
        // The files go away after a flush; nobody waits for it.
        self.flusher.enqueue(Box::new(|_| ())).await
    }
}
