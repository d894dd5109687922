//! Sent: the broker has confirmed the copy of this generation. Written lazily and never awaited: without it a copy is sent
//! once more, which is harmless; with it an older copy is acknowledged plainly and the reconciler knows what is owed.

use sqlx::PgConnection;

use super::{
    Holder,
    lane::{Verb, column},
};
use crate::{
    fail_point::cut,
    job::{Generation, JobId},
    metrics::Transition,
};

/// A copy is confirmed.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) job: JobId,
    pub(crate) generation: Generation,
}

/// A copy that waits on a rung carries its message's own generation, which somebody may have forged: what the ledger never gave
/// out was not sent, and a successor taken for sent would be lost.
pub(super) const SENT: &str = r"
UPDATE cliquet.jobs job SET sent = v.generation
  FROM unnest($1::uuid[], $2::int8[]) AS v (job_id, generation)
 WHERE job.id = ANY (ARRAY[v.job_id]) AND job.sent < v.generation AND v.generation <= job.generation";

impl Verb for Sent {
    type Answer = ();
    const TRANSITION: Transition = Transition::Sent;

    fn job(&self) -> JobId {
        self.job
    }

    async fn write(
        connection: &mut PgConnection,
        _holder: &Holder,
        group: &[&Self],
    ) -> Result<Vec<Option<()>>, sqlx::Error> {
        cut!(BeforeSent);
        sqlx::query(SENT)
            .bind(column(group, |sent| sent.job.0))
            .bind(column(group, |sent| sent.generation.0))
            .execute(connection)
            .await?;
        cut!(AfterSent);
        Ok(vec![Some(()); group.len()])
    }
}
