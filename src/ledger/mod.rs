//! Postgres: the single source of truth, and the only place that writes SQL.

mod advance;
mod bench;
mod cancel;
mod claim;
mod connect;
mod defer;
mod describe;
mod due;
mod fail;
mod find;
mod groups;
mod health;
mod interventions;
mod lane;
mod likeness;
mod message;
mod overview;
mod plans;
mod presence;
mod prune;
mod read;
mod release;
mod schema;
mod sent;
mod skip;
mod step;
mod tally;
mod transaction;
mod workers;

#[cfg(test)]
mod tests;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sqlx::PgPool;
use tokio::time::{sleep, timeout};

pub use cancel::{CANCELLED_TASK, Cancelled, cancel};
pub use connect::LedgerAddress;
pub use find::{Cursor, Find, Found};
pub use groups::{Group, Groups};
pub use interventions::{Act, By, Intervention};
pub use message::{StoredMessage, message};
pub use overview::{Minute, Overview, StatusCount};
pub use read::{CurrentTask, FailureView, JobDetail, JobProgress, JobSummary, Reads, TaskView};
pub use schema::{MigrationState, check, migrate};
pub use skip::{Skipped, skip};
pub use transaction::{HandlerTransaction, Transaction};
pub use workers::{Running, WorkerView};

pub(crate) use advance::{Advance, Committed, Next, Stand, Written};
pub(crate) use bench::{Audit, Bench, EffectsTable, Updates, Watcher};
pub(crate) use claim::{Answer, Claim, Claimed, Way};
pub(crate) use defer::Defer;
pub(crate) use due::{Owed, Reconciling, What};
pub(crate) use fail::Fail;
pub(crate) use health::{
    Backlog, Duty, Health, Lacking, Limit, OPEN_TRANSACTIONS, ParkedGroup, RELOAD, Server, Setting,
    Suspect, Table, WHO_WAITS, WorkerFacts,
};
pub(crate) use interventions::{may_act, record_retry};
pub(crate) use plans::Plan;
pub(crate) use presence::{About, Presence, Present};
pub(crate) use prune::{Deleted, LEAST_AGE, Pruner, Pruning};
use release::Release;
pub(crate) use schema::Standing;
pub(crate) use skip::note_sent;
use step::{Step, Stepped};
pub(crate) use tally::Tally;
pub(crate) use transaction::Open;
use transaction::Sessions;

use crate::{
    job::{Epoch, Generation, JobId},
    metrics::Transition,
    retry::RetryPolicy,
};

/// What went wrong with the ledger, by what can be done about it.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Postgres cannot be reached: wait.
    #[error("{0}")]
    Unavailable(String),
    /// Postgres does not let us in: the user, the password or the database of the address is wrong.
    #[error("{0}")]
    Denied(String),
    /// The schema is missing, old or damaged: migrate.
    #[error("{0}")]
    Schema(String),
    /// Postgres refuses this very row and would always: the job fails with these words.
    #[error("Postgres refuses it: {0}")]
    Refused(String),
    /// The worker is leaving and its lanes are closed: the delivery comes again.
    #[error("the worker is leaving; the ledger takes no more writes")]
    Closed,
}

impl LedgerError {
    pub(crate) fn unavailable(address: &LedgerAddress, error: &sqlx::Error) -> Self {
        let sentence = format!(
            "Postgres at {address} cannot be used: {}",
            connect::sentence(error)
        );
        match error.as_database_error().and_then(|error| error.code()) {
            // Invalid authorisation, and a database that does not exist.
            Some(code) if code.starts_with("28") || code == "3D000" => Self::Denied(format!(
                "{sentence}. Check the user, the password and the database in DATABASE_URL"
            )),
            _ if connect::distrust(error).is_some() => Self::Denied(sentence),
            _ => Self::Unavailable(sentence),
        }
    }
}

/// Connections for the reconciler and for questions after a fault.
const DESK: u32 = 3;

/// This process as the ledger knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    /// `cliquet.workers.id`.
    pub(crate) id: i64,
    /// As people call it.
    pub(crate) name: String,
    /// The work queue it serves.
    pub(crate) queue: String,
}

/// The ledger as a worker uses it: one method a verb. Each returns only when its outcome is known.
#[derive(Clone)]
pub(crate) struct Ledger {
    lanes: lane::Lanes,
    /// For handlers' transactions.
    sessions: Arc<Sessions>,
    /// For the reconciler and for questions after a fault: never behind the handlers.
    desk: PgPool,
    holder: Arc<Holder>,
    tally: Arc<Tally>,
}

impl Ledger {
    /// A ledger written as `holder`, through `lanes` connections with group commit; handlers' transactions have
    /// `handler_connections` of their own.
    pub(crate) fn open(
        address: &LedgerAddress,
        holder: Arc<Holder>,
        lanes: usize,
        handler_connections: u32,
        tally: Arc<Tally>,
    ) -> Self {
        let sessions = Sessions::new(
            address.options(&format!("{} handlers", holder.name)),
            handler_connections as usize,
        );
        let desk = address.desk_pool(&format!("{} desk", holder.name), DESK);
        let (lanes, _running) = lane::Lanes::start(address, &holder, lanes, &tally);
        Self {
            lanes,
            sessions,
            desk,
            holder,
            tally,
        }
    }

