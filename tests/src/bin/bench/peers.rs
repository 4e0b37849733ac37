//! `just bench-peers`: Muster beside what one would take instead, in one run and in turns, with the aims.

use anyhow::{Result, bail};

use super::{dns, size::Size};

mod crowd;
mod etcd;
mod failover;
mod propagation;
mod storage;

/// What can be asked for; all when nothing is.
const PARTS: [&str; 5] = ["dns", "storage", "failover", "propagation", "crowd"];

/// One figure, as it is printed.
pub(super) struct Row {
    /// What was measured.
    pub(super) figure: String,
    /// Muster's.
    pub(super) ours: String,
    /// The peer's.
    pub(super) peer: String,
    /// Ours to theirs.
    pub(super) ratio: Option<f64>,
    /// What is aimed at, in words.
    pub(super) aim: &'static str,
    /// Whether it was met in this run.
    pub(super) met: Option<bool>,
}

impl Row {
    fn print(&self) {
        let Self { figure, ours, peer, ratio, aim, met } = self;
        let ratio = ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}"));
        let met = match met {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "",
        };
        println!("{figure:<44} {ours:<38} {peer:<38} {ratio:>6}  {aim:<28} {met}");
    }
}

/// Measures these parts and prints each as soon as it is done.
pub(super) async fn run(size: Size, parts: &[&str]) -> Result<()> {
    if let Some(unknown) = parts.iter().find(|part| !PARTS.contains(part)) {
        bail!("{unknown:?} is not one of {}", PARTS.join(", "));
    }
    println!("load when begun: {}", std::fs::read_to_string("/proc/loadavg")?.trim());
    println!("{:<44} {:<38} {:<38} {:>6}  {:<28}", "figure", "Muster", "peer", "ratio", "aim");
    for part in PARTS.into_iter().filter(|part| parts.is_empty() || parts.contains(part)) {
        let rows = match part {
            "dns" => names(size).await?,
            "storage" => storage::run(size).await?,
            "failover" => failover::run(size).await?,
            "propagation" => propagation::run(size).await?,
            _ => crowd::run(size).await?,
        };
        rows.iter().for_each(Row::print);
    }
    println!("load when done: {}", std::fs::read_to_string("/proc/loadavg")?.trim());
    Ok(())
}

async fn names(size: Size) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (what, servers) in dns::measure(size).await? {
        let said = |server: &dns::Server| format!("{:.1} CPU s/M, {:.0}/s", server.cpu, server.rate);
        rows.extend(servers[1..].iter().map(|peer| {
            let ratio = servers[0].cpu / peer.cpu;
            // The aim is set against nsd; Knot is beside it to show that nsd is no odd one out.
            let aimed = peer.name == "nsd";
            Row {
                figure: format!("DNS {what}, beside {}", peer.name),
                ours: said(&servers[0]),
                peer: said(peer),
                ratio: Some(ratio),
                aim: if aimed { "≤ 1.7 × nsd's CPU" } else { "" },
                met: aimed.then_some(ratio <= 1.7),
            }
        }));
    }
    Ok(rows)
}
