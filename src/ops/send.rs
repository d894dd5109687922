//! Sending for people: what is wrong with the broker is said at once, and nobody waits for ever.

use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{Desk, failure::Failure};
use crate::broker::{Letter, Place, Publisher, SendError};

/// How long one message may take. The broker's pauses are over by then, or a person should look.
const PATIENCE: Duration = Duration::from_secs(30);

/// A publisher to the work queue `queue`, after a look whether the broker is there: the publisher itself waits for one
/// that is away, as workers want it.
/// Up to `in_flight` messages are on their way at a time.
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
        topology.declare(&address, &identity).await?;
    } else {
        topology.inspect(&address, &identity).await?;
    }
    Ok(Publisher::start(
        address, topology, identity, in_flight, false,
    ))
}

/// Sends one message to the work queue until it is confirmed, or 30 s are over.
pub(super) async fn confirmed(publisher: &Publisher, letter: &Letter) -> Result<(), SendError> {
    let stop = CancellationToken::new();
    let timer = tokio::spawn({
        let stop = stop.clone();
        async move {
            sleep(PATIENCE).await;
            stop.cancel();
        }
    });
    let sent = publisher.deliver(&Place::Work, letter, &stop).await;
    timer.abort();
    sent
}
