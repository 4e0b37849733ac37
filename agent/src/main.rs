//! `muster`: the one binary.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    ExitCode::from(muster_agent::cli::Cli::parse().run())
}
