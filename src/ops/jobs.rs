//! `cliquet jobs`: the list.

use std::process::ExitCode;

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
    ledger::{JobFilter, JobSummary},
};

pub(super) const HELP: &str = "\
Examples:
  cliquet jobs                                       the newest 20
  cliquet jobs --status FAILED,RETRYING --limit 100
  cliquet jobs --kind shop.publish --json | jq -r .id
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

    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,

    /// Print how many jobs there are in each status, in place of the list
    #[arg(long, conflicts_with_all = ["status", "kind", "limit"])]
    count: bool,
}

#[derive(Serialize)]
struct Count {
    status: JobStatus,
    jobs: i64,
}

impl Jobs {
    pub(super) async fn run(self, mut desk: Desk) -> Result<ExitCode, Failure> {
        let reads = desk.reads().await?;
        if self.count {
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

        let jobs = reads
            .jobs(&JobFilter {
                status: self.status,
                kind: self.kind,
                queue: self.queue,
                limit: Some(self.limit),
            })
            .await?;
        if desk.json {
            for job in &jobs {
                desk.output.json(job)?;
            }
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
        if jobs.len() == self.limit as usize {
            note(format_args!(
                "the newest {}; --limit shows more",
                self.limit
            ));
        }
        Ok(ExitCode::SUCCESS)
    }
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
