//! An operator ends jobs: the same act as a claim, except that nobody runs them afterwards.
//!
//! | a crash | means |
//! |---|---|
//! | before the commit | nothing happened |
//! | after it | the jobs are over; a worker that ran one is fenced off at its next write or heartbeat |
//!
//! # Why four statements
//!
//! Cancelling takes the job's epoch and fences the task that is PROCESSING, so that its holder's write, which names the
//! former epoch, changes no row. An advance locks task rows only: it makes task *k* SUCCESS and *k+1* PROCESSING in one
//! commit. Were that task found and fenced in one statement, the statement's snapshot could show *k* PROCESSING, wait for
//! the advance, find *k* SUCCESS, and never look at *k+1*, which was PENDING in its snapshot: the fence would be lost and
//! the holder would run on to the end of the job. Hence:
//!
//! 1. Lock the jobs, in the order of their ids as every writer does. From here on nobody claims, releases, fails or ends them.
//! 2. End those that are not over, with the next epoch.
//! 3. Lock each job's first task that is not SUCCESS. Its snapshot lists all tasks that were not SUCCESS in their order; for
//!    each, Postgres waits for whoever holds the row and looks at it *again*: one that became SUCCESS is passed over and the
//!    next is tried. So it follows the advancing holder until it has the row that the holder needs for its next step.
//! 4. Fence what is PROCESSING. A new snapshot, and nothing can move any more.
//!
//! And a fifth writes down who did it, and why.
//!
//! Locks are taken as everywhere: job rows, then task rows. Nothing here is dropped half-way: no `select!`, no timeout.

use sqlx::{Acquire, PgConnection, PgPool, Row, postgres::PgRow};
use uuid::Uuid;

use super::{
    LedgerError,
    interventions::{Act, BOUNDED, By, record, repeated},
};
use crate::job::{JobId, JobStatus};

/// The error of a task that was running when its job was cancelled.
pub const CANCELLED_TASK: &str = "cancelled by an operator";

/// What cancelling one job came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancelled {
    /// It is CANCELLED now.
    Cancelled,
    /// The ledger knows no such job.
    NotFound,
    /// It was over before, with this status, and stays as it was.
    AlreadyOver(JobStatus),
}

/// Cancels the jobs that are not over, all in one commit; one answer for each id, in the order asked.
///
/// The reason becomes the jobs' `error`; without one it is [`CANCELLED_TASK`]. A job whose message is still in a queue needs nothing more: the next claim finds it
/// over. Asking twice is harmless; after an error whose outcome is unknown, ask again.
///
/// # Errors
/// [`LedgerError::Unavailable`] when Postgres is away or somebody keeps one of the jobs locked, [`LedgerError::Denied`] with the grant that is missing,
/// [`LedgerError::Refused`] when it cannot store the reason (a NUL), [`LedgerError::Schema`] when the database is not migrated.
pub async fn cancel(
    pool: &PgPool,
    ids: &[JobId],
    by: &By,
) -> Result<Vec<(JobId, Cancelled)>, LedgerError> {
    let found = repeated(pool, || attempt(pool, ids, by)).await?;
    Ok(ids
        .iter()
        .map(|id| {
            let answer = found.iter().find(|(found, _)| found == id);
            (
                *id,
                answer.map_or(Cancelled::NotFound, |(_, answer)| *answer),
            )
        })
        .collect())
}

async fn attempt(
    pool: &PgPool,
    ids: &[JobId],
    by: &By,
) -> Result<Vec<(JobId, Cancelled)>, sqlx::Error> {
    let mut connection = pool.acquire().await?;
    let mut transaction = connection.begin().await?;
    sqlx::raw_sql(BOUNDED).execute(&mut *transaction).await?;
    let jobs = lock_jobs(&mut transaction, ids).await?;
    let live: Vec<Uuid> = jobs
        .iter()
        .filter(|(_, answer)| *answer == Cancelled::Cancelled)
        .map(|(id, _)| id.0)
        .collect();
    if !live.is_empty() {
        let reason = by.reason.as_deref().unwrap_or(CANCELLED_TASK);
        end_jobs(&mut transaction, &live, reason).await?;
        lock_current_tasks(&mut transaction, &live).await?;
        fence_running_tasks(&mut transaction, &live).await?;
        record(&mut transaction, &live, Act::Cancel, by, None).await?;
    }
    transaction.commit().await?;
    Ok(jobs)
}

/// Locks the jobs and says what is to become of each.
async fn lock_jobs(
    connection: &mut PgConnection,
    ids: &[JobId],
) -> Result<Vec<(JobId, Cancelled)>, sqlx::Error> {
    let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
    let rows = sqlx::query(
        "SELECT id, status::text FROM cliquet.jobs WHERE id = ANY ($1) ORDER BY id FOR NO KEY UPDATE",
    )
    .bind(ids)
    .fetch_all(connection)
    .await?;
    rows.iter().map(answer).collect()
}

fn answer(row: &PgRow) -> Result<(JobId, Cancelled), sqlx::Error> {
    let status: JobStatus = super::read::word(row, "status")?;
    let answer = match status {
        JobStatus::Success | JobStatus::Failed | JobStatus::Cancelled => {
            Cancelled::AlreadyOver(status)
        }
        JobStatus::Pending | JobStatus::Processing | JobStatus::Retrying => Cancelled::Cancelled,
    };
    Ok((JobId(row.try_get("id")?), answer))
}

async fn end_jobs(
    connection: &mut PgConnection,
    live: &[Uuid],
    reason: &str,
) -> Result<(), sqlx::Error> {
    // `sent`: nothing is owed to the broker for a job that is over, and the index of what is owed stays small.
    sqlx::query(
        "UPDATE cliquet.jobs
         SET status = 'CANCELLED', epoch = epoch + 1, holder = NULL, next_attempt_at = NULL,
             finished_at = clock_timestamp(), error = $2, sent = greatest(sent, generation)
         WHERE id = ANY ($1)",
    )
    .bind(live)
    .bind(reason)
    .execute(connection)
    .await?;
    Ok(())
}

async fn lock_current_tasks(
    connection: &mut PgConnection,
    live: &[Uuid],
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "SELECT t.position
         FROM unnest($1::uuid[]) AS j (id)
         CROSS JOIN LATERAL (SELECT position FROM cliquet.tasks WHERE job_id = j.id AND status <> 'SUCCESS'
                             ORDER BY position LIMIT 1 FOR NO KEY UPDATE) t",
    )
    .bind(live)
    .execute(connection)
    .await?;
    Ok(())
}

async fn fence_running_tasks(
    connection: &mut PgConnection,
    live: &[Uuid],
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE cliquet.tasks t
         SET status = 'FAILED', error = $2, finished_at = clock_timestamp(), epoch = j.epoch
         FROM cliquet.jobs j
         WHERE j.id = ANY ($1) AND t.job_id = j.id AND t.status = 'PROCESSING'",
    )
    .bind(live)
    .bind(CANCELLED_TASK)
    .execute(connection)
    .await?;
    Ok(())
}
