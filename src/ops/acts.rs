//! What people do to jobs: retry, cancel and skip, for the command line and for HTTP.
//!
//! Each act is written down with who did it and why, and says in a sentence what it came to; the log has a line of it, too.

use std::{collections::BTreeMap, sync::Arc};

use clap::Args;
use serde::Serialize;
use sqlx::PgPool;
use tokio::sync::Mutex;
use tracing::info;
use utoipa::ToSchema;

use super::{
    failure::Failure,
    send::{confirmed, publisher},
};
use crate::{
    broker::{Letter, Publisher},
    config::Config,
    job::{Generation, JobId, JobStatus, Position},
    ledger::{
        self, Cancelled, LedgerError, Reads, Skipped, StoredMessage, cancel, may_act, message,
        note_sent, record_retry,
    },
};

pub(super) use crate::ledger::By;

/// Messages of one queue that are on their way at the same time.
const IN_FLIGHT: usize = 16;

/// Acts over one pool and one publisher a queue. Cheap to clone.
#[derive(Clone)]
pub(super) struct Acts(Arc<Inner>);

struct Inner {
    config: Arc<Config>,
    ledger: PgPool,
    /// By work queue; each is opened when it is first needed.
    publishers: Mutex<BTreeMap<String, Publisher>>,
}

/// What an act on one job came to.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct Acted {
    /// The job.
    pub(super) id: JobId,
    /// Whether it is done.
    pub(super) outcome: Outcome,
    /// The job's status: after a cancel or a skip, and before a retry.
    pub(super) status: Option<JobStatus>,
    /// The generation of the message that was sent.
    pub(super) generation: Option<Generation>,
    /// Why it is not done; or, where it is, what is wrong all the same.
    pub(super) error: Option<String>,
    /// Whether the next job would fare no better: a service is away, or does not let this user do it.
    #[serde(skip)]
    pub(super) everywhere: bool,
}

/// Whether an act is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Outcome {
    /// It is.
    Done,
    /// The job's state does not allow it, and nothing was changed.
    Refused,
    /// The ledger knows no such job.
    NotFound,
    /// A service or a right is missing.
    Failed,
}

impl Acted {
    fn done(id: JobId, status: JobStatus) -> Self {
        Self {
            id,
            outcome: Outcome::Done,
            status: Some(status),
            generation: None,
            error: None,
            everywhere: false,
        }
    }

    fn refused(id: JobId, status: Option<JobStatus>, sentence: String) -> Self {
        Self {
            id,
            outcome: Outcome::Refused,
            status,
            generation: None,
            error: Some(sentence),
            everywhere: false,
        }
    }

    fn not_found(id: JobId) -> Self {
        Self {
            id,
            outcome: Outcome::NotFound,
            status: None,
            generation: None,
            error: Some(format!("the ledger knows no job {id}")),
            everywhere: false,
        }
    }

    fn failed(id: JobId, status: Option<JobStatus>, what: &str, failure: &Failure) -> Self {
        Self {
            id,
            outcome: Outcome::Failed,
            status,
            generation: None,
            error: Some(format!("{what}: {failure}")),
            everywhere: failure.is_everywhere(),
        }
    }

    /// Writes it into the log: what was done, to which job, by whom.
    fn logged(self, act: &'static str, by: &By) -> Self {
        let outcome = match self.outcome {
            Outcome::Done => "done",
            Outcome::Refused => "refused",
            Outcome::NotFound => "not found",
            Outcome::Failed => "failed",
        };
        info!(job = %self.id, act, operator = by.operator, outcome, error = self.error, "an operator acts");
        self
    }
}

impl Acts {
    /// Acts over this pool, whose user may write. Nothing is connected before it is needed.
    pub(super) fn new(config: Arc<Config>, ledger: PgPool) -> Self {
        Self(Arc::new(Inner {
            config,
            ledger,
            publishers: Mutex::default(),
        }))
    }

    /// Sends a job to the workers again, as it is in the ledger. The claim decides what comes of it, as for every message.
    pub(super) async fn retry(&self, id: JobId, by: &By) -> Acted {
        self.retry_one_of_many(id, by).await.logged("retry", by)
    }

