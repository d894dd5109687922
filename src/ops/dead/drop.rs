//! `cliquet dead drop`: parked messages are taken away for good.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, IsTerminal, Write},
    process::ExitCode,
};

use clap::Args;
use serde::Serialize;

use super::{Line, Name, Wanted, closed, not_found};
use crate::{
    broker::{DeadQueue, Parked},
    job::{JobId, JobStatus},
    ledger::Reads,
    ops::{Desk, failure::Failure, output::note},
};

pub(super) const HELP: &str = "\
The ledger keeps the job itself, with its tasks and its history: it stays FAILED,
and `cliquet retry ID` can still send it. Of a message whose job the ledger does
not know, and of what is no job, nothing is kept.

On a terminal it asks first; in a pipe it wants --yes.

Examples:
  cliquet dead drop 3fa9c1d20e4b
  cliquet dead drop --all --undecodable --yes
  cliquet dead drop --all --over      only copies of jobs that ended well, or were cancelled";

/// `cliquet dead drop`.
#[derive(Debug, Args)]
pub(in crate::ops) struct Drop {
    #[command(flatten)]
    wanted: Wanted,

    /// Do not ask
    #[arg(long)]
    yes: bool,

    /// Only those whose job is SUCCESS or CANCELLED by now
    #[arg(long)]
    over: bool,
}

#[derive(Serialize)]
struct Told<'a> {
    /// The job's; null for a message that names none.
    id: Option<JobId>,
    /// The first digits of its hash; null when there is no such message.
    hash: Option<&'a str>,
    /// `dropped`, `ambiguous` or `not_found`.
    outcome: &'static str,
    /// The status of the job that the ledger keeps; null when it keeps nothing.
    status: Option<JobStatus>,
}

/// What was dropped, by what the ledger keeps of it.
type Dropped = BTreeMap<Option<&'static str>, u32>;

impl Drop {
    pub(super) async fn run(self, mut desk: Desk) -> Result<ExitCode, Failure> {
        let reads = desk.reads().await?;
        let mut dead = self.wanted.place.open(&desk).await?;
        // Asked before anything is taken: nobody knows how long a person thinks.
        if !self.yes && !confirmed(&self.question(&dead.name()))? {
            dead.close().await?;
            note("nothing is dropped");
            return Ok(ExitCode::FAILURE);
        }
        let done = self.go_through(&mut desk, &reads, &mut dead).await;
        let sentences: Vec<_> = done
            .iter()
            .flat_map(|(_, missing, _)| missing)
            .map(|name| (*name, not_found(name, &dead)))
            .collect();
        let left = dead.left();
        let (dropped, _, clear) = closed(dead, done).await?;
        for (name, sentence) in &sentences {
            note(format_args!("error: {sentence}"));
            if desk.json {
                let id = match name {
                    Name::Job(id) => Some(*id),
                    Name::Body(_) => None,
                };
                desk.output.json(&Told {
                    id,
                    hash: None,
                    outcome: "not_found",
                    status: None,
                })?;
            }
        }
        tell(&dropped);
        if self.wanted.all && left > 0 {
            note(format_args!(
                "{left} more were not looked at; --limit looks further"
            ));
        }
        Ok(match clear && sentences.is_empty() {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        })
    }

    fn question(&self, queue: &str) -> String {
        let fits = match self.wanted.filter.is_everything() && !self.over {
            true => "everything",
            false => "everything that fits",
        };
        match self.wanted.names.len() {
            0 => format!("Drop {fits} in `{queue}`?"),
            1 => format!("Drop the message {} in `{queue}`?", self.wanted.names[0]),
            names => format!("Drop these {names} messages in `{queue}`?"),
        }
    }

