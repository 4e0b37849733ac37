//! The replica's file: when it was last current, its Scope, and the rows of its Snapshot as the registry streams them.

use std::{
    fs, io,
    io::{BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use muster_catalog::{Snapshot, Timestamp};

/// How often a changed replica is written: an agent that is killed serves at most this much older data.
pub(super) const SAVE_INTERVAL: Duration = Duration::from_secs(5);

/// Why the kept replica cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The file cannot be read.
    #[error("cannot read the replica {path}: {source}; make it readable, or remove it to begin empty")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Reads the kept replica. A damaged file is set aside: its content is on the registry.
pub(super) fn load(path: &Path) -> Result<Option<(Snapshot, Timestamp)>, DiskError> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(DiskError::Read { path: path.to_owned(), source }),
    };
    match read(BufReader::new(file)) {
        Ok(kept) => Ok(Some(kept)),
        Err(reason) => {
            let aside = path.with_extension("damaged");
            tracing::error!(path = %path.display(), %reason, aside = %aside.display(), "the kept replica is damaged; set aside, beginning empty");
            match fs::rename(path, &aside) {
                Ok(()) => Ok(None),
                Err(source) => Err(DiskError::Read { path: path.to_owned(), source }),
            }
        }
    }
}

fn read(mut from: impl Read) -> Result<(Snapshot, Timestamp), String> {
    let mut since = [0; 8];
    from.read_exact(&mut since).map_err(|error| error.to_string())?;
    let snapshot = muster_registry::decode_replica(&mut from).map_err(|error| error.to_string())?;
    Ok((snapshot, Timestamp(u64::from_be_bytes(since))))
}

/// Writes the replica so that a crash leaves the old or the new one.
pub(super) fn save(path: &Path, snapshot: &Snapshot, since: Timestamp) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut to = BufWriter::new(fs::File::create(&temporary)?);
    to.write_all(&since.0.to_be_bytes())?;
    muster_registry::encode_replica(snapshot, &mut to)?;
    to.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    fs::rename(&temporary, path)
}
