//! The whole at a glance: how many jobs are in each status, what was done in the last hour, and how long the oldest waits.
//!
//! Asked once a second it must cost next to nothing, and counting millions of jobs costs. What is not SUCCESS is counted by the
//! small indexes that have it, and what is held is what the last heartbeats told: of a worker that was killed until another has
//! found, a minute or more later, that it holds nothing. SUCCESS is counted by reading every job, of all queues at once, as
//! seldom as that takes long: of the time it may take about one part in [`SELDOM`]. Between two counts, and while one is made,
//! the last one stands, and `as_of` says from when it is.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{Connection, Row};
use tokio::sync::Mutex;
use utoipa::ToSchema;

use super::{
    LedgerError,
    read::{Reads, unusable},
};
use crate::{job::JobStatus, pace::Pace};

/// Of the time, each count may take about one part in so many.
const SELDOM: u32 = 100;
/// No count is made more often.
const LEAST_PAUSE: Duration = Duration::from_millis(500);
/// What is not SUCCESS is kept of so many queues.
const KEPT: usize = 100;

/// The whole at a glance.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Overview {
    /// Every status, in the order of a life. Of one queue SUCCESS is missing where there are too many jobs to count them.
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
    /// How many jobs. PROCESSING is what the workers' last heartbeats told: a killed worker's jobs count until another has found,
    /// a minute or more later, that it holds none.
    pub jobs: i64,
    /// There are too many to count them: this is about how many.
    pub estimated: bool,
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

/// How many jobs of one queue, or of all, are in each status but SUCCESS.
#[derive(Clone, Debug)]
struct Others {
    jobs: HashMap<JobStatus, i64>,
    as_of: DateTime<Utc>,
}

/// How many jobs are SUCCESS.
#[derive(Clone, Debug)]
struct Success {
    /// By queue; `None` when they were too many.
    of_queue: Option<HashMap<String, i64>>,
    all: i64,
    as_of: DateTime<Utc>,
}

impl Success {
    fn of(&self, queue: Option<&str>) -> Option<StatusCount> {
        let jobs = match (queue, &self.of_queue) {
            (None, _) => self.all,
            (Some(queue), Some(of_queue)) => of_queue.get(queue).copied().unwrap_or_default(),
            (Some(_), None) => return None,
        };
        Some(StatusCount {
            status: JobStatus::Success,
            jobs,
            estimated: self.of_queue.is_none(),
        })
    }
}

/// The last counts.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// By queue; of all queues under `None`.
    others: LastCounts<Others>,
    /// Of all queues at once.
    success: LastCounts<Success>,
}

/// The last counts of one sort, by what they are of. Each is made anew by whoever asks when it is time, one at a time; who can
/// have an earlier one does not wait.
#[derive(Debug)]
struct LastCounts<T> {
    last: std::sync::Mutex<HashMap<Option<String>, Counted<T>>>,
    counting: Mutex<()>,
}

#[derive(Clone, Debug)]
struct Counted<T> {
    count: T,
    again: Instant,
    pace: Pace,
}

impl<T> Default for LastCounts<T> {
    fn default() -> Self {
        Self {
            last: std::sync::Mutex::default(),
            counting: Mutex::default(),
        }
    }
}

impl<T: Clone> LastCounts<T> {
    /// The last count, or a new one where it is time: `anew` makes it and says what it took, without its wait for a connection.
    async fn get(
        &self,
        of: Option<&str>,
        anew: impl Future<Output = Result<(T, Duration), sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        let of = of.map(str::to_owned);
        let last = || locked(&self.last).get(&of).cloned();
        let _counting = match last() {
            Some(last) if last.stands() => return Ok(last.count),
            Some(last) => match self.counting.try_lock() {
                Ok(counting) => counting,
                Err(_) => return Ok(last.count),
            },
            None => self.counting.lock().await,
        };
        let last = match last() {
            // Somebody else has just made it.
            Some(last) if last.stands() => return Ok(last.count),
            last => last,
        };
        let (count, took) = anew.await?;
        let counted = Counted::after(last, count.clone(), took);
        let mut kept = locked(&self.last);
        if kept.len() >= KEPT && !kept.contains_key(&of) {
            kept.clear();
        }
        kept.insert(of, counted);
        Ok(count)
    }
}

impl<T> Counted<T> {
    /// One that took so long and ends now, after the `last`.
    fn after(last: Option<Self>, count: T, took: Duration) -> Self {
        let mut pace = last.map_or_else(|| Pace::new(SELDOM, LEAST_PAUSE), |last| last.pace);
        Self {
            count,
            again: Instant::now() + pace.after(took),
            pace,
        }
    }

    fn stands(&self) -> bool {
        self.again > Instant::now()
    }
}

/// So that a test can stand where somebody counts: it is time, and this one does it until the guard is dropped.
#[cfg(test)]
impl Counts {
    pub(super) async fn counting_now(&self) -> [tokio::sync::MutexGuard<'_, ()>; 2] {
        [
            self.0.others.counting_now().await,
            self.counting_success_now().await,
        ]
    }

    pub(super) async fn counting_success_now(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.0.success.counting_now().await
    }
}

#[cfg(test)]
impl<T> LastCounts<T> {
    async fn counting_now(&self) -> tokio::sync::MutexGuard<'_, ()> {
        let counting = self.counting.lock().await;
        for counted in locked(&self.last).values_mut() {
            counted.again = Instant::now();
        }
        counting
    }
}

/// What is kept is replaced as a whole: a panic leaves nothing behind half done.
fn locked<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

