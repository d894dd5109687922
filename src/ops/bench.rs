//! `cliquet bench`: what these services do with this worker, measured through the whole real path.
//!
//! The worker is a process of its own (`worker`), made and fed (`load`) as any other: its queues are RabbitMQ queues with the
//! arguments of all others, its rows lie among everybody's rows. What is told (`report`) is counted in the ledger by the
//! database's clock, or seen by a reader that asks for it.

mod browsers;
mod load;
mod report;
mod worker;

use std::{process::ExitCode, time::Duration};

use clap::{Args, ValueEnum};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use self::{
    browsers::{Browsers, Looks},
    load::Jobs,
    report::Report,
    worker::Hired,
};
use super::{Desk, failure::Failure, output::note};
use crate::{
    broker::{Publisher, Topology},
    job::JobId,
    ledger,
    retry::Ladder,
};

pub(super) use worker::BenchWorker;

pub(super) const HELP: &str = r#"Publishes a backlog, starts a worker and lets it work through it; then publishes
at a steady rate and measures how long each job takes until a reader sees its
SUCCESS. At the end it counts in the ledger that each task is SUCCESS with
exactly one attempt, and removes its queues and rows.

It uses the services of AMQP_URL and DATABASE_URL as they are: not those that
serve customers at this moment. The settings of the worker are those of
cliquet.toml and the environment (lanes, handler_connections …).

Examples:
  cliquet bench
  cliquet bench --concurrency 256 --jobs 50000
  cliquet bench --handler transaction --json | jq .tasks_per_second
  cliquet bench --jobs 0 --rate 500 --rate-seconds 60
  cliquet bench --history 5000000 --browsers 10     how long pages take, and cost"#;

/// What every benchmark's queue begins with: nothing else is ever removed.
const QUEUE: &str = "cliquet.bench";
/// A worker that does nothing for so long has stalled.
const STALLED: Duration = Duration::from_secs(60);
/// The tasks of a job that ended long ago.
const HISTORY_TASKS: u32 = 5;
/// The pause between two looks at the worker's progress.
const LOOK: Duration = Duration::from_millis(100);

/// `cliquet bench`.
#[derive(Clone, Debug, Args)]
pub(super) struct Bench {
    /// Jobs in the backlog; 0 leaves it out
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(0..=10_000_000))]
    jobs: u32,
    /// Tasks of each job
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    tasks: u32,
    /// Jobs in flight in the worker; that of the settings when it is not given
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=2_000))]
    concurrency: Option<u16>,
    /// The length of each job's payload
    #[arg(long, default_value_t = 100, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(0..=900_000))]
    payload_bytes: u32,
    /// What each task does
    #[arg(long, value_enum, default_value_t = Does::Noop)]
    handler: Does,
    /// Jobs published each second to measure latency; 0 leaves it out
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(0..=20_000))]
    rate: u32,
    /// For how long they are published
    #[arg(long, default_value_t = 10, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(0..=86_400))]
    rate_seconds: u32,
    /// Finished tasks that lie in the ledger already; they are made first, and removed at the end
    #[arg(long, default_value_t = 0, value_name = "TASKS", value_parser = clap::value_parser!(u32).range(0..=100_000_000))]
    history: u32,
    /// Browsers that have the page of `cliquet web` open while the backlog is worked through twice more, between two runs without
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=100))]
    browsers: u32,
    /// How long people look at a page before they click
    #[arg(long, default_value = "5s", value_name = "DURATION", value_parser = humantime::parse_duration)]
    click_every: Duration,
    /// Uses queues and rows of this name, beside another benchmark
    #[arg(long, value_name = "NAME", value_parser = name)]
    name: Option<String>,
    /// Leaves the rows in the ledger; the next benchmark of the same name removes them
    #[arg(long)]
    keep_rows: bool,
}

/// What the handler of a benchmark does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Does {
    /// Nothing
    Noop,
    /// Inserts one row through the task's transaction
    Transaction,
}

impl Does {
    /// Its name in messages, and on the command line.
    fn name(self) -> &'static str {
        match self {
            Does::Noop => "noop",
            Does::Transaction => "transaction",
        }
    }
}

fn name(text: &str) -> Result<String, String> {
    // These would be queues of the benchmark without a name.
    let fits = !text.is_empty()
        && text.len() <= 30
        && !["dead", "history"].contains(&text)
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    fits.then(|| text.to_owned()).ok_or_else(|| {
        "expected 1 to 30 letters, digits, - or _, and neither `dead` nor `history`".to_owned()
    })
}

