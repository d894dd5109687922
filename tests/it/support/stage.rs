//! A stage for one test: a database and queues of its own, workers, and handlers that do what the message says.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use cliquet::{
    TaskContext, TaskError, Worker, WorkerError,
    broker::Place,
    config::Config,
    ledger::{self, LedgerAddress},
    retry::{Ladder, RetryPolicy},
    worker::Builder,
};
use lapin::BasicProperties;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection, PgPool, Row};
use tokio::{
    sync::{Notify, oneshot},
    task::JoinHandle,
};
use uuid::Uuid;

use super::{Queues, amqp_url, database_url, eventually};

/// One call of a handler: job, position, attempt.
pub type Call = (Uuid, i32, u32);

/// What the scripted handlers share with the test: who was called, and the gates at which they wait.
#[derive(Clone, Default)]
pub struct Script(Arc<Shared>);

#[derive(Default)]
struct Shared {
    calls: Mutex<Vec<Call>>,
    gates: Mutex<HashMap<String, Arc<Gate>>>,
}

/// A place at which a handler waits until the test lets it go on.
#[derive(Default)]
pub struct Gate {
    reached: Notify,
    open: tokio::sync::watch::Sender<bool>,
}

impl Gate {
    /// Waits until a handler stands here.
    pub async fn reached(&self) {
        tokio::time::timeout(Duration::from_secs(20), self.reached.notified())
            .await
            .expect("no handler came to the gate within 20 s");
    }

    /// Lets every handler through, now and later.
    pub fn open(&self) {
        self.open.send_replace(true);
    }
}

impl Script {
    /// Every call so far.
    pub fn calls(&self) -> Vec<Call> {
        self.0.calls.lock().unwrap().clone()
    }

    /// The positions that were called for a job, in order.
    pub fn positions(&self, job: Uuid) -> Vec<i32> {
        let calls = self.calls();
        calls
            .iter()
            .filter(|call| call.0 == job)
            .map(|call| call.1)
            .collect()
    }

    pub fn gate(&self, name: &str) -> Arc<Gate> {
        self.0
            .gates
            .lock()
            .unwrap()
            .entry(name.to_owned())
            .or_default()
            .clone()
    }

    /// The scripted handler: its input lists what each attempt does; the last entry holds for all that follow.
    /// `ok`, `fail`, `permanent`, `panic`, `hang`, `after:MS`, `gate:NAME`, `write` (a row in its transaction), `write-fail`.
    async fn act(self, task: TaskContext) -> Result<Value, TaskError> {
        let attempt = task.attempt();
        self.0
            .calls
            .lock()
            .unwrap()
            .push((task.job_id().0, task.position(), attempt));
        let script: Value = serde_json::from_str(task.input_json().get())?;
        let acts: Vec<&str> = script.as_str().unwrap_or("ok").split(',').collect();
        let act = acts[(attempt as usize - 1).min(acts.len() - 1)];
        let (word, rest) = act.split_once(':').unwrap_or((act, ""));
        match word {
            "ok" => {}
            "fail" => return Err(TaskError::retry(format!("attempt {attempt} fails as told"))),
            "permanent" => return Err(TaskError::permanent("never again, as told")),
            "panic" => panic!("as told"),
            "hang" => std::future::pending().await,
            "after" => {
                let delay = Duration::from_millis(rest.parse()?);
                return Err(TaskError::retry_after("later, as told", delay));
            }
            "gate" => {
                let gate = self.gate(rest);
                gate.reached.notify_one();
                gate.open.subscribe().wait_for(|open| *open).await?;
            }
            "write" | "write-fail" | "write-gate" => {
                let mut tx = task.transaction().await?;
                sqlx::query("INSERT INTO effects (job_id, position) VALUES ($1, $2)")
                    .bind(task.job_id().0)
                    .bind(task.position())
                    .execute(&mut *tx)
                    .await?;
                drop(tx);
                if word == "write-gate" {
                    let gate = self.gate(rest);
                    gate.reached.notify_one();
                    gate.open.subscribe().wait_for(|open| *open).await?;
                }
                if word == "write-fail" {
                    return Err(TaskError::retry("fails after it wrote, as told"));
                }
            }
            other => {
                return Err(TaskError::permanent(format!(
                    "the script knows no {other:?}"
                )));
            }
        }
        Ok(json!({"did": task.handler(), "attempt": attempt}))
    }
}

