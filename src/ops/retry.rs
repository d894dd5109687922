//! `cliquet retry`: sends jobs to the workers again.
//!
//! An operator's retry is a publish of the job's current generation and changes nothing of the job in the ledger: the claim
//! decides, as for every other message. Who did it is written down.

use std::{process::ExitCode, sync::Arc};

use clap::Args;
use serde::Serialize;

use super::{
    Desk,
    acts::{Acted, Acts, Operator, Outcome},
    failure::Failure,
    job_id,
    output::note,
};
use crate::job::{Generation, JobId, JobStatus};

pub(super) const HELP: &str = "\
A parked job (FAILED) begins again at its first unfinished task, with attempts
counted anew; a waiting one (RETRYING, PENDING) waits no longer. One that a
worker holds (PROCESSING) goes on where it is; if that worker is dead, the next
one takes it over. Tasks that are done are not done again.

The message is made from the ledger. The copy of a parked job stays in the dead
queue, and is stale. `cliquet dead drop ID` takes it away: once the job is
pruned, nothing tells it from a new one. `cliquet dead retry ID` sends that copy
itself, with its publisher's headers, and takes it away, too.

Examples:
  cliquet retry 0190b5c2-7e1f-7c3a-9d55-0d9c1f0a7b11
  cliquet jobs --status FAILED --limit 100000 --json | jq -r .id | xargs cliquet retry";

/// `cliquet retry`.
#[derive(Debug, Args)]
pub(super) struct Retry {
    /// The jobs
    #[arg(required = true, value_name = "ID", value_parser = job_id)]
    ids: Vec<JobId>,

    /// Why: kept in the jobs' history
    #[arg(long)]
    reason: Option<String>,

    #[command(flatten)]
    operator: Operator,
}

#[derive(Serialize)]
struct Line {
    id: JobId,
    /// `published`, `refused`, `not_found` or `failed`.
    outcome: &'static str,
    /// The job's status when it was looked at.
    status: Option<JobStatus>,
    generation: Option<Generation>,
    error: Option<String>,
}

impl Retry {
    pub(super) async fn run(self, mut desk: Desk) -> Result<ExitCode, Failure> {
        desk.broker()?;
        let by = self.operator.by(self.reason.as_deref());
        let acts = Acts::new(Arc::new(desk.config.clone()), desk.ledger().await?);
        let mut all = true;
        for id in self.ids {
            let acted = acts.retry(id, &by).await;
            all &= tell(&mut desk, acted)?;
        }
        acts.close().await;
        Ok(if all {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

/// Says what became of it, and whether it is what was asked for.
fn tell(desk: &mut Desk, acted: Acted) -> Result<bool, Failure> {
    let Acted {
        id,
        outcome,
        status,
        generation,
        error,
        ..
    } = acted;
    let done = outcome == Outcome::Done;
    if done && status == Some(JobStatus::Processing) {
        note(format_args!(
            "a worker holds job {id}; if that worker is dead, the next one takes it over"
        ));
    }
    if let Some(error) = &error {
        let word = if done { "warning" } else { "error" };
        note(format_args!("{word}: {error}"));
    }
    if desk.json {
        desk.output.json(&Line {
            id,
            outcome: match outcome {
                Outcome::Done => "published",
                Outcome::Refused => "refused",
                Outcome::NotFound => "not_found",
                Outcome::Failed => "failed",
            },
            status,
            generation,
            error,
        })?;
    } else if done {
        desk.output.line(id)?;
    }
    Ok(done)
}
