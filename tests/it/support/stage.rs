//! A stage for one test: a database and queues of its own, workers, and handlers that do what the message says.

use std::time::Duration;

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
use tokio::{sync::oneshot, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Queues, amqp_url, database_url, eventually, privileges, prometheus};

/// What the scripted handlers share with the test, in the test's own database, so that workers in other processes share
/// it too: who was called, and the gates at which they wait.
#[derive(Clone)]
pub struct Script(PgPool);

const TABLES: &str = "
CREATE TABLE effects (job_id uuid NOT NULL, position int NOT NULL);
CREATE TABLE calls (number bigint GENERATED ALWAYS AS IDENTITY, job_id uuid NOT NULL, position int NOT NULL, attempt int NOT NULL, pid int NOT NULL);
CREATE TABLE gates (name text PRIMARY KEY, reached int NOT NULL DEFAULT 0, open bool NOT NULL DEFAULT false);
";

impl Script {
    /// The positions that were called for a job, in order.
    pub async fn positions(&self, job: Uuid) -> Vec<i32> {
        let rows = sqlx::query("SELECT position FROM calls WHERE job_id = $1 ORDER BY number")
            .bind(job)
            .fetch_all(&self.0)
            .await;
        rows.unwrap().iter().map(|row| row.get(0)).collect()
    }

    /// Waits until `count` handlers have come to a gate.
    pub async fn reached(&self, gate: &str, count: i32) {
        eventually(
            &format!("{count} handlers stand at the gate {gate}"),
            || async {
                let row = sqlx::query("SELECT reached FROM gates WHERE name = $1")
                    .bind(gate)
                    .fetch_optional(&self.0)
                    .await
                    .ok()?;
                (row?.get::<i32, _>(0) >= count).then_some(())
            },
        )
        .await;
    }

    /// Lets every handler through a gate, now and later.
    pub async fn open(&self, gate: &str) {
        sqlx::query("INSERT INTO gates (name, open) VALUES ($1, true) ON CONFLICT (name) DO UPDATE SET open = true")
            .bind(gate)
            .execute(&self.0)
            .await
            .unwrap();
    }

