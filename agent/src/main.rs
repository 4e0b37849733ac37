//! `muster`: the one binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(muster_agent::cli::main())
}
