//! The members of the registry as it names them itself, kept on disk: `registry.members` is where an agent begins.
//!
//! Only what the registry of the replica says of its own members counts: another registry that is found at an old
//! address is not followed to its members.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use muster_catalog::{Freshness, port::Source};
use muster_registry::client::{Client, RegistryStatus};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{identity::write_atomically, replica::Replica};

/// How often members are asked for: a member is replaced in minutes, and thousands of agents ask.
const INTERVAL: Duration = Duration::from_secs(60);
/// The first look, and the next one while the stream is not up.
const SOON: Duration = Duration::from_secs(2);
/// Members that are kept: more than any registry has.
const MAX_MEMBERS: usize = 64;

/// What is on disk.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Learned {
    /// The UUID of the registry that named them.
    registry: String,
    /// Their addresses.
    members: Vec<String>,
}

impl Learned {
    /// What an answer says, if it is of that registry.
    fn find(status: &RegistryStatus, registry: &str) -> Option<Self> {
        let is_address = |address: &&String| address.rsplit_once(':').is_some_and(|(host, _)| !host.is_empty());
        let members = status.members.iter().map(|member| &member.address).filter(is_address).take(MAX_MEMBERS);
        let mut members: Vec<String> = members.cloned().collect();
        members.sort();
        let ours = !registry.is_empty() && *status.cluster.uuid == *registry;
        (ours && !members.is_empty()).then(|| Self { registry: registry.to_owned(), members })
    }

    /// What is kept; nothing where it is of another registry or cannot be read: it is learnt again.
    fn load(file: &Path, registry: &str) -> Option<Self> {
        let kept: Self = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
        (!registry.is_empty() && kept.registry == registry && kept.members.len() <= MAX_MEMBERS).then_some(kept)
    }
}

/// Tells the client what is kept, for the first connection.
pub(crate) fn recall(client: &Client, replica: &Replica, file: &Path) {
    if let Some(kept) = Learned::load(file, &replica.view().local.cluster().uuid) {
        client.learn(kept.members);
    }
}

/// Learns who the members are, now and then, until told to stop.
pub(crate) async fn follow(client: Arc<Client>, replica: Arc<Replica>, file: PathBuf, stop: CancellationToken) {
    let mut known = Learned::load(&file, &replica.view().local.cluster().uuid);
    let mut wait = SOON;
    loop {
        tokio::select! {
            () = tokio::time::sleep(wait.mul_f64(rand::rng().random_range(0.5..1.0))) => {}
            () = stop.cancelled() => return,
        }
        wait = SOON;
        let view = replica.view();
        if view.freshness != Freshness::Live {
            continue;
        }
        let asked = tokio::select! {
            asked = client.members() => asked,
            () = stop.cancelled() => return,
        };
        let Some(learned) = asked.ok().and_then(|status| Learned::find(&status, &view.local.cluster().uuid)) else {
            continue;
        };
        wait = INTERVAL;
        if known.as_ref() == Some(&learned) {
            continue;
        }
        tracing::info!(members = ?learned.members, "the registry names its members");
        client.learn(learned.members.clone());
        let kept = learned.clone();
        let path = file.clone();
        let written = tokio::task::spawn_blocking(move || write_atomically(&path, &serde_json::to_vec_pretty(&kept)?));
        match written.await {
            Ok(Ok(())) => known = Some(learned),
            Ok(Err(error)) => tracing::warn!(%error, "the members are not kept over a restart: tried again"),
            Err(error) => tracing::error!(%error, "writing the members ended early"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_of_another_registry_are_never_taken() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("members.json");
        assert_eq!(Learned::load(&file, "ours"), None);
        let kept = Learned { registry: "ours".into(), members: vec!["registry-9:8300".into()] };
        write_atomically(&file, &serde_json::to_vec(&kept).unwrap()).unwrap();
        assert_eq!(Learned::load(&file, "ours"), Some(kept));
        assert_eq!(Learned::load(&file, "another"), None);
        assert_eq!(Learned::load(&file, ""), None, "a replica that knows no registry yet");
        std::fs::write(&file, "{").unwrap();
        assert_eq!(Learned::load(&file, "ours"), None);
    }
}
