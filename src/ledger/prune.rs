//! Pruning: jobs that have been over for long are deleted, with their tasks and their history, what people did to them included.
//!
//! A job that is deleted is unknown: should a copy of its message still lie somewhere, it would run anew, from its first task.
//! Hence [`LEAST_AGE`]: everything that is under way by itself has arrived by then.
//!
//! One pass walks along the index `jobs_of_any_age`, from the oldest job to those that are too young, and remembers where it is, so
//! that no row is looked at twice, whatever it keeps. Each batch is a transaction of its own.
//!
//! | a crash | means |
//! |---|---|
//! | in a batch | nothing of it is deleted |
//! | after it | its jobs are gone as a whole; the next pass goes on |
//!
//! **It is in nobody's way.** Nobody writes to a job that is over, but for an operator's retry of one that is FAILED, and the
//! claim of a late duplicate, which finds the job over. Each waits for a batch, which takes milliseconds. A job that is claimed
//! first is not deleted: the DELETE looks again at a row for which it had to wait. Jobs are locked before their tasks, as everywhere.
//! There is no index for it on the hot path: the one it walks along is written once a job.

use std::{collections::BTreeMap, time::Duration};

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{Connection, PgConnection, Row};
use tokio::time::timeout;
use uuid::Uuid;

use super::{
    LedgerAddress, LedgerError, Reconciling, connect::sentence, find::of_any_age, read::word,
};
use crate::job::JobStatus;

/// No job is deleted that has been over for less.
pub(crate) const LEAST_AGE: Duration = Duration::from_secs(3600);
/// Jobs that are looked at together.
const WINDOW: i64 = 1_000;
/// Jobs that are deleted together, and the tasks that they may have (one job may have more).
const MOST_JOBS: usize = 500;
const MOST_TASKS: i64 = 2_500;

/// The next jobs by age, and whether each is to go. One that is FAILED stays while its parked copy is not known to be confirmed.
const WINDOW_OF_JOBS: &str = concat!(
    r"
SELECT id, created_at, total, status::text AS status,
       status = ANY ($1::text[]::cliquet.job_status[]) AND finished_at < $2 AND (queue = $3 OR $3 IS NULL)
           AND (status <> 'FAILED' OR sent >= generation) AS old
  FROM cliquet.jobs
 WHERE ",
    of_any_age!(),
    r" AND created_at < $2
   AND (created_at, id) > (coalesce($4, '-infinity'), coalesce($5, '00000000-0000-0000-0000-000000000000'::uuid))
 ORDER BY created_at, id LIMIT $6"
);

/// Waits are bounded by Postgres, plans do not depend on statistics, and nothing is compiled for a batch: by its estimates,
/// which know nothing of the array, it would be worth it.
const BOUNDED: &str = "SET LOCAL lock_timeout = '5s'; SET LOCAL statement_timeout = '15s'; SET LOCAL enable_seqscan = off; SET LOCAL jit = off";

const DELETE: &str = r"
WITH job AS (
    DELETE FROM cliquet.jobs
     WHERE id = ANY ($1) AND status = ANY ($2::text[]::cliquet.job_status[]) AND finished_at < $3
       AND (status <> 'FAILED' OR sent >= generation)
    RETURNING id, status
), task AS (
    DELETE FROM cliquet.tasks WHERE job_id = ANY (ARRAY(SELECT id FROM job)) RETURNING job_id
), failure AS (
    DELETE FROM cliquet.failures WHERE job_id = ANY (ARRAY(SELECT id FROM job)) RETURNING job_id
), intervention AS (
    DELETE FROM cliquet.interventions WHERE job_id = ANY (ARRAY(SELECT id FROM job))
)
SELECT status::text AS status, count(*) AS jobs, (SELECT count(*) FROM task) AS tasks, (SELECT count(*) FROM failure) AS failures
  FROM job GROUP BY job.status";

/// As a worker forgets them when it begins: dead, and found to have held nothing.
const FORGET_WORKERS: &str = r"
DELETE FROM cliquet.workers
 WHERE cleared_at < $1 AND cleared_at > seen_at AND (queue = $2 OR $2 IS NULL)";

