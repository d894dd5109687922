//! Groups of like failures: what somebody who is called at night reads first.
//!
//! Of the jobs that were given up and those that wait after a failure, the newest of each are looked at, up to
//! [`LOOK`]: with more of them than that, the numbers are of those.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::Row;
use utoipa::ToSchema;

use super::{
    LedgerError,
    find::FRONTIER,
    likeness::{group_id, likeness},
    read::{Reads, unusable, word},
};
use crate::job::{JobId, JobStatus};

/// Jobs that are looked at, of each of the two sorts.
const LOOK: i64 = 5_000;

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

/// Each sort by its own index. What is CANCELLED lies among what was given up, and is left out.
fn stuck() -> String {
    let newest = |condition: &str| {
        format!(
            "(SELECT id, status, queue, error, created_at, finished_at FROM cliquet.jobs
               WHERE error IS NOT NULL AND {condition} ORDER BY created_at DESC, id DESC LIMIT $2)"
        )
    };
    format!(
        "SELECT j.id, j.status::text, left(j.error, 1000) AS error, t.handler,
                coalesce(t.finished_at, j.finished_at, j.created_at) AS latest
           FROM ({} UNION ALL {}) j LEFT JOIN LATERAL ({FRONTIER}) t ON true
          WHERE j.status IN ('FAILED', 'RETRYING') AND ($1::text IS NULL OR j.queue = $1)",
        newest("next_attempt_at IS NULL"),
        newest("next_attempt_at IS NOT NULL"),
    )
}

impl Reads {
    /// The groups of like failures, the largest first.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`], [`LedgerError::Schema`].
    pub async fn groups(&self, queue: Option<&str>, limit: u32) -> Result<Vec<Group>, LedgerError> {
        self.grouped(queue, limit)
            .await
            .map_err(|error| unusable(self.pool(), &error))
    }

    async fn grouped(&self, queue: Option<&str>, limit: u32) -> Result<Vec<Group>, sqlx::Error> {
        let rows = sqlx::query(sqlx::AssertSqlSafe(stuck()))
            .bind(queue)
            .bind(LOOK)
            .fetch_all(self.pool())
            .await?;
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
        Ok(groups)
    }
}
