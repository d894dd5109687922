//! Claim: a worker becomes the one holder of a job, or learns why it does not.
//!
//! The claim is the only way into a run: first delivery, redelivery and operator's retry all are answered with the first row
//! of the crate documentation's table that matches. For a job that nobody knows, row 1 is written as an admission
//! ([`step`](super::step)); whatever is known goes through this statement.
//!
//! Locks, in this order: the rows of `jobs` by id, then each claimed job's frontier (its first task that is not SUCCESS).
//! Only the frontier can be written by a former holder, so raising the epoch on that one row is the whole fence, however
//! many tasks are left. The parts of one statement share a snapshot, but a row that had to be waited for is seen as it is now:
//! when the frontier has moved on since, when two claims race to insert, or when the holder is younger than the snapshot, the
//! row comes back without an answer and is asked again. A heartbeat is as old as the snapshot, so its age is reckoned at the
//! statement's beginning, not after the wait.
//!
//! A job whose frontier a worker has died in is claimed in two steps: the first, made by whoever receives it, counts the
//! crash and leaves the job unheld (*Suspect*); the second, made by a process that runs no other such job, begins it. A
//! process that dies between the two casts no new suspicion on jobs that it merely received.
//!
//! A crash before the commit leaves nothing; after it, the job is held by a dead worker and row 9 lets the next one have it.
//! When the answer is lost, the claim is asked again and row 8 gives the job to the same process once more.

use serde::Deserialize;
use serde_json::value::RawValue;
use sqlx::{
    PgConnection, Postgres, Row,
    postgres::{PgArguments, PgRow},
    query::Query,
};
use std::{sync::Arc, time::Duration};

use super::{
    Holder,
    lane::{Verb, column},
    message::stored_message,
};
use crate::{
    fail_point::cut,
    job::{Epoch, Fingerprint, Generation, JobId, JobMessage, Position, TaskResult, null},
    metrics::Transition,
};

/// What a delivery asks the ledger.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    /// The job as the message tells it; it is inserted if the ledger does not know it.
    pub(crate) message: Arc<JobMessage>,
    /// The generation the message carries.
    pub(crate) generation: Generation,
    /// The broker's flag, or the mark of a Busy copy. It only speeds a takeover.
    pub(crate) redelivered: bool,
    /// The epoch at which this very process runs the job now.
    pub(crate) running: Option<Epoch>,
    /// Whether it may run although a worker has died in its next task: such jobs run one at a time in a process.
    pub(crate) alone: bool,
}

impl Claim {
    /// Whether the delivery looks like the job's first. The ledger may know better.
    pub(super) fn is_first(&self) -> bool {
        self.generation == Generation(0)
            && !self.redelivered
            && self.running.is_none()
            && !self.alone
    }
}

/// What the ledger answers, in the order in which it looks.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Rows 1, 2, 8, 9, 11: the job is ours from its first unfinished task on.
    Claimed(Box<Claimed>),
    /// The same id with another content.
    Conflict { stored: Fingerprint },
    /// A message of a generation that the ledger never gave out, of a job that nobody holds; the ledger is at this one.
    Foreign { generation: Generation },
    /// Row 3: given up already, and the parked copy may never have been sent.
    ParkAgain {
        generation: Generation,
        error: String,
    },
    /// Row 4: nothing is left to do.
    Finished,
    /// Row 5, and an older copy whose successor is known to be sent.
    Stale,
    /// Row 6: the successor may never have been sent; it is due after the delay.
    Superseded {
        generation: Generation,
        delay: Duration,
    },
    /// Row 7: this process runs it at the epoch it asked with.
    Mine,
    /// Row 10: somebody else runs it.
    Busy,
    /// A worker has died in the task that comes next (so often), and the claim was not made for such a job. The crash is
    /// counted, nobody holds the job, and nothing has begun: a process that died now would cast no new suspicion on it.
    Suspect {
        crashes: u32,
        position: Position,
        /// Whether it was this claim that took the job from a dead worker.
        taken_over: bool,
    },
}

impl Answer {
    /// The task that a worker died in, if this claim took its job over.
    pub(crate) fn died_in(&self) -> Option<Position> {
        match self {
            Answer::Claimed(claimed) if claimed.way == Way::TakenOver => Some(claimed.position),
            Answer::Suspect {
                position,
                taken_over: true,
                ..
            } => Some(*position),
            _ => None,
        }
    }
}

