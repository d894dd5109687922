//! `cliquet skip`: takes the task that a job stands at for done.

use std::{process::ExitCode, sync::Arc};

use clap::Args;

use super::{
    Desk,
    acts::{Acts, Operator, Outcome},
    failure::Failure,
    job_id,
    output::note,
};
use crate::job::{JobId, Position};

pub(super) const HELP: &str = "\
The task becomes SUCCESS with the result null, and the job goes on behind it at
once; or it is SUCCESS, if that was its last task. What the task should have
done is not done: do it by hand. Who skipped it, and why, stays in the job's
history (`cliquet show`).

Only of a job that no worker holds: PENDING, RETRYING or FAILED. The copy of a
parked job stays in the dead queue, and is stale. Take it away with
`cliquet dead drop ID`: once the job is pruned, nothing tells it from a new one.

Examples:
  cliquet skip 0190b5c2-7e1f-7c3a-9d55-0d9c1f0a7b11 --reason 'uploaded by hand'
  cliquet skip 0190b5c2-7e1f-7c3a-9d55-0d9c1f0a7b11 --position 3 --reason 'not wanted'";

/// `cliquet skip`.
#[derive(Debug, Args)]
pub(super) struct Skip {
    /// The job
    #[arg(value_name = "ID", value_parser = job_id)]
    id: JobId,

    /// Which task; nothing is skipped if the job stands at another [default: the one it stands at]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
    position: Option<Position>,

    /// Why: kept in the job's history
    #[arg(long)]
    reason: String,

    #[command(flatten)]
    operator: Operator,
}

impl Skip {
    pub(super) async fn run(self, mut desk: Desk) -> Result<ExitCode, Failure> {
        let by = self.operator.by(Some(&self.reason));
        if by.reason.is_none() {
            return Err(Failure::usage("--reason is empty; say why"));
        }
        desk.broker()?;
        let acts = Acts::new(Arc::new(desk.config.clone()), desk.ledger().await?);
        // Read first and sent along: should somebody else skip it meanwhile, this does not skip the next.
        let position = match self.position {
            Some(position) => Ok(position),
            None => acts.stands_at(self.id).await,
        };
        let acted = match position {
            Ok(position) => acts.skip(self.id, position, &by).await,
            Err(acted) => acted,
        };
        acts.close().await;
        let done = acted.outcome == Outcome::Done;
        if let Some(error) = &acted.error {
            let word = if done { "warning" } else { "error" };
            note(format_args!("{word}: {error}"));
        }
        if desk.json {
            desk.output.json(&acted)?;
        } else if done {
            desk.output.line(acted.id)?;
        }
        Ok(match done {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        })
    }
}
