//! Release: a holder hands its job back, and the attempt that was cut short is not counted.
//!
//! Committed before the delivery is given back, so that whoever receives it finds the job unheld. Locks: the jobs' rows, then
//! their tasks (the answer is read from `ended`, so all of it comes before `handed_back`). A crash before the commit is a crash of
//! the holder (row 9); after it, the delivery comes back by itself.

use sqlx::{PgConnection, Row};

use super::{
    Holder,
    advance::Written,
    lane::{Verb, column},
};
use crate::{
    fail_point::cut,
    job::{Epoch, JobId},
    metrics::Transition,
};

/// The job is handed back in the middle of an attempt.
#[derive(Debug)]
pub(crate) struct Release {
    pub(crate) job: JobId,
    pub(crate) epoch: Epoch,
}

pub(super) const RELEASE: &str = r"
WITH v AS (
    SELECT * FROM unnest($1::uuid[], $2::int8[]) AS v (job_id, epoch)
), ended AS (
    UPDATE cliquet.jobs job SET status = 'PENDING', holder = NULL, next_attempt_at = clock_timestamp()
      FROM v WHERE job.id = ANY (ARRAY[v.job_id]) AND job.epoch = v.epoch AND job.status = 'PROCESSING'
    RETURNING v.*
), handed_back AS (
    UPDATE cliquet.tasks task SET status = 'PENDING', attempt = task.attempt - 1, started_at = NULL
      FROM ended WHERE task.job_id = ANY (ARRAY[ended.job_id]) AND task.status = 'PROCESSING'
                   AND task.epoch = ended.epoch
)
SELECT ended.job_id FROM ended";

impl Verb for Release {
    type Answer = Written;
    const TRANSITION: Transition = Transition::Release;

    fn job(&self) -> JobId {
        self.job
    }

    /// A release that changes no row is either repeated or fenced; its caller does the same after both: the next claim decides.
    async fn write(
        connection: &mut PgConnection,
        _holder: &Holder,
        group: &[&Self],
    ) -> Result<Vec<Option<Written>>, sqlx::Error> {
        cut!(BeforeRelease);
        let ids = column(group, |release| release.job.0);
        let rows = sqlx::query(RELEASE)
            .bind(&ids)
            .bind(column(group, |release| release.epoch.0))
            .fetch_all(connection)
            .await?;
        cut!(AfterRelease);
        let mut answers = vec![Some(Written::Fenced); group.len()];
        for row in rows {
            if let Ok(index) = ids.binary_search(&row.try_get("job_id")?) {
                answers[index] = Some(Written::Committed);
            }
        }
        Ok(answers)
    }
}
