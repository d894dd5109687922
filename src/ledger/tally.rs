//! What a process's ledger has done, told where it is done.
//!
//! Metrics go to whatever recorder the process has, and cannot be read back. Some numbers are: the benchmark reads how many
//! commits there were, and measures a worker without a recorder; the heartbeat tells how many tasks ended. So this is where
//! the ledger counts, for all of them.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::Written;
use crate::metrics::{Metrics, Transition, Wire};

/// Counts since the worker was built; read at any time.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    commits: AtomicU64,
    succeeded: AtomicU64,
    failed: AtomicU64,
    /// Theirs are the recorder that the worker found when it began, which is later.
    metrics: OnceLock<Arc<Metrics>>,
}

impl Tally {
    /// From now on these are told, too.
    pub(crate) fn tell(&self, metrics: Arc<Metrics>) {
        let _ = self.metrics.set(metrics);
    }

    /// One commit of the ledger's own writes: a group's, or a handler's transaction.
    pub(super) fn committed(&self, transition: Transition, group: usize, took: Duration) {
        self.commits.fetch_add(1, Ordering::Relaxed);
        if let Some(metrics) = self.metrics.get() {
            metrics.committed(transition, group, took);
        }
    }

    /// A write that changed nothing, since somebody else owns the job.
    pub(super) fn fenced(&self, transition: Transition) {
        if let Some(metrics) = self.metrics.get() {
            metrics.fenced(transition);
        }
    }

    /// The connection of a lane broke and was built again.
    pub(super) fn lane_is_back(&self) {
        if let Some(metrics) = self.metrics.get() {
            metrics.connected(Wire::Lanes, true);
        }
    }

    /// A task's SUCCESS was written, or fenced.
    pub(super) fn ended_well(&self, written: Written) {
        self.succeeded
            .fetch_add(u64::from(written == Written::Committed), Ordering::Relaxed);
    }

    /// An attempt's failure was written, or fenced.
    pub(super) fn ended_badly(&self, written: Written) {
        self.failed
            .fetch_add(u64::from(written == Written::Committed), Ordering::Relaxed);
    }

    /// How many tasks ended well, and how many attempts failed, so far.
    pub(super) fn ended(&self) -> (u64, u64) {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (read(&self.succeeded), read(&self.failed))
    }

    /// Commits so far; presence and reconciling are not counted.
    pub(crate) fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }
}
