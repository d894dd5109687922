//! A job's message, rebuilt from the ledger: what the reconciler and an operator's retry publish.

use std::time::Duration;

use serde_json::value::RawValue;
use sqlx::{PgConnection, PgPool, Row, postgres::PgRow};

use super::{LedgerError, connect::sentence};
use crate::job::{Generation, JobId, JobMessage, JobStatus, TaskSpec, null};

/// A job as it would be published now.
#[derive(Debug)]
pub struct StoredMessage {
    /// The message, equal in content to what the publisher sent.
    pub message: JobMessage,
    /// The generation that a copy must carry to be the current one.
    pub generation: Generation,
    /// Where the job is in its life.
    pub status: JobStatus,
    /// The work queue it belongs to.
    pub queue: String,
    /// Why it waits or was given up.
    pub error: Option<String>,
}

const MESSAGE: &str = r"
SELECT job.kind, job.payload::text AS payload, job.total, job.generation, job.status::text AS status, job.queue, job.error,
       task.position, task.handler, task.label, task.input::text AS input, task.max_attempts, task.timeout_ms
  FROM cliquet.jobs job JOIN cliquet.tasks task ON task.job_id = job.id
 WHERE job.id = $1 ORDER BY task.position";

/// Reads a job's message; `None` when the ledger does not know the job.
///
/// # Errors
/// [`LedgerError::Unavailable`] when Postgres cannot be read; [`LedgerError::Schema`] when what is stored is no job.
pub async fn message(pool: &PgPool, job: JobId) -> Result<Option<StoredMessage>, LedgerError> {
    let mut connection = pool
        .acquire()
        .await
        .map_err(|error| LedgerError::Unavailable(sentence(&error)))?;
    stored_message(&mut connection, job)
        .await
        .map_err(|error| LedgerError::Unavailable(sentence(&error)))?
        .map_err(LedgerError::Schema)
}

/// Reads a job's message; the inner error says why what is stored is no job.
pub(crate) async fn stored_message(
    connection: &mut PgConnection,
    job: JobId,
) -> Result<Result<Option<StoredMessage>, String>, sqlx::Error> {
    let rows = sqlx::query(MESSAGE)
        .bind(job.0)
        .fetch_all(connection)
        .await?;
    Ok(assemble(job, &rows))
}

fn assemble(job: JobId, rows: &[PgRow]) -> Result<Option<StoredMessage>, String> {
    let Some(first) = rows.first() else {
        return Ok(None);
    };
    let damaged =
        |error: &dyn std::fmt::Display| format!("the stored job {job} cannot be read: {error}");
    let json = |text: Option<String>| match text {
        Some(text) => RawValue::from_string(text).map_err(|error| damaged(&error)),
        None => Ok(null()),
    };
    if let Some(sentence) = out_of_range(rows).map_err(|error| damaged(&error))? {
        return Err(damaged(&sentence));
    }
    let read = || -> Result<_, sqlx::Error> {
        let tasks = rows.iter().map(|row| {
            Ok((
                TaskSpec {
                    handler: row.try_get("handler")?,
                    label: row.try_get("label")?,
                    input: null(),
                    max_attempts: row
                        .try_get::<Option<i32>, _>("max_attempts")?
                        .map(i32::unsigned_abs),
                    timeout: row
                        .try_get::<Option<i64>, _>("timeout_ms")?
                        .map(|ms| Duration::from_millis(ms.unsigned_abs())),
                },
                row.try_get::<Option<String>, _>("input")?,
            ))
        });
        let status: String = first.try_get("status")?;
        Ok((
            first.try_get::<String, _>("kind")?,
            first.try_get::<String, _>("payload")?,
            Generation(first.try_get("generation")?),
            status,
            first.try_get::<String, _>("queue")?,
            first.try_get::<Option<String>, _>("error")?,
            tasks.collect::<Result<Vec<_>, sqlx::Error>>()?,
        ))
    };
    let (kind, payload, generation, status, queue, error, tasks) =
        read().map_err(|error| damaged(&error))?;
    let tasks = tasks
        .into_iter()
        .map(|(task, input)| {
            Ok(TaskSpec {
                input: json(input)?,
                ..task
            })
        })
        .collect::<Result<_, String>>()?;
    let message = JobMessage::assemble(job, kind, Some(json(Some(payload))?), tasks)
        .map_err(|error| damaged(&error))?;
    let status = status.parse().map_err(|error: String| damaged(&error))?;
    Ok(Some(StoredMessage {
        message,
        generation,
        status,
        queue,
        error,
    }))
}

/// What is wrong with the numbers of a job that somebody enqueued in SQL; a message's own were checked when it was read.
fn out_of_range(rows: &[PgRow]) -> Result<Option<String>, sqlx::Error> {
    for (expected, row) in (1..).zip(rows) {
        let (position, total): (i32, i32) = (row.try_get("position")?, row.try_get("total")?);
        if position != expected || total as usize != rows.len() {
            return Ok(Some(format!(
                "its tasks must stand at the positions 1 to {}, and `total` must be their number; there is a position {position}, and `total` is {total}",
                rows.len()
            )));
        }
        let most: Option<i32> = row.try_get("max_attempts")?;
        let limit: Option<i64> = row.try_get("timeout_ms")?;
        if most.is_some_and(|most| most < 1) || limit.is_some_and(|limit| limit < 1) {
            return Ok(Some(format!(
                "`max_attempts` and `timeout_ms` of the task at position {position} must be NULL or greater than 0"
            )));
        }
    }
    Ok(None)
}
