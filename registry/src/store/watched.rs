//! Whether the files that a member has open are still those that its next start will find.
//!
//! A file that is deleted while it is open takes every write and every sync, and is gone with the process: nothing that a
//! system call answers tells of it. So the member looks at the paths.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::LogFile;
use super::directory::DirectoryError;

/// What tells a file from another one that took its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
}

/// A data folder and the files of its log, as they were found at their paths.
#[derive(Clone, Debug)]
pub(crate) struct Watched {
    folder: PathBuf,
    is: Option<Identity>,
    files: Vec<(LogFile, Option<Identity>)>,
}

impl Watched {
    /// What is in place now. From here on each file has to stay, with at least its length: name what is on disk.
    pub(crate) fn new(folder: &Path, files: Vec<LogFile>) -> io::Result<Self> {
        Self { folder: folder.to_path_buf(), is: identity(folder)?, files: Vec::new() }.with_files(files)
    }

    /// Watches these files from here on, of the folder as it was found first.
    pub(crate) fn with_files(self, files: Vec<LogFile>) -> io::Result<Self> {
        let found = files.into_iter().map(|file| identity(&file.path).map(|is| (file, is)));
        Ok(Self { files: found.collect::<io::Result<_>>()?, ..self })
    }

    /// Refuses a folder that has gone, a file of it that has gone, or is another one, or shorter. `in_use` gives the
    /// files that the log has now: one that it removed itself meanwhile is missed by nobody. An error of the system says
    /// nothing of the files.
    pub(crate) fn check(&self, in_use: impl FnOnce() -> Vec<LogFile>) -> io::Result<Result<(), DirectoryError>> {
        let lost = |why: String| Ok(Err(DirectoryError::LogLost { path: self.folder.clone(), why }));
        if identity(&self.folder)? != self.is {
            return lost("it was deleted, moved or covered by another one while this member runs".to_owned());
        }
        let mut missed = None;
        for (file, is) in &self.files {
            let name = file.path.file_name().unwrap_or_default();
            let found = look(&file.path)?;
            let why = match &found {
                None => "was deleted or moved",
                Some(meta) if Some(Identity::of(meta)) != *is => "is another file now",
                Some(meta) if meta.len() < file.length => "was cut short",
                Some(_) => continue,
            };
            missed = Some((file, format!("the file {name:?} of the log {why} while this member runs")));
            break;
        }
        match missed {
            Some((file, why)) if in_use().iter().any(|used| used.path == file.path) => lost(why),
            _ => Ok(Ok(())),
        }
    }
}

impl Identity {
    fn of(meta: &Metadata) -> Self {
        Self { device: meta.dev(), inode: meta.ino() }
    }
}

fn identity(path: &Path) -> io::Result<Option<Identity>> {
    Ok(look(path)?.as_ref().map(Identity::of))
}

/// `None` where nothing is there.
fn look(path: &Path) -> io::Result<Option<Metadata>> {
    match std::fs::metadata(path) {
        Ok(meta) => Ok(Some(meta)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_deleted_replaced_or_cut_short_is_missed_and_what_the_log_removed_itself_is_not() {
        let (gone, cut) = ("was deleted or moved", "was cut short");
        type Harm = fn(&Path, &Path);
        let harms: [(&str, Harm, &str); 6] = [
            ("nothing", |_, _| {}, ""),
            ("more is written", |_, file| fs::write(file, "0123456789abc").unwrap(), ""),
            ("the file goes", |_, file| fs::remove_file(file).unwrap(), gone),
            ("the file is cut", |_, file| fs::write(file, "012345678").unwrap(), cut),
            (
                "another file takes its name",
                |folder, file| {
                    fs::write(folder.join("copy"), "0123456789").unwrap();
                    fs::rename(folder.join("copy"), file).unwrap();
                },
                "is another file now",
            ),
            (
                "the folder is begun anew",
                |folder, _| {
                    fs::rename(folder, folder.with_extension("old")).unwrap();
                    fs::create_dir(folder).unwrap();
                },
                "it was deleted, moved or covered",
            ),
        ];
        for (what, harm, expected) in harms {
            let place = tempfile::tempdir().unwrap();
            let folder = place.path().join("registry");
            let path = folder.join("r-0.wal");
            fs::create_dir(&folder).unwrap();
            fs::write(&path, "0123456789").unwrap();
            let files = || vec![LogFile { path: path.clone(), length: 10 }];
            let watched = Watched::new(&folder, files()).unwrap();
            harm(&folder, &path);
            let said = watched.check(files).unwrap().err().map(|error| error.to_string()).unwrap_or_default();
            assert!(said.contains(expected) && said.is_empty() == expected.is_empty(), "{what}: {said:?}");
            if !expected.is_empty() {
                assert!(said.contains(&format!("{folder:?}")) && said.contains("`muster registry restore`"), "{said}");
            }
            // Whatever became of a file that is not in use is the log's own doing, unless all is gone.
            let of_the_log = watched.check(Vec::new).unwrap().is_ok();
            assert_eq!(of_the_log, !folder.with_extension("old").exists(), "{what}");
        }
    }
}
