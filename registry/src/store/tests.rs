//! The contract every engine passes, and what each layer around it promises.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use super::directory::{DataDirectory, DirectoryError};
use super::watched::Watched;
use super::*;

fn open(path: &Path) -> RaftLogEngine {
    RaftLogEngine::open(&LogSettings::new(path.join("log")), None).unwrap()
}

/// The engines of this build.
fn kinds() -> impl Iterator<Item = EngineKind> {
    EngineKind::ALL.into_iter().filter(|kind| kind.check_built().is_ok())
}

fn open_as(kind: EngineKind, path: &Path) -> Arc<dyn Engine> {
    kind.open(&LogSettings::new(path.join("log")), None).unwrap()
}

/// An engine and how often it has synced.
fn open_counting(kind: EngineKind, path: &Path) -> (Arc<dyn Engine>, Box<dyn Fn() -> u64 + Send + Sync>) {
    let settings = LogSettings::new(path.join("log"));
    match kind {
        EngineKind::RaftLog => {
            let engine = Arc::new(RaftLogEngine::open(&settings, None).unwrap());
            (engine.clone(), Box::new(move || engine.sync_count()))
        }
        #[cfg(feature = "sled")]
        EngineKind::Sled => {
            let engine = Arc::new(SledEngine::open(&settings, None).unwrap());
            (engine.clone(), Box::new(move || engine.sync_count()))
        }
        #[cfg(not(feature = "sled"))]
        EngineKind::Sled => panic!("{}", NotBuilt(kind)),
    }
}

fn at(term: u64, index: u64) -> Position {
    Position { term, node: 7, index }
}

fn record(index: u64) -> Record {
    Record { position: at(1, index), payload: Bytes::from(format!("entry {index} {}", "x".repeat(200))) }
}