/// A database and queues that are gone after the test.
pub struct Stage {
    pub queues: Queues,
    pub script: Script,
    pub database: String,
    pub pool: PgPool,
    name: String,
}

impl Stage {
    pub async fn new() -> Self {
        Self::with_ladder(&["200ms", "1s"]).await
    }

    pub async fn with_ladder(delays: &[&str]) -> Self {
        let queues = Queues::with_ladder(delays).await;
        queues.declare().await;
        let name = format!("cliquet_test_{}", Uuid::new_v4().simple());
        let mut admin = PgConnection::connect(&database_url())
            .await
            .unwrap_or_else(|error| {
                panic!("Postgres at DATABASE_URL does not answer ({error}): run `deploy/dev up`")
            });
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}")))
            .execute(&mut admin)
            .await
            .unwrap();
        let mut url = url::Url::parse(&database_url()).unwrap();
        url.set_path(&name);
        let database = url.to_string();
        ledger::migrate(&LedgerAddress::parse(&database).unwrap())
            .await
            .unwrap();
        let pool = sqlx::postgres::PgPoolOptions::new()
            .max_connections(4)
            .connect(&database)
            .await
            .unwrap();
        sqlx::raw_sql("CREATE TABLE effects (job_id uuid NOT NULL, position int NOT NULL)")
            .execute(&pool)
            .await
            .unwrap();
        Self {
            queues,
            script: Script::default(),
            database,
            pool,
            name,
        }
    }

    /// Settings that make a test quick: short beats, exact delays.
    pub fn config(&self) -> Config {
        Config {
            amqp_url: amqp_url(),
            database_url: self.database.clone(),
            queue: self.queues.name(Place::Work),
            name: self.queues.name(Place::Work),
            concurrency: 8,
            drain_timeout: Duration::from_secs(10),
            retry: RetryPolicy {
                max_attempts: 3,
                initial: Duration::from_millis(200),
                jitter: 0.0,
                multiplier: 1.0,
                ..RetryPolicy::default()
            },
            ladder: Ladder::new(
                self.queues
                    .topology
                    .ladder()
                    .rungs()
                    .iter()
                    .map(|rung| rung.delay()),
            )
            .unwrap(),
            heartbeat: Duration::from_millis(300),
            patience: Duration::from_secs(3),
            reconcile_every: Duration::from_millis(500),
            lanes: 2,
            publishers: 2,
            handler_connections: 4,
            ..Config::default()
        }
    }

    /// A builder with the scripted handler under the names a to e.
    pub fn builder(&self, config: Config) -> Builder {
        let mut builder = Worker::builder().config(config);
        for name in ["a", "b", "c", "d", "e"] {
            let script = self.script.clone();
            builder = builder.handler(name, move |task: TaskContext| script.clone().act(task));
        }
        builder
    }

    /// A worker with the default settings of the stage, in this process.
    pub fn worker(&self) -> RunningWorker {
        self.worker_with(self.config())
    }

    pub fn worker_with(&self, config: Config) -> RunningWorker {
        let (stop, stopped) = oneshot::channel::<()>();
        let running = self
            .builder(config)
            .run_until(async move { drop(stopped.await) });
        RunningWorker {
            stop: Some(stop),
            running: tokio::spawn(running),
        }
    }

    /// Publishes a job told in the stage's small language: `a:ok b:fail,ok c:ok`. Answers with its id.
    pub async fn publish(&self, scenario: &str) -> Uuid {
        let id = Uuid::now_v7();
        self.publish_as(id, scenario).await;
        id
    }

    pub async fn publish_as(&self, id: Uuid, scenario: &str) {
        self.queues
            .publish(&body(id, scenario), BasicProperties::default())
            .await;
    }

    /// The job's status, once the ledger knows the job.
    pub async fn status(&self, job: Uuid) -> Option<String> {
        sqlx::query("SELECT status::text FROM cliquet.jobs WHERE id = $1")
            .bind(job)
            .fetch_optional(&self.pool)
            .await
            .unwrap()
            .map(|row| row.get(0))
    }

    pub async fn reaches(&self, job: Uuid, status: &str) {
        eventually(&format!("job {job} is {status}"), || async {
            (self.status(job).await.as_deref() == Some(status)).then_some(())
        })
        .await;
    }

    /// `1:SUCCESS 2:FAILED …`
    pub async fn tasks(&self, job: Uuid) -> String {
        let rows = sqlx::query(
            "SELECT position, status::text FROM cliquet.tasks WHERE job_id = $1 ORDER BY position",
        )
        .bind(job)
        .fetch_all(&self.pool)
        .await
        .unwrap();
        let words: Vec<_> = rows
            .iter()
            .map(|row| format!("{}:{}", row.get::<i32, _>(0), row.get::<String, _>(1)))
            .collect();
        words.join(" ")
    }

    /// One number from the ledger.
    pub async fn number(&self, sql: &'static str, job: Uuid) -> i64 {
        sqlx::query(sql)
            .bind(job)
            .fetch_one(&self.pool)
            .await
            .unwrap()
            .get(0)
    }

    /// The positions that wrote through their transaction, in order.
    pub async fn effects(&self, job: Uuid) -> Vec<i32> {
        let rows = sqlx::query("SELECT position FROM effects WHERE job_id = $1 ORDER BY position")
            .bind(job)
            .fetch_all(&self.pool)
            .await
            .unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// Waits until no queue of the stage holds a message, ready or not.
    pub async fn queues_are_empty(&self) {
        for place in self.queues.topology.places() {
            eventually(&format!("{} is empty", self.queues.name(place)), || async {
                (self.queues.depth(place).await == 0).then_some(())
            })
            .await;
        }
    }
}

