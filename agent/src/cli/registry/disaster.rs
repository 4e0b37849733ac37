//! `backup`, `inspect`, `restore`, `recover`: for the day on which a catalog or a quorum is lost.

use std::{path::Path, time::Duration};

use muster_registry::{Survivor, backup::Backup};
use serde_json::json;

use super::{RegistryArgs, client, runtime};
use crate::{
    cli::{Failure, Outcome, say},
    config::Config,
};

pub(super) fn backup(file: &Path, stale: bool, args: &RegistryArgs) -> Outcome {
    let backup = runtime()?.block_on(client(args).backup(file, stale)).map_err(Failure::failed)?;
    describe(&backup, args.json)
}

pub(super) fn inspect(file: &Path, json: bool) -> Outcome {
    describe(&Backup::read(file).map_err(Failure::failed)?, json)
}

/// Says what a backup holds. One that cannot be restored is a failure, however whole: better now than on the day on which it
/// is needed.
fn describe(backup: &Backup, json: bool) -> Outcome {
    let restorable = backup.check_restorable();
    let (header, snapshot) = (&backup.header, &backup.snapshot);
    let (nodes, services, instances) = (snapshot.node_count(), snapshot.service_count(), snapshot.instance_count());
    let cluster = snapshot.cluster();
    if json {
        let described = json!({
            "file": backup.path, "registry": &*cluster.uuid, "incarnation": cluster.incarnation,
            "format": snapshot.format(), "index": snapshot.index(), "taken_milliseconds": header.taken.0,
            "taken_by": header.taken_by, "nodes": nodes, "services": services, "instances": instances,
            "bytes": backup.bytes, "restorable": restorable.is_ok(),
        });
        say(&described.to_string())?;
        return restorable.map_err(Failure::failed);
    }
    let taken = std::time::UNIX_EPOCH + Duration::from_millis(header.taken.0);
    say(&format!(
        "{}: {nodes} nodes, {services} services, {instances} instances, {} bytes; checked\n\
         taken {} by {}, of registry {}, incarnation {}, catalog format {}, at index {}",
        backup.path.display(),
        backup.bytes,
        humantime::format_rfc3339_seconds(taken),
        header.taken_by,
        cluster.uuid,
        cluster.incarnation,
        snapshot.format(),
        snapshot.index(),
    ))?;
    restorable.map_err(Failure::failed)
}

pub(super) fn restore(file: &Path, yes: bool, args: &RegistryArgs) -> Outcome {
    let backup = Backup::read(file).map_err(Failure::failed)?;
    backup.check_restorable().map_err(Failure::failed)?;
    let (runtime, client) = (runtime()?, client(args));
    let status = runtime.block_on(client.members_by_leader()).map_err(Failure::failed)?;
    if !yes {
        describe(&backup, false)?;
        let other = if status.cluster.uuid == backup.snapshot.cluster().uuid {
            "it was taken from this registry"
        } else {
            "it was taken from ANOTHER registry"
        };
        return Err(Failure::Usage(format!(
            "nothing was done. The backup would take the place of all that registry {} holds at index {} ({other}); live \
             agents push their own services again, what came through the catalog API after the backup is lost. Run it again \
             with --yes",
            status.cluster.uuid, status.index
        )));
    }
    let index = runtime.block_on(client.restore(&backup)).map_err(Failure::failed)?;
    let now = runtime.block_on(client.members_by_leader()).map_err(Failure::failed)?;
    let incarnation = now.cluster.incarnation;
    if args.json {
        return say(&json!({ "index": index, "incarnation": incarnation }).to_string());
    }
    say(&format!(
        "restored at index {index}; the registry is in incarnation {incarnation} now, and agents load it anew"
    ))
}

pub(super) fn recover(config: &Path, yes: bool, json: bool) -> Outcome {
    let config = Config::load(config).map_err(|error| Failure::Usage(error.to_string()))?;
    let name = config.node_name().map_err(|error| Failure::Usage(error.to_string()))?;
    let survivor = Survivor {
        data_dir: config.node.data_dir.join("registry"),
        log_engine: config.registry.log_engine.into(),
        name: name.to_string(),
        address: config.registry.advertise.clone().unwrap_or_else(|| config.registry.listen.to_string()),
    };
    let shown = survivor.clone();
    let recovered = muster_registry::recover(survivor, !yes).map_err(Failure::failed)?;
    let lost = recovered.left_behind.join(", ");
    let warning = format!(
        "{} in {:?} holds the registry up to index {}. What the other members acknowledged after that is lost. Of its last \
         {} entries it had not heard whether they were acknowledged; they are kept. Left behind: {}. They must not be started \
         with their old data again: empty their data folders first, and they join anew",
        shown.name,
        shown.data_dir,
        recovered.index,
        recovered.uncertain,
        if lost.is_empty() { "nobody" } else { &lost },
    );
    if !yes {
        return Err(Failure::Usage(format!(
            "nothing was done. {warning}. Only when no majority will ever come back: run it again with --yes"
        )));
    }
    if json {
        return say(
            &json!({ "index": recovered.index, "uncertain": recovered.uncertain, "left_behind": recovered.left_behind })
                .to_string(),
        );
    }
    say(&format!("recovered: this member is the whole registry, in its next incarnation. {warning}.\nStart it now."))
}

#[cfg(test)]
mod tests {
    use muster_catalog::{Scope, SnapshotBuilder};

    use super::*;

    #[test]
    fn a_backup_that_cannot_be_restored_is_described_and_a_failure() {
        let snapshot = SnapshotBuilder::new(Scope::All).finish();
        let mut backup = Backup { path: "catalog.backup".into(), header: Default::default(), snapshot, bytes: 100 };
        for json in [false, true] {
            backup.bytes = 100;
            assert!(describe(&backup, json).is_ok());
            backup.bytes = 1024 * 1024 * 1024;
            let Err(Failure::Failed(why)) = describe(&backup, json) else { panic!("it counts as good") };
            assert!(why.contains("catalog.backup") && why.contains("CANNOT BE RESTORED"), "{why}");
        }
    }
}
