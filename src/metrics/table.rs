//! Every metric, and every value that its labels can have.

use metrics::{Recorder, SharedString, Unit};

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
        $(pub(super) const $handle: Metric = Metric { name: $name, kind: $kind, unit: Unit::$unit, labels: &[$($label),*], help: $help };)+
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

impl Metric {
    pub(super) fn describe(&self, recorder: &dyn Recorder) {
        let (name, unit) = (self.name.into(), Some(self.unit));
        let help = SharedString::const_str(self.help);
        match self.kind {
            Kind::Counter => recorder.describe_counter(name, unit, help),
            Kind::Gauge => recorder.describe_gauge(name, unit, help),
            Kind::Histogram(_) => recorder.describe_histogram(name, unit, help),
        }
    }
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
pub(super) const REASONS: &[&str] = &[
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
