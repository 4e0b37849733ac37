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
mod nsd;
mod scopes;
mod waiters;
mod writes;

/// What can be asked for; all when nothing is.
const SECTIONS: [&str; 8] = ["dns", "writes", "waiters", "memory", "scopes", "idle", "checks", "failover"];
/// How often each figure is taken; the median is printed.
const ROUNDS: usize = 3;

#[tokio::main]
async fn main() -> ExitCode {
    let only: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--").collect();
    if let Some(unknown) = only.iter().find(|one| !SECTIONS.contains(&one.as_str())) {
        eprintln!("bench: {unknown:?} is not one of {}", SECTIONS.join(", "));
        return ExitCode::FAILURE;
    }
    match run(&only).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(only: &[String]) -> Result<()> {
    let binary = muster_tests::harness::muster_binary()?;
    line("binary", &binary.display().to_string());
    if cfg!(debug_assertions) || binary.components().any(|part| part.as_os_str() == "debug") {
        line("profile", "debug: these figures say nothing, use --release");
    }
    for section in SECTIONS.into_iter().filter(|section| only.is_empty() || only.iter().any(|one| one == section)) {
        match section {
            "dns" => dns::run().await?,
            "writes" => writes::run().await?,
            "waiters" => waiters::run().await?,
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
