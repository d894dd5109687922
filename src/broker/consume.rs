//! Deliveries from the work queue, across reconnects.
//!
//! A task of its own keeps connection, channel, topology and consumer, and builds all four again whenever the stream of
//! deliveries ends unasked, be it with an error (the connection or channel is gone) or without one (the queue was
//! deleted, or the broker cancelled the consumer). It never publishes: a broker that blocks publishers would also leave
//! the acknowledgements of this connection unread.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{StreamExt, future::join_all};
use lapin::{
    Channel,
    options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions},
    types::{FieldTable, ShortString},
};
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tracing::{debug, info, warn};

use super::{
    Address, BrokerError, Delivery, Identity, Place, Settled, Topology,
    connect::{Link, Outage, Trouble, answer},
    settling::Settling,
};
use crate::metrics::{Metrics, Wire};

/// The most deliveries at a time that RabbitMQ means a quorum queue to hand to one consumer.
const MOST_PREFETCHED: u16 = 2_000;
/// How long the end of a cancelled stream may take to arrive.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause before a queue is made again that somebody deleted while a worker began.
const DELETED: Duration = Duration::from_millis(200);

/// Takes messages from the work queue. Dropping it stops it as [`stop`](Self::stop) and [`close`](Self::close) do.
#[derive(Debug)]
pub struct Consumer {
    shared: Arc<Shared>,
    connected: watch::Receiver<bool>,
    tasks: TaskTracker,
    _closes: DropGuard,
}

/// What the consumer and its task both hold.
#[derive(Debug)]
struct Shared {
    /// Received and not yet handed out. A channel would do but for one thing: what a broken connection leaves in it
    /// has to be thrown away, by the task and not by the reader.
    buffer: Mutex<VecDeque<Delivery>>,
    arrived: Notify,
    /// Cancelled when no more deliveries are wanted.
    stopping: CancellationToken,
    /// Cancelled when those in the buffer are handed back.
    stopped: CancellationToken,
    /// Cancelled when the connection may go.
    closing: CancellationToken,
}

impl Consumer {
    /// Consumes from the work queue of `topology` with up to `prefetch` (1 to 2000) deliveries that are not settled, and
    /// returns when the broker has agreed to that. A broker that is away is waited for, with a log line for each attempt.
    /// With `declare` every queue is made first; without it they only have to be there.
    ///
    /// # Errors
    /// What waiting does not mend, and only before the first success: `Refused` (user, password or virtual host),
    /// `Untrusted`, `Mismatch`, `Denied`, or `Missing` where it declares none. Later the same is logged as an error and tried again.
    pub async fn start(
        address: Address,
        topology: Topology,
        identity: Identity,
        prefetch: u16,
        declare: bool,
    ) -> Result<Self, BrokerError> {
        Self::start_telling(
            address,
            topology,
            identity,
            prefetch,
            declare,
            Arc::default(),
        )
        .await
    }

    /// [`start`](Self::start), with metrics that are told how it is with the connection.
    pub(crate) async fn start_telling(
        address: Address,
        topology: Topology,
        identity: Identity,
        prefetch: u16,
        declare: bool,
        metrics: Arc<Metrics>,
    ) -> Result<Self, BrokerError> {
        if !(1..=MOST_PREFETCHED).contains(&prefetch) {
            warn!(
                prefetch,
                "a quorum queue hands a consumer 1 to {MOST_PREFETCHED} deliveries at a time; the nearer is used"
            );
        }
        let prefetch = prefetch.clamp(1, MOST_PREFETCHED);
        let wish = Wish {
            address,
            topology,
            identity,
            prefetch,
            declare,
        };
        let mut outage = Outage::new("consume");
        let subscription = loop {
            match wish.subscribe().await {
                Ok(subscription) => break subscription,
                Err(error) if error.waiting_helps() => sleep(outage.failed(&error)).await,
                Err(BrokerError::Missing { queue }) if declare => {
                    warn!(
                        queue,
                        "the queue was deleted as soon as it was made; making it again"
                    );
                    sleep(DELETED).await;
                }
                Err(error) => return Err(error),
            }
        };
        outage.restored();
        metrics.prefetch(prefetch);
        metrics.connected(Wire::Consume, false);
        info!(queue = wish.topology.name(Place::Work), prefetch, broker.address = %wish.address, "consuming");

        let shared = Arc::new(Shared {
            buffer: Mutex::default(),
            arrived: Notify::new(),
            stopping: CancellationToken::new(),
            stopped: CancellationToken::new(),
            closing: CancellationToken::new(),
        });
        let (connected, watched) = watch::channel(true);
        let tasks = TaskTracker::new();
        tasks.spawn(supervise(
            wish,
            outage,
            subscription,
            shared.clone(),
            connected,
            metrics,
        ));
        tasks.close();
        Ok(Self {
            connected: watched,
            tasks,
            _closes: shared.closing.clone().drop_guard(),
            shared,
        })
    }

