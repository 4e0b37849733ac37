//! The disks of a majority went back in time: those members go on without what the third one has committed.

use std::fs::{remove_dir_all, rename};

use super::cluster::copy;
use super::harness::{Cluster, Node, leader, lists, within, write};
use crate::raft::{Ahead, MemberChange};

/// Values of what was acknowledged and then lost, and of what was written afterwards.
const LOST: std::ops::Range<u64> = 1..21;
const LATER: u64 = 100;

struct GoneBack {
    cluster: Cluster,
    /// The two whose disks went back, with some writes since.
    others: Vec<Node>,
    /// The third one, and the last entry that it has.
    good: Node,
    last: u64,
}

/// A registry in which this happened while nobody reached the third member. `later` writes follow, and as many
/// elections before and after as are asked for: by their terms the one history or the other looks newer.
async fn gone_back(later: u64, elections: [usize; 2]) -> GoneBack {
    let cluster = Cluster::new(3).await;
    let mut nodes = cluster.start_all().await;
    let index = write(&nodes, 0).await;
    lists(&nodes, index).await;
    for node in nodes.drain(..) {
        node.stop().await;
    }
    for number in 0..3 {
        copy(&cluster.data_dir(number), &cluster.data_dir(10 + number));
    }
    let mut nodes = cluster.start_all().await;
    elect(&nodes, elections[0]).await;
    let mut last = 0;
    for value in LOST {
        last = write(&nodes, value).await;
    }
    lists(&nodes, last).await;
    let leading = leader(&nodes).await.address.clone();
    let good = nodes.remove(nodes.iter().position(|node| node.address == leading).unwrap());
    cluster.cables.cut(&good.address);
    for node in nodes.drain(..) {
        node.stop().await;
    }
    for number in (0..3).filter(|number| cluster.addresses[*number] != good.address) {
        remove_dir_all(cluster.data_dir(number)).unwrap();
        rename(cluster.data_dir(10 + number), cluster.data_dir(number)).unwrap();
        nodes.push(cluster.start(number).await);
    }
    elect(&nodes, elections[1]).await;
    for value in LATER..LATER + later {
        write(&nodes, value).await;
    }
    GoneBack { cluster, others: nodes, good, last }
}

async fn elect(nodes: &[Node], times: usize) {
    for _ in 0..times {
        let led = leader(nodes).await;
        let next = nodes.iter().find(|node| node.address != led.address).unwrap().consensus.node_id();
        let change = MemberChange::Transfer(Some(crate::raft::id_text(next)));
        led.consensus.change_members(change).await.unwrap();
    }
}

async fn found(node: &Node) -> Ahead {
    let mut ahead = node.consensus.ahead();
    within("a leader that lacks what is committed", ahead.wait_for(Option::is_some)).await.unwrap().unwrap()
}

fn values(node: &Node) -> Vec<u64> {
    node.list.entries().iter().map(|(_, value)| *value).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_follows_no_leader_that_lacks_what_is_committed_here() {
    for (later, restarts) in [(1, false), (1, true), (40, true)] {
        let GoneBack { cluster, others, mut good, last } = gone_back(later, [0, 4]).await;
        if restarts {
            let number = cluster.addresses.iter().position(|address| *address == good.address).unwrap();
            good.stop().await;
            good = cluster.start(number).await;
        }
        cluster.cables.heal(&good.address);
        assert_eq!(found(&good).await, Ahead { committed: last }, "{later} {restarts}");
        // The others go on, and nothing of theirs came here.
        write(&others, LATER + later).await;
        let own = values(&good);
        assert!(own.iter().all(|value| *value < LATER) && (restarts || own.len() == 21), "{own:?}");
        good.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whichever_history_gets_the_lead_none_is_mixed_into_the_other() {
    let GoneBack { cluster, others, good, .. } = gone_back(3, [4, 0]).await;
    cluster.cables.heal(&good.address);
    // By its terms the older one looks newer: its member may be elected, and then the others find that they are ahead.
    tokio::select! {
        _ = found(&good) => {}
        _ = found(&others[0]) => {}
        _ = found(&others[1]) => {}
    }
    for node in others.iter().chain([&good]) {
        let values = values(node);
        let (lost, later) =
            (values.iter().any(|value| LOST.contains(value)), values.iter().any(|value| *value >= LATER));
        assert!(!(lost && later), "{values:?}");
    }
}