/// One pass over the jobs, from the oldest on.
#[derive(Clone, Debug)]
pub(crate) struct Pruning {
    /// What was over before this is deleted. Of the database's clock.
    before: DateTime<Utc>,
    status: Vec<&'static str>,
    queue: Option<String>,
    oldest: Option<DateTime<Utc>>,
    /// The last job that was looked at.
    at: Option<(DateTime<Utc>, Uuid)>,
    over: bool,
}

/// What was deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Deleted {
    /// By their status.
    pub(crate) jobs: BTreeMap<&'static str, u64>,
    pub(crate) tasks: u64,
    /// Failed attempts in the history.
    pub(crate) failures: u64,
    /// Workers that are long dead and held nothing.
    pub(crate) workers: u64,
}

impl Deleted {
    /// How many jobs, of every status.
    pub(crate) fn total(&self) -> u64 {
        self.jobs.values().sum()
    }

    pub(crate) fn add(&mut self, other: Self) {
        for (status, jobs) in other.jobs {
            *self.jobs.entry(status).or_default() += jobs;
        }
        self.tasks += other.tasks;
        self.failures += other.failures;
        self.workers += other.workers;
    }
}

impl Pruning {
    /// Begins a pass: jobs of these statuses that have been over for longer than `age`, which is no less than [`LEAST_AGE`].
    async fn begin(
        connection: &mut PgConnection,
        age: Duration,
        status: &[JobStatus],
        queue: Option<&str>,
    ) -> Result<Self, sqlx::Error> {
        let age = age.max(LEAST_AGE);
        let before = sqlx::query_scalar("SELECT statement_timestamp() - make_interval(secs => $1)")
            .bind(age.as_secs_f64())
            .fetch_one(connection)
            .await?;
        Ok(Self {
            before,
            status: status.iter().map(|status| status.as_str()).collect(),
            queue: queue.map(str::to_owned),
            oldest: None,
            at: None,
            over: false,
        })
    }

    /// Whether every job has been looked at.
    pub(crate) fn is_over(&self) -> bool {
        self.over
    }

    /// How far it is in time, from 0 to 1: from the oldest job to the youngest that may go.
    pub(crate) fn progress(&self) -> f64 {
        let (Some(oldest), Some((at, _))) = (self.oldest, self.at) else {
            return 0.0;
        };
        let whole = (self.before - oldest).as_seconds_f64();
        match self.over || whole <= 0.0 {
            true => 1.0,
            false => ((at - oldest).as_seconds_f64() / whole).clamp(0.0, 1.0),
        }
    }

    /// Looks at the next jobs and deletes those that are to go; with `dry_run` it only counts them.
    async fn step(
        &mut self,
        connection: &mut PgConnection,
        dry_run: bool,
    ) -> Result<Deleted, sqlx::Error> {
        let rows = sqlx::query(WINDOW_OF_JOBS)
            .bind(&self.status)
            .bind(self.before)
            .bind(&self.queue)
            .bind(self.at.map(|(created_at, _)| created_at))
            .bind(self.at.map(|(_, id)| id))
            .bind(WINDOW)
            .fetch_all(&mut *connection)
            .await?;
        let last_window = (rows.len() as i64) < WINDOW;
        let (mut ids, mut tasks, mut counted, mut at) =
            (Vec::new(), 0, Deleted::default(), self.at);
        let mut whole = true;
        for row in &rows {
            let (id, created_at): (Uuid, _) = (row.try_get("id")?, row.try_get("created_at")?);
            self.oldest.get_or_insert(created_at);
            // NULL for a job that is not over.
            if row.try_get::<Option<bool>, _>("old")? == Some(true) {
                let total: i32 = row.try_get("total")?;
                let full = ids.len() == MOST_JOBS || tasks + i64::from(total) > MOST_TASKS;
                if full && !ids.is_empty() && !dry_run {
                    whole = false;
                    break;
                }
                ids.push(id);
                tasks += i64::from(total);
                let status: JobStatus = word(row, "status")?;
                *counted.jobs.entry(status.as_str()).or_default() += 1;
                counted.tasks += u64::from(total.unsigned_abs());
            }
            at = Some((created_at, id));
        }
        let deleted = match dry_run || ids.is_empty() {
            true => counted,
            false => self.delete(connection, &ids).await?,
        };
        self.at = at;
        self.over = last_window && whole;
        Ok(deleted)
    }

