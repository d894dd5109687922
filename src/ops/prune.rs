//! `cliquet prune`: jobs that have been over for long are deleted.

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{Desk, failure::Failure, output::note, table::Table};
use crate::{
    job::JobStatus,
    ledger::{Deleted, LEAST_AGE, Pruner},
};

pub(super) const HELP: &str = "\
Deletes jobs with their tasks and their history, in small batches with pauses,
so that workers are not slowed. It may be stopped at any time, and goes on where
it was when it is started again.

A job that is deleted is unknown: should a copy of its message still be somewhere
(a publisher that sends it once more, the dead queue), it would run anew, from
its first task. FAILED jobs are deleted only when --status names them; their
parked copies stay in the dead queue, and `cliquet dead` is for those.

A worker does the same by itself with `prune_after = \"30d\"` in cliquet.toml.

Examples:
  cliquet prune --older-than 30d --dry-run
  cliquet prune --older-than 90d --status SUCCESS,CANCELLED,FAILED --queue jobs";

/// The shortest pause between two batches.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
/// The scale of the bar: parts of the time that is looked at.
const PARTS: u64 = 1_000;

/// `cliquet prune`.
#[derive(Debug, Args)]
pub(super) struct Prune {
    /// Over for longer than this: 12h, 30d, 6months; at least 1h
    #[arg(long, value_name = "AGE", value_parser = age)]
    older_than: Duration,

    /// Only these: SUCCESS, CANCELLED, FAILED
    #[arg(long, value_name = "STATUS", value_delimiter = ',', value_parser = over,
          default_values_t = [JobStatus::Success, JobStatus::Cancelled])]
    status: Vec<JobStatus>,

    /// Only jobs of this work queue [default: every queue]
    #[arg(long)]
    queue: Option<String>,

    /// Count them, and delete nothing
    #[arg(long)]
    dry_run: bool,
}

fn age(text: &str) -> Result<Duration, String> {
    let age = humantime::parse_duration(text.trim())
        .map_err(|_| "expected a duration with its unit, such as 12h or 30d".to_owned())?;
    if age < LEAST_AGE {
        return Err(format!(
            "expected at least {}: copies of younger jobs' messages may still be under way, and would run them anew",
            humantime::format_duration(LEAST_AGE)
        ));
    }
    Ok(age)
}

fn over(text: &str) -> Result<JobStatus, String> {
    match text.parse()? {
        status @ (JobStatus::Success | JobStatus::Cancelled | JobStatus::Failed) => Ok(status),
        status => Err(format!(
            "a job that is {status} is not over; expected SUCCESS, CANCELLED or FAILED"
        )),
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    deleted: &'a Deleted,
    dry_run: bool,
    /// Whether every job was looked at; false when it was stopped.
    complete: bool,
}

impl Prune {
    pub(super) async fn run(self, mut desk: Desk) -> Result<ExitCode, Failure> {
        desk.reads().await?; // says what is wrong with the database, if anything is
        let queue = self.queue.as_deref();
        let mut pruner =
            Pruner::open(&desk.database()?, self.older_than, &self.status, queue).await?;
        let stop = CancellationToken::new();
        tokio::spawn(interrupted(stop.clone()));
        let mut deleted = Deleted::default();
        let done = self.go_through(&mut pruner, &stop, &mut deleted).await;
        let complete = pruner.pruning.is_over();
        pruner.close().await;
        self.tell(&mut desk, &deleted, complete)?;
        done?;
        if !complete {
            note("stopped; what is deleted stays so, and the same command goes on with the rest");
            return Ok(ExitCode::FAILURE);
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn go_through(
        &self,
        pruner: &mut Pruner,
        stop: &CancellationToken,
        deleted: &mut Deleted,
    ) -> Result<(), Failure> {
        let bar = self.bar();
        while !pruner.pruning.is_over() && !stop.is_cancelled() {
            let began = Instant::now();
            deleted.add(pruner.step(self.dry_run).await?);
            bar.set_position((pruner.pruning.progress() * PARTS as f64) as u64);
            bar.set_message(format!("{} jobs", deleted.total()));
            // As long as it took: half of the time is for others.
            if !pruner.pruning.is_over() {
                let pause = began.elapsed().max(SHORTEST_PAUSE);
                stop.run_until_cancelled(sleep(pause)).await;
            }
        }
        bar.finish_and_clear();
        Ok(())
    }

    fn bar(&self) -> ProgressBar {
        if !io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let what = if self.dry_run { "counting" } else { "deleting" };
        let style = format!("{what} {{bar:30}} {{percent}}% {{msg}}, {{eta}} left");
        let style = ProgressStyle::with_template(&style)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=> ");
        ProgressBar::new(PARTS).with_style(style)
    }

    fn tell(&self, desk: &mut Desk, deleted: &Deleted, complete: bool) -> Result<(), Failure> {
        if desk.json {
            return desk.output.json(&Told {
                deleted,
                dry_run: self.dry_run,
                complete,
            });
        }
        let mut table = Table::new(&["STATUS", "JOBS"]);
        for (status, jobs) in &deleted.jobs {
            table.row([status.to_string(), jobs.to_string()]);
        }
        if deleted.total() > 0 {
            table.print(&mut desk.output, "")?;
        }
        let jobs = deleted.total();
        match self.dry_run {
            true => note(format_args!(
                "{jobs} jobs with {} tasks would be deleted",
                deleted.tasks
            )),
            false => note(format_args!(
                "{jobs} jobs are deleted, with {} tasks and {} failed attempts in their history; {} workers that are long dead are forgotten",
                deleted.tasks, deleted.failures, deleted.workers
            )),
        }
        if !self.dry_run && deleted.jobs.contains_key(JobStatus::Failed.as_str()) {
            note(
                "the parked copies of those that were FAILED stay in the dead queue: retried from there, their jobs would begin at their first task (`cliquet dead drop` takes them away)",
            );
        }
        Ok(())
    }
}

/// The first signal ends it after the batch, the second at once; either way a batch is deleted whole or not at all.
async fn interrupted(stop: CancellationToken) {
    let (Ok(mut interrupt), Ok(mut terminate)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    ) else {
        return; // the signals then end the process, as they do by themselves
    };
    for last in [false, true] {
        let status = tokio::select! {
            _ = interrupt.recv() => 130,
            _ = terminate.recv() => 143,
        };
        if last {
            std::process::exit(status);
        }
        stop.cancel();
    }
}
