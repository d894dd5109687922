//! Which jobs: a list by any filter, newest first, a page at a time, that answers quickly among millions of jobs.
//!
//! Almost all jobs are SUCCESS, and people look for the others. So a list is put together from *ways*, of which each is an
//! part of an index in the order of the list: what was given up, what retries, what is pending, what is held, or all by age. Only
//! the ways that can have what is asked for are walked along. What a way has no index for (kind, queue, handler, words) is
//! looked at row by row, a stride at a time, for [`ENOUGH`] time and never at more than [`Question::look`] rows: a search that
//! ends there says so, and its cursor goes on.
//!
//! No index tells what is held, since that changes with every job: it is what the last heartbeats told of all workers that may
//! hold something, dead or alive, and the newest of all jobs.
//!
//! Pages are cut by place and not by number: `(created_at, id)` of the last job, so the thousandth costs what the first does,
//! and none is seen twice while others arrive. All questions of one page are of one snapshot.

use std::{
    cmp::Reverse,
    fmt,
    str::FromStr,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, Postgres, QueryBuilder, Row};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    LedgerError,
    likeness::{group_id, likeness},
    read::{JobSummary, Reads, summary, unusable},
};
use crate::job::JobStatus;

/// A page, where none is asked for.
const USUAL: u32 = 50;
/// The longest page.
const LONGEST: u32 = 500;

/// A search that would go on for longer looks no further, and its page says so: whoever wants to go on asks for the next.
/// On a machine that is busy it is sooner over, since people wait for it and the worker does, too.
const ENOUGH: Duration = Duration::from_millis(if cfg!(test) { 60_000 } else { 20 });

/// Which jobs are looked for; the default is every job. Newest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Find {
    /// Of these statuses; empty: of every one.
    pub status: Vec<JobStatus>,
    /// Of this kind.
    pub kind: Option<String>,
    /// Of this work queue.
    pub queue: Option<String>,
    /// That stand at a task of this handler: the first that is not SUCCESS.
    pub handler: Option<String>,
    /// Whose error contains this text, in any case.
    pub error: Option<String>,
    /// Of this group of like errors ([`Group::id`](super::Group::id)).
    pub likeness: Option<String>,
    /// Created then or after.
    pub since: Option<DateTime<Utc>>,
    /// Created before.
    pub until: Option<DateTime<Utc>>,
    /// Behind this place.
    pub after: Option<Cursor>,
    /// At most so many; 0 is 50, and 500 are the most.
    pub limit: u32,
}

/// A place in the list. It is written as an opaque text that needs no escape in a URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Cursor {
    created_at: DateTime<Utc>,
    id: Uuid,
}

impl Cursor {
    /// The place of this job: what comes behind it is older.
    pub(crate) fn of(job: &JobSummary) -> Self {
        Self {
            created_at: job.created_at,
            id: job.id.0,
        }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.created_at.timestamp_micros();
        write!(f, "{:016x}{}", micros.cast_unsigned(), self.id.simple())
    }
}

impl FromStr for Cursor {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let read = || {
            let (micros, id) = text.split_at_checked(16)?;
            let micros = u64::from_str_radix(micros, 16).ok()?.cast_signed();
            // What Postgres has no room for is no place of its.
            let created_at = DateTime::from_timestamp_micros(micros)?;
            let years = chrono::Datelike::year(&created_at);
            (id.len() == 32 && (-4000..=200_000).contains(&years)).then_some(())?;
            let id = Uuid::parse_str(id).ok()?;
            Some(Self { created_at, id })
        };
        read().ok_or_else(|| {
            "this is no place in the list: give `next` of the page before, as it is".to_owned()
        })
    }
}

impl From<Cursor> for String {
    fn from(cursor: Cursor) -> Self {
        cursor.to_string()
    }
}

impl TryFrom<String> for Cursor {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// One page.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Found {
    /// The jobs, newest first.
    pub jobs: Vec<JobSummary>,
    /// Where the next page begins; `None` when this was the last.
    pub next: Option<Cursor>,
    /// The search has looked for as long, or at as many jobs, as it may at a time, and found fewer than were asked for; `next` goes
    /// on from there.
    pub partial: bool,
}

macro_rules! looked_for {
    ($sort:literal) => {
        concat!($sort, " AND num_nonnulls(error, next_attempt_at) > 0")
    };
}

