//! `cliquet jobs`: the list.

use std::process::ExitCode;

use chrono::{DateTime, TimeDelta, Utc};
use clap::Args;
use serde::Serialize;

use super::{
    Desk,
    failure::Failure,
    output::note,
    table::Table,
    words::{ago, now, one_line, until},
};
use crate::{
    job::JobStatus,
    ledger::{Cursor, Find, JobSummary, Reads},
};

pub(super) const HELP: &str = "\
Examples:
  cliquet jobs                                       the newest 20
  cliquet jobs --status FAILED,RETRYING --limit 100
  cliquet jobs --kind shop.publish --json | jq -r .id
  cliquet jobs --handler upload_image --error 'HTTP 503' --since 2h
  cliquet jobs --count                               how many there are in each status
  cliquet jobs --status FAILED --limit 100000 --json | jq -r .id | xargs cliquet retry";

/// `cliquet jobs`.
#[derive(Debug, Args)]
pub(super) struct Jobs {
    /// Only these: PENDING, PROCESSING, RETRYING, SUCCESS, FAILED, CANCELLED
    #[arg(long, value_name = "STATUS", value_delimiter = ',')]
    status: Vec<JobStatus>,

    /// Only jobs of this kind
    #[arg(long)]
    kind: Option<String>,

    /// Only jobs of this work queue [default: every queue]
    #[arg(long)]
    queue: Option<String>,

    /// Only jobs that stand at a task of this handler
    #[arg(long, value_name = "NAME")]
    handler: Option<String>,

    /// Only jobs whose error contains this, in any case
    #[arg(long, value_name = "TEXT")]
    error: Option<String>,

    /// Only jobs created then or after: 2h (ago), or 2026-11-28T22:00:00Z
    #[arg(long, value_name = "WHEN", value_parser = when)]
    since: Option<DateTime<Utc>>,

    /// Only jobs created before
    #[arg(long, value_name = "WHEN", value_parser = when)]
    until: Option<DateTime<Utc>>,

    /// Go on behind this place, which the list before has told
    #[arg(long, value_name = "PLACE")]
    after: Option<Cursor>,

    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,

    /// Print how many jobs there are in each status, in place of the list
    #[arg(long, conflicts_with_all = ["status", "kind", "handler", "error", "since", "until", "after", "limit"])]
    count: bool,
}

#[derive(Serialize)]
struct Count {
    status: JobStatus,
    jobs: i64,
}

impl Jobs {
    pub(super) async fn run(self, mut desk: Desk) -> Result<ExitCode, Failure> {
        if self.count {
            // Without a reader's limit of time: it reads every job.
            let reads = Reads::new(desk.ledger().await?);
            let counts = reads.counts(self.queue.as_deref()).await?;
            let mut table = Table::new(&["STATUS", "JOBS"]);
            for (status, jobs) in counts {
                if desk.json {
                    desk.output.json(&Count { status, jobs })?;
                }
                table.row([status.to_string(), jobs.to_string()]);
            }
            if !desk.json {
                table.print(&mut desk.output, "")?;
            }
            return Ok(ExitCode::SUCCESS);
        }

        let reads = desk.reads().await?;
        let mut find = Find {
            status: self.status,
            kind: self.kind,
            queue: self.queue,
            handler: self.handler,
            error: self.error,
            likeness: None,
            since: self.since,
            until: self.until,
            after: self.after,
            limit: self.limit,
        };
        let mut jobs = Vec::new();
        // A page has 500 at the most, and one that ends early says where to go on.
        let next = loop {
            let page = reads.find(&find).await?;
            find.limit -= (page.jobs.len() as u32).min(find.limit);
            jobs.extend(page.jobs);
            find.after = page.next;
            if find.limit == 0 || page.next.is_none() {
                break page.next;
            }
        };
        if desk.json {
            for job in &jobs {
                desk.output.json(job)?;
            }
            tell_next(next);
            return Ok(ExitCode::SUCCESS);
        }
        if jobs.is_empty() {
            note("no such jobs (a job is known from when a worker first takes its message)");
            return Ok(ExitCode::SUCCESS);
        }
        let now = now();
        let mut table = Table::new(&["ID", "STATUS", "DONE", "KIND", "CREATED", "NOTE"]);
        for job in &jobs {
            table.row([
                job.id.to_string(),
                job.status.to_string(),
                format!("{}/{}", job.done, job.total),
                one_line(&job.kind),
                ago(job.created_at, now),
                remark(job, now),
            ]);
        }
        table.print(&mut desk.output, "")?;
        tell_next(next);
        Ok(ExitCode::SUCCESS)
    }
}

fn tell_next(next: Option<Cursor>) {
    if let Some(next) = next {
        note(format_args!(
            "there are more: --limit shows them, or --after {next}"
        ));
    }
}

/// A time, or how long ago it was.
fn when(text: &str) -> Result<DateTime<Utc>, String> {
    let ago = || {
        let span = TimeDelta::from_std(humantime::parse_duration(text).ok()?).ok()?;
        now().checked_sub_signed(span)
    };
    text.parse().ok().or_else(ago).ok_or_else(|| {
        "expected a time such as 2026-11-28T22:00:00Z, or how long ago it was, such as 2h"
            .to_owned()
    })
}

/// What a person wants to know of a job beside its status.
fn remark(job: &JobSummary, now: chrono::DateTime<chrono::Utc>) -> String {
    let error = one_line(job.error.as_deref().unwrap_or_default());
    match (job.status, job.next_attempt_at, &job.holder) {
        (JobStatus::Processing, _, Some(holder)) => format!("at {}", one_line(holder)),
        (JobStatus::Retrying, Some(next), _) => format!("again {}: {error}", until(next, now)),
        _ => error,
    }
}
