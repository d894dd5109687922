//! `cliquet cancel`: ends jobs.

use std::{process::ExitCode, sync::Arc};

use clap::Args;
use serde::Serialize;

use super::{
    Desk,
    acts::{Acts, Operator},
    failure::Failure,
    job_id,
    output::note,
};
use crate::{
    job::{JobId, JobStatus},
    ledger::Cancelled,
};

pub(super) const HELP: &str = "\
A task that runs is cut short, and nothing of it is kept; tasks that are done
stay done. Jobs that are over stay as they are.

Examples:
  cliquet cancel 0190b5c2-7e1f-7c3a-9d55-0d9c1f0a7b11 --reason 'wrong price'
  cliquet jobs --status RETRYING --limit 100000 --json | jq -r .id | xargs cliquet cancel";

/// `cliquet cancel`.
#[derive(Debug, Args)]
pub(super) struct Cancel {
    /// The jobs
    #[arg(required = true, value_name = "ID", value_parser = job_id)]
    ids: Vec<JobId>,

    /// Why: becomes the jobs' error [default: cancelled by an operator]
    #[arg(long)]
    reason: Option<String>,

    #[command(flatten)]
    operator: Operator,
}

#[derive(Serialize)]
struct Line {
    id: JobId,
    /// `cancelled`, `already_over` or `not_found`.
    outcome: &'static str,
    /// The job's status now.
    status: Option<JobStatus>,
}

impl Cancel {
    pub(super) async fn run(self, mut desk: Desk) -> Result<ExitCode, Failure> {
        let by = self.operator.by(self.reason.as_deref());
        if self.reason.is_some() && by.reason.is_none() {
            return Err(Failure::usage(
                "--reason is empty; say why, or leave it out",
            ));
        }
        let acts = Acts::new(Arc::new(desk.config.clone()), desk.ledger().await?);
        let mut all = true;
        for (id, outcome) in acts.cancel_all(&self.ids, &by).await? {
            let (word, status) = match outcome {
                Cancelled::Cancelled => ("cancelled", Some(JobStatus::Cancelled)),
                Cancelled::AlreadyOver(status) => ("already_over", Some(status)),
                Cancelled::NotFound => ("not_found", None),
            };
            if desk.json {
                desk.output.json(&Line {
                    id,
                    outcome: word,
                    status,
                })?;
            }
            match outcome {
                Cancelled::Cancelled if desk.json => {}
                Cancelled::Cancelled => desk.output.line(id)?,
                // Twice cancelled is what was asked for.
                Cancelled::AlreadyOver(JobStatus::Cancelled) => {
                    note(format_args!("job {id} was cancelled before"));
                }
                Cancelled::AlreadyOver(status) => {
                    all = false;
                    note(format_args!(
                        "error: job {id} is {status} already, and stays so"
                    ));
                }
                Cancelled::NotFound => {
                    all = false;
                    note(format_args!(
                        "error: the ledger knows no job {id}; if its message still waits in a queue, no worker has taken it yet"
                    ));
                }
            }
        }
        Ok(if all {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}