/// What is true of every job, in the words of the index by age. No write says them, so that none is planned with that index.
macro_rules! of_any_age {
    () => {
        "total >= '-2147483648'::integer"
    };
}
pub(super) use of_any_age;

/// One way to jobs, in the order of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Path {
    Age,
    GivenUp,
    Retrying,
    Pending,
    Held,
}

/// The next rows of a way, behind a place.
struct Window {
    way: Path,
    after: Option<Cursor>,
    stride: i64,
}

/// What one way led to.
struct Walked {
    /// One more than a page, if there are so many.
    found: Vec<Cursor>,
    /// Where it stopped, if there may be more behind.
    stopped: Option<Cursor>,
}

impl Path {
    /// What the jobs on it have in common, in the words of its index.
    pub(super) fn condition(self) -> &'static str {
        match self {
            Path::Age | Path::Held => of_any_age!(),
            Path::GivenUp => {
                looked_for!("num_nonnulls(error) = 1 AND num_nonnulls(next_attempt_at) = 0")
            }
            Path::Retrying => {
                looked_for!("num_nonnulls(error) = 1 AND num_nonnulls(next_attempt_at) = 1")
            }
            Path::Pending => {
                looked_for!("num_nonnulls(error) = 0 AND num_nonnulls(next_attempt_at) = 1")
            }
        }
    }
}

/// What is asked for, narrowed down to the statuses that can have it.
struct Question<'f> {
    find: &'f Find,
    status: Vec<JobStatus>,
    /// One more than a page.
    most: i64,
}

impl<'f> Question<'f> {
    fn new(find: &'f Find) -> Self {
        let can_be = |status: &JobStatus| {
            let has_error = matches!(
                status,
                JobStatus::Failed | JobStatus::Retrying | JobStatus::Cancelled
            );
            let asked = find.status.is_empty() || find.status.contains(status);
            asked
                && (find.error.is_none() || has_error)
                && (find.likeness.is_none() || (has_error && *status != JobStatus::Cancelled))
                && (find.handler.is_none() || *status != JobStatus::Success)
        };
        let limit = match find.limit {
            0 => USUAL,
            limit => limit.min(LONGEST),
        };
        Self {
            find,
            status: JobStatus::ALL.iter().copied().filter(can_be).collect(),
            most: i64::from(limit) + 1,
        }
    }

    fn ways(&self) -> Vec<Path> {
        if self.status.contains(&JobStatus::Success) {
            return vec![Path::Age];
        }
        let mut ways: Vec<_> = self
            .status
            .iter()
            .map(|status| match status {
                JobStatus::Failed | JobStatus::Cancelled => Path::GivenUp,
                JobStatus::Retrying => Path::Retrying,
                JobStatus::Pending => Path::Pending,
                JobStatus::Processing => Path::Held,
                JobStatus::Success => Path::Age,
            })
            .collect();
        ways.sort_unstable_by_key(|way| *way as u8);
        ways.dedup();
        ways
    }

    /// Whether each row needs a look at its tasks.
    fn asks_for_handler(&self) -> bool {
        self.find.handler.is_some() || self.find.likeness.is_some()
    }

    /// How many rows a way may look at.
    fn look(&self) -> i64 {
        let rows = match (self.asks_for_handler(), &self.find.error) {
            (true, _) => 1_000,
            (false, Some(_)) => 5_000,
            (false, None) => 10_000,
        };
        match cfg!(test) {
            true => rows / 100, // so that a test can see it end
            false => rows,
        }
    }

    /// How many of them it looks at together: so many, where each needs a look, take a few milliseconds.
    fn stride(&self) -> i64 {
        (self.look() / 8).max(1)
    }

    /// The rows that are looked at together.
    fn push_window(&self, sql: &mut QueryBuilder<Postgres>, window: &Window) {
        sql.push(
            "SELECT id, created_at, status, kind, queue, error, total FROM cliquet.jobs WHERE ",
        )
        .push(window.way.condition());
        self.push_bounds(sql, window.after);
        sql.push(" ORDER BY created_at DESC, id DESC LIMIT ")
            .push_bind(window.stride);
    }

