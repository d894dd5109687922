//! What the ledger says is owed to the broker: the reconciler's eyes.
//!
//! One publish too many is harmless (it dies at the claim), one too few is a lost job; but a publish at every look would
//! bury a long queue. So a job that is looked after is put off: it is seen again only after `patience`.

use std::{future::Future, time::Duration};

use sqlx::{PgConnection, PgPool, Row, pool::PoolConnection};
use tokio::time::timeout;

use super::{
    Holder, LedgerError,
    connect::sentence,
    lane::NO_ANSWER,
    message::{StoredMessage, stored_message},
};
use crate::job::{Generation, JobId};

/// How long the desk's questions may take, of which some read a whole table; longer than the server's own limit for them.
const PATIENCE: Duration = match cfg!(test) {
    true => Duration::from_secs(5), // so that a test can see it end
    false => NO_ANSWER.saturating_mul(6),
};

/// A job whose message has to be sent (again).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owed {
    pub(crate) job: JobId,
    pub(crate) generation: Generation,
    pub(crate) what: What,
}

/// What is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// Enqueued in SQL, never sent.
    Enqueued,
    /// Due for so long, and nobody has claimed it since.
    Overdue { by: Duration },
    /// Its holder is dead, and no redelivery has brought it to anybody.
    Abandoned,
    /// Given up, and its copy in the dead queue is not known to be confirmed.
    Unparked,
}

/// "clqr" and the queue's hash: one reconciler acts on a queue at a time.
const ALONE: &str = "SELECT pg_try_advisory_lock(x'636c7172'::int4, hashtext($1))";

/// Each part is bounded and rests on a small partial index. What is enqueued has a part of its own, so that it does not
/// wait behind a backlog of overdue jobs.
pub(super) const OWED: &str = r"
(SELECT job.id, job.generation, 'enqueued' AS what, 0::float8 AS overdue
   FROM cliquet.jobs job
  WHERE job.sent < job.generation AND job.sent < 0 AND job.queue = $1 AND job.next_attempt_at <= statement_timestamp()
  LIMIT 500)
UNION ALL
(SELECT job.id, job.generation, 'overdue', extract(epoch FROM clock_timestamp() - job.next_attempt_at)::float8
   FROM cliquet.jobs job
  WHERE job.next_attempt_at <= statement_timestamp() - make_interval(secs => $2) AND job.queue = $1 AND job.sent >= 0
  ORDER BY job.next_attempt_at LIMIT 500)
UNION ALL
(SELECT job.id, job.generation, 'unparked', 0::float8
   FROM cliquet.jobs job
  WHERE job.sent < job.generation AND job.status = 'FAILED' AND job.queue = $1
    AND job.finished_at < clock_timestamp() - make_interval(secs => $2)
  LIMIT 500)";

/// Workers that are dead and may have left jobs behind. Whoever was found to hold nothing is not asked for again, since the
/// answer costs a read of the whole table.
const DEAD: &str = r"
SELECT id FROM cliquet.workers
 WHERE queue = $1 AND (stopped_at IS NOT NULL OR (seen_at < statement_timestamp() - patience
                                                  AND pg_postmaster_start_time() < statement_timestamp() - patience))
   AND (cleared_at IS NULL OR cleared_at < seen_at) AND id <> $2";

const ABANDONED: &str = r"
SELECT job.id, job.generation FROM cliquet.jobs job
 WHERE job.holder = ANY($1) AND job.status = 'PROCESSING' LIMIT 500";

/// They hold nothing. A worker that has only just stopped is left for the next look: its last claim may be on its way.
const CLEARED: &str = r"
UPDATE cliquet.workers SET cleared_at = clock_timestamp()
 WHERE id = ANY($1) AND coalesce(stopped_at, seen_at) < statement_timestamp() - interval '1 minute'";

/// The oldest of those that are due; their index has it first.
pub(super) const OLDEST: &str = r"
SELECT extract(epoch FROM statement_timestamp() - job.next_attempt_at)::float8
  FROM cliquet.jobs job
 WHERE job.next_attempt_at <= statement_timestamp() AND job.queue = $1
 ORDER BY job.next_attempt_at LIMIT 1";

