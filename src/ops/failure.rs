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
    /// Whether whatever is asked next fares no better: a service is away, or lets this user not do it.
    everywhere: bool,
}

impl Failure {
    /// Something failed or was not found: status 1.
    pub(super) fn failed(sentence: impl Into<String>) -> Self {
        Self {
            status: 1,
            sentence: sentence.into(),
            everywhere: false,
        }
    }

    /// The command or a setting is wrong: status 2, as for options that do not exist.
    pub(super) fn usage(sentence: impl Into<String>) -> Self {
        Self {
            status: 2,
            sentence: sentence.into(),
            everywhere: false,
        }
    }

    /// Whether it is no use to go on with something else: a service is away, or does not let this user do it.
    pub(super) fn is_everywhere(&self) -> bool {
        self.everywhere
    }

    fn of(error: &dyn std::error::Error, everywhere: bool) -> Self {
        Self {
            everywhere,
            ..Self::failed(error.to_string())
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
        Self::of(&error, !matches!(error, LedgerError::Refused(_)))
    }
}

impl From<BrokerError> for Failure {
    fn from(error: BrokerError) -> Self {
        use BrokerError::{Refused, Unreachable, Untrusted};
        let everywhere = matches!(
            error,
            Unreachable { .. } | Refused { .. } | Untrusted { .. }
        );
        Self::of(&error, everywhere)
    }
}

impl From<SendError> for Failure {
    fn from(error: SendError) -> Self {
        use SendError::{Cancelled, Denied, Unavailable};
        let everywhere = matches!(error, Unavailable { .. } | Denied { .. } | Cancelled { .. });
        Self::of(&error, everywhere)
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
