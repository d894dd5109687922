//! What people did to a job: who, when, what and why.
//!
//! An act on the job's rows writes its row here in the same commit. A retry changes nothing in the ledger, so its row is
//! written when its copy is confirmed: a crash between the two leaves a retry that nobody wrote down.

use std::{fmt, future::Future, str::FromStr};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool, Row};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    LedgerError,
    connect::{Recovery, sentence},
    read::{unusable, word},
};
use crate::job::{JobId, Position};

/// The longest name of an operator that is kept, in characters.
const LONGEST_NAME: usize = 200;
/// The longest reason that is kept, in characters.
const LONGEST_REASON: usize = 2_000;

/// Whoever acts waits no longer: a row that somebody keeps locked would hold up every other act.
pub(super) const BOUNDED: &str =
    "SET LOCAL lock_timeout = '5s'; SET LOCAL statement_timeout = '15s'";
/// After so many deadlocks in a row something else is wrong.
const MOST_REPEATS: u32 = 10;

/// Who acts, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct By {
    /// The name that colleagues will read.
    pub operator: String,
    /// Why, in their words.
    pub reason: Option<String>,
}

impl By {
    /// As it can be kept: no NUL, nothing empty, nothing endless.
    pub fn new(operator: &str, reason: Option<&str>) -> Self {
        let kept = |text: &str, longest| {
            let text = text.replace('\0', "\u{fffd}");
            let text: String = text.trim().chars().take(longest).collect();
            Some(text).filter(|text| !text.is_empty())
        };
        Self {
            operator: kept(operator, LONGEST_NAME).unwrap_or_else(|| "unknown".to_owned()),
            reason: reason.and_then(|reason| kept(reason, LONGEST_REASON)),
        }
    }
}

/// What somebody did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Act {
    /// Sent the job's message again.
    Retry,
    /// Ended the job.
    Cancel,
    /// Took a task for done that was not.
    Skip,
}

impl Act {
    /// The word, as the ledger keeps it.
    pub fn as_str(self) -> &'static str {
        match self {
            Act::Retry => "retry",
            Act::Cancel => "cancel",
            Act::Skip => "skip",
        }
    }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Act {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [Act::Retry, Act::Cancel, Act::Skip]
            .into_iter()
            .find(|act| act.as_str() == text)
            .ok_or_else(|| format!("there is no act {text:?}"))
    }
}

/// What somebody did to a job.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Intervention {
    /// When it was written down.
    pub at: DateTime<Utc>,
    /// What it was.
    pub act: Act,
    /// Who did it, as they called themselves.
    pub operator: String,
    /// Why, in their words.
    pub reason: Option<String>,
    /// The task that was skipped.
    pub position: Option<Position>,
}

/// What was pruned meanwhile has no history: nothing would take such a row away.
const RECORD: &str = r"
INSERT INTO cliquet.interventions (job_id, act, operator, reason, position)
SELECT job.id, $2, $3, $4, $5 FROM cliquet.jobs job WHERE job.id = ANY ($1)";

/// Writes down one act on these jobs, on a connection that may have a transaction open.
pub(super) async fn record(
    connection: &mut PgConnection,
    jobs: &[Uuid],
    act: Act,
    by: &By,
    position: Option<Position>,
) -> Result<(), sqlx::Error> {
    sqlx::query(RECORD)
        .bind(jobs)
        .bind(act.as_str())
        .bind(&by.operator)
        .bind(&by.reason)
        .bind(position)
        .execute(connection)
        .await?;
    Ok(())
}

/// One act, which is a transaction of its own: again after a deadlock, and told with its cause otherwise.
pub(super) async fn repeated<T, F>(
    pool: &PgPool,
    mut attempt: impl FnMut() -> F,
) -> Result<T, LedgerError>
where
    F: Future<Output = Result<T, sqlx::Error>>,
{
    let mut repeats = 0;
    loop {
        match attempt().await {
            Ok(done) => return Ok(done),
            Err(error) if Recovery::of(&error) == Recovery::Repeat && repeats < MOST_REPEATS => {
                repeats += 1;
            }
            Err(error) => return Err(refused(pool, &error)),
        }
    }
}

