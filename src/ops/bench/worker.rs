//! The benchmark's worker: a process of its own that runs the same [`Worker`] as `cliquet work`, counts, and tells its
//! counts ten times a second on standard output. It ends in good order when its standard input does.

use std::{
    fs,
    io::{self, Read, Write},
    process::{ExitCode, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use clap::Args;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Does, LOOK, expect_go_on, ladder};
use crate::{
    broker::{Place, QueueState, Topology},
    ledger::EffectsTable,
    ops::{Desk, failure::Failure},
    task::{TaskContext, TaskError},
    worker::Worker,
};

/// How long a worker may take until it consumes.
const BEGINS: Duration = Duration::from_secs(30);
/// How long it may take to leave.
const LEAVES: Duration = Duration::from_secs(60);

/// Tasks that this process has executed. One number for all handlers: they have nothing else to do.
static EXECUTED: AtomicU64 = AtomicU64::new(0);

/// `cliquet bench-worker`.
#[derive(Debug, Args)]
pub(in crate::ops) struct BenchWorker {
    #[arg(long)]
    queue: String,
    #[arg(long)]
    concurrency: u16,
    #[arg(long, value_enum)]
    handler: Does,
}

/// What a worker says of itself.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Counts {
    /// Tasks executed.
    pub(super) tasks: u64,
    /// Commits of the ledger's writes.
    pub(super) commits: u64,
    /// Time that all its threads have had on a processor; not everywhere known.
    pub(super) cpu_seconds: Option<f64>,
    /// The most memory it has had; not everywhere known.
    pub(super) peak_rss_bytes: Option<u64>,
}

impl BenchWorker {
    pub(in crate::ops) async fn run(self, desk: Desk) -> Result<ExitCode, Failure> {
        let mut config = desk.config;
        config.name.clone_from(&self.queue); // by which its sessions are known to whoever removes its rows
        config.queue = self.queue;
        config.concurrency = self.concurrency;
        config.ladder = ladder()?;
        let effects = EffectsTable::of(&config.queue);
        let worker = Worker::builder().config(config).state(effects);
        let worker = match self.handler {
            Does::Noop => worker.handler(self.handler.name(), nothing),
            Does::Transaction => worker.handler(self.handler.name(), one_row),
        }
        .build()?;
        let tally = worker.tally();

        let stop = CancellationToken::new();
        thread::spawn({
            let stop = stop.clone();
            move || {
                // Nothing is ever written to it: it ends when the benchmark says so, or is gone.
                let _ = io::stdin().lock().read(&mut [0]);
                stop.cancel();
            }
        });
        let over = Arc::new(AtomicU64::new(0));
        let telling = thread::spawn({
            let over = over.clone();
            // A thread of its own, since the runtime is what is measured.
            move || loop {
                let last = over.load(Ordering::Acquire) > 0;
                let counts = Counts {
                    tasks: EXECUTED.load(Ordering::Relaxed),
                    commits: tally.commits(),
                    cpu_seconds: cpu_seconds(),
                    peak_rss_bytes: peak_rss_bytes(),
                };
                let told = serde_json::to_string(&counts)
                    .is_ok_and(|line| writeln!(io::stdout().lock(), "{line}").is_ok());
                if last || !told {
                    return;
                }
                thread::sleep(LOOK);
            }
        });
        let ended = worker.run_until(stop.cancelled_owned()).await;
        over.store(1, Ordering::Release);
        let _ = telling.join();
        ended?;
        Ok(ExitCode::SUCCESS)
    }
}

async fn nothing(_: TaskContext) -> Result<(), TaskError> {
    EXECUTED.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

async fn one_row(task: TaskContext) -> Result<(), TaskError> {
    let mut transaction = task.transaction().await?;
    let effects = task.state::<EffectsTable>()?;
    effects
        .write(&mut transaction, task.job_id(), task.position())
        .await?;
    EXECUTED.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// Linux's own account of this process; elsewhere there is none.
fn cpu_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is a name in parentheses, with anything in it.
    let fields: Vec<_> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

fn peak_rss_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kibibytes * 1024)
}

