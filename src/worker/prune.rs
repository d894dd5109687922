//! Old jobs are deleted by whoever reconciles, in what is left of its pause (`prune_after`).
//!
//! In small batches, with pauses as long as the batches, and for no more than half of the pause between two looks: the next
//! look comes when it would have come. When everything was looked at, the next pass waits.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    config::Config,
    ledger::{Deleted, LedgerError, Pruning, Reconciling},
};

/// The shortest pause between two batches.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
/// Between two passes a hundredth of the age is waited, within these bounds.
const NEXT_PASS: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(3600)];

/// How far this process is.
#[derive(Default)]
pub(super) struct Progress {
    pass: Option<Pruning>,
    deleted: Deleted,
    /// When the last pass ended, or could not go on.
    rests_since: Option<Instant>,
    failing: bool,
}

impl Progress {
    /// Goes on for a while, if the settings want it and it is time. Answers with how long that took.
    pub(super) async fn go_on(
        &mut self,
        config: &Config,
        reconciling: &mut Reconciling,
        stop: &CancellationToken,
    ) -> Duration {
        let Some(age) = config.prune_after else {
            return Duration::ZERO;
        };
        let rest = (age / 100).clamp(NEXT_PASS[0], NEXT_PASS[1]);
        if self.rests_since.is_some_and(|since| since.elapsed() < rest) {
            return Duration::ZERO;
        }
        let began = Instant::now();
        self.rests_since = None;
        while began.elapsed() < config.reconcile_every / 2 && !stop.is_cancelled() {
            let batch = Instant::now();
            match self.batch(age, config, reconciling).await {
                Ok(()) => self.failing = false,
                Err(error) => {
                    if !self.failing {
                        warn!(%error, "old jobs are not deleted; it is tried again later");
                    }
                    (self.failing, self.rests_since) = (true, Some(Instant::now()));
                }
            }
            if self.rests_since.is_some() {
                break;
            }
            stop.run_until_cancelled(sleep(batch.elapsed().max(SHORTEST_PAUSE)))
                .await;
        }
        began.elapsed()
    }

    async fn batch(
        &mut self,
        age: Duration,
        config: &Config,
        reconciling: &mut Reconciling,
    ) -> Result<(), LedgerError> {
        let mut pass = match self.pass.take() {
            Some(pass) => pass,
            None => {
                let (status, queue) = (&config.prune_status, &config.queue);
                reconciling.begin_pruning(age, status, queue).await?
            }
        };
        self.deleted.add(reconciling.prune(&mut pass).await?);
        if !pass.is_over() {
            self.pass = Some(pass);
            return Ok(());
        }
        self.rests_since = Some(Instant::now());
        let deleted = std::mem::take(&mut self.deleted);
        if deleted.total() > 0 || deleted.workers > 0 {
            info!(
                jobs = deleted.total(),
                tasks = deleted.tasks,
                workers = deleted.workers,
                prune_after = %humantime::format_duration(age),
                "jobs that have been over for longer than `prune_after` are deleted"
            );
        }
        Ok(())
    }
}
