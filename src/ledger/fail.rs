//! Fail: one commit writes FAILED, the error, the next generation and when the job is due; only then is its copy sent.
//!
//! Locks: the jobs' rows, then their tasks (the answer is read from `ended`, so all of it comes before `failed`). A crash before
//! the commit leaves the task PROCESSING under a dead holder (row 9); after it and before the copy is confirmed, the old
//! message comes back as an older generation and the copy is sent then (rows 3 and 6).

use std::time::Duration;

use sqlx::{PgConnection, Row};

use super::{
    Holder,
    advance::{Stand, Written, written},
    lane::{Verb, column},
};
use crate::{fail_point::cut, job::JobId, metrics::Transition};

/// One attempt failed.
#[derive(Debug)]
pub(crate) struct Fail {
    pub(crate) stand: Stand,
    /// The error as people read it.
    pub(crate) error: String,
    /// When to try again; never, when the job is given up.
    pub(crate) retry_in: Option<Duration>,
}

pub(super) const FAIL: &str = r"
WITH v AS (
    SELECT * FROM unnest($1::uuid[], $2::int4[], $3::int8[], $4::int4[], $5::text[], $6::float8[])
        AS v (job_id, position, epoch, attempt, error, delay)
), ended AS (
    UPDATE cliquet.jobs job
       SET status = CASE WHEN v.delay IS NULL THEN 'FAILED' ELSE 'RETRYING' END::cliquet.job_status, holder = NULL,
           generation = least(job.generation + 1, 1000000000), error = v.error,
           next_attempt_at = clock_timestamp() + make_interval(secs => v.delay),
           finished_at = CASE WHEN v.delay IS NULL THEN clock_timestamp() END
      FROM v WHERE job.id = ANY (ARRAY[v.job_id]) AND job.epoch = v.epoch AND job.status = 'PROCESSING'
               AND (SELECT task.status = 'PROCESSING' AND task.epoch = v.epoch AND task.attempt = v.attempt
                      FROM cliquet.tasks task WHERE task.job_id = v.job_id AND task.position = v.position)
    RETURNING v.*
), failed AS (
    UPDATE cliquet.tasks task SET status = 'FAILED', finished_at = clock_timestamp(), error = ended.error
      FROM ended WHERE task.job_id = ANY (ARRAY[ended.job_id]) AND task.position = ended.position AND task.status = 'PROCESSING'
                   AND task.epoch = ended.epoch AND task.attempt = ended.attempt
    RETURNING task.job_id, task.position, task.epoch, task.attempt, task.error, task.started_at
), recorded AS (
    INSERT INTO cliquet.failures (job_id, position, epoch, attempt, worker, error, started_at)
    SELECT failed.job_id, failed.position, failed.epoch, failed.attempt, $7, failed.error, failed.started_at FROM failed
    ON CONFLICT DO NOTHING
)
SELECT ended.job_id FROM ended";

impl Verb for Fail {
    type Answer = Written;
    const TRANSITION: Transition = Transition::Fail;

    fn job(&self) -> JobId {
        self.stand.job
    }

    async fn write(
        connection: &mut PgConnection,
        holder: &Holder,
        group: &[&Self],
    ) -> Result<Vec<Option<Written>>, sqlx::Error> {
        cut!(BeforeFail);
        let rows = sqlx::query(FAIL)
            .bind(column(group, |fail| fail.stand.job.0))
            .bind(column(group, |fail| fail.stand.position))
            .bind(column(group, |fail| fail.stand.epoch.0))
            .bind(column(group, |fail| fail.stand.attempt as i32))
            .bind(column(group, |fail| storable(&fail.error)))
            .bind(column(group, |fail| {
                fail.retry_in.map(|delay| delay.as_secs_f64())
            }))
            .bind(&holder.name)
            .fetch_all(&mut *connection)
            .await?;
        cut!(AfterFail);
        let stands = column(group, |fail| fail.stand);
        let changed = rows
            .iter()
            .map(|row| row.try_get("job_id").map(JobId))
            .collect::<Result<Vec<_>, _>>()?;
        written(connection, &changed, &stands, "FAILED").await
    }
}

/// The longest error that is kept, in bytes.
const LONGEST_ERROR: usize = 16 * 1024;

/// The error as Postgres can keep it: no NUL, not empty, not endless.
pub(super) fn storable(error: &str) -> String {
    let mut text = error.replace('\0', "\u{fffd}");
    if text.len() > LONGEST_ERROR {
        text.truncate(text.floor_char_boundary(LONGEST_ERROR));
        text.push_str(" … (cut)");
    }
    if text.trim().is_empty() {
        text = "the handler failed without a word".into();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_error_can_be_kept() {
        assert_eq!(storable("a\0b"), "a\u{fffd}b");
        assert_eq!(storable(" \n"), "the handler failed without a word");
        assert!(storable(&"é".repeat(20_000)).len() < LONGEST_ERROR + 20);
    }
}