/// A worker that was started for a benchmark.
pub(super) struct Hired {
    child: Child,
    counts: watch::Receiver<Option<Counts>>,
}

impl Hired {
    /// Starts it, with the settings of this process.
    pub(super) fn start(desk: &Desk, handler: Does) -> Result<Self, Failure> {
        let failed = |error: io::Error| {
            Failure::failed(format!("the benchmark's worker cannot be started: {error}"))
        };
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command
            .arg("bench-worker")
            .args(["--queue", &desk.config.queue])
            .args(["--concurrency", &desk.config.concurrency.to_string()])
            .args(["--handler", handler.name()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C is for the benchmark, which ends its worker in order.
            .process_group(0)
            .kill_on_drop(true);
        if let Some(file) = &desk.file {
            command.arg("--config").arg(file);
        }
        let mut child = command.spawn().map_err(failed)?;
        let (sender, counts) = watch::channel(None);
        if let Some(told) = child.stdout.take() {
            tokio::spawn(async move {
                let mut lines = BufReader::new(told).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    if let Ok(counts) = serde_json::from_str(&line) {
                        sender.send_replace(Some(counts));
                    }
                }
            });
        }
        Ok(Self { child, counts })
    }

    /// Waits until it consumes from its queue.
    pub(super) async fn ready(
        &mut self,
        desk: &Desk,
        topology: &Topology,
        stop: &CancellationToken,
    ) -> Result<(), Failure> {
        let (address, identity, began) = (desk.broker()?, desk.identity(), Instant::now());
        loop {
            expect_go_on(stop)?;
            self.expect_alive()?;
            let queues = topology.inspect(&address, &identity).await?;
            let consumes = queues.iter().any(|(queue, state)| {
                queue.place == Place::Work
                    && matches!(state, QueueState::Right { consumers, .. } if *consumers > 0)
            });
            if consumes {
                return Ok(());
            }
            if began.elapsed() > BEGINS {
                return Err(Failure::failed(format!(
                    "the benchmark's worker does not consume after {} s; its log is above",
                    BEGINS.as_secs()
                )));
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// What it last said.
    pub(super) fn counts(&mut self) -> Result<Counts, Failure> {
        self.expect_alive()?;
        Ok(self.counts.borrow().unwrap_or_default())
    }

    fn expect_alive(&mut self) -> Result<(), Failure> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(Failure::failed(format!(
                "the benchmark's worker has ended ({status}); it says above why"
            ))),
            Err(error) => Err(Failure::failed(format!(
                "the benchmark's worker cannot be looked at: {error}"
            ))),
        }
    }

    /// Ends it at once, and waits until it is gone.
    pub(super) async fn dismiss(mut self) {
        let _ = self.child.kill().await;
    }

    /// Asks it to leave, as a worker is asked in production, and hears its last words.
    pub(super) async fn leave(mut self) -> Result<Counts, Failure> {
        drop(self.child.stdin.take());
        match timeout(LEAVES, self.child.wait()).await {
            Ok(Ok(status)) if status.success() => {}
            Ok(Ok(status)) => {
                return Err(Failure::failed(format!(
                    "the benchmark's worker failed ({status}); it says above why"
                )));
            }
            Ok(Err(error)) => {
                return Err(Failure::failed(format!(
                    "the benchmark's worker cannot be waited for: {error}"
                )));
            }
            Err(_) => {
                return Err(Failure::failed(format!(
                    "the benchmark's worker did not leave within {} s and is killed",
                    LEAVES.as_secs()
                )));
            }
        }
        // The last line may still be on its way.
        while self.counts.changed().await.is_ok() {}
        Ok(self.counts.borrow().unwrap_or_default())
    }
}
