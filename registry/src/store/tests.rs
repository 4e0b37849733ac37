//! The contract every engine passes, and what each layer around it promises.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use super::directory::{DataDirectory, DirectoryError};
use super::*;

fn open(path: &Path) -> RaftLogEngine {
    RaftLogEngine::open(&LogSettings::new(path.join("log")), None).unwrap()
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
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path());
    assert_eq!(engine.bounds(), LogBounds::default());
    engine.append((0..10).map(record).collect()).unwrap();
    assert_eq!(engine.read(3..5, usize::MAX).unwrap(), [record(3), record(4)]);
    assert_eq!(engine.read(3..9, 1).unwrap(), [record(3)], "at least one record, however small the limit");
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
    assert_eq!(engine.bounds(), bounds);
    drop(engine);
    let engine = open(folder.path());
    assert_eq!(engine.bounds(), bounds);
    assert_eq!(indexes(&engine), [3, 4, 5, 6, 7]);
    assert_eq!(engine.read(3..4, usize::MAX).unwrap(), [record(3)]);
}

#[test]
fn a_commit_beyond_the_log_is_left_to_the_snapshot() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path());
    engine.save_committed(at(1, 5)).unwrap();
    assert_eq!(engine.bounds().committed, None);
    engine.purge(at(1, 5)).unwrap();
    engine.append(vec![record(6)]).unwrap();
    assert_eq!(indexes(&engine), [6]);
}

/// At every acknowledgement the folder is copied before anything else may run, and the copy is opened after a torn
/// write was put behind its end. It shows that an acknowledged entry had been handed to the kernel whole, that a sync
/// had finished between its append and its acknowledgement, and that a torn tail hides nothing before it. It does not
/// show that the disk keeps what a sync reported: for that the block device itself has to be copied.
#[test]
fn every_acknowledged_entry_is_in_the_crash_image() {
    let folder = tempfile::tempdir().unwrap();
    let images = tempfile::tempdir().unwrap();
    let engine = Arc::new(open(folder.path()));
    let flusher = Flusher::start(Arc::clone(&engine) as Arc<dyn Engine>, no_fault()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (acknowledged, wait) = mpsc::channel();
    for index in 0..12 {
        let syncs_before = engine.sync_count();
        engine.append(vec![record(index)]).unwrap();
        let (from, to) = (folder.path().to_path_buf(), images.path().join(index.to_string()));
        let (engine, acknowledged) = (Arc::clone(&engine), acknowledged.clone());
        let completion: Completion = Box::new(move |result| {
            result.unwrap();
            copy_folder(&from, &to);
            acknowledged.send((to, engine.sync_count() > syncs_before)).unwrap();
        });
        runtime.block_on(flusher.enqueue(completion)).unwrap();
        let (image, synced) = wait.recv().unwrap();
        assert!(synced, "entry {index} was acknowledged without a sync");
        let log = image.join("log");
        let mut chunks: Vec<_> = fs::read_dir(&log).unwrap().map(|entry| entry.unwrap().path()).collect();
        chunks.retain(|path| path.to_string_lossy().ends_with(".wal"));
        chunks.sort();
        let chunk = chunks.last().unwrap();
        let mut content = fs::read(chunk).unwrap();
        match index % 3 {
            0 => {}
            // Old content of the disk's blocks. It cannot be told from damage: it may be refused, never served.
            1 => content.extend((0..120).map(|_| rand::random::<u8>())),
            // The length of the file was on disk, its blocks were not.
            _ => content.extend_from_slice(&[0; 777]),
        }
        fs::write(chunk, content).unwrap();
        match RaftLogEngine::open(&LogSettings::new(log), None) {
            Ok(reopened) => {
                let records = reopened.read(0..u64::MAX, usize::MAX).unwrap();
                assert_eq!(records, (0..=index).map(record).collect::<Vec<_>>());
            }
            Err(error) => assert_eq!((index % 3, error.kind()), (1, io::ErrorKind::InvalidData), "{error}"),
        }
    }
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
    let chunk = fs::read_dir(folder.path().join("log")).unwrap().map(|entry| entry.unwrap());
    let chunk = chunk.map(|entry| entry.file_name()).find(|name| name.to_string_lossy().ends_with(".wal")).unwrap();
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
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path());
    engine.append((0..3).map(record).collect()).unwrap();
    engine.flush().unwrap();
    for _ in 0..50 {
        let image = tempfile::tempdir().unwrap();
        copy_folder(folder.path(), image.path());
        let chunk = fs::read_dir(image.path().join("log")).unwrap().map(|entry| entry.unwrap().path());
        let chunk = chunk.into_iter().find(|path| path.to_string_lossy().ends_with(".wal")).unwrap();
        let mut content = fs::read(&chunk).unwrap();
        content.extend((0..rand::random_range(1..400)).map(|_| rand::random::<u8>()));
        fs::write(&chunk, content).unwrap();
        // Noise cannot be told from damage to what was acknowledged: refusing to start is right, inventing is not.
        if let Ok(engine) = RaftLogEngine::open(&LogSettings::new(image.path().join("log")), None) {
            assert_eq!(engine.read(0..u64::MAX, usize::MAX).unwrap(), (0..3).map(record).collect::<Vec<_>>());
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
    let first = DataDirectory::open(&path).unwrap();
    assert!(matches!(DataDirectory::open(&path), Err(DirectoryError::Locked(_))));
    let id = first.node_id();
    drop(first);
    assert_eq!(DataDirectory::open(&path).unwrap().node_id(), id);
    fs::write(path.join("FORMAT"), "muster registry data, format 99\n").unwrap();
    assert!(matches!(DataDirectory::open(&path), Err(DirectoryError::Format { .. })));

    let other = tempfile::tempdir().unwrap();
    fs::write(other.path().join("photo.jpg"), "x").unwrap();
    assert!(matches!(DataDirectory::open(other.path()), Err(DirectoryError::Foreign(_))));
    assert_ne!(DataDirectory::open(&folder.path().join("second")).unwrap().node_id(), id);
}