fn indexes(engine: &dyn Engine) -> Vec<u64> {
    engine.read(0..u64::MAX, usize::MAX).unwrap().iter().map(|record| record.position.index).collect()
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn what_is_written_is_read_truncated_purged_and_reopened() {
    for kind in kinds() {
        let folder = tempfile::tempdir().unwrap();
        let engine = open_as(kind, folder.path());
        assert_eq!(engine.bounds(), LogBounds::default());
        engine.append((0..10).map(record).collect()).unwrap();
        assert_eq!(engine.read(3..5, usize::MAX).unwrap(), [record(3), record(4)]);
        assert_eq!(engine.read(3..9, 1).unwrap(), [record(3)], "at least one record, however small the limit");
        assert_eq!(engine.read(5..5, usize::MAX).unwrap(), []);
        engine.save_vote(Ballot { term: 2, node: 9, committed: true }).unwrap();
        engine.truncate_after(Some(at(1, 7))).unwrap();
        engine.save_committed(at(1, 5)).unwrap();
        engine.purge(at(1, 2)).unwrap();
        engine.flush().unwrap();
        let bounds = LogBounds {
            vote: Some(Ballot { term: 2, node: 9, committed: true }),
            committed: Some(at(1, 5)),
            purged: Some(at(1, 2)),
            last: Some(at(1, 7)),
        };
        assert_eq!(engine.bounds(), bounds, "{kind}");
        drop(engine);
        let engine = open_as(kind, folder.path());
        assert_eq!(engine.bounds(), bounds, "{kind}");
        assert_eq!(indexes(&*engine), [3, 4, 5, 6, 7]);
        assert_eq!(engine.read(3..4, usize::MAX).unwrap(), [record(3)]);
        assert!(engine.truncate_after(Some(at(1, 4))).is_err(), "{kind}: 5 is committed");
        engine.truncate_after(Some(at(1, 5))).unwrap();
        engine.append(vec![record(6)]).unwrap();
        assert_eq!(indexes(&*engine), [3, 4, 5, 6], "{kind}");
    }
}

/// Files come and go with the log's own doing, and nothing of that is missed.
#[test]
fn a_log_that_begins_and_removes_files_is_missed_nowhere_and_one_that_is_deleted_is() {
    for kind in kinds() {
        let folder = tempfile::tempdir().unwrap();
        let settings = LogSettings { chunk_bytes: 4096, ..LogSettings::new(folder.path().join("log")) };
        let engine = kind.open(&settings, None).unwrap();
        let mut watched = Watched::new(folder.path(), engine.files()).unwrap();
        for round in 0..60 {
            engine.append((round * 10..round * 10 + 10).map(record).collect()).unwrap();
            let files = engine.files();
            engine.flush().unwrap();
            if let Some(upto) = (round * 10).checked_sub(50) {
                engine.purge(at(1, upto)).unwrap();
            }
            watched.check(|| engine.files()).unwrap().unwrap_or_else(|error| panic!("{kind}, round {round}: {error}"));
            watched = watched.with_files(files).unwrap();
        }
        fs::remove_file(newest_file(kind, &settings.directory)).unwrap();
        let said = watched.check(|| engine.files()).unwrap().unwrap_err().to_string();
        assert!(said.contains("was deleted"), "{kind}: {said}");
    }
}

#[test]
fn an_entry_that_does_not_follow_the_last_is_refused() {
    for kind in kinds() {
        let folder = tempfile::tempdir().unwrap();
        let engine = open_as(kind, folder.path());
        engine.append(vec![record(0)]).unwrap();
        assert!(engine.append(vec![record(2)]).is_err(), "{kind}");
        engine.append(vec![record(1)]).unwrap();
        assert_eq!(indexes(&*engine), [0, 1]);
    }
}

#[test]
fn a_commit_beyond_the_log_is_left_to_the_snapshot() {
    for kind in kinds() {
        let folder = tempfile::tempdir().unwrap();
        let engine = open_as(kind, folder.path());
        engine.save_committed(at(1, 5)).unwrap();
        assert_eq!(engine.bounds().committed, None);
        engine.append((0..3).map(record).collect()).unwrap();
        engine.purge(at(1, 5)).unwrap();
        engine.append(vec![record(6)]).unwrap();
        assert_eq!(indexes(&*engine), [6], "{kind}");
        engine.flush().unwrap();
        drop(engine);
        let engine = open_as(kind, folder.path());
        assert_eq!((engine.bounds().purged, indexes(&*engine)), (Some(at(1, 5)), vec![6]), "{kind}");
    }
}

/// `sled` alone writes large entries to files beside its log.
#[test]
fn the_largest_entries_are_kept_too() {
    for kind in kinds() {
        let folder = tempfile::tempdir().unwrap();
        let large = |index| Record { position: at(1, index), payload: vec![index as u8; 1024 * 1024].into() };
        let engine = open_as(kind, folder.path());
        for index in 0..20 {
            engine.append(vec![large(index)]).unwrap();
            engine.flush().unwrap();
        }
        engine.purge(at(1, 9)).unwrap();
        engine.flush().unwrap();
        drop(engine);
        let engine = open_as(kind, folder.path());
        assert_eq!(engine.read(0..u64::MAX, usize::MAX).unwrap(), (10..20).map(large).collect::<Vec<_>>(), "{kind}");
    }
}

/// At every acknowledgement the folder is copied before anything else may run, and the copy is opened after a torn
/// write was put behind its end. It shows that an acknowledged entry had been handed to the kernel whole, that a sync
/// had finished between its append and its acknowledgement, and that a torn tail hides nothing before it. It does not
/// show that the disk keeps what a sync reported: for that the block device itself has to be copied.
#[test]
fn every_acknowledged_entry_is_in_the_crash_image() {
    for kind in kinds() {
        let folder = tempfile::tempdir().unwrap();
        let images = tempfile::tempdir().unwrap();
        let (engine, syncs) = open_counting(kind, folder.path());
        let syncs: Arc<dyn Fn() -> u64 + Send + Sync> = syncs.into();
        let flusher = Flusher::start(Arc::clone(&engine), no_fault()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (acknowledged, wait) = mpsc::channel();
        for index in 0..12 {
            let syncs_before = syncs();
            engine.append(vec![record(index)]).unwrap();
            let (from, to) = (folder.path().to_path_buf(), images.path().join(index.to_string()));
            let (syncs, acknowledged) = (Arc::clone(&syncs), acknowledged.clone());
            let completion: Completion = Box::new(move |result| {
                result.unwrap();
                copy_folder(&from, &to);
                acknowledged.send((to, syncs() > syncs_before)).unwrap();
            });
            runtime.block_on(flusher.enqueue(completion)).unwrap();
            let (image, synced) = wait.recv().unwrap();
            assert!(synced, "{kind}: entry {index} was acknowledged without a sync");
            check_torn(kind, &image.join("log"), index);
        }
    }
}

fn check_torn(kind: EngineKind, log: &Path, index: u64) {
    let end = newest_file(kind, log);
    let mut content = fs::read(&end).unwrap();
    match index % 3 {
        0 => {}
        // Old content of the disk's blocks. It cannot be told from damage: it may be refused, never served.
        1 => content.extend((0..120).map(|_| rand::random::<u8>())),
        // The length of the file was on disk, its blocks were not.
        _ => content.extend_from_slice(&[0; 777]),
    }
    fs::write(end, content).unwrap();
    match kind.open(&LogSettings::new(log.to_path_buf()), None) {
        Ok(reopened) => {
            let records = reopened.read(0..u64::MAX, usize::MAX).unwrap();
            assert_eq!(records, (0..=index).map(record).collect::<Vec<_>>(), "{kind}");
        }
        Err(error) => assert_eq!((index % 3, error.kind()), (1, io::ErrorKind::InvalidData), "{kind}: {error}"),
    }
}

/// The file that an append makes longer.
fn newest_file(kind: EngineKind, log: &Path) -> std::path::PathBuf {
    let mut files: Vec<_> = fs::read_dir(log).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| match kind {
        EngineKind::RaftLog => path.to_string_lossy().ends_with(".wal"),
        EngineKind::Sled => path.ends_with("db"),
    });
    files.into_iter().max().unwrap()
}

#[test]
fn a_half_written_record_is_cut_off_at_every_length() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path());
    engine.append((0..3).map(record).collect()).unwrap();
    engine.flush().unwrap();
    let whole = tempfile::tempdir().unwrap();
    copy_folder(folder.path(), whole.path());
    engine.append(vec![record(3)]).unwrap();
    engine.flush().unwrap();
    let chunk = newest_file(EngineKind::RaftLog, &folder.path().join("log")).file_name().unwrap().to_owned();
    let before = fs::read(whole.path().join("log").join(&chunk)).unwrap().len();
    let after = fs::read(folder.path().join("log").join(&chunk)).unwrap();
    for length in (before + 1..after.len()).step_by(7) {
        let torn = tempfile::tempdir().unwrap();
        copy_folder(whole.path(), torn.path());
        fs::write(torn.path().join("log").join(&chunk), &after[..length]).unwrap();
        assert_eq!(indexes(&open(torn.path())), [0, 1, 2], "cut at {length}");
    }
}

