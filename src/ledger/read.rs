//! Reads for people: lists, one job with everything about it, and how far it is.
//!
//! Nothing here decides anything or locks a row. Whatever the ledger holds can be shown: a value that cannot be read is an
//! error with the job's id, never a panic.

use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::{PgConnection, PgPool, Row, postgres::PgRow};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    LedgerError, connect,
    interventions::{Intervention, interventions},
    overview::Counts,
};
use crate::job::{Epoch, Generation, JobId, JobStatus, Position, TaskStatus};

/// Reads of the ledger over a small pool of connections.
#[derive(Clone, Debug)]
pub struct Reads {
    pool: PgPool,
    pub(super) counts: Counts,
}

/// One job as lists show it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct JobSummary {
    /// The job's id.
    pub id: JobId,
    /// What sort of job it is.
    pub kind: String,
    /// Where it is in its life.
    pub status: JobStatus,
    /// Its work queue.
    pub queue: String,
    /// The generation of its present message.
    pub generation: Generation,
    /// The number of its claims, and of what operators did to it.
    pub epoch: Epoch,
    /// Why it waits, was given up or was cancelled.
    pub error: Option<String>,
    /// How many of its tasks are SUCCESS.
    pub done: i64,
    /// How many tasks it has.
    pub total: i32,
    /// When the ledger first knew it.
    pub created_at: DateTime<Utc>,
    /// When a worker first claimed it.
    pub started_at: Option<DateTime<Utc>>,
    /// When it was over.
    pub finished_at: Option<DateTime<Utc>>,
    /// When a waiting job is due.
    pub next_attempt_at: Option<DateTime<Utc>>,
    /// How often a worker has claimed it.
    pub attempts: i32,
    /// The name of the worker that runs it now.
    pub holder: Option<String>,
    /// What people read of the task that it stands at; only lists tell it here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

impl JobSummary {
    /// Whether nothing more will happen to it by itself.
    pub fn is_over(&self) -> bool {
        matches!(
            self.status,
            JobStatus::Success | JobStatus::Failed | JobStatus::Cancelled
        )
    }
}

/// One job with everything about it: what `cliquet show --json` prints.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct JobDetail {
    /// What lists show of it.
    #[serde(flatten)]
    pub job: JobSummary,
    /// What all its tasks share, as the publisher wrote it.
    #[schema(value_type = serde_json::Value)]
    pub payload: Box<RawValue>,
    /// Its tasks in their order.
    pub tasks: Vec<TaskView>,
    /// Every attempt that failed or crashed, oldest first.
    pub failures: Vec<FailureView>,
    /// What people did to it, oldest first.
    pub interventions: Vec<Intervention>,
}

/// One task of a job.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct TaskView {
    /// Its place, from 1.
    pub position: Position,
    /// The name of its handler.
    pub handler: String,
    /// What people read while it runs.
    pub label: String,
    /// Where it is in its life.
    pub status: TaskStatus,
    /// The number of its present or last attempt, from 1; 0 before the first.
    pub attempt: i32,
    /// How often a worker died while it ran this task.
    pub crashes: i32,
    /// Why its last attempt failed.
    pub error: Option<String>,
    /// What the message gives it, as the publisher wrote it; `null` for nothing.
    #[schema(value_type = serde_json::Value)]
    pub input: Option<Box<RawValue>>,
    /// What its handler answered; `null` for nothing.
    #[schema(value_type = serde_json::Value)]
    pub result: Option<Box<RawValue>>,
    /// When its present or last attempt began.
    pub started_at: Option<DateTime<Utc>>,
    /// When its last attempt ended.
    pub finished_at: Option<DateTime<Utc>>,
}

/// One attempt that failed or crashed.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct FailureView {
    /// Which task.
    pub position: Position,
    /// Which attempt of it, from 1.
    pub attempt: i32,
    /// The claim it belonged to.
    pub epoch: Epoch,
    /// The name of the worker that ran it.
    pub worker: String,
    /// Why it failed.
    pub error: String,
    /// When it began.
    pub started_at: Option<DateTime<Utc>>,
    /// When it was known to have failed.
    pub failed_at: DateTime<Utc>,
}

/// A job on its way: its summary and the first task that is not SUCCESS.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct JobProgress {
    /// What lists show of it.
    #[serde(flatten)]
    pub job: JobSummary,
    /// The first task that is not SUCCESS; `None` when all are.
    pub task: Option<CurrentTask>,
}

/// The task a job stands at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct CurrentTask {
    /// Its place, from 1.
    pub position: Position,
    /// What people read while it runs.
    pub label: String,
    /// Where it is in its life.
    pub status: TaskStatus,
    /// The number of its present or last attempt, from 1; 0 before the first.
    pub attempt: i32,
    /// Why its last attempt failed.
    pub error: Option<String>,
}