    async fn stand_at(&self, gate: &str) -> Result<(), TaskError> {
        sqlx::query("INSERT INTO gates (name, reached) VALUES ($1, 1) ON CONFLICT (name) DO UPDATE SET reached = gates.reached + 1")
            .bind(gate)
            .execute(&self.0)
            .await?;
        loop {
            // A database that restarts while somebody stands here must not fail the task.
            let open = sqlx::query("SELECT open FROM gates WHERE name = $1")
                .bind(gate)
                .fetch_one(&self.0)
                .await;
            if open.is_ok_and(|row| row.get(0)) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The scripted handler: its input lists what each attempt does; the last entry holds for all that follow.
    /// `ok`, `fail`, `permanent`, `panic`, `hang`, `kill`, `after:MS`, `take:MS`, `gate:NAME`, `gate-fail:NAME`,
    /// `needs:GATE` (fails while it is not open), `write` (a row in its transaction), `write-fail`, `write-gate:NAME`.
    async fn act(self, task: TaskContext) -> Result<Value, TaskError> {
        let attempt = task.attempt();
        sqlx::query("INSERT INTO calls (job_id, position, attempt, pid) VALUES ($1, $2, $3, $4)")
            .bind(task.job_id().0)
            .bind(task.position())
            .bind(attempt as i32)
            .bind(std::process::id() as i32)
            .execute(&self.0)
            .await?;
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
            "kill" => std::process::abort(),
            "after" => {
                return Err(TaskError::retry_after(
                    "later, as told",
                    Duration::from_millis(rest.parse()?),
                ));
            }
            "gate" => self.stand_at(rest).await?,
            "needs" => {
                let open = sqlx::query("SELECT FROM gates WHERE name = $1 AND open")
                    .bind(rest)
                    .fetch_optional(&self.0)
                    .await?;
                open.ok_or_else(|| TaskError::retry(format!("{rest} is away")))?;
            }
            "gate-fail" => {
                self.stand_at(rest).await?;
                return Err(TaskError::retry("fails after the gate, as told"));
            }
            "take" => tokio::time::sleep(Duration::from_millis(rest.parse()?)).await,
            "write" | "write-fail" | "write-gate" => {
                let mut tx = task.transaction().await?;
                sqlx::query("INSERT INTO effects (job_id, position) VALUES ($1, $2)")
                    .bind(task.job_id().0)
                    .bind(task.position())
                    .execute(&mut *tx)
                    .await?;
                drop(tx);
                if word == "write-gate" {
                    self.stand_at(rest).await?;
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
    /// Its services as workers meet them: with a worker's rights, and no more.
    pub worker_database: String,
    pub worker_amqp_url: String,
    name: String,
    server: String,
}

impl Stage {
    pub async fn new() -> Self {
        Self::with_ladder(&["200ms", "1s"]).await
    }

    pub async fn with_ladder(delays: &[&str]) -> Self {
        Self::on(&amqp_url(), &database_url(), delays).await
    }

    /// On services of one's own.
    pub async fn on(amqp_url: &str, database_url: &str, delays: &[&str]) -> Self {
        tell();
        let queues = Queues::on(amqp_url, delays).await;
        queues.declare().await;
        queues.mark().await;
        let name = format!("cliquet_test_{}", Uuid::new_v4().simple());
        let mut admin = PgConnection::connect(database_url)
            .await
            .unwrap_or_else(|error| {
                panic!("Postgres at DATABASE_URL does not answer ({error}): run `deploy/dev up`")
            });
        // A user's own schema comes first by default, and a user called `cliquet` would make the test's tables in cliquet's.
        for statement in [
            format!("CREATE DATABASE {name}"),
            format!("ALTER DATABASE {name} SET search_path = public"),
        ] {
            sqlx::raw_sql(sqlx::AssertSqlSafe(statement))
                .execute(&mut admin)
                .await
                .unwrap();
        }
        let mut url = url::Url::parse(database_url).unwrap();
        url.set_path(&name);
        let database = url.to_string();
        ledger::migrate(&LedgerAddress::parse(&database).unwrap())
            .await
            .unwrap();
        let worker_database = privileges::database_as(&database, "cliquet_worker").await;
        let worker_amqp_url = worker_of(amqp_url).await;
        let pool = sqlx::postgres::PgPoolOptions::new()
            .max_connections(4)
            .connect(&database)
            .await
            .unwrap();
        sqlx::raw_sql(TABLES).execute(&pool).await.unwrap();
        Self {
            queues,
            script: Script(pool.clone()),
            database,
            pool,
            worker_database,
            worker_amqp_url,
            name,
            server: database_url.to_owned(),
        }
    }

    /// Settings that make a test quick: short beats, exact delays.
    pub fn config(&self) -> Config {
        let ladder = self
            .queues
            .topology
            .ladder()
            .rungs()
            .iter()
            .map(|rung| rung.delay());
        quick(
            &self.worker_amqp_url,
            &self.worker_database,
            &self.queues.name(Place::Work),
            Ladder::new(ladder).unwrap(),
        )
    }

    /// A builder with the scripted handler under the names a to e.
    pub fn builder(&self, config: Config) -> Builder {
        scripted(config, &self.script)
    }

    /// A worker in a process of its own, for real signals.
    pub fn process(&self, name: &str) -> WorkerProcess {
        self.process_with(name, &[])
    }

    /// With further variables in its environment; see [`a_worker_process`] for those that are its own.
    pub fn process_with(&self, name: &str, environment: &[(&str, &str)]) -> WorkerProcess {
        let ladder: Vec<_> = self
            .queues
            .topology
            .ladder()
            .rungs()
            .iter()
            .map(|rung| format!("{}ms", rung.delay().as_millis()))
            .collect();
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "support::stage::a_worker_process",
                "--nocapture",
                "--test-threads=1",
            ])
            .env("STAGE_AMQP", &self.worker_amqp_url)
            .env("STAGE_DATABASE", &self.database)
            .env("STAGE_WORKER_DATABASE", &self.worker_database)
            .env("STAGE_QUEUE", self.queues.name(Place::Work))
            .env("STAGE_LADDER", ladder.join(","))
            .env("STAGE_NAME", name)
            .envs(environment.iter().copied())
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        WorkerProcess(child)
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

    /// Waits until Postgres has ended the sessions of a worker's process that has ended, and with them what it last asked for.
    pub async fn let_go(&self, name: &str) {
        eventually("the dead worker's sessions have ended", async || {
            let sessions: i64 = sqlx::query_scalar(
                "SELECT count(*) FROM pg_stat_activity
                  WHERE datname = current_database() AND starts_with(application_name, 'cliquet ' || $1 || ' ')",
            )
            .bind(name)
            .fetch_one(&self.pool)
            .await
            .unwrap();
            (sessions == 0).then_some(())
        })
        .await;
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

    /// Waits until a job has a status; fails after a minute with all that the ledger knows of it.
    pub async fn reaches(&self, job: Uuid, status: &str) {
        let told = async {
            while self.status(job).await.as_deref() != Some(status) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(60), told)
            .await
            .is_err()
        {
            let sql = "SELECT row_to_json(job)::text || E'\\n' || (SELECT json_agg(task)::text FROM cliquet.tasks task WHERE task.job_id = job.id)
                              || E'\\n' || coalesce((SELECT json_agg(failure)::text FROM cliquet.failures failure WHERE failure.job_id = job.id), '')
                         FROM cliquet.jobs job WHERE id = $1";
            let known: Option<String> = sqlx::query_scalar(sql)
                .bind(job)
                .fetch_optional(&self.pool)
                .await
                .unwrap();
            let mut waiting = Vec::new();
            for place in self.queues.topology.places() {
                waiting.push(format!(
                    "{}: {}",
                    self.queues.name(place),
                    self.queues.depth(place).await
                ));
            }
            panic!(
                "job {job} is not {status} within a minute: {}\n{waiting:?}",
                known.unwrap_or_default()
            );
        }
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

/// The broker's address for a worker of the tests, which makes its queues.
async fn worker_of(amqp_url: &str) -> String {
    let permissions = privileges::permissions(&["--json", "--prefix", "t-", "worker", "ada"]);
    let worker = privileges::broker_as(amqp_url, "cliquet_test_worker", &permissions).await;
    worker.unwrap_or_else(|| amqp_url.to_owned())
}

/// Settings that make a test quick. The worker is called as its queue, so that its connections can be told from others'.
fn quick(amqp_url: &str, database: &str, queue: &str, ladder: Ladder) -> Config {
    Config {
        amqp_url: amqp_url.to_owned(),
        database_url: database.to_owned(),
        queue: queue.to_owned(),
        name: queue.to_owned(),
        concurrency: 8,
        drain_timeout: Duration::from_secs(10),
        retry: RetryPolicy {
            max_attempts: 3,
            initial: Duration::from_millis(200),
            jitter: 0.0,
            multiplier: 1.0,
            ..RetryPolicy::default()
        },
        ladder,
        heartbeat: Duration::from_millis(300),
        // With a short one a heartbeat that is late on a busy machine costs the worker its lock. Where silence is what a
        // test is about it sets its own.
        patience: Duration::from_secs(60),
        reconcile_every: Duration::from_millis(500),
        probe_every: Duration::from_millis(400),
        lanes: 2,
        publishers: 2,
        handler_connections: 4,
        ..Config::default()
    }
}

fn scripted(config: Config, script: &Script) -> Builder {
    let mut builder = Worker::builder().config(config);
    for name in ["a", "b", "c", "d", "e"] {
        let script = script.clone();
        builder = builder.handler(name, move |task: TaskContext| script.clone().act(task));
    }
    builder
}

/// With `RUST_LOG` set, a test that fails shows what its workers said.
fn tell() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("off"));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .try_init();
}

/// Not a test: the body of [`Stage::process`], when this binary is started again as a worker.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_process() {
    let Ok(database) = std::env::var("STAGE_DATABASE") else {
        return;
    };
    tell();
    let variable = |name: &str| std::env::var(name).unwrap();
    let milliseconds = |name: &str| {
        let text = std::env::var(name).ok()?;
        Some(Duration::from_millis(text.parse().unwrap()))
    };
    let ladder: Vec<_> = variable("STAGE_LADDER")
        .split(',')
        .map(str::to_owned)
        .collect();
    let mut config = quick(
        &variable("STAGE_AMQP"),
        &variable("STAGE_WORKER_DATABASE"),
        &variable("STAGE_QUEUE"),
        Ladder::try_from(ladder).unwrap(),
    );
    config.name = variable("STAGE_NAME");
    if let Ok(jobs) = std::env::var("STAGE_CONCURRENCY") {
        config.concurrency = jobs.parse().unwrap();
    }
    if let Some(patience) = milliseconds("STAGE_PATIENCE_MS") {
        config.patience = patience;
    }
    if let Some(limit) = milliseconds("STAGE_DRAIN_TIMEOUT_MS") {
        config.drain_timeout = limit;
    }
    if let Some(limit) = milliseconds("STAGE_HAND_OVER_AFTER_MS") {
        config.hand_over_after = limit;
    }
    if let Ok(failures) = std::env::var("STAGE_BRAKE_AFTER") {
        config.brake_after = failures.parse().unwrap();
    }
    if let Ok(port) = std::env::var("STAGE_METRICS_PORT") {
        let exposition = cliquet::telemetry::metrics::install().unwrap();
        tokio::spawn(prometheus::serve(exposition.clone(), port.parse().unwrap()));
        tokio::spawn(async move { exposition.upkeep(CancellationToken::new()).await });
    }
    let database: sqlx::postgres::PgConnectOptions = database.parse().unwrap();
    let pool = sqlx::postgres::PgPoolOptions::new()
        .max_connections(8)
        .connect_with(database.application_name(&format!("cliquet {} script", config.name)))
        .await
        .unwrap();
    scripted(config, &Script(pool)).run().await.unwrap();
}

/// A worker in a process of its own; killed at the end if it still runs.
pub struct WorkerProcess(std::process::Child);

impl WorkerProcess {
    /// Looks after a process that was started otherwise.
    pub fn of(child: std::process::Child) -> Self {
        Self(child)
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Sends a signal by name: TERM, INT, STOP, CONT.
    pub fn signal(&self, name: &str) {
        let sent = std::process::Command::new("kill")
            .args(["-s", name, &self.0.id().to_string()])
            .status();
        assert!(sent.unwrap().success(), "SIG{name} was not sent");
    }

    pub fn try_ended(&mut self) -> bool {
        self.try_status().is_some()
    }

    /// How it ended, if it has.
    pub fn try_status(&mut self) -> Option<std::process::ExitStatus> {
        self.0.try_wait().unwrap()
    }

    /// The process' id.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Waits until it has ended by itself. Its exit code; none if a signal ended it.
    pub async fn ended(&mut self) -> Option<i32> {
        eventually("the worker's process has ended", || {
            std::future::ready(self.0.try_wait().unwrap())
        })
        .await
        .code()
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
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
        let (name, server) = (self.name.clone(), self.server.clone());
        let cleaning = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                if let Ok(mut admin) = PgConnection::connect(&server).await {
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
}

impl Drop for RunningWorker {
    fn drop(&mut self) {
        self.running.abort();
    }
}
