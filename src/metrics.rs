//! What is counted and measured: one table of every metric, and the handles through which it is told.
//!
//! The facade is the crate `metrics`: whoever runs a [`Worker`](crate::Worker) in a program of his own installs the recorder
//! that he likes before [`Worker::run`](crate::Worker::run); the binary installs Prometheus's
//! ([`telemetry::metrics`](crate::telemetry::metrics)) when it serves HTTP. Without a recorder, telling costs a branch.
//!
//! Every handle is made when a worker begins, with all values that its labels can have. So the hot path makes no look-up
//! and no allocation, and a counter is there with 0 before it is first needed: an increase from nothing is none to Prometheus.
//! For the same reason no label has a value that comes from a message: what a worker does not know is `(unknown)`.
//!
//! Every metric has the label `queue`, the work queue, which RabbitMQ's own metrics of its queues have, too.

mod table;

use std::{
    collections::HashMap,
    fmt::Debug,
    marker::PhantomData,
    ops::Index,
    sync::Arc,
    time::{Duration, SystemTime},
};

use metrics::{
    Counter, Gauge, Histogram, Key, Label, Level, Metadata, NoopRecorder, Recorder, with_recorder,
};

pub use table::{ALL, Kind, Metric};

use table::{
    BLOCKED, BRAKED, COMMIT_DURATION, COMMIT_GROUP, CONNECTED, DELIVERIES, FENCED, HEARTBEAT,
    IN_FLIGHT, JOB_LATENCY, OLDEST_DUE, PARKED, PREFETCH, PUBLISHES, REASONS, RECONNECTS, REPAIRS,
    TAKEOVERS, TASK_DURATION, TASK_ENDS,
};
pub(crate) use table::{DeliveryEnd, PublishEnd, Repair, TaskEnd, Transition, Wire, Word};

/// Stands in the label of handlers for one that this worker does not have.
const UNKNOWN: &str = "(unknown)";

/// One handle for each value of a label.
#[derive(Debug)]
pub(crate) struct Each<W, H>(Vec<H>, PhantomData<W>);

impl<W: Word, H> Index<W> for Each<W, H> {
    type Output = H;
    fn index(&self, word: W) -> &H {
        &self.0[word.index()]
    }
}

/// All that a worker tells, ready to be told.
#[derive(Debug)]
pub(crate) struct Metrics {
    deliveries: Each<DeliveryEnd, Counter>,
    job_latency: Histogram,
    in_flight: Gauge,
    prefetch: Gauge,
    parked: Vec<Counter>,
    handlers: HashMap<String, Arc<OfHandler>>,
    unknown: Arc<OfHandler>,
    fenced: Each<Transition, Counter>,
    groups: Each<Transition, Histogram>,
    commits: Each<Transition, Histogram>,
    publishes: Each<PublishEnd, Counter>,
    blocked: Gauge,
    connected: Each<Wire, Gauge>,
    reconnects: Each<Wire, Counter>,
    repairs: Each<Repair, Counter>,
    oldest_due: Gauge,
    heartbeat: Gauge,
}

/// What is told of one handler.
#[derive(Debug)]
pub(crate) struct OfHandler {
    tasks: Each<TaskEnd, Counter>,
    duration: Histogram,
    braked: Gauge,
    takeovers: Counter,
}

/// Nobody hears what these tell.
impl Default for Metrics {
    fn default() -> Self {
        Self::with(&NoopRecorder, "", [])
    }
}