impl Reads {
    /// Reads over this pool.
    pub fn new(pool: PgPool) -> Self {
        Self {
            pool,
            counts: Counts::default(),
        }
    }

    /// The pool, for the verbs of the ledger that need one.
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// How many jobs there are in each status, in the order of a life; statuses without a job are left out. Reads every job.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`], [`LedgerError::Schema`].
    pub async fn counts(&self, queue: Option<&str>) -> Result<Vec<(JobStatus, i64)>, LedgerError> {
        let rows = sqlx::query(
            "SELECT status::text, count(*) AS jobs FROM cliquet.jobs WHERE $1::text IS NULL OR queue = $1
             GROUP BY jobs.status ORDER BY jobs.status",
        )
        .bind(queue)
        .fetch_all(&self.pool)
        .await
        .map_err(|error| unusable(&self.pool, &error))?;
        rows.iter()
            .map(|row| Ok((word(row, "status")?, row.try_get("jobs")?)))
            .collect::<Result<_, _>>()
            .map_err(|error| unusable(&self.pool, &error))
    }

    /// One job with its tasks, its failures and what people did to it, all of one moment; `None` when the ledger does not know the id.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`], [`LedgerError::Schema`].
    pub async fn job(&self, id: JobId) -> Result<Option<JobDetail>, LedgerError> {
        detail(&self.pool, id)
            .await
            .map_err(|error| unusable(&self.pool, &error))
    }

    /// How far a job is: cheap enough to be asked several times a second. `None` when the ledger does not know the id.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`], [`LedgerError::Schema`].
    pub async fn progress(&self, id: JobId) -> Result<Option<JobProgress>, LedgerError> {
        progress(&self.pool, id)
            .await
            .map_err(|error| unusable(&self.pool, &error))
    }
}

/// The columns of a [`JobSummary`], for one job.
const SUMMARY_OF_ONE: &str = "
    SELECT j.id, j.kind, j.status::text, j.queue, j.generation, j.epoch, j.error, j.total, j.created_at, j.started_at,
           j.finished_at, j.next_attempt_at, j.attempts, w.name AS holder, j.payload::text AS payload,
           (SELECT count(*) FROM cliquet.tasks t WHERE t.job_id = j.id AND t.status = 'SUCCESS') AS done
    FROM cliquet.jobs j LEFT JOIN cliquet.workers w ON w.id = j.holder
    WHERE j.id = $1";

async fn detail(pool: &PgPool, id: JobId) -> Result<Option<JobDetail>, sqlx::Error> {
    // One snapshot for all of it: a job is never shown over with a task that still runs.
    let mut snapshot = pool
        .begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        .await?;
    let Some(row) = sqlx::query(SUMMARY_OF_ONE)
        .bind(id.0)
        .fetch_optional(&mut *snapshot)
        .await?
    else {
        return Ok(None);
    };
    let detail = JobDetail {
        job: summary(&row)?,
        payload: json(&row, "payload")?.unwrap_or_else(crate::job::null),
        tasks: tasks(&mut snapshot, id).await?,
        failures: failures(&mut snapshot, id).await?,
        interventions: interventions(&mut snapshot, id).await?,
    };
    snapshot.commit().await?;
    Ok(Some(detail))
}

async fn tasks(connection: &mut PgConnection, id: JobId) -> Result<Vec<TaskView>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT position, handler, label, status::text, attempt, crashes, error, input::text AS input,
                result::text AS result, started_at, finished_at
         FROM cliquet.tasks WHERE job_id = $1 ORDER BY position",
    )
    .bind(id.0)
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(TaskView {
                position: row.try_get("position")?,
                handler: row.try_get("handler")?,
                label: row.try_get("label")?,
                status: word(row, "status")?,
                attempt: row.try_get("attempt")?,
                crashes: row.try_get("crashes")?,
                error: row.try_get("error")?,
                input: json(row, "input")?,
                result: json(row, "result")?,
                started_at: row.try_get("started_at")?,
                finished_at: row.try_get("finished_at")?,
            })
        })
        .collect()
}

async fn failures(
    connection: &mut PgConnection,
    id: JobId,
) -> Result<Vec<FailureView>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT position, attempt, epoch, worker, error, started_at, failed_at
         FROM cliquet.failures WHERE job_id = $1 ORDER BY epoch",
    )
    .bind(id.0)
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(FailureView {
                position: row.try_get("position")?,
                attempt: row.try_get("attempt")?,
                epoch: Epoch(row.try_get("epoch")?),
                worker: row.try_get("worker")?,
                error: row.try_get("error")?,
                started_at: row.try_get("started_at")?,
                failed_at: row.try_get("failed_at")?,
            })
        })
        .collect()
}

