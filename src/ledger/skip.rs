//! An operator takes a job's next task for done, with a reason, and the job goes on behind it.
//!
//! Only of a job that nobody holds (PENDING, RETRYING or FAILED): a task that runs cannot be taken from its handler without
//! cutting it short, and that is what a cancel is for. It is the same act as a claim, the SUCCESS of its one task, and the end
//! of that claim, in one commit:
//!
//! 1. Lock the job. From here on nobody claims, cancels or deletes it; whoever was claiming it at this moment has either done
//!    so (it is PROCESSING now, and the skip is refused) or waits, and will find the next generation.
//! 2. Lock its frontier. Nobody writes it while nobody holds the job, but the order is that of every other writer.
//! 3. The task is SUCCESS with no result, under the job's next epoch: a former holder that asks what became of its own write
//!    does not take this SUCCESS for it.
//! 4. The job is SUCCESS if this was its last task. Otherwise it is PENDING, due now and of the next generation, as after a
//!    failure: every copy that is under way or parked is of an older one. It is acknowledged as stale once the new copy is known
//!    to be confirmed; before, whoever receives it sends the new copy, too (row 6 of the claim).
//! 5. Who did it, and why.
//!
//! | a crash | means |
//! |---|---|
//! | before the commit | nothing happened |
//! | after it, before the new copy is confirmed | the reconciler sends it once it is overdue, or an older copy brings it |
//!
//! Attempts and crashes of the task stay as they were; one that never began counts one attempt, since a task that is SUCCESS
//! has one. What had failed before stays in the history.

use sqlx::{Acquire, PgConnection, PgPool, Row};

use super::{
    LedgerError,
    interventions::{Act, BOUNDED, By, record, refused, repeated},
    read::word,
    sent::SENT,
};
use crate::job::{Generation, JobId, JobStatus, Position};

/// What skipping a task came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skipped {
    /// The task at this position is SUCCESS; the job is PENDING, and its message of this generation is to be sent.
    GoesOn {
        /// The task that was skipped.
        position: Position,
        /// What its next message must carry.
        generation: Generation,
    },
    /// The task at this position was the last: the job is SUCCESS.
    Over {
        /// The task that was skipped.
        position: Position,
    },
    /// A worker holds the job, or it is over: nothing was changed.
    Refused(JobStatus),
    /// The job stands at another task than the one that was to be skipped: nothing was changed.
    StandsAt {
        /// The job's status.
        status: JobStatus,
        /// The first task that is not SUCCESS; `None` when all are.
        frontier: Option<Position>,
    },
    /// The ledger knows no such job.
    NotFound,
}

const LOCK_JOB: &str =
    "SELECT status::text AS status, total FROM cliquet.jobs WHERE id = $1 FOR NO KEY UPDATE";

const LOCK_FRONTIER: &str = r"
SELECT position FROM cliquet.tasks WHERE job_id = $1 AND status <> 'SUCCESS'
 ORDER BY position LIMIT 1 FOR NO KEY UPDATE";

/// Its result stays NULL: only a SUCCESS has one, and an operator may write none.
const END_TASK: &str = r"
UPDATE cliquet.tasks task
   SET status = 'SUCCESS', finished_at = clock_timestamp(), error = NULL, epoch = job.epoch + 1,
       attempt = greatest(task.attempt, 1), started_at = coalesce(task.started_at, clock_timestamp())
  FROM cliquet.jobs job
 WHERE job.id = $1 AND task.job_id = job.id AND task.position = $2 AND task.status <> 'SUCCESS'";

/// Nothing is owed to the broker for a job that is over.
const END_JOB: &str = r"
UPDATE cliquet.jobs
   SET status = 'SUCCESS', epoch = epoch + 1, error = NULL, next_attempt_at = NULL, finished_at = clock_timestamp(),
       sent = greatest(sent, generation)
 WHERE id = $1 RETURNING generation";

