//! What a power loss leaves of the log, on a real file system.
//!
//! An engine works on ext4 on a block device that is a file. The moment it acknowledges, that file is copied: it holds
//! what the device was given, and nothing of what the kernel still has in memory. The copy is mounted, which replays
//! the journal as the next boot would, and opened: everything acknowledged must be there. The device has no cache of
//! its own here, so a missing flush *of the device* would go unseen; a missing sync of file, length or folder does not.
//!
//! That takes the right to mount. A test runs itself again in a mount namespace of its own, which takes the mounts
//! along when it ends, however it ends; without the right it says that it passed itself over.
#![allow(clippy::unwrap_used)]
#![allow(clippy::print_stdout, reason = "how much was tested, and what was passed over")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, mpsc};
use std::{env, fs, io, ops::Range};

use bytes::Bytes;
use muster_registry::store::directory::DataDirectory;
use muster_registry::store::{
    Ballot, Engine, EngineKind, Fault, Flusher, LogBounds, LogFile, LogSettings, Position, Record,
};
use tempfile::TempDir;

/// Set for the run inside the namespace.
const INSIDE: &str = "MUSTER_TEST_OWN_MOUNTS";
/// The right to mount, as a bit of the effective capabilities.
const CAP_SYS_ADMIN: u32 = 21;

/// Runs `body` where it may mount, or says why it cannot.
fn with_own_mounts(test: &str, body: impl FnOnce()) {
    if env::var_os(INSIDE).is_some() {
        return body();
    }
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let rights = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap().trim();
    let may_mount = u64::from_str_radix(rights, 16).unwrap() >> CAP_SYS_ADMIN & 1 == 1;
    if !may_mount || !Path::new("/dev/loop-control").exists() {
        println!("{test}: passed over, it needs the right to mount and loop devices");
        return;
    }
    let inside = |program: &str, arguments: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", program]).args(arguments).env(INSIDE, "1");
        command.output()
    };
    // The same steps as below, without us: what fails here is the machine's doing.
    let probe = "d=$(mktemp -d) && cd $d && truncate -s 16M i && PATH=$PATH:/sbin:/usr/sbin && mkfs.ext4 -q -F i \
                 && mkdir m && mount -o loop i m && umount m && cd / && rm -r $d";
    let probed = inside("sh", &["-c", probe]);
    if !probed.as_ref().is_ok_and(|output| output.status.success()) {
        assert!(env::var_os("CI").is_none(), "{test}: unshare, mkfs.ext4 and loop mounts should work here: {probed:?}");
        println!("{test}: passed over, unshare, mkfs.ext4 or loop mounts do not work here");
        return;
    }
    let exe = env::current_exe().unwrap();
    let output = inside(exe.to_str().unwrap(), &["--exact", test, "--nocapture"]).unwrap();
    let (said, why) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("1 passed"), "{said}\n{why}");
    print!("{said}");
}