const OTHERS: &str = r"
SELECT other.*,
       (SELECT coalesce(sum(in_hand), 0)::int8 FROM cliquet.workers
         WHERE (cleared_at IS NULL OR cleared_at < seen_at) AND (queue = $1 OR $1 IS NULL)) AS processing,
       statement_timestamp() AS as_of
  FROM (SELECT count(*) FILTER (WHERE status = 'PENDING') AS pending, count(*) FILTER (WHERE status = 'RETRYING') AS retrying,
               count(*) FILTER (WHERE status = 'FAILED') AS failed, count(*) FILTER (WHERE status = 'CANCELLED') AS cancelled
          FROM cliquet.jobs WHERE num_nonnulls(error, next_attempt_at) > 0 AND (queue = $1 OR $1 IS NULL)) other";

/// One process reads it from its beginning to its end; an index would take it row by row, and several would take the processors.
const WHOLE_TABLE: &str =
    "SET LOCAL enable_seqscan = on; SET LOCAL max_parallel_workers_per_gather = 0";

const SUCCESS: &str = r"
SELECT queue, count(*) AS jobs FROM cliquet.jobs WHERE status = 'SUCCESS' GROUP BY queue";

/// Where there are so many jobs that they cannot be counted in time: how many Postgres believes there are, in all queues.
const BELIEVED: &str = r"
SELECT greatest(reltuples, 0)::int8 FROM pg_class WHERE oid = 'cliquet.jobs'::regclass";

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
        let others = self.others(queue).await?;
        let success = self.success().await?;
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
        let count = |status: &JobStatus| match status {
            JobStatus::Success => success.of(queue),
            status => Some(StatusCount {
                status: *status,
                jobs: others.jobs.get(status).copied().unwrap_or_default(),
                estimated: false,
            }),
        };
        Ok(Overview {
            jobs: JobStatus::ALL.iter().filter_map(count).collect(),
            minutes,
            oldest_due_seconds: oldest,
            as_of: success.as_of.min(others.as_of),
        })
    }

    async fn others(&self, queue: Option<&str>) -> Result<Others, sqlx::Error> {
        let anew = self.count_others(queue);
        self.counts.0.others.get(queue, anew).await
    }

    async fn count_others(&self, queue: Option<&str>) -> Result<(Others, Duration), sqlx::Error> {
        let mut session = self.pool().acquire().await?;
        let began = Instant::now();
        let row = sqlx::query(OTHERS)
            .bind(queue)
            .fetch_one(&mut *session)
            .await?;
        let jobs = [
            (JobStatus::Pending, "pending"),
            (JobStatus::Processing, "processing"),
            (JobStatus::Retrying, "retrying"),
            (JobStatus::Failed, "failed"),
            (JobStatus::Cancelled, "cancelled"),
        ]
        .map(|(status, column)| Ok((status, row.try_get(column)?)));
        let others = Others {
            jobs: jobs.into_iter().collect::<Result<_, sqlx::Error>>()?,
            as_of: row.try_get("as_of")?,
        };
        Ok((others, began.elapsed()))
    }

    /// Once for all who ask, whatever queue they ask about.
    async fn success(&self) -> Result<Success, sqlx::Error> {
        self.counts.0.success.get(None, self.count_success()).await
    }

    async fn count_success(&self) -> Result<(Success, Duration), sqlx::Error> {
        let as_of = sqlx::query_scalar("SELECT statement_timestamp()")
            .fetch_one(self.pool())
            .await?;
        let mut session = self.pool().acquire().await?;
        let began = Instant::now();
        let exact = async move {
            let mut whole = session.begin_with("BEGIN READ ONLY").await?;
            sqlx::raw_sql(WHOLE_TABLE).execute(&mut *whole).await?;
            let counts: Vec<(String, i64)> = sqlx::query_as(SUCCESS).fetch_all(&mut *whole).await?;
            whole.commit().await?;
            Ok::<_, sqlx::Error>(counts)
        };
        let (of_queue, all) = match exact.await {
            Ok(counts) => {
                let all = counts.iter().map(|(_, jobs)| jobs).sum();
                (Some(counts.into_iter().collect()), all)
            }
            Err(error) if !is_too_long(&error) => return Err(error),
            // Longer than this session may ask.
            Err(_) => {
                let believed: i64 = sqlx::query_scalar(BELIEVED).fetch_one(self.pool()).await?;
                let others = self.others(None).await?;
                let rest = believed - others.jobs.values().sum::<i64>();
                (None, rest.max(0))
            }
        };
        let success = Success {
            of_queue,
            all,
            as_of,
        };
        Ok((success, began.elapsed()))
    }
}

fn is_too_long(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.as_deref() == Some("57014")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_to_count_is_told_as_an_estimate_of_the_whole_and_of_no_queue() {
        let counted = Success {
            of_queue: None,
            all: 1_000_000_000,
            as_of: DateTime::UNIX_EPOCH,
        };
        let whole = StatusCount {
            status: JobStatus::Success,
            jobs: 1_000_000_000,
            estimated: true,
        };
        assert_eq!(counted.of(None), Some(whole));
        assert_eq!(counted.of(Some("jobs")), None);
    }

    #[tokio::test]
    async fn one_slow_count_after_a_quick_one_is_soon_made_again() {
        let kept = LastCounts::default();
        for (count, took) in [(1, Duration::from_secs(1)), (2, Duration::from_secs(20))] {
            drop(kept.counting_now().await);
            let anew = async { Ok((count, took)) };
            assert_eq!(kept.get(None, anew).await.unwrap(), count);
        }
        let stands = async { panic!("it is not time") };
        assert_eq!(kept.get(None, stands).await.unwrap(), 2);
        assert!(locked(&kept.last)[&None].again < Instant::now() + Duration::from_secs(200));
    }
}