    pub(crate) fn holder(&self) -> &Holder {
        &self.holder
    }

    /// A transaction for one attempt, opened when its handler asks for it.
    pub(crate) fn transaction(&self) -> HandlerTransaction {
        HandlerTransaction::new(self.sessions.clone())
    }

    /// Looks after the sessions of handlers; to be asked now and then.
    pub(crate) async fn tidy(&self) {
        self.sessions.tidy().await;
    }

    /// How many sessions of handlers wait to be used again.
    #[cfg(test)]
    fn idle_sessions(&self) -> usize {
        self.sessions.idle_sessions()
    }

    /// How many of them have their next transaction open already.
    #[cfg(test)]
    fn begun_sessions(&self) -> usize {
        self.sessions.begun_sessions()
    }

    /// How many handlers wait for a session.
    #[cfg(test)]
    fn waiting_handlers(&self) -> usize {
        self.sessions.waiting_handlers()
    }

    /// For how long the oldest job of this worker's queue that is due has waited.
    pub(crate) async fn oldest_due(&self) -> Result<Duration, LedgerError> {
        due::oldest(&self.desk, &self.holder.queue).await
    }

    /// Where the reconciler's connection comes from.
    pub(crate) fn desk(&self) -> &PgPool {
        &self.desk
    }

    /// Who owns this job now?
    pub(crate) async fn claim(&self, claim: Claim) -> Result<Answer, LedgerError> {
        // Most deliveries are a job's first, and nothing is to be decided then.
        if claim.is_first()
            && let Stepped::Admitted(claimed) = self.lanes.write(Step::Admit(claim.clone())).await?
        {
            return Ok(Answer::Claimed(claimed));
        }
        self.lanes.write(claim).await
    }

    /// A task ended well.
    pub(crate) async fn advance(&self, advance: Advance) -> Result<Written, LedgerError> {
        match self.lanes.write(Step::Advance(advance)).await? {
            Stepped::Advanced(written) => {
                self.tally.ended_well(written);
                Ok(self.told(Transition::Step, written))
            }
            Stepped::Admitted(_) | Stepped::Known => {
                // The answers of admissions: no advance has them.
                Err(LedgerError::Closed)
            }
        }
    }

    /// A task ended well, with what its handler wrote.
    pub(crate) async fn commit_with(&self, advance: &Advance, transaction: Open) -> Committed {
        let began = Instant::now();
        let committed = advance.commit_with(transaction).await;
        match committed {
            Committed::Yes => {
                self.tally
                    .committed(Transition::Transaction, 1, began.elapsed());
                self.tally.ended_well(Written::Committed);
            }
            Committed::Fenced => self.tally.fenced(Transition::Transaction),
            Committed::No(_) | Committed::Unknown(_) => {}
        }
        committed
    }

    /// An attempt failed.
    pub(crate) async fn fail(&self, fail: Fail) -> Result<Written, LedgerError> {
        let written = self.lanes.write(fail).await?;
        self.tally.ended_badly(written);
        Ok(self.told(Transition::Fail, written))
    }

    /// A task is put off; the attempt that was begun does not count.
    pub(crate) async fn defer(&self, defer: Defer) -> Result<Written, LedgerError> {
        let written = self.lanes.write(defer).await?;
        Ok(self.told(Transition::Defer, written))
    }

    /// Counts a write that was fenced. A release is not among them: one that changes nothing may have been repeated.
    fn told(&self, transition: Transition, written: Written) -> Written {
        if written == Written::Fenced {
            self.tally.fenced(transition);
        }
        written
    }

    /// An attempt is cut short and does not count.
    pub(crate) async fn release(&self, job: JobId, epoch: Epoch) -> Result<Written, LedgerError> {
        self.lanes.write(Release { job, epoch }).await
    }

    /// A copy of this generation is confirmed; nobody waits for this.
    pub(crate) fn sent(&self, job: JobId, generation: Generation) {
        self.lanes.mention(sent::Sent { job, generation });
    }

    /// What became of a commit whose answer was lost, asked until Postgres says; `None` when it was rolled back and the
    /// attempt still stands.
    pub(crate) async fn fate(&self, stand: Stand) -> Option<Written> {
        let pauses = RetryPolicy::reconnecting(lane::LONGEST_PAUSE);
        let mut failures = 0;
        loop {
            if let Ok(mut connection) = self.desk.acquire().await {
                let stands = [stand];
                let asked = advance::fates(&mut connection, &stands, "SUCCESS");
                match timeout(lane::NO_ANSWER, asked).await {
                    Ok(Ok(fates)) => {
                        let fate = fates.first().copied().flatten();
                        return fate.map(|written| {
                            self.tally.ended_well(written);
                            self.told(Transition::Transaction, written)
                        });
                    }
                    _ => connection.close_on_drop(),
                }
            }
            failures += 1;
            sleep(pauses.delay(failures)).await;
        }
    }
}
