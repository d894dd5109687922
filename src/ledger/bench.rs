//! What `cliquet bench` needs of Postgres: its rows are told apart by their queue, looked at as any reader would, counted
//! when all is over, and removed.

use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use tokio::time::sleep;
use uuid::Uuid;

use super::{
    LedgerError,
    connect::{LedgerAddress, sentence},
    transaction::Transaction,
};
use crate::job::{JobId, Position};

/// How many jobs are removed in one transaction.
const REMOVED_AT_ONCE: i64 = 2_000;

/// Postgres still does what a killed worker asked for last. Its sessions are waited for, so long at most: longer than a lane's
/// statement may take.
const LAST_WORDS: Duration = Duration::from_secs(20);

/// Whether there are sessions of a worker that has the name of its queue.
const SESSIONS: &str = r"
SELECT EXISTS (SELECT FROM pg_stat_activity
                WHERE datname = current_database() AND starts_with(application_name, 'cliquet ' || $1 || ' '))";

/// A benchmark's own connection. While it is open, no other benchmark may use the queue.
pub(crate) struct Bench {
    connection: PgConnection,
    address: LedgerAddress,
    queue: String,
    effects: EffectsTable,
}

/// The table that a benchmark's transaction handlers write to, a row each: its own, so that benchmarks may run at the same
/// time.
#[derive(Clone, Debug)]
pub(crate) struct EffectsTable {
    /// Quoted, in cliquet's schema.
    name: String,
    insert: String,
}

impl EffectsTable {
    /// The table of the benchmark of this queue, whose name is of letters, digits, `.`, `-` and `_`.
    pub(crate) fn of(queue: &str) -> Self {
        let name = format!("cliquet.\"effects of {}\"", queue.replace('"', ""));
        let insert = format!("INSERT INTO {name} (job_id, position) VALUES ($1, $2)");
        Self { name, insert }
    }

    /// Writes the row of one task.
    ///
    /// # Errors
    /// Any error of the statement.
    pub(crate) async fn write(
        &self,
        transaction: &mut Transaction,
        job: JobId,
        position: Position,
    ) -> Result<(), sqlx::Error> {
        sqlx::query(AssertSqlSafe(self.insert.as_str()))
            .bind(job.0)
            .bind(position)
            .execute(&mut **transaction)
            .await
            .map(|_| ())
    }
}

/// What the ledger holds of a benchmark's jobs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Audit {
    /// Jobs of the queue.
    pub(crate) jobs: i64,
    /// Those that are SUCCESS, after one claim.
    pub(crate) jobs_done_once: i64,
    /// Their tasks.
    pub(crate) tasks: i64,
    /// Those that are SUCCESS, in their first and only attempt.
    pub(crate) tasks_done_once: i64,
    /// Failures and crashes that were recorded.
    pub(crate) failures: i64,
    /// What handlers wrote through their transactions: rows, and different tasks among them.
    pub(crate) effects: i64,
    pub(crate) effects_distinct: i64,
    /// From the first claim to the last SUCCESS, by the database's clock.
    pub(crate) seconds: f64,
}

/// How the updates of a table found room: heap-only ones leave every index alone.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Updates {
    /// All updates since the counters began.
    pub(crate) all: i64,
    /// Heap-only ones.
    pub(crate) heap_only: i64,
    /// Dead rows that wait for autovacuum now, as Postgres estimates them.
    pub(crate) dead_rows: i64,
}

const AUDIT: &str = r"
WITH job AS MATERIALIZED (
    SELECT id, status, attempts, epoch, created_at, finished_at FROM cliquet.jobs WHERE queue = $1 AND id >= $2
), task AS (
    SELECT count(*) AS tasks, count(*) FILTER (WHERE task.status = 'SUCCESS' AND task.attempt = 1 AND task.crashes = 0) AS once
      FROM cliquet.tasks task WHERE task.job_id IN (SELECT job.id FROM job)
)
SELECT (SELECT count(*) FROM job) AS jobs,
       (SELECT count(*) FROM job WHERE status = 'SUCCESS' AND attempts = 1 AND epoch = 1) AS jobs_done_once,
       task.tasks, task.once AS tasks_done_once,
       (SELECT count(*) FROM cliquet.failures WHERE job_id IN (SELECT job.id FROM job)) AS failures,
       (SELECT coalesce(extract(epoch FROM max(finished_at) - min(created_at)), 0)::float8 FROM job) AS seconds
  FROM task";

