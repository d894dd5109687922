//! How a command fails: a sentence on standard error and an exit status.

use std::process::ExitCode;

use super::output::note;
use crate::{
    broker::{BrokerError, SendError},
    ledger::LedgerError,
    worker::WorkerError,
};

/// Why a command could not do what it was asked.
#[derive(Debug)]
pub(super) struct Failure {
    status: u8,
    sentence: String,
}

impl Failure {
    /// Something failed or was not found: status 1.
    pub(super) fn failed(sentence: impl Into<String>) -> Self {
        Self {
            status: 1,
            sentence: sentence.into(),
        }
    }

    /// The command or a setting is wrong: status 2, as for options that do not exist.
    pub(super) fn usage(sentence: impl Into<String>) -> Self {
        Self {
            status: 2,
            sentence: sentence.into(),
        }
    }

    /// Says it on standard error.
    pub(super) fn tell(&self) -> ExitCode {
        for line in self.sentence.lines() {
            note(format_args!("error: {line}"));
        }
        ExitCode::from(self.status)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl From<LedgerError> for Failure {
    fn from(error: LedgerError) -> Self {
        Self::failed(error.to_string())
    }
}

impl From<BrokerError> for Failure {
    fn from(error: BrokerError) -> Self {
        Self::failed(error.to_string())
    }
}

impl From<SendError> for Failure {
    fn from(error: SendError) -> Self {
        Self::failed(error.to_string())
    }
}

impl From<WorkerError> for Failure {
    fn from(error: WorkerError) -> Self {
        match error {
            WorkerError::Config(sentence) => Self::usage(sentence),
            WorkerError::Ledger(error) => error.into(),
            WorkerError::Broker(error) => error.into(),
        }
    }
}
