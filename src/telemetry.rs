//! What a process tells of itself while it runs. Here log lines, always on standard error: standard output is for data;
//! `metrics` gives Prometheus's text, `traces` OpenTelemetry's spans.

mod json;
pub mod metrics;
pub mod traces;

use std::io::{self, IsTerminal};

use tracing::{Level, Metadata};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{FilterExt, filter_fn},
    fmt,
    layer::SubscriberExt,
    registry,
    util::SubscriberInitExt,
};

use traces::Traces;

/// What a worker logs when `RUST_LOG` says nothing: cliquet's own story, and what goes wrong in the libraries beneath.
///
/// Without lapin's own lines, nor those of the verifier of certificates: they log every refusal and every lost connection
/// as an error of its own, several times, and all of them are told once, in words, where they are handled. sqlx's reading of
/// an address warns of keys that it does not know and prints their values, which may be a password under a misspelt key.
pub const STORY: &str =
    "cliquet=info,lapin=off,rustls_platform_verifier=off,sqlx_postgres::options=error,warn";
/// What a command for people logs when `RUST_LOG` says nothing: only what goes wrong.
pub const WARNINGS: &str = "cliquet=warn,lapin=off,rustls_platform_verifier=off,error";

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One line of text an event, in colour on a terminal (unless `NO_COLOR` is set).
    Text,
    /// One JSON object a line, for log collectors.
    Json,
}

/// Logs this process to standard error. `RUST_LOG` chooses what, as everywhere (`cliquet=debug,lapin=info`); `usual` is
/// what is logged without it ([`STORY`] or [`WARNINGS`]). What `traces` collects is not for `RUST_LOG` to choose.
///
/// # Errors
/// A sentence, when `RUST_LOG` cannot be read. A process that has a subscriber already keeps it.
pub fn init(format: LogFormat, usual: &str, traces: Option<&Traces>) -> Result<(), String> {
    let wanted = std::env::var("RUST_LOG").unwrap_or_default();
    let filter = match wanted.trim() {
        "" => EnvFilter::new(usual),
        wanted => EnvFilter::try_new(wanted).map_err(|error| {
            format!(
                "RUST_LOG is {wanted:?}, which cannot be read: {error}; expected such as {STORY:?}"
            )
        })?,
    };
    let colour =
        io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty());
    let lines = fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(colour)
        // A reader of standard error that went away must not end a worker.
        .log_internal_errors(false);
    let lines = match (format, traces) {
        (LogFormat::Text, _) => lines.boxed(),
        (LogFormat::Json, None) => lines.json().flatten_event(true).boxed(),
        (LogFormat::Json, Some(_)) => lines
            .json()
            .flatten_event(true)
            .map_event_format(json::WithIds)
            .boxed(),
    };
    // Failing means that the process has a subscriber, which then is the one its owner wants.
    let _ = match traces {
        None => registry()
            .with(lines)
            .with(filter)
            .with(filter_fn(|about| harmless(about) && !for_traces(about)))
            .try_init(),
        Some(traces) => {
            let harmless = filter_fn(|about| {
                harmless(about) && (!for_traces(about) || about.name() == "task")
            });
            registry()
                .with(lines.with_filter(filter.and(harmless)))
                .with(traces.layer())
                .try_init()
        }
    };
    Ok(())
}

/// What `RUST_LOG` cannot switch on: lapin traces every frame, and the one that logs in has the password.
/// sqlx warns of a key in an address that it does not know, with its value.
fn harmless(about: &Metadata<'_>) -> bool {
    let target = about.target();
    !(target.starts_with("lapin") && *about.level() == Level::TRACE
        || target.starts_with("sqlx_postgres::options"))
}

/// Spans that are collected and are in no log line; of the one of a task log lines tell, too.
fn for_traces(about: &Metadata<'_>) -> bool {
    about.target() == traces::TARGET
}
