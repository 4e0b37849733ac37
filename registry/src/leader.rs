//! What only the leader does, in one task that every member runs: leases and their verdicts, and the first bootstrap.

pub(crate) mod brakes;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use muster_catalog::{ClusterId, Command, Name, Snapshot, Status as CheckStatus};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{
    leases::{LeaseConfig, LeaseTable, Verdicts},
    proto::registry as pb,
    raft::Leadership,
    service::{Core, brakes::Decide, renewals::Signs},
};
use brakes::Shown;

/// How long nothing is proposed after a proposal of this task failed: the log is asked again, not stormed.
const RETRY: Duration = Duration::from_millis(200);

/// Runs until the member stops.
pub(crate) async fn run(
    core: Arc<Core>,
    config: LeaseConfig,
    mut signs: mpsc::Receiver<Signs>,
    mut decisions: mpsc::Receiver<Decide>,
    held: watch::Sender<Shown>,
    stop: CancellationToken,
) {
    let mut leadership = core.log.leadership();
    let mut ticks = interval(LeaseTable::tick_interval(&config));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut leader = Leader { core, config, reign: None, proposing: JoinSet::new(), held };
    leader.follow(&leadership.borrow_and_update().clone());
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = leadership.changed() => {
                if changed.is_err() {
                    return;
                }
                leader.follow(&leadership.borrow_and_update().clone());
            }
            signs = signs.recv() => match signs {
                Some(Signs { batch, reply }) => {
                    // The asker may have given up.
                    reply.send(leader.hear(&batch)).ok();
                }
                None => return,
            },
            decide = decisions.recv() => match decide {
                Some(Decide { id, decision, reply }) => {
                    reply.send(leader.decide(&id, decision)).ok();
                }
                None => return,
            },
            Some(_) = leader.proposing.join_next() => {}
            _ = ticks.tick() => {
                leader.follow(&leadership.borrow());
                leader.tick();
            }
        }
    }
}

struct Leader {
    core: Arc<Core>,
    config: LeaseConfig,
    reign: Option<Reign>,
    /// The proposal in flight; one at a time.
    proposing: JoinSet<()>,
    held: watch::Sender<Shown>,
}

/// One term as the leader.
struct Reign {
    term: u64,
    table: LeaseTable,
    /// The catalog that the table followed last: it looks at what moved since.
    followed: Arc<Snapshot>,
}

impl Leader {
    fn follow(&mut self, leadership: &Leadership) {
        // By a catalog that differs no verdict is spoken. Once it is right again all leases begin anew.
        if !leadership.is_leader || self.core.disagreement().is_some() {
            self.reign = None;
            self.show_held();
            metrics::gauge!("muster_registry_leases").set(0.0);
        } else if self.reign.as_ref().is_none_or(|reign| reign.term != leadership.term) {
            tracing::info!(term = leadership.term, "this member leads");
            let snapshot = self.core.catalog.now();
            let table = LeaseTable::new(self.config.clone(), leadership.term, Instant::now(), &snapshot);
            self.reign = Some(Reign { term: leadership.term, table, followed: snapshot });
            // A new registry gets its identity at once.
            self.tick();
        }
    }

    fn hear(&mut self, batch: &pb::RenewBatchRequest) -> Result<pb::RenewBatchReply, Status> {
        let Some(reign) = &mut self.reign else {
            return Err(Status::failed_precondition("this member does not lead: ask the leader"));
        };
        let (now, snapshot) = (Instant::now(), self.core.catalog.now());
        let renewals = batch.renewals.iter().map(|renewal| {
            let node = Name::lookup(&renewal.node);
            let owner = snapshot.find_node(&node).map(|entry| &entry.node.value.id);
            if !renewal.agent.is_empty() && owner.is_none_or(|owner| **owner != *renewal.agent) {
                return false;
            }
            let (table, pb::Renewal { incarnation, stream, .. }) = (&mut reign.table, renewal);
            if !table.renew(now, &node, *incarnation, *stream, batch.member) {
                // It may have pushed since the last tick.
                table.learn(now, &snapshot, &node);
                return table.renew(now, &node, *incarnation, *stream, batch.member);
            }
            true
        });
        let known = renewals.collect();
        for pb::Suspicion { node, incarnation, stream } in &batch.suspicions {
            reign.table.suspect(now, &Name::lookup(node), *incarnation, *stream, batch.member);
        }
        let lease_milliseconds = brakes::milliseconds(self.config.ttl);
        Ok(pb::RenewBatchReply { known, term: reign.term, lease_milliseconds })
    }

    fn tick(&mut self) {
        let Some(reign) = &mut self.reign else { return };
        let (now, snapshot) = (Instant::now(), self.core.catalog.now());
        reign.table.follow(now, &reign.followed, &snapshot);
        reign.followed = snapshot.clone();
        metrics::gauge!("muster_registry_leases").set(reign.table.len() as f64);
        let Verdicts { lost, returned } = reign.table.tick(now);
        self.show_held();
        if !self.proposing.is_empty() {
            return;
        }
        if snapshot.cluster().uuid.is_empty() {
            let uuid = uuid::Uuid::new_v4().to_string().into();
            return self.propose(vec![Command::Bootstrap(ClusterId { uuid, incarnation: 1 })], 0);
        }
        let count = lost.len();
        let commands = [(lost, CheckStatus::Critical), (returned, CheckStatus::Passing)];
        let commands = commands.into_iter().filter(|(nodes, _)| !nodes.is_empty());
        let commands: Vec<Command> = commands.map(|(nodes, status)| Command::Liveness { nodes, status }).collect();
        if !commands.is_empty() {
            self.propose(commands, count);
        }
    }

    fn propose(&mut self, commands: Vec<Command>, lost: usize) {
        let core = self.core.clone();
        self.proposing.spawn(async move {
            for command in commands {
                log_verdict(&command);
                let begun = if let Command::Bootstrap(cluster) = &command { Some(cluster.uuid.clone()) } else { None };
                if let Err(error) = core.propose(command).await {
                    tracing::warn!(%error, "a proposal of the leader failed; it is made again while this member leads");
                    return tokio::time::sleep(RETRY).await;
                }
                // Said of the one that came to be: several may be proposed while leaders change.
                if let Some(uuid) = begun.filter(|uuid| *uuid == core.catalog.now().cluster().uuid) {
                    tracing::info!(%uuid, "a new registry begins");
                }
            }
            metrics::counter!("muster_registry_lease_expiries_total").increment(lost as u64);
        });
    }
}

fn log_verdict(command: &Command) {
    if let Command::Liveness { nodes, status } = command {
        let names: Vec<&str> = nodes.iter().take(10).map(|(name, _)| name.as_str()).collect();
        tracing::info!(count = nodes.len(), %status, first = ?names, "nodes change their liveness");
    }
}
