//! The worker's settings. `cliquet.toml` and `CLIQUET_…` fill them for the binary; the library's builder sets them in code.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    retry::{Ladder, RetryPolicy},
    task::HandlerOptions,
};

/// Everything a worker can be told, with the defaults that `cliquet.toml` documents.
#[derive(Clone, Debug)]
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
    /// A job that has held its delivery for so long is handed over between two tasks, before RabbitMQ's own
    /// `consumer_timeout` (30 min by default) takes the delivery away.
    pub hand_over_after: Duration,
    /// The pause between the reconciler's looks.
    pub reconcile_every: Duration,
    /// Connections that write the ledger, each with group commit.
    pub lanes: usize,
    /// Channels that publish copies.
    pub publishers: usize,
    /// The most connections that handlers' transactions use at the same time.
    pub handler_connections: u32,
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
            name: String::new(),
            concurrency: 64,
            drain_timeout: Duration::from_secs(30),
            retry: RetryPolicy::default(),
            ladder: Ladder::default(),
            heartbeat: Duration::from_secs(2),
            patience: Duration::from_secs(15),
            crash_limit: 3,
            hand_over_after: Duration::from_secs(20 * 60),
            reconcile_every: Duration::from_secs(5),
            lanes: 2,
            publishers: 8,
            handler_connections: 16,
            declare: true,
            handlers: BTreeMap::new(),
        }
    }
}