/// What a claim entitles to.
#[derive(Debug)]
pub(crate) struct Claimed {
    /// Every write of this run names it.
    pub(crate) epoch: Epoch,
    /// The generation the run belongs to.
    pub(crate) generation: Generation,
    /// The first task that is not SUCCESS; it is PROCESSING now.
    pub(crate) position: Position,
    /// The number of the attempt that begins.
    pub(crate) attempt: u32,
    /// How often a worker died in this task.
    pub(crate) crashes: u32,
    /// How we came to it.
    pub(crate) way: Way,
    /// The results of the tasks before.
    pub(crate) results: Vec<TaskResult>,
    /// How long ago the ledger first knew the job.
    pub(crate) age: Duration,
}

/// Which row of the table gave us the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Row 1: nobody knew it.
    New,
    /// Row 2: it was given up, and an operator sends it again.
    Retried,
    /// Row 8: we held it, but did not know.
    Regained,
    /// Row 9: its holder is dead.
    TakenOver,
    /// Row 11: it was waiting.
    Resumed,
}

/// The tasks of the jobs in `created`, with the first one begun, from the parameters of [`bind_tasks`].
macro_rules! created_tasks {
    () => {
        r"created_tasks AS (
    INSERT INTO cliquet.tasks (job_id, position, handler, label, input, max_attempts, timeout_ms, status, epoch, attempt, started_at)
    SELECT task.job_id, task.position, task.handler, task.label, task.input::json, task.max_attempts, task.timeout_ms,
           CASE WHEN task.position = 1 THEN 'PROCESSING' ELSE 'PENDING' END::cliquet.task_status,
           CASE WHEN task.position = 1 THEN 1 ELSE 0 END, CASE WHEN task.position = 1 THEN 1 ELSE 0 END,
           CASE WHEN task.position = 1 THEN clock_timestamp() END
      FROM unnest($8::uuid[], $9::int4[], $10::text[], $11::text[], $12::text[], $13::int4[], $14::int8[])
               AS task (job_id, position, handler, label, input, max_attempts, timeout_ms)
     WHERE (task.job_id IN (SELECT created.id FROM created)) IS TRUE
)"
    };
}
pub(super) use created_tasks;

