//! The whole at a glance: how many jobs are in each status, what was done in the last hour, and how long the oldest waits.
//!
//! Asked once a second it must cost next to nothing, and counting millions of jobs costs. What is not SUCCESS is counted by the
//! small indexes that have it, and what is held is what the last heartbeats told. SUCCESS is counted by reading every job, as
//! seldom as that takes long: of the time it may take one part in [`SELDOM`]. Between two counts the last one stands, and
//! `as_of` says from when it is.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::Row;
use tokio::sync::Mutex;
use utoipa::ToSchema;

use super::{
    LedgerError,
    read::{Reads, unusable},
};
use crate::job::JobStatus;

/// Of the time, each count may take one part in so many.
const SELDOM: u32 = 100;
/// No count is made more often.
const LEAST_PAUSE: Duration = Duration::from_millis(500);
/// The counts of so many queues are kept.
const KEPT: usize = 100;

/// The whole at a glance.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Overview {
    /// Every status, in the order of a life.
    pub jobs: Vec<StatusCount>,
    /// The last 60 minutes, the oldest first; the last of them is under way.
    pub minutes: Vec<Minute>,
    /// For how long the oldest job that is due has waited for a worker, in seconds; `None` when none is due.
    pub oldest_due_seconds: Option<f64>,
    /// When the oldest of these numbers was taken.
    pub as_of: DateTime<Utc>,
}

/// How many jobs are in a status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct StatusCount {
    /// The status.
    pub status: JobStatus,
    /// How many jobs.
    pub jobs: i64,
}

/// What ended in one minute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Minute {
    /// When it began.
    pub at: DateTime<Utc>,
    /// Tasks that ended well.
    pub succeeded: i64,
    /// Attempts that failed.
    pub failed: i64,
}

/// The counts of one queue, or of all.
#[derive(Clone, Debug)]
struct Counted {
    jobs: HashMap<JobStatus, i64>,
    success_as_of: DateTime<Utc>,
    others_as_of: DateTime<Utc>,
    /// When each is to be made again.
    success_from: Instant,
    others_from: Instant,
}

/// The last counts, by queue.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts(Arc<Mutex<HashMap<Option<String>, Counted>>>);

const OTHERS: &str = r"
SELECT (SELECT count(*) FROM cliquet.jobs WHERE error IS NULL AND next_attempt_at IS NOT NULL AND (queue = $1 OR $1 IS NULL)) AS pending,
       (SELECT count(*) FROM cliquet.jobs WHERE error IS NOT NULL AND next_attempt_at IS NOT NULL AND (queue = $1 OR $1 IS NULL)) AS retrying,
       (SELECT coalesce(sum(in_hand), 0)::int8 FROM cliquet.workers
         WHERE stopped_at IS NULL AND seen_at >= statement_timestamp() - patience AND (queue = $1 OR $1 IS NULL)) AS processing,
       ended.failed, ended.cancelled, statement_timestamp() AS as_of
  FROM (SELECT count(*) FILTER (WHERE status = 'FAILED') AS failed, count(*) FILTER (WHERE status = 'CANCELLED') AS cancelled
          FROM cliquet.jobs WHERE error IS NOT NULL AND next_attempt_at IS NULL AND (queue = $1 OR $1 IS NULL)) ended";

/// One process reads it from its beginning to its end; an index would take it row by row, and several would take the processors.
const WHOLE_TABLE: &str =
    "SET LOCAL enable_seqscan = on; SET LOCAL max_parallel_workers_per_gather = 0";

const SUCCESS: &str = r"
SELECT count(*) AS jobs, statement_timestamp() AS as_of FROM cliquet.jobs
 WHERE status = 'SUCCESS' AND (queue = $1 OR $1 IS NULL)";

/// Where there are so many jobs that they cannot be counted in time: how many Postgres believes there are, in all queues.
const BELIEVED: &str = r"
SELECT greatest(reltuples, 0)::int8 AS jobs, statement_timestamp() AS as_of FROM pg_class WHERE oid = 'cliquet.jobs'::regclass";

const MINUTES: &str = r"
SELECT minute.at, coalesce(sum(told.succeeded), 0)::int8 AS succeeded, coalesce(sum(told.failed), 0)::int8 AS failed
  FROM generate_series(date_trunc('minute', statement_timestamp()) - interval '59 minutes',
                       date_trunc('minute', statement_timestamp()), interval '1 minute') AS minute (at)
  LEFT JOIN cliquet.activity told ON told.minute = minute.at AND (told.queue = $1 OR $1 IS NULL)
 GROUP BY minute.at ORDER BY minute.at";

const OLDEST_DUE: &str = r"
SELECT extract(epoch FROM statement_timestamp() - next_attempt_at)::float8
  FROM cliquet.jobs WHERE next_attempt_at <= statement_timestamp() AND (queue = $1 OR $1 IS NULL)
 ORDER BY next_attempt_at LIMIT 1";

