//! `just bench`: Muster's own figures on this machine, with medians. Ratios travel, absolute figures do not.

#![allow(clippy::print_stdout, reason = "figures are what it is for")]

use std::{process::ExitCode, time::Duration};

use anyhow::Result;

mod checks;
mod dns;
mod failover;
mod http;
mod idle;
mod memory;
mod nameserver;
mod node;
mod peers;
mod scopes;
mod size;
mod waiters;
mod watches;
mod writes;
mod xds;

/// What can be asked for; all when nothing is.
const SECTIONS: [&str; 11] =
    ["dns", "writes", "node", "waiters", "watches", "xds", "memory", "scopes", "idle", "checks", "failover"];
/// Muster beside its peers, which is a run of its own; with parts of it, only those.
const PEERS: &str = "peers";
/// After `peers`: the smallest run, which says nothing but that it runs.
const SMALL: &str = "--small";
/// How often each figure is taken; the median is printed.
const ROUNDS: usize = 3;

#[tokio::main]
async fn main() -> ExitCode {
    let only: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--").collect();
    if only.first().is_some_and(|first| first == PEERS) {
        return finish(beside_peers(&only[1..]).await);
    }
    if let Some(unknown) = only.iter().find(|one| !SECTIONS.contains(&one.as_str())) {
        eprintln!("bench: {unknown:?} is not one of {}, {PEERS}", SECTIONS.join(", "));
        return ExitCode::FAILURE;
    }
    finish(run(&only).await)
}

async fn beside_peers(arguments: &[String]) -> Result<()> {
    let size = if arguments.iter().any(|one| one == SMALL) { size::Size::SMALL } else { size::Size::FULL };
    let parts: Vec<&str> = arguments.iter().map(String::as_str).filter(|one| *one != SMALL).collect();
    say_binary()?;
    peers::run(size, &parts).await
}

fn finish(outcome: Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn say_binary() -> Result<()> {
    let binary = muster_tests::harness::muster_binary()?;
    line("binary", &binary.display().to_string());
    if cfg!(debug_assertions) || binary.components().any(|part| part.as_os_str() == "debug") {
        line("profile", "debug: these figures say nothing, use --release");
    }
    Ok(())
}

async fn run(only: &[String]) -> Result<()> {
    say_binary()?;
    for section in SECTIONS.into_iter().filter(|section| only.is_empty() || only.iter().any(|one| one == section)) {
        match section {
            "dns" => dns::run().await?,
            "writes" => writes::run().await?,
            "node" => node::run()?,
            "waiters" => waiters::run().await?,
            "watches" => watches::run().await?,
            "xds" => xds::run().await?,
            "memory" => memory::run().await?,
            "scopes" => scopes::run().await?,
            "idle" => idle::run().await?,
            "checks" => checks::run().await?,
            _ => failover::run().await?,
        }
    }
    Ok(())
}

/// Prints one figure.
fn line(what: &str, value: &str) {
    println!("{what:<52} {value}");
}

/// The value at this share of a sorted list.
fn percentile<T: Copy>(sorted: &[T], share: f64) -> Option<T> {
    let at = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(at.saturating_sub(1)).copied()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    percentile(&values, 0.5).unwrap_or(f64::NAN)
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}
