//! What a write costs the state machine on a node that has much already: 250 checks more, on nodes of three sizes with a
//! check of each service, and where all checks are of one service or of the node.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use muster_catalog::{
    Address, Check, CheckKind, Command, Entry, Instance, Name, Node, NodeSync, Origin, Proposal, Snapshot, Status,
    Timestamp, Weights, Writer, decide,
};

use super::{ROUNDS, line, median, milliseconds};

/// How many services the node has, each with a check.
const SIZES: [usize; 3] = [3_000, 9_000, 15_000];
/// How many checks come in one write.
const MORE: usize = 250;

/// Prints how long the state machine takes for the write.
pub(super) fn run() -> Result<()> {
    for size in SIZES {
        let mut snapshot = Snapshot::default();
        let checks = (0..size).map(|at| check("first", at)).collect();
        apply(&mut snapshot, push(1, (0..size).map(instance).collect(), checks)?)?;
        let checks: Vec<Check> = (0..MORE).map(|at| check("more", at * (size / MORE))).collect();
        let rounds = more(&snapshot, &checks)?;
        line(&format!("{MORE} checks more, node of {size} services"), &format!("{:.1} ms", median(rounds)));
    }
    for (owner, of) in [("one service", Some("svc-0")), ("the node", None)] {
        for size in SIZES {
            let stands = |row: Check| Check { instance: of.map(Into::into), ..row };
            let mut snapshot = Snapshot::default();
            let checks = (0..size).map(|at| stands(check("first", at))).collect();
            apply(&mut snapshot, push(1, vec![instance(0)], checks)?)?;
            let checks: Vec<Check> = (0..MORE).map(|at| stands(check("more", at))).collect();
            let rounds = more(&snapshot, &checks)?;
            line(&format!("{MORE} checks more, {size} of {owner}"), &format!("{:.1} ms", median(rounds)));
        }
    }
    Ok(())
}

fn more(snapshot: &Snapshot, checks: &[Check]) -> Result<Vec<f64>> {
    let round = |_| {
        // Readers hold what they were given: a write copies what it changes.
        let mut next = snapshot.clone();
        Ok(milliseconds(apply(&mut next, push(2, Vec::new(), checks.to_vec())?)?))
    };
    (0..ROUNDS).map(round).collect()
}

fn apply(snapshot: &mut Snapshot, sync: NodeSync) -> Result<Duration> {
    let proposal = Proposal { at: Timestamp(1), command: Command::Sync(sync) };
    let begun = Instant::now();
    let changes = decide(snapshot, &proposal).map_err(|rejection| anyhow!("{rejection}"))?;
    snapshot.fold(&Entry { index: snapshot.index() + 1, at: Timestamp(1), changes });
    Ok(begun.elapsed())
}

fn push(sequence: u64, instances: Vec<Instance>, checks: Vec<Check>) -> Result<NodeSync> {
    let node = Node {
        name: Name::lookup("large"),
        id: "1".into(),
        address: Address::parse("127.0.0.1").context("no address")?,
        tagged_addresses: Default::default(),
        meta: Default::default(),
        locality: None,
        origin: Origin::Agent,
    };
    let (removed_instances, removed_checks) = (Vec::new(), Vec::new());
    let writer = Writer { incarnation: 1, sequence };
    Ok(NodeSync { writer, node, complete: false, instances, checks, removed_instances, removed_checks })
}

fn instance(at: usize) -> Instance {
    Instance {
        node: Name::lookup("large"),
        id: format!("svc-{at}").into(),
        service: Name::lookup(&format!("svc-{at}")),
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
        origin: Origin::Agent,
    }
}

fn check(kind: &str, at: usize) -> Check {
    Check {
        node: Name::lookup("large"),
        id: format!("{kind}-{at}").into(),
        instance: Some(format!("svc-{at}").into()),
        name: kind.into(),
        status: Status::Passing,
        notes: "".into(),
        output: "".into(),
        kind: CheckKind::default(),
        origin: Origin::Agent,
    }
}
