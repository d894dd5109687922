//! Defer: a holder puts its job off without a failure; the attempt that was begun is not counted.
//!
//! What a braked handler's tasks do: they wait on a rung as after a failure, with the reason where people look for it, and
//! no attempt is used up. A probe of such a handler has run and failed; it is kept in the history and not counted either.
//!
//! As in a failure, one commit writes the next generation and when the job is due, and only then is the copy sent. Locks: the
//! jobs' rows, then their tasks (the answer is read from `ended`, so all of it comes before `put_off`). A crash before the commit
//! leaves the task PROCESSING under a dead holder (row 9); after it and before the copy is confirmed, the old message comes
//! back as an older generation and the copy is sent then (row 6), or the reconciler sends it once it is overdue.

use std::time::Duration;

use sqlx::{PgConnection, Row};

use super::{
    Holder,
    advance::{Stand, Written, written},
    fail::storable,
    lane::{Verb, column},
};
use crate::{fail_point::cut, job::JobId, metrics::Transition};

/// The task that stands here is put off.
#[derive(Debug)]
pub(crate) struct Defer {
    pub(crate) stand: Stand,
    /// Why, as people read it.
    pub(crate) reason: String,
    /// When to look again.
    pub(crate) retry_in: Duration,
    /// The error of an attempt that was made and is not counted, for the history.
    pub(crate) failure: Option<String>,
}

pub(super) const DEFER: &str = r"
WITH v AS (
    SELECT * FROM unnest($1::uuid[], $2::int4[], $3::int8[], $4::int4[], $5::text[], $6::float8[], $7::text[])
        AS v (job_id, position, epoch, attempt, reason, delay, failure)
), ended AS (
    UPDATE cliquet.jobs job
       SET status = 'RETRYING', holder = NULL, generation = least(job.generation + 1, 1000000000), error = v.reason,
           next_attempt_at = clock_timestamp() + make_interval(secs => v.delay)
      FROM v WHERE job.id = ANY (ARRAY[v.job_id]) AND job.epoch = v.epoch AND job.status = 'PROCESSING'
               AND (SELECT task.status = 'PROCESSING' AND task.epoch = v.epoch AND task.attempt = v.attempt
                      FROM cliquet.tasks task WHERE task.job_id = v.job_id AND task.position = v.position)
    RETURNING v.*
), put_off AS (
    UPDATE cliquet.tasks task SET status = 'PENDING', attempt = task.attempt - 1,
           started_at = CASE WHEN ended.failure IS NOT NULL THEN task.started_at END
      FROM ended WHERE task.job_id = ANY (ARRAY[ended.job_id]) AND task.position = ended.position AND task.status = 'PROCESSING'
                   AND task.epoch = ended.epoch AND task.attempt = ended.attempt
    RETURNING task.job_id, task.position, task.epoch, task.started_at, ended.attempt, ended.failure
), recorded AS (
    INSERT INTO cliquet.failures (job_id, position, epoch, attempt, worker, error, started_at)
    SELECT put_off.job_id, put_off.position, put_off.epoch, put_off.attempt, $8, put_off.failure, put_off.started_at
      FROM put_off WHERE put_off.failure IS NOT NULL
    ON CONFLICT DO NOTHING
)
SELECT ended.job_id FROM ended";

impl Verb for Defer {
    type Answer = Written;
    const TRANSITION: Transition = Transition::Defer;

    fn job(&self) -> JobId {
        self.stand.job
    }

    async fn write(
        connection: &mut PgConnection,
        holder: &Holder,
        group: &[&Self],
    ) -> Result<Vec<Option<Written>>, sqlx::Error> {
        cut!(BeforeDefer);
        let rows = sqlx::query(DEFER)
            .bind(column(group, |defer| defer.stand.job.0))
            .bind(column(group, |defer| defer.stand.position))
            .bind(column(group, |defer| defer.stand.epoch.0))
            .bind(column(group, |defer| defer.stand.attempt as i32))
            .bind(column(group, |defer| storable(&defer.reason)))
            .bind(column(group, |defer| defer.retry_in.as_secs_f64()))
            .bind(column(group, |defer| {
                defer.failure.as_deref().map(storable)
            }))
            .bind(&holder.name)
            .fetch_all(&mut *connection)
            .await?;
        cut!(AfterDefer);
        let changed = rows
            .iter()
            .map(|row| row.try_get("job_id").map(JobId))
            .collect::<Result<Vec<_>, _>>()?;
        // Where a deferral that is committed has left its task: one attempt back, under the same epoch.
        let left = column(group, |defer| Stand {
            attempt: defer.stand.attempt.saturating_sub(1),
            ..defer.stand
        });
        written(connection, &changed, &left, "PENDING").await
    }
}
