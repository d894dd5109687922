//! `cliquet completions`: what a shell needs to complete commands and options.

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use clap_complete::{Generator, Shell as Known, generate};

use super::{failure::Failure, output::Output};

pub(super) const HELP: &str = "\
Examples:
  cliquet completions bash > /etc/bash_completion.d/cliquet
  source <(cliquet completions bash)                     for this shell alone
  cliquet completions zsh > \"${fpath[1]}/_cliquet\"
  cliquet completions fish > ~/.config/fish/completions/cliquet.fish

Needs neither settings nor services.";

/// `cliquet completions`.
#[derive(Debug, Args)]
pub(super) struct Completions {
    /// For which shell
    #[arg(value_enum)]
    shell: Shell,
}

/// The shells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl Completions {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let script = match self.shell {
            Shell::Bash => script(Known::Bash),
            Shell::Zsh => script(Known::Zsh),
            Shell::Fish => script(Known::Fish),
        };
        Output::default().bytes(&script)?;
        Ok(ExitCode::SUCCESS)
    }
}

fn script(shell: impl Generator) -> Vec<u8> {
    let mut script = Vec::new();
    generate(shell, &mut super::command(), "cliquet", &mut script);
    script
}
