//! What the log of a data folder is known to have held: a small file beside the log.
//!
//! A log that is gone looks like one that was never begun, and one that lost its end like one that never had it. A member
//! that started on either would vote again in terms in which it has voted, and elect a leader without entries that it had
//! acknowledged. The mark tells them apart. It is written before a vote is answered, and now and then for what is
//! committed; it never says more than what is on disk.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use super::directory::{DirectoryError, write_durably};
use super::{Ballot, LogBounds};

const FILE: &str = "log-mark";

/// A vote that was saved and an entry that was committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogMark {
    vote: Option<Ballot>,
    committed: Option<u64>,
}

impl LogMark {
    /// The mark of a log with these bounds, all of which is on disk.
    pub(crate) fn of(bounds: &LogBounds) -> Self {
        Self { vote: bounds.vote, committed: bounds.committed.map(|at| at.index) }
    }

    /// The mark in a data folder, where there is one: builds before this one wrote none.
    pub(crate) fn read(folder: &Path) -> Result<Option<Self>, DirectoryError> {
        let path = folder.join(FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(DirectoryError::Io { path, source }),
        };
        // Lines that a later build adds are left to it.
        let mut mark = Self::default();
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let known = match words.as_slice() {
                ["vote", term, node, committed] => {
                    let parsed = (term.parse(), node.parse(), committed.parse());
                    let (Ok(term), Ok(node), Ok(committed)) = parsed else { return Err(unreadable(path, line)) };
                    mark.vote = Some(Ballot { term, node, committed });
                    true
                }
                ["committed", index] => {
                    mark.committed = index.parse().ok();
                    mark.committed.is_some()
                }
                _ => true,
            };
            if !known {
                return Err(unreadable(path, line));
            }
        }
        // The first thing that is noted is a vote.
        if mark.vote.is_none() {
            return Err(unreadable(path, text.lines().next().unwrap_or_default()));
        }
        Ok(Some(mark))
    }

    /// Writes the mark; once this returns it survives a loss of power.
    pub(crate) fn write(&self, folder: &Path) -> io::Result<()> {
        let mut text = String::new();
        if let Some(Ballot { term, node, committed }) = self.vote {
            let _ = writeln!(text, "vote {term} {node} {committed}");
        }
        if let Some(index) = self.committed {
            let _ = writeln!(text, "committed {index}");
        }
        write_durably(&folder.join(FILE), text.as_bytes())
    }

    /// Removes the mark: for a member that begins anew, as another one.
    pub(crate) fn remove(folder: &Path) -> io::Result<()> {
        match std::fs::remove_file(folder.join(FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Refuses a folder whose log or snapshot is not what it was. `snapshot` is the last entry that the snapshot holds.
pub(crate) fn check(folder: &Path, bounds: &LogBounds, snapshot: Option<u64>) -> Result<(), DirectoryError> {
    let mark = LogMark::read(folder)?;
    let lost = |why: String| Err(DirectoryError::LogLost { path: folder.to_path_buf(), why });
    let begun = mark.is_some() || snapshot.is_some();
    if begun && bounds.vote.is_none() && bounds.last.is_none() {
        return lost("a log was begun here and is gone".to_owned());
    }
    if let Some(purged) = bounds.purged.filter(|purged| snapshot.is_none_or(|last| last < purged.index)) {
        let has = snapshot.map_or("there is no snapshot".to_owned(), |last| format!("the snapshot ends with {last}"));
        return lost(format!("the log begins after entry {}, and {has}: a snapshot is gone", purged.index));
    }
    let Some(mark) = mark else { return Ok(()) };
    if let Some(vote) = mark.vote.filter(|vote| bounds.vote < Some(*vote)) {
        return lost(format!("this member voted in term {}, and the log does not hold that vote any more", vote.term));
    }
    let last = bounds.last.map(|last| last.index).max(snapshot);
    if let Some(committed) = mark.committed.filter(|committed| last < Some(*committed)) {
        let ends = last.map_or("is empty".to_owned(), |last| format!("ends with {last}"));
        return lost(format!("the log held entry {committed}, which was committed, and now {ends}"));
    }
    Ok(())
}

fn unreadable(path: PathBuf, line: &str) -> DirectoryError {
    let shown: String = line.chars().take(64).collect();
    let message = format!(
        "it holds no vote, or a line that is damaged ({shown:?}): restore the file, or empty the whole data folder"
    );
    DirectoryError::Io { path, source: io::Error::new(io::ErrorKind::InvalidData, message) }
}

#[cfg(test)]
mod tests {
    use super::super::Position;
    use super::*;

    fn at(index: u64) -> Option<Position> {
        Some(Position { term: 2, node: 7, index })
    }

    fn bounds(vote: u64, purged: Option<u64>, last: u64) -> LogBounds {
        let vote = Some(Ballot { term: vote, node: 7, committed: true });
        LogBounds { vote, committed: at(last), purged: purged.and_then(at), last: at(last) }
    }

    #[test]
    fn a_log_that_is_gone_or_went_back_is_refused_with_what_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let check = |bounds, snapshot| match check(folder.path(), &bounds, snapshot) {
            Ok(()) => String::new(),
            Err(error) => error.to_string(),
        };
        let none = LogBounds::default();
        // Without a mark: a first start, and a folder of a build that wrote none.
        assert_eq!(check(none, None), "");
        assert_eq!(check(bounds(2, Some(50), 90), Some(60)), "");
        assert!(check(none, Some(60)).contains("a log was begun here and is gone"));

        LogMark::of(&bounds(2, None, 90)).write(folder.path()).unwrap();
        assert_eq!(check(bounds(2, None, 90), None), "");
        assert_eq!(check(bounds(3, Some(100), 100), Some(100)), "");
        for (bounds, snapshot, expected) in [
            (none, None, "a log was begun here and is gone"),
            (none, Some(90), "a log was begun here and is gone"),
            (bounds(1, None, 90), None, "voted in term 2"),
            (bounds(2, None, 89), None, "held entry 90, which was committed, and now ends with 89"),
            (bounds(2, Some(50), 90), None, "begins after entry 50, and there is no snapshot"),
            (bounds(2, Some(50), 90), Some(49), "the snapshot ends with 49"),
        ] {
            let said = check(bounds, snapshot);
            assert!(said.contains(expected) && said.contains("empty the whole folder"), "{expected}: {said}");
            assert!(said.contains(&format!("{:?}", folder.path())), "{said}");
        }
        for damaged in ["", "\0\0\0\0", "committed 90\n", "vote 2\n", "vote 2 7 tr"] {
            std::fs::write(folder.path().join(FILE), damaged).unwrap();
            let said = check(bounds(2, None, 90), None);
            assert!(said.contains("log-mark") && said.contains("damaged"), "{damaged:?}: {said}");
        }
        LogMark::remove(folder.path()).unwrap();
        assert_eq!(check(bounds(1, None, 1), None), "");
    }
}
