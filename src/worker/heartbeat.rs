//! The heartbeat: tells the ledger that this process lives, and learns which of its runs are no longer its own.

use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{brake::Brakes, in_hand::InHand, settlement::give_back};
use crate::ledger::{Ledger, Presence};

/// Beats until `stop`, then says goodbye.
pub(super) async fn beat(
    in_hand: InHand,
    brakes: Brakes,
    ledger: Ledger,
    mut presence: Presence,
    every: Duration,
    stop: CancellationToken,
) {
    loop {
        presence.tell_brakes(&brakes.on());
        for (job, epoch) in presence.beat(|| in_hand.running()).await {
            // Most often the run has ended since the list was made.
            if in_hand.cancel(job, epoch) {
                info!(job.id = %job, epoch = epoch.0, "the job is no longer this worker's: it was cancelled or taken over");
            }
        }
        presence.resume();
        // A run of ours that broke off would keep its job held for as long as this process lives. Beside the beat, which
        // must not wait for a lane.
        for orphan in in_hand.orphans() {
            warn!(job.id = %orphan.job, "a run ended without an outcome; its job is released");
            let ledger = ledger.clone();
            tokio::spawn(async move {
                let _ = ledger.release(orphan.job, orphan.epoch).await;
                if let Some(delivery) = orphan.delivery {
                    let _ = give_back(&delivery).await;
                }
            });
        }
        let tidied = ledger.clone();
        tokio::spawn(async move { tidied.tidy().await });
        tokio::select! {
            () = sleep(every) => {}
            () = stop.cancelled() => break,
        }
    }
    presence.end().await;
}