/// The delay queues of a benchmark: nothing fails in it, so one will do.
fn ladder() -> Result<Ladder, Failure> {
    Ladder::new([Duration::from_secs(1)]).map_err(Failure::failed)
}

impl Bench {
    pub(super) async fn run(self, mut desk: Desk) -> Result<ExitCode, Failure> {
        desk.config.queue = match &self.name {
            Some(name) => format!("{QUEUE}.{name}"),
            None => QUEUE.to_owned(),
        };
        desk.config.concurrency = self.concurrency.unwrap_or(desk.config.concurrency);
        desk.config.ladder = ladder()?;
        desk.reads().await?;
        let (broker, identity) = (desk.broker()?, desk.identity());
        let topology = desk.topology(&desk.config.queue)?;

        let stop = CancellationToken::new();
        tokio::spawn(interrupted(stop.clone()));
        let mut ground = ledger::Bench::begin(&desk.database()?, &desk.config.queue).await?;
        // What a benchmark that was killed has left.
        ground.remove(None, |_| {}).await?;
        topology.delete(&broker, &identity).await?;

        // Its own queue: what ended long ago is in nobody's way.
        let history = format!("{}.history", desk.config.queue);
        let mut history = ledger::Bench::begin(&desk.database()?, &history).await?;
        history.remove(None, |_| {}).await?;

        // Every id that follows is greater.
        let first = JobId::new();
        let measured = async {
            self.remember(&mut history).await?;
            self.measure_all(&desk, &topology, &mut ground, first, &stop)
                .await
        };
        let measured = measured.await;
        let cleaned = self.clean(&desk, &topology, &mut ground, first).await;
        let forgotten = history.remove(None, |_| {}).await;
        history.close().await;
        ground.close().await;
        let report = measured?;
        cleaned?;
        forgotten?;
        report.print(&mut desk)?;
        Ok(match report.verified {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        })
    }

    /// Makes what ended long ago.
    async fn remember(&self, history: &mut ledger::Bench) -> Result<(), Failure> {
        let jobs = self.history / HISTORY_TASKS;
        let bar = load::bar(u64::from(jobs), "jobs of long ago");
        history
            .fill(jobs, HISTORY_TASKS, |made| bar.inc(made))
            .await?;
        bar.finish_and_clear();
        Ok(())
    }

    async fn measure_all(
        &self,
        desk: &Desk,
        topology: &Topology,
        ground: &mut ledger::Bench,
        first: JobId,
        stop: &CancellationToken,
    ) -> Result<Report, Failure> {
        let (mut report, _) = self.measure(desk, topology, ground, first, 0, stop).await?;
        if self.browsers > 0 && self.jobs > 0 {
            let again = Self {
                rate: 0,
                ..self.clone()
            };
            let (mut watched, mut alone) = (Vec::new(), Vec::new());
            // In the middle, so that what changes from one run to the next is on both sides.
            for browsers in [self.browsers, self.browsers, 0] {
                // What was before is out of the way of its counts.
                let first = JobId::new();
                let measured = again
                    .measure(desk, topology, ground, first, browsers, stop)
                    .await?;
                match browsers {
                    0 => alone.push(measured.0),
                    _ => watched.push(measured),
                }
            }
            report.watched(self.browsers, alone, watched);
        }
        Ok(report)
    }

