//! `just bench`: Muster's own figures on this machine, with medians. Ratios travel, absolute figures do not.

#![allow(clippy::print_stdout, reason = "figures are what it is for")]

use std::{process::ExitCode, time::Duration};

use anyhow::Result;

mod dns;
mod memory;
mod waiters;
mod writes;

/// How often each figure is taken; the median is printed.
const ROUNDS: usize = 3;

#[tokio::main]
async fn main() -> ExitCode {
    let only: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--").collect();
    let wanted = |name: &str| only.is_empty() || only.iter().any(|one| one == name);
    match run(wanted).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(wanted: impl Fn(&str) -> bool) -> Result<()> {
    line("binary", &muster_tests::harness::muster_binary()?.display().to_string());
    if wanted("dns") {
        dns::run().await?;
    }
    if wanted("writes") {
        writes::run().await?;
    }
    if wanted("waiters") {
        waiters::run().await?;
    }
    if wanted("memory") {
        memory::run().await?;
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
