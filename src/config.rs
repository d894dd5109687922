//! The worker's settings. `cliquet.toml` and `CLIQUET_…` fill them for the binary; the library's builder sets them in code.
//!
//! [`Config::load`] reads them: the file first, then the environment, which wins. Every key of the file has a variable of
//! the same name (`drain_timeout` is `CLIQUET_DRAIN_TIMEOUT`, `max_attempts` of `[retry]` is `CLIQUET_RETRY_MAX_ATTEMPTS`,
//! `timeout` of `[handlers.upload_image]` is `CLIQUET_HANDLERS_UPLOAD_IMAGE_TIMEOUT`). `AMQP_URL` and `DATABASE_URL` are read
//! as everyone expects: they win over the file, and `CLIQUET_AMQP_URL` and `CLIQUET_DATABASE_URL` win over them. An empty
//! variable counts as none.

mod given;
mod load;
mod settings;

use std::{collections::BTreeMap, fmt, net::SocketAddr, ops::RangeInclusive, time::Duration};

use humantime::format_duration;

use crate::{
    job::{JobStatus, MAX_NAME_CHARS, MAX_TIMEOUT},
    ledger::LEAST_AGE,
    retry::{Ladder, RetryPolicy},
    task::HandlerOptions,
};

pub use load::{ConfigError, Environment, environment};

/// Everything a worker can be told, with the defaults that `cliquet.toml` documents.
#[derive(Clone)]
pub struct Config {
    /// Where RabbitMQ is: `amqp://user:password@host:5672/vhost`.
    pub amqp_url: String,
    /// Where Postgres is: `postgres://user:password@host:5432/database`.
    pub database_url: String,
    /// The work queue; the delay queues and the dead queue are named after it.
    pub queue: String,
    /// How this worker is called in connection names, consumer tags and the ledger; the host's name by default.
    pub name: String,
    /// How many jobs run at the same time (1 to 2,000); also the consumer's prefetch.
    pub concurrency: u16,
    /// How long a running task may go on after the worker is asked to stop.
    pub drain_timeout: Duration,
    /// When to try again.
    pub retry: RetryPolicy,
    /// The delay queues.
    pub ladder: Ladder,
    /// The pause between heartbeats.
    pub heartbeat: Duration,
    /// A worker whose heartbeat is older than this is taken for dead.
    pub patience: Duration,
    /// After so many crashes of one task its job is parked.
    pub crash_limit: u32,
    /// After so many failures of one handler in a row, of more than one job, its tasks wait without using up attempts, and
    /// one at a time is tried until one succeeds. 0 never does.
    ///
    /// The default is twice the default number of attempts: a few jobs that fail for reasons of their own are parked before.
    pub brake_after: u32,
    /// The longest pause between two tries while a handler is braked; the first ones come sooner.
    pub probe_every: Duration,
    /// A job that has held its delivery for so long is handed over between two tasks, before RabbitMQ's own
    /// `consumer_timeout` (30 min by default) takes the delivery away. Zero hands it over after every task.
    pub hand_over_after: Duration,
    /// The pause between the reconciler's looks.
    pub reconcile_every: Duration,
    /// Jobs of this queue that have been over for longer than this are deleted, with their tasks and their history; `None` keeps
    /// them for ever. At least one hour: a copy of a deleted job's message would run it anew.
    pub prune_after: Option<Duration>,
    /// The statuses of the jobs that `prune_after` deletes: SUCCESS and CANCELLED by default, and FAILED where it is named.
    pub prune_status: Vec<JobStatus>,
    /// Connections that write the ledger with group commit; one is used while its commits are quick.
    pub lanes: usize,
    /// Channels that publish copies.
    pub publishers: usize,
    /// The most connections that handlers' transactions use at the same time.
    pub handler_connections: u32,
    /// Where `cliquet work` and `cliquet web` serve HTTP; `cliquet work` does not, unless it is given.
    pub http: Option<SocketAddr>,
    /// What HTTP hides of jobs: `payload`, `input` or `result`, whole or from a key on (`payload.card.number`).
    pub redact: Vec<String>,
    /// Whether the worker declares its queues, or leaves that to `cliquet topology declare`.
    pub declare: bool,
    /// Ready-made handlers by name (for the binary).
    pub handlers: BTreeMap<String, HandlerConfig>,
}