/// Writes down that somebody sent a job again. Of a job that the ledger does not know, nothing is written.
///
/// # Errors
/// As every act: see [`refused`].
pub(crate) async fn record_retry(pool: &PgPool, job: JobId, by: &By) -> Result<(), LedgerError> {
    let recorded = async {
        let mut connection = pool.acquire().await?;
        record(&mut connection, &[job.0], Act::Retry, by, None).await
    };
    recorded.await.map_err(|error| refused(pool, &error))
}

/// An operator has each of these columns and not the table: when it was, and in which order, is Postgres's to say.
const MAY: &str = r"
SELECT bool_and(has_column_privilege('cliquet.interventions', name, 'INSERT')),
       current_setting('transaction_read_only')::bool
  FROM unnest(ARRAY['job_id', 'position', 'act', 'operator', 'reason']) AS name";

/// Whether this user may write down what it does: asked before something is done that cannot be taken back.
///
/// # Errors
/// [`LedgerError::Denied`] when it may not, [`LedgerError::Unavailable`], [`LedgerError::Schema`].
pub(crate) async fn may_act(pool: &PgPool) -> Result<(), LedgerError> {
    let (may, reads): (bool, bool) = sqlx::query_as(MAY)
        .fetch_one(pool)
        .await
        .map_err(|error| refused(pool, &error))?;
    match (may, reads) {
        (false, _) => Err(denied(
            pool,
            "permission denied for table interventions (SQLSTATE 42501)",
        )),
        (true, true) => Err(LedgerError::Denied(
            "this session of Postgres only reads (a standby, or `default_transaction_read_only`): nothing can be changed there"
                .to_owned(),
        )),
        (true, false) => Ok(()),
    }
}

/// How the sentence about a lock that was not to be had begins.
const LOCKED: &str = "somebody keeps the job locked";

impl LedgerError {
    /// Whether an act was not done since somebody keeps the job locked.
    pub(crate) fn is_locked(&self) -> bool {
        matches!(self, Self::Unavailable(sentence) if sentence.starts_with(LOCKED))
    }
}

/// An act's error as people read it. A right that is missing is told with the grant.
pub(super) fn refused(pool: &PgPool, error: &sqlx::Error) -> LedgerError {
    let code = error.as_database_error().and_then(|error| error.code());
    match code.as_deref() {
        Some("42501") => denied(pool, &sentence(error)),
        // 25006: a standby, or a session that only reads.
        Some("25006") => {
            LedgerError::Denied(format!("{}: nothing can be changed there", sentence(error)))
        }
        Some("55P03") => LedgerError::Unavailable(format!(
            "{LOCKED} with a transaction that is open: nothing was changed. Ask again when it has ended (SQLSTATE 55P03)"
        )),
        _ if Recovery::of(error) == Recovery::Refused => LedgerError::Refused(sentence(error)),
        _ => unusable(pool, error),
    }
}

fn denied(pool: &PgPool, words: &str) -> LedgerError {
    let user = pool.connect_options().get_username().replace('"', "\"\"");
    LedgerError::Denied(format!(
        "{words}. Who retries, cancels and skips needs the role `cliquet_operator` of deploy/postgres-roles.sql: GRANT cliquet_operator TO \"{user}\""
    ))
}

/// What was done to a job, oldest first.
pub(super) async fn interventions(
    connection: &mut PgConnection,
    id: JobId,
) -> Result<Vec<Intervention>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT at, act, operator, reason, position FROM cliquet.interventions WHERE job_id = $1 ORDER BY id",
    )
    .bind(id.0)
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(Intervention {
                at: row.try_get("at")?,
                act: word(row, "act")?,
                operator: row.try_get("operator")?,
                reason: row.try_get("reason")?,
                position: row.try_get("position")?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_and_why_can_be_kept_whatever_they_are() {
        let by = By::new(" ada\0 ", Some(" \n"));
        assert_eq!(
            by,
            By {
                operator: "ada\u{fffd}".into(),
                reason: None
            }
        );
        assert_eq!(By::new("", None).operator, "unknown");
        let long = By::new(&"é".repeat(9_000), Some(&"x".repeat(9_000)));
        assert_eq!(long.operator.chars().count(), LONGEST_NAME);
        assert_eq!(long.reason.map(|reason| reason.len()), Some(LONGEST_REASON));
    }
}