fn run(program: &str, arguments: &[&str]) {
    let path = format!("{}:/sbin:/usr/sbin", env::var("PATH").unwrap_or_default());
    let output = Command::new(program).args(arguments).env("PATH", path).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A mounted file system on a device that is a file.
struct Disk {
    folder: TempDir,
}

impl Disk {
    fn new(megabytes: u32) -> Self {
        let disk = Self::folder();
        let image = disk.image();
        fs::File::create(&image).unwrap().set_len(u64::from(megabytes) * 1024 * 1024).unwrap();
        run("mkfs.ext4", &["-q", "-F", image.to_str().unwrap()]);
        disk.mount();
        disk
    }

    fn folder() -> Self {
        // In memory where there is such a place: copies are many.
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        fs::create_dir(folder.path().join("root")).unwrap();
        Self { folder }
    }

    fn mount(&self) {
        // The journal is written when somebody syncs, not by the clock: the test is to see who does.
        run("mount", &["-o", "loop,commit=300", self.image().to_str().unwrap(), self.root().to_str().unwrap()]);
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    /// What the next boot would find if the power went now.
    fn after_power_loss(&self) -> Self {
        let copy = Self::folder();
        let (from, to) = (self.image(), copy.image());
        // A copy that is equal after it was made is the device at that moment, and not a mixture of two.
        loop {
            run("cp", &["--sparse=always", from.to_str().unwrap(), to.to_str().unwrap()]);
            if Command::new("cmp").arg("--silent").args([&from, &to]).status().unwrap().success() {
                break;
            }
        }
        copy.mount();
        copy
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a log's own threads may still be closing their files.
        let _ = Command::new("umount").arg("--lazy").arg(self.root()).status();
    }
}

fn kinds() -> impl Iterator<Item = EngineKind> {
    EngineKind::ALL.into_iter().filter(|kind| kind.check_built().is_ok())
}

/// What the log should hold.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    records: Vec<Record>,
    vote: Option<Ballot>,
    purged: Option<Position>,
}

impl Model {
    /// One turn of a member's life, on the engine and here: entries of all sizes, now and then a vote, a truncation
    /// that is written over, a purge.
    fn step(&mut self, engine: &dyn Engine, step: u64) {
        let term = step / 5 + 1;
        if step.is_multiple_of(5) {
            self.vote = Some(Ballot { term, node: 7, committed: step.is_multiple_of(2) });
            engine.save_vote(self.vote.unwrap()).unwrap();
        }
        if step % 7 == 6 {
            let keep = self.records[self.records.len() - 2].position;
            engine.truncate_after(Some(keep)).unwrap();
            self.records.pop();
        }
        let first = self.records.last().map_or(0, |record| record.position.index + 1);
        let large = if step % 6 == 5 { 200_000 } else { 0 };
        let entry = |index: u64| Record {
            position: Position { term, node: 7, index },
            payload: Bytes::from(vec![(index + term) as u8; 100 + (index as usize % 7) * 300 + large]),
        };
        let added: Vec<Record> = (first..first + 1 + step * 3 % 17).map(entry).collect();
        engine.append(added.clone()).unwrap();
        self.records.extend(added);
        if step % 4 == 3 {
            let upto = self.records[self.records.len() / 2].position;
            engine.save_committed(upto).unwrap();
            engine.purge(upto).unwrap();
            self.purged = Some(upto);
            self.records.retain(|record| record.position.index > upto.index);
        }
    }

    fn found(engine: &dyn Engine) -> Self {
        let LogBounds { vote, purged, last, .. } = engine.bounds();
        let records = engine.read(0..u64::MAX, usize::MAX).unwrap();
        assert_eq!(last, records.last().map(|record| record.position).or(purged));
        Self { records, vote, purged }
    }
}

struct Member {
    node_id: u64,
    engine: Arc<dyn Engine>,
    flusher: Flusher,
}

impl Member {
    fn start(disk: &Disk, kind: EngineKind, careless: bool) -> io::Result<Self> {
        let directory = DataDirectory::open(&disk.root().join("registry"), kind).map_err(io::Error::other)?;
        let mut settings = LogSettings::new(directory.log());
        // So small that files begin and end all the time.
        settings.chunk_bytes = 16 * 1024;
        let mut engine = kind.open(&settings, Some(directory.lock()))?;
        if careless {
            engine = Arc::new(Careless(engine));
        }
        let fault: Fault = Arc::new(|why| eprintln!("fault: {why}"));
        let flusher = Flusher::start(Arc::clone(&engine), fault)?;
        Ok(Self { node_id: directory.node_id(), engine, flusher })
    }

    /// Returns when everything written so far is acknowledged.
    fn acknowledged(&self) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (done, wait) = mpsc::channel();
        runtime.block_on(self.flusher.enqueue(Box::new(move |result| done.send(result).unwrap())))?;
        wait.recv().map_err(|_| io::Error::other("never completed"))?
    }
}

/// What the next life finds after a power loss now.
fn find_after_power_loss(disk: &Disk, kind: EngineKind, node_id: u64) -> Result<Model, String> {
    let image = disk.after_power_loss();
    let member = Member::start(&image, kind, false).map_err(|error| error.to_string())?;
    if member.node_id != node_id {
        return Err(format!("it calls itself {} and no longer {node_id}", member.node_id));
    }
    Ok(Model::found(&*member.engine))
}

