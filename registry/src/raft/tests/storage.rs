//! openraft's own contract for storage, and snapshot files.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use openraft::StorageError;
use openraft::storage::RaftLogStorage;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;
use tokio::sync::watch;

use super::harness::List;
use crate::raft::apply::{Applier, SnapshotDue};
use crate::raft::log::Log;
use crate::raft::snapshot::SnapshotStore;
use crate::raft::{Consensus, ConsensusConfig, Machine, SnapshotMeta, Types, wire};
use crate::store::directory::DataDirectory;
use crate::store::{Ballot, DiskGuard, EngineKind, Fault, LogSettings, Position, Record};

struct OnDisk(EngineKind);

impl StoreBuilder<Types, Log, Applier<List>, TempDir> for OnDisk {
    async fn build(&self) -> Result<(TempDir, Log, Applier<List>), StorageError<Types>> {
        let folder = tempfile::tempdir().unwrap();
        let engine = self.0.open(&LogSettings::new(folder.path().join("log")), None).unwrap();
        let fault: Fault = Arc::new(|why| panic!("{why}"));
        let log = Log::new(engine, None, fault).unwrap();
        let snapshots = SnapshotStore::open(folder.path().join("snapshots"), DiskGuard::new(folder.path(), 0)).unwrap();
        let applier = Applier::new(List::default(), snapshots, watch::Sender::new(0), SnapshotDue::default());
        Ok((folder, log, applier))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_storage_passes_openrafts_suite() {
    for kind in EngineKind::ALL.into_iter().filter(|kind| kind.check_built().is_ok()) {
        Suite::<Types, Log, Applier<List>, OnDisk, TempDir>::test_all(OnDisk(kind)).await.unwrap();
    }
}

#[tokio::test]
async fn what_is_committed_is_not_cut_off_and_the_disk_is_not_blamed_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let engine = EngineKind::default().open(&LogSettings::new(folder.path().join("log")), None).unwrap();
    let at = |index| Position { term: 1, node: 1, index };
    let record = |index| Record { position: at(index), payload: Bytes::from_static(b"x") };
    engine.append((0..8).map(record).collect()).unwrap();
    engine.save_committed(at(5)).unwrap();
    let mut log = Log::new(engine.clone(), None, Arc::new(|why| panic!("{why}"))).unwrap();
    let why = log.truncate_after(Some(wire::log_id(at(4)))).await.unwrap_err().to_string();
    for part in ["entries up to 5", "disks of members went back", "keep its folder"] {
        assert!(why.contains(part), "{why}");
    }
    log.truncate_after(Some(wire::log_id(at(5)))).await.unwrap();
    assert_eq!(engine.bounds().last, Some(at(5)));
}

/// Of several files of a log one is not what it was.
#[tokio::test]
async fn a_file_of_the_log_that_is_gone_or_empty_is_named_with_the_folder_and_what_to_do() {
    type Harm = fn(&[PathBuf]) -> io::Result<()>;
    let harms: [(Harm, &str); 5] = [
        (|files| fs::remove_file(&files[0]), "the first entries of the log are gone"),
        (|files| files.iter().rev().skip(1).try_for_each(fs::remove_file), "the first entries of the log are gone"),
        (|files| fs::remove_file(&files[1]), "Gap between chunks"),
        (|files| fs::write(&files[0], ""), "empty are r-00_000_000_000_000_000_000.wal"),
        (|files| fs::write(&files[1], ""), "empty are r-00_000_"),
    ];
    for (harm, expected) in harms {
        let folder = tempfile::tempdir().unwrap();
        let directory = DataDirectory::open(folder.path(), EngineKind::RaftLog).unwrap();
        let settings = LogSettings { chunk_bytes: 4096, ..LogSettings::new(directory.log()) };
        let engine = EngineKind::RaftLog.open(&settings, Some(directory.lock())).unwrap();
        engine.save_vote(Ballot { term: 1, node: 1, committed: true }).unwrap();
        for index in 0..200 {
            let position = Position { term: 1, node: 1, index };
            engine.append(vec![Record { position, payload: vec![b'x'; 100].into() }]).unwrap();
        }
        engine.flush().unwrap();
        drop((engine, directory));
        let found = fs::read_dir(&settings.directory).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = found.filter(|path| path.extension().is_some_and(|kind| kind == "wal")).collect();
        files.sort();
        assert!(files.len() > 3, "{files:?}");
        harm(&files).unwrap();
        let config = ConsensusConfig::new("member", "127.0.0.1:1", folder.path());
        let said = Consensus::start(config, List::default()).await.err().map(|error| error.to_string());
        let said = said.expect("it starts");
        for part in [expected, &format!("{:?}", folder.path()), "to rejoin as a new member"] {
            assert!(said.contains(part), "no {part:?} in {said}");
        }
    }
}

#[test]
fn a_damaged_snapshot_is_refused_wherever_the_damage_is() {
    let folder = tempfile::tempdir().unwrap();
    let store = SnapshotStore::open(folder.path().into(), DiskGuard::new(folder.path(), 0)).unwrap();
    let list = List::default();
    list.entries.lock().unwrap().extend((0..500).map(|n| (n, n * n)));
    store.build(SnapshotMeta::default(), list.freeze()).unwrap();

    let reopened = SnapshotStore::open(folder.path().into(), DiskGuard::new(folder.path(), 0)).unwrap();
    let mut copy = List::default();
    reopened.current().unwrap().snapshot.read_body(|body| copy.install(body)).unwrap();
    assert_eq!(copy.entries(), list.entries());

    let path = folder.path().join("current");
    let whole = std::fs::read(&path).unwrap();
    for at in (0..whole.len()).step_by(whole.len() / 40) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        std::fs::write(&path, &damaged).unwrap();
        let error = SnapshotStore::open(folder.path().into(), DiskGuard::new(folder.path(), 0)).unwrap_err();
        assert!(matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof), "{at}: {error}");
        std::fs::write(&path, &whole[..at]).unwrap();
        assert!(SnapshotStore::open(folder.path().into(), DiskGuard::new(folder.path(), 0)).is_err(), "cut at {at}");
    }
}

