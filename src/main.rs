//! The ready-made worker and the commands for people: `cliquet <command>`.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    cliquet::ops::Cli::parse().run()
}
