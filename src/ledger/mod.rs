//! Postgres: the single source of truth, and the only place that writes SQL.

mod cancel;
mod connect;
mod read;
mod schema;
mod transaction;

pub use cancel::{CANCELLED_TASK, Cancelled, cancel};
pub use connect::LedgerAddress;
pub use read::{
    CurrentTask, FailureView, JobDetail, JobFilter, JobProgress, JobSummary, LedgerMessage, Reads,
    TaskView,
};
pub use schema::{MigrationState, check, migrate};
pub use transaction::{HandlerTransaction, Transaction};

/// What went wrong with the ledger, by what can be done about it.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Postgres cannot be reached, or not as this user: wait or mend the address.
    #[error("{0}")]
    Unavailable(String),
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
        Self::Unavailable(format!(
            "Postgres at {address} cannot be used: {}",
            connect::sentence(error)
        ))
    }
}
