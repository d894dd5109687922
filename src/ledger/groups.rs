//! Groups of like failures: what somebody who is called at night reads first.
//!
//! Of the jobs that were given up and those that wait after a failure, the newest of each are read, up to [`MOST`], and no more
//! than [`LOOK`] are looked at to find them, since what is CANCELLED or another queue's lies among them. Where that was not all,
//! the numbers are of those, and the answer says so.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::Row;
use utoipa::ToSchema;

use super::{
    LedgerError,
    find::{FRONTIER, Path},
    likeness::{group_id, likeness},
    read::{Reads, unusable, word},
};
use crate::job::{JobId, JobStatus};

/// Jobs that are read with their errors, of each of the two sorts.
const MOST: i64 = if cfg!(test) { 50 } else { 5_000 };
/// Jobs that are looked at.
const LOOK: i64 = if cfg!(test) { 200 } else { 20_000 };

/// The groups of like failures.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Groups {
    /// The groups, the largest first.
    pub groups: Vec<Group>,
    /// There are more such jobs than were looked at: the numbers are of the newest.
    pub partial: bool,
}

/// Jobs (FAILED or RETRYING) whose task failed with like words at the same handler: numbers, ids, quoted and hex parts of an
/// error do not count.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Group {
    /// Names the group, for as long as its errors are alike: what [`Find::likeness`](super::Find::likeness) takes.
    pub id: String,
    /// The handler of the task that they stand at.
    pub handler: Option<String>,
    /// What their errors have in common, as people read it: `HTTP 503: …`.
    pub error: String,
    /// How many they are.
    pub jobs: i64,
    /// Those of them that were given up.
    pub failed: i64,
    /// Those of them that wait to be tried again.
    pub retrying: i64,
    /// When the last of them failed.
    pub latest: DateTime<Utc>,
    /// That one.
    pub example: JobId,
}

/// The jobs of one sort, the newest first, by its own index.
fn newest(sort: Path) -> String {
    format!(
        "SELECT id, status, queue, error, created_at, finished_at, total FROM cliquet.jobs
          WHERE {} ORDER BY created_at DESC, id DESC",
        sort.condition()
    )
}

/// Those of them that are stuck. What is CANCELLED lies among what was given up, and is left out.
fn stuck(sort: Path) -> String {
    format!(
        "SELECT j.id, j.status::text, left(j.error, 1000) AS error, t.handler,
                coalesce(t.finished_at, j.finished_at, j.created_at) AS latest
           FROM (SELECT * FROM ({} LIMIT $3) looked_at
                  WHERE looked_at.status IN ('FAILED', 'RETRYING') AND ($1::text IS NULL OR looked_at.queue = $1)
                  ORDER BY looked_at.created_at DESC, looked_at.id DESC LIMIT $2 + 1) j
           LEFT JOIN LATERAL ({FRONTIER}) t ON true",
        newest(sort),
    )
}

/// Whether there are more than are looked at.
fn more(sort: Path) -> String {
    format!("SELECT EXISTS ({} OFFSET $1 LIMIT 1)", newest(sort))
}

impl Reads {
    /// The groups of like failures, the largest first.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`], [`LedgerError::Schema`].
    pub async fn groups(&self, queue: Option<&str>, limit: u32) -> Result<Groups, LedgerError> {
        self.grouped(queue, limit)
            .await
            .map_err(|error| unusable(self.pool(), &error))
    }

    async fn grouped(&self, queue: Option<&str>, limit: u32) -> Result<Groups, sqlx::Error> {
        let (mut rows, mut partial) = (Vec::new(), false);
        for sort in [Path::GivenUp, Path::Retrying] {
            let mut of_sort = sqlx::query(sqlx::AssertSqlSafe(stuck(sort)))
                .bind(queue)
                .bind(MOST)
                .bind(LOOK)
                .fetch_all(self.pool())
                .await?;
            partial = partial
                || of_sort.len() as i64 > MOST
                || sqlx::query_scalar(sqlx::AssertSqlSafe(more(sort)))
                    .bind(LOOK)
                    .fetch_one(self.pool())
                    .await?;
            of_sort.truncate(MOST as usize);
            rows.extend(of_sort);
        }
        let mut groups: HashMap<(Option<String>, String), Group> = HashMap::new();
        for row in &rows {
            let handler: Option<String> = row.try_get("handler")?;
            let error = likeness(row.try_get("error")?);
            let (latest, example) = (row.try_get("latest")?, JobId(row.try_get("id")?));
            let failed = word::<JobStatus>(row, "status")? == JobStatus::Failed;
            let group = groups
                .entry((handler, error))
                .or_insert_with_key(|(handler, error)| Group {
                    id: group_id(handler.as_deref(), error),
                    handler: handler.clone(),
                    error: error.clone(),
                    jobs: 0,
                    failed: 0,
                    retrying: 0,
                    latest,
                    example,
                });
            group.jobs += 1;
            group.failed += i64::from(failed);
            group.retrying += i64::from(!failed);
            if latest > group.latest {
                (group.latest, group.example) = (latest, example);
            }
        }
        let mut groups: Vec<_> = groups.into_values().collect();
        groups.sort_unstable_by(|one, other| {
            (other.jobs, other.latest, &other.id).cmp(&(one.jobs, one.latest, &one.id))
        });
        groups.truncate(limit as usize);
        Ok(Groups { groups, partial })
    }
}