#[test]
fn garbage_behind_the_log_is_never_served() {
    for kind in kinds() {
        let folder = tempfile::tempdir().unwrap();
        let engine = open_as(kind, folder.path());
        engine.append((0..3).map(record).collect()).unwrap();
        engine.flush().unwrap();
        for _ in 0..50 {
            let image = tempfile::tempdir().unwrap();
            copy_folder(folder.path(), image.path());
            let end = newest_file(kind, &image.path().join("log"));
            let mut content = fs::read(&end).unwrap();
            content.extend((0..rand::random_range(1..400)).map(|_| rand::random::<u8>()));
            fs::write(&end, content).unwrap();
            // Noise cannot be told from damage to what was acknowledged: refusing to start is right, inventing is not.
            if let Ok(engine) = kind.open(&LogSettings::new(image.path().join("log")), None) {
                let records = engine.read(0..u64::MAX, usize::MAX).unwrap();
                assert_eq!(records, (0..3).map(record).collect::<Vec<_>>(), "{kind}");
            }
        }
    }
}

fn no_fault() -> Fault {
    Arc::new(|why| panic!("unexpected fault: {why}"))
}

/// An engine whose flush waits for the test, and may fail.
#[derive(Default)]
struct Slow {
    gate: Mutex<Option<mpsc::Receiver<io::Result<()>>>>,
    flushes: AtomicU64,
}

impl Engine for Slow {
    fn bounds(&self) -> LogBounds {
        LogBounds::default()
    }
    fn append(&self, _: Vec<Record>) -> io::Result<()> {
        Ok(())
    }
    fn read(&self, _: Range<u64>, _: usize) -> io::Result<Vec<Record>> {
        Ok(Vec::new())
    }
    fn truncate_after(&self, _: Option<Position>) -> io::Result<()> {
        Ok(())
    }
    fn purge(&self, _: Position) -> io::Result<()> {
        Ok(())
    }
    fn save_vote(&self, _: Ballot) -> io::Result<()> {
        Ok(())
    }
    fn save_committed(&self, _: Position) -> io::Result<()> {
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        self.gate.lock().unwrap().as_ref().unwrap().recv().unwrap()
    }
    fn files(&self) -> Vec<LogFile> {
        Vec::new()
    }
}

