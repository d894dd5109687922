//! Advance: a task's SUCCESS, and what comes next, in one commit.
//!
//! SUCCESS of task k and PROCESSING of task k+1 share a commit, so N tasks cost N+1 commits and no reader can tell. Locks:
//! the job's row first when the job ends here, then its tasks. A crash before the commit leaves task k PROCESSING, and the
//! next claim finds it so; after it, the next claim begins at k+1.

use serde_json::value::RawValue;
use sqlx::{PgConnection, Row};

use super::{connect::sentence, transaction::Open};
use crate::{
    fail_point::cut,
    job::{Epoch, JobId, Position},
};

/// Which attempt a write speaks for: the fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stand {
    pub(crate) job: JobId,
    pub(crate) position: Position,
    pub(crate) epoch: Epoch,
    pub(crate) attempt: u32,
}

/// What comes after a task's SUCCESS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// The next task begins.
    Task,
    /// It was the last: the job is SUCCESS.
    Finish,
    /// The rest of the job is handed back, for this or another worker to claim.
    HandBack,
}

impl Next {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Next::Task => "task",
            Next::Finish => "finish",
            Next::HandBack => "hand_back",
        }
    }
}

/// One task ended well.
#[derive(Debug)]
pub(crate) struct Advance {
    pub(crate) stand: Stand,
    pub(crate) result: Box<RawValue>,
    pub(crate) next: Next,
}

/// Whether a write took effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// It is committed, by this call or by an earlier one whose answer was lost.
    Committed,
    /// Somebody else owns the job: nothing was changed.
    Fenced,
}

/// What the migration's function fails with when somebody else owns the job.
const FENCED: &str = "CQ001";

/// Where the tasks stand now, and whether the job is still at the epoch of the task. It waits for whoever is writing them, so
/// what it says is settled.
pub(super) const FATE: &str = r"
SELECT task.job_id, task.status::text, task.epoch, task.attempt, job.epoch = task.epoch AS ours
  FROM unnest($1::uuid[], $2::int4[]) AS v (job_id, position)
  JOIN cliquet.tasks task ON task.job_id = ANY (ARRAY[v.job_id]) AND task.position = v.position
  JOIN cliquet.jobs job ON job.id = ANY (ARRAY[v.job_id])
 ORDER BY v.job_id FOR NO KEY UPDATE OF task";

impl Advance {
    /// How heavy it is in a group, in rows.
    pub(super) fn weight(&self) -> usize {
        1 + self.result.get().len() / 1024
    }

    /// `null` is stored as NULL: most tasks answer nothing, and a row without it is smaller.
    pub(super) fn stored(&self) -> Option<&str> {
        Some(self.result.get()).filter(|&result| result != "null")
    }
}

/// Which of a group's writes took effect: `changed` are the jobs whose rows were changed, `stands` are sorted by job.
///
/// Whoever changed no row is fenced, or was committed by a write whose answer was lost, or is to be asked again.
pub(super) async fn written(
    connection: &mut PgConnection,
    changed: &[JobId],
    stands: &[Stand],
    wanted: &str,
) -> Result<Vec<Option<Written>>, sqlx::Error> {
    let mut answers: Vec<Option<Written>> = vec![None; stands.len()];
    for job in changed {
        if let Ok(index) = stands.binary_search_by_key(job, |stand| stand.job) {
            answers[index] = Some(Written::Committed);
        }
    }
    let missed: Vec<_> = (0..stands.len())
        .filter(|&index| answers[index].is_none())
        .collect();
    if !missed.is_empty() {
        let asked: Vec<_> = missed.iter().map(|&index| stands[index]).collect();
        for (index, fate) in missed
            .into_iter()
            .zip(fates(connection, &asked, wanted).await?)
        {
            answers[index] = fate;
        }
    }
    Ok(answers)
}

/// What became of earlier writes: committed if the task ended as they wanted under their epoch and attempt, undecided
/// (`None`) if it still stands where they would write, fenced otherwise. Fenced, too, if they were committed and somebody
/// else has claimed the job since: who learns of its commit so late must not begin the next task.
pub(crate) async fn fates(
    connection: &mut PgConnection,
    stands: &[Stand],
    wanted: &str,
) -> Result<Vec<Option<Written>>, sqlx::Error> {
    let rows = sqlx::query(FATE)
        .bind(stands.iter().map(|stand| stand.job.0).collect::<Vec<_>>())
        .bind(
            stands
                .iter()
                .map(|stand| stand.position)
                .collect::<Vec<_>>(),
        )
        .fetch_all(connection)
        .await?;
    let mut fates = vec![Some(Written::Fenced); stands.len()];
    for row in rows {
        let id: uuid::Uuid = row.try_get("job_id")?;
        let (epoch, attempt): (i64, i32) = (row.try_get("epoch")?, row.try_get("attempt")?);
        let (status, ours): (&str, bool) = (row.try_get("status")?, row.try_get("ours")?);
        for (stand, fate) in stands.iter().zip(&mut fates) {
            if stand.job.0 == id && stand.epoch.0 == epoch && stand.attempt as i32 == attempt {
                *fate = match status {
                    status if status == wanted && ours => Some(Written::Committed),
                    "PROCESSING" => None,
                    _ => Some(Written::Fenced),
                };
            }
        }
    }
    Ok(fates)
}

/// How a handler's own transaction ended.
#[derive(Debug)]
pub(crate) enum Committed {
    /// The writes and the SUCCESS are there.
    Yes,
    /// Somebody else owns the job; the writes were rolled back.
    Fenced,
    /// Postgres refused it, or the connection died before it was committed; the writes were rolled back.
    No(String),
    /// The connection died with the commit's outcome unknown: the ledger has to be asked.
    Unknown(String),
}

impl Advance {
    /// Writes the SUCCESS in the handler's own transaction and commits it, so that both are there or neither: in one round
    /// trip, since a refusal of the first statement keeps the second from being run.
    pub(super) async fn commit_with(&self, open: Open) -> Committed {
        // A commit would only release the savepoint of an inner transaction that the handler forgot.
        if !open.session.is_whole() {
            return Committed::No(
                "the handler left a nested transaction open; end it before the handler returns"
                    .into(),
            );
        }
        cut!(BeforeCommit);
        let ended = open.commit(&self.succeed_and_commit()).await;
        cut!(AfterCommit);
        let (error, open) = match ended {
            Ok(()) => return Committed::Yes,
            Err(refused) => refused,
        };
        match error.as_database_error().and_then(|error| error.code()) {
            Some(code) if code == FENCED => {
                open.roll_back().await;
                Committed::Fenced
            }
            // 08 and 57P: the connection or the server went down in the midst of it.
            Some(code) if !code.starts_with("08") && !code.starts_with("57P") => {
                Committed::No(sentence(&error))
            }
            _ => Committed::Unknown(sentence(&error)),
        }
    }

    fn succeed_and_commit(&self) -> String {
        let Stand {
            job,
            position,
            epoch,
            attempt,
        } = self.stand;
        let result = self.stored().map_or("NULL".into(), literal);
        format!(
            "SELECT cliquet.succeed('{job}', {position}, {}, {attempt}, {result}, '{}'); COMMIT",
            epoch.0,
            self.next.as_str()
        )
    }
}

/// A text as a literal of SQL, the same whatever the session's `standard_conforming_strings`.
fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', r"\\").replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_literal_ends_nowhere_but_at_its_end() {
        assert_eq!(literal(r"it's"), r"E'it''s'");
        assert_eq!(literal(r"a\'; COMMIT; --"), r"E'a\\''; COMMIT; --'");
    }
}