const REMOVE: &str = r"
WITH job AS MATERIALIZED (
    SELECT id FROM cliquet.jobs WHERE queue = $1 AND id >= $2 ORDER BY id LIMIT $3
), tasks AS (
    DELETE FROM cliquet.tasks WHERE job_id IN (SELECT job.id FROM job)
), failures AS (
    DELETE FROM cliquet.failures WHERE job_id IN (SELECT job.id FROM job)
), interventions AS (
    DELETE FROM cliquet.interventions WHERE job_id IN (SELECT job.id FROM job)
)
DELETE FROM cliquet.jobs WHERE id IN (SELECT job.id FROM job) RETURNING id";

/// Jobs that ended within the last month, one every few seconds, of several kinds; of a thousand one was given up and one waits
/// until tomorrow. Their ids grow with their age, as publishers' usually do.
const HISTORY: &str = r"
WITH made AS (
    SELECT n, statement_timestamp() - make_interval(secs => 2592000.0 * (1 - n::float8 / $3)) AS at,
           CASE n % 1000 WHEN 0 THEN 'FAILED' WHEN 500 THEN 'RETRYING' ELSE 'SUCCESS' END AS status,
           CASE n % 500 WHEN 0 THEN 'HTTP ' || 503 + n % 3 || ': the image ' || n || ' was not taken' END AS error
      FROM generate_series($1::int8, $2::int8) AS n
), job AS (
    INSERT INTO cliquet.jobs (id, epoch, generation, sent, attempts, created_at, started_at, finished_at, next_attempt_at, total,
                              status, queue, kind, payload, fingerprint, error)
    SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::int8), 12, '0') || lpad(to_hex(n), 20, '0'))::uuid, 1, 0, 0, 1, at, at,
           CASE WHEN status <> 'RETRYING' THEN at + interval '1 second' END,
           CASE WHEN status = 'RETRYING' THEN statement_timestamp() + interval '1 day' END, $4, status::cliquet.job_status, $5,
           'cliquet.bench.history.' || n % 7, json_build_object('product_id', n, 'text', repeat('x', 80)),
           sha256(n::text::bytea), error
      FROM made
    RETURNING id, status, created_at, error
)
INSERT INTO cliquet.tasks (job_id, position, status, epoch, attempt, started_at, finished_at, handler, label, error, result)
SELECT job.id, position, CASE WHEN failed THEN 'FAILED' ELSE 'SUCCESS' END::cliquet.task_status, 1, 1, job.created_at,
       job.created_at + interval '1 second', 'step_' || position, 'Step ' || position, CASE WHEN failed THEN job.error END,
       CASE WHEN NOT failed THEN json_build_object('done', true) END
  FROM job CROSS JOIN generate_series(1, $4) AS position
 CROSS JOIN LATERAL (SELECT position = $4 AND job.status <> 'SUCCESS' AS failed) AS last";

/// How many jobs of a history are made in one transaction.
const MADE_AT_ONCE: i64 = 5_000;

impl Bench {
    /// Makes so many jobs of so many tasks that ended long ago, a few thousand at a time, and tells how many each time.
    pub(crate) async fn fill(
        &mut self,
        jobs: u32,
        tasks: u32,
        mut made: impl FnMut(u64),
    ) -> Result<(), LedgerError> {
        let all = async {
            let jobs = i64::from(jobs);
            for from in (1..=jobs).step_by(MADE_AT_ONCE as usize) {
                let to = jobs.min(from + MADE_AT_ONCE - 1);
                sqlx::query(HISTORY)
                    .bind(from)
                    .bind(to)
                    .bind(jobs as f64)
                    .bind(tasks as i32)
                    .bind(&self.queue)
                    .execute(&mut self.connection)
                    .await?;
                made((to - from + 1).unsigned_abs());
            }
            if jobs > 0 {
                // It has lain there for long. Postgres skips, with a warning, what is another's table.
                sqlx::raw_sql("VACUUM (ANALYZE) cliquet.jobs, cliquet.tasks")
                    .execute(&mut self.connection)
                    .await?;
            }
            Ok(())
        };
        let all = all.await;
        self.told(all)
    }