    async fn measure(
        &self,
        desk: &Desk,
        topology: &Topology,
        ground: &mut ledger::Bench,
        first: JobId,
        browsers: u32,
        stop: &CancellationToken,
    ) -> Result<(Report, Looks), Failure> {
        let jobs = Jobs::new(self.tasks, self.payload_bytes, self.handler)?;
        topology.declare(&desk.broker()?, &desk.identity()).await?;
        if self.handler == Does::Transaction {
            ground.make_effects().await?;
        }
        let publisher = Publisher::start(
            desk.broker()?,
            topology.clone(),
            desk.identity(),
            load::IN_FLIGHT,
            false,
        );
        if timeout(STALLED, publisher.ready()).await.is_err() {
            return Err(Failure::failed(format!(
                "RabbitMQ takes no messages for {} s; is it out of memory or disk? See: rabbitmqctl status",
                STALLED.as_secs()
            )));
        }
        let before = ground.updates_of_tasks().await?;

        load::backlog(&publisher, &jobs, self.jobs, stop).await?;
        let mut report = Report::new(self, &desk.config);
        let mut hired = Hired::start(desk, self.handler)?;
        let mut looks = Looks::new();
        let worked = async {
            let browsers = match browsers {
                0 => None,
                browsers => Some(Browsers::start(desk, browsers, self.click_every).await?),
            };
            hired.ready(desk, topology, stop).await?;
            if self.jobs > 0 {
                self.progress(&mut hired, ground, first, stop).await?;
                if let Some(browsers) = browsers {
                    looks = browsers.looks().await?;
                }
                let ended = hired.counts()?;
                let audit = ground.audit(first).await?;
                report.backlog(&ended, &audit);
                note(format_args!(
                    "{} jobs done in {:.1} s",
                    self.jobs, audit.seconds
                ));
            }
            if self.rate > 0 && self.rate_seconds > 0 {
                let watcher = ground.watcher().await?;
                let (rate, seconds) = (self.rate, self.rate_seconds);
                let latencies =
                    load::paced(&publisher, &jobs, rate, seconds, watcher, stop).await?;
                report.latencies(latencies);
            }
            Ok(())
        };
        if let Err(failure) = worked.await {
            // Nothing is to be written any more while its rows are removed.
            hired.dismiss().await;
            return Err(failure);
        }
        let ended = hired.leave().await?;
        let mut waiting = 0;
        for place in topology.places() {
            waiting += publisher.depth(&place).await?;
        }
        publisher.close().await;
        report.end(&ended, ground.audit(first).await?, waiting);
        report.updates(before, ground.updates_of_tasks().await?);
        Ok((report, looks))
    }

    /// Follows the worker until every job of the backlog is SUCCESS.
    async fn progress(
        &self,
        hired: &mut Hired,
        ground: &mut ledger::Bench,
        first: JobId,
        stop: &CancellationToken,
    ) -> Result<(), Failure> {
        let bar = load::bar(
            u64::from(self.jobs) * u64::from(self.tasks),
            "tasks executed",
        );
        let (mut last, mut moved) = (0, Instant::now());
        loop {
            expect_go_on(stop)?;
            let counts = hired.counts()?;
            bar.set_position(counts.tasks);
            if counts.tasks != last {
                (last, moved) = (counts.tasks, Instant::now());
            }
            let executed = counts.tasks / u64::from(self.tasks);
            // The ledger is asked only when there is reason to believe that it is over: counting is work.
            if executed >= u64::from(self.jobs) || moved.elapsed() > STALLED / 2 {
                let (remaining, known) = ground.remaining(first).await?;
                if remaining == 0 && known >= i64::from(self.jobs) {
                    break;
                }
                if moved.elapsed() > STALLED {
                    return Err(Failure::failed(format!(
                        "the worker has executed nothing for {} s; {} of {} jobs are not SUCCESS. Its log is above; are both services well?",
                        STALLED.as_secs(),
                        i64::from(self.jobs) - known + remaining,
                        self.jobs
                    )));
                }
            }
            sleep(LOOK).await;
        }
        bar.finish_and_clear();
        Ok(())
    }

    async fn clean(
        &self,
        desk: &Desk,
        topology: &Topology,
        ground: &mut ledger::Bench,
        first: JobId,
    ) -> Result<(), Failure> {
        let deleted = topology.delete(&desk.broker()?, &desk.identity()).await;
        if !self.keep_rows {
            let bar = load::bar(u64::from(self.jobs), "jobs removed");
            ground
                .remove(Some(first), |removed| bar.inc(removed as u64))
                .await?;
            bar.finish_and_clear();
        }
        Ok(deleted?)
    }
}

/// The first SIGINT or SIGTERM ends the benchmark in order, the second at once.
async fn interrupted(stop: CancellationToken) {
    let (Ok(mut interrupt), Ok(mut terminate)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    ) else {
        return; // the signals then end the process, as they do by themselves
    };
    for last in [false, true] {
        let status = tokio::select! {
            _ = interrupt.recv() => 130,
            _ = terminate.recv() => 143,
        };
        if last {
            std::process::exit(status);
        }
        note(
            "interrupted; removing queues and rows (once more, and they are left for the next benchmark to remove)",
        );
        stop.cancel();
    }
}

fn expect_go_on(stop: &CancellationToken) -> Result<(), Failure> {
    match stop.is_cancelled() {
        true => Err(Failure::failed("the benchmark was interrupted")),
        false => Ok(()),
    }
}
