//! The worker process: this binary started again, with handlers that do what a task's input says and write down, before
//! anything else, that they began.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use cliquet::{
    TaskContext, TaskError, Worker,
    config::Config,
    retry::{Ladder, RetryPolicy},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;

use crate::{
    dice::Dice,
    ground::{QUEUE, now_us},
    jobs::{Act, HANDLERS, Payload},
    schedule::PATIENCE,
};

/// How a worker is set up.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    pub concurrency: u16,
    /// Short beats, short delays and a short patience, so that a minute of chaos is a long time. Otherwise the defaults.
    pub quick: bool,
}

/// All that a worker process is told.
#[derive(Debug, Serialize, Deserialize)]
pub struct Told {
    pub name: String,
    pub amqp_url: String,
    pub database_url: String,
    pub folder: PathBuf,
    pub settings: Settings,
}

pub const VARIABLE: &str = "CLIQUET_CHAOS_WORKER";

/// The delay queues of a quick worker.
pub const RUNGS: [&str; 4] = ["200ms", "500ms", "1s", "2s"];

impl Told {
    fn config(&self) -> Config {
        let config = Config {
            amqp_url: self.amqp_url.clone(),
            database_url: self.database_url.clone(),
            queue: QUEUE.into(),
            name: self.name.clone(),
            concurrency: self.settings.concurrency,
            ..Config::default()
        };
        if !self.settings.quick {
            return config;
        }
        let rungs: Vec<_> = RUNGS.iter().map(ToString::to_string).collect();
        Config {
            drain_timeout: Duration::from_secs(5),
            retry: RetryPolicy {
                max_attempts: 25,
                initial: Duration::from_millis(200),
                max: Duration::from_secs(2),
                ..RetryPolicy::default()
            },
            ladder: Ladder::try_from(rungs).unwrap(),
            heartbeat: Duration::from_millis(300),
            patience: PATIENCE,
            reconcile_every: Duration::from_millis(500),
            ..config
        }
    }
}

/// Not a test: what this binary does when it is started again as a worker.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_process() {
    let Ok(told) = std::env::var(VARIABLE) else {
        return;
    };
    let told: Told = serde_json::from_str(&told).unwrap();
    // Nobody writes to it: it ends with the harness, and no worker outlives that, however it ended.
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(4);
    });
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    let hand = Arc::new(Hand {
        journal: Journal::open(&told.folder, &told.name),
        pool: sqlx::postgres::PgPoolOptions::new()
            .max_connections(4)
            .acquire_timeout(Duration::from_secs(5))
            .connect_lazy(&told.database_url)
            .unwrap(),
        folder: told.folder.clone(),
        name: told.name.clone(),
    });
    let mut builder = Worker::builder().config(told.config());
    for handler in HANDLERS {
        let hand = hand.clone();
        builder = builder.handler(handler, move |task: TaskContext| {
            let hand = hand.clone();
            async move { hand.act(task).await }
        });
    }
    if let Err(error) = builder.run().await {
        tracing::error!(%error, "the worker cannot begin");
        std::process::exit(3);
    }
}

/// Where executions are written down: a line each, in a file, which outlives its process and needs no service.
struct Journal(File);

impl Journal {
    fn open(folder: &Path, name: &str) -> Self {
        let file = File::options()
            .create(true)
            .append(true)
            .open(folder.join(format!("{name}.journal")));
        Self(file.unwrap())
    }

    /// One write a line: lines of several threads do not mix, and a kill leaves whole ones.
    fn line(&self, word: &str, task: &str) {
        let line = format!("{word} {} {task}\n", now_us());
        (&self.0).write_all(line.as_bytes()).unwrap();
    }
}

/// An execution that has begun. It ends when the handler has returned, or was dropped.
struct Begun<'a> {
    journal: &'a Journal,
    task: String,
}

impl<'a> Begun<'a> {
    fn now(journal: &'a Journal, task: &TaskContext) -> Self {
        let (job, position, attempt) = (task.job_id().0, task.position(), task.attempt());
        // The number tells executions apart that begin with the same attempt.
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let handler = task.handler();
        let task = format!("{job} {position} {attempt} {handler} {number}");
        journal.line("begins", &task);
        Self { journal, task }
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.journal.line("ends", &self.task);
    }
}

