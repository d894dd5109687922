//! The story: a worker receives deliveries, bounds how many jobs run, and drains when it is asked to stop.
//!
//! In reading order: `delivery` (one delivery: decode, claim, run, settle), `run` (one job, task after task),
//! `attempt` (one execution of a task), `brake` (whether a handler's tasks run at all), `commit` (how it enters the ledger),
//! `settlement` (what follows, decided and done), `in_hand` (who runs what in this process), `heartbeat`, `reconcile`,
//! `prune`, `status` (whether it is ready). A `cut!` is a place where tests kill the worker; a release build has none.

mod attempt;
mod brake;
mod builder;
mod commit;
mod delivery;
mod heartbeat;
mod in_hand;
mod prune;
mod reconcile;
mod run;
mod settlement;
mod status;

use std::{future::Future, pin::pin, sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{sleep, timeout},
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tracing::{info, warn};

pub use builder::{Builder, WorkerError};
pub use status::Status;

use crate::{
    broker::{Address, Consumer, Identity, Publisher, Topology},
    config::{Config, host},
    fail_point::cut,
    ledger::{About, Ledger, LedgerAddress, Presence, Present, Tally},
    metrics::Metrics,
    task::{Registry, State},
    telemetry::traces::Tracing,
};
use brake::Brakes;
use in_hand::InHand;

/// How long a job whose worker has died in its next task waits here for its turn among such jobs, before a copy waits on a
/// rung instead. A worker leaves many of them behind, and on the rungs they would all come back together and find one
/// permit: of each wave one went on.
const TURN_MAY_COME: Duration = Duration::from_secs(5);
/// How long after the drain's deadline the cut attempts have to be handed back, before the worker leaves them to the
/// next claim.
const LAST_WRITES: Duration = Duration::from_secs(10);

/// A worker: handlers by name, and the services it connects.
pub struct Worker {
    config: Config,
    amqp: Address,
    database: LedgerAddress,
    topology: Topology,
    registry: Registry,
    state: State,
    tally: Arc<Tally>,
    status: Status,
}

impl Worker {
    /// Begins with the defaults, and with `AMQP_URL` and `DATABASE_URL` from the environment.
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// Whether it takes jobs, to be asked while it runs: for a readiness check.
    pub fn status(&self) -> Status {
        self.status.clone()
    }

    /// What its ledger does, counted while it runs.
    pub(crate) fn tally(&self) -> Arc<Tally> {
        self.tally.clone()
    }

    /// Runs until the process is asked to stop (SIGTERM or SIGINT), then drains: it takes no more deliveries, lets each
    /// running task end and commit (up to `drain_timeout`), and hands the rest of its jobs back at once. A second signal
    /// leaves at once, with the status that the signal has by convention (130 or 143).
    ///
    /// Its [`metrics`](crate::metrics) go to the recorder that the process has when this is called, and its spans
    /// ([`telemetry::traces`](crate::telemetry::traces)) to the layer that it has then.
    ///
    /// # Errors
    /// [`WorkerError`], when it cannot begin. Services that are away are waited for.
    pub async fn run(self) -> Result<(), WorkerError> {
        let stop = CancellationToken::new();
        tokio::spawn(builder::signals(stop.clone()));
        self.run_until(stop.cancelled_owned()).await
    }

    /// Runs until `stop` is ready, then drains as [`run`](Self::run) does.
    ///
    /// # Errors
    /// [`WorkerError`], when it cannot begin. Services that are away are waited for.
    pub async fn run_until(self, stop: impl Future<Output = ()>) -> Result<(), WorkerError> {
        let beside = TaskTracker::new();
        let ended = self.work(stop, &beside).await;
        // A runtime that ends first makes sqlx panic where a session is being opened. One that had begun has waited already.
        if !beside.is_closed() {
            end(&beside).await;
        }
        if ended.is_ok() {
            info!("stopped");
        }
        ended
    }

    /// What goes on `beside` the deliveries ends soon afterwards.
    async fn work(
        self,
        stop: impl Future<Output = ()>,
        beside: &TaskTracker,
    ) -> Result<(), WorkerError> {
        let mut stop = pin!(stop);
        let begun = tokio::select! {
            begun = self.begin(beside) => begun?,
            () = &mut stop => return Ok(()),
        };
        let Begun {
            crew,
            consumer,
            beating,
        } = begun;
        let reconciler = tokio::spawn(reconcile::reconcile(crew.clone(), crew.drain.clone()));

        let deliveries = TaskTracker::new();
        loop {
            tokio::select! {
                delivery = consumer.next() => match delivery {
                    Some(delivery) => drop(deliveries.spawn(delivery::handle(crew.clone(), delivery))),
                    None => break,
                },
                () = &mut stop => break,
            }
        }

        info!(
            jobs = crew.in_hand.running().len(), drain_timeout = %humantime::format_duration(crew.config.drain_timeout),
            "stopping: running tasks end, the rest is handed back"
        );
        crew.drain.cancel();
        cut!(Draining);
        deliveries.close();
        // Together and under one limit: a broker that does not answer must not eat the running tasks' time.
        let drained = async { tokio::join!(consumer.stop(), deliveries.wait()) };
        if timeout(crew.config.drain_timeout, drained).await.is_err() {
            warn!(
                jobs = crew.in_hand.running().len(),
                "the drain's time is over; what still runs is cut short and handed back uncounted"
            );
            crew.deadline.cancel();
            if timeout(LAST_WRITES, deliveries.wait()).await.is_err() {
                warn!(
                    jobs = crew.in_hand.running().len(),
                    "leaving with writes undone; the next claim of these jobs finds out"
                );
            }
        }
        let _ = timeout(Duration::from_secs(1), reconciler).await;
        drop(beating);
        // The goodbye comes before the broker hands to others what this worker leaves: they then take it at once.
        end(beside).await;
        let _ = timeout(Duration::from_secs(3), consumer.close()).await;
        let _ = timeout(Duration::from_secs(3), crew.publisher.close()).await;
        Ok(())
    }

    async fn begin(self, beside: &TaskTracker) -> Result<Begun, WorkerError> {
        let Self {
            config,
            amqp,
            database,
            topology,
            registry,
            state,
            tally,
            status,
        } = self;
        let about = About {
            name: config.name.clone(),
            host: host(),
            queue: config.queue.clone(),
            patience: config.patience,
        };
        let metrics = Arc::new(Metrics::register(&config.queue, registry.names()));
        tally.tell(metrics.clone());
        let identity = Identity {
            name: config.name.clone(),
        };
        let mut presence = Presence::begin(&database, &about).await?;
        presence.tell(metrics.clone());
        status.registered();
        presence.tell_what_ends(tally.clone());
        let ledger = Ledger::open(
            &database,
            presence.holder(),
            config.lanes,
            config.handler_connections,
            tally,
        );
        // Before anything that may wait for long: a worker that is registered and silent is taken for dead.
        let (in_hand, present, stop) = (
            InHand::default(),
            presence.watch(),
            CancellationToken::new(),
        );
        let brakes = Brakes::new(&registry, &config, &metrics);
        let beating = stop.clone().drop_guard();
        beside.spawn(heartbeat::beat(
            in_hand.clone(),
            brakes.clone(),
            ledger.clone(),
            presence,
            config.heartbeat,
            beside.clone(),
            stop.clone(),
        ));
        beside.spawn(heartbeat::look_for_the_oldest(
            ledger.clone(),
            metrics.clone(),
            config.heartbeat,
            stop,
        ));
        let publisher = Publisher::start_telling(
            amqp.clone(),
            topology.clone(),
            identity.clone(),
            config.publishers,
            config.declare,
            metrics.clone(),
        );
        let consumer = Consumer::start_telling(
            amqp,
            topology,
            identity,
            config.concurrency,
            config.declare,
            metrics.clone(),
        )
        .await?;
        info!(
            worker = config.name, queue = config.queue, concurrency = config.concurrency, database = %database,
            handlers = registry.names().join(", "), "working"
        );
        let crew = Crew {
            places: Arc::new(Semaphore::new(config.concurrency.into())),
            suspects: Arc::new(Semaphore::new(1)),
            waiting: Semaphore::new(usize::from(config.concurrency) / 2),
            present,
            in_hand,
            brakes,
            drain: CancellationToken::new(),
            deadline: CancellationToken::new(),
            config,
            registry,
            state: Arc::new(state),
            ledger,
            publisher,
            metrics,
            tracing: Tracing::look(),
        };
        let crew = Arc::new(crew);
        status.working(&crew, consumer.state());
        Ok(Begun {
            crew,
            consumer,
            beating,
        })
    }
}

/// Waits, not for long, until what has been asked to end has ended.
async fn end(beside: &TaskTracker) {
    beside.close();
    let _ = timeout(Duration::from_secs(3), beside.wait()).await;
}

struct Begun {
    crew: Arc<Crew>,
    consumer: Consumer,
    /// The heartbeat ends, with a goodbye, when this is dropped.
    beating: DropGuard,
}

/// What every delivery of a worker shares.
struct Crew {
    config: Config,
    registry: Registry,
    state: Arc<State>,
    ledger: Ledger,
    publisher: Publisher,
    in_hand: InHand,
    brakes: Brakes,
    metrics: Arc<Metrics>,
    tracing: Tracing,
    /// One permit for each job that runs.
    places: Arc<Semaphore>,
    /// One permit for all jobs with a crash behind them.
    suspects: Arc<Semaphore>,
    /// So many deliveries may wait for it. Not all: they are deliveries that RabbitMQ could send others in place of.
    waiting: Semaphore,
    /// The session in which the worker's lock in the ledger is held.
    present: watch::Receiver<Present>,
    /// Asked to stop: no new task begins.
    drain: CancellationToken,
    /// The drain's time is over: running attempts are cut short, and no copy waits for the broker any more.
    deadline: CancellationToken,
}

/// The right to run a job that may kill the process.
struct Alone(#[expect(dead_code, reason = "held for its drop")] Option<OwnedSemaphorePermit>);

impl Crew {
    /// Waits until there is room for one more job, the worker is present in the ledger, and the broker takes copies;
    /// nothing, when the worker is asked to stop first.
    async fn place(&self) -> Option<OwnedSemaphorePermit> {
        let ready = async {
            // While publishers are blocked no failure could be passed on: what has arrived waits, and consuming pauses by itself.
            self.publisher.unblocked().await;
            let place = self.places.clone().acquire_owned().await.ok();
            self.is_present().await;
            place
        };
        tokio::select! {
            biased;
            () = self.drain.cancelled() => None,
            place = ready => place,
        }
    }

    /// Whether the next task of a run may start: waits while the worker's lock in the ledger is lost, since others may
    /// take its silence for its death.
    async fn may_start(&self, run: &in_hand::Run) -> bool {
        tokio::select! {
            biased;
            () = self.drain.cancelled() => false,
            () = run.cancellation().cancelled() => false,
            () = self.is_present() => true,
        }
    }

    /// The permit to run a job with so many crashes behind it, which may be a few seconds away while other such jobs run.
    /// One that is to be parked runs nothing and needs no permit.
    async fn alone(&self, crashes: u32) -> Option<Alone> {
        if crashes >= self.config.crash_limit {
            return Some(Alone(None));
        }
        if let Ok(permit) = self.suspects.clone().try_acquire_owned() {
            return Some(Alone(Some(permit)));
        }
        let _seat = self.waiting.try_acquire().ok()?;
        let turn = timeout(TURN_MAY_COME, self.suspects.clone().acquire_owned());
        let turn = self.drain.run_until_cancelled(turn).await?;
        Some(Alone(Some(turn.ok()?.ok()?)))
    }

    /// The session in which the worker is present in the ledger now.
    fn session(&self) -> Present {
        *self.present.borrow()
    }

    async fn is_present(&self) {
        // The sender lives as long as the heartbeat; without one there is nothing to wait for.
        if self
            .present
            .clone()
            .wait_for(Option::is_some)
            .await
            .is_err()
        {
            self.drain.cancelled().await;
        }
    }
}

/// A pause with up to a quarter more, so that many workers do not act in step.
async fn about(pause: Duration) {
    let spread = uuid::Uuid::new_v4().as_u128() as u32 as f64 / f64::from(u32::MAX);
    sleep(pause.mul_f64(1.0 + spread / 4.0)).await;
}