/// A row that somebody keeps locked is left as it is: whoever waited for it would keep all others from reconciling.
const PUT_OFF: &str = r"
UPDATE cliquet.jobs
   SET next_attempt_at = clock_timestamp()
           + greatest(make_interval(secs => $3), least(clock_timestamp() - next_attempt_at, interval '6 hours'))
 WHERE id IN (SELECT id FROM cliquet.jobs
               WHERE id = ANY($1) AND next_attempt_at IS NOT NULL AND next_attempt_at < clock_timestamp() AND queue = $2
               ORDER BY id FOR NO KEY UPDATE SKIP LOCKED)";

/// Whatever was given up before is owed a copy again, and that is a new generation: a note that a copy is sent may come late,
/// from a worker that was cut off from Postgres, and is then of a copy that was lost. Reads the whole table.
const FORGOTTEN: &str = r"
UPDATE cliquet.jobs SET generation = least(generation + 1, 1000000000), sent = least(sent, generation, 999999999)
 WHERE queue = $1 AND status = 'FAILED' AND generation > 0
   AND finished_at < clock_timestamp() - make_interval(secs => $2)";

const CONDEMN: &str = r"
UPDATE cliquet.jobs
   SET status = 'FAILED', error = CASE status WHEN 'FAILED' THEN error ELSE $2 END,
       finished_at = coalesce(finished_at, clock_timestamp()), next_attempt_at = NULL, sent = generation
 WHERE id = $1 AND status IN ('PENDING', 'RETRYING', 'FAILED')";

/// For how long the oldest job of the queue that is due has waited; zero when none is.
pub(super) async fn oldest(pool: &PgPool, queue: &str) -> Result<Duration, LedgerError> {
    let mut connection = pool.acquire().await.map_err(unavailable)?;
    let asked = sqlx::query_scalar(OLDEST).bind(queue);
    let waits: Option<f64> = match bounded(asked.fetch_optional(&mut *connection)).await {
        Ok(waits) => waits,
        Err(error) => {
            connection.close_on_drop();
            return Err(error);
        }
    };
    Ok(Duration::try_from_secs_f64(waits.unwrap_or(0.0)).unwrap_or_default())
}

/// The right to reconcile a queue; it ends with [`Reconciling::end`], or with the connection.
pub(crate) struct Reconciling {
    connection: PoolConnection<sqlx::Postgres>,
    queue: String,
    /// It gave no answer, and what became of the question is unknown: nothing more is asked of it.
    silent: bool,
}

impl Reconciling {
    /// Takes the right, if nobody has it now.
    pub(crate) async fn begin(pool: &PgPool, holder: &Holder) -> Result<Option<Self>, LedgerError> {
        let queue = holder.queue.clone();
        let mut connection = pool.acquire().await.map_err(unavailable)?;
        let asked = sqlx::query_scalar(ALONE).bind(&queue);
        let alone: bool = match bounded(asked.fetch_one(&mut *connection)).await {
            Ok(alone) => alone,
            Err(error) => {
                connection.close_on_drop();
                return Err(error);
            }
        };
        if !alone {
            return Ok(None);
        }
        // However this ends, a connection that holds the lock must never go back to the pool: only `end` returns it.
        connection.close_on_drop();
        Ok(Some(Self {
            connection,
            queue,
            silent: false,
        }))
    }

    /// What is owed now: what is due for longer than `grace`.
    pub(crate) async fn owed(&mut self, grace: Duration) -> Result<Vec<Owed>, LedgerError> {
        let rows = bounded(
            sqlx::query(OWED)
                .bind(&self.queue)
                .bind(grace.as_secs_f64())
                .fetch_all(&mut *self.connection),
        )
        .await?;
        let read = |row: &sqlx::postgres::PgRow| {
            let what = match row.try_get("what")? {
                "enqueued" => What::Enqueued,
                "unparked" => What::Unparked,
                _ => What::Overdue {
                    by: Duration::try_from_secs_f64(row.try_get("overdue")?).unwrap_or_default(),
                },
            };
            Ok(Owed {
                job: JobId(row.try_get("id")?),
                generation: Generation(row.try_get("generation")?),
                what,
            })
        };
        rows.iter()
            .map(read)
            .collect::<Result<_, _>>()
            .map_err(unavailable)
    }

