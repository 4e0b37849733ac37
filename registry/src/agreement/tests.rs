//! Members on a log in memory of which one applied something else.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use bytes::Bytes;
use muster_catalog::{Proposal, Snapshot, Timestamp, port::Sink};
use tokio::time::{sleep, timeout};
use tonic::service::Routes;

use crate::{
    client::{Client, ClientConfig},
    machine::encode_proposal,
    proto::registry::{self as pb, registry_server::RegistryServer},
    raft::plaintext,
    server,
    service::{
        RegistryService, peers,
        tests::{Earlier, PATIENCE, Replica, TestRegistry, all, let_in, push, sent_away},
    },
};

/// What a defect, or a flipped bit, makes of an entry that is blank for the others.
fn ghost(name: &str) -> Bytes {
    encode_proposal(&Proposal { at: Timestamp(1), command: push(name, 1, &["ghost"]) })
}

/// Waits until these members alone say that they serve nothing, all for this reason, and gives what they say.
async fn until_faults(client: &Client, expected: &[u64], reason: &str) -> BTreeMap<u64, String> {
    let expected: BTreeSet<u64> = expected.iter().copied().collect();
    let look = async {
        loop {
            let faults = client.members().await.unwrap().faults;
            let because = faults.values().all(|fault| fault.contains(reason));
            if because && faults.keys().copied().eq(expected.iter().copied()) {
                return faults;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, look).await.expect("other members than expected, or none, serve nothing")
}

#[tokio::test]
async fn a_member_whose_catalog_was_altered_serves_nothing_and_all_members_say_so() {
    let registry = TestRegistry::start_quiet(3).await;
    let (other, altered) = (registry.client([0]), registry.client([2]));
    let written = altered.submit(push("a", 1, &["web"])).await.unwrap();
    let mut replica = Replica::open(&altered, all(), Snapshot::default()).await;
    replica.until_index(written.index).await;
    registry.cluster.alter(3, ghost("ghost"));
    sent_away(&altered, replica).await;

    let reason = "differs from the one that 2 of 3 voters have";
    let faults = until_faults(&other, &[3], reason).await;
    assert_eq!(until_faults(&altered, &[3], reason).await, faults);
    let address = registry.members[2].address.clone();
    let mut raw = peers::client(plaintext()(&address).unwrap());
    // It bears no witness any more: beside it, a member would stop as soon as the third one is down.
    let reply = raw.checksum(pb::ChecksumRequest { index: written.index }).await.unwrap().into_inner();
    assert_eq!((reply.member, &*reply.sum, &reply.fault), (3, &[][..], &faults[&3]));
    let refusals = [
        raw.renew(pb::RenewRequest::default()).await.err().unwrap(),
        raw.read(pb::ReadRequest { stale: true, ..Default::default() }).await.err().unwrap(),
        raw.backup(pb::BackupRequest { stale: true }).await.err().unwrap(),
    ];
    for refused in refusals {
        assert_eq!((refused.code(), refused.message()), (tonic::Code::Unavailable, &*faults[&3]));
    }
    let impatient = ClientConfig { write_deadline: Duration::from_millis(300), ..ClientConfig::new(vec![address]) };
    let refused = Client::new(impatient).submit(push("b", 1, &[])).await.unwrap_err().to_string();
    assert!(refused.contains("serves nothing any more"), "{refused}");
    // The others go on.
    let written = other.submit(push("a", 2, &["web", "db"])).await.unwrap();
    let_in(&registry.client([1])).await.until_index(written.index).await;
}

#[tokio::test]
async fn without_a_majority_nobody_serves_until_there_is_one() {
    let registry = TestRegistry::start_quiet(3).await;
    let client = registry.client([0]);
    registry.cluster.lag(3, true);
    registry.cluster.alter(2, ghost("ghost"));
    until_faults(&client, &[1, 2], "no majority of the 3 voters").await;
    registry.cluster.lag(3, false);
    until_faults(&client, &[2], "2 of 3 voters").await;
    // The leader is the leader again, with leases and all.
    let written = client.submit(push("a", 1, &["web"])).await.unwrap();
    let_in(&client).await.until_index(written.index).await;
}

/// Waits until these members were found to have at the last entry what a majority has.
async fn until_confirmed(registry: &TestRegistry, members: &[usize]) {
    let look = async {
        for at in members {
            let member = &registry.members[*at];
            while member.agreement.borrow().confirmed < registry.members[0].catalog.now().index() {
                sleep(Duration::from_millis(20)).await;
            }
        }
    };
    timeout(PATIENCE, look).await.expect("the catalogs are not compared");
}

#[tokio::test]
async fn members_that_lag_are_sent_snapshots_restored_or_of_an_earlier_version_alarm_nobody() {
    let started = AtomicU32::new(0);
    let routes = |core| match started.fetch_add(1, Ordering::Relaxed) {
        2 => Routes::new(RegistryServer::new(Earlier(RegistryService(core)))),
        _ => server::routes(core),
    };
    // From the first format on, which rises meanwhile.
    let registry = TestRegistry::start_as(3, Duration::from_secs(60), |_| (), routes).await;
    let client = registry.client([0]);
    client.submit(push("a", 1, &["web"])).await.unwrap();
    until_confirmed(&registry, &[0, 1, 2]).await;

    // One lags, and comes back at once to the last entry.
    registry.cluster.lag(2, true);
    client.submit(push("a", 2, &["web", "db"])).await.unwrap();
    registry.cluster.install(1, 2);
    until_confirmed(&registry, &[0, 1, 2]).await;

    let folder = tempfile::tempdir().unwrap();
    let backup = client.backup(&folder.path().join("catalog.backup"), false).await.unwrap();
    client.submit(push("b", 1, &["web"])).await.unwrap();
    let restored = client.restore(&backup).await.unwrap();
    until_confirmed(&registry, &[0, 1, 2]).await;
    assert!(registry.members[2].agreement.borrow().confirmed >= restored);
    client.submit(push("a", 3, &["web"])).await.unwrap();
    until_confirmed(&registry, &[0, 1, 2]).await;
    for member in &registry.members {
        assert!(!member.agreement.has_changed().unwrap(), "{:?}", member.agreement.borrow());
    }
}