    /// The next delivery: waits until there is one, across reconnects. `None` once [`stop`](Self::stop) was called, and
    /// only then. Cancel-safe: no delivery is lost when the future is dropped.
    pub async fn next(&self) -> Option<Delivery> {
        loop {
            let arrived = self.shared.arrived.notified();
            if self.shared.stopping.is_cancelled() {
                return None;
            }
            if let Some(delivery) = self.take() {
                return Some(delivery);
            }
            tokio::select! {
                () = arrived => {}
                () = self.shared.stopping.cancelled() => return None,
            }
        }
    }

    /// The first delivery that can still be settled; the broker delivers the others again.
    fn take(&self) -> Option<Delivery> {
        let mut buffer = self.shared.buffer();
        let taken = std::iter::from_fn(|| buffer.pop_front()).find(Delivery::is_alive);
        if !buffer.is_empty() {
            // One notification may stand for many arrivals, and there may be many readers.
            self.shared.arrived.notify_one();
        }
        taken
    }

    /// Whether the broker hands us deliveries at the moment, as far as this side knows.
    pub fn is_connected(&self) -> bool {
        *self.connected.borrow()
    }

    /// [`is_connected`](Self::is_connected), to be watched.
    pub fn state(&self) -> watch::Receiver<bool> {
        self.connected.clone()
    }

    /// Takes no more: tells the broker, and gives back what was received and not handed out, which redelivers it to
    /// other workers at once. Deliveries that were handed out can be settled until [`close`](Self::close).
    pub async fn stop(&self) {
        self.shared.stopping.cancel();
        self.shared.stopped.cancelled().await;
    }

    /// Stops, and closes the connection: the broker redelivers whatever is not settled.
    pub async fn close(&self) {
        self.shared.closing.cancel();
        self.tasks.wait().await;
    }
}

impl Shared {
    fn buffer(&self) -> MutexGuard<'_, VecDeque<Delivery>> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, delivery: Delivery) {
        self.buffer().push_back(delivery);
        self.arrived.notify_one();
    }
}

/// What to consume.
#[derive(Debug)]
struct Wish {
    address: Address,
    topology: Topology,
    identity: Identity,
    prefetch: u16,
    declare: bool,
}

/// Everything that is built again together.
struct Subscription {
    link: Link,
    channel: Channel,
    stream: lapin::Consumer,
    settling: Arc<Settling>,
}

