//! Traces for OpenTelemetry: what became of a message, from its publisher on, through every delivery, delay and attempt.
//!
//! | span | kind | below | one for each |
//! |---|---|---|---|
//! | `process QUEUE` | consumer | the `traceparent` of the message | delivery |
//! | `task HANDLER` | internal | `process` | attempt of a task |
//! | `publish QUEUE` | producer | `process` | copy (a retry's on a rung, a parked one, a hand-over), message of the reconciler, `cliquet publish` |
//!
//! A copy carries the `traceparent` of its own `publish`, so the delivery that follows is below that: a job that is tried again,
//! handed over or parked stays in its publisher's trace, and so does one that `cliquet dead retry` sends again. A message that is
//! rebuilt from the ledger (`cliquet retry`, the reconciler) has no headers of its publisher and begins a new trace. Where traces
//! are off, headers are passed on as they are. A malformed `traceparent` counts as none.
//!
//! Attributes are those of OpenTelemetry's conventions for messaging, and `cliquet.job.id`, `cliquet.task.position`, `.handler`,
//! `.label`, `.attempt`, and `cliquet.outcome` in the words of the [metrics](crate::metrics). A failed span has `error.type` and the
//! error's text, cut to 1 KiB: that is whoever's words failed, and may quote what it was given. Nothing else in a span is of a payload,
//! an input or a result.
//!
//! The binary sends them to a collector ([`from_environment`]). A library's user brings a layer of the crate
//! `tracing-opentelemetry` (0.34) that is there before [`Worker::run`](crate::Worker::run); the spans have the target
//! [`TARGET`] and the level INFO. A handler runs within the span of its task, and what it calls may be given
//! [`Place::here`].

mod client;
mod context;
mod export;
mod settings;
mod spans;

pub use context::Place;
pub(super) use context::ids;
pub use export::{Traces, from_environment};
pub use spans::producer;
pub(crate) use spans::{TaskSpan, Tracing, continued, ended, failed, of_job, sent};

/// The target of all spans that are for traces, and of nothing else.
pub const TARGET: &str = "cliquet::traces";