impl Reads {
    /// The whole at a glance, of one work queue or of all. Cheap: it may be asked every second.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`], [`LedgerError::Schema`].
    pub async fn overview(&self, queue: Option<&str>) -> Result<Overview, LedgerError> {
        self.glance(queue)
            .await
            .map_err(|error| unusable(self.pool(), &error))
    }

    async fn glance(&self, queue: Option<&str>) -> Result<Overview, sqlx::Error> {
        let counted = self.counted(queue).await?;
        let rows = sqlx::query(MINUTES)
            .bind(queue)
            .fetch_all(self.pool())
            .await?;
        let minutes = rows.iter().map(|row| {
            Ok(Minute {
                at: row.try_get("at")?,
                succeeded: row.try_get("succeeded")?,
                failed: row.try_get("failed")?,
            })
        });
        let minutes = minutes.collect::<Result<_, sqlx::Error>>()?;
        let oldest = sqlx::query_scalar(OLDEST_DUE)
            .bind(queue)
            .fetch_optional(self.pool())
            .await?;
        let count = |status: &JobStatus| StatusCount {
            status: *status,
            jobs: counted.jobs.get(status).copied().unwrap_or_default(),
        };
        Ok(Overview {
            jobs: JobStatus::ALL.iter().map(count).collect(),
            minutes,
            oldest_due_seconds: oldest,
            as_of: counted.success_as_of.min(counted.others_as_of),
        })
    }

    /// The counts, made anew where it is time. Others wait for who makes them, and take the same.
    async fn counted(&self, queue: Option<&str>) -> Result<Counted, sqlx::Error> {
        let mut kept = self.counts.0.lock().await;
        let key = queue.map(str::to_owned);
        let before = kept.get(&key);
        let now = Instant::now();
        let others_due = before.is_none_or(|counted| counted.others_from <= now);
        let success_due = before.is_none_or(|counted| counted.success_from <= now);
        let mut counted = match before {
            Some(counted) => counted.clone(),
            None => Counted {
                jobs: HashMap::new(),
                success_as_of: DateTime::UNIX_EPOCH,
                others_as_of: DateTime::UNIX_EPOCH,
                success_from: now,
                others_from: now,
            },
        };
        if others_due {
            self.count_others(queue, &mut counted).await?;
            counted.others_from = again(now);
        }
        if success_due {
            let began = Instant::now();
            self.count_success(queue, &mut counted).await?;
            counted.success_from = again(began);
        }
        if kept.len() >= KEPT {
            kept.clear();
        }
        kept.insert(key, counted.clone());
        Ok(counted)
    }

    async fn count_others(
        &self,
        queue: Option<&str>,
        counted: &mut Counted,
    ) -> Result<(), sqlx::Error> {
        let row = sqlx::query(OTHERS)
            .bind(queue)
            .fetch_one(self.pool())
            .await?;
        for (status, column) in [
            (JobStatus::Pending, "pending"),
            (JobStatus::Processing, "processing"),
            (JobStatus::Retrying, "retrying"),
            (JobStatus::Failed, "failed"),
            (JobStatus::Cancelled, "cancelled"),
        ] {
            counted.jobs.insert(status, row.try_get(column)?);
        }
        counted.others_as_of = row.try_get("as_of")?;
        Ok(())
    }

    async fn count_success(
        &self,
        queue: Option<&str>,
        counted: &mut Counted,
    ) -> Result<(), sqlx::Error> {
        let exact = async {
            let mut whole = self.pool().begin_with("BEGIN READ ONLY").await?;
            sqlx::raw_sql(WHOLE_TABLE).execute(&mut *whole).await?;
            let row = sqlx::query(SUCCESS)
                .bind(queue)
                .fetch_one(&mut *whole)
                .await?;
            whole.commit().await?;
            Ok::<_, sqlx::Error>(row)
        };
        let row = match exact.await {
            Ok(row) => {
                counted
                    .jobs
                    .insert(JobStatus::Success, row.try_get("jobs")?);
                row
            }
            // 57014: longer than this session may ask.
            Err(error) if !is_too_long(&error) => return Err(error),
            Err(_) => {
                let row = sqlx::query(BELIEVED).fetch_one(self.pool()).await?;
                let all: i64 = row.try_get("jobs")?;
                let others = counted.jobs.iter();
                let others = others.filter(|(status, _)| **status != JobStatus::Success);
                let rest = all - others.map(|(_, jobs)| jobs).sum::<i64>();
                counted.jobs.insert(JobStatus::Success, rest.max(0));
                row
            }
        };
        counted.success_as_of = row.try_get("as_of")?;
        Ok(())
    }
}

fn is_too_long(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.as_deref() == Some("57014")
}

/// When something that began then and has just ended is to be done again.
fn again(began: Instant) -> Instant {
    let now = Instant::now();
    now + LEAST_PAUSE.max((now - began) * SELDOM)
}
