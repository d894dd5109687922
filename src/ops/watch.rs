//! `cliquet show --watch`: follows one job until it is over.

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
    time::Duration,
};

use chrono::{DateTime, Utc};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::sleep;

use super::{
    Desk,
    failure::Failure,
    output::note,
    show::status_of,
    words::{between, has_colour, now, one_line, painted, until},
};
use crate::{
    job::{JobId, JobStatus, TaskStatus},
    ledger::{JobProgress, JobSummary, LedgerError, Reads},
};

/// The pause between two looks: what people see as live, and nothing for Postgres.
const LOOK: Duration = Duration::from_millis(200);

/// Follows the job, and answers with the exit status that its end asks for.
pub(super) async fn watch(desk: &mut Desk, reads: &Reads, id: JobId) -> Result<ExitCode, Failure> {
    let terminal = io::stderr().is_terminal() && io::stdout().is_terminal() && !desk.json;
    let bar = terminal.then(bar);
    let mut shown = None;
    let mut said = None;
    loop {
        // What is in the way is said once, and again only when it is something else.
        let obstacle = match reads.progress(id).await {
            Ok(Some(job)) => {
                let over = job.job.is_over();
                if let (Some(bar), false) = (&bar, over) {
                    update(bar, &job);
                }
                let seen = stage(&job);
                if shown.as_ref() != Some(&seen) {
                    shown = Some(seen);
                    if desk.json {
                        desk.output.json(&job)?;
                    } else if bar.is_none() || over {
                        clear(&bar);
                        desk.output.line(line(&job))?;
                    }
                }
                if over {
                    return Ok(status_of(job.job.status));
                }
                None
            }
            Ok(None) => Some(format!(
                "the ledger knows no job {id} yet; waiting until a worker takes its message (Ctrl-C ends the waiting)"
            )),
            Err(LedgerError::Unavailable(sentence)) => Some(format!("{sentence}; asking again")),
            Err(error) => return Err(error.into()),
        };
        if obstacle != said {
            match (&bar, &obstacle) {
                (_, None) => {}
                (Some(bar), Some(words)) => bar.suspend(|| note(words)),
                (None, Some(words)) => note(words),
            }
            said = obstacle;
        }
        if desk.output.is_closed() {
            return Ok(ExitCode::SUCCESS);
        }
        sleep(LOOK).await;
    }
}

/// What makes a new line: where the job stands, not the time.
fn stage(job: &JobProgress) -> (JobStatus, i64, Option<(i32, TaskStatus)>, i64) {
    let task = job.task.as_ref().map(|task| (task.attempt, task.status));
    (job.job.status, job.job.done, task, job.job.epoch.0)
}

fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:24} {pos}/{len} {wide_msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ");
    ProgressBar::no_length().with_style(style)
}

fn update(bar: &ProgressBar, job: &JobProgress) {
    bar.set_length(job.job.total.unsigned_abs().into());
    bar.set_position(job.job.done.unsigned_abs());
    bar.set_message(words(job, now()));
    bar.tick();
}

fn clear(bar: &Option<ProgressBar>) {
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
}

/// `PROCESSING 2/7 Upload image 2/5 …`.
fn line(job: &JobProgress) -> String {
    let JobSummary {
        status,
        done,
        total,
        ..
    } = &job.job;
    let status = format!("{status:<10}");
    let status = painted(&status, has_colour());
    format!("{status} {done}/{total} {}", words(job, now()))
        .trim_end()
        .to_owned()
}

/// Where the job stands, as a person says it.
fn words(job: &JobProgress, now: DateTime<Utc>) -> String {
    let label = job
        .task
        .as_ref()
        .map(|task| one_line(&task.label))
        .unwrap_or_default();
    let error = one_line(job.job.error.as_deref().unwrap_or_default());
    let attempt = job.task.as_ref().map_or(0, |task| task.attempt);
    match job.job.status {
        JobStatus::Processing if attempt > 1 => format!("{label} … (attempt {attempt})"),
        JobStatus::Processing => format!("{label} …"),
        JobStatus::Pending => format!("{label}: waiting for a worker"),
        JobStatus::Retrying => {
            let next = job.job.next_attempt_at.map(|time| until(time, now));
            format!(
                "{label}: attempt {attempt} failed, again {}: {error}",
                next.unwrap_or_default()
            )
        }
        JobStatus::Success => match (job.job.started_at, job.job.finished_at) {
            (Some(started), Some(finished)) => format!("in {}", between(started, finished)),
            _ => String::new(),
        },
        JobStatus::Failed => format!("{label}: {error}"),
        JobStatus::Cancelled => error,
    }
}