pub(super) const CLAIM: &str = concat!(
    r"
WITH asked AS (
    SELECT * FROM unnest($3::uuid[], $4::bytea[], $5::text[], $6::text[], $7::int4[], $15::int8[], $16::bool[], $17::int8[], $18::bool[])
        AS asked (id, fingerprint, kind, payload, total, generation, redelivered, running, alone)
), known AS MATERIALIZED (
    SELECT job.id, job.status, job.epoch, job.generation, job.sent, job.holder, job.error, job.next_attempt_at,
           job.fingerprint, asked.fingerprint AS asked_fingerprint, asked.generation AS asked_generation,
           asked.redelivered, asked.running, asked.alone
      FROM asked JOIN cliquet.jobs job ON job.id = ANY (ARRAY[asked.id])
     ORDER BY asked.id
       FOR NO KEY UPDATE OF job
), verdict AS MATERIALIZED (
    SELECT known.*,
           CASE WHEN known.fingerprint IS NULL THEN 'unread'
                WHEN known.fingerprint <> known.asked_fingerprint THEN 'conflict'
                WHEN known.status IN ('PENDING', 'RETRYING', 'FAILED') AND known.asked_generation > known.generation THEN 'foreign'
                WHEN known.status = 'FAILED' AND known.asked_generation = known.generation THEN 'retried'
                WHEN known.status = 'FAILED' AND known.sent >= known.generation THEN 'stale'
                WHEN known.status = 'FAILED' THEN 'park_again'
                WHEN known.status IN ('SUCCESS', 'CANCELLED') THEN 'finished'
                WHEN known.asked_generation < known.generation AND (known.holder IS NOT NULL OR known.sent >= known.generation) THEN 'stale'
                WHEN known.asked_generation < known.generation THEN 'superseded'
                WHEN known.holder = $1 AND known.epoch = known.running THEN 'mine'
                WHEN known.holder = $1 THEN 'regained'
                WHEN known.holder IS NULL THEN 'resumed'
                WHEN worker.id IS NULL AND known.epoch IS DISTINCT FROM (SELECT seen.epoch FROM cliquet.jobs seen WHERE seen.id = known.id) THEN NULL
                WHEN worker.id IS NULL OR worker.stopped_at IS NOT NULL OR (worker.seen_at < statement_timestamp() - worker.patience
                        AND pg_postmaster_start_time() < statement_timestamp() - worker.patience) THEN 'taken_over'
                WHEN known.redelivered AND worker.locked_at > pg_postmaster_start_time()
                     AND pg_try_advisory_xact_lock_shared(worker.lock_key) THEN 'taken_over'
                ELSE 'busy' END AS answer
      FROM known LEFT JOIN cliquet.workers worker ON worker.id = known.holder
), frontier AS MATERIALIZED (
    SELECT verdict.id, verdict.epoch, verdict.answer, verdict.holder, task.*,
           NOT verdict.alone AND verdict.answer <> 'retried' AS wary
      FROM verdict CROSS JOIN LATERAL (
          SELECT task.position, task.started_at
            FROM cliquet.tasks task
           WHERE task.job_id = verdict.id AND task.status <> 'SUCCESS'
           ORDER BY task.position LIMIT 1) task
     WHERE verdict.answer IN ('retried', 'regained', 'resumed', 'taken_over')
), begun AS (
    UPDATE cliquet.tasks task
       SET status = CASE WHEN frontier.wary AND (task.crashes > 0 OR frontier.answer = 'taken_over') THEN 'PENDING'
                         ELSE 'PROCESSING' END::cliquet.task_status,
           started_at = CASE WHEN frontier.wary AND (task.crashes > 0 OR frontier.answer = 'taken_over') THEN NULL
                             ELSE clock_timestamp() END,
           epoch = frontier.epoch + 1, finished_at = NULL, error = NULL,
           attempt = CASE WHEN frontier.answer = 'retried' THEN 1
                          ELSE task.attempt + (task.status <> 'PROCESSING')::int
                               - (frontier.wary AND (task.crashes > 0 OR frontier.answer = 'taken_over'))::int END,
           crashes = CASE WHEN frontier.answer = 'retried' THEN 0
                          WHEN frontier.answer = 'taken_over' THEN task.crashes + 1
                          ELSE task.crashes END
      FROM frontier
     WHERE task.job_id = ANY (ARRAY[frontier.id]) AND task.position = frontier.position
       AND task.status <> 'SUCCESS'
    RETURNING task.job_id, task.position, task.attempt, task.crashes, frontier.answer, frontier.epoch AS former_epoch, frontier.holder AS former_holder, frontier.started_at AS crashed_from,
              frontier.wary AND task.crashes > 0 AS suspect
), held AS (
    UPDATE cliquet.jobs job
       SET status = CASE WHEN begun.suspect THEN 'PENDING' ELSE 'PROCESSING' END::cliquet.job_status,
           holder = CASE WHEN begun.suspect THEN NULL ELSE $1 END,
           next_attempt_at = CASE WHEN begun.suspect THEN clock_timestamp() + interval '1 minute' END,
           epoch = job.epoch + 1,
           attempts = job.attempts + (NOT begun.suspect)::int, started_at = coalesce(job.started_at, clock_timestamp()),
           finished_at = NULL, error = NULL
      FROM begun WHERE job.id = ANY (ARRAY[begun.job_id])
    RETURNING job.id, job.epoch, job.generation, CASE WHEN begun.suspect THEN 'suspect' ELSE begun.answer END AS answer,
              begun.position, begun.attempt, begun.crashes, begun.answer = 'taken_over' AS taken_over,
              extract(epoch FROM clock_timestamp() - job.created_at)::float8 AS age
), crashed AS (
    INSERT INTO cliquet.failures (job_id, position, epoch, attempt, worker, error, started_at)
    SELECT begun.job_id, begun.position, begun.former_epoch, begun.attempt + begun.suspect::int, coalesce(worker.name, 'unknown'),
           'the worker died, or was cut off, while it ran this task', begun.crashed_from
      FROM begun LEFT JOIN cliquet.workers worker ON worker.id = begun.former_holder
     WHERE begun.answer = 'taken_over'
    ON CONFLICT DO NOTHING
), created AS (
    INSERT INTO cliquet.jobs (id, queue, kind, payload, fingerprint, total, status, epoch, generation, sent, holder, attempts, created_at, started_at)
    SELECT asked.id, $2, asked.kind, asked.payload::json, asked.fingerprint, asked.total, 'PROCESSING', 1,
           least(asked.generation, 1000000), least(asked.generation, 1000000), $1, 1, statement_timestamp(), statement_timestamp()
      FROM asked WHERE asked.id NOT IN (SELECT known.id FROM known)
     ORDER BY asked.id
    ON CONFLICT (id) DO NOTHING
    RETURNING id, generation
), ",
    created_tasks!(),
    r"
SELECT held.id, held.answer, held.epoch, held.generation, held.position, held.attempt, held.crashes,
       CASE WHEN held.position > 1 AND held.answer <> 'suspect' THEN (
           SELECT json_agg(json_build_object('position', task.position, 'handler', task.handler, 'result', task.result) ORDER BY task.position)::text
             FROM cliquet.tasks task WHERE task.job_id = held.id AND task.position < held.position) END AS results,
       NULL::bytea AS fingerprint, NULL::text AS error, NULL::float8 AS delay, held.taken_over, held.age
  FROM held
UNION ALL
SELECT verdict.id, verdict.answer, verdict.epoch, verdict.generation, NULL, NULL, NULL, NULL, verdict.fingerprint, verdict.error,
       extract(epoch FROM verdict.next_attempt_at - clock_timestamp())::float8, NULL, NULL
  FROM verdict WHERE verdict.answer NOT IN ('retried', 'regained', 'resumed', 'taken_over')
UNION ALL
SELECT created.id, 'new', 1::int8, created.generation, 1::int4, 1::int4, 0::int4, NULL, NULL, NULL, NULL, NULL, NULL
  FROM created
"
);

