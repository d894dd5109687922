//! What a process's ledger has done, counted where it is done.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts since the worker was built; read at any time.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    commits: AtomicU64,
}

impl Tally {
    /// One commit of the ledger's own writes: a group's, or a handler's transaction.
    pub(super) fn committed(&self) {
        self.commits.fetch_add(1, Ordering::Relaxed);
    }

    /// Commits so far; presence and reconciling are not counted.
    pub(crate) fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }
}