    /// As [`Acts::retry`], without a line in the log.
    pub(super) async fn retry_one_of_many(&self, id: JobId, by: &By) -> Acted {
        let unsent = format!("job {id} is not sent again");
        let stored = match message(&self.0.ledger, id).await {
            Ok(Some(stored)) => stored,
            Ok(None) => return Acted::not_found(id),
            Err(error) => return Acted::failed(id, None, &unsent, &error.into()),
        };
        let status = stored.status;
        let why_not = match status {
            // Whether its holder lives is for the claim to decide; while it does, the copy comes to nothing.
            JobStatus::Failed
            | JobStatus::Retrying
            | JobStatus::Pending
            | JobStatus::Processing => None,
            JobStatus::Success => {
                Some("every task is done; publish it under another id to do it again")
            }
            JobStatus::Cancelled => {
                Some("a cancelled job stays so; publish it under another id to do it after all")
            }
        };
        if let Some(why_not) = why_not {
            let sentence = format!("job {id} is {status}: {why_not}");
            return Acted::refused(id, Some(status), sentence);
        }
        // Before it is sent: that cannot be taken back.
        if let Err(error) = may_act(&self.0.ledger).await {
            return Acted::failed(id, Some(status), &unsent, &error.into());
        }
        let generation = Some(stored.generation);
        if let Err(failure) = self.send(id, &stored).await {
            return Acted::failed(id, Some(status), &unsent, &failure);
        }
        let recorded = record_retry(&self.0.ledger, id, by).await;
        let error = recorded.err().map(|error| {
            format!("job {id} is sent, but who did it could not be written down: {error}")
        });
        Acted {
            generation,
            error,
            ..Acted::done(id, status)
        }
    }

    /// Ends a job that is not over.
    pub(super) async fn cancel(&self, id: JobId, by: &By) -> Acted {
        self.cancel_one_of_many(id, by).await.logged("cancel", by)
    }

    /// As [`Acts::cancel`], without a line in the log.
    pub(super) async fn cancel_one_of_many(&self, id: JobId, by: &By) -> Acted {
        match self.cancel_all(&[id], by).await {
            Ok(cancelled) => match cancelled.first() {
                // Twice cancelled is what was asked for.
                Some((_, Cancelled::Cancelled | Cancelled::AlreadyOver(JobStatus::Cancelled))) => {
                    Acted::done(id, JobStatus::Cancelled)
                }
                Some((_, Cancelled::AlreadyOver(status))) => {
                    let sentence = format!("job {id} is {status} already, and stays so");
                    Acted::refused(id, Some(*status), sentence)
                }
                Some((_, Cancelled::NotFound)) | None => Acted::not_found(id),
            },
            Err(error) => {
                let what = format!("job {id} is not cancelled");
                Acted::failed(id, None, &what, &error.into())
            }
        }
    }

    /// Ends the jobs that are not over, all in one commit.
    pub(super) async fn cancel_all(
        &self,
        ids: &[JobId],
        by: &By,
    ) -> Result<Vec<(JobId, Cancelled)>, LedgerError> {
        cancel(&self.0.ledger, ids, by).await
    }

    /// The task that a job stands at: what is meant by whoever skips without a position. A job that stands at none is over, and
    /// a skip says so whatever the position.
    pub(super) async fn stands_at(&self, id: JobId) -> Result<Position, Acted> {
        let reads = Reads::new(self.0.ledger.clone());
        match reads.progress(id).await {
            Ok(Some(job)) => Ok(job.task.map_or(job.job.total, |task| task.position)),
            Ok(None) => Err(Acted::not_found(id)),
            Err(error) => {
                let what = format!("no task of job {id} is skipped");
                Err(Acted::failed(id, None, &what, &error.into()))
            }
        }
    }

    /// Takes the task at this position for done, and sends the job on. Only with a reason, only while nobody holds it, and only
    /// if the job stands there: asked twice, it is done once.
    pub(super) async fn skip(&self, id: JobId, position: Position, by: &By) -> Acted {
        self.skip_at(id, position, by).await.logged("skip", by)
    }