/// One execution, as the journal has it. Times in microseconds since 1970.
#[derive(Clone, Debug)]
pub struct Execution {
    pub worker: String,
    pub job: Uuid,
    pub position: i32,
    pub attempt: i32,
    /// Whether its task kills its process.
    pub poison: bool,
    pub began: i64,
    /// When its handler returned or was dropped; never, when its process died with it.
    pub ended: Option<i64>,
}

/// Everything that every worker of a run has executed.
pub fn executions(folder: &Path) -> Vec<Execution> {
    let mut all: Vec<Execution> = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_none_or(|extension| extension != "journal")
        {
            continue;
        }
        let worker = path.file_stem().unwrap().to_string_lossy().into_owned();
        let mut open = std::collections::HashMap::new();
        for line in std::fs::read_to_string(&path)
            .unwrap()
            .split_inclusive('\n')
        {
            // The last line may be on its way.
            let Some(line) = line.strip_suffix('\n') else {
                continue;
            };
            let parts: Vec<_> = line.split(' ').collect();
            let [word, at, job, position, attempt, handler, number] = parts[..] else {
                panic!("{path:?} has the line {line:?}");
            };
            let (at, job): (i64, Uuid) = (at.parse().unwrap(), job.parse().unwrap());
            let (position, attempt) = (position.parse().unwrap(), attempt.parse().unwrap());
            let number: u64 = number.parse().unwrap();
            if word == "begins" {
                open.insert(number, all.len());
                all.push(Execution {
                    worker: worker.clone(),
                    job,
                    position,
                    attempt,
                    poison: handler == Act::Poison.handler(),
                    began: at,
                    ended: None,
                });
            } else if let Some(index) = open.remove(&number) {
                all[index].ended = Some(at);
            }
        }
    }
    all.sort_by_key(|execution| execution.began);
    all
}

/// What the handlers of one worker share.
struct Hand {
    journal: Journal,
    pool: PgPool,
    folder: PathBuf,
    name: String,
}

impl Hand {
    async fn act(&self, task: TaskContext) -> Result<Value, TaskError> {
        let _begun = Begun::now(&self.journal, &task);
        let did = self.done(&task).await;
        did.map(|()| json!({"by": self.name, "attempt": task.attempt()}))
    }

    async fn done(&self, task: &TaskContext) -> Result<(), TaskError> {
        let act: Act = task.input()?;
        let Payload { seed } = task.payload()?;
        let (job, position, attempt) = (task.job_id().0, task.position(), task.attempt());
        let (high, low) = job.as_u64_pair();
        let mut dice = Dice::of(&[seed, 3, high, low, position as u64, u64::from(attempt)]);
        match act {
            Act::Nothing => {}
            Act::Write { amount, fails } => {
                let mut tx = task.transaction().await?;
                sqlx::query("INSERT INTO effects (job_id, position, amount, worker) VALUES ($1, $2, $3, $4)")
                    .bind(job)
                    .bind(position)
                    .bind(amount)
                    .bind(&self.name)
                    .execute(&mut *tx)
                    .await?;
                drop(tx);
                if dice.chance(fails) {
                    return Err(TaskError::retry("fails after it wrote, as drawn"));
                }
            }
            Act::Note => {
                sqlx::query(
                    "INSERT INTO notes (job_id, position, attempt, worker) VALUES ($1, $2, $3, $4)",
                )
                .bind(job)
                .bind(position)
                .bind(attempt as i32)
                .bind(&self.name)
                .execute(&self.pool)
                .await?;
            }
            Act::Flaky { fails } => {
                if dice.chance(fails) {
                    return Err(TaskError::retry("fails, as drawn"));
                }
            }
            Act::Nap { ms } => tokio::time::sleep(Duration::from_millis(ms)).await,
            Act::Permanent => return Err(TaskError::permanent("never works, as drawn")),
            Act::Poison => std::process::abort(),
            Act::Hold => {
                let release = self.folder.join(format!("{job}.release"));
                while !release.exists() {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }
        }
        Ok(())
    }
}
