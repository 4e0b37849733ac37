//! What the tests of whole members share: a write, and the replica that should hold it.

use futures_util::StreamExt;
use muster_catalog::{
    Address, Command, Instance, Name, Node, NodeSync, Origin, Scope, Snapshot, SnapshotBuilder, SnapshotRow, Weights,
    Writer, port::Consistency,
};
use muster_registry::{Client, Hello, WatchEvent};

pub(crate) fn push(node: &str, sequence: u64, services: &[&str]) -> Command {
    let name = Name::lookup(node);
    let (tagged_addresses, meta, locality, origin) = (Default::default(), Default::default(), None, Origin::Agent);
    let address = Address::parse("10.0.0.1").unwrap();
    let instance = |service: &&str| Instance {
        node: name.clone(),
        id: (*service).into(),
        service: Name::lookup(service),
        tags: Vec::new(),
        address: None,
        tagged_addresses: Default::default(),
        ports: Vec::new(),
        meta: Default::default(),
        weights: Weights::default(),
        locality: None,
        draining: false,
        maintenance: None,
        enable_tag_override: false,
        proxy: None,
        traffic: None,
        origin,
    };
    let instances = services.iter().map(instance).collect();
    let node = Node { name: name.clone(), id: "agent".into(), address, tagged_addresses, meta, locality, origin };
    let (checks, removed_instances, removed_checks) = Default::default();
    let writer = Writer { incarnation: 1, sequence };
    Command::Sync(NodeSync { writer, node, complete: true, instances, checks, removed_instances, removed_checks })
}

/// Follows a watch until its replica holds `index`, with a barrier before the end.
pub(crate) async fn replica(client: &Client, index: u64) -> Snapshot {
    let hello = Hello { scope: Scope::All, resume: None, watcher: None, accept_new_cluster: false };
    // A member that is not ready yet says so, and the next watch goes to another.
    loop {
        if let Ok(snapshot) = try_replica(client, hello.clone(), index).await {
            return snapshot;
        }
        tokio::task::yield_now().await;
    }
}

async fn try_replica(client: &Client, hello: Hello, index: u64) -> Result<Snapshot, muster_registry::WatchError> {
    let (asking, mut events) = client.watch(hello).await?;
    asking.barrier(7, Consistency::Linearizable)?;
    let (mut snapshot, mut loading, mut passed) = (Snapshot::default(), None, false);
    while !passed || snapshot.index() < index {
        match events.next().await.expect("the stream says why it ends")? {
            WatchEvent::Hello { .. } => {}
            WatchEvent::Splice(splice) => drop(snapshot.splice(splice)),
            WatchEvent::Row(row) => {
                if matches!(row, SnapshotRow::Header(_)) {
                    loading = Some(SnapshotBuilder::new(Scope::All));
                }
                loading.as_mut().unwrap().push(row);
            }
            WatchEvent::Loaded { .. } => snapshot = loading.take().unwrap().finish(),
            WatchEvent::Entry(entry) => drop(snapshot.fold(&entry)),
            WatchEvent::Advance { index, at } => snapshot.advance(index, at),
            WatchEvent::Barrier { id, result } => {
                assert_eq!(id, 7);
                assert!(result.unwrap() <= snapshot.index());
                passed = true;
            }
        }
    }
    Ok(snapshot)
}
