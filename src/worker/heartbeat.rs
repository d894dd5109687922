//! The heartbeat: tells the ledger that this process lives, and learns which of its runs are no longer its own.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Crew;
use crate::ledger::Presence;

/// Beats until `stop`, then says goodbye.
pub(super) async fn beat(
    crew: Arc<Crew>,
    mut presence: Presence,
    every: Duration,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            () = sleep(every) => {}
            () = stop.cancelled() => break,
        }
        for (job, epoch) in presence.beat(&crew.in_hand.running()).await {
            // Most often the run has ended since the list was made.
            if crew.in_hand.cancel(job, epoch) {
                info!(job.id = %job, epoch = epoch.0, "the job is no longer this worker's: it was cancelled or taken over");
            }
        }
        // A run of ours that broke off would keep its job held for as long as this process lives.
        for (job, epoch) in crew.in_hand.orphans() {
            warn!(job.id = %job, "a run ended without an outcome; its job is released");
            let _ = crew.ledger.release(job, epoch).await;
        }
    }
    presence.end().await;
}
