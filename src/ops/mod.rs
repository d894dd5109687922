//! For people: the command line, and in `web` the same over HTTP.
//!
//! One file a command. Data goes to standard output and everything else to standard error, so that every command can stand
//! in a pipe; `--json` prints one JSON object a line. The exit status is 0 when all was done, 1 when something failed or was
//! not found, and 2 when the command or a setting is wrong.
//!
//! Addresses are never given as options: they hold passwords, and options are seen by everyone in `ps`.

mod acts;
mod bench;
mod cancel;
mod completions;
mod dead;
mod doctor;
mod failure;
mod jobs;
mod man;
mod migrate;
mod output;
mod prune;
mod publish;
mod retry;
mod send;
mod show;
mod skip;
mod table;
mod topology;
mod watch;
mod web;
mod words;
mod work;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, CommandFactory, Parser, Subcommand};
use sqlx::PgPool;
use tokio::time::timeout;

use crate::{
    broker::{self, Address, Identity},
    config::{Config, environment},
    job::JobId,
    ledger::{LedgerAddress, Reads, check},
    telemetry::{self, LogFormat, traces},
};
use failure::Failure;
use output::Output;

/// How long a person waits for Postgres to answer at all.
const FIRST_ANSWER: Duration = Duration::from_secs(10);

/// How Postgres knows our sessions.
const COMMAND_LINE: &str = "command line";

const ENVIRONMENT: &str = "\
Environment:
  AMQP_URL       where RabbitMQ is: amqp://USER:PASSWORD@HOST:PORT/VHOST
  DATABASE_URL   where Postgres is: postgres://USER:PASSWORD@HOST:PORT/DATABASE
  CLIQUET_…      every key of cliquet.toml: CLIQUET_QUEUE, CLIQUET_RETRY_MAX …
  CLIQUET_OPERATOR   who retries, cancels and skips, for the jobs' history
  RUST_LOG       what is logged to standard error: cliquet=debug,lapin=info
  OTEL_…         where traces go (OTEL_EXPORTER_OTLP_ENDPOINT), and how

The environment wins over the file.

Exit status:
  0 done, 1 failed or not found, 2 wrong use or setting";

const FIRST_STEPS: &str = "\
First steps:
  cliquet migrate                          make the tables in Postgres
  cliquet work --config cliquet.toml       run jobs
  cliquet publish job.json                 give it one
  cliquet show --watch ID                  watch it

";

/// The command line of `cliquet`.
#[derive(Debug, Parser)]
#[command(
    name = "cliquet",
    version,
    about = "Runs jobs from RabbitMQ, commits every task to Postgres, resumes where it stopped",
    after_help = format!("{FIRST_STEPS}{ENVIRONMENT}"),
    max_term_width = 100
)]
pub struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Debug, Args)]
struct Common {
    /// The settings; ./cliquet.toml when it is there
    #[arg(long, global = true, value_name = "FILE", env = "CLIQUET_CONFIG")]
    config: Option<PathBuf>,

    /// Print JSON: one object a line (`work`: log lines as JSON)
    #[arg(long, global = true)]
    json: bool,