    /// Connects, and keeps other benchmarks from this queue for as long as the connection lives.
    ///
    /// # Errors
    /// `Refused` when a benchmark is at work on this queue, `Unavailable` or `Denied` as everywhere.
    pub(crate) async fn begin(address: &LedgerAddress, queue: &str) -> Result<Self, LedgerError> {
        let unavailable = |error: sqlx::Error| LedgerError::unavailable(address, &error);
        let mut connection = PgConnection::connect_with(&address.options("bench"))
            .await
            .map_err(unavailable)?;
        let alone: bool = sqlx::query("SELECT pg_try_advisory_lock(hashtextextended($1, 0))")
            .bind(format!("cliquet bench {queue}"))
            .fetch_one(&mut connection)
            .await
            .and_then(|row| row.try_get(0))
            .map_err(unavailable)?;
        if !alone {
            return Err(LedgerError::Refused(format!(
                "a benchmark is at work on the queue {queue} already; wait for its end, or give this one another --name"
            )));
        }
        Ok(Self {
            connection,
            address: address.clone(),
            queue: queue.to_owned(),
            effects: EffectsTable::of(queue),
        })
    }

    /// Makes the table that transaction handlers write to, or empties it.
    pub(crate) async fn make_effects(&mut self) -> Result<(), LedgerError> {
        // `CREATE … IF NOT EXISTS` would ask for the right to create even where the table is there.
        let made = async {
            let make = match self.has_effects().await? {
                true => format!("TRUNCATE {}", self.effects.name),
                false => format!(
                    "CREATE TABLE {} (job_id uuid NOT NULL, position integer NOT NULL)",
                    self.effects.name
                ),
            };
            sqlx::query(AssertSqlSafe(make))
                .execute(&mut self.connection)
                .await?;
            Ok(())
        };
        let made = made.await;
        self.told(made)
    }

    async fn has_worker(&mut self) -> Result<bool, sqlx::Error> {
        sqlx::query(SESSIONS)
            .bind(&self.queue)
            .fetch_one(&mut self.connection)
            .await?
            .try_get(0)
    }

    async fn has_effects(&mut self) -> Result<bool, sqlx::Error> {
        sqlx::query("SELECT to_regclass($1) IS NOT NULL")
            .bind(&self.effects.name)
            .fetch_one(&mut self.connection)
            .await?
            .try_get(0)
    }

    /// How many jobs of the queue, from `first` on, are not SUCCESS yet, and how many are known at all.
    pub(crate) async fn remaining(&mut self, first: JobId) -> Result<(i64, i64), LedgerError> {
        let counted = sqlx::query(
            "SELECT count(*) FILTER (WHERE status <> 'SUCCESS') AS remaining, count(*) AS known
               FROM cliquet.jobs WHERE queue = $1 AND id >= $2",
        )
        .bind(&self.queue)
        .bind(first.0)
        .fetch_one(&mut self.connection)
        .await
        .and_then(|row| Ok((row.try_get("remaining")?, row.try_get("known")?)));
        self.told(counted)
    }

    /// Counts what became of the jobs from `first` on.
    pub(crate) async fn audit(&mut self, first: JobId) -> Result<Audit, LedgerError> {
        let counted = async {
            let row = sqlx::query(AUDIT)
                .bind(&self.queue)
                .bind(first.0)
                .fetch_one(&mut self.connection)
                .await?;
            let mut audit = Audit {
                jobs: row.try_get("jobs")?,
                jobs_done_once: row.try_get("jobs_done_once")?,
                tasks: row.try_get("tasks")?,
                tasks_done_once: row.try_get("tasks_done_once")?,
                failures: row.try_get("failures")?,
                seconds: row.try_get("seconds")?,
                ..Audit::default()
            };
            if self.has_effects().await? {
                let count = format!(
                    "SELECT count(*) AS effects, count(DISTINCT (job_id, position)) AS effects_distinct FROM {}",
                    self.effects.name
                );
                let row = sqlx::query(AssertSqlSafe(count))
                    .fetch_one(&mut self.connection)
                    .await?;
                audit.effects = row.try_get("effects")?;
                audit.effects_distinct = row.try_get("effects_distinct")?;
            }
            Ok(audit)
        };
        let counted = counted.await;
        self.told(counted)
    }

