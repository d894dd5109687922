//! Sending for people: what is wrong with the broker is said at once, and nobody waits for ever.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::{Desk, failure::Failure};
use crate::{
    broker::{BrokerError, Letter, Place, Publisher, SendError},
    retry::RetryPolicy,
};

/// For how long one message is tried again while the broker is away. A restart is over by then, or a person should look.
const PATIENCE: Duration = Duration::from_secs(30);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// A publisher to the work queue `queue`, after a look whether the broker is there: the publisher itself waits for one
/// that is away, as workers want it. Up to `in_flight` messages are on their way at a time.
pub(super) async fn publisher(
    desk: &Desk,
    queue: &str,
    in_flight: usize,
) -> Result<Publisher, Failure> {
    let address = desk.broker()?;
    let topology = desk.topology(queue)?;
    let identity = desk.identity();
    // Another queue's ladder is not known here, so only our own is declared.
    if desk.config.declare && queue == desk.config.queue {
        topology
            .declare(&address, &identity)
            .await
            .map_err(undeclared)?;
    } else {
        topology.inspect(&address, &identity).await?;
    }
    Ok(Publisher::start(
        address, topology, identity, in_flight, false,
    ))
}

/// Who only publishes need not make queues.
fn undeclared(error: BrokerError) -> Failure {
    match error {
        BrokerError::Denied { .. } => Failure::failed(format!(
            "{error}. Or leave the queues to others: `declare = false` in cliquet.toml, or CLIQUET_DECLARE=false; then the user needs to write to `amq.default` alone (`deploy/rabbitmq-permissions.sh publisher USER`)"
        )),
        error => error.into(),
    }
}

/// Sends one message to the work queue until it is confirmed. Again only while the broker is away: a queue that is missing
/// or full is for the person to mend.
pub(super) async fn confirmed(publisher: &Publisher, letter: &Letter) -> Result<(), SendError> {
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
