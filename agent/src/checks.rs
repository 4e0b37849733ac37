//! Checks: each probe on its own schedule, one small task per check, results to the owner of the local state.
//!
//! A probe ([`http`], [`tcp`]) turns into an [`Outcome`]; [`threshold`] turns outcomes into a status; [`schedule`]
//! says when. TTL checks have no task: their deadlines ([`ttl`]) lie with the owner.

mod http;
pub(crate) mod schedule;
mod tcp;
pub(crate) mod threshold;
pub(crate) mod ttl;

use std::{sync::Arc, time::Duration};

use muster_catalog::{CheckId, Status, Text};
use tokio::{sync::mpsc, time::Instant};

use crate::definition::{CheckDefinition, Probe};
pub(crate) use http::HttpClients;
use schedule::Schedule;

/// What is kept of an output: enough to see what is wrong, small enough to travel with the row.
pub(crate) const MAX_OUTPUT: usize = 4096;

/// What one probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Good, half good, or bad.
    pub(crate) status: Status,
    /// What was seen, at most [`MAX_OUTPUT`] bytes.
    pub(crate) output: Text,
}

impl Outcome {
    pub(crate) fn new(status: Status, output: &str) -> Self {
        Self { status, output: cut(output) }
    }

    fn critical(output: &str) -> Self {
        Self::new(Status::Critical, output)
    }
}

/// An outcome on its way to the owner of the local state.
#[derive(Debug)]
pub(crate) struct Report {
    /// Which check.
    pub(crate) check: CheckId,
    /// Which start of its task: reports of a replaced task are dropped.
    pub(crate) run: u64,
    /// What was found.
    pub(crate) outcome: Outcome,
}

/// Probes for ever, a probe at a time; returns its id only if nobody listens any more.
pub(crate) async fn run(
    definition: Arc<CheckDefinition>,
    mut schedule: Schedule,
    run: u64,
    clients: Arc<HttpClients>,
    reports: mpsc::Sender<Report>,
) -> CheckId {
    let check = definition.id.clone();
    loop {
        tokio::time::sleep_until(schedule.next()).await;
        let started = Instant::now();
        let outcome = probe(&definition, &clients).await;
        count(definition.probe.kind(), outcome.status, started.elapsed());
        schedule.advance(Instant::now());
        if reports.send(Report { check: check.clone(), run, outcome }).await.is_err() {
            return check;
        }
    }
}

/// One probe, in at most the check's timeout; an overrun is an outcome like any other.
async fn probe(definition: &CheckDefinition, clients: &HttpClients) -> Outcome {
    let probe = async {
        match &definition.probe {
            Probe::Http(probe) => http::probe(probe, clients).await,
            Probe::Tcp { target } => tcp::probe(target).await,
            Probe::Ttl { .. } => Outcome::critical("a ttl check is told its status and does not probe"),
        }
    };
    match tokio::time::timeout(definition.timeout, probe).await {
        Ok(outcome) => outcome,
        Err(_) => {
            let (kind, target) = (definition.probe.kind(), definition.probe.target());
            Outcome::critical(&format!("{kind} {target}: no answer within {:?}", definition.timeout))
        }
    }
}

fn count(kind: &'static str, status: Status, took: Duration) {
    metrics::counter!("muster_agent_check_runs_total", "type" => kind, "result" => status.as_str()).increment(1);
    metrics::histogram!("muster_agent_check_seconds", "type" => kind).record(took.as_secs_f64());
}

/// The first [`MAX_OUTPUT`] bytes, cut between characters.
fn cut(output: &str) -> Text {
    Text::from(begin(output, MAX_OUTPUT))
}

/// The first `most` bytes, cut between characters.
pub(crate) fn begin(text: &str, most: usize) -> &str {
    let end = (0..=most.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    &text[..end]
}