/// A ready-made handler: what it runs and how.
#[derive(Clone, Debug, Default)]
pub struct HandlerConfig {
    /// The program and its arguments.
    pub exec: Vec<String>,
    /// Where the program runs; the worker's own directory by default.
    pub dir: Option<std::path::PathBuf>,
    /// Names of environment variables that the program is given beside the usual harmless ones.
    pub env: Vec<String>,
    /// The most bytes of standard output that are taken as a result.
    pub output_limit: Option<usize>,
    /// Its own retry policy and time limit.
    pub options: HandlerOptions,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            amqp_url: "amqp://guest:guest@127.0.0.1:5672".into(),
            database_url: String::new(),
            queue: "jobs".into(),
            name: host(),
            concurrency: 64,
            drain_timeout: Duration::from_secs(30),
            retry: RetryPolicy::default(),
            ladder: Ladder::default(),
            heartbeat: Duration::from_secs(2),
            patience: Duration::from_secs(15),
            crash_limit: 3,
            brake_after: 20,
            probe_every: Duration::from_secs(30),
            hand_over_after: Duration::from_secs(20 * 60),
            reconcile_every: Duration::from_secs(5),
            prune_after: None,
            prune_status: vec![JobStatus::Success, JobStatus::Cancelled],
            lanes: 4,
            publishers: 8,
            handler_connections: 32,
            http: None,
            redact: Vec::new(),
            declare: true,
            handlers: BTreeMap::new(),
        }
    }
}

/// Both addresses may hold passwords, so they are left out: a configuration can be logged.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("queue", &self.queue)
            .field("name", &self.name)
            .field("concurrency", &self.concurrency)
            .field("drain_timeout", &self.drain_timeout)
            .field("retry", &self.retry)
            .field("ladder", &self.ladder)
            .field("heartbeat", &self.heartbeat)
            .field("patience", &self.patience)
            .field("crash_limit", &self.crash_limit)
            .field("brake_after", &self.brake_after)
            .field("probe_every", &self.probe_every)
            .field("hand_over_after", &self.hand_over_after)
            .field("reconcile_every", &self.reconcile_every)
            .field("prune_after", &self.prune_after)
            .field("prune_status", &self.prune_status)
            .field("lanes", &self.lanes)
            .field("publishers", &self.publishers)
            .field("handler_connections", &self.handler_connections)
            .field("http", &self.http)
            .field("redact", &self.redact)
            .field("declare", &self.declare)
            .field("handlers", &self.handlers)
            .finish_non_exhaustive()
    }
}

/// A value out of its range: the key as the file writes it (`retry.jitter`) and the sentence.
struct OutOfRange {
    key: String,
    sentence: String,
}

const DAY: Duration = Duration::from_secs(24 * 3600);
const HOUR: Duration = Duration::from_secs(3600);

impl Config {
    /// Whether every value is in its range; [`load`](Self::load) has checked it already.
    ///
    /// # Errors
    /// One sentence a line, each naming its key, what it is and what was expected.
    pub fn check(&self) -> Result<(), String> {
        let sentences: Vec<_> = self
            .out_of_range()
            .into_iter()
            .map(|problem| problem.sentence)
            .collect();
        if sentences.is_empty() {
            Ok(())
        } else {
            Err(sentences.join("\n"))
        }
    }

