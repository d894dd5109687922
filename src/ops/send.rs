//! Sending for people: what is wrong with the broker is said at once, and nobody waits for ever.

use std::time::{Duration, Instant};

use tokio::time::sleep;
use tracing::Instrument;

use super::{Desk, failure::Failure};
use crate::{
    broker::{BrokerError, Letter, Place, Publisher, SendError},
    config::Config,
    retry::RetryPolicy,
    telemetry::traces,
};

/// For how long one message is tried again while the broker is away. A restart is over by then, or a person should look.
const PATIENCE: Duration = Duration::from_secs(30);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// A publisher to the work queue `queue`, after a look whether the broker is there: the publisher itself waits for one
/// that is away, as workers want it. Up to `in_flight` messages are on their way at a time.
pub(super) async fn publisher(
    config: &Config,
    queue: &str,
    in_flight: usize,
) -> Result<Publisher, Failure> {
    let address = Desk::broker_of(config)?;
    let topology = Desk::topology_of(config, queue)?;
    let identity = Desk::identity_of(config);
    // Another queue's ladder is not known here, so only our own is declared.
    let ours = config.declare && queue == config.queue;
    match ours {
        true => match topology.declare(&address, &identity).await {
            // Whoever publishes need not be one who makes queues. One that is missing is told when a message comes back.
            Err(BrokerError::Denied { .. }) => drop(topology.inspect(&address, &identity).await?),
            declared => declared?,
        },
        false => drop(topology.inspect(&address, &identity).await?),
    }
    Ok(Publisher::start(
        address, topology, identity, in_flight, false,
    ))
}

/// Sends one message to the work queue until it is confirmed. Again only while the broker is away: a queue that is missing
/// or full is for the person to mend.
pub(super) async fn confirmed(publisher: &Publisher, letter: &Letter) -> Result<(), SendError> {
    let (span, letter) = traces::producer(&publisher.queue(&Place::Work), letter.clone());
    let sent = send(publisher, &letter).instrument(span.clone()).await;
    traces::sent(&span, &sent);
    sent
}

async fn send(publisher: &Publisher, letter: &Letter) -> Result<(), SendError> {
    let began = Instant::now();
    let pauses = RetryPolicy::reconnecting(LONGEST_PAUSE);
    let mut failures = 0;
    loop {
        match publisher.send(&Place::Work, letter).await {
            Err(SendError::Unavailable { .. }) if began.elapsed() < PATIENCE => {
                failures += 1;
                sleep(pauses.delay(failures)).await;
            }
            sent => return sent,
        }
    }
}