/// The message of a scenario.
pub fn body(id: Uuid, scenario: &str) -> Vec<u8> {
    let tasks: Vec<_> = scenario
        .split_whitespace()
        .map(|task| {
            let (handler, script) = task.split_once(':').unwrap_or((task, "ok"));
            json!({"handler": handler, "label": format!("Step {handler}"), "input": script})
        })
        .collect();
    json!({"id": id, "kind": "test", "payload": {"n": 1}, "tasks": tasks})
        .to_string()
        .into_bytes()
}

impl Drop for Stage {
    fn drop(&mut self) {
        let name = self.name.clone();
        let cleaning = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                if let Ok(mut admin) = PgConnection::connect(&database_url()).await {
                    let drop = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
                    let _ = sqlx::raw_sql(sqlx::AssertSqlSafe(drop))
                        .execute(&mut admin)
                        .await;
                }
            });
        });
        let _ = cleaning.join();
    }
}

/// A worker in this process.
pub struct RunningWorker {
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<Result<(), WorkerError>>,
}

impl RunningWorker {
    /// Asks it to stop and waits until it has.
    pub async fn stop(mut self) {
        drop(self.stop.take());
        let ended = tokio::time::timeout(Duration::from_secs(30), &mut self.running).await;
        ended
            .expect("the worker did not stop within 30 s")
            .unwrap()
            .unwrap();
    }

    /// Asks it to stop without waiting.
    pub fn ask_to_stop(&mut self) {
        drop(self.stop.take());
    }
}

impl Drop for RunningWorker {
    fn drop(&mut self) {
        self.running.abort();
    }
}
