//! `cliquet dead retry`: parked messages go to the workers again.
//!
//! As with every retry nothing of the job is changed in the ledger: the claim decides. The message is sent with the generation
//! that the ledger has now, or it would be taken for a stale copy; where the ledger does not know the job, as it was parked. Who
//! did it is written down where the ledger knows the job; whoever may not is warned, since reading it is enough to send it.

use std::{collections::HashMap, process::ExitCode};

use clap::Args;
use serde::Serialize;

use sqlx::PgPool;

use super::{Name, Wanted, closed, decoded, not_found};
use crate::{
    broker::{DeadQueue, Letter, Parked, Publisher},
    job::{Fingerprint, Generation, JobId, JobMessage, JobStatus},
    ledger::{By, Reads, message, record_retry},
    ops::{
        Desk,
        acts::Operator,
        failure::Failure,
        output::note,
        send::{confirmed, publisher},
    },
};

pub(super) const HELP: &str = "\
The message itself is sent, with its publisher's headers. Its job begins again
at its first unfinished task, with attempts counted anew; a job that the ledger
does not know begins at its first task. The parked message is taken away once
RabbitMQ has confirmed the one that was sent.

Who did it is written down in the job's history (`cliquet show`), if the role
of DATABASE_URL may do that; a warning says if it may not.

What would be parked again at once (no job, another job's id) is refused with
the reason, and so is a job that is over or runs now. Refused messages stay.

Examples:
  cliquet dead retry 0190b5c2-7e1f-7c3a-9d55-0d9c1f0a7b11
  cliquet dead retry --all --reason exhausted";

/// `cliquet dead retry`.
#[derive(Debug, Args)]
pub(in crate::ops) struct Retry {
    #[command(flatten)]
    wanted: Wanted,

    #[command(flatten)]
    operator: Operator,
}

#[derive(Serialize)]
struct Told<'a> {
    /// The job's; null for a message that names none.
    id: Option<JobId>,
    /// The first digits of its hash; null when there is no such message.
    hash: Option<&'a str>,
    /// `published`, `copy` (of one that was published), `refused`, `not_found` or `failed`.
    outcome: &'static str,
    /// The job's status when it was looked at; null when the ledger does not know it.
    status: Option<JobStatus>,
    generation: Option<Generation>,
    error: Option<String>,
}

/// What is to become of a message.
enum Verdict {
    Send(Box<JobMessage>, Generation, Option<JobStatus>),
    Refuse(String, Option<JobStatus>),
}

/// One command's work.
struct Work<'a> {
    desk: &'a mut Desk,
    reads: &'a Reads,
    publisher: Publisher,
    by: By,
    /// For writing down who did it; none once that has failed.
    ledger: Option<PgPool>,
    /// The jobs whose message was sent.
    sent: HashMap<JobId, Fingerprint>,
    refused: u32,
    away: u32,
}

impl Retry {
    pub(super) async fn run(self, mut desk: Desk) -> Result<ExitCode, Failure> {
        let reads = desk.reads().await?;
        let mut dead = self.wanted.place.open(&desk).await?;
        let queue = self
            .wanted
            .place
            .queue
            .as_ref()
            .unwrap_or(&desk.config.queue);
        let publisher = publisher(&desk.config, &queue.clone(), 1).await?;
        let ledger = desk.ledger().await?;
        let mut work = Work {
            desk: &mut desk,
            reads: &reads,
            publisher,
            by: self.operator.by(None),
            ledger: Some(ledger),
            sent: HashMap::new(),
            refused: 0,
            away: 0,
        };
        let done = self.go_through(&mut dead, &mut work).await;
        work.publisher.close().await;
        let (sent, refused, away) = (work.sent.len(), work.refused, work.away);
        let missing = match done {
            Ok(missing) => missing,
            Err(failure) => {
                note(format_args!(
                    "{sent} jobs were sent again before this; all other messages are where they were"
                ));
                return closed(dead, Err(failure)).await;
            }
        };
        let sentences: Vec<_> = missing
            .iter()
            .map(|name| (*name, not_found(name, &dead)))
            .collect();
        let left = dead.left();
        closed(dead, Ok(())).await?;
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
                    generation: None,
                    error: Some(sentence.clone()),
                })?;
            }
        }
        if self.wanted.all {
            let copies = (away as usize).saturating_sub(sent);
            note(format_args!(
                "{sent} jobs are sent again, {copies} further copies of them are taken away, {refused} messages are refused and stay"
            ));
            if left > 0 {
                note(format_args!(
                    "{left} more were not looked at; --limit looks further"
                ));
            }
        }
        Ok(match refused == 0 && sentences.is_empty() {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        })
    }

    /// Answers with the names that nothing has.
    async fn go_through(
        &self,
        dead: &mut DeadQueue,
        work: &mut Work<'_>,
    ) -> Result<Vec<&Name>, Failure> {
        let mut missing: Vec<&Name> = self.wanted.names.iter().collect();
        for _ in 0..self.wanted.limit {
            let Some(parked) = dead.next().await? else {
                break;
            };
            let named = self.wanted.names.iter().any(|name| name.fits(&parked));
            missing.retain(|name| !name.fits(&parked));
            if (self.wanted.all || named) && self.wanted.filter.fits(&parked) {
                work.retry(dead, parked).await?;
            }
        }
        Ok(missing)
    }
}

