//! Backup into a file, and restore from one.

use std::path::Path;

use muster_catalog::port::SubmitError;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;

use super::Client;
use crate::{
    backup::{Backup, BackupError, BackupWriter},
    proto::registry::{self as pb, backup_piece::Piece, restore_reply::Outcome},
    service::{backup::pieces, peers::surely_not_sent},
};

/// Pieces of a restore read ahead of the registry.
const PIECES_AHEAD: usize = 4;
/// A member that sends no piece for so long has gone.
const SILENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// The file.
    #[error(transparent)]
    File(#[from] BackupError),
    /// The registry.
    #[error("{0}")]
    Registry(String),
}

impl Client {
    /// Writes all that the registry has committed into a file; whatever some member has, if `stale`. The file gets its name
    /// when it is whole and was read back.
    pub async fn backup(&self, path: &Path, stale: bool) -> Result<Backup, TakeError> {
        let connection = self.connections.connection().await;
        let connection = connection.map_err(|error| TakeError::Registry(error.to_string()))?;
        let failed = |why: &str| TakeError::Registry(format!("registry member {}: {why}", connection.address));
        let mut client = connection.client.clone();
        let answered = timeout(SILENCE, client.backup(pb::BackupRequest { stale })).await;
        let answered = answered.map_err(|_| failed(&format!("nothing was heard for {SILENCE:?}")))?;
        let mut stream = answered.map_err(|status| failed(status.message()))?.into_inner();
        let mut writer = None;
        loop {
            let piece = timeout(SILENCE, stream.message()).await;
            let piece = piece.map_err(|_| failed(&format!("nothing was heard for {SILENCE:?}")))?;
            match (piece.map_err(|status| failed(status.message()))?.and_then(|piece| piece.piece), &mut writer) {
                (Some(Piece::Header(header)), None) => {
                    let path = path.to_owned();
                    writer = Some(blocking(move || BackupWriter::create(&path, &header)).await?);
                }
                (Some(Piece::Data(data)), Some(_)) => {
                    if let Some(mut begun) = writer.take() {
                        writer = Some(blocking(move || begun.write(&data).map(|()| begun)).await?);
                    }
                }
                (None, Some(_)) => break,
                _ => return Err(failed("it sent a backup without its head")),
            }
        }
        let writer = writer.ok_or_else(|| failed("it sent nothing"))?;
        blocking(move || writer.finish()).await
    }

    /// Puts a checked backup in the place of the present catalog; the index since which it is there.
    pub async fn restore(&self, backup: &Backup) -> Result<u64, SubmitError> {
        let connection = self.connections.connection().await;
        let connection = connection.map_err(|error| SubmitError::Unavailable(error.to_string()))?;
        let rows = backup.rows().map_err(|error| SubmitError::Refused(error.to_string()))?;
        let (out, sent) = mpsc::channel(PIECES_AHEAD);
        // The catalog's own format: what a row needs is named by it, whatever the file's head says.
        let format = backup.snapshot.format();
        let reading = tokio::task::spawn_blocking(move || pieces(rows, format, &out));
        let mut client = connection.client.clone();
        let reply = client.restore(ReceiverStream::new(sent)).await;
        if let Ok(Err(error)) = reading.await {
            // The registry's answer says more, where there is one.
            tracing::debug!(%error, "the backup was not sent to its end");
        }
        let member = connection.address;
        match reply.map(|reply| reply.into_inner().outcome) {
            Ok(Some(Outcome::Index(index))) => Ok(index),
            Ok(Some(Outcome::Refused(why))) => Err(SubmitError::Refused(why)),
            Ok(Some(Outcome::NotDone(why))) => Err(SubmitError::Unavailable(why)),
            Ok(Some(Outcome::UnknownOutcome(why))) => Err(SubmitError::UnknownOutcome(why)),
            Ok(None) => Err(SubmitError::UnknownOutcome(format!("{member} gave no outcome"))),
            Err(status) if surely_not_sent(&status) || status.code() == tonic::Code::Unimplemented => {
                Err(SubmitError::Unavailable(format!("{member}: {}", status.message())))
            }
            Err(status) => Err(SubmitError::UnknownOutcome(format!("{member}: {}", status.message()))),
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BackupError> + Send + 'static,
) -> Result<T, TakeError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done?),
        Err(error) => Err(TakeError::Registry(error.to_string())),
    }
}
