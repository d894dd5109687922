//! Confirmed sends, on a connection of their own.
//!
//! The client tells apart the confirms of one channel only while a single publish is in flight on it: tasks that share
//! a channel are given each other's answers, and a returned message is attached to whichever confirm comes next. Either
//! way a message that is nowhere would be taken for sent, and its original acknowledged. Hence a small pool of
//! channels, each lent to one send at a time, and given back only with a definite answer in hand; after anything
//! else (an error, a timeout, a caller that went away) it is closed.
//!
//! An unroutable message is confirmed too, after it was returned. Only a confirm without a return is success.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::StreamExt;
use lapin::{
    Channel, Confirmation, Event,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::ShortString,
};
use tokio::{
    sync::{Semaphore, watch},
    time::{interval, sleep, timeout},
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tracing::{debug, info, warn};

use super::{
    Address, BrokerError, Identity, Letter, Place, SendError, Topology,
    connect::{ANSWER_TIMEOUT, Link, Outage, Trouble, answer},
};
use crate::{
    fail_point::cut,
    metrics::{Metrics, PublishEnd, Wire},
    retry::RetryPolicy,
};

/// The longest pause before a letter is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How often the connection is looked at, beside what it tells by itself.
const LOOK: Duration = Duration::from_secs(1);

/// Sends letters and knows whether they arrived. Cheap to clone; the connection closes with the last clone.
#[derive(Clone)]
pub struct Publisher {
    shared: Arc<Shared>,
    tasks: TaskTracker,
    stop: CancellationToken,
    _closes: Arc<DropGuard>,
}

struct Shared {
    topology: Topology,
    declare: bool,
    state: watch::Sender<State>,
    blocked: watch::Sender<bool>,
    /// One permit for each channel that may be in use.
    slots: Semaphore,
    idle: Mutex<Vec<Lent>>,
    /// How often the topology was declared again, so that of many returned letters one declares it.
    declared_again: AtomicU64,
    declaring: tokio::sync::Mutex<()>,
    links: AtomicU64,
    metrics: Arc<Metrics>,
}

#[derive(Clone)]
enum State {
    Up(Arc<Link>, u64),
    Away(BrokerError),
    Closed,
}

/// A channel in confirm mode, and the number of the connection it belongs to. Out of the pool it belongs to one send;
/// dropping it closes the channel.
struct Lent {
    channel: Channel,
    link: u64,
}

impl Publisher {
    /// Connects in the background, and again whenever the connection breaks, each time declaring the topology when
    /// `declare` is set. Up to `channels` (at least 1) letters are in flight at a time.
    ///
    /// Call it within a tokio runtime.
    pub fn start(
        address: Address,
        topology: Topology,
        identity: Identity,
        channels: usize,
        declare: bool,
    ) -> Self {
        Self::start_telling(
            address,
            topology,
            identity,
            channels,
            declare,
            Arc::default(),
        )
    }

    /// [`start`](Self::start), with metrics that are told what becomes of letters and how it is with the connection.
    pub(crate) fn start_telling(
        address: Address,
        topology: Topology,
        identity: Identity,
        channels: usize,
        declare: bool,
        metrics: Arc<Metrics>,
    ) -> Self {
        let not_yet = BrokerError::Unreachable {
            address: address.to_string(),
            reason: "the connection is not made yet".into(),
        };
        let shared = Arc::new(Shared {
            topology,
            declare,
            state: watch::Sender::new(State::Away(not_yet)),
            blocked: watch::Sender::new(false),
            slots: Semaphore::new(channels.clamp(1, Semaphore::MAX_PERMITS)),
            idle: Mutex::default(),
            declared_again: AtomicU64::new(0),
            declaring: tokio::sync::Mutex::default(),
            links: AtomicU64::new(0),
            metrics,
        });
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        tasks.spawn(supervise(shared.clone(), address, identity, stop.clone()));
        tasks.close();
        Self {
            shared,
            tasks,
            _closes: Arc::new(stop.clone().drop_guard()),
            stop,
        }
    }

    /// Sends a letter once and waits for the broker's confirm, at most 30 s. The queue at `place` may have been deleted:
    /// then the topology is declared again (when declaring is on) and the letter sent a second time.
    ///
    /// The caller may go away at any time; whether the letter was sent is then unknown, as it is after `Unavailable`.
    ///
    /// # Errors
    /// `Unroutable`, `Refused`, `Denied`, `Unavailable`, `TooLarge`, or `Cancelled` when the publisher was closed; at once when
    /// the broker refuses the connection, so that a wrong password does not take 30 s to be told.
    pub async fn send(&self, place: &Place, letter: &Letter) -> Result<(), SendError> {
        let queue = self.shared.topology.name(*place);
        let seen = self.shared.declared_again.load(Ordering::Acquire);
        match self.attempt(&queue, letter).await {
            Err(SendError::Unroutable { .. }) if self.shared.declare => {}
            other => return other,
        }
        let declared = self.declare_again(seen).await;
        match (self.attempt(&queue, letter).await, declared) {
            (Err(SendError::Unroutable { queue, .. }), Err(error)) => Err(SendError::Unroutable {
                queue,
                remedy: format!("Declaring it again did not work: {error}"),
            }),
            (sent, _) => sent,
        }
    }

    /// Sends a letter until the broker has confirmed it, with growing pauses, for as long as `stop` is not cancelled.
    ///
    /// # Errors
    /// `TooLarge`, since it will never be sent as it is; `Cancelled` by `stop`, or because the publisher was closed.
    pub async fn deliver(
        &self,
        place: &Place,
        letter: &Letter,
        stop: &CancellationToken,
    ) -> Result<(), SendError> {
        let queue = self.shared.topology.name(*place);
        let mut reason = String::from("it was not tried yet");
        let sent = stop.run_until_cancelled(async {
            let policy = RetryPolicy::reconnecting(LONGEST_PAUSE);
            let mut failures = 0u32;
            loop {
                self.ready().await;
                let error = match self.send(place, letter).await {
                    Err(error) if error.again_helps() => error,
                    sent => return sent,
                };
                failures = failures.saturating_add(1);
                let pause = policy.delay(failures);
                let (attempt, pause_ms) = (failures, pause.as_millis() as u64);
                match &error {
                    // The connection's own log tells about it once; hundreds of letters need not.
                    SendError::Unavailable { .. } => {
                        debug!(queue, attempt, pause_ms, "{error}; trying again")
                    }
                    _ => warn!(queue, attempt, pause_ms, "{error}; trying again"),
                }
                reason = error.to_string();
                sleep(pause).await;
            }
        });
        match sent.await {
            Some(sent) => sent,
            None => Err(SendError::Cancelled { queue, reason }),
        }
    }

    /// The name of the queue at `place`.
    pub fn queue(&self, place: &Place) -> String {
        self.shared.topology.name(*place)
    }

    /// Whether there is a connection, as far as this side knows.
    pub fn is_connected(&self) -> bool {
        matches!(&*self.shared.state.borrow(), State::Up(link, _) if link.is_up())
    }

    /// Whether the broker blocks publishers, as it does when it runs out of memory or disk.
    pub fn is_blocked(&self) -> bool {
        *self.shared.blocked.borrow()
    }

    /// Waits while the broker blocks publishers.
    pub async fn unblocked(&self) {
        let _ = self
            .shared
            .blocked
            .subscribe()
            .wait_for(|blocked| !blocked)
            .await;
    }

    /// Waits until there is a connection and the broker does not block it, or the publisher was closed.
    pub async fn ready(&self) {
        let _ = self
            .shared
            .state
            .subscribe()
            .wait_for(|state| !matches!(state, State::Away(_)))
            .await;
        self.unblocked().await;
    }

    /// Messages that wait in the queue at `place`; those at a worker are not counted.
    ///
    /// # Errors
    /// `Missing` when there is no such queue, `Denied` when the user may not look, `Unreachable` or `Refused` when there
    /// is no connection or the broker blocks it.
    pub async fn depth(&self, place: &Place) -> Result<u32, BrokerError> {
        let link = self.unblocked_link()?;
        self.shared.topology.depth_on(&link, *place).await
    }

    fn unblocked_link(&self) -> Result<Arc<Link>, BrokerError> {
        let link = match self.shared.state.borrow().clone() {
            State::Up(link, _) => link,
            State::Away(error) => return Err(error),
            State::Closed => return Err(closed()),
        };
        if self.is_blocked() {
            return Err(link.lost(Trouble {
                code: None,
                sentence: BLOCKED.into(),
            }));
        }
        Ok(link)
    }

    /// The link of the connection with this number, while that is the present one.
    fn unblocked_link_of(&self, connection: u64) -> Result<Arc<Link>, BrokerError> {
        let link = self.unblocked_link()?;
        match self.connection() {
            Some((present, _)) if present == connection => Ok(link),
            _ => Err(link.lost(Trouble {
                code: None,
                sentence: "the connection that was asked before is gone".into(),
            })),
        }
    }

    /// The number of the present connection, and for how long it has been there.
    pub fn connection(&self) -> Option<(u64, Duration)> {
        match &*self.shared.state.borrow() {
            State::Up(link, number) => Some((*number, link.since.elapsed())),
            State::Away(_) | State::Closed => None,
        }
    }

    /// Whether the broker at this connection remembers what [`mark`](Self::mark) told it. One that lost its disk does not.
    ///
    /// # Errors
    /// As [`depth`](Self::depth) has them; `Unreachable`, too, when another connection has taken this one's place.
    pub async fn is_marked(&self, connection: u64) -> Result<bool, BrokerError> {
        let link = self.unblocked_link_of(connection)?;
        self.shared.topology.is_marked_on(&link).await
    }

    /// Tells the broker at this connection something that it will know for as long as it has its data.
    ///
    /// # Errors
    /// As [`is_marked`](Self::is_marked) has them.
    pub async fn mark(&self, connection: u64) -> Result<(), BrokerError> {
        let link = self.unblocked_link_of(connection)?;
        self.shared.topology.mark_on(&link).await
    }

    /// Closes the connection; letters on their way are then of unknown fate.
    pub async fn close(&self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }

    /// One publish and its confirm.
    async fn attempt(&self, queue: &str, letter: &Letter) -> Result<(), SendError> {
        // When the time is up, or the caller goes away, the future is dropped, and the channel that it holds with it.
        let published = match timeout(ANSWER_TIMEOUT, self.publish(queue, letter)).await {
            Ok(published) => published,
            Err(_) => Err(unavailable(queue, self.what_is_in_the_way())),
        };
        self.shared.metrics.published(match &published {
            Ok(()) => PublishEnd::Confirmed,
            Err(SendError::Unroutable { .. }) => PublishEnd::Returned,
            Err(SendError::Refused { .. } | SendError::Denied { .. }) => PublishEnd::Refused,
            Err(SendError::TooLarge { .. }) => PublishEnd::TooLarge,
            Err(_) => PublishEnd::Unanswered,
        });
        published
    }

    async fn publish(&self, queue: &str, letter: &Letter) -> Result<(), SendError> {
        let name =
            ShortString::try_new(queue).map_err(|error| unavailable(queue, error.to_string()))?;
        let _slot = self
            .shared
            .slots
            .acquire()
            .await
            .map_err(|error| unavailable(queue, error.to_string()))?;
        let (link, number) = self.link(queue).await?;
        // What is handed to the client now is written as soon as the block ends, even when nobody waits for it any more.
        self.unblocked().await;
        let lent = self
            .channel(&link, number)
            .await
            .map_err(|error| unavailable(queue, error.to_string()))?;

        let (properties, shed) = letter.properties(link.connection.configuration().frame_max());
        if !shed.is_empty() {
            warn!(
                queue,
                headers = shed.join(", "),
                "these headers do not fit one frame of the connection and were left out of a copy"
            );
        }
        let mandatory = BasicPublishOptions {
            mandatory: true,
            ..BasicPublishOptions::default()
        };
        cut!(BeforePublish);
        let published = lent
            .channel
            .basic_publish("".into(), name, mandatory, letter.body(), properties)
            .await;
        cut!(Published);
        let confirmed = match published {
            Ok(confirm) => confirm.await,
            Err(error) => Err(error),
        };
        cut!(Confirmed);
        let queue = queue.to_owned();
        match confirmed {
            Ok(Confirmation::Ack(None)) => {
                self.give_back(lent);
                Ok(())
            }
            Ok(Confirmation::Ack(Some(_)) | Confirmation::Nack(Some(_))) => {
                self.give_back(lent);
                Err(SendError::Unroutable {
                    queue,
                    remedy: "Make it (`cliquet topology declare`; a worker does with declaring queues switched on), then send the message again".into(),
                })
            }
            Ok(Confirmation::Nack(None)) => {
                self.give_back(lent);
                Err(SendError::Refused { queue })
            }
            Ok(Confirmation::NotRequested) => Err(SendError::Unavailable {
                queue,
                reason: "the channel is not in confirm mode".into(),
            }),
            Err(error) => match Trouble::from(error) {
                Trouble {
                    code: Some(406),
                    sentence,
                } if sentence.contains("larger than") => Err(SendError::TooLarge {
                    queue,
                    reason: sentence,
                }),
                Trouble {
                    code: Some(403),
                    sentence,
                } => Err(SendError::Denied { queue, sentence }),
                Trouble { sentence, .. } => Err(SendError::Unavailable {
                    queue,
                    reason: sentence,
                }),
            },
        }
    }

    /// The connection: waits for one that is being made, and not where waiting alone does not help.
    async fn link(&self, queue: &str) -> Result<(Arc<Link>, u64), SendError> {
        let mut states = self.shared.state.subscribe();
        let decided = states.wait_for(|state| match state {
            State::Away(error) => !error.waiting_helps(),
            State::Up(..) | State::Closed => true,
        });
        match decided.await.map(|state| state.clone()) {
            Ok(State::Up(link, number)) => Ok((link, number)),
            Ok(State::Away(error)) => Err(unavailable(queue, error.to_string())),
            Ok(State::Closed) | Err(_) => Err(SendError::Cancelled {
                queue: queue.to_owned(),
                reason: "the publisher was closed".into(),
            }),
        }
    }

    /// A channel for one send.
    async fn channel(&self, link: &Link, number: u64) -> Result<Lent, BrokerError> {
        while let Some(lent) = self.shared.take_idle() {
            if lent.link == number && lent.channel.status().connected() {
                return Ok(lent);
            }
        }
        let channel = link.channel().await?;
        answer(channel.confirm_select(ConfirmSelectOptions::default()))
            .await
            .map_err(|trouble| link.lost(trouble))?;
        Ok(Lent {
            channel,
            link: number,
        })
    }

    fn give_back(&self, lent: Lent) {
        self.shared.idle().push(lent);
    }

    /// Declares the topology again, unless somebody did since `seen`.
    async fn declare_again(&self, seen: u64) -> Result<(), BrokerError> {
        let _declaring = self.shared.declaring.lock().await;
        if self.shared.declared_again.load(Ordering::Acquire) != seen {
            return Ok(());
        }
        let State::Up(link, _) = self.shared.state.borrow().clone() else {
            return Ok(());
        };
        warn!(
            queue = self.shared.topology.name(Place::Work),
            "a message was returned: a queue is missing; declaring all queues again"
        );
        self.shared.topology.declare_on(&link).await?;
        self.shared.declared_again.fetch_add(1, Ordering::Release);
        Ok(())
    }

    fn what_is_in_the_way(&self) -> String {
        if self.is_blocked() {
            return BLOCKED.into();
        }
        match &*self.shared.state.borrow() {
            State::Away(error) => error.to_string(),
            _ => format!("no confirm within {} seconds", ANSWER_TIMEOUT.as_secs()),
        }
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher")
            .field("queue", &self.shared.topology.name(Place::Work))
            .field("connected", &self.is_connected())
            .field("blocked", &self.is_blocked())
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn idle(&self) -> MutexGuard<'_, Vec<Lent>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_idle(&self) -> Option<Lent> {
        self.idle().pop()
    }

    /// One connection, from its making to its end. Answers with why it ended, or could not be made.
    async fn live(
        &self,
        address: &Address,
        identity: &Identity,
        outage: &mut Outage,
    ) -> Result<String, BrokerError> {
        let link = Link::open(address, identity, "publish").await?;
        // The one listener there may be: two would take each other's events.
        let mut events = std::pin::pin!(link.connection.events_listener());
        if self.declare {
            self.topology.declare_on(&link).await?;
        }
        let link = Arc::new(link);
        let number = self.links.fetch_add(1, Ordering::Relaxed);
        self.block(link.connection.status().blocked());
        self.state.send_replace(State::Up(link.clone(), number));
        self.metrics.connected(Wire::Publish, outage.restored());

        let mut look = interval(LOOK);
        let mut reason = None;
        while link.is_up() {
            let event = tokio::select! {
                event = events.next() => event,
                _ = look.tick() => continue,
            };
            match event {
                Some(Event::ConnectionBlocked(why)) => {
                    self.block(true);
                    warn!(
                        broker.reason = why,
                        "RabbitMQ blocks publishers: copies wait until its alarm ends (see `rabbitmqctl status`)"
                    );
                }
                Some(Event::ConnectionUnblocked) => {
                    self.block(false);
                    info!("RabbitMQ takes messages again");
                }
                Some(Event::Error(error)) => reason = Some(Trouble::from(error).sentence),
                Some(_) => {}
                None => break,
            }
        }
        Ok(reason.unwrap_or_else(|| "it is closed".into()))
    }

    fn block(&self, blocked: bool) {
        self.blocked.send_replace(blocked);
        self.metrics.blocked(blocked);
    }

    /// Forgets the connection.
    fn leave(&self, state: State) {
        let former = self.state.send_replace(state);
        self.metrics.disconnected(Wire::Publish);
        self.block(false);
        self.idle().clear();
        drop(former);
    }
}

/// Makes connections, one after the other, until it is told to stop.
async fn supervise(
    shared: Arc<Shared>,
    address: Address,
    identity: Identity,
    stop: CancellationToken,
) {
    let mut outage = Outage::new("publish");
    let connecting = async {
        loop {
            let pause = match shared.live(&address, &identity, &mut outage).await {
                Ok(reason) => {
                    let pause = outage.broke(&reason);
                    shared.leave(State::Away(BrokerError::Unreachable {
                        address: address.to_string(),
                        reason,
                    }));
                    pause
                }
                Err(error) => {
                    let pause = outage.failed(&error);
                    shared.leave(State::Away(error));
                    pause
                }
            };
            sleep(pause).await;
        }
    };
    let stopped: Option<()> = stop.run_until_cancelled(connecting).await;
    debug_assert!(stopped.is_none(), "connecting never ends by itself");
    let last = shared.state.borrow().clone();
    shared.leave(State::Closed);
    // To a broker that reads nothing nobody can say goodbye.
    if let State::Up(link, _) = last
        && !link.connection.status().blocked()
    {
        link.close().await;
    }
}

const BLOCKED: &str = "the broker blocks publishers (a memory or disk alarm)";

fn unavailable(queue: &str, reason: String) -> SendError {
    SendError::Unavailable {
        queue: queue.to_owned(),
        reason,
    }
}

fn closed() -> BrokerError {
    BrokerError::Unreachable {
        address: "its address".into(),
        reason: "this side closed the connection".into(),
    }
}