    async fn delete(
        &self,
        connection: &mut PgConnection,
        ids: &[Uuid],
    ) -> Result<Deleted, sqlx::Error> {
        let mut transaction = connection.begin().await?;
        sqlx::raw_sql(BOUNDED).execute(&mut *transaction).await?;
        let rows = sqlx::query(DELETE)
            .bind(ids)
            .bind(&self.status)
            .bind(self.before)
            .fetch_all(&mut *transaction)
            .await?;
        transaction.commit().await?;
        let mut deleted = Deleted::default();
        for row in &rows {
            let status: JobStatus = word(row, "status")?;
            let number =
                |column| Ok::<_, sqlx::Error>(row.try_get::<i64, _>(column)?.unsigned_abs());
            deleted.jobs.insert(status.as_str(), number("jobs")?);
            // The same in each row.
            deleted.tasks = number("tasks")?;
            deleted.failures = number("failures")?;
        }
        Ok(deleted)
    }

    /// One step; the last one also forgets long dead workers.
    async fn batch(
        &mut self,
        connection: &mut PgConnection,
        dry_run: bool,
    ) -> Result<Deleted, sqlx::Error> {
        let mut deleted = self.step(connection, dry_run).await?;
        if self.over && !dry_run {
            deleted.add(self.forget_workers(connection).await?);
        }
        Ok(deleted)
    }

    async fn forget_workers(&self, connection: &mut PgConnection) -> Result<Deleted, sqlx::Error> {
        let forgotten = sqlx::query(FORGET_WORKERS)
            .bind(self.before)
            .bind(&self.queue)
            .execute(connection)
            .await?;
        Ok(Deleted {
            workers: forgotten.rows_affected(),
            ..Deleted::default()
        })
    }
}

/// What Postgres says, and what a missing right asks for.
fn told(error: &sqlx::Error) -> LedgerError {
    let code = error.as_database_error().and_then(|error| error.code());
    match code.as_deref() {
        Some("42501") => LedgerError::Denied(format!(
            "{}. Who prunes needs the role `cliquet_pruner` of deploy/postgres-roles.sql: GRANT cliquet_pruner TO the user of DATABASE_URL",
            sentence(error)
        )),
        _ => LedgerError::Unavailable(sentence(error)),
    }
}

/// Prunes on a connection of its own, for people.
pub(crate) struct Pruner {
    connection: PgConnection,
    pub(crate) pruning: Pruning,
}

impl Pruner {
    /// Connects, and begins a pass over the jobs of `queue`, or of every queue.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`], [`LedgerError::Denied`].
    pub(crate) async fn open(
        address: &LedgerAddress,
        age: Duration,
        status: &[JobStatus],
        queue: Option<&str>,
    ) -> Result<Self, LedgerError> {
        let mut connection = PgConnection::connect_with(&address.writer_options("prune"))
            .await
            .map_err(|error| LedgerError::unavailable(address, &error))?;
        let pruning = Pruning::begin(&mut connection, age, status, queue)
            .await
            .map_err(|error| told(&error))?;
        Ok(Self {
            connection,
            pruning,
        })
    }

    /// One batch.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`], or [`LedgerError::Denied`] when the user may not delete; the batch is then not done.
    pub(crate) async fn step(&mut self, dry_run: bool) -> Result<Deleted, LedgerError> {
        let batch = self.pruning.batch(&mut self.connection, dry_run);
        batch.await.map_err(|error| told(&error))
    }

    pub(crate) async fn close(self) {
        let _ = timeout(Duration::from_secs(1), self.connection.close()).await;
    }
}

impl Reconciling {
    /// Begins a pass over the jobs of this queue.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub(crate) async fn begin_pruning(
        &mut self,
        age: Duration,
        status: &[JobStatus],
        queue: &str,
    ) -> Result<Pruning, LedgerError> {
        let begin =
            async |connection: &mut _| Pruning::begin(connection, age, status, Some(queue)).await;
        self.do_more(begin, told).await
    }

    /// One batch of a pass.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`], or [`LedgerError::Denied`] when the user may not delete; the batch is then not done.
    pub(crate) async fn prune(&mut self, pruning: &mut Pruning) -> Result<Deleted, LedgerError> {
        let batch = async |connection: &mut _| pruning.batch(connection, false).await;
        self.do_more(batch, told).await
    }
}