impl Work<'_> {
    async fn retry(&mut self, dead: &mut DeadQueue, parked: Parked) -> Result<(), Failure> {
        let (message, generation, status) = match judge(self.reads, &parked).await? {
            Verdict::Send(message, generation, status) => (message, generation, status),
            Verdict::Refuse(why_not, status) => {
                self.refused += 1;
                return self.tell(&parked, "refused", status, None, Some(why_not));
            }
        };
        // A job may be parked more than once, by a retry from the ledger that failed again: one message is enough.
        if self.sent.get(&message.id) == Some(&message.fingerprint) {
            self.tell(&parked, "copy", status, Some(generation), None)?;
            self.away += 1;
            return Ok(dead.take_away(parked).await?);
        }
        let letter = Letter::copy_of(parked.delivery())
            .generation(generation)
            .hops(0)
            .redelivered(false);
        if let Err(error) = confirmed(&self.publisher, &letter).await {
            // What is in the way of one is in the way of all.
            self.tell(&parked, "failed", status, None, Some(error.to_string()))?;
            return Err(Failure::failed(format!(
                "the rest is not tried; nothing that was not sent is taken away ({})",
                dead.name()
            )));
        }
        self.sent.insert(message.id, message.fingerprint);
        if status.is_some() {
            self.write_down(message.id).await;
        }
        self.tell(&parked, "published", status, Some(generation), None)?;
        self.away += 1;
        Ok(dead.take_away(parked).await?)
    }

    /// What is sent cannot be taken back, so this is a warning, and one is enough.
    async fn write_down(&mut self, id: JobId) {
        let Some(ledger) = &self.ledger else { return };
        if let Err(error) = record_retry(ledger, id, &self.by).await {
            self.ledger = None;
            note(format_args!(
                "warning: job {id} is sent, but who did it could not be written down, and is not for the rest: {error}"
            ));
        }
    }

    fn tell(
        &mut self,
        parked: &Parked,
        outcome: &'static str,
        status: Option<JobStatus>,
        generation: Option<Generation>,
        error: Option<String>,
    ) -> Result<(), Failure> {
        let id = parked.job();
        let name = id.map_or_else(|| parked.hash().to_owned(), |id| id.to_string());
        if let Some(error) = &error {
            let hash = id.map(|_| format!(" (hash {})", parked.hash()));
            let hash = hash.unwrap_or_default();
            note(format_args!("error: {name}{hash}: {error}"));
        }
        if self.desk.json {
            self.desk.output.json(&Told {
                id,
                hash: Some(parked.hash()),
                outcome,
                status,
                generation,
                error,
            })?;
        } else if outcome == "published" {
            self.desk.output.line(name)?;
        }
        Ok(())
    }
}

/// Whether a worker would run it, and as which generation.
async fn judge(reads: &Reads, parked: &Parked) -> Result<Verdict, Failure> {
    let job = match decoded(parked) {
        Ok(job) => job,
        Err(bad) => {
            let why_not = format!(
                "it would be parked again at once ({}): {}",
                bad.reason, bad.sentence
            );
            return Ok(Verdict::Refuse(why_not, None));
        }
    };
    let Some(stored) = message(reads.pool(), job.id).await? else {
        return Ok(match parked.delivery().marks() {
            Ok(marks) => Verdict::Send(Box::new(job), marks.generation, None),
            Err(bad) => Verdict::Refuse(
                format!(
                    "it would be parked again at once ({}): {}",
                    bad.reason, bad.sentence
                ),
                None,
            ),
        });
    };
    let why_not = if stored.message.fingerprint != job.fingerprint {
        format!(
            "it would be parked again at once (conflict): the ledger knows a job of this id with another content ({}, and this is {}). Publish it under another id: `cliquet dead show {} --raw`",
            stored.message.fingerprint,
            job.fingerprint,
            parked.hash()
        )
    } else {
        match stored.status {
            JobStatus::Failed | JobStatus::Retrying | JobStatus::Pending => {
                let status = Some(stored.status);
                return Ok(Verdict::Send(Box::new(job), stored.generation, status));
            }
            JobStatus::Processing => {
                "its job is PROCESSING: a worker runs it now; wait for how it ends".to_owned()
            }
            status => format!(
                "its job is {status} and stays so: this is a stale copy. `cliquet dead drop {}` takes it away",
                parked.hash()
            ),
        }
    };
    Ok(Verdict::Refuse(why_not, Some(stored.status)))
}