    /// Write log lines as `text` or as `json` objects
    #[arg(
        long,
        global = true,
        value_name = "FORMAT",
        env = "CLIQUET_LOG_FORMAT",
        hide_possible_values = true
    )]
    log_format: Option<LogFormat>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run jobs until asked to stop
    #[command(after_help = work::HELP)]
    Work(work::Work),
    /// Serve the page and the API for operators, and what probes ask
    #[command(after_help = web::HELP)]
    Web(web::Web),
    /// Give jobs to the workers: one JSON message a line
    #[command(after_help = publish::HELP)]
    Publish(publish::Publish),
    /// List jobs, newest first
    #[command(after_help = jobs::HELP)]
    Jobs(jobs::Jobs),
    /// Show one job: its tasks, attempts and errors
    #[command(after_help = show::HELP)]
    Show(show::Show),
    /// Send waiting or parked jobs to the workers again, now
    #[command(after_help = retry::HELP)]
    Retry(retry::Retry),
    /// End jobs that are not over
    #[command(after_help = cancel::HELP)]
    Cancel(cancel::Cancel),
    /// Take the task that a job stands at for done
    #[command(after_help = skip::HELP)]
    Skip(skip::Skip),
    /// Look at what is parked in the dead queue; retry or drop it
    #[command(after_help = dead::HELP)]
    Dead(dead::Dead),
    /// Delete jobs that have been over for long
    #[command(after_help = prune::HELP)]
    Prune(prune::Prune),
    /// Bring the database up to date; safe to call at any time
    Migrate,
    /// Measure what these services do with this worker
    #[command(after_help = bench::HELP)]
    Bench(bench::Bench),
    /// The worker of a benchmark: a process of its own, so that it is measured alone
    #[command(hide = true)]
    BenchWorker(bench::BenchWorker),
    /// Find what is wrong with services, workers and jobs, and what to do
    #[command(after_help = doctor::HELP)]
    Doctor(doctor::Doctor),
    /// Make or look at the queues in RabbitMQ
    #[command(after_help = topology::HELP)]
    Topology(topology::Topology),
    /// Print what a shell needs to complete commands and options
    #[command(after_help = completions::HELP)]
    Completions(completions::Completions),
    /// Print the manual, or write a page for each command
    #[command(after_help = man::HELP)]
    Man(man::Man),
}

impl Command {
    /// Whether it sends messages or runs jobs, of which there are traces.
    fn sends(&self) -> bool {
        matches!(
            self,
            Command::Work(_)
                | Command::Publish(_)
                | Command::Retry(_)
                | Command::Skip(_)
                | Command::Dead(_)
                | Command::Web(_)
                | Command::BenchWorker(_)
        )
    }
}

/// All commands that people give, for whoever describes them.
fn command() -> clap::Command {
    let whole = Cli::command();
    let shown = whole
        .get_subcommands()
        .filter(|command| !command.is_hide_set());
    let mut command = Common::augment_args(clap::Command::new("cliquet"))
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_required(true)
        .subcommand_value_name("COMMAND")
        .subcommands(shown.cloned());
    if let Some(about) = whole.get_about() {
        command = command.about(about.clone());
    }
    if let Some(notes) = whole.get_after_help() {
        command = command.after_help(notes.clone());
    }
    command
}

impl Cli {
    /// Does what was asked, and says how it ended.
    pub fn run(self) -> ExitCode {
        // Neither looks at settings, which may be missing or wrong where somebody installs this.
        let described = match self.command {
            Command::Completions(command) => command.run(),
            Command::Man(command) => command.run(),
            _ => return self.run_with_settings(),
        };
        described.unwrap_or_else(|failure| failure.tell())
    }

    fn run_with_settings(self) -> ExitCode {
        let (format, usual) = match (&self.command, self.common.json) {
            (Command::Work(_), true) => (LogFormat::Json, telemetry::STORY),
            (Command::Work(_), false) => (LogFormat::Text, telemetry::STORY),
            // What operators do over HTTP is told in its log.
            (Command::Web(_), _) => (LogFormat::Text, telemetry::STORY),
            _ => (LogFormat::Text, telemetry::WARNINGS),
        };
        let format = self.common.log_format.unwrap_or(format);
        let traces = match self.command.sends() {
            true => traces::from_environment(),
            false => Ok(None),
        };
        let traces = match traces {
            Ok(traces) => traces,
            Err(sentence) => return Failure::usage(sentence).tell(),
        };
        let ended = telemetry::init(format, usual, traces.as_ref())
            .map_err(Failure::usage)
            .and_then(|()| {
                tokio::runtime::Builder::new_multi_thread()
                    .enable_all()
                    .build()
                    .map_err(|error| {
                        Failure::failed(format!("the runtime cannot be started: {error}"))
                    })
            })
            .and_then(|runtime| runtime.block_on(self.dispatch()));
        // The runtime is gone, and with it all that makes spans.
        if let Some(traces) = traces {
            traces.end();
        }
        ended.unwrap_or_else(|failure| failure.tell())
    }

