//! The heartbeat: tells the ledger that this process lives, and learns which of its runs are no longer its own.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use super::{brake::Brakes, in_hand::InHand, settlement::give_back};
use crate::{
    ledger::{Ledger, Presence},
    metrics::Metrics,
    pace::Pace,
};

/// Of the time, a question that is only for people may take about one part in so many.
const SELDOM: u32 = 100;

/// Beats until `stop`, then says goodbye.
pub(super) async fn beat(
    in_hand: InHand,
    brakes: Brakes,
    ledger: Ledger,
    mut presence: Presence,
    every: Duration,
    beside: TaskTracker,
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
            beside.spawn(async move {
                let _ = ledger.release(orphan.job, orphan.epoch).await;
                if let Some(delivery) = orphan.delivery {
                    let _ = give_back(&delivery).await;
                }
            });
        }
        let tidied = ledger.clone();
        beside.spawn(async move { tidied.tidy().await });
        tokio::select! {
            () = sleep(every) => {}
            () = stop.cancelled() => break,
        }
    }
    presence.end().await;
}

/// Asks at about each heartbeat for how long the oldest job that is due waits, until `stop`. Beside the heartbeat, which must
/// not wait for the answer; and where that takes long, seldom.
pub(super) async fn look_for_the_oldest(
    ledger: Ledger,
    metrics: Arc<Metrics>,
    every: Duration,
    stop: CancellationToken,
) {
    let looking = async {
        let mut pace = Pace::new(SELDOM, every);
        loop {
            let asked = Instant::now();
            let pause = match ledger.oldest_due().await {
                Ok(waits) => {
                    metrics.oldest_due(waits);
                    pace.after(asked.elapsed())
                }
                // While Postgres is away the last answer stands; that it is away is told by other metrics. Where the question
                // was too much for it, it has as much rest.
                Err(_) => every.max(asked.elapsed()),
            };
            sleep(pause).await;
        }
    };
    let _stopped: Option<()> = stop.run_until_cancelled(looking).await;
}