    /// Jobs whose holder is dead. When workers have died this reads the whole table, so it is asked rarely.
    pub(crate) async fn abandoned(&mut self, holder: &Holder) -> Result<Vec<Owed>, LedgerError> {
        let connection: &mut PgConnection = &mut self.connection;
        let dead = bounded(
            sqlx::query(DEAD)
                .bind(&self.queue)
                .bind(holder.id)
                .fetch_all(&mut *connection),
        )
        .await?;
        let dead: Vec<i64> = dead
            .iter()
            .map(|row| row.try_get("id"))
            .collect::<Result<_, _>>()
            .map_err(unavailable)?;
        if dead.is_empty() {
            return Ok(Vec::new());
        }
        let rows = bounded(
            sqlx::query(ABANDONED)
                .bind(&dead)
                .fetch_all(&mut *connection),
        )
        .await?;
        if rows.is_empty() {
            bounded(sqlx::query(CLEARED).bind(&dead).execute(connection)).await?;
        }
        let read = |row: &sqlx::postgres::PgRow| {
            Ok(Owed {
                job: JobId(row.try_get("id")?),
                generation: Generation(row.try_get("generation")?),
                what: What::Abandoned,
            })
        };
        rows.iter()
            .map(read)
            .collect::<Result<_, _>>()
            .map_err(unavailable)
    }

    /// These were looked after: they are not owed again before `patience` has passed, or as long as they were late already,
    /// so that a job in a queue of hours is sent a few times more and not hundreds.
    pub(crate) async fn put_off(
        &mut self,
        jobs: &[JobId],
        patience: Duration,
    ) -> Result<(), LedgerError> {
        bounded(
            sqlx::query(PUT_OFF)
                .bind(jobs.iter().map(|job| job.0).collect::<Vec<_>>())
                .bind(&self.queue)
                .bind(patience.as_secs_f64())
                .execute(&mut *self.connection),
        )
        .await?;
        Ok(())
    }

    /// The broker has forgotten what was given up so long ago: all of it is owed again, whatever is known of its copies.
    /// Answers with how many jobs that are.
    pub(crate) async fn forgotten(&mut self, ago: Duration) -> Result<u64, LedgerError> {
        let owed = bounded(
            sqlx::query(FORGOTTEN)
                .bind(&self.queue)
                .bind(ago.as_secs_f64())
                .execute(&mut *self.connection),
        )
        .await?;
        Ok(owed.rows_affected())
    }

    /// What is stored is no job that could ever be sent: it is given up, with the reason, instead of being looked at for ever.
    pub(crate) async fn condemn(&mut self, job: JobId, sentence: &str) -> Result<(), LedgerError> {
        bounded(
            sqlx::query(CONDEMN)
                .bind(job.0)
                .bind(sentence)
                .execute(&mut *self.connection),
        )
        .await?;
        Ok(())
    }

    /// The job's message as it would be published now.
    ///
    /// The inner error is a sentence: what is stored is no job that could be published.
    pub(crate) async fn message(
        &mut self,
        job: JobId,
    ) -> Result<Result<Option<StoredMessage>, String>, LedgerError> {
        bounded(stored_message(&mut self.connection, job)).await
    }

    /// What else is done under this right. It may own a transaction: a connection that does not answer is closed, with
    /// whatever it was doing, and the right to reconcile goes with it.
    pub(super) async fn do_more<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
        told: impl FnOnce(&sqlx::Error) -> LedgerError,
    ) -> Result<T, LedgerError> {
        match timeout(PATIENCE, work(&mut self.connection)).await {
            Ok(done) => done.map_err(|error| told(&error)),
            Err(_) => {
                self.silent = true;
                Err(no_answer())
            }
        }
    }

    /// Lets others reconcile.
    pub(crate) async fn end(mut self) {
        if self.silent {
            return; // it is closed when it is dropped
        }
        let unlock = sqlx::query("SELECT pg_advisory_unlock(x'636c7172'::int4, hashtext($1))")
            .bind(&self.queue);
        if bounded(unlock.execute(&mut *self.connection)).await.is_ok() {
            // It is marked to be closed when it is dropped. The pool asks it once more, and it may have gone silent.
            let _ = timeout(NO_ANSWER, self.connection.return_to_pool()).await;
        }
    }
}

/// An answer of the desk's, or an error for a server that has gone silent. Each question is a statement of its own, on a
/// connection that is closed unless all went well, so none leaves a transaction behind. The server's own limit is shorter.
async fn bounded<T>(asked: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, LedgerError> {
    match timeout(PATIENCE, asked).await {
        Ok(answer) => answer.map_err(unavailable),
        Err(_) => Err(no_answer()),
    }
}

fn no_answer() -> LedgerError {
    LedgerError::Unavailable(format!(
        "no answer from Postgres for {} s",
        PATIENCE.as_secs()
    ))
}

fn unavailable(error: sqlx::Error) -> LedgerError {
    LedgerError::Unavailable(sentence(&error))
}
