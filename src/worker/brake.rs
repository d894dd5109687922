//! The brakes of this worker: one for each handler, and who is let past.
//!
//! The rules are in [`retry`](crate::retry); here they are kept for a whole process, told in the log (one line when a brake
//! goes on, one a probe, one when it goes off) and read by whoever asks: the heartbeat, which writes them into the ledger.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use humantime::format_duration;
use tracing::{info, warn};

use crate::{
    config::Config,
    job::JobId,
    metrics::{Metrics, OfHandler, TaskEnd},
    retry::{Brake, BrakeState, Failed, Pass},
    task::{Registry, TaskError, WhatNext},
};

/// All brakes of a worker, by handler. A handler that the worker does not know has none.
#[derive(Clone, Default)]
pub(super) struct Brakes(Arc<Table>);

#[derive(Default)]
struct Table {
    handlers: HashMap<String, Handler>,
    metrics: Arc<Metrics>,
    /// The longest pause between two probes.
    probe_every: Duration,
}

struct Handler {
    brake: Mutex<Brake>,
    metrics: Arc<OfHandler>,
}

fn lock(brake: &Mutex<Brake>) -> MutexGuard<'_, Brake> {
    // Nothing in here panics while it holds a lock, and what a poisoned one guards is whole.
    brake.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A task waits: for how long, and what people read meanwhile.
#[derive(Debug)]
pub(super) struct Wait {
    pub(super) delay: Duration,
    pub(super) sentence: String,
    /// The error of a probe, which did run.
    pub(super) probe: Option<String>,
}

/// The right to run one task of a handler; what the task came to is told to its brake. Dropped without a word, it tells
/// its brake nothing, and the attempt is counted as unfinished.
pub(super) struct Go<'b> {
    handler: &'b str,
    brake: Option<&'b Mutex<Brake>>,
    metrics: &'b OfHandler,
    since: Instant,
    probe: Option<u64>,
    probe_every: Duration,
    told: bool,
}

impl Brakes {
    pub(super) fn new(registry: &Registry, config: &Config, metrics: &Arc<Metrics>) -> Self {
        let handlers = registry.options().map(|(name, options)| {
            let after = options.brake_after.unwrap_or(config.brake_after);
            let handler = Handler {
                brake: Mutex::new(Brake::new(after, config.probe_every)),
                metrics: metrics.handler(name).clone(),
            };
            (name.to_owned(), handler)
        });
        Self(Arc::new(Table {
            handlers: handlers.collect(),
            metrics: metrics.clone(),
            probe_every: config.probe_every,
        }))
    }

    /// Asks for a task of this handler that is about to run.
    ///
    /// # Errors
    /// How long it waits, when the handler is braked.
    pub(super) fn ask<'b>(&'b self, handler: &'b str) -> Result<Go<'b>, Wait> {
        let known = self.0.handlers.get(handler);
        let mut go = Go {
            handler,
            brake: known.map(|known| &known.brake),
            metrics: known.map_or(self.0.metrics.handler(handler), |known| &known.metrics),
            since: Instant::now(),
            probe: None,
            probe_every: self.0.probe_every,
            told: false,
        };
        let Some(held) = go.brake.map(lock) else {
            return Ok(go);
        };
        match pass(held) {
            (Pass::Free, _) => {}
            (Pass::Probe(number), _) => go.probe = Some(number),
            (Pass::Wait(delay), state) => {
                go.told = true; // the ledger's answer to the deferral will be
                return Err(go.wait(delay, state, None));
            }
        }
        Ok(go)
    }

    /// Every brake that is on, by handler.
    pub(super) fn on(&self) -> Vec<BrakeState> {
        let now = Instant::now();
        let mut on: Vec<_> = self
            .0
            .handlers
            .iter()
            .filter_map(|(name, handler)| lock(&handler.brake).state(name, now))
            .collect();
        on.sort_by(|one, other| one.handler.cmp(&other.handler));
        on
    }
}

fn pass(mut brake: MutexGuard<'_, Brake>) -> (Pass, Option<BrakeState>) {
    let now = Instant::now();
    let pass = brake.pass(now);
    let state = match pass {
        Pass::Wait(_) => brake.state("", now),
        Pass::Free | Pass::Probe(_) => None,
    };
    (pass, state)
}

impl Go<'_> {
    /// The handler has returned, whatever it did.
    pub(super) fn ran(&self) {
        self.metrics.took(self.since.elapsed());
    }

    /// The task ended well: whatever was braked goes on.
    pub(super) fn succeeded(mut self) {
        (self.probe, self.told) = (None, true);
        self.metrics.task(TaskEnd::Success);
        let released = self.brake.and_then(|brake| {
            let mut brake = lock(brake);
            let released = brake.succeeded(Instant::now());
            // While it is locked, so that what is told last is how it is.
            if released.is_some() {
                self.metrics.braked(false);
            }
            released
        });
        if let Some(released) = released {
            info!(
                task.handler = self.handler,
                failed_probes = released.failed,
                lasted_ms = released.lasted.as_millis() as u64,
                "the handler works again: its brake is off, and what waited goes on"
            );
        }
    }

    /// The task failed, and what the ledger says to that is counted. Answers with how long it waits, when the failure does
    /// not count: it was a probe's.
    pub(super) fn failed(mut self, job: JobId, error: &TaskError) -> Option<Wait> {
        self.told = true;
        let brake = self.brake?;
        if error.what_next() == WhatNext::Permanent {
            return None; // it says something of the job, and nothing of the handler
        }
        let probe = self.probe.take();
        let (failed, state) = {
            let (mut brake, now) = (lock(brake), Instant::now());
            let failed = brake.failed(job, probe, error.message(), now);
            if failed == Failed::Trips {
                self.metrics.braked(true);
            }
            (failed, brake.state(self.handler, now))
        };
        let state = state?;
        match failed {
            Failed::Counts => None,
            Failed::Trips => {
                warn!(
                    task.handler = self.handler,
                    failures = state.failures,
                    error = state.last_error,
                    "many failures of this handler in a row: it is braked, and its tasks wait without using up attempts until a probe succeeds"
                );
                None
            }
            Failed::Probe(pause) => {
                info!(
                    task.handler = self.handler, job.id = %job, failed_probes = state.failed_probes,
                    next_probe_ms = state.next_probe_ms, error = state.last_error,
                    "a probe of the braked handler failed; the attempt is not counted"
                );
                // The handler knows best how long it is of no use to ask again.
                let delay = match error.what_next() {
                    WhatNext::RetryAfter(delay) => delay.max(pause),
                    WhatNext::Retry | WhatNext::Permanent => pause,
                };
                Some(self.wait(delay, Some(state), Some(error.message().to_owned())))
            }
        }
    }

    fn wait(&self, delay: Duration, state: Option<BrakeState>, probe: Option<String>) -> Wait {
        let (failures, error) = state.map_or((0, String::new()), |state| {
            (state.failures, state.last_error)
        });
        Wait {
            delay,
            sentence: format!(
                "the handler {:?} is braked after {failures} failures in a row, the last: {error}. Its tasks wait without using up attempts; one is tried at least every {} and goes on with the others as soon as one succeeds",
                self.handler,
                format_duration(self.probe_every),
            ),
            probe,
        }
    }
}

impl Drop for Go<'_> {
    fn drop(&mut self) {
        if let (Some(brake), Some(probe)) = (self.brake, self.probe) {
            lock(brake).undecided(probe);
        }
        if !self.told {
            self.metrics.task(TaskEnd::Unfinished);
        }
    }
}
