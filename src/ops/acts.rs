//! What people do to jobs: retry, cancel and skip, for the command line and for HTTP.
//!
//! Each act is written down with who did it and why, and says in a sentence what it came to.

use std::{collections::BTreeMap, sync::Arc};

use clap::Args;
use serde::Serialize;
use sqlx::PgPool;
use tokio::sync::Mutex;
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
        self, Cancelled, LedgerError, Skipped, StoredMessage, cancel, may_act, message, note_sent,
        record_retry,
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
        }
    }

    fn refused(id: JobId, status: Option<JobStatus>, sentence: String) -> Self {
        Self {
            id,
            outcome: Outcome::Refused,
            status,
            generation: None,
            error: Some(sentence),
        }
    }

    fn not_found(id: JobId) -> Self {
        Self {
            id,
            outcome: Outcome::NotFound,
            status: None,
            generation: None,
            error: Some(format!("the ledger knows no job {id}")),
        }
    }

    fn failed(id: JobId, status: Option<JobStatus>, sentence: String) -> Self {
        Self {
            id,
            outcome: Outcome::Failed,
            status,
            generation: None,
            error: Some(sentence),
        }
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
        let stored = match message(&self.0.ledger, id).await {
            Ok(Some(stored)) => stored,
            Ok(None) => return Acted::not_found(id),
            Err(error) => return Acted::failed(id, None, unsent(id, &error)),
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
            return Acted::failed(id, Some(status), unsent(id, &error));
        }
        let generation = Some(stored.generation);
        if let Err(sentence) = self.send(id, &stored).await {
            return Acted::failed(id, Some(status), unsent(id, &sentence));
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
    #[allow(dead_code, reason = "HTTP cancels one job at a time")]
    pub(super) async fn cancel(&self, id: JobId, by: &By) -> Acted {
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
                let sentence = format!("job {id} is not cancelled: {error}");
                Acted::failed(id, None, sentence)
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

    /// Takes the task that a job stands at for done, and sends the job on. Only with a reason, and only while nobody holds it;
    /// with a `position`, only if it stands there.
    pub(super) async fn skip(&self, id: JobId, position: Option<Position>, by: &By) -> Acted {
        if by.reason.is_none() {
            let sentence = format!("no task of job {id} is skipped without a reason: say why");
            return Acted::refused(id, None, sentence);
        }
        match ledger::skip(&self.0.ledger, id, position, by).await {
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
                let sentence = match (frontier, position) {
                    (Some(frontier), Some(position)) => format!(
                        "job {id} stands at task {frontier} now, not at {position}: nothing is skipped"
                    ),
                    // As it may have been enqueued in SQL; a job whose tasks are done is SUCCESS.
                    _ => format!("job {id} has no task that is not done: nothing is skipped"),
                };
                Acted::refused(id, Some(status), sentence)
            }
            Err(error) if error.is_locked() => {
                Acted::failed(id, None, format!("no task of job {id} is skipped: {error}"))
            }
            Err(error) => Acted::failed(
                id,
                None,
                format!(
                    "a task of job {id} was to be skipped: {error}. Look at the job before you ask again: `cliquet show {id}`"
                ),
            ),
        }
    }

    /// Sends the message of a job that a skip has freed. Should that fail, the reconciler does it.
    async fn go_on(&self, id: JobId, position: Position, generation: Generation) -> Acted {
        let sent = async {
            let stored = message(&self.0.ledger, id)
                .await
                .map_err(|error| error.to_string())?;
            // Somebody may have done more to it since, and sent what follows from that.
            if let Some(stored) = stored.filter(|stored| stored.generation == generation) {
                self.send(id, &stored).await?;
                // A note that is lost is another copy, which is harmless.
                let _ = note_sent(&self.0.ledger, id, generation).await;
            }
            Ok::<_, String>(())
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

    async fn send(&self, id: JobId, stored: &StoredMessage) -> Result<(), String> {
        let publisher = self
            .publisher(&stored.queue)
            .await
            .map_err(|failure| failure.to_string())?;
        let letter = Letter::new(
            stored.message.encode(),
            &id.to_string(),
            &stored.message.kind,
        )
        .generation(stored.generation);
        confirmed(&publisher, &letter)
            .await
            .map_err(|error| error.to_string())
    }

    async fn publisher(&self, queue: &str) -> Result<Publisher, Failure> {
        let mut publishers = self.0.publishers.lock().await;
        if let Some(publisher) = publishers.get(queue) {
            return Ok(publisher.clone());
        }
        let opened = publisher(&self.0.config, queue, IN_FLIGHT).await?;
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

fn unsent(id: JobId, error: &dyn std::fmt::Display) -> String {
    format!("job {id} is not sent again: {error}")
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
