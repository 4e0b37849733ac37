//! The directory as the file system shows it: names, fingerprints and contents. Nothing here waits for ever.
//!
//! A file system may not answer at all (NFS whose server is gone), and whoever asks it then waits in the kernel and
//! cannot be stopped. So it is asked on a thread of its own. A thread that does not answer in time is left behind, the
//! path that it hangs at is passed over until it answers, and another thread goes on with the next path.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{Arc, Weak, mpsc},
    thread,
    time::Duration,
};

use crate::definition::{self, FileError, ServiceDefinition};

/// A disk that is slower than this for one file is as good as gone.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Threads that hang at one time. With so many left behind nothing more is asked.
const MAX_HANGING: usize = 8;
/// Names in the directory, of whatever kind: more are a mistake, and would take long at every scan.
const MAX_ENTRIES: usize = 65_536;

/// What tells a changed file from an unchanged one without reading it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Fingerprint {
    length: u64,
    inode: u64,
    modified: (i64, i64),
    /// Also moves when only the permissions change, so that a file made readable is read.
    changed: (i64, i64),
}

/// What stands under a name of the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Look {
    /// A regular file.
    File(Fingerprint),
    /// Nothing that is a definition: it has vanished, or is a directory.
    Nothing,
    /// Something that can be no definition, and what to do about it.
    Bad(String),
}

/// What came of reading a file, and how it looked afterwards.
pub(super) type Reading = (Result<Vec<ServiceDefinition>, FileError>, Look);

/// The way to the file system.
#[derive(Debug)]
pub(super) struct Disk {
    answer_within: Duration,
    /// Where threads hang; the other end of the mark is the thread's.
    hanging: BTreeMap<PathBuf, Weak<()>>,
}

impl Default for Disk {
    fn default() -> Self {
        Self { answer_within: ANSWER_WITHIN, hanging: BTreeMap::new() }
    }
}

/// Why a directory was not listed.
#[derive(Debug)]
pub(super) struct Unlisted {
    /// Whether there is none, which is known, unlike what is in one that cannot be read.
    pub(super) absent: bool,
    /// The reason, with what to do.
    pub(super) why: String,
}

impl Disk {
    /// The paths of the definition files: `*.toml`, not hidden, no directories. An error is that of the directory.
    pub(super) fn list(&mut self, directory: &Path) -> Result<Vec<PathBuf>, Unlisted> {
        let listed = self.ask(vec![directory.to_owned()], list).pop().flatten();
        let absent = matches!(&listed, Some(Err(error)) if error.kind() == io::ErrorKind::NotFound);
        let why = match listed {
            Some(Ok(paths)) => return Ok(paths),
            None => format!("{}; the services known so far stay", self.silence()),
            Some(Err(_)) if absent => {
                "it does not exist; the services known so far stay; create it, or set agent.services_dir".to_owned()
            }
            Some(Err(error)) => format!(
                "cannot be listed: {error}; the services known so far stay; make it readable for the agent's user"
            ),
        };
        Err(Unlisted { absent, why })
    }

    /// Looks at each path.
    pub(super) fn look(&mut self, paths: Vec<PathBuf>) -> BTreeMap<PathBuf, Look> {
        let (named, nameless): (Vec<_>, Vec<_>) =
            paths.into_iter().partition(|path| path.file_name().is_some_and(|name| name.to_str().is_some()));
        let looks = self.ask(named.clone(), look);
        let silence = self.silence();
        let looks = looks.into_iter().map(|look| look.unwrap_or_else(|| Look::Bad(silence.clone())));
        let refused = Look::Bad("its name is not UTF-8 text: rename it".to_owned());
        named.into_iter().zip(looks).chain(nameless.into_iter().map(|path| (path, refused.clone()))).collect()
    }

    /// Reads each path; `None` for one that does not answer.
    pub(super) fn read(&mut self, paths: Vec<PathBuf>) -> Vec<Option<Reading>> {
        self.ask(paths, |path| (definition::read_regular(path), look(path)))
    }

    /// What is said of a path that does not answer.
    pub(super) fn silence(&self) -> String {
        let within = self.answer_within;
        format!("no answer within {within:?}: the file system it lies on hangs; it is asked again once it answers")
    }

    /// Does the work for each path in turn; `None` for one where it hangs.
    fn ask<T: Send + 'static>(&mut self, paths: Vec<PathBuf>, work: fn(&Path) -> T) -> Vec<Option<T>> {
        self.hanging.retain(|_, mark| mark.strong_count() > 0);
        let mut done = Vec::with_capacity(paths.len());
        while let Some(next) = paths.get(done.len()) {
            if self.hanging.contains_key(next) || self.hanging.len() >= MAX_HANGING {
                done.push(None);
                continue;
            }
            let batch = paths[done.len()..].iter().take_while(|path| !self.hanging.contains_key(*path));
            let (answers, mark) = begin(batch.cloned().collect(), work);
            loop {
                match answers.recv_timeout(self.answer_within) {
                    Ok(answer) => done.push(Some(answer)),
                    Err(mpsc::RecvTimeoutError::Timeout) => {
                        self.hanging.insert(paths[done.len()].clone(), mark);
                        done.push(None);
                        break;
                    }
                    // The batch is done, or its thread could not be started or was ended: then its next path is bad.
                    Err(mpsc::RecvTimeoutError::Disconnected) => {
                        let stuck = paths.get(done.len()).is_some_and(|path| !self.hanging.contains_key(path));
                        done.extend(stuck.then_some(None));
                        break;
                    }
                }
            }
        }
        done
    }
}

