//! The workers, and what each is doing now.
//!
//! No index tells whose a job is, since that would cost every job's end. Each heartbeat tells which jobs the worker has had in
//! hand for a second or longer; those that it began since are among the newest jobs, or, of one that is dead, among the
//! first that were made since its last heartbeat. So nothing here reads more than a few hundred jobs, as many again for each
//! dead worker, and what these told; and of tasks no more than those of the jobs it may show.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{Row, postgres::PgRow};
use utoipa::ToSchema;

use super::{
    LedgerError,
    find::{may_hold, of_any_age},
    read::{Reads, unusable},
};
use crate::job::{JobId, Position};

/// So many of a worker's jobs are shown.
const SHOWN: usize = 20;
/// So many workers that died are shown.
const DEAD: i64 = 50;

/// One worker process.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct WorkerView {
    /// Its number in the ledger.
    pub id: i64,
    /// As people call it.
    pub name: String,
    /// Where it runs.
    pub host: String,
    /// Its process there.
    pub pid: i32,
    /// Of cliquet.
    pub version: String,
    /// The work queue it serves.
    pub queue: String,
    /// Whether it is there, as far as the ledger can tell: it has not said goodbye, and its heartbeat is fresh.
    pub alive: bool,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// Its last heartbeat.
    pub seen_at: DateTime<Utc>,
    /// When it said goodbye.
    pub stopped_at: Option<DateTime<Utc>>,
    /// What it is doing now, the oldest first; at most 20. Of one that is dead: what it has left behind, and nobody has taken over.
    pub running: Vec<Running>,
    /// How many jobs it holds. While it is alive: as of its last heartbeat, or more where more are seen. Of one that is dead: those
    /// that nobody has taken over, as far as its heartbeats tell which they were.
    pub jobs: i64,
    /// The handlers that it has braked, as of its last heartbeat: an array, or null. A dead one brakes none.
    pub brakes: serde_json::Value,
}

/// A job that a worker is doing, or has left behind.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Running {
    /// The job.
    pub job: JobId,
    /// What sort of job it is.
    pub kind: String,
    /// The task that runs, or ran.
    pub position: Position,
    /// What people read while it runs.
    pub label: String,
    /// When its present attempt began.
    pub since: Option<DateTime<Utc>>,
}

/// Those that are alive, and of those that died within the last hour the newest, before them those that may hold jobs. A silence
/// counts only if Postgres was there to hear it.
const WORKERS: &str = concat!(
    r"
SELECT * FROM (SELECT told.*, row_number() OVER (PARTITION BY alive ORDER BY may_hold AND jobs > 0 DESC, id DESC) AS number FROM (
SELECT id, name, host, pid, version, queue, started_at, seen_at, stopped_at, in_hand::int8 AS jobs,
       coalesce(brakes, 'null')::text AS brakes,
       stopped_at IS NULL AND (seen_at >= statement_timestamp() - patience
                               OR pg_postmaster_start_time() >= statement_timestamp() - patience) AS alive, ",
    may_hold!(),
    r" AS may_hold
  FROM cliquet.workers worker
 WHERE ($1::text IS NULL OR queue = $1)
   AND (coalesce(stopped_at, seen_at) > statement_timestamp() - interval '1 hour'
        OR (stopped_at IS NULL AND seen_at >= statement_timestamp() - patience))
) told) worker
 WHERE alive OR number <= $2 ORDER BY alive DESC, id DESC"
);