    fn push_bounds(&self, sql: &mut QueryBuilder<Postgres>, after: Option<Cursor>) {
        if let Some(since) = self.find.since {
            sql.push(" AND created_at >= ").push_bind(since);
        }
        if let Some(until) = self.find.until {
            sql.push(" AND created_at < ").push_bind(until);
        }
        if let Some(after) = after {
            sql.push(" AND (created_at, id) < (")
                .push_bind(after.created_at)
                .push(", ")
                .push_bind(after.id)
                .push(")");
        }
    }

    /// Those of the rows that are what is asked for.
    fn push_filters(&self, sql: &mut QueryBuilder<Postgres>) {
        sql.push(" WHERE true");
        if self.status.len() < JobStatus::ALL.len() {
            let words: Vec<_> = self.status.iter().map(|status| status.as_str()).collect();
            sql.push(" AND j.status = ANY (")
                .push_bind(words)
                .push("::text[]::cliquet.job_status[])");
        }
        for (column, value) in [
            (" AND j.kind = ", &self.find.kind),
            (" AND j.queue = ", &self.find.queue),
            (" AND t.handler = ", &self.find.handler),
        ] {
            if let Some(value) = value {
                sql.push(column).push_bind(storable(value));
            }
        }
        if let Some(text) = &self.find.error {
            sql.push(" AND strpos(lower(j.error), lower(")
                .push_bind(storable(text))
                .push(")) > 0");
        }
    }