    /// Answers with what was dropped, the names that nothing has, and whether every name was clear.
    async fn go_through(
        &self,
        desk: &mut Desk,
        reads: &Reads,
        dead: &mut DeadQueue,
    ) -> Result<(Dropped, Vec<&Name>, bool), Failure> {
        let mut dropped = Dropped::new();
        if self.wanted.all {
            for _ in 0..self.wanted.limit {
                let Some(parked) = dead.next().await? else {
                    break;
                };
                if self.wanted.filter.fits(&parked) {
                    self.drop(desk, reads, dead, parked, &mut dropped).await?;
                }
            }
            return Ok((dropped, Vec::new(), true));
        }
        // Everything is looked at before anything is dropped: one id may name messages of different content.
        let mut named: Vec<Vec<Parked>> = self.wanted.names.iter().map(|_| Vec::new()).collect();
        for _ in 0..self.wanted.limit {
            let Some(parked) = dead.next().await? else {
                break;
            };
            let place = self.wanted.names.iter().position(|name| name.fits(&parked));
            if let Some(place) = place
                && self.wanted.filter.fits(&parked)
            {
                named[place].push(parked);
            }
        }
        let (mut missing, mut clear) = (Vec::new(), true);
        for (name, found) in self.wanted.names.iter().zip(named) {
            let Some(first) = found.first() else {
                missing.push(name);
                continue;
            };
            let mut hashes: Vec<_> = found.iter().map(Parked::hash).collect();
            hashes.dedup();
            if hashes.len() > 1 {
                clear = false;
                note(format_args!(
                    "error: {name} names messages with different bodies, and none is dropped; name one by its hash: {}",
                    hashes.join(", ")
                ));
                if desk.json {
                    desk.output.json(&Told {
                        id: first.job(),
                        hash: None,
                        outcome: "ambiguous",
                        status: None,
                    })?;
                }
                continue;
            }
            for parked in found {
                self.drop(desk, reads, dead, parked, &mut dropped).await?;
            }
        }
        Ok((dropped, missing, clear))
    }

    async fn drop(
        &self,
        desk: &mut Desk,
        reads: &Reads,
        dead: &mut DeadQueue,
        parked: Parked,
        dropped: &mut Dropped,
    ) -> Result<(), Failure> {
        let line = Line::of(&parked);
        let kept = match line.id {
            Some(id) => reads.progress(id).await?.map(|job| job.job.status),
            None => None,
        };
        if self.over && !matches!(kept, Some(JobStatus::Success | JobStatus::Cancelled)) {
            return Ok(());
        }
        dead.take_away(parked).await?;
        *dropped.entry(kept.map(JobStatus::as_str)).or_default() += 1;
        if desk.json {
            return desk.output.json(&Told {
                id: line.id,
                hash: Some(&line.hash),
                outcome: "dropped",
                status: kept,
            });
        }
        desk.output.line(line.name())
    }
}

/// Says what the ledger keeps of what was dropped.
fn tell(dropped: &Dropped) {
    let total: u32 = dropped.values().sum();
    let mut parts = Vec::new();
    for (status, messages) in dropped {
        parts.push(match status {
            None => format!("of {messages} nothing is kept"),
            Some("FAILED") => format!(
                "of {messages} the ledger keeps the job as FAILED (`cliquet retry ID` can still send it)"
            ),
            Some(status) => format!("of {messages} the ledger keeps the job as {status}"),
        });
    }
    match parts.is_empty() {
        true => note("nothing is dropped"),
        false => note(format_args!("{total} dropped; {}", parts.join(", "))),
    }
}

/// A person's yes, on a terminal.
fn confirmed(question: &str) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(Failure::usage(
            "messages are taken away for good: in a pipe, say so with --yes",
        ));
    }
    let mut answer = String::new();
    let asked = write!(io::stderr(), "{question} [y/N] ")
        .and_then(|()| io::stdin().lock().read_line(&mut answer));
    asked.map_err(|error| Failure::failed(format!("the terminal cannot be asked: {error}")))?;
    Ok(matches!(
        answer.trim().to_ascii_lowercase().as_str(),
        "y" | "yes"
    ))
}