/// What they told, and what is too young to have been told. Of those that are alive the beginning is enough, since they tell how
/// many there are; a dead one may have told of jobs that it had only just begun, and begun others afterwards.
const RUNNING: &str = concat!(
    r"
WITH candidate AS (
    SELECT unnest(CASE WHEN worker.id = ANY ($2) THEN worker.running[1:100] ELSE worker.running END) AS id
      FROM cliquet.workers worker WHERE worker.id = ANY ($1) AND ",
    may_hold!(),
    r"
    UNION
    SELECT newest.id FROM (SELECT id, holder FROM cliquet.jobs WHERE ",
    of_any_age!(),
    r" ORDER BY created_at DESC, id DESC LIMIT 500) newest
     WHERE newest.holder IS NOT NULL
    UNION
    SELECT since.id FROM cliquet.workers worker
     CROSS JOIN LATERAL (SELECT id, holder FROM cliquet.jobs WHERE ",
    of_any_age!(),
    r" AND created_at >= worker.seen_at - interval '2 seconds'
                          ORDER BY created_at, id LIMIT 500) since
     WHERE worker.id = ANY ($1) AND worker.id <> ALL ($2) AND worker.stopped_at IS NULL AND since.holder = worker.id AND ",
    may_hold!(),
    r"
), held AS MATERIALIZED (
    SELECT job.id, job.holder, job.kind, count(*) OVER (PARTITION BY job.holder) AS jobs,
           row_number() OVER (PARTITION BY job.holder ORDER BY job.created_at, job.id) AS number
      FROM candidate JOIN cliquet.jobs job ON job.id = candidate.id AND job.status = 'PROCESSING' AND job.holder = ANY ($1)
)
SELECT held.holder, held.jobs, held.id, held.kind, t.position, t.label, t.started_at
  FROM held
 CROSS JOIN LATERAL (SELECT task.position, task.label, task.started_at FROM cliquet.tasks task
                      WHERE task.job_id = held.id AND task.status <> 'SUCCESS' ORDER BY task.position LIMIT 1) t
 WHERE held.number <= 100 ORDER BY t.started_at, held.id"
);

impl Reads {
    /// The workers that are alive, the newest first, with what each is doing; and of those that died within the last hour up to
    /// 50, those that may hold jobs before the newest, with what each has left behind.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`], [`LedgerError::Schema`].
    pub async fn workers(&self, queue: Option<&str>) -> Result<Vec<WorkerView>, LedgerError> {
        self.all_workers(queue)
            .await
            .map_err(|error| unusable(self.pool(), &error))
    }

    async fn all_workers(&self, queue: Option<&str>) -> Result<Vec<WorkerView>, sqlx::Error> {
        let rows = sqlx::query(WORKERS)
            .bind(queue)
            .bind(DEAD)
            .fetch_all(self.pool())
            .await?;
        let mut workers: Vec<WorkerView> = rows.iter().map(worker).collect::<Result<_, _>>()?;
        let ids: Vec<_> = workers.iter().map(|worker| worker.id).collect();
        let alive = workers.iter().filter(|worker| worker.alive);
        let alive: Vec<_> = alive.map(|worker| worker.id).collect();
        let rows = sqlx::query(RUNNING)
            .bind(ids)
            .bind(alive)
            .fetch_all(self.pool())
            .await?;
        let mut holds: HashMap<i64, (i64, Vec<Running>)> = HashMap::new();
        for row in &rows {
            let (jobs, running) = holds.entry(row.try_get("holder")?).or_default();
            *jobs = row.try_get("jobs")?;
            if running.len() < SHOWN {
                running.push(Running {
                    job: JobId(row.try_get("id")?),
                    kind: row.try_get("kind")?,
                    position: row.try_get("position")?,
                    label: row.try_get("label")?,
                    since: row.try_get("started_at")?,
                });
            }
        }
        for worker in &mut workers {
            let (jobs, running) = holds.remove(&worker.id).unwrap_or_default();
            worker.running = running;
            if worker.alive {
                // What it has begun since its last heartbeat counts, too.
                worker.jobs = worker.jobs.max(jobs);
            } else {
                // As far as anybody can tell: one that is only cut off says so with its next heartbeat.
                (worker.jobs, worker.brakes) = (jobs, serde_json::Value::Null);
            }
        }
        Ok(workers)
    }
}

fn worker(row: &PgRow) -> Result<WorkerView, sqlx::Error> {
    let brakes: &str = row.try_get("brakes")?;
    Ok(WorkerView {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        host: row.try_get("host")?,
        pid: row.try_get("pid")?,
        version: row.try_get("version")?,
        queue: row.try_get("queue")?,
        alive: row.try_get("alive")?,
        started_at: row.try_get("started_at")?,
        seen_at: row.try_get("seen_at")?,
        stopped_at: row.try_get("stopped_at")?,
        running: Vec::new(),
        jobs: row.try_get("jobs")?,
        // Another version may tell its brakes otherwise.
        brakes: serde_json::from_str(brakes).unwrap_or_default(),
    })
}
