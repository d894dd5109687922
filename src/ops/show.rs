//! `cliquet show`: one job with everything about it.

use std::process::ExitCode;

use chrono::{DateTime, Utc};
use clap::Args;
use serde_json::value::RawValue;

use super::{
    Desk,
    failure::Failure,
    job_id,
    output::Output,
    table::Table,
    watch::watch,
    words::{ago, at, between, columns, cut, has_colour, lines, now, one_line, painted},
};
use crate::{
    job::{JobId, JobStatus, TaskStatus},
    ledger::{FailureView, Intervention, JobDetail, TaskView},
};

pub(super) const HELP: &str = "\
With --watch: a progress bar on a terminal, else a line at each change, until
the job is over. The exit status is 0 for SUCCESS, 1 for FAILED and CANCELLED.

Examples:
  cliquet show 0190b5c2-7e1f-7c3a-9d55-0d9c1f0a7b11
  cliquet show --watch 0190b5c2-7e1f-7c3a-9d55-0d9c1f0a7b11
  cliquet show --json 0190b5c2-7e1f-7c3a-9d55-0d9c1f0a7b11 | jq '.tasks[] | .result'";

/// `cliquet show`.
#[derive(Debug, Args)]
pub(super) struct Show {
    /// The job
    #[arg(value_name = "ID", value_parser = job_id)]
    id: JobId,

    /// Follow it until it is over; waits for a job that no worker has taken yet
    #[arg(long)]
    watch: bool,
}

impl Show {
    pub(super) async fn run(self, mut desk: Desk) -> Result<ExitCode, Failure> {
        let reads = desk.reads().await?;
        if self.watch {
            return watch(&mut desk, &reads, self.id).await;
        }
        let Some(job) = reads.job(self.id).await? else {
            return Err(Failure::failed(format!(
                "the ledger knows no job {}; a job is known from when a worker first takes its message. Is a worker running?",
                self.id
            )));
        };
        if desk.json {
            desk.output.json(&job)?;
        } else {
            print(&mut desk.output, &job)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn print(output: &mut Output, detail: &JobDetail) -> Result<(), Failure> {
    let now = now();
    let job = &detail.job;
    let mut fields = vec![
        ("job", job.id.to_string()),
        ("kind", one_line(&job.kind)),
        (
            "status",
            format!(
                "{}, {} of {} tasks done",
                painted(job.status.as_str(), has_colour()),
                job.done,
                job.total
            ),
        ),
        ("queue", one_line(&job.queue)),
        ("created", at(job.created_at, now)),
    ];
    let mut add = |name, value: Option<String>| fields.extend(value.map(|value| (name, value)));
    add("started", job.started_at.map(|time| at(time, now)));
    add("finished", job.finished_at.map(|time| at(time, now)));
    add("next try", job.next_attempt_at.map(|time| at(time, now)));
    add(
        "claims",
        (job.attempts > 1).then(|| job.attempts.to_string()),
    );
    add("worker", job.holder.as_deref().map(one_line));
    add("error", job.error.as_deref().map(one_line));
    add("payload", said(Some(&detail.payload)));
    for (name, value) in fields {
        // Only what may be long and is shown whole elsewhere is cut.
        let columns = columns().filter(|_| name == "payload");
        let line = format!("{name:<9} {value}");
        output.line(columns.map_or_else(|| line.clone(), |columns| cut(&line, columns)))?;
    }

    output.line("")?;
    let mut table = Table::new(&["#", "STATUS", "TASK", "ATTEMPT", "TOOK", "RESULT OR ERROR"]);
    for task in &detail.tasks {
        table.row([
            task.position.to_string(),
            task.status.to_string(),
            name(task),
            attempts(task),
            took(task, now),
            task.error
                .as_deref()
                .map(one_line)
                .or_else(|| said(task.result.as_deref()))
                .unwrap_or_default(),
        ]);
    }
    table.print(output, "")?;

    if !detail.failures.is_empty() {
        output.line("")?;
        output.line("failed attempts, oldest first:")?;
    }
    for failure in &detail.failures {
        print_failure(output, detail, failure, now)?;
    }
    if !detail.interventions.is_empty() {
        output.line("")?;
        output.line("what people did, oldest first:")?;
    }
    for intervention in &detail.interventions {
        output.line(told(intervention, now))?;
    }
    Ok(())
}

/// `  skip of #3, 4m ago by ada: uploaded by hand`.
fn told(intervention: &Intervention, now: DateTime<Utc>) -> String {
    let position = intervention.position.map(|at| format!(" of #{at}"));
    let reason = intervention.reason.as_deref().map(one_line);
    format!(
        "  {}{}, {} by {}{}",
        intervention.act,
        position.unwrap_or_default(),
        ago(intervention.at, now),
        one_line(&intervention.operator),
        reason
            .map(|reason| format!(": {reason}"))
            .unwrap_or_default(),
    )
}

/// One failed attempt with its whole error: people come here to read it.
fn print_failure(
    output: &mut Output,
    detail: &JobDetail,
    failure: &FailureView,
    now: DateTime<Utc>,
) -> Result<(), Failure> {
    let task = detail
        .tasks
        .iter()
        .find(|task| task.position == failure.position);
    let took = failure
        .started_at
        .map(|started| format!(" after {}", between(started, failure.failed_at)));
    output.line(format_args!(
        "  #{} {}, attempt {}, {}{} at {}",
        failure.position,
        task.map(name).unwrap_or_default(),
        failure.attempt,
        ago(failure.failed_at, now),
        took.unwrap_or_default(),
        one_line(&failure.worker),
    ))?;
    lines(&failure.error)
        .iter()
        .try_for_each(|line| output.line(format_args!("     {line}")))
}

fn name(task: &TaskView) -> String {
    let (handler, label) = (one_line(&task.handler), one_line(&task.label));
    if handler == label {
        label
    } else {
        format!("{label} ({handler})")
    }
}

fn attempts(task: &TaskView) -> String {
    match (task.attempt, task.crashes) {
        (0, 0) => String::new(),
        (attempt, 0) => attempt.to_string(),
        (attempt, 1) => format!("{attempt}, 1 crash"),
        (attempt, crashes) => format!("{attempt}, {crashes} crashes"),
    }
}

fn took(task: &TaskView, now: DateTime<Utc>) -> String {
    match (task.status, task.started_at, task.finished_at) {
        (_, Some(started), Some(finished)) => between(started, finished).to_string(),
        (TaskStatus::Processing, Some(started), None) => {
            format!("{} so far", between(started, now))
        }
        _ => String::new(),
    }
}

/// JSON on one line; nothing for null.
fn said(json: Option<&RawValue>) -> Option<String> {
    json.map(|json| one_line(json.get()))
        .filter(|json| json != "null")
}

/// The exit status of a job that is over.
pub(super) fn status_of(status: JobStatus) -> ExitCode {
    if status == JobStatus::Success {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