    fn out_of_range(&self) -> Vec<OutOfRange> {
        let mut found = Vec::new();
        let mut problem = |key: &str, sentence: String| {
            found.push(OutOfRange {
                key: key.to_owned(),
                sentence,
            });
        };
        for (key, number, allowed) in [
            ("concurrency", u64::from(self.concurrency), 1..=2_000),
            ("crash_limit", u64::from(self.crash_limit), 1..=1_000),
            ("lanes", self.lanes as u64, 1..=64),
            ("publishers", self.publishers as u64, 1..=256),
            (
                "handler_connections",
                u64::from(self.handler_connections),
                1..=1_000,
            ),
        ] {
            if !allowed.contains(&number) {
                let (least, most) = (allowed.start(), allowed.end());
                problem(
                    key,
                    format!("`{key}` is {number}; expected {least} to {most}"),
                );
            }
        }
        let some = Duration::from_millis(50);
        let delays: [(&str, Duration, RangeInclusive<Duration>); 6] = [
            ("drain_timeout", self.drain_timeout, Duration::ZERO..=DAY),
            (
                "heartbeat",
                self.heartbeat,
                some..=Duration::from_secs(5 * 60),
            ),
            (
                "patience",
                self.patience,
                (self.heartbeat * 3).max(some)..=HOUR,
            ),
            (
                "hand_over_after",
                self.hand_over_after,
                Duration::ZERO..=DAY,
            ),
            ("reconcile_every", self.reconcile_every, some..=HOUR),
            ("probe_every", self.probe_every, some..=HOUR),
        ];
        for (key, delay, allowed) in delays {
            if !allowed.contains(&delay) {
                let (least, most) = (
                    format_duration(*allowed.start()),
                    format_duration(*allowed.end()),
                );
                let why = if key == "patience" {
                    " (at least three heartbeats)"
                } else {
                    ""
                };
                let delay = format_duration(delay);
                problem(
                    key,
                    format!("`{key}` is {delay}; expected {least} to {most}{why}"),
                );
            }
        }
        if let Some(age) = self.prune_after.filter(|age| *age < LEAST_AGE) {
            let (age, least) = (format_duration(age), format_duration(LEAST_AGE));
            problem(
                "prune_after",
                format!(
                    "`prune_after` is {age}; expected at least {least}: copies of younger jobs' messages may still be under way, and would run them anew"
                ),
            );
        }
        let live = |status: &&JobStatus| {
            !matches!(
                status,
                JobStatus::Success | JobStatus::Cancelled | JobStatus::Failed
            )
        };
        if let Some(status) = self.prune_status.iter().find(live) {
            problem(
                "prune_status",
                format!(
                    "`prune_status` names {status}, and such a job is not over; expected SUCCESS, CANCELLED or FAILED"
                ),
            );
        }
        if let Some(path) = self.redact.iter().find(|path| !is_redaction(path)) {
            problem(
                "redact",
                format!(
                    "`redact` names {path:?}; expected payload, input or result, and keys behind it where it is not the whole: \"payload.card.number\""
                ),
            );
        }
        if !is_name(&self.name) {
            problem(
                "name",
                format!(
                    "`name` is {:?}; expected one line of 1 to {MAX_NAME_CHARS} characters",
                    self.name
                ),
            );
        }
        if let Err(sentence) = self.retry.check() {
            problem(
                &format!("retry.{}", first_quoted(&sentence)),
                format!("[retry]: {sentence}"),
            );
        }
        for (name, handler) in &self.handlers {
            let section = format!("handlers.{name}");
            if !is_name(name) {
                problem(
                    &section,
                    format!(
                        "the handler's name {name:?} cannot be used; expected one line of 1 to {MAX_NAME_CHARS} characters"
                    ),
                );
            }
            if handler.exec.is_empty() {
                problem(
                    &section,
                    format!(
                        "[{section}] says nothing to run; add `exec`, a list with the program first: exec = [\"python3\", \"upload.py\"]"
                    ),
                );
            }
            if let Some(timeout) = handler.options.timeout
                && (timeout.is_zero() || timeout > MAX_TIMEOUT)
            {
                let (timeout, most) = (format_duration(timeout), format_duration(MAX_TIMEOUT));
                problem(
                    &format!("{section}.timeout"),
                    format!(
                        "[{section}]: `timeout` is {timeout}; expected more than 0 and at most {most}"
                    ),
                );
            }
            if let Some(Err(sentence)) = handler.options.retry.map(|retry| retry.check()) {
                problem(
                    &format!("{section}.retry.{}", first_quoted(&sentence)),
                    format!("[{section}.retry]: {sentence}"),
                );
            }
        }
        found
    }
}

