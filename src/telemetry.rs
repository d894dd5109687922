//! Log lines, always on standard error: standard output is for data.

use std::io::{self, IsTerminal};

use tracing_subscriber::{EnvFilter, fmt, util::SubscriberInitExt};

/// What is logged when `RUST_LOG` says nothing: cliquet's own story, and what goes wrong in the libraries beneath.
const USUAL: &str = "cliquet=info,warn,lapin=off";

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One line of text an event, in colour on a terminal (unless `NO_COLOR` is set).
    Text,
    /// One JSON object a line, for log collectors.
    Json,
}

/// Logs this process to standard error. `RUST_LOG` chooses what, as everywhere (`cliquet=debug,lapin=info`).
///
/// # Errors
/// A sentence, when `RUST_LOG` cannot be read. A process that has a subscriber already keeps it.
pub fn init(format: LogFormat) -> Result<(), String> {
    let wanted = std::env::var("RUST_LOG").unwrap_or_default();
    let filter = match wanted.trim() {
        "" => EnvFilter::new(USUAL),
        wanted => EnvFilter::try_new(wanted).map_err(|error| {
            format!(
                "RUST_LOG is {wanted:?}, which cannot be read: {error}; expected such as {USUAL:?}"
            )
        })?,
    };
    let colour =
        io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty());
    let lines = fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(colour)
        // A reader of standard error that went away must not end a worker.
        .log_internal_errors(false);
    // Failing means that the process has a subscriber, which then is the one its owner wants.
    let _ = match format {
        LogFormat::Text => lines.finish().try_init(),
        LogFormat::Json => lines.json().flatten_event(true).finish().try_init(),
    };
    Ok(())
}