#[tokio::test]
async fn writers_that_come_during_a_flush_share_the_next_one_in_order() {
    let (gate, waiting) = mpsc::channel();
    let engine = Arc::new(Slow { gate: Mutex::new(Some(waiting)), flushes: AtomicU64::new(0) });
    let flusher = Flusher::start(Arc::clone(&engine) as Arc<dyn Engine>, no_fault()).unwrap();
    let (done, mut finished) = tokio::sync::mpsc::unbounded_channel();
    let enqueue = |number: u64| {
        let done = done.clone();
        flusher.enqueue(Box::new(move |result| done.send((number, result.is_ok())).unwrap()))
    };
    enqueue(0).await.unwrap();
    gate.send(Ok(())).unwrap();
    assert_eq!(finished.recv().await, Some((0, true)));
    let before = engine.flushes.load(Ordering::SeqCst);
    for number in 1..=64 {
        enqueue(number).await.unwrap();
    }
    // The first of them may already be in a flush of its own; all others share one.
    gate.send(Ok(())).unwrap();
    gate.send(Ok(())).unwrap();
    for number in 1..=64 {
        assert_eq!(finished.recv().await, Some((number, true)));
        if number == 64 {
            let _ = gate.send(Ok(()));
        }
    }
    assert!(engine.flushes.load(Ordering::SeqCst) - before <= 3);
}

#[tokio::test]
async fn a_failed_flush_is_a_fault_and_nothing_is_acknowledged_after_it() {
    let (gate, waiting) = mpsc::channel();
    let engine = Arc::new(Slow { gate: Mutex::new(Some(waiting)), flushes: AtomicU64::new(0) });
    let (said, heard) = mpsc::channel();
    let fault: Fault = Arc::new(move |why| said.send(why.to_owned()).unwrap());
    let flusher = Flusher::start(engine, fault).unwrap();
    let (done, finished) = tokio::sync::oneshot::channel();
    flusher.enqueue(Box::new(move |result| drop(done.send(result)))).await.unwrap();
    gate.send(Err(io::Error::other("the disk is gone"))).unwrap();
    assert!(finished.await.unwrap().is_err());
    assert!(heard.recv().unwrap().contains("the disk is gone"));
    let (done, finished) = tokio::sync::oneshot::channel();
    // Refused, or taken and dropped unanswered, as the thread ends: never completed.
    let _ = flusher.enqueue(Box::new(move |result| drop(done.send(result)))).await;
    assert!(finished.await.is_err());
}

#[test]
fn a_data_folder_is_ours_alone_and_keeps_its_node_id() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data");
    let first = DataDirectory::open(&path, EngineKind::RaftLog).unwrap();
    assert!(matches!(DataDirectory::open(&path, EngineKind::RaftLog), Err(DirectoryError::Locked(_))));
    let id = first.node_id();
    drop(first);
    assert_eq!(DataDirectory::open(&path, EngineKind::RaftLog).unwrap().node_id(), id);
    fs::write(path.join("FORMAT"), "muster registry data, format 99\n").unwrap();
    assert!(matches!(DataDirectory::open(&path, EngineKind::RaftLog), Err(DirectoryError::Format { .. })));

    let other = tempfile::tempdir().unwrap();
    fs::write(other.path().join("photo.jpg"), "x").unwrap();
    assert!(matches!(DataDirectory::open(other.path(), EngineKind::RaftLog), Err(DirectoryError::Foreign(_))));
    assert_ne!(DataDirectory::open(&folder.path().join("second"), EngineKind::Sled).unwrap().node_id(), id);
}

#[test]
fn a_data_folder_stays_with_the_engine_that_began_it() {
    let folder = tempfile::tempdir().unwrap();
    for (began, other) in [(EngineKind::RaftLog, EngineKind::Sled), (EngineKind::Sled, EngineKind::RaftLog)] {
        let path = folder.path().join(began.name());
        drop(DataDirectory::open(&path, began).unwrap());
        let refused = DataDirectory::open(&path, other).unwrap_err();
        assert!(matches!(refused, DirectoryError::OtherEngine { .. }));
        let said = refused.to_string();
        let expected = format!("was written by the log engine {began}, and `log_engine` names {other}");
        assert!(said.contains(&expected), "{said}");
        drop(DataDirectory::open(&path, began).unwrap());
    }
}