    /// The update counters of `tasks`. Postgres adds what a connection did when that ends, at the latest.
    pub(crate) async fn updates_of_tasks(&mut self) -> Result<Updates, LedgerError> {
        let counted = sqlx::query(
            "SELECT n_tup_upd, n_tup_hot_upd, n_dead_tup FROM pg_stat_user_tables
              WHERE schemaname = 'cliquet' AND relname = 'tasks'",
        )
        .fetch_one(&mut self.connection)
        .await
        .and_then(|row| {
            Ok(Updates {
                all: row.try_get("n_tup_upd")?,
                heap_only: row.try_get("n_tup_hot_upd")?,
                dead_rows: row.try_get("n_dead_tup")?,
            })
        });
        self.told(counted)
    }

    /// Waits for what a killed worker of the queue has asked for last. Then removes the jobs of the queue from `first` on, a few
    /// thousand at a time, and tells how many each time; without `first` all of them, for which every job of the ledger is
    /// looked at. The worker's row goes too.
    pub(crate) async fn remove(
        &mut self,
        first: Option<JobId>,
        mut removed: impl FnMut(usize),
    ) -> Result<(), LedgerError> {
        let all = async {
            let deadline = Instant::now() + LAST_WORDS;
            while self.has_worker().await? && Instant::now() < deadline {
                sleep(Duration::from_millis(20)).await;
            }
            let mut from = first.map_or(Uuid::nil(), |first| first.0);
            loop {
                let rows = sqlx::query(REMOVE)
                    .bind(&self.queue)
                    .bind(from)
                    .bind(REMOVED_AT_ONCE)
                    .fetch_all(&mut self.connection)
                    .await?;
                removed(rows.len());
                for row in &rows {
                    from = from.max(row.try_get("id")?);
                }
                if (rows.len() as i64) < REMOVED_AT_ONCE {
                    break;
                }
            }
            if self.has_effects().await? {
                let drop = format!("DROP TABLE {}", self.effects.name);
                sqlx::query(AssertSqlSafe(drop))
                    .execute(&mut self.connection)
                    .await?;
            }
            for forgotten in [
                "DELETE FROM cliquet.workers WHERE queue = $1",
                "DELETE FROM cliquet.activity WHERE queue = $1",
            ] {
                sqlx::query(forgotten)
                    .bind(&self.queue)
                    .execute(&mut self.connection)
                    .await?;
            }
            Ok(())
        };
        let all = all.await;
        self.told(all)
    }

    /// A reader of its own: see [`Watcher`].
    pub(crate) async fn watcher(&self) -> Result<Watcher, LedgerError> {
        // Its one statement is to use the index also while the tables have no statistics.
        let options = self.address.writer_options("bench watcher");
        let connection = PgConnection::connect_with(&options).await;
        Ok(Watcher {
            connection: self.told(connection)?,
            address: self.address.clone(),
        })
    }

    pub(crate) async fn close(self) {
        let _ = tokio::time::timeout(Duration::from_secs(1), self.connection.close()).await;
    }

    fn told<T>(&self, outcome: Result<T, sqlx::Error>) -> Result<T, LedgerError> {
        outcome.map_err(|error| match error.as_database_error() {
            Some(refusal) if refusal.code().is_some_and(|code| code == "42501") => {
                LedgerError::Refused(format!(
                    "a benchmark removes its rows and, with --handler transaction, makes a table; this user may not: {}. Use a user that may, or a database of its own",
                    sentence(&error)
                ))
            }
            _ => LedgerError::unavailable(&self.address, &error),
        })
    }
}

/// A reader that sees what any reader sees: whether a job is SUCCESS.
pub(crate) struct Watcher {
    connection: PgConnection,
    address: LedgerAddress,
}

impl Watcher {
    /// Those of the jobs that are SUCCESS.
    pub(crate) async fn finished(&mut self, jobs: &[JobId]) -> Result<Vec<JobId>, LedgerError> {
        let ids: Vec<_> = jobs.iter().map(|job| job.0).collect();
        let rows =
            sqlx::query("SELECT id FROM cliquet.jobs WHERE id = ANY ($1) AND status = 'SUCCESS'")
                .bind(ids)
                .fetch_all(&mut self.connection)
                .await
                .map_err(|error| LedgerError::unavailable(&self.address, &error))?;
        rows.iter()
            .map(|row| row.try_get("id").map(JobId))
            .collect::<Result<_, _>>()
            .map_err(|error| LedgerError::unavailable(&self.address, &error))
    }
}
