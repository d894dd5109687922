//! `cliquet retry`: sends jobs to the workers again.
//!
//! An operator's retry is a publish of the job's current generation and writes nothing to the ledger: the claim decides, as
//! for every other message.

use std::{collections::BTreeMap, process::ExitCode};

use clap::Args;
use serde::Serialize;

use super::{
    Desk,
    failure::Failure,
    job_id,
    output::note,
    send::{confirmed, publisher},
};
use crate::{
    broker::{Letter, Publisher},
    job::{Generation, JobId, JobStatus},
    ledger::{Reads, StoredMessage, message},
};

pub(super) const HELP: &str = "\
A parked job (FAILED) begins again at its first unfinished task, with attempts
counted anew; a waiting one (RETRYING, PENDING) waits no longer. One that a
worker holds (PROCESSING) goes on where it is; if that worker is dead, the next
one takes it over. Tasks that are done are not done again.

The message is made from the ledger. The copy of a parked job stays in the dead
queue, stale and harmless; `cliquet dead retry ID` sends that copy itself, with
its publisher's headers, and takes it away.

Examples:
  cliquet retry 0190b5c2-7e1f-7c3a-9d55-0d9c1f0a7b11
  cliquet jobs --status FAILED --limit 100000 --json | jq -r .id | xargs cliquet retry";

/// `cliquet retry`.
#[derive(Debug, Args)]
pub(super) struct Retry {
    /// The jobs
    #[arg(required = true, value_name = "ID", value_parser = job_id)]
    ids: Vec<JobId>,
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

/// What became of one job.
enum Outcome {
    Published(JobStatus, Generation),
    Refused(JobStatus, String),
    NotFound,
    Failed(JobStatus, String),
}

impl Retry {
    pub(super) async fn run(self, mut desk: Desk) -> Result<ExitCode, Failure> {
        let reads = desk.reads().await?;
        let mut publishers = BTreeMap::new();
        let mut all = true;
        for id in self.ids {
            let outcome = retry(&desk, &reads, &mut publishers, id).await?;
            all &= tell(&mut desk, id, outcome)?;
        }
        for publisher in publishers.values() {
            publisher.close().await;
        }
        Ok(if all {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

async fn retry(
    desk: &Desk,
    reads: &Reads,
    publishers: &mut BTreeMap<String, Publisher>,
    id: JobId,
) -> Result<Outcome, Failure> {
    let Some(stored) = message(reads.pool(), id).await? else {
        return Ok(Outcome::NotFound);
    };
    let StoredMessage {
        message,
        generation,
        status,
        queue,
        ..
    } = stored;
    let why_not = match status {
        // Whether its holder lives is for the claim to decide; while it does, the copy comes to nothing.
        JobStatus::Failed | JobStatus::Retrying | JobStatus::Pending | JobStatus::Processing => {
            None
        }
        JobStatus::Success => {
            Some("every task is done; publish it under another id to do it again")
        }
        JobStatus::Cancelled => {
            Some("a cancelled job stays so; publish it under another id to do it after all")
        }
    };
    if let Some(why_not) = why_not {
        return Ok(Outcome::Refused(status, why_not.to_owned()));
    }
    if !publishers.contains_key(&queue) {
        publishers.insert(queue.clone(), publisher(desk, &queue, 1).await?);
    }
    let letter =
        Letter::new(message.encode(), &id.to_string(), &message.kind).generation(generation);
    Ok(match confirmed(&publishers[&queue], &letter).await {
        Ok(()) => Outcome::Published(status, generation),
        Err(error) => Outcome::Failed(status, error.to_string()),
    })
}

/// Says what became of it, and whether it is what was asked for.
fn tell(desk: &mut Desk, id: JobId, outcome: Outcome) -> Result<bool, Failure> {
    if let Outcome::Published(JobStatus::Processing, _) = outcome {
        note(format_args!(
            "a worker holds job {id}; if that worker is dead, the next one takes it over"
        ));
    }
    let (word, status, generation, error) = match outcome {
        Outcome::Published(status, generation) => {
            ("published", Some(status), Some(generation), None)
        }
        Outcome::Refused(status, why_not) => {
            let error = format!("job {id} is {status}: {why_not}");
            ("refused", Some(status), None, Some(error))
        }
        Outcome::NotFound => {
            let error = format!("the ledger knows no job {id}");
            ("not_found", None, None, Some(error))
        }
        Outcome::Failed(status, error) => {
            let error = format!("job {id} is not sent again: {error}");
            ("failed", Some(status), None, Some(error))
        }
    };
    let done = error.is_none();
    if let Some(error) = &error {
        note(format_args!("error: {error}"));
    }
    if desk.json {
        desk.output.json(&Line {
            id,
            outcome: word,
            status,
            generation,
            error,
        })?;
    } else if done {
        desk.output.line(id)?;
    }
    Ok(done)
}