impl Wish {
    async fn subscribe(&self) -> Result<Subscription, BrokerError> {
        let link = Link::open(&self.address, &self.identity, "consume").await?;
        if self.declare {
            self.topology.declare_on(&link).await?;
        } else {
            match self.topology.verify_on(&link).await {
                // From RabbitMQ 4.3 on, looking for a queue takes the permission to declare it.
                Err(BrokerError::Denied { queue, sentence }) => {
                    debug!(queue, "not looking for the queues: {sentence}")
                }
                found => found?,
            }
        }
        let queue = self.topology.name(Place::Work);
        let trouble = |trouble| {
            link.queue_trouble(
                &queue,
                || "Consume from a queue of cliquet's own".into(),
                trouble,
            )
        };
        let short = |text: String| {
            ShortString::try_new(text).map_err(|error| {
                link.lost(Trouble {
                    code: None,
                    sentence: error.to_string(),
                })
            })
        };
        let (name, tag) = (short(queue.clone())?, short(self.identity.consumer_tag())?);
        let channel = link.channel().await?;
        answer(channel.basic_qos(self.prefetch, BasicQosOptions { global: false }))
            .await
            .map_err(trouble)?;
        let consume = channel.basic_consume(
            name,
            tag,
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let stream = answer(consume).await.map_err(trouble)?;
        Ok(Subscription {
            link,
            channel,
            stream,
            settling: Arc::default(),
        })
    }
}

/// Keeps a subscription until it is asked to stop; then hands back, waits until the connection may go, and closes it.
async fn supervise(
    wish: Wish,
    mut outage: Outage,
    mut subscription: Subscription,
    shared: Arc<Shared>,
    connected: watch::Sender<bool>,
    metrics: Arc<Metrics>,
) {
    // Whoever waits for the hand-back must not wait for ever, however this task ends.
    let handed_back = shared.stopped.clone().drop_guard();
    let stopping = async {
        tokio::select! {
            () = shared.stopping.cancelled() => {}
            () = shared.closing.cancelled() => shared.stopping.cancel(),
        }
    };
    tokio::pin!(stopping);
    loop {
        let reason = tokio::select! {
            biased;
            () = &mut stopping => {
                hand_back(&mut subscription, &shared).await;
                drop(handed_back);
                shared.closing.cancelled().await;
                connected.send_replace(false);
                metrics.disconnected(Wire::Consume);
                return subscription.link.close().await;
            }
            reason = forward(&mut subscription, &shared) => reason,
        };
        connected.send_replace(false);
        metrics.disconnected(Wire::Consume);
        // None of these can be settled any more; the broker delivers them again.
        shared.buffer().clear();
        let mut pause = outage.broke(&reason);
        subscription.link.close().await;
        drop(subscription);
        subscription = loop {
            let again = async {
                sleep(pause).await;
                wish.subscribe().await
            };
            tokio::select! {
                biased;
                () = &mut stopping => return,
                made = again => match made {
                    Ok(subscription) => break subscription,
                    Err(error) => pause = outage.failed(&error),
                },
            }
        };
        metrics.connected(Wire::Consume, outage.restored());
        connected.send_replace(true);
    }
}

/// Moves deliveries into the buffer until the stream ends, and says why it ended.
async fn forward(subscription: &mut Subscription, shared: &Shared) -> String {
    loop {
        match subscription.stream.next().await {
            Some(Ok(delivery)) => shared.push(Delivery::of(delivery, &subscription.settling)),
            Some(Err(error)) => return Trouble::from(error).sentence,
            None => return "the broker cancelled the consumer; was the queue deleted?".into(),
        }
    }
}

/// Cancels the consumer and gives back everything that was not handed out. Closing the channel would give it back too,
/// but then up to RabbitMQ 4.2 every other delivery as well, and everywhere counted as a failed one.
async fn hand_back(subscription: &mut Subscription, shared: &Shared) {
    let tag = subscription.stream.tag();
    if let Err(trouble) = answer(
        subscription
            .channel
            .basic_cancel(tag, BasicCancelOptions::default()),
    )
    .await
    {
        // The broker hands out nothing more for a channel or connection that is gone, so this is only worth a note.
        debug!(
            error = trouble.sentence,
            "the consumer could not be cancelled"
        );
    }
    let rest = async {
        while let Some(Ok(delivery)) = subscription.stream.next().await {
            shared.push(Delivery::of(delivery, &subscription.settling))
        }
    };
    if timeout(DRAIN_TIMEOUT, rest).await.is_err() {
        debug!(
            "the cancelled consumer's stream did not end; what may still come is redelivered when the connection closes"
        );
    }
    let unread: Vec<_> = shared.buffer().drain(..).collect();
    let lost = join_all(unread.iter().map(Delivery::requeue))
        .await
        .into_iter()
        .filter(|end| *end == Settled::Lost)
        .count();
    info!(handed_back = unread.len() - lost, lost, "stopped consuming");
}