async fn progress(pool: &PgPool, id: JobId) -> Result<Option<JobProgress>, sqlx::Error> {
    let row = sqlx::query(
        "SELECT j.id, j.kind, j.status::text, j.queue, j.generation, j.epoch, j.error, j.total, j.created_at,
                j.started_at, j.finished_at, j.next_attempt_at, j.attempts, w.name AS holder,
                coalesce(t.position - 1, j.total)::bigint AS done,
                t.position, t.label, t.status::text AS task_status, t.attempt, t.error AS task_error
         FROM cliquet.jobs j
         LEFT JOIN cliquet.workers w ON w.id = j.holder
         LEFT JOIN LATERAL (SELECT * FROM cliquet.tasks WHERE job_id = j.id AND status <> 'SUCCESS'
                            ORDER BY position LIMIT 1) t ON true
         WHERE j.id = $1",
    )
    .bind(id.0)
    .fetch_optional(pool)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let position: Option<Position> = row.try_get("position")?;
    let task = match position {
        None => None,
        Some(position) => Some(CurrentTask {
            position,
            label: row.try_get("label")?,
            status: word(&row, "task_status")?,
            attempt: row.try_get("attempt")?,
            error: row.try_get("task_error")?,
        }),
    };
    Ok(Some(JobProgress {
        job: summary(&row)?,
        task,
    }))
}

pub(super) fn summary(row: &PgRow) -> Result<JobSummary, sqlx::Error> {
    let id: Uuid = row.try_get("id")?;
    Ok(JobSummary {
        id: JobId(id),
        kind: row.try_get("kind")?,
        status: word(row, "status")?,
        queue: row.try_get("queue")?,
        generation: Generation(row.try_get("generation")?),
        epoch: Epoch(row.try_get("epoch")?),
        error: row.try_get("error")?,
        done: row.try_get("done")?,
        total: row.try_get("total")?,
        created_at: row.try_get("created_at")?,
        started_at: row.try_get("started_at")?,
        finished_at: row.try_get("finished_at")?,
        next_attempt_at: row.try_get("next_attempt_at")?,
        attempts: row.try_get("attempts")?,
        holder: row.try_get("holder")?,
        label: None,
    })
}

/// A status; a word that a newer schema may have brought is an error with the word in it.
pub(super) fn word<T: FromStr<Err = String>>(row: &PgRow, column: &str) -> Result<T, sqlx::Error> {
    let text: String = row.try_get(column)?;
    text.parse()
        .map_err(|sentence: String| unreadable(column, sentence))
}

/// JSON as the ledger keeps it, to the letter.
fn json(row: &PgRow, column: &str) -> Result<Option<Box<RawValue>>, sqlx::Error> {
    let text: Option<String> = row.try_get(column)?;
    text.map(RawValue::from_string)
        .transpose()
        .map_err(|error| unreadable(column, format!("not JSON: {error}")))
}

fn unreadable(column: &str, sentence: String) -> sqlx::Error {
    sqlx::Error::ColumnDecode {
        index: column.to_owned(),
        source: sentence.into(),
    }
}

/// An error as people read it: which database, what happened, what to do.
pub(super) fn unusable(pool: &PgPool, error: &sqlx::Error) -> LedgerError {
    let options = pool.connect_options();
    let place = format!(
        "{}@{}:{}/{}",
        options.get_username(),
        options.get_host(),
        options.get_port(),
        options.get_database().unwrap_or(options.get_username())
    );
    let code = match error {
        sqlx::Error::ColumnDecode { index, source } => {
            return LedgerError::Schema(format!(
                "the column `{index}` in the database {place} cannot be read: {source}"
            ));
        }
        sqlx::Error::Database(database) => database.code().unwrap_or_default(),
        _ => Default::default(),
    };
    let sentence = connect::sentence(error);
    match code.as_ref() {
        // An unknown schema, table or column: made by another version, or not at all.
        "3F000" | "42P01" | "42703" | "42704" => LedgerError::Schema(format!(
            "the database {place} is not migrated for this version of cliquet: {sentence}. Run `cliquet migrate` with the same DATABASE_URL"
        )),
        "42501" => LedgerError::Unavailable(format!(
            "this user may not do that in the database {place}: {sentence}. Grant USAGE on the schema cliquet and SELECT, INSERT, UPDATE on its tables"
        )),
        _ => LedgerError::Unavailable(format!("Postgres at {place} cannot be used: {sentence}")),
    }
}