    async fn dispatch(self) -> Result<ExitCode, Failure> {
        let desk = Desk::open(&self.common)?;
        match self.command {
            Command::Work(command) => command.run(desk).await,
            Command::Web(command) => command.run(desk).await,
            Command::Publish(command) => command.run(desk).await,
            Command::Jobs(command) => command.run(desk).await,
            Command::Show(command) => command.run(desk).await,
            Command::Retry(command) => command.run(desk).await,
            Command::Cancel(command) => command.run(desk).await,
            Command::Skip(command) => command.run(desk).await,
            Command::Dead(command) => command.run(desk).await,
            Command::Prune(command) => command.run(desk).await,
            Command::Migrate => migrate::run(desk).await,
            Command::Bench(command) => command.run(desk).await,
            Command::BenchWorker(command) => command.run(desk).await,
            Command::Doctor(command) => command.run(desk).await,
            Command::Topology(command) => command.run(desk).await,
            Command::Completions(command) => command.run(),
            Command::Man(command) => command.run(),
        }
    }
}

/// What every command works with: the settings, and where its data goes.
struct Desk {
    /// The file of settings, when one was named.
    file: Option<PathBuf>,
    config: Config,
    json: bool,
    output: Output,
}

impl Desk {
    fn open(common: &Common) -> Result<Self, Failure> {
        let config = Config::load(common.config.as_deref(), &environment())
            .map_err(|error| Failure::usage(error.to_string()))?;
        Ok(Self {
            file: common.config.clone(),
            config,
            json: common.json,
            output: Output::default(),
        })
    }

    fn database(&self) -> Result<LedgerAddress, Failure> {
        if self.config.database_url.is_empty() {
            return Err(Failure::usage(
                "DATABASE_URL is not set: set it to the address of the Postgres database, postgres://USER:PASSWORD@HOST:PORT/DATABASE (or `database_url` in cliquet.toml)",
            ));
        }
        LedgerAddress::parse(&self.config.database_url).map_err(Failure::usage)
    }

    /// The ledger for reading, after a look whether it is there and migrated: the pool would wait before it says so.
    async fn reads(&self) -> Result<Reads, Failure> {
        let address = self.checked().await?;
        Ok(Reads::new(address.reader_pool(COMMAND_LINE, 2)))
    }

    /// The ledger for whatever is to be changed, after the same look.
    async fn ledger(&self) -> Result<PgPool, Failure> {
        let address = self.checked().await?;
        Ok(address.pool(COMMAND_LINE, 2))
    }

    async fn checked(&self) -> Result<LedgerAddress, Failure> {
        let address = self.database()?;
        match timeout(FIRST_ANSWER, check(&address)).await {
            Ok(checked) => checked?,
            Err(_) => {
                return Err(Failure::failed(format!(
                    "Postgres at {address} does not answer within {} s; is the address right, and may this machine reach it?",
                    FIRST_ANSWER.as_secs()
                )));
            }
        }
        Ok(address)
    }

    fn broker(&self) -> Result<Address, Failure> {
        Self::broker_of(&self.config)
    }

    fn broker_of(config: &Config) -> Result<Address, Failure> {
        Address::parse(&config.amqp_url)
            .map_err(|sentence| Failure::usage(format!("AMQP_URL: {sentence}")))
    }

    fn topology(&self, queue: &str) -> Result<broker::Topology, Failure> {
        Self::topology_of(&self.config, queue)
    }

    fn topology_of(config: &Config, queue: &str) -> Result<broker::Topology, Failure> {
        broker::Topology::new(queue, config.ladder.clone()).map_err(Failure::usage)
    }

    fn identity(&self) -> Identity {
        Self::identity_of(&self.config)
    }

    fn identity_of(config: &Config) -> Identity {
        Identity {
            name: config.name.clone(),
        }
    }
}

/// Reads a job's id from the command line.
fn job_id(text: &str) -> Result<JobId, String> {
    text.parse().map_err(|_| {
        "a job's id is a UUID, such as 0190b5c2-7e1f-7c3a-9d55-0d9c1f0a7b11; `cliquet jobs` lists them".to_owned()
    })
}