    fn found(&self, window: &Window) -> QueryBuilder<Postgres> {
        let mut sql = QueryBuilder::new("SELECT j.id, j.created_at");
        if self.find.likeness.is_some() {
            sql.push(", left(j.error, 1000) AS error, t.handler");
        }
        sql.push(" FROM (");
        if window.way == Path::Held {
            sql.push(
                "SELECT id, created_at, status, kind, queue, error, total FROM cliquet.jobs
                  WHERE status = 'PROCESSING'
                    AND id = ANY (ARRAY(SELECT unnest(worker.running) FROM cliquet.workers worker WHERE ",
            )
            .push(MAY_HOLD)
            .push("))");
            self.push_bounds(&mut sql, window.after);
            sql.push(" UNION SELECT * FROM (");
            self.push_window(&mut sql, window);
            sql.push(") newest WHERE newest.status = 'PROCESSING'");
        } else {
            self.push_window(&mut sql, window);
        }
        sql.push(") j");
        if self.asks_for_handler() {
            // A job may have no task at all, as somebody enqueued it in SQL.
            sql.push(" LEFT JOIN LATERAL (")
                .push(FRONTIER)
                .push(") t ON true");
        }
        self.push_filters(&mut sql);
        sql.push(" ORDER BY j.created_at DESC, j.id DESC");
        if self.find.likeness.is_none() {
            sql.push(" LIMIT ").push_bind(self.most);
        }
        sql
    }

    /// Along one way, a stride at a time, until the page is full, the way is at its end, or it is time.
    async fn walk(
        &self,
        snapshot: &mut PgConnection,
        way: Path,
        until: Instant,
    ) -> Result<Walked, sqlx::Error> {
        let (mut found, mut after, mut left) = (Vec::new(), self.find.after, self.look());
        loop {
            // What is held and neither told nor among the newest is found by nothing: that is one stride.
            let stride = match way {
                Path::Held => left,
                _ => left.min(self.stride()),
            };
            let window = Window { way, after, stride };
            let strode = Instant::now();
            found.extend(self.found_in(snapshot, &window).await?);
            found.truncate(self.most as usize);
            let stopped = match found.last() {
                Some(last) if found.len() == self.most as usize => Some(*last),
                _ if way == Path::Held => None,
                _ => {
                    after = self.end_of(snapshot, &window).await?;
                    left -= stride;
                    // The next stride is likely to take as long as this one.
                    let then = Instant::now() + strode.elapsed();
                    if after.is_some() && left > 0 && then < until {
                        continue;
                    }
                    after
                }
            };
            return Ok(Walked { found, stopped });
        }
    }

    async fn found_in(
        &self,
        snapshot: &mut PgConnection,
        window: &Window,
    ) -> Result<Vec<Cursor>, sqlx::Error> {
        let rows = self.found(window).build().fetch_all(snapshot).await?;
        let mut found = Vec::new();
        for row in &rows {
            if let Some(wanted) = &self.find.likeness {
                let handler: Option<&str> = row.try_get("handler")?;
                let error: &str = row.try_get("error")?;
                if group_id(handler, &likeness(error)) != *wanted {
                    continue;
                }
            }
            found.push(Cursor {
                created_at: row.try_get("created_at")?,
                id: row.try_get("id")?,
            });
        }
        Ok(found)
    }

    /// The last row of a window, if it is full.
    async fn end_of(
        &self,
        snapshot: &mut PgConnection,
        window: &Window,
    ) -> Result<Option<Cursor>, sqlx::Error> {
        let mut sql = QueryBuilder::new("SELECT id, created_at FROM (");
        self.push_window(&mut sql, window);
        sql.push(") j OFFSET ").push_bind(window.stride - 1);
        let row = sql.build().fetch_optional(snapshot).await?;
        row.map(|row| {
            Ok(Cursor {
                created_at: row.try_get("created_at")?,
                id: row.try_get("id")?,
            })
        })
        .transpose()
    }
}

/// Workers that may hold a job, though they be dead: nobody has found yet that they hold nothing.
macro_rules! may_hold {
    () => {
        "(worker.cleared_at IS NULL OR worker.cleared_at < worker.seen_at)"
    };
}
pub(super) use may_hold;

/// As a text of its own.
pub(super) const MAY_HOLD: &str = may_hold!();

/// The task that a job `j` stands at. One of many tasks is not walked along from its beginning: what failed last was where it
/// stood then, and it never goes back.
macro_rules! frontier {
    () => {
        r"
SELECT task.position, task.handler, task.label, task.finished_at FROM cliquet.tasks task
 WHERE task.job_id = j.id AND task.status <> 'SUCCESS'
   AND task.position >= CASE WHEN j.total <= 20 THEN 1
                             ELSE coalesce((SELECT failure.position FROM cliquet.failures failure
                                             WHERE failure.job_id = j.id ORDER BY failure.epoch DESC LIMIT 1), 1) END
 ORDER BY task.position LIMIT 1"
    };
}

/// As a text of its own.
pub(super) const FRONTIER: &str = frontier!();

/// A NUL is in no text of Postgres's, and nothing is found by it.
fn storable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// What the ways led to, as one list: which jobs, where the next page begins, and whether the search stopped early.
fn joined(walked: Vec<Walked>, limit: usize) -> (Vec<Cursor>, Option<Cursor>, bool) {
    // Behind the place where the first of them stopped, others may be missing.
    let stopped = walked.iter().filter_map(|walked| walked.stopped).max();
    let mut found: Vec<_> = walked
        .into_iter()
        .flat_map(|walked| walked.found)
        .filter(|place| stopped.is_none_or(|stopped| *place >= stopped))
        .collect();
    found.sort_unstable_by_key(|place| Reverse(*place));
    found.dedup();
    if found.len() > limit {
        found.truncate(limit);
        let next = found.last().copied();
        return (found, next, false);
    }
    let partial = stopped.is_some() && found.len() < limit;
    (found, stopped, partial)
}

const SUMMARIES: &str = concat!(
    r"
SELECT j.id, j.kind, j.status::text, j.queue, j.generation, j.epoch, j.error, j.total, j.created_at, j.started_at,
       j.finished_at, j.next_attempt_at, j.attempts,
       (SELECT worker.name FROM cliquet.workers worker WHERE worker.id = j.holder) AS holder,
       coalesce(t.position - 1, j.total)::int8 AS done, t.label
  FROM cliquet.jobs j
  LEFT JOIN LATERAL (SELECT * FROM (",
    frontier!(),
    r") stands WHERE j.status <> 'SUCCESS') t ON true
 WHERE j.id = ANY ($1) ORDER BY j.created_at DESC, j.id DESC"
);

impl Reads {
    /// One page of the jobs that are looked for.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`], [`LedgerError::Schema`].
    pub async fn find(&self, find: &Find) -> Result<Found, LedgerError> {
        self.find_within(find, ENOUGH).await
    }

    /// One page, found in about so much time.
    pub(super) async fn find_within(
        &self,
        find: &Find,
        enough: Duration,
    ) -> Result<Found, LedgerError> {
        self.page(find, enough)
            .await
            .map_err(|error| unusable(self.pool(), &error))
    }

    async fn page(&self, find: &Find, enough: Duration) -> Result<Found, sqlx::Error> {
        let question = Question::new(find);
        let mut snapshot = self
            .pool()
            .begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            .await?;
        let (mut walked, mut ways) = (Vec::new(), question.ways());
        let until = Instant::now() + enough;
        while let Some(way) = ways.pop() {
            // Each has its share of the time that is left: a page goes no further than the one that got least far.
            let left = until.saturating_duration_since(Instant::now());
            let share = left / (ways.len() as u32 + 1);
            walked.push(
                question
                    .walk(&mut snapshot, way, Instant::now() + share)
                    .await?,
            );
        }
        let (places, next, partial) = joined(walked, question.most as usize - 1);
        let ids: Vec<_> = places.iter().map(|place| place.id).collect();
        let rows = sqlx::query(SUMMARIES)
            .bind(ids)
            .fetch_all(&mut *snapshot)
            .await?;
        snapshot.commit().await?;
        let job = |row| {
            Ok(JobSummary {
                label: Row::try_get(row, "label")?,
                ..summary(row)?
            })
        };
        Ok(Found {
            jobs: rows.iter().map(job).collect::<Result<_, sqlx::Error>>()?,
            next,
            partial,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(number: i64) -> Cursor {
        Cursor {
            created_at: DateTime::from_timestamp_micros(number).unwrap(),
            id: Uuid::from_u128(number.unsigned_abs().into()),
        }
    }

    #[test]
    fn a_place_is_written_and_read_and_nothing_else_is_a_place() {
        let place = place(1_700_000_000_000_001);
        let text = place.to_string();
        assert!(text.chars().all(|c| c.is_ascii_alphanumeric()), "{text}");
        assert_eq!(text.parse(), Ok(place));
        for wrong in [
            "",
            "1",
            "é",
            &text[1..],
            &text.replace('0', "x"),
            &format!("{text}0"),
            &format!("7{}", &text[1..]),
            &format!("éééééééé{}", &text[16..]),
        ] {
            assert!(wrong.parse::<Cursor>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn ways_are_joined_up_to_where_the_first_of_them_stopped() {
        let walked = |found: &[i64], stopped: Option<i64>| Walked {
            found: found.iter().copied().map(place).collect(),
            stopped: stopped.map(place),
        };
        let places = |numbers: &[i64]| numbers.iter().copied().map(place).collect::<Vec<_>>();
        // Both are at their end.
        assert_eq!(
            joined(vec![walked(&[9, 3], None), walked(&[5], None)], 10),
            (places(&[9, 5, 3]), None, false)
        );
        // One looked no further than 4: what the other found behind that waits.
        assert_eq!(
            joined(vec![walked(&[9], Some(4)), walked(&[5, 3], None)], 10),
            (places(&[9, 5]), Some(place(4)), true)
        );
        // More than a page.
        assert_eq!(
            joined(vec![walked(&[9, 7, 5], Some(5)), walked(&[8, 6], None)], 2),
            (places(&[9, 8]), Some(place(8)), false)
        );
    }

    #[test]
    fn only_the_ways_that_can_have_it_are_walked_along() {
        use JobStatus::{Cancelled, Failed, Processing, Retrying, Success};
        let ways = |find: Find| Question::new(&find).ways();
        let status = |status: &[JobStatus]| Find {
            status: status.to_vec(),
            ..Find::default()
        };
        let some = || Some("x".to_owned());
        assert_eq!(ways(Find::default()), [Path::Age]);
        assert_eq!(ways(status(&[Failed])), [Path::GivenUp]);
        assert_eq!(
            ways(status(&[Retrying, Failed, Cancelled])),
            [Path::GivenUp, Path::Retrying]
        );
        assert_eq!(ways(status(&[Processing])), [Path::Held]);
        assert_eq!(ways(status(&[Failed, Success])), [Path::Age]);
        let error = Find {
            error: some(),
            ..Find::default()
        };
        assert_eq!(ways(error.clone()), [Path::GivenUp, Path::Retrying]);
        let nothing = Find {
            status: vec![Success],
            ..error
        };
        assert_eq!(ways(nothing), []);
        let handler = Find {
            handler: some(),
            ..Find::default()
        };
        assert_eq!(
            ways(handler),
            [Path::GivenUp, Path::Retrying, Path::Pending, Path::Held]
        );
    }
}