#[test]
fn what_was_acknowledged_is_on_the_device() {
    with_own_mounts("what_was_acknowledged_is_on_the_device", || {
        for kind in kinds() {
            let disk = Disk::new(64);
            let member = Member::start(&disk, kind, false).unwrap();
            let mut model = Model::default();
            for step in 0..32 {
                let before = model.clone();
                model.step(&*member.engine, step);
                if step % 3 == 2 {
                    // The power goes before the acknowledgement: any part of the new may be there, all of the old is.
                    // Somebody else's sync brings the journal to disk, with every name and length that it knows of.
                    fs::File::create(disk.root().join("other")).unwrap().sync_all().unwrap();
                    let found = find_after_power_loss(&disk, kind, member.node_id);
                    let found = found.unwrap_or_else(|why| panic!("{kind}, before acknowledging step {step}: {why}"));
                    let kept = before.records.iter().filter(|record| model.records.contains(record));
                    kept.for_each(|record| assert!(found.records.contains(record), "{kind}: {:?}", record.position));
                    let known = |record| before.records.contains(record) || model.records.contains(record);
                    assert!(found.records.iter().all(known), "{kind}: entries nobody wrote, step {step}");
                    assert!(found.vote >= before.vote, "{kind}: vote {:?} lost, step {step}", before.vote);
                }
                member.acknowledged().unwrap();
                let found = find_after_power_loss(&disk, kind, member.node_id);
                let found = found.unwrap_or_else(|why| panic!("{kind}, after step {step}: {why}"));
                assert_eq!(found, model, "{kind}: acknowledged in step {step} and lost");
            }
        }
    });
}

/// An engine that acknowledges what is not on disk.
struct Careless(Arc<dyn Engine>);

impl Engine for Careless {
    fn bounds(&self) -> LogBounds {
        self.0.bounds()
    }
    fn append(&self, records: Vec<Record>) -> io::Result<()> {
        self.0.append(records)
    }
    fn read(&self, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<Record>> {
        self.0.read(range, max_bytes)
    }
    fn truncate_after(&self, keep: Option<Position>) -> io::Result<()> {
        self.0.truncate_after(keep)
    }
    fn purge(&self, upto: Position) -> io::Result<()> {
        self.0.purge(upto)
    }
    fn save_vote(&self, vote: Ballot) -> io::Result<()> {
        self.0.save_vote(vote)
    }
    fn save_committed(&self, committed: Position) -> io::Result<()> {
        self.0.save_committed(committed)
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn files(&self) -> Vec<LogFile> {
        self.0.files()
    }
}

/// The test of the test: a lost acknowledgement is seen.
#[test]
fn an_engine_that_does_not_sync_is_found_out() {
    with_own_mounts("an_engine_that_does_not_sync_is_found_out", || {
        for kind in kinds() {
            let disk = Disk::new(64);
            let member = Member::start(&disk, kind, true).unwrap();
            let mut model = Model::default();
            model.step(&*member.engine, 1);
            member.acknowledged().unwrap();
            assert_ne!(find_after_power_loss(&disk, kind, member.node_id), Ok(model), "{kind}");
        }
    });
}

#[test]
fn a_full_disk_is_an_error_and_loses_nothing_acknowledged() {
    with_own_mounts("a_full_disk_is_an_error_and_loses_nothing_acknowledged", || {
        for kind in kinds() {
            let disk = Disk::new(24);
            let ballast = Path::new("ballast");
            fs::write(disk.root().join(ballast), vec![1; 4 * 1024 * 1024]).unwrap();
            run("sync", &["--file-system", disk.root().to_str().unwrap()]);
            let member = Member::start(&disk, kind, false).unwrap();
            let entry = |index: u64| Record {
                position: Position { term: 1, node: 7, index },
                payload: vec![index as u8; 40_000].into(),
            };
            let write = |index| member.engine.append(vec![entry(index)]).and_then(|()| member.acknowledged());
            let refused = (0..).find_map(|index| write(index).err().map(|error| (index, error)));
            let (count, error) = refused.unwrap();
            println!("{kind}: {count} entries, then: {error}");
            assert!(count > 50);
            let image = disk.after_power_loss();
            // The operator makes room.
            fs::remove_file(image.root().join(ballast)).unwrap();
            let found = Model::found(&*Member::start(&image, kind, false).unwrap().engine).records;
            let acknowledged: Vec<Record> = (0..count).map(entry).collect();
            assert!(found.starts_with(&acknowledged), "{kind}: {} of {count} entries are left", found.len());
        }
    });
}
