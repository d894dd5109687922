//! Advance: a task's SUCCESS, and what comes next, in one commit.
//!
//! SUCCESS of task k and PROCESSING of task k+1 share a commit, so N tasks cost N+1 commits and no reader can tell. Locks:
//! the job's row first when the job ends here, then its tasks. A crash before the commit leaves task k PROCESSING, and the
//! next claim finds it so; after it, the next claim begins at k+1.

use serde_json::value::RawValue;
use sqlx::{PgConnection, Postgres, Row, pool::PoolConnection, postgres::PgRow};
use sqlx_core::transaction::TransactionManager;
use tokio::time::timeout;

use super::{
    Holder,
    connect::sentence,
    lane::{NO_ANSWER, Verb},
    transaction::{Manager, discard, give_back},
};
use crate::job::{Epoch, JobId, Position};

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
    fn as_str(self) -> &'static str {
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

/// The statement, over rows of `(job_id, position, epoch, attempt, result, next)`.
///
/// `IN` stands inside an `OR` so that the planner hashes the small list instead of joining row by row with it. The count is
/// there to be reckoned first: every job's row is locked before the first task's, as the claim does it.
macro_rules! advance {
    ($rows:literal) => {
        concat!(
            "WITH v AS (",
            $rows,
            r")
, ended AS (
    UPDATE cliquet.jobs job
       SET status = CASE v.next WHEN 'finish' THEN 'SUCCESS' ELSE 'PENDING' END::cliquet.job_status, holder = NULL,
           finished_at = CASE v.next WHEN 'finish' THEN clock_timestamp() END,
           next_attempt_at = CASE v.next WHEN 'hand_back' THEN clock_timestamp() END
      FROM v WHERE v.next <> 'task' AND job.id >= v.job_id AND job.id <= v.job_id AND job.epoch = v.epoch AND job.status = 'PROCESSING'
               AND (v.next <> 'finish' OR v.position = job.total)
               AND (SELECT task.status = 'PROCESSING' AND task.epoch = v.epoch AND task.attempt = v.attempt
                      FROM cliquet.tasks task WHERE task.job_id = v.job_id AND task.position = v.position)
    RETURNING job.id
), done AS (
    UPDATE cliquet.tasks task SET status = 'SUCCESS', finished_at = clock_timestamp(), result = v.result::json
      FROM v WHERE (task.job_id, task.position) >= (v.job_id, v.position) AND (task.job_id, task.position) <= (v.job_id, v.position)
               AND task.status = 'PROCESSING'
               AND task.epoch = v.epoch AND task.attempt = v.attempt
               AND (v.next = 'task' OR v.job_id IN (SELECT ended.id FROM ended)) AND (SELECT count(*) FROM ended) >= 0
    RETURNING task.job_id, task.position, task.epoch, v.next
), begun AS (
    UPDATE cliquet.tasks task SET status = 'PROCESSING', epoch = done.epoch, attempt = task.attempt + 1, started_at = clock_timestamp()
      FROM done WHERE done.next = 'task' AND (task.job_id, task.position) >= (done.job_id, done.position + 1)
                              AND (task.job_id, task.position) <= (done.job_id, done.position + 1) AND task.status = 'PENDING'
)
SELECT done.job_id FROM done"
        )
    };
}

pub(super) const ADVANCE_MANY: &str = advance!(
    "SELECT * FROM unnest($1::uuid[], $2::int4[], $3::int8[], $4::int4[], $5::text[], $6::text[]) AS v (job_id, position, epoch, attempt, result, next)"
);
const ADVANCE_ONE: &str = advance!(
    "SELECT $1::uuid AS job_id, $2::int4 AS position, $3::int8 AS epoch, $4::int4 AS attempt, $5::text AS result, $6::text AS next"
);

/// Where the tasks stand now. It waits for whoever is writing them, so what it says is settled.
const FATE: &str = r"
SELECT task.job_id, task.status::text, task.epoch, task.attempt
  FROM unnest($1::uuid[], $2::int4[]) AS v (job_id, position)
  JOIN cliquet.tasks task ON (task.job_id, task.position) >= (v.job_id, v.position) AND (task.job_id, task.position) <= (v.job_id, v.position)
 ORDER BY v.job_id FOR NO KEY UPDATE OF task";

impl Verb for Advance {
    type Answer = Written;

    fn job(&self) -> JobId {
        self.stand.job
    }

    fn weight(&self) -> usize {
        1 + self.result.get().len() / 1024
    }

