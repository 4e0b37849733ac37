//! What a cluster promises.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use openraft::async_runtime::watch::WatchReceiver;

use super::harness::{Cluster, LIMIT, leader, lists, payload, propose, within, write};
use crate::raft::{ChangeError, MAX_PAYLOAD_BYTES, MemberChange, ProposeError, ReadError, ReadPolicy, StartError};

fn values(list: &[(u64, u64)]) -> Vec<u64> {
    list.iter().map(|(_, value)| *value).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_member_begins_by_itself_and_survives_a_restart() {
    let cluster = Cluster::new(1).await;
    let nodes = cluster.start_all().await;
    let index = write(&nodes, 42).await;
    assert!(nodes[0].consensus.read_index(ReadPolicy::Quorum).await.unwrap() >= index);
    assert_eq!(nodes[0].consensus.members().len(), 1);
    for node in nodes {
        node.stop().await;
    }
    let nodes = cluster.start_all().await;
    within("recovery", nodes[0].consensus.wait_recovered(LIMIT)).await.unwrap();
    assert_eq!(values(&nodes[0].list.entries()), [42]);
}

#[tokio::test(flavor = "multi_thread")]
async fn three_members_agree_point_to_the_leader_and_restart_equal() {
    let cluster = Cluster::new(3).await;
    let nodes = cluster.start_all().await;
    let mut last = 0;
    for value in 0..20 {
        last = write(&nodes, value).await;
    }
    let before = lists(&nodes, last).await;
    assert_eq!(values(&before[0]), (0..20).collect::<Vec<_>>());
    assert!(before.iter().all(|list| *list == before[0]));

    let leading = leader(&nodes).await;
    let follower = nodes.iter().find(|node| node.address != leading.address).unwrap();
    within("the follower's leader", follower.consensus.leadership().wait_for(|l| l.leader.is_some())).await.unwrap();
    match follower.consensus.propose(payload(1)).await {
        Err(ProposeError::NotLeader { leader: Some(hint) }) => assert_eq!(hint.address, leading.address),
        other => panic!("{other:?}"),
    }
    match follower.consensus.read_index(ReadPolicy::Lease).await {
        Err(ReadError::NotLeader { leader: Some(hint) }) => assert_eq!(hint.id, leading.consensus.node_id()),
        other => panic!("{other:?}"),
    }
    assert!(leading.consensus.read_index(ReadPolicy::Lease).await.unwrap() >= last);

    join_all(nodes.into_iter().map(|node| node.stop())).await;
    let nodes = cluster.start_all().await;
    for node in &nodes {
        within("recovery", node.consensus.wait_recovered(LIMIT)).await.unwrap();
        assert_eq!(node.list.entries(), before[0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_write_is_accepted_soon_after_the_leader_is_gone() {
    let cluster = Cluster::new(3).await;
    let mut nodes = cluster.start_all().await;
    let mut acknowledged = vec![write(&nodes, 0).await];
    let leading = leader(&nodes).await.address.clone();
    let at = nodes.iter().position(|node| node.address == leading).unwrap();
    cluster.cables.cut(&leading);
    let gone = nodes.remove(at);
    let began = Instant::now();
    acknowledged.push(write(&nodes, 1).await);
    println!("next accepted write after {:?}", began.elapsed());
    gone.stop().await;
    for list in lists(&nodes, acknowledged[1]).await {
        assert_eq!(list, [(acknowledged[0], 0), (acknowledged[1], 1)]);
    }
}

/// It may have lost entries that followers hold under that term: it must not give their indexes to others.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_restarts_at_once_does_not_lead_on_in_its_term() {
    let cluster = Cluster::new(3).await;
    let mut nodes = cluster.start_all().await;
    write(&nodes, 0).await;
    let led = leader(&nodes).await;
    let (address, before) = (led.address.clone(), led.consensus.leadership().borrow().term);
    let at = nodes.iter().position(|node| node.address == address).unwrap();
    nodes.remove(at).stop().await;
    nodes.push(cluster.start(cluster.addresses.iter().position(|other| *other == address).unwrap()).await);
    let index = write(&nodes, 1).await;
    let after = leader(&nodes).await.consensus.leadership().borrow().term;
    assert!(after > before, "the write after the restart was taken in term {after}, as those before it");
    for list in lists(&nodes, index).await {
        assert_eq!(values(&list), [0, 1]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_isolated_leader_confirms_no_read_and_no_write() {
    let cluster = Cluster::new(3).await;
    let mut nodes = cluster.start_all().await;
    write(&nodes, 0).await;
    let leading = leader(&nodes).await.address.clone();
    let at = nodes.iter().position(|node| node.address == leading).unwrap();
    let isolated = nodes.remove(at);
    cluster.cables.cut(&isolated.address);
    let index = write(&nodes, 1).await;
    let read = isolated.consensus.read_index(ReadPolicy::Quorum).await;
    assert!(matches!(read, Err(ReadError::NoQuorum(_) | ReadError::NotLeader { .. })), "{read:?}");
    // Another leader exists, so the old one's lease has run out.
    let read = isolated.consensus.read_index(ReadPolicy::Lease).await;
    assert!(matches!(read, Err(ReadError::NoQuorum(_) | ReadError::NotLeader { .. })), "{read:?}");
    let written = isolated.consensus.propose(payload(666)).await;
    assert!(matches!(written, Err(ProposeError::UnknownOutcome(_) | ProposeError::NotLeader { .. })), "{written:?}");
    for written in isolated.consensus.propose_many(vec![payload(667), payload(668)]).await {
        let unconfirmed = matches!(written, Err(ProposeError::UnknownOutcome(_) | ProposeError::NotLeader { .. }));
        assert!(unconfirmed, "{written:?}");
    }
    assert!(leader(&nodes).await.consensus.read_index(ReadPolicy::Quorum).await.unwrap() >= index);
    // Back among the others it takes their log, and its own orphan is gone.
    cluster.cables.heal(&isolated.address);
    nodes.push(isolated);
    let index = write(&nodes, 2).await;
    for list in lists(&nodes, index).await {
        assert_eq!(values(&list), [0, 1, 2]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_behind_the_purge_gets_a_snapshot_and_restarts_from_it() {
    let mut cluster = Cluster::new(3).await;
    cluster.snapshot_entries = 64;
    let nodes = cluster.start_all().await;
    write(&nodes, 0).await;
    let leading = leader(&nodes).await;
    let behind = nodes.iter().find(|node| node.address != leading.address).unwrap();
    let missed = behind.consensus.last_applied().unwrap_or_default();
    cluster.cables.cut(&behind.address);
    let mut last = 0;
    for value in 1..300 {
        last = leading.consensus.propose(payload(value)).await.unwrap().0;
    }
    let purged = |metrics: &openraft::RaftMetrics<_>| metrics.purged.is_some_and(|id| id.index > missed + 10);
    leading.consensus.raft().wait(Some(LIMIT)).metrics(purged, "purge").await.unwrap();
    assert!(behind.consensus.last_applied().unwrap_or_default() < missed + 10);
    cluster.cables.heal(&behind.address);
    behind.wait_applied(last).await;
    assert_eq!(behind.list.entries(), leading.list.entries());
    assert!(behind.consensus.raft().metrics().borrow_watched().snapshot.is_some_and(|id| id.index > missed));

    let before = leading.list.entries();
    join_all(nodes.into_iter().map(|node| node.stop())).await;
    let nodes = cluster.start_all().await;
    for node in &nodes {
        within("recovery", node.consensus.wait_recovered(LIMIT)).await.unwrap();
        assert_eq!(node.list.entries(), before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_disk_comes_back_as_a_new_member() {
    let cluster = Cluster::new(3).await;
    let mut nodes = cluster.start_all().await;
    write(&nodes, 0).await;
    let leading = leader(&nodes).await.address.clone();
    let at = nodes.iter().position(|node| node.address != leading).unwrap();
    let wiped = nodes.remove(at);
    let (old, number) =
        (wiped.consensus.node_id(), cluster.addresses.iter().position(|a| *a == wiped.address).unwrap());
    wiped.stop().await;
    std::fs::remove_dir_all(cluster.data_dir(number)).unwrap();
    let index = write(&nodes, 1).await;

    nodes.push(cluster.start(number).await);
    let fresh = &nodes[2];
    let joined = |id: u64| move |l: &crate::raft::Leadership| l.members.iter().any(|m| m.id == id && m.voter);
    within("joining", fresh.consensus.leadership().wait_for(joined(fresh.consensus.node_id()))).await.unwrap();
    let replaced =
        |l: &crate::raft::Leadership| l.members.len() == 3 && l.members.iter().all(|m| m.id != old && m.voter);
    for node in &nodes {
        within("replacing", node.consensus.leadership().wait_for(replaced)).await.unwrap();
    }
    fresh.wait_applied(index).await;
    assert_eq!(values(&fresh.list.entries()), [0, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn full_disks_refuse_writes_and_keep_reads_and_elections() {
    for size in [1, 3] {
        let cluster = Cluster::new(size).await;
        let nodes = cluster.start_all().await;
        let index = write(&nodes, 0).await;
        lists(&nodes, index).await;
        join_all(nodes.into_iter().map(|node| node.stop())).await;
        let mut nodes = Vec::new();
        for number in 0..size {
            nodes.push(cluster.start_with(full(&cluster, number)).await);
        }
        match propose(&nodes, 1).await {
            Err(ProposeError::NoRoom(why)) => assert!(why.contains("make room"), "{why}"),
            other => panic!("{other:?}"),
        }
        leader(&nodes).await.consensus.read_index(ReadPolicy::Quorum).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_with_a_full_disk_hands_the_lead_to_one_with_room() {
    let cluster = Cluster::new(3).await;
    let mut nodes = cluster.start_all().await;
    let index = write(&nodes, 0).await;
    lists(&nodes, index).await;
    nodes.remove(0).stop().await;
    nodes.push(cluster.start_with(full(&cluster, 0)).await);
    let crammed = nodes[2].consensus.node_id();
    within("the lead of the member without room", async {
        let mut leads = nodes[2].consensus.leadership();
        let mut look = tokio::time::interval(Duration::from_millis(500));
        loop {
            tokio::select! {
                _ = leads.wait_for(|now| now.is_leader) => break,
                _ = look.tick() => {}
            }
            let leading = &leader(&nodes).await.consensus;
            let contacts = leading.contacts().unwrap_or_default();
            if contacts.members.get(&crammed).is_some_and(|contact| contact.matched == Some(contacts.last)) {
                leading.raft().trigger().transfer_leader(crammed).await.unwrap();
            }
        }
    })
    .await;
    // Not one of its proposals is refused for good.
    let index = write(&nodes, 1).await;
    assert_ne!(leader(&nodes).await.consensus.node_id(), crammed);
    assert_eq!(values(&lists(&nodes[..2], index).await[0]), [0, 1]);
}

/// The third has room, and alone it is no majority.
#[tokio::test(flavor = "multi_thread")]
async fn full_disks_of_a_majority_refuse_writes_at_once_and_are_named() {
    let cluster = Cluster::new(3).await;
    let mut nodes = cluster.start_all().await;
    let index = write(&nodes, 0).await;
    lists(&nodes, index).await;
    for number in [0, 1] {
        nodes.remove(0).stop().await;
        nodes.push(cluster.start_with(full(&cluster, number)).await);
    }
    // Until the leader has looked, a write waits for the two.
    let why = within("a refusal", async {
        loop {
            match propose(&nodes, 1).await {
                Err(ProposeError::NoRoom(why)) => break why,
                Err(ProposeError::UnknownOutcome(_)) => {}
                other => panic!("{other:?}"),
            }
        }
    })
    .await;
    for part in ["2 of 3 voters", "member-0: the disk of", "member-1: the disk of", "make room"] {
        assert!(why.contains(part), "no {part:?} in {why}");
    }
    leader(&nodes).await.consensus.read_index(ReadPolicy::Quorum).await.unwrap();
    nodes.remove(1).stop().await;
    nodes.push(cluster.start(0).await);
    within("writes", async { while propose(&nodes, 2).await.is_err() {} }).await;
}

/// A member whose disk is never roomy enough.
fn full(cluster: &Cluster, number: usize) -> crate::raft::ConsensusConfig {
    crate::raft::ConsensusConfig { disk_reserve: u64::MAX, ..cluster.config(number) }
}

#[tokio::test(flavor = "multi_thread")]
async fn payloads_proposed_together_are_entries_in_order_with_an_outcome_each() {
    let cluster = Cluster::new(3).await;
    let nodes = cluster.start_all().await;
    let first = write(&nodes, 0).await;
    let leading = leader(&nodes).await;
    let mut payloads: Vec<_> = (1..=100).map(payload).collect();
    payloads.insert(50, vec![0; MAX_PAYLOAD_BYTES + 1].into());
    let mut outcomes = leading.consensus.propose_many(payloads).await;
    assert!(matches!(outcomes.remove(50), Err(ProposeError::Refused(_))), "too large");
    let indexes: Vec<u64> = outcomes.into_iter().map(|outcome| outcome.unwrap().0).collect();
    assert_eq!(indexes, (first + 1..=first + 100).collect::<Vec<_>>());
    for list in lists(&nodes, first + 100).await {
        assert_eq!(values(&list), (0..=100).collect::<Vec<_>>());
    }
    let follower = nodes.iter().find(|node| node.address != leading.address).unwrap();
    for outcome in follower.consensus.propose_many(vec![payload(1), payload(2)]).await {
        assert!(matches!(outcome, Err(ProposeError::NotLeader { .. })), "{outcome:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_stands_for_election_while_the_leader_lives() {
    let cluster = Cluster::new(3).await;
    let nodes = cluster.start_all().await;
    write(&nodes, 0).await;
    let leading = leader(&nodes).await;
    let (address, term) = (leading.address.clone(), leading.consensus.leadership().borrow().term);
    for node in nodes.iter().cycle().take(300) {
        node.consensus.stand_for_election().await;
    }
    write(&nodes, 1).await;
    let leading = leader(&nodes).await;
    assert_eq!((&leading.address, leading.consensus.leadership().borrow().term), (&address, term));
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_writers_share_the_log() {
    const EACH: u64 = 40;
    const ALONE: u64 = 200;
    let cluster = Cluster::new(3).await;
    let nodes = cluster.start_all().await;
    write(&nodes, 0).await;
    let leading = leader(&nodes).await;
    let began = Instant::now();
    for value in 1..=ALONE {
        leading.consensus.propose(payload(value)).await.unwrap();
    }
    println!("{:?} per write with one writer in a debug build", began.elapsed() / ALONE as u32);
    let began = Instant::now();
    let writers = (0..64).map(|writer| async move {
        let mut last = 0;
        for number in 0..EACH {
            last = leading.consensus.propose(payload(writer * 1000 + number)).await.unwrap().0;
        }
        last
    });
    let last = join_all(writers).await.into_iter().max().unwrap();
    let seconds = began.elapsed().as_secs_f64();
    println!("{:.0} writes/s with 64 writers in a debug build", (64 * EACH) as f64 / seconds);
    let lists = lists(&nodes, last).await;
    assert_eq!(lists[0].len() as u64, 64 * EACH + ALONE + 1);
    assert!(lists.iter().all(|list| *list == lists[0]));
}

/// A fourth member, which knows where the registry is and is not in its own list.
async fn fourth(cluster: &Cluster, number: usize) -> super::harness::Node {
    let mut config = cluster.config(number);
    config.members.retain(|address| *address != config.address);
    cluster.start_with(config).await
}

#[tokio::test(flavor = "multi_thread")]
async fn members_come_get_a_vote_lead_and_go_while_writes_go_on() {
    let mut cluster = Cluster::new(4).await;
    let added = cluster.addresses.pop().unwrap();
    let mut nodes = cluster.start_all().await;
    write(&nodes, 0).await;
    cluster.addresses.push(added.clone());
    let change = async |nodes: &[super::harness::Node], change: MemberChange| {
        leader(nodes).await.consensus.change_members(change).await
    };

    let add = MemberChange::Add { address: added.clone(), read_only: true };
    let nobody = change(&nodes, add.clone()).await.unwrap_err().to_string();
    assert!(nobody.contains("no member of a registry answers"), "{nobody}");
    nodes.push(fourth(&cluster, 3).await);
    // It begins no registry of its own, and nobody lets it in unasked.
    let done = change(&nodes[..3], add.clone()).await.unwrap();
    assert!(done.contains("added member-3"), "{done}");
    assert!(change(&nodes[..3], add).await.unwrap().contains("is a member already"));
    let index = write(&nodes, 1).await;
    nodes[3].wait_applied(index).await;
    let new = nodes[3].consensus.node_id();
    let is = |voter| move |now: &crate::raft::Leadership| now.members.iter().any(|m| m.id == new && m.voter == voter);
    within("the reader", nodes[3].consensus.leadership().wait_for(is(false))).await.unwrap();
    assert!(nodes[3].consensus.members().iter().any(|member| member.id == new && member.read_only));
    let lead = change(&nodes, MemberChange::Transfer(Some("member-3".into()))).await.unwrap_err().to_string();
    assert!(lead.contains("has no vote"), "{lead}");

    let promoted = change(&nodes, MemberChange::Promote("member-3".into())).await.unwrap();
    assert!(promoted.contains("4 voters survive the loss of 1"), "{promoted}");
    within("the vote", nodes[3].consensus.leadership().wait_for(is(true))).await.unwrap();
    assert!(nodes[3].consensus.members().iter().all(|member| !member.read_only));
    write(&nodes, 2).await;
    let lead = change(&nodes, MemberChange::Transfer(Some("member-3".into()))).await.unwrap();
    assert_eq!(lead, "member-3 leads now");
    write(&nodes, 3).await;

    // The leader itself is to go: it hands on first, and whoever leads then is asked.
    let old = match change(&nodes, MemberChange::Remove("member-3".into())).await {
        Err(ChangeError::NotLeader { .. }) => {
            change(&nodes[..3], MemberChange::Remove("member-3".into())).await.unwrap()
        }
        other => panic!("{other:?}"),
    };
    assert!(old.contains("3 voters survive the loss of 1"), "{old}");
    let mut removed = nodes[3].consensus.removed();
    let why = within("noticing", removed.wait_for(Option::is_some)).await.unwrap().clone().unwrap();
    assert!(why.to_string().contains("member-3 was removed from its registry"), "{why}");
    let index = write(&nodes[..3], 4).await;
    let gone = nodes.pop().unwrap();
    for list in lists(&nodes, index).await {
        assert_eq!(values(&list), [0, 1, 2, 3, 4]);
    }
    gone.stop().await;
    // Its folder says so for ever: with its old id and log it takes no part.
    let again = crate::raft::Consensus::start(cluster.config(3), super::harness::List::default()).await;
    let again = again.err().unwrap().to_string();
    assert!(again.contains("was removed") && again.contains("empty its data folder"), "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_member_is_replaced_and_nobody_goes_when_a_quorum_would() {
    let mut cluster = Cluster::new(4).await;
    let spare = cluster.addresses.pop().unwrap();
    let mut nodes = cluster.start_all().await;
    write(&nodes, 0).await;
    cluster.addresses.push(spare.clone());
    let leading = leader(&nodes).await.address.clone();
    let dead = nodes.remove(nodes.iter().position(|node| node.address != leading).unwrap());
    let (name, alive) = (name_of(&cluster, &dead), nodes.iter().find(|node| node.address != leading).unwrap());
    let alive = name_of(&cluster, alive);
    dead.stop().await;
    let at = nodes.iter().position(|node| node.address == leading).unwrap();
    let silent = |contacts: Option<crate::raft::Contacts>| {
        let silent = contacts.unwrap().members.into_values().filter(|c| c.silent.is_none_or(|s| s.as_secs() > 2));
        silent.count() == 1
    };
    within("the silence to be noticed", async {
        while !silent(nodes[at].consensus.contacts()) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    // Of the two that would be left one is dead.
    let refused = nodes[at].consensus.change_members(MemberChange::Remove(alive)).await.unwrap_err().to_string();
    assert!(refused.contains(&format!("{name} would not answer")) && refused.contains("bring"), "{refused}");

    nodes.push(fourth(&cluster, 3).await);
    let replace = MemberChange::Replace { member: name.clone(), address: spare };
    let done = nodes[at].consensus.change_members(replace).await.unwrap();
    assert!(done.ends_with(&format!("has taken the place of {name}")), "{done}");
    let index = write(&nodes, 1).await;
    nodes[2].wait_applied(index).await;
    assert_eq!(values(&nodes[2].list.entries()), [0, 1]);
    let members = nodes[at].consensus.members();
    assert_eq!(members.iter().filter(|member| member.voter).count(), 3);
    assert!(members.iter().all(|member| member.name != name), "{members:?}");
}

fn name_of(cluster: &Cluster, node: &super::harness::Node) -> String {
    format!("member-{}", cluster.addresses.iter().position(|address| *address == node.address).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_member_is_tried_now_and_then_and_caught_up_soon_after_it_is_back() {
    let cluster = Cluster::new(3).await;
    let mut nodes = cluster.start_all().await;
    write(&nodes, 0).await;
    let leading = leader(&nodes).await.address.clone();
    let at = nodes.iter().position(|node| node.address != leading).unwrap();
    let stopped = nodes.remove(at);
    let address = stopped.address.clone();
    stopped.stop().await;
    let (began, before) = (std::time::Instant::now(), cluster.cables.tries(&address));
    let mut index = 0;
    while began.elapsed() < Duration::from_millis(1500) {
        index = write(&nodes, 1).await;
    }
    let tries = cluster.cables.tries(&address) - before;
    // Heartbeats, greetings, and the log at its pauses; thousands without them.
    assert!(tries < 100, "{tries} connections tried in {:?}", began.elapsed());
    let number = cluster.addresses.iter().position(|known| *known == address).unwrap();
    let back = cluster.start(number).await;
    let began = std::time::Instant::now();
    back.wait_applied(index).await;
    // The longest pause, twice, on a busy machine.
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_log_is_gone_is_refused_and_one_whose_disk_went_back_is_caught_up() {
    let cluster = Cluster::new(3).await;
    let mut nodes = cluster.start_all().await;
    let index = write(&nodes, 0).await;
    lists(&nodes, index).await;
    let leading = leader(&nodes).await.address.clone();
    let at = nodes.iter().position(|node| node.address != leading).unwrap();
    let number = cluster.addresses.iter().position(|known| *known == nodes[at].address).unwrap();
    nodes.remove(at).stop().await;
    let (folder, old) = (cluster.data_dir(number), cluster.data_dir(9));
    copy(&folder, &old);
    nodes.push(cluster.start(number).await);
    let index = write(&nodes, 1).await;
    lists(&nodes, index).await;
    nodes.remove(2).stop().await;

    let now = cluster.data_dir(8);
    std::fs::rename(&folder, &now).unwrap();
    copy(&old, &folder);
    let back = cluster.start(number).await;
    let index = write(&nodes, 2).await;
    within("catching up", back.wait_applied(index)).await;
    assert_eq!(values(&back.list.entries()), [0, 1, 2]);
    back.stop().await;

    for entry in std::fs::read_dir(folder.join("log")).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let refused = crate::raft::Consensus::start(cluster.config(number), super::harness::List::default()).await;
    let Err(StartError::Directory(why)) = refused else { panic!("it started") };
    assert!(why.is_final() && why.to_string().contains("a log was begun here and is gone"), "{why}");
}

pub(crate) fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let next = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &next);
        } else {
            std::fs::copy(&path, &next).unwrap();
        }
    }
}