/// The machine's name, as operators know the machine or the container by it.
pub(crate) fn host() -> String {
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    if is_name(&name) {
        name
    } else {
        "cliquet".to_owned()
    }
}

fn is_name(text: &str) -> bool {
    !text.trim().is_empty()
        && text.chars().count() <= MAX_NAME_CHARS
        && !text.chars().any(char::is_control)
}

fn is_redaction(path: &str) -> bool {
    let mut parts = path.split('.');
    matches!(
        parts.next(),
        Some("payload" | "input" | "result" | "results")
    ) && parts.all(|part| !part.is_empty())
}

/// Reads the address that HTTP is served at: `127.0.0.1:9464`, `[::1]:9464`, `localhost:9464`, or `:9464`, which is
/// loopback, too. The port 0 is any free one.
///
/// # Errors
/// A sentence.
pub(crate) fn http_address(text: &str) -> Result<SocketAddr, String> {
    let whole = match text.trim().rsplit_once(':') {
        Some(("" | "localhost", port)) => format!("127.0.0.1:{port}"),
        _ => text.trim().to_owned(),
    };
    whole.parse().map_err(|_| {
        format!("{text:?} is no address to listen at; expected an IP address and a port, such as 127.0.0.1:9464")
    })
}

/// The key that a sentence of [`RetryPolicy::check`] is about.
fn first_quoted(sentence: &str) -> &str {
    sentence.split('`').nth(1).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_in_their_ranges() {
        assert_eq!(Config::default().check(), Ok(()));
    }

    #[test]
    fn a_value_out_of_its_range_is_named_with_what_was_expected() {
        let config = Config {
            concurrency: 0,
            patience: Duration::from_secs(3),
            prune_after: Some(Duration::from_secs(60)),
            prune_status: vec![JobStatus::Retrying],
            ..Config::default()
        };
        let sentences = config.check().unwrap_err();
        for words in [
            "`prune_after` is 1m; expected at least 1h",
            "`prune_status` names RETRYING",
        ] {
            assert!(sentences.contains(words), "{sentences}");
        }
        assert!(
            sentences.contains("`concurrency` is 0; expected 1 to 2000"),
            "{sentences}"
        );
        assert!(
            sentences.contains("`patience` is 3s; expected 6s to 1h"),
            "{sentences}"
        );
    }

    #[test]
    fn an_address_to_listen_at_is_loopback_where_it_names_no_other() {
        for (text, address) in [
            ("127.0.0.1:9464", "127.0.0.1:9464"),
            ("localhost:0", "127.0.0.1:0"),
            (" :9464", "127.0.0.1:9464"),
            ("[::1]:9464", "[::1]:9464"),
            ("0.0.0.0:80", "0.0.0.0:80"),
        ] {
            assert_eq!(http_address(text), Ok(address.parse().unwrap()), "{text}");
        }
        for text in ["", "9464", "127.0.0.1", "shop.example:80", ":http", "::1"] {
            assert!(http_address(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_hidden_begins_with_a_part_of_a_job() {
        let check = |path: &str| {
            let redact = vec![path.to_owned()];
            Config {
                redact,
                ..Config::default()
            }
            .check()
        };
        for path in [
            "payload",
            "payload.card.number",
            "input.secret",
            "result",
            "results.token",
        ] {
            assert_eq!(check(path), Ok(()), "{path}");
        }
        for path in ["", "card", "payload.", "payload..card", "error"] {
            let told = check(path).unwrap_err();
            assert!(told.contains("`redact` names"), "{told}");
        }
    }

    #[test]
    fn a_printed_configuration_holds_no_password() {
        let config = Config {
            amqp_url: "amqp://ada:s3cret@broker".into(),
            database_url: "postgres://ada:s3cret@db/shop".into(),
            ..Config::default()
        };
        let printed = format!("{config:?}");
        assert!(
            printed.contains("queue") && !printed.contains("s3cret"),
            "{printed}"
        );
    }
}
