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

use std::{
    collections::HashMap,
    fmt::Debug,
    marker::PhantomData,
    ops::Index,
    sync::Arc,
    time::{Duration, SystemTime},
};

use metrics::{
    Counter, Gauge, Histogram, Key, Label, Level, Metadata, NoopRecorder, Recorder, SharedString,
    Unit, with_recorder,
};

/// One metric, as it is described to the recorder.
#[derive(Debug)]
pub struct Metric {
    /// Its name, with its unit, as Prometheus's conventions have it.
    pub name: &'static str,
    /// What it does.
    pub kind: Kind,
    /// What it is measured in.
    pub unit: Unit,
    /// Its labels, beside `queue`.
    pub labels: &'static [&'static str],
    /// What it says.
    pub help: &'static str,
}

/// What a metric does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// It grows.
    Counter,
    /// It goes up and down.
    Gauge,
    /// It counts values, by the first of these limits that they do not exceed.
    Histogram(&'static [f64]),
}

impl Kind {
    /// The word for it in Prometheus's text.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram(_) => "histogram",
        }
    }
}

macro_rules! table {
    ($($handle:ident: $kind:expr, $name:literal, $unit:ident, [$($label:literal),*], $help:literal;)+) => {
        $(const $handle: Metric = Metric { name: $name, kind: $kind, unit: Unit::$unit, labels: &[$($label),*], help: $help };)+
        /// Every metric that a worker tells.
        pub const ALL: &[Metric] = &[$($handle),+];
    };
}

/// From a millisecond to half an hour.
const TASKS: Kind = Kind::Histogram(&[
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0,
]);
/// From ten milliseconds to a day.
const JOBS: Kind = Kind::Histogram(&[
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 1800.0,
    3600.0, 14400.0, 86400.0,
]);
/// From half a millisecond to longer than a commit may take.
const COMMITS: Kind = Kind::Histogram(&[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0,
]);
/// From one transition to the largest group.
const GROUPS: Kind = Kind::Histogram(&[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0]);

table! {
    DELIVERIES: Kind::Counter, "cliquet_deliveries_total", Count, ["outcome"],
        "Deliveries from the work queue, by how they ended";
    TASK_ENDS: Kind::Counter, "cliquet_tasks_total", Count, ["handler", "outcome"],
        "Attempts of tasks, by what the ledger says of them";
    TASK_DURATION: TASKS, "cliquet_task_duration_seconds", Seconds, ["handler"],
        "How long a handler took for one attempt, whatever came of it";
    JOB_LATENCY: JOBS, "cliquet_job_latency_seconds", Seconds, [],
        "From a job's first entry in the ledger to its SUCCESS";
    IN_FLIGHT: Kind::Gauge, "cliquet_jobs_in_flight", Count, [],
        "Jobs that this worker runs now";
    PREFETCH: Kind::Gauge, "cliquet_prefetch", Count, [],
        "Deliveries that RabbitMQ may hand to this worker before one of them is settled";
    PARKED: Kind::Counter, "cliquet_parked_total", Count, ["reason"],
        "Messages that were put into the dead queue, by the reason in their header";
    BRAKED: Kind::Gauge, "cliquet_handler_braked", Count, ["handler"],
        "1 while the handler is braked in this worker: its tasks wait, and use up no attempts";
    TAKEOVERS: Kind::Counter, "cliquet_takeovers_total", Count, ["handler"],
        "Jobs of dead workers that this one took over, by the handler they died in: each is a crash of that task";
    FENCED: Kind::Counter, "cliquet_fenced_writes_total", Count, ["transition"],
        "Writes that changed nothing, since the job was cancelled or taken over";
    COMMIT_GROUP: GROUPS, "cliquet_commit_transitions", Count, ["transition"],
        "Transitions of jobs that shared one commit";
    COMMIT_DURATION: COMMITS, "cliquet_commit_duration_seconds", Seconds, ["transition"],
        "How long a commit to the ledger took";
    PUBLISHES: Kind::Counter, "cliquet_publishes_total", Count, ["outcome"],
        "Copies that were sent to RabbitMQ, by what it answered";
    BLOCKED: Kind::Gauge, "cliquet_publishers_blocked", Count, [],
        "1 while RabbitMQ blocks publishers, as it does when memory or disk run short";
    CONNECTED: Kind::Gauge, "cliquet_connected", Count, ["connection"],
        "1 while the connection stands";
    RECONNECTS: Kind::Counter, "cliquet_reconnects_total", Count, ["connection"],
        "Connections that broke and were built again";
    REPAIRS: Kind::Counter, "cliquet_repairs_total", Count, ["kind"],
        "What the reconciler did, by what the ledger said was owed";
    OLDEST_DUE: Kind::Gauge, "cliquet_oldest_job_due_seconds", Seconds, [],
        "For how long the oldest job that is due waits for a worker; 0 when none is";
    HEARTBEAT: Kind::Gauge, "cliquet_heartbeat_timestamp_seconds", Seconds, [],
        "When the ledger last took this worker's heartbeat, since 1970";
}