impl Metrics {
    /// Describes and registers all of it with the recorder that the process has now.
    pub(crate) fn register<'h>(queue: &str, handlers: impl IntoIterator<Item = &'h str>) -> Self {
        with_recorder(|recorder| {
            ALL.iter().for_each(|metric| metric.describe(recorder));
            Self::with(recorder, queue, handlers)
        })
    }

    fn with<'h>(
        recorder: &dyn Recorder,
        queue: &str,
        handlers: impl IntoIterator<Item = &'h str>,
    ) -> Self {
        let register = &Registry {
            recorder,
            queue: Label::new("queue", queue.to_owned()),
        };
        let of_handler = |name: &str| {
            Arc::new(OfHandler::register(
                register,
                Label::new("handler", name.to_owned()),
            ))
        };
        Self {
            deliveries: register.each(|label| register.counter(&DELIVERIES, [label])),
            job_latency: register.histogram(&JOB_LATENCY, []),
            in_flight: register.gauge(&IN_FLIGHT, []),
            prefetch: register.gauge(&PREFETCH, []),
            parked: REASONS
                .iter()
                .map(|reason| register.counter(&PARKED, [Label::new("reason", *reason)]))
                .collect(),
            handlers: handlers
                .into_iter()
                .map(|name| (name.to_owned(), of_handler(name)))
                .collect(),
            unknown: of_handler(UNKNOWN),
            fenced: register.each(|label| register.counter(&FENCED, [label])),
            groups: register.each(|label| register.histogram(&COMMIT_GROUP, [label])),
            commits: register.each(|label| register.histogram(&COMMIT_DURATION, [label])),
            publishes: register.each(|label| register.counter(&PUBLISHES, [label])),
            blocked: register.gauge(&BLOCKED, []),
            // Lanes connect when they are needed, each for itself: what they share is how often that had to be again.
            connected: register.each(|label| match label.value() {
                value if value == Wire::Lanes.as_str() => Gauge::noop(),
                _ => register.gauge(&CONNECTED, [label]),
            }),
            reconnects: register.each(|label| register.counter(&RECONNECTS, [label])),
            repairs: register.each(|label| register.counter(&REPAIRS, [label])),
            oldest_due: register.gauge(&OLDEST_DUE, []),
            heartbeat: register.gauge(&HEARTBEAT, []),
        }
    }

    /// What is told of this handler.
    pub(crate) fn handler(&self, name: &str) -> &Arc<OfHandler> {
        self.handlers.get(name).unwrap_or(&self.unknown)
    }

    /// A delivery ended.
    pub(crate) fn delivery(&self, end: DeliveryEnd) {
        self.deliveries[end].increment(1);
    }

    /// A job is in flight until this is dropped.
    pub(crate) fn in_flight(&self) -> InFlight<'_> {
        self.in_flight.increment(1.0);
        InFlight(&self.in_flight)
    }

    /// A job is SUCCESS, so long after the ledger first knew it.
    pub(crate) fn job_done(&self, latency: Duration) {
        self.job_latency.record(latency);
    }

    /// The broker hands out so many deliveries at a time.
    pub(crate) fn prefetch(&self, deliveries: u16) {
        self.prefetch.set(deliveries);
    }

    /// A message is in the dead queue.
    pub(crate) fn parked(&self, reason: &str) {
        let known = REASONS.iter().position(|known| *known == reason);
        self.parked[known.unwrap_or(REASONS.len() - 1)].increment(1);
    }

    /// A group of transitions was committed together.
    pub(crate) fn committed(&self, transition: Transition, group: usize, took: Duration) {
        self.groups[transition].record(group as f64);
        self.commits[transition].record(took);
    }

    /// A write changed nothing: somebody else owns the job.
    pub(crate) fn fenced(&self, transition: Transition) {
        self.fenced[transition].increment(1);
    }

    /// A message was sent, or not.
    pub(crate) fn published(&self, end: PublishEnd) {
        self.publishes[end].increment(1);
    }

    /// Whether the broker blocks publishers.
    pub(crate) fn blocked(&self, blocked: bool) {
        self.blocked.set(u8::from(blocked));
    }

    /// The connection stands, for the first time or again.
    pub(crate) fn connected(&self, connection: Wire, again: bool) {
        self.connected[connection].set(1);
        if again {
            self.reconnects[connection].increment(1);
        }
    }

    /// The connection is gone.
    pub(crate) fn disconnected(&self, connection: Wire) {
        self.connected[connection].set(0);
    }

    /// The reconciler did something.
    pub(crate) fn repaired(&self, repair: Repair) {
        self.repairs[repair].increment(1);
    }

    /// The oldest job that is due waits for so long.
    pub(crate) fn oldest_due(&self, waits: Duration) {
        self.oldest_due.set(waits);
    }

    /// The ledger has just taken a heartbeat.
    pub(crate) fn heartbeat(&self) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        self.heartbeat.set(now.unwrap_or_default());
    }
}

/// One of the jobs in flight.
pub(crate) struct InFlight<'m>(&'m Gauge);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

impl OfHandler {
    fn register(register: &Registry<'_>, handler: Label) -> Self {
        let handler = &handler;
        Self {
            tasks: register.each(|label| register.counter(&TASK_ENDS, [handler.clone(), label])),
            duration: register.histogram(&TASK_DURATION, [handler.clone()]),
            braked: register.gauge(&BRAKED, [handler.clone()]),
            takeovers: register.counter(&TAKEOVERS, [handler.clone()]),
        }
    }

    /// An attempt ended so.
    pub(crate) fn task(&self, end: TaskEnd) {
        self.tasks[end].increment(1);
    }

    /// The handler took so long.
    pub(crate) fn took(&self, duration: Duration) {
        self.duration.record(duration);
    }

    /// Whether the handler is braked.
    pub(crate) fn braked(&self, braked: bool) {
        self.braked.set(u8::from(braked));
    }

    /// A worker died in it.
    pub(crate) fn taken_over(&self) {
        self.takeovers.increment(1);
    }
}

/// Makes handles.
struct Registry<'r> {
    recorder: &'r dyn Recorder,
    queue: Label,
}

/// What recorders may filter by.
const ABOUT: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

impl Registry<'_> {
    fn each<W: Word, H>(&self, handle: impl Fn(Label) -> H) -> Each<W, H> {
        let label = |word: &W| Label::new(W::LABEL, word.as_str());
        Each(
            W::ALL.iter().map(|word| handle(label(word))).collect(),
            PhantomData,
        )
    }

    fn key<const N: usize>(&self, metric: &Metric, labels: [Label; N]) -> Key {
        debug_assert!(
            labels
                .iter()
                .map(Label::key)
                .eq(metric.labels.iter().copied()),
            "{} is described with other labels",
            metric.name
        );
        let labels: Vec<_> = [self.queue.clone()].into_iter().chain(labels).collect();
        Key::from_parts(metric.name, labels)
    }

    fn counter<const N: usize>(&self, metric: &Metric, labels: [Label; N]) -> Counter {
        let counter = self
            .recorder
            .register_counter(&self.key(metric, labels), &ABOUT);
        counter.increment(0); // so that it is there
        counter
    }

    fn gauge<const N: usize>(&self, metric: &Metric, labels: [Label; N]) -> Gauge {
        let gauge = self
            .recorder
            .register_gauge(&self.key(metric, labels), &ABOUT);
        gauge.increment(0);
        gauge
    }

    fn histogram<const N: usize>(&self, metric: &Metric, labels: [Label; N]) -> Histogram {
        self.recorder
            .register_histogram(&self.key(metric, labels), &ABOUT)
    }
}
