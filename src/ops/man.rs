//! `cliquet man`: manual pages, made from the same words as `--help`.

use std::{fs, io, path::Path, path::PathBuf, process::ExitCode};

use clap::{Args, Command};
use clap_mangen::{
    Man as Page,
    roff::{Roff, bold, roman},
};

use super::{failure::Failure, output::Output};

pub(super) const HELP: &str = "\
Without --dir the main page goes to standard output. With it, a page for each
command goes into that folder, and their paths to standard output.

Examples:
  cliquet man | man -l -
  cliquet man --dir /usr/local/share/man/man1     then: man cliquet-dead-list

Needs neither settings nor services.";

/// The manual's section: commands of users.
const SECTION: &str = "1";

/// `cliquet man`.
#[derive(Debug, Args)]
pub(super) struct Man {
    /// Write a page for each command into this folder, which is made if it is not there
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl Man {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let mut command = super::command().disable_help_subcommand(true);
        command.build();
        let mut output = Output::default();
        let Some(dir) = self.dir else {
            output.bytes(&page(&command, None).map_err(unwritten)?)?;
            return Ok(ExitCode::SUCCESS);
        };
        let written = |path: &Path, done: io::Result<()>| {
            done.map_err(|error| {
                Failure::failed(format!("{} cannot be written: {error}", path.display()))
            })
        };
        written(&dir, fs::create_dir_all(&dir))?;
        for (command, parent) in all(&command) {
            let path = dir.join(format!("{}.{SECTION}", name(command)));
            let page = page(command, parent).map_err(unwritten)?;
            written(&path, fs::write(&path, page))?;
            output.line(path.display())?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn unwritten(error: io::Error) -> Failure {
    Failure::failed(format!("the page cannot be written: {error}"))
}

/// A command and all below it that are not hidden, each with the one above.
fn all(command: &Command) -> Vec<(&Command, Option<&Command>)> {
    let mut found = vec![(command, None)];
    let mut at = 0;
    while let Some(&(command, _)) = found.get(at) {
        found.extend(below(command).map(|below| (below, Some(command))));
        at += 1;
    }
    found
}

fn below(command: &Command) -> impl Iterator<Item = &Command> {
    command
        .get_subcommands()
        .filter(|below| !below.is_hide_set())
}

/// `cliquet-dead-list`.
fn name(command: &Command) -> &str {
    command.get_display_name().unwrap_or(command.get_name())
}

fn page(command: &Command, parent: Option<&Command>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let page = Page::new(command.clone())
        .section(SECTION)
        .date(" ") // an empty one is left out, and what follows would move into its place
        .source(concat!("cliquet ", env!("CARGO_PKG_VERSION")))
        .manual("cliquet");
    page.render_title(&mut bytes)?;
    page.render_name_section(&mut bytes)?;
    page.render_synopsis_section(&mut bytes)?;
    page.render_description_section(&mut bytes)?;
    page.render_options_section(&mut bytes)?;
    let mut rest = Roff::new();
    commands(&mut rest, command);
    if let Some(words) = command.get_after_help() {
        notes(&mut rest, &words.to_string());
    }
    see_also(&mut rest, command, parent);
    rest.to_writer(&mut bytes)?;
    Ok(bytes)
}

fn commands(roff: &mut Roff, command: &Command) {
    let mut below = below(command).peekable();
    if below.peek().is_none() {
        return;
    }
    roff.control("SH", ["COMMANDS"]);
    for command in below {
        roff.control("TP", []);
        roff.text([bold(format!("{}({SECTION})", name(command)))]);
        let about = command.get_about().map(ToString::to_string);
        roff.text([roman(about.unwrap_or_default())]);
    }
}

/// What stands below the options in `--help`. There a line such as `Examples:` is a heading, and indented lines stand as they
/// are; the rest are paragraphs.
fn notes(roff: &mut Roff, words: &str) {
    let (mut headed, mut literal, mut blank) = (false, false, false);
    for line in words.lines() {
        if line.trim().is_empty() {
            blank = true;
            continue;
        }
        let indented = line.starts_with(' ');
        if literal && !indented {
            roff.control("fi", []);
            literal = false;
        }
        let heading = line
            .strip_suffix(':')
            .filter(|words| !indented && words.len() < 30);
        if let Some(heading) = heading {
            roff.control("SH", [heading.to_uppercase().as_str()]);
            (headed, blank) = (true, false);
            continue;
        }
        if !headed {
            roff.control("SH", ["NOTES"]);
            (headed, blank) = (true, false);
        }
        if indented && !literal {
            roff.control("PP", []);
            roff.control("nf", []);
            (literal, blank) = (true, false);
        }
        if blank {
            match literal {
                true => roff.text([roman("")]),
                false => roff.control("PP", []),
            };
            blank = false;
        }
        roff.text([roman(line)]);
    }
    if literal {
        roff.control("fi", []);
    }
}

fn see_also(roff: &mut Roff, command: &Command, parent: Option<&Command>) {
    let near = parent.into_iter().chain(below(command));
    let pages: Vec<_> = near
        .map(|command| format!("{}({SECTION})", name(command)))
        .collect();
    if !pages.is_empty() {
        roff.control("SH", ["SEE ALSO"]);
        roff.text([roman(pages.join(", "))]);
    }
}