/// The values of one label.
pub(crate) trait Word: Copy + 'static {
    /// The label.
    const LABEL: &'static str;
    /// All of them.
    const ALL: &'static [Self];
    /// As it stands in the label.
    fn as_str(self) -> &'static str;
    /// Its place in `ALL`.
    fn index(self) -> usize;
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident, $label:literal { $($(#[$variant_doc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum $name { $($(#[$variant_doc])* $variant),+ }

        impl Word for $name {
            const LABEL: &'static str = $label;
            const ALL: &'static [Self] = &[$($name::$variant),+];
            fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text),+ }
            }
            fn index(self) -> usize {
                self as usize
            }
        }
    };
}

words! {
    /// How a delivery ended.
    DeliveryEnd, "outcome" {
        /// Its job was run to SUCCESS.
        Done = "done",
        /// A task failed or was put off: a copy waits on a rung.
        Retrying = "retrying",
        /// A task failed for good: a copy is in the dead queue.
        Parked = "parked",
        /// Parked without a run: it is no job, or not this one.
        Refused = "refused",
        /// The worker stops: it went back, or the rest of its job did.
        HandedBack = "handed_back",
        /// It was held for long: the rest of its job goes on under a new one.
        HandedOver = "handed_over",
        /// Its job was cancelled or taken over while it ran.
        Fenced = "fenced",
        /// A run that had lost its delivery has this one now.
        Adopted = "adopted",
        /// Nothing was left to do: the job is over, or runs here under another, or a newer copy is on its way.
        Duplicate = "duplicate",
        /// An older copy, whose successor was sent again.
        Superseded = "superseded",
        /// Another worker runs the job: a copy waits on a short rung.
        Busy = "busy",
        /// A worker died in its next task: it waits until it may run alone.
        Suspect = "suspect",
        /// The ledger gave no answer: it went back.
        Unclaimed = "unclaimed",
        /// Its connection broke before it was settled: RabbitMQ delivers the message again.
        Lost = "lost",
    }
}

words! {
    /// What became of an attempt.
    TaskEnd, "outcome" {
        /// SUCCESS is committed.
        Success = "success",
        /// It failed and is tried again.
        Retried = "retried",
        /// It failed, and its job is given up.
        GivenUp = "given_up",
        /// Its handler is braked: it waits, and the attempt does not count.
        Deferred = "deferred",
        /// Nothing of it was kept: the worker stops, or the job is no longer its own.
        Unfinished = "unfinished",
    }
}

words! {
    /// What is written in one commit.
    Transition, "transition" {
        /// Jobs are admitted, tasks end well and the next ones begin.
        Step = "step",
        /// A handler's transaction, with its task's SUCCESS.
        Transaction = "transaction",
        /// Known jobs are claimed.
        Claim = "claim",
        /// Attempts failed.
        Fail = "fail",
        /// Tasks of braked handlers are put off.
        Defer = "defer",
        /// Jobs are handed back.
        Release = "release",
        /// Copies are known to be confirmed.
        Sent = "sent",
    }
}

words! {
    /// What RabbitMQ said to a message.
    PublishEnd, "outcome" {
        /// It has it.
        Confirmed = "confirmed",
        /// It knows no such queue.
        Returned = "returned",
        /// It does not take it: the queue is full, a node is down, or this user may not publish.
        Refused = "refused",
        /// It is larger than it takes.
        TooLarge = "too_large",
        /// It gave no answer, or there is no connection; the message may be there.
        Unanswered = "unanswered",
    }
}

words! {
    /// A connection that a worker keeps.
    Wire, "connection" {
        /// Deliveries and acknowledgements.
        Consume = "rabbitmq_consume",
        /// Copies and their confirms.
        Publish = "rabbitmq_publish",
        /// The lock and the heartbeat.
        Heartbeat = "postgres_heartbeat",
        /// Group commits.
        Lanes = "postgres_lanes",
    }
}

words! {
    /// What the reconciler did.
    Repair, "kind" {
        /// The first message of a job that was enqueued in SQL.
        Enqueued = "enqueued",
        /// The message of a job that is due and that nobody has claimed.
        Overdue = "overdue",
        /// The message of a job whose worker is dead.
        Abandoned = "abandoned",
        /// The copy of a job that was given up, for the dead queue.
        Unparked = "unparked",
        /// None: what was enqueued is no job, and was given up.
        Condemned = "condemned",
    }
}

/// Why messages are parked. One that is not among them is counted as `other`.
const REASONS: &[&str] = &[
    "exhausted",
    "permanent",
    "crashed",
    "given_up",
    "conflict",
    "foreign_generation",
    "unstorable",
    "bad_header",
    "not_json",
    "not_utf8",
    "not_an_object",
    "wrong_shape",
    "too_large",
    "no_id",
    "bad_id",
    "no_kind",
    "no_tasks",
    "too_many_tasks",
    "empty_name",
    "name_too_long",
    "control_character",
    "nul",
    "out_of_range",
    "other",
];

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

impl Metric {
    fn describe(&self, recorder: &dyn Recorder) {
        let (name, unit) = (self.name.into(), Some(self.unit));
        let help = SharedString::const_str(self.help);
        match self.kind {
            Kind::Counter => recorder.describe_counter(name, unit, help),
            Kind::Gauge => recorder.describe_gauge(name, unit, help),
            Kind::Histogram(_) => recorder.describe_histogram(name, unit, help),
        }
    }
}
