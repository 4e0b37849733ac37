//! Checks: each probe on its own schedule, one small task per check, results to the owner of the local state.
//!
//! A probe (a file per type) turns into an [`Outcome`]; [`threshold`] turns outcomes into a status, and [`damping`] holds
//! back recoveries of those that flap; [`schedule`] says when. What goes over the network is resolved and judged by [`guard`] first, and may speak [`tls`]. An [`alias`] is
//! told by changes; TTL checks have no task: their deadlines ([`ttl`]) lie with the owner.

mod alias;
mod conversation;
pub(crate) mod damping;
mod grpc;
mod guard;
mod h2ping;
mod http;
mod mysql;
mod postgres;
mod redis;
pub(crate) mod schedule;
mod script;
mod systemd;
mod tcp;
#[cfg(test)]
mod tests;
pub(crate) mod threshold;
mod tls;
pub(crate) mod ttl;
mod udp;

use std::{error::Error, sync::Arc, time::Duration};

use muster_catalog::{CheckId, Status, Text};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use crate::{
    definition::{CheckDefinition, Probe, SocketProbe, Talk},
    local::LocalRows,
    resolver::Resolver,
};
use schedule::Schedule;
pub(crate) use script::Scripts;

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

    fn passing(output: &str) -> Self {
        Self::new(Status::Passing, output)
    }

    fn critical(output: &str) -> Self {
        Self::new(Status::Critical, output)
    }
}

/// What all checks of the agent share.
#[derive(Debug)]
pub(crate) struct Tools {
    tls: tls::TlsTrust,
    bus: systemd::Bus,
    resolver: Resolver,
    scripts: Scripts,
    places: script::Places,
}

impl Tools {
    pub(crate) fn new(scripts: Scripts) -> Self {
        let (tls, bus, resolver) = (tls::TlsTrust::default(), systemd::Bus::default(), Resolver::default());
        Self { tls, bus, resolver, scripts, places: script::Places::default() }
    }

    /// Takes leave of processes that scripts left behind, where nobody else does: see [`script::Places::reap_orphans`].
    pub(crate) fn reap_orphans(&self) {
        self.places.reap_orphans();
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
    tools: Arc<Tools>,
    rows: watch::Receiver<Arc<LocalRows>>,
    reports: mpsc::Sender<Report>,
) -> CheckId {
    let check = definition.id.clone();
    if let Probe::Alias { service } = &definition.probe {
        return alias::follow(check, service.clone(), run, rows, reports).await;
    }
    drop(rows);
    let mut past = script::Past::default();
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(schedule.next()) => {}
            // One that waits for a place runs as soon as it has one.
            () = past.turn_comes() => {}
        }
        let started = Instant::now();
        let outcome = probe(&definition, &tools, &mut past).await;
        count(definition.probe.kind(), outcome.status, started.elapsed());
        // One that ran because its turn came runs at its time all the same.
        if Instant::now() >= schedule.next() {
            schedule.advance(Instant::now());
        }
        if reports.send(Report { check: check.clone(), run, outcome }).await.is_err() {
            return check;
        }
    }
}

/// One probe, in at most the check's timeout; an overrun is an outcome like any other.
async fn probe(definition: &CheckDefinition, tools: &Tools, past: &mut script::Past) -> Outcome {
    let probe = async {
        match &definition.probe {
            Probe::Http(probe) => http::probe(probe, definition.timeout, tools).await,
            Probe::Socket(probe) => talk(probe, tools).await,
            Probe::Systemd { unit } => systemd::probe(unit, &tools.bus).await,
            Probe::Script { args } => script::probe(args, definition.timeout, tools, past).await,
            Probe::Ttl { .. } | Probe::Alias { .. } => Outcome::critical("it is told its status and does not probe"),
        }
    };
    // A script minds the time itself: it has to be killed, and its words are kept.
    if matches!(definition.probe, Probe::Script { .. }) {
        return probe.await;
    }
    match tokio::time::timeout(definition.timeout, probe).await {
        Ok(outcome) => outcome,
        Err(_) => {
            let (kind, target) = (definition.probe.kind(), definition.probe.target());
            Outcome::critical(&format!("{kind} {target}: no answer within {:?}", definition.timeout))
        }
    }
}

async fn talk(probe: &SocketProbe, tools: &Tools) -> Outcome {
    match &probe.talk {
        Talk::Tcp => tcp::probe(probe, tools).await,
        Talk::Udp { send, expect } => udp::probe(&probe.target, send, expect, probe.allow_link_local, tools).await,
        Talk::Grpc { service } => grpc::probe(probe, service, tools).await,
        Talk::H2Ping => h2ping::probe(probe, tools).await,
        Talk::Redis => redis::probe(probe, tools).await,
        Talk::Postgres => postgres::probe(probe, tools).await,
        Talk::Mysql => mysql::probe(probe, tools).await,
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

/// The error and what lies beneath it: the top alone says little ("error sending request").
pub(crate) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}