    async fn skip_at(&self, id: JobId, position: Position, by: &By) -> Acted {
        if by.reason.is_none() {
            let sentence = format!("no task of job {id} is skipped without a reason: say why");
            return Acted::refused(id, None, sentence);
        }
        match ledger::skip(&self.0.ledger, id, Some(position), by).await {
            Ok(Skipped::GoesOn {
                position,
                generation,
            }) => self.go_on(id, position, generation).await,
            Ok(Skipped::Over { .. }) => Acted::done(id, JobStatus::Success),
            Ok(Skipped::NotFound) => Acted::not_found(id),
            Ok(Skipped::Refused(status)) => {
                let sentence = match status {
                    JobStatus::Processing => format!(
                        "job {id} is PROCESSING: a worker runs this task; skip it when it has failed, or cancel the job"
                    ),
                    status => format!("job {id} is {status} already, and stays so"),
                };
                Acted::refused(id, Some(status), sentence)
            }
            Ok(Skipped::StandsAt { status, frontier }) => {
                let sentence = match frontier {
                    Some(frontier) => format!(
                        "job {id} stands at task {frontier} now, not at {position}: nothing is skipped"
                    ),
                    // As it may have been enqueued in SQL; a job whose tasks are done is SUCCESS.
                    None => format!("job {id} has no task that is not done: nothing is skipped"),
                };
                Acted::refused(id, Some(status), sentence)
            }
            Err(error) => {
                let what = match error.is_locked() {
                    true => format!("no task of job {id} is skipped"),
                    false => format!(
                        "task {position} of job {id} was to be skipped; look at the job before you ask again (`cliquet show {id}`)"
                    ),
                };
                Acted::failed(id, None, &what, &error.into())
            }
        }
    }

    /// Sends the message of a job that a skip has freed. Should that fail, the reconciler does it.
    async fn go_on(&self, id: JobId, position: Position, generation: Generation) -> Acted {
        let sent = async {
            let stored = message(&self.0.ledger, id).await?;
            // Somebody may have done more to it since, and sent what follows from that.
            if let Some(stored) = stored.filter(|stored| stored.generation == generation) {
                self.send(id, &stored).await?;
                // A note that is lost is another copy, which is harmless.
                let _ = note_sent(&self.0.ledger, id, generation).await;
            }
            Ok::<_, Failure>(())
        };
        match sent.await {
            Ok(()) => Acted {
                generation: Some(generation),
                ..Acted::done(id, JobStatus::Pending)
            },
            // The skip is done: told as a failure it would be repeated, and take the next task.
            Err(error) => Acted {
                generation: Some(generation),
                error: Some(format!(
                    "task {position} of job {id} is skipped, and that is written; but the job is not sent on: {error}. A worker's reconciler does it later, or now: `cliquet retry {id}`"
                )),
                ..Acted::done(id, JobStatus::Pending)
            },
        }
    }

    async fn send(&self, id: JobId, stored: &StoredMessage) -> Result<(), Failure> {
        let publisher = self.publisher(&stored.queue).await?;
        let letter = Letter::new(
            stored.message.encode(),
            &id.to_string(),
            &stored.message.kind,
        )
        .generation(stored.generation);
        Ok(confirmed(&publisher, &letter).await?)
    }

    async fn publisher(&self, queue: &str) -> Result<Publisher, Failure> {
        if let Some(publisher) = self.0.publishers.lock().await.get(queue) {
            return Ok(publisher.clone());
        }
        // Nobody waits for another's connection: where one cannot be made, each would wait for all before it.
        let opened = publisher(&self.0.config, queue, IN_FLIGHT).await?;
        let mut publishers = self.0.publishers.lock().await;
        if let Some(first) = publishers.get(queue).cloned() {
            drop(publishers);
            opened.close().await;
            return Ok(first);
        }
        publishers.insert(queue.to_owned(), opened.clone());
        Ok(opened)
    }

    /// Closes what was opened.
    pub(super) async fn close(&self) {
        let publishers = std::mem::take(&mut *self.0.publishers.lock().await);
        for publisher in publishers.values() {
            publisher.close().await;
        }
    }
}

/// Who acts, on the command line.
#[derive(Debug, Args)]
pub(super) struct Operator {
    /// Who does it, for the job's history [default: the login name]
    #[arg(
        long,
        value_name = "NAME",
        env = "CLIQUET_OPERATOR",
        hide_env_values = true
    )]
    operator: Option<String>,
}

impl Operator {
    pub(super) fn by(&self, reason: Option<&str>) -> By {
        let variable = |name| std::env::var(name).ok().filter(|name| !name.is_empty());
        let name = self.operator.clone().filter(|name| !name.trim().is_empty());
        let name = name
            .or_else(|| variable("USER"))
            .or_else(|| variable("LOGNAME"));
        By::new(&name.unwrap_or_default(), reason)
    }
}
