//! How a worker is put together.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Status, Worker};
use crate::{
    broker::{Address, BrokerError, Topology},
    config::Config,
    ledger::{LedgerAddress, LedgerError},
    retry::RetryPolicy,
    task::{HandlerOptions, IntoHandler, Registry, State},
};

/// Why a worker could not begin.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// A setting is wrong: mend it.
    #[error("{0}")]
    Config(String),
    /// The ledger is not usable as it is: the sentence says what to do.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The broker is not usable as it is: the sentence says what to do.
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

/// Collects handlers and settings; see [`Worker::builder`].
pub struct Builder {
    config: Config,
    registry: Registry,
    state: State,
}

impl Builder {
    pub(super) fn new() -> Self {
        let mut config = Config::default();
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        if let Some(url) = variable("AMQP_URL") {
            config.amqp_url = url;
        }
        if let Some(url) = variable("DATABASE_URL") {
            config.database_url = url;
        }
        Self {
            config,
            registry: Registry::default(),
            state: State::default(),
        }
    }

    /// Registers a handler under the name that messages call it by: `async fn(TaskContext) -> Result<T, TaskError>` or
    /// `async fn(TaskContext, Input) -> Result<T, TaskError>`.
    pub fn handler<M>(self, name: impl Into<String>, handler: impl IntoHandler<M>) -> Self {
        self.handler_with(name, handler, HandlerOptions::default())
    }

    /// Registers a handler with its own retry policy or time limit.
    pub fn handler_with<M>(
        mut self,
        name: impl Into<String>,
        handler: impl IntoHandler<M>,
        options: HandlerOptions,
    ) -> Self {
        self.registry
            .insert(name.into(), handler.into_handler(), options);
        self
    }

    /// Gives every handler a value of this type, as [`TaskContext::state`](crate::TaskContext::state).
    pub fn state<T: Send + Sync + 'static>(mut self, state: T) -> Self {
        self.state.insert(state);
        self
    }

    /// All settings at once, in place of those given before.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Where RabbitMQ is; `AMQP_URL` by default.
    pub fn amqp_url(mut self, url: impl Into<String>) -> Self {
        self.config.amqp_url = url.into();
        self
    }

    /// Where Postgres is; `DATABASE_URL` by default.
    pub fn database_url(mut self, url: impl Into<String>) -> Self {
        self.config.database_url = url.into();
        self
    }

    /// The work queue; `jobs` by default.
    pub fn queue(mut self, queue: impl Into<String>) -> Self {
        self.config.queue = queue.into();
        self
    }

    /// How many jobs run at the same time; 64 by default.
    pub fn concurrency(mut self, jobs: u16) -> Self {
        self.config.concurrency = jobs;
        self
    }

    /// When failed tasks are tried again.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.config.retry = policy;
        self
    }

    /// How long running tasks may go on after the worker is asked to stop; 30 s by default.
    pub fn drain_timeout(mut self, limit: Duration) -> Self {
        self.config.drain_timeout = limit;
        self
    }

    /// Checks everything that can be checked without the services.
    ///
    /// # Errors
    /// [`WorkerError::Config`], naming the setting, what it is and what is expected.
    pub fn build(self) -> Result<Worker, WorkerError> {
        let wrong = WorkerError::Config;
        if self.config.database_url.is_empty() {
            return Err(wrong("DATABASE_URL is not set: give the address of the Postgres database that is the ledger".into()));
        }
        self.config.check().map_err(wrong)?;
        for (name, options) in self.registry.options() {
            if let Some(retry) = options.retry {
                retry.check().map_err(|error| {
                    wrong(format!("the retry policy of handler {name:?}: {error}"))
                })?;
            }
        }
        Ok(Worker {
            amqp: Address::parse(&self.config.amqp_url).map_err(wrong)?,
            database: LedgerAddress::parse(&self.config.database_url).map_err(wrong)?,
            topology: Topology::new(&self.config.queue, self.config.ladder.clone())
                .map_err(wrong)?,
            config: self.config,
            registry: self.registry,
            state: self.state,
            tally: Arc::default(),
            status: Status::default(),
        })
    }

    /// Builds the worker and runs it until the process is asked to stop; see [`Worker::run`].
    ///
    /// # Errors
    /// [`WorkerError`], when it cannot begin.
    pub async fn run(self) -> Result<(), WorkerError> {
        self.build()?.run().await
    }

    /// Builds the worker and runs it until `stop` is ready; see [`Worker::run_until`].
    ///
    /// # Errors
    /// [`WorkerError`], when it cannot begin.
    pub async fn run_until(self, stop: impl Future<Output = ()>) -> Result<(), WorkerError> {
        self.build()?.run_until(stop).await
    }
}

/// The first signal stops the worker, the second leaves at once.
pub(super) async fn signals(stop: CancellationToken) {
    let (Ok(mut terminate), Ok(mut interrupt)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        warn!("signals cannot be received here; only SIGKILL will stop this worker");
        return;
    };
    let mut asked = false;
    loop {
        let status = tokio::select! {
            _ = terminate.recv() => 143,
            _ = interrupt.recv() => 130,
        };
        if asked {
            warn!("asked to stop a second time: leaving at once; what ran is taken over by others");
            std::process::exit(status);
        }
        asked = true;
        info!("asked to stop (once more leaves at once)");
        stop.cancel();
    }
}
