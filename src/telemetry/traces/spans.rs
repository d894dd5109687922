//! The spans, named as OpenTelemetry's conventions for messaging name them.

use opentelemetry::{
    Context,
    trace::{Status, TraceContextExt},
};
use tracing::{Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::{
    TARGET,
    context::{Place, carry, is_one, remote},
};
use crate::{
    broker::{self, Delivery, Letter, Publisher, SendError},
    job::{JobId, Position, TaskSpec},
    metrics::{TaskEnd, Word},
    task::{TaskError, WhatNext},
};

/// The longest text of an error in a span, in bytes.
const LONGEST_ERROR: usize = 1024;

/// Makes a worker's spans, or none at all where nobody collects any.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tracing(bool);

impl Tracing {
    /// Looks whether this process has a layer of `tracing-opentelemetry`. Others would only pay for spans.
    pub(crate) fn look() -> Self {
        let probe = info_span!(target: TARGET, parent: None, "probe");
        // Whoever collects spans does not collect this one.
        Self(
            probe
                .set_parent(Context::new().with_telemetry_suppressed())
                .is_ok(),
        )
    }

    /// The span of a delivery, in the trace that its publisher or the copy before it has begun; otherwise in a new one.
    pub(crate) fn process(self, queue: &str, delivery: &Delivery) -> Span {
        if !self.0 {
            return Span::none();
        }
        let span = info_span!(
            target: TARGET,
            parent: None,
            "process",
            otel.name = format_args!("process {queue}"),
            otel.kind = "consumer",
            messaging.system = "rabbitmq",
            messaging.operation.name = "process",
            "messaging.operation.type" = "process",
            messaging.destination.name = queue,
            messaging.message.id = delivery.message_id(),
            messaging.message.body.size = bytes(delivery.body().len()),
            cliquet.redelivered = delivery.redelivered(),
        );
        if let Some(parent) = remote(|name| delivery.header(name)) {
            let _ = span.set_parent(parent);
        }
        span
    }

    /// The span of one attempt of a task, from before its handler until its SUCCESS is committed.
    pub(crate) fn task(
        self,
        job: JobId,
        position: Position,
        attempt: u32,
        spec: &TaskSpec,
    ) -> TaskSpan {
        if !self.0 {
            return TaskSpan(Span::none());
        }
        let span = info_span!(
            target: TARGET,
            "task",
            cliquet.job.id = %job,
            cliquet.task.position = i64::from(position),
            cliquet.task.handler = spec.handler,
            cliquet.task.attempt = i64::from(attempt),
        );
        // Log lines show the fields above, and need no more.
        span.set_attribute("cliquet.task.label", spec.label.clone());
        let context = span.context();
        context.span().update_name(format!("task {}", spec.handler));
        TaskSpan(span)
    }

    /// The span of sending a letter, and the letter with it as its place in the trace; see [`producer`].
    pub(crate) fn publish(
        self,
        publisher: &Publisher,
        place: &broker::Place,
        letter: Letter,
    ) -> (Span, Letter) {
        match self.0 {
            true => producer(&publisher.queue(place), letter),
            false => (Span::none(), letter),
        }
    }
}

/// The span of one attempt of a task. One that is let go without a word was not finished.
#[derive(Debug)]
pub(crate) struct TaskSpan(Span);

impl TaskSpan {
    /// What belongs to the attempt happens within this.
    pub(crate) fn span(&self) -> Span {
        self.0.clone()
    }

    /// The same, or another for log lines where nobody collects spans.
    pub(crate) fn or_else(&self, plain: impl FnOnce() -> Span) -> Span {
        match self.0.is_none() {
            true => plain(),
            false => self.span(),
        }
    }

    /// The attempt has failed; what follows from that is told by [`ended`](Self::ended).
    pub(crate) fn failed(&self, error: &TaskError) {
        let kind = match error.what_next() {
            WhatNext::Retry => "retry",
            WhatNext::RetryAfter(_) => "retry_after",
            WhatNext::Permanent => "permanent",
        };
        failed(&self.0, kind, error.message());
    }

    /// The attempt is over, and the ledger knows how it ended.
    pub(crate) fn ended(mut self, end: TaskEnd) {
        ended(&self.0, end.as_str());
        self.0 = Span::none();
    }
}

impl Drop for TaskSpan {
    fn drop(&mut self) {
        ended(&self.0, TaskEnd::Unfinished.as_str());
    }
}

/// The span of sending a letter to a queue, and the letter with this span as its place in the trace, so that whoever receives it
/// goes on from there. The span belongs below the present one, or continues the trace that the letter has already.
///
/// Send the letter within the span, and let the span go afterwards. Without a layer of `tracing-opentelemetry` the letter is as
/// it was.
///
/// ```no_run
/// use cliquet::{broker::{Letter, Place, Publisher, SendError}, telemetry::traces};
/// use tracing::Instrument;
///
/// # async fn publish(publisher: Publisher, letter: Letter) -> Result<(), SendError> {
/// let (span, letter) = traces::producer(&publisher.queue(&Place::Work), letter);
/// publisher.send(&Place::Work, &letter).instrument(span).await
/// # }
/// ```
pub fn producer(queue: &str, letter: Letter) -> (Span, Letter) {
    let span = info_span!(
        target: TARGET,
        "publish",
        otel.name = format_args!("publish {queue}"),
        otel.kind = "producer",
        messaging.system = "rabbitmq",
        messaging.operation.name = "publish",
        "messaging.operation.type" = "send",
        messaging.destination.name = queue,
        messaging.rabbitmq.destination.routing_key = queue,
        messaging.message.id = letter.message_id(),
        messaging.message.body.size = bytes(letter.size()),
    );
    let below_another = Context::map_current(is_one) || is_one(&Span::current().context());
    if !below_another && let Some(parent) = remote(|name| letter.header(name)) {
        let _ = span.set_parent(parent);
    }
    match Place::of(&span.context()) {
        Some(place) => {
            let letter = carry(letter, &place);
            (span, letter)
        }
        None => (span, letter),
    }
}

/// A letter that goes on from the place that this process was given in its environment (`TRACEPARENT`), where it has none of its
/// own.
pub(crate) fn continued(letter: Letter) -> Letter {
    match Place::given() {
        Some(place) if letter.header("traceparent").is_none() => carry(letter, &place),
        _ => letter,
    }
}

/// Only a signed number is one in a span.
fn bytes(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

/// Which job a delivery is of.
pub(crate) fn of_job(span: &Span, job: JobId) {
    if !span.is_none() {
        span.set_attribute("cliquet.job.id", job.to_string());
    }
}

/// How a delivery or an attempt ended, as metrics have it.
pub(crate) fn ended(span: &Span, outcome: &'static str) {
    if !span.is_none() {
        span.set_attribute("cliquet.outcome", outcome);
    }
}

/// It failed: by which kind of error, and the error as people read it, cut to 1 KiB.
pub(crate) fn failed(span: &Span, kind: &'static str, error: &str) {
    if !span.is_none() {
        span.set_attribute("error.type", kind);
        let cut = &error[..error.floor_char_boundary(LONGEST_ERROR)];
        span.set_status(Status::error(cut.to_owned()));
    }
}

/// A letter was sent, or not.
pub(crate) fn sent(span: &Span, sent: &Result<(), SendError>) {
    let Err(error) = sent else { return };
    if span.is_none() {
        return;
    }
    let kind = match error {
        SendError::Unroutable { .. } => "unroutable",
        SendError::Refused { .. } => "refused",
        SendError::Denied { .. } => "denied",
        SendError::Unavailable { .. } => "unavailable",
        SendError::TooLarge { .. } => "too_large",
        SendError::Cancelled { .. } => "cancelled",
    };
    failed(span, kind, &error.to_string());
}