    async fn write(
        connection: &mut PgConnection,
        _holder: &Holder,
        group: &[&Self],
    ) -> Result<Vec<Option<Written>>, sqlx::Error> {
        let ids: Vec<_> = group.iter().map(|advance| advance.stand.job.0).collect();
        let rows = sqlx::query(ADVANCE_MANY)
            .bind(&ids)
            .bind(
                group
                    .iter()
                    .map(|advance| advance.stand.position)
                    .collect::<Vec<_>>(),
            )
            .bind(
                group
                    .iter()
                    .map(|advance| advance.stand.epoch.0)
                    .collect::<Vec<_>>(),
            )
            .bind(
                group
                    .iter()
                    .map(|advance| advance.stand.attempt as i32)
                    .collect::<Vec<_>>(),
            )
            .bind(
                group
                    .iter()
                    .map(|advance| stored(&advance.result))
                    .collect::<Vec<_>>(),
            )
            .bind(
                group
                    .iter()
                    .map(|advance| advance.next.as_str())
                    .collect::<Vec<_>>(),
            )
            .fetch_all(&mut *connection)
            .await?;
        let stands: Vec<_> = group.iter().map(|advance| advance.stand).collect();
        written(connection, &rows, &stands, "SUCCESS").await
    }
}

/// Which of a group's writes took effect: `rows` name the jobs whose rows were changed, `stands` are sorted by job.
///
/// Whoever changed no row is fenced, or was committed by a write whose answer was lost, or is to be asked again.
pub(super) async fn written(
    connection: &mut PgConnection,
    rows: &[PgRow],
    stands: &[Stand],
    wanted: &str,
) -> Result<Vec<Option<Written>>, sqlx::Error> {
    let mut answers: Vec<Option<Written>> = vec![None; stands.len()];
    for row in rows {
        let job = JobId(row.try_get("job_id")?);
        if let Ok(index) = stands.binary_search_by_key(&job, |stand| stand.job) {
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
/// (`None`) if it still stands where they would write, fenced otherwise.
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
        let status: &str = row.try_get("status")?;
        for (stand, fate) in stands.iter().zip(&mut fates) {
            if stand.job.0 == id && stand.epoch.0 == epoch && stand.attempt as i32 == attempt {
                *fate = match status {
                    status if status == wanted => Some(Written::Committed),
                    "PROCESSING" => None,
                    _ => Some(Written::Fenced),
                };
            }
        }
    }
    Ok(fates)
}

/// `null` is stored as NULL: most tasks answer nothing, and a row without it is smaller.
fn stored(result: &RawValue) -> Option<&str> {
    Some(result.get()).filter(|&result| result != "null")
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
    /// Writes the SUCCESS in the handler's own transaction and commits it, so that both are there or neither.
    pub(super) async fn commit_with(&self, mut transaction: PoolConnection<Postgres>) -> Committed {
        let stand = self.stand;
        // A commit would only release the savepoint of an inner transaction that the handler forgot.
        if Manager::get_transaction_depth(&transaction) != 1 {
            discard(Some(transaction));
            return Committed::No(
                "the handler left a nested transaction open; end it before the handler returns"
                    .into(),
            );
        }
        // A server that does not answer has its connection closed here, and the connection is never used again.
        let written = sqlx::query(ADVANCE_ONE)
            .bind(stand.job.0)
            .bind(stand.position)
            .bind(stand.epoch.0)
            .bind(stand.attempt as i32)
            .bind(stored(&self.result))
            .bind(self.next.as_str())
            .fetch_optional(&mut *transaction);
        let written = match timeout(NO_ANSWER, written).await {
            Ok(written) => written,
            Err(_) => Err(no_answer()),
        };
        match written {
            Ok(Some(_)) => match timeout(NO_ANSWER, Manager::commit(&mut transaction))
                .await
                .unwrap_or_else(|_| Err(no_answer()))
            {
                Ok(_) => {
                    give_back(transaction);
                    Committed::Yes
                }
                Err(error) => {
                    discard(Some(transaction));
                    match error.as_database_error().and_then(|error| error.code()) {
                        // 08 and 57P: the connection or the server went down in the midst of it.
                        Some(code) if !code.starts_with("08") && !code.starts_with("57P") => {
                            Committed::No(sentence(&error))
                        }
                        _ => Committed::Unknown(sentence(&error)),
                    }
                }
            },
            Ok(None) => {
                roll_back(transaction).await;
                Committed::Fenced
            }
            Err(error) => {
                discard(Some(transaction));
                Committed::No(sentence(&error))
            }
        }
    }
}

fn no_answer() -> sqlx::Error {
    sqlx::Error::Protocol(format!(
        "no answer from Postgres for {} s",
        NO_ANSWER.as_secs()
    ))
}

/// Ends a handler's transaction after a failure that left its connection in order.
pub(crate) async fn roll_back(mut transaction: PoolConnection<Postgres>) {
    if Manager::get_transaction_depth(&transaction) != 1 {
        return discard(Some(transaction));
    }
    match timeout(NO_ANSWER, Manager::rollback(&mut transaction)).await {
        Ok(Ok(_)) => give_back(transaction),
        _ => discard(Some(transaction)),
    }
}