#[test]
fn a_snapshot_that_does_not_fit_is_given_up_while_the_log_has_room_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let (last_log_id, last_membership) = Default::default();
    let meta = crate::raft::SnapshotMeta { last_log_id, last_membership };
    let store = SnapshotStore::open(folder.path().into(), DiskGuard::new(folder.path(), u64::MAX)).unwrap();
    let error = store.build(meta.clone(), Box::new(|to| to.write_all(b"state"))).unwrap_err();
    assert!(error.to_string().contains("make room"), "{error}");
    assert!(store.current().is_none() && std::fs::read_dir(folder.path()).unwrap().next().is_none());
    let store = SnapshotStore::open(folder.path().into(), DiskGuard::new(folder.path(), 0)).unwrap();
    store.build(meta, Box::new(|to| to.write_all(b"state"))).unwrap();
    assert!(store.current_bytes() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_lives_on_without_its_snapshots_and_starts_again() {
    use super::harness::{Cluster, write};
    let mut cluster = Cluster::new(1).await;
    cluster.snapshot_entries = 5;
    let nodes = cluster.start_all().await;
    write(&nodes, 0).await;
    // No file can be made in it, by root either.
    let snapshots = cluster.data_dir(0).join("snapshots");
    std::fs::remove_dir(&snapshots).unwrap();
    std::fs::write(&snapshots, b"").unwrap();
    for value in 1..20 {
        write(&nodes, value).await;
    }
    let node = nodes.into_iter().next().unwrap();
    assert_eq!(node.list.entries().len(), 20);
    node.stop().await;
    std::fs::remove_file(&snapshots).unwrap();
    let again = cluster.start(0).await;
    again.wait_applied(20).await;
    assert!(again.list.entries().len() >= 20);
}