/// Starts a thread that does the work for each path. The mark lives as long as it.
fn begin<T: Send + 'static>(paths: Vec<PathBuf>, work: fn(&Path) -> T) -> (mpsc::Receiver<T>, Weak<()>) {
    let (sender, answers) = mpsc::channel();
    let held = Arc::new(());
    let mark = Arc::downgrade(&held);
    let thread = thread::Builder::new().name("muster-files".into()).spawn(move || {
        let _held = held;
        // Nobody listens any more to a thread that was left behind.
        let _ = paths.iter().try_for_each(|path| sender.send(work(path)));
    });
    // Without a thread the sender is gone, which the receiver tells.
    if let Err(error) = thread {
        tracing::error!(%error, "no thread can be started to look at the services directory");
    }
    (answers, mark)
}

fn list(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for (index, entry) in fs::read_dir(directory)?.enumerate() {
        if index >= MAX_ENTRIES {
            return Err(io::Error::other(format!(
                "it has more than {MAX_ENTRIES} entries, which is no services directory"
            )));
        }
        let entry = entry?;
        let path = entry.path();
        let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        let named = path.extension().is_some_and(|extension| extension == "toml");
        if named && !hidden && !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn look(path: &Path) -> Look {
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return match fs::symlink_metadata(path) {
                Ok(_) => Look::Bad(
                    "it is a link to a file that does not exist: restore that file, or remove the link".into(),
                ),
                Err(_) => Look::Nothing,
            };
        }
        Err(error) => {
            return Look::Bad(format!(
                "cannot be opened: {error}; make it readable for the agent's user, or remove it"
            ));
        }
    };
    let kind = meta.file_type();
    let what = match () {
        () if kind.is_file() => {
            return Look::File(Fingerprint {
                length: meta.len(),
                inode: meta.ino(),
                modified: (meta.mtime(), meta.mtime_nsec()),
                changed: (meta.ctime(), meta.ctime_nsec()),
            });
        }
        () if kind.is_dir() => return Look::Nothing,
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_socket() => "a socket",
        () => "a device",
    };
    Look::Bad(format!("it is {what}, and no regular file: remove it, or give it a name that does not end in .toml"))
}

#[cfg(test)]
mod tests {
    use std::{process::Command, time::Instant};

    use super::*;

    /// Opening a FIFO that nobody writes to waits for ever, as a file system does that has lost its server.
    #[test]
    fn a_path_that_hangs_holds_up_nobody_and_is_asked_again_once_it_answers() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        assert!(Command::new("mkfifo").arg(path("b")).status().unwrap().success());
        ["a", "c"].iter().for_each(|name| fs::write(path(name), name).unwrap());
        let mut disk = Disk { answer_within: Duration::from_millis(100), ..Disk::default() };
        let read = |path: &Path| fs::read_to_string(path).unwrap();
        let paths: Vec<_> = ["a", "b", "c"].map(path).to_vec();
        let found = [Some("a".to_owned()), None, Some("c".to_owned())];
        assert_eq!(disk.ask(paths.clone(), read), found);
        let start = Instant::now();
        for _ in 0..50 {
            assert_eq!(disk.ask(paths.clone(), read), found);
        }
        assert!(start.elapsed() < Duration::from_secs(4), "it is not asked again while it hangs");
        assert_eq!(disk.hanging.len(), 1);
        fs::write(path("b"), "b").unwrap();
        while disk.hanging.values().any(|mark| mark.strong_count() > 0) {
            thread::yield_now();
        }
        fs::remove_file(path("b")).unwrap();
        fs::write(path("b"), "better").unwrap();
        assert_eq!(disk.ask(paths, read)[1], Some("better".to_owned()));
    }

    #[test]
    fn few_threads_are_left_behind() {
        let directory = tempfile::tempdir().unwrap();
        let fifos: Vec<_> = (0..MAX_HANGING + 5).map(|index| directory.path().join(format!("{index:02}"))).collect();
        assert!(Command::new("mkfifo").args(&fifos).status().unwrap().success());
        let mut disk = Disk { answer_within: Duration::from_millis(20), ..Disk::default() };
        for _ in 0..3 {
            assert!(disk.ask(fifos.clone(), |path| fs::read(path).is_ok()).iter().all(Option::is_none));
            assert_eq!(disk.hanging.len(), MAX_HANGING);
        }
        fifos.iter().take(MAX_HANGING).for_each(|fifo| fs::write(fifo, "").unwrap());
    }

    #[test]
    fn what_is_no_regular_file_is_told_and_not_opened() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        assert!(Command::new("mkfifo").arg(path("fifo")).status().unwrap().success());
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        fs::create_dir(path("dir")).unwrap();
        let link = |name: &str, to: &str| std::os::unix::fs::symlink(to, path(name)).unwrap();
        link("loop", "loop");
        link("dangling", "/nonexistent/x");
        link("through", "/proc/version/x");
        link("null", "/dev/null");
        for (name, part) in [
            ("fifo", "a FIFO"),
            ("socket", "a socket"),
            ("null", "a device"),
            ("loop", "cannot be opened"),
            ("through", "cannot be opened"),
            ("dangling", "a link to a file that does not exist"),
        ] {
            assert!(matches!(look(&path(name)), Look::Bad(why) if why.contains(part)), "{name}");
            assert!(definition::read_regular(&path(name)).is_err(), "{name} is not read");
        }
        assert_eq!((look(&path("dir")), look(&path("none"))), (Look::Nothing, Look::Nothing));
    }
}