impl Verb for Claim {
    type Answer = Answer;
    const TRANSITION: Transition = Transition::Claim;

    fn job(&self) -> JobId {
        self.message.id
    }

    fn weight(&self) -> usize {
        let tasks = &self.message.tasks;
        let inputs: usize = tasks.iter().map(|task| task.input.get().len()).sum();
        tasks.len() + (inputs + self.message.payload.get().len()) / 1024 + 1
    }

    async fn write(
        connection: &mut PgConnection,
        holder: &Holder,
        group: &[&Self],
    ) -> Result<Vec<Option<Answer>>, sqlx::Error> {
        cut!(BeforeClaim);
        let ids = column(group, |claim| claim.message.id.0);
        let query = bind_jobs(sqlx::query(CLAIM), holder, group);
        let rows = bind_tasks(query, group)
            .bind(column(group, |claim| claim.generation.0))
            .bind(column(group, |claim| claim.redelivered))
            .bind(column(group, |claim| claim.running.map(|epoch| epoch.0)))
            .bind(column(group, |claim| claim.alone))
            .fetch_all(&mut *connection)
            .await?;
        cut!(AfterClaim);

        let mut answers: Vec<Option<Answer>> = ids.iter().map(|_| None).collect();
        for row in rows {
            let id: uuid::Uuid = row.try_get("id")?;
            if row.try_get::<&str, _>("answer")? == "unread" {
                take_fingerprint(connection, JobId(id)).await?;
            } else if let Ok(index) = ids.binary_search(&id) {
                // The group is sorted by id.
                answers[index] = Some(read(&row)?);
            }
        }
        Ok(answers)
    }
}

/// Binds `$1` to `$7`: who claims, and what the messages say of their jobs.
pub(super) fn bind_jobs<'q>(
    query: Query<'q, Postgres, PgArguments>,
    holder: &'q Holder,
    group: &[&'q Claim],
) -> Query<'q, Postgres, PgArguments> {
    query
        .bind(holder.id)
        .bind(&holder.queue)
        .bind(column(group, |claim| claim.message.id.0))
        .bind(columns(group, |message| &message.fingerprint.0[..]))
        .bind(columns(group, |message| message.kind.as_str()))
        .bind(columns(group, |message| message.payload.get()))
        .bind(columns(group, |message| message.tasks.len() as i32))
}

/// Binds `$8` to `$14`: the tasks of all these jobs.
pub(super) fn bind_tasks<'q>(
    query: Query<'q, Postgres, PgArguments>,
    group: &[&'q Claim],
) -> Query<'q, Postgres, PgArguments> {
    let rows = group.iter().map(|claim| claim.message.tasks.len()).sum();
    let (mut ids, mut positions) = (Vec::with_capacity(rows), Vec::with_capacity(rows));
    let (mut handlers, mut labels) = (Vec::with_capacity(rows), Vec::with_capacity(rows));
    let mut inputs = Vec::with_capacity(rows);
    let (mut attempts, mut timeouts) = (Vec::with_capacity(rows), Vec::with_capacity(rows));
    for claim in group {
        for (position, task) in (1..).zip(&claim.message.tasks) {
            ids.push(claim.message.id.0);
            positions.push(position as Position);
            handlers.push(task.handler.as_str());
            labels.push(task.label.as_str());
            inputs.push(Some(task.input.get()).filter(|&input| input != "null"));
            attempts.push(task.max_attempts.map(|most| most as i32));
            timeouts.push(task.timeout.map(|limit| limit.as_millis() as i64));
        }
    }
    query
        .bind(ids)
        .bind(positions)
        .bind(handlers)
        .bind(labels)
        .bind(inputs)
        .bind(attempts)
        .bind(timeouts)
}