const GO_ON: &str = r"
UPDATE cliquet.jobs
   SET status = 'PENDING', epoch = epoch + 1, error = NULL, next_attempt_at = clock_timestamp(), finished_at = NULL,
       generation = least(generation + 1, 1000000000)
 WHERE id = $1 RETURNING generation";

/// Skips the job's first task that is not SUCCESS: the one at `position`, if that is given.
///
/// Give the position where the answer may get lost: asked again, this skips the next task otherwise.
///
/// # Errors
/// [`LedgerError::Unavailable`] when Postgres is away or somebody keeps the job locked, [`LedgerError::Denied`] with the grant that
/// is missing, [`LedgerError::Schema`] when the database is not migrated.
pub async fn skip(
    pool: &PgPool,
    id: JobId,
    position: Option<Position>,
    by: &By,
) -> Result<Skipped, LedgerError> {
    repeated(pool, || attempt(pool, id, position, by)).await
}

async fn attempt(
    pool: &PgPool,
    id: JobId,
    position: Option<Position>,
    by: &By,
) -> Result<Skipped, sqlx::Error> {
    let mut connection = pool.acquire().await?;
    let mut transaction = connection.begin().await?;
    sqlx::raw_sql(BOUNDED).execute(&mut *transaction).await?;
    let skipped = skip_in(&mut transaction, id, position, by).await?;
    match skipped {
        Skipped::GoesOn { .. } | Skipped::Over { .. } => transaction.commit().await?,
        _ => transaction.rollback().await?,
    }
    Ok(skipped)
}

pub(super) async fn skip_in(
    connection: &mut PgConnection,
    id: JobId,
    position: Option<Position>,
    by: &By,
) -> Result<Skipped, sqlx::Error> {
    let job = sqlx::query(LOCK_JOB)
        .bind(id.0)
        .fetch_optional(&mut *connection)
        .await?;
    let Some(job) = job else {
        return Ok(Skipped::NotFound);
    };
    let status: JobStatus = word(&job, "status")?;
    match status {
        JobStatus::Pending | JobStatus::Retrying | JobStatus::Failed => {}
        JobStatus::Processing | JobStatus::Success | JobStatus::Cancelled => {
            return Ok(Skipped::Refused(status));
        }
    }
    let frontier: Option<Position> = sqlx::query_scalar(LOCK_FRONTIER)
        .bind(id.0)
        .fetch_optional(&mut *connection)
        .await?;
    let stands_at = Skipped::StandsAt { status, frontier };
    let Some(frontier) = frontier.filter(|at| position.is_none_or(|position| position == *at))
    else {
        return Ok(stands_at);
    };
    let ended = sqlx::query(END_TASK)
        .bind(id.0)
        .bind(frontier)
        .execute(&mut *connection)
        .await?;
    if ended.rows_affected() != 1 {
        return Ok(stands_at);
    }
    let last = frontier == job.try_get::<Position, _>("total")?;
    let generation = sqlx::query_scalar(if last { END_JOB } else { GO_ON })
        .bind(id.0)
        .fetch_one(&mut *connection)
        .await?;
    record(connection, &[id.0], Act::Skip, by, Some(frontier)).await?;
    Ok(match last {
        true => Skipped::Over { position: frontier },
        false => Skipped::GoesOn {
            position: frontier,
            generation: Generation(generation),
        },
    })
}

/// The broker has confirmed the copy that a skip asks for: older ones are acknowledged plainly, and the reconciler need not send
/// it. Without this note it is sent once more, which is harmless.
pub(crate) async fn note_sent(
    pool: &PgPool,
    job: JobId,
    generation: Generation,
) -> Result<(), LedgerError> {
    sqlx::query(SENT)
        .bind(vec![job.0])
        .bind(vec![generation.0])
        .execute(pool)
        .await
        .map(drop)
        .map_err(|error| refused(pool, &error))
}