fn columns<'q, C>(group: &[&'q Claim], value: impl Fn(&'q JobMessage) -> C) -> Vec<C> {
    group.iter().map(|claim| value(&claim.message)).collect()
}

/// A job that was enqueued in SQL has no fingerprint yet. It is taken from what is stored, so that a message which asks for
/// something else is a conflict here too; the claim is asked again then.
async fn take_fingerprint(connection: &mut PgConnection, job: JobId) -> Result<(), sqlx::Error> {
    // What is stored and cannot be read is refused for good, like a value that cannot be sent.
    let stored = stored_message(&mut *connection, job)
        .await?
        .map_err(|damage| sqlx::Error::Encode(damage.into()))?;
    if let Some(stored) = stored {
        sqlx::query(
            "UPDATE cliquet.jobs SET fingerprint = $2 WHERE id = $1 AND fingerprint IS NULL",
        )
        .bind(job.0)
        .bind(&stored.message.fingerprint.0[..])
        .execute(connection)
        .await?;
    }
    Ok(())
}

fn read(row: &PgRow) -> Result<Answer, sqlx::Error> {
    let generation = || row.try_get("generation").map(Generation);
    let error = || {
        row.try_get("error")
            .map(Option::<String>::unwrap_or_default)
    };
    let claimed = |way| {
        Ok::<_, sqlx::Error>(Answer::Claimed(Box::new(Claimed {
            epoch: Epoch(row.try_get("epoch")?),
            generation: generation()?,
            position: row.try_get("position")?,
            attempt: row.try_get::<i32, _>("attempt")?.unsigned_abs(),
            crashes: row.try_get::<i32, _>("crashes")?.unsigned_abs(),
            way,
            results: results(row.try_get("results")?)?,
            age: span(row.try_get("age")?),
        })))
    };
    Ok(match row.try_get("answer")? {
        "new" => claimed(Way::New)?,
        "retried" => claimed(Way::Retried)?,
        "regained" => claimed(Way::Regained)?,
        "taken_over" => claimed(Way::TakenOver)?,
        "resumed" => claimed(Way::Resumed)?,
        "conflict" => {
            let stored: Vec<u8> = row.try_get("fingerprint")?;
            Answer::Conflict {
                stored: Fingerprint(stored.try_into().unwrap_or([0; 32])),
            }
        }
        "foreign" => Answer::Foreign {
            generation: generation()?,
        },
        "park_again" => Answer::ParkAgain {
            generation: generation()?,
            error: error()?,
        },
        "finished" => Answer::Finished,
        "stale" => Answer::Stale,
        "superseded" => Answer::Superseded {
            generation: generation()?,
            delay: span(row.try_get("delay")?),
        },
        "mine" => Answer::Mine,
        "suspect" => Answer::Suspect {
            crashes: row.try_get::<i32, _>("crashes")?.unsigned_abs(),
            position: row.try_get("position")?,
            taken_over: row.try_get("taken_over")?,
        },
        _ => Answer::Busy,
    })
}

/// What lies in the past, or is not there, is no time at all.
fn span(seconds: Option<f64>) -> Duration {
    Duration::try_from_secs_f64(seconds.unwrap_or(0.0)).unwrap_or_default()
}

/// The results of the tasks before the frontier, as the statement aggregates them.
fn results(json: Option<&str>) -> Result<Vec<TaskResult>, sqlx::Error> {
    #[derive(Deserialize)]
    struct Stored {
        position: Position,
        handler: String,
        result: Option<Box<RawValue>>,
    }
    let stored: Vec<Stored> = match json {
        Some(json) => {
            serde_json::from_str(json).map_err(|error| sqlx::Error::Decode(error.into()))?
        }
        None => Vec::new(),
    };
    Ok(stored
        .into_iter()
        .map(
            |Stored {
                 position,
                 handler,
                 result,
             }| TaskResult {
                position,
                handler,
                result: result.unwrap_or_else(null),
            },
        )
        .collect())
}
