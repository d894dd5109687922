//! The ledger against a real Postgres: every test has a database of its own, and tells one behaviour in its name.

mod advance;
mod bench;
mod cancel;
mod claim;
mod defer;
mod due;
mod fail;
mod find;
mod group;
mod message;
mod presence;
mod privileges;
mod schema;
mod skip;
mod suspect;
mod table;
mod transaction;

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json, value::RawValue};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};

use super::*;
use crate::job::JobMessage;

/// How many sessions a worker of these tests has for its handlers.
const SESSIONS: u32 = 4;

/// A Postgres that does not answer for so long has a bug to show.
const DEADLINE: Duration = Duration::from_secs(60);

/// A database that exists for one test, and is dropped with this value, also when the test panics.
pub(super) struct Database {
    pub(super) name: String,
    pub(super) address: LedgerAddress,
    url: String,
    server: String,
    /// For looks and for whatever commits at once; made at the first use and then kept, since a login takes its time.
    own: tokio::sync::Mutex<Option<PgConnection>>,
}

impl Database {
    /// Without any schema.
    pub(super) async fn empty() -> Self {
        let server = std::env::var("DATABASE_URL").unwrap_or_else(|_| {
            panic!("DATABASE_URL is not set: run `deploy/dev test`, or eval \"$(deploy/dev env)\"")
        });
        let name = format!("cliquet_test_{}", uuid::Uuid::new_v4().simple());
        let mut url = url::Url::parse(&server).unwrap();
        url.set_path(&name);
        let database = Self {
            address: LedgerAddress::parse(url.as_str()).unwrap(),
            url: url.into(),
            server,
            name,
            own: tokio::sync::Mutex::default(),
        };
        let mut admin = PgConnection::connect(&database.server).await.unwrap();
        let create = format!("CREATE DATABASE {} TEMPLATE template0", database.name);
        sqlx::raw_sql(AssertSqlSafe(create))
            .execute(&mut admin)
            .await
            .unwrap();
        database
    }

    /// As `cliquet migrate` leaves it.
    pub(super) async fn new() -> Self {
        let database = Self::empty().await;
        migrate(&database.address).await.unwrap();
        database
    }

    /// A connection of the test's own.
    pub(super) async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.unwrap()
    }

    async fn own(&self) -> tokio::sync::MappedMutexGuard<'_, PgConnection> {
        let mut own = self.own.lock().await;
        if own.is_none() {
            *own = Some(self.connect().await);
        }
        tokio::sync::MutexGuard::map(own, |own| own.as_mut().unwrap())
    }

    /// Runs one or more statements.
    pub(super) async fn run(&self, sql: &str) {
        on(&mut *self.own().await, sql).await;
    }

    /// The single value that a statement answers.
    pub(super) async fn value<T>(&self, sql: &str) -> T
    where
        T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
    {
        sqlx::query(AssertSqlSafe(sql.to_owned()))
            .fetch_one(&mut *self.own().await)
            .await
            .and_then(|row| row.try_get(0))
            .unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// What Postgres says against a statement.
    pub(super) async fn refusal(&self, sql: &str) -> String {
        match sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
            .execute(&mut *self.own().await)
            .await
        {
            Ok(_) => panic!("Postgres took it: {sql}"),
            Err(error) => error.to_string(),
        }
    }

    /// The rows that a query answers for a job.
    async fn rows<T: DeserializeOwned>(&self, query: &str, id: JobId) -> Vec<T> {
        let rows: String = self
            .value(&format!(
                "SELECT coalesce(json_agg(row_to_json(r)), '[]')::text FROM ({}) r",
                query.replace("$id", &format!("'{id}'"))
            ))
            .await;
        serde_json::from_str(&rows).unwrap()
    }

    /// A job's row.
    pub(super) async fn job(&self, id: JobId) -> JobRow {
        self.rows(
            "SELECT status, epoch, generation, sent, holder, attempts, total, error, queue,
                    started_at IS NOT NULL AS started, finished_at IS NOT NULL AS finished,
                    extract(epoch FROM next_attempt_at - clock_timestamp())::float8 AS due_in
               FROM cliquet.jobs WHERE id = $id",
            id,
        )
        .await
        .remove(0)
    }

    /// The rows of a job's tasks, by position.
    pub(super) async fn tasks(&self, id: JobId) -> Vec<TaskRow> {
        self.rows(
            "SELECT position, status, epoch, attempt, crashes, handler, label, input::text, result::text, error,
                    started_at IS NOT NULL AS started, finished_at IS NOT NULL AS finished
               FROM cliquet.tasks WHERE job_id = $id ORDER BY position",
            id,
        )
        .await
    }

    /// The statuses of a job's tasks, by position.
    pub(super) async fn statuses(&self, id: JobId) -> Vec<String> {
        let tasks = self.tasks(id).await;
        tasks.into_iter().map(|task| task.status).collect()
    }

    /// Everything the ledger knows of a job, to compare before and after.
    pub(super) async fn all_of(&self, id: JobId) -> String {
        self.value(&format!(
            "SELECT json_build_object(
                'job', (SELECT row_to_json(job) FROM cliquet.jobs job WHERE id = '{id}'),
                'tasks', (SELECT json_agg(task ORDER BY position) FROM cliquet.tasks task WHERE job_id = '{id}'),
                'failures', (SELECT json_agg(failure ORDER BY epoch) FROM cliquet.failures failure WHERE job_id = '{id}'))::text"
        ))
        .await
    }

    /// The history of a job's failed attempts.
    pub(super) async fn failures(&self, id: JobId) -> Vec<FailureRow> {
        self.rows("SELECT position, attempt, epoch, worker, error FROM cliquet.failures WHERE job_id = $id ORDER BY epoch", id)
            .await
    }

    /// A worker process with its presence and its ledger.
    pub(super) async fn worker(&self, name: &str) -> Worker {
        self.worker_with(name, 1).await
    }

    pub(super) async fn worker_with(&self, name: &str, lanes: usize) -> Worker {
        let about = About {
            name: name.into(),
            host: "here".into(),
            queue: "jobs".into(),
            patience: Duration::from_secs(600),
        };
        let mut presence = Presence::begin(&self.address, &about).await.unwrap();
        let tally = Arc::new(Tally::default());
        presence.tell_what_ends(tally.clone());
        Worker {
            ledger: Ledger::open(&self.address, presence.holder(), lanes, SESSIONS, tally),
            presence,
        }
    }

    /// Waits until so many of this database's sessions wait for a lock.
    pub(super) async fn blocked(&self, sessions: i64) {
        let sql = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = '{}' AND wait_event_type = 'Lock'",
            self.name
        );
        until("sessions wait for a lock", async || {
            self.value::<i64>(&sql).await >= sessions
        })
        .await;
    }

    /// Kills the sessions whose application name is like this; the number of them.
    pub(super) async fn terminate(&self, like: &str) -> i64 {
        self.value(&format!(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
              WHERE datname = '{}' AND application_name LIKE '{like}' AND pid <> pg_backend_pid()",
            self.name
        ))
        .await
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let (server, drop) = (
            self.server.clone(),
            format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name),
        );
        // A thread of its own: a destructor cannot wait within the test's runtime.
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let mut admin = PgConnection::connect(&server).await?;
                sqlx::raw_sql(AssertSqlSafe(drop))
                    .execute(&mut admin)
                    .await?;
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
            })
        });
        match dropping.join() {
            Ok(Ok(())) => {}
            other => eprintln!("the database {} is left behind: {other:?}", self.name),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct JobRow {
    pub(super) status: String,
    pub(super) epoch: i64,
    pub(super) generation: i64,
    pub(super) sent: i64,
    pub(super) holder: Option<i64>,
    pub(super) attempts: i32,
    pub(super) total: i32,
    pub(super) error: Option<String>,
    pub(super) queue: String,
    pub(super) started: bool,
    pub(super) finished: bool,
    pub(super) due_in: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct TaskRow {
    pub(super) position: i32,
    pub(super) status: String,
    pub(super) epoch: i64,
    pub(super) attempt: i32,
    pub(super) crashes: i32,
    pub(super) handler: String,
    pub(super) label: String,
    pub(super) input: Option<String>,
    pub(super) result: Option<String>,
    pub(super) error: Option<String>,
    pub(super) started: bool,
    pub(super) finished: bool,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct FailureRow {
    pub(super) position: i32,
    pub(super) attempt: i32,
    pub(super) epoch: i64,
    pub(super) worker: String,
    pub(super) error: String,
}

/// A worker process as the ledger sees it.
pub(super) struct Worker {
    pub(super) ledger: Ledger,
    pub(super) presence: Presence,
}

impl Worker {
    pub(super) fn id(&self) -> i64 {
        self.ledger.holder().id
    }

    /// Claims with a publisher's own message, delivered for the first time.
    pub(super) async fn claim(&self, message: &Arc<JobMessage>) -> Answer {
        self.ledger.claim(first_delivery(message)).await.unwrap()
    }

    /// Claims and expects to get the job.
    pub(super) async fn claimed(&self, message: &Arc<JobMessage>) -> Claimed {
        match self.claim(message).await {
            Answer::Claimed(claimed) => *claimed,
            // As a worker does that has its permit for such jobs free.
            Answer::Suspect { .. } => self.claimed_by(asks(message)).await,
            other => panic!("expected Claimed, not {other:?}"),
        }
    }

    /// Claims and expects to get the job.
    pub(super) async fn claimed_by(&self, claim: Claim) -> Claimed {
        match self.ledger.claim(claim).await.unwrap() {
            Answer::Claimed(claimed) => *claimed,
            other => panic!("expected Claimed, not {other:?}"),
        }
    }

    /// Commits a task's SUCCESS with this result; what follows is the next task.
    pub(super) async fn done(&self, stand: Stand, result: Value) -> Written {
        self.advance(stand, result, Next::Task).await
    }

    pub(super) async fn advance(&self, stand: Stand, result: Value, next: Next) -> Written {
        self.ledger
            .advance(advance(stand, result, next))
            .await
            .unwrap()
    }

    /// Fails the attempt; it is tried again after a minute.
    pub(super) async fn fail(&self, stand: Stand) -> Written {
        let retry_in = Some(Duration::from_secs(60));
        self.ledger.fail(fail(stand, retry_in)).await.unwrap()
    }

    /// Fails the attempt for good.
    pub(super) async fn give_up(&self, stand: Stand) -> Written {
        self.ledger.fail(fail(stand, None)).await.unwrap()
    }

    /// Claims the job and runs all of its tasks.
    pub(super) async fn finish(&self, message: &Arc<JobMessage>) {
        let claimed = self.claimed(message).await;
        let mut stand = stand(message, &claimed);
        let last = message.tasks.len() as i32;
        while stand.position < last {
            assert_eq!(self.done(stand, json!(null)).await, Written::Committed);
            stand = after(stand);
        }
        assert_eq!(
            self.advance(stand, json!(null), Next::Finish).await,
            Written::Committed
        );
    }

    /// Says goodbye, and the ledger has heard it: the worker itself does not wait for long.
    pub(super) async fn leave(self, database: &Database) {
        let sql = format!(
            "SELECT stopped_at IS NOT NULL FROM cliquet.workers WHERE id = {}",
            self.id()
        );
        self.presence.end().await;
        until("the goodbye is written", async || {
            database.value(&sql).await
        })
        .await;
    }

    /// Ends as a killed process does: its sockets close, its lock is free, and nothing else is written.
    pub(super) async fn die(self, database: &Database) {
        let id = self.id();
        drop(self);
        let sql = lock_of(id);
        until("the dead worker's lock is free", async || {
            !database.value::<bool>(&sql).await
        })
        .await;
    }
}

/// Whether a worker's lock is held.
pub(super) fn lock_of(worker: i64) -> String {
    format!(
        "SELECT EXISTS (SELECT FROM pg_locks JOIN cliquet.workers ON classid = (lock_key >> 32)::oid AND objid = (lock_key & x'ffffffff'::bigint)::oid
          WHERE locktype = 'advisory' AND objsubid = 1 AND mode = 'ExclusiveLock' AND granted
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND workers.id = {worker})"
    )
}

/// Writes one transition on a connection of the test's own, which may hold a transaction open.
pub(super) async fn write<V: lane::Verb>(
    connection: &mut PgConnection,
    worker: &Worker,
    verb: V,
) -> Option<V::Answer> {
    V::write(connection, worker.ledger.holder(), &[&verb])
        .await
        .unwrap()
        .remove(0)
}

/// Runs one or more statements on this connection.
pub(super) async fn on(connection: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(connection)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// A job of so many tasks.
pub(super) fn job_of(tasks: usize) -> Arc<JobMessage> {
    let handlers: Vec<_> = (1..=tasks).map(|number| format!("step_{number}")).collect();
    job(json!({"tasks": handlers}))
}

/// A job as a publisher's JSON tells it; what it lacks is filled in.
pub(super) fn job(mut body: Value) -> Arc<JobMessage> {
    for (field, default) in [
        ("id", json!(JobId::new())),
        ("kind", json!("test")),
        ("tasks", json!(["only"])),
    ] {
        body.as_object_mut()
            .unwrap()
            .entry(field)
            .or_insert(default);
    }
    Arc::new(JobMessage::decode(body.to_string().as_bytes(), None, None).unwrap())
}

/// The claim of a publisher's own message, delivered for the first time.
pub(super) fn asks(message: &Arc<JobMessage>) -> Claim {
    Claim {
        message: message.clone(),
        generation: Generation(0),
        redelivered: false,
        running: None,
        alone: true,
    }
}

/// The claim of a job's first delivery, as a worker makes it: most are admissions.
pub(super) fn first_delivery(message: &Arc<JobMessage>) -> Claim {
    Claim {
        alone: false,
        ..asks(message)
    }
}

/// The same claim for a message that the broker delivers again.
pub(super) fn redelivered(claim: Claim) -> Claim {
    Claim {
        redelivered: true,
        ..claim
    }
}

/// The same claim for a copy of this generation.
pub(super) fn of_generation(generation: i64, claim: Claim) -> Claim {
    Claim {
        generation: Generation(generation),
        ..claim
    }
}

/// A handler's brake that is on.
pub(super) fn brake() -> crate::retry::BrakeState {
    crate::retry::BrakeState {
        handler: "upload".into(),
        failures: 20,
        on_for_ms: 1_000,
        failed_probes: 2,
        next_probe_ms: 500,
        probing: false,
        last_error: "away".into(),
    }
}

/// Where a claimed run stands.
pub(super) fn stand(message: &Arc<JobMessage>, claimed: &Claimed) -> Stand {
    Stand {
        job: message.id,
        position: claimed.position,
        epoch: claimed.epoch,
        attempt: claimed.attempt,
    }
}

/// The next task of the same run.
pub(super) fn after(stand: Stand) -> Stand {
    Stand {
        position: stand.position + 1,
        attempt: 1,
        ..stand
    }
}

/// As it is written in a group of its own kind.
impl lane::Verb for Advance {
    type Answer = Written;
    const TRANSITION: crate::metrics::Transition = crate::metrics::Transition::Step;

    fn job(&self) -> JobId {
        self.stand.job
    }

    async fn write(
        connection: &mut PgConnection,
        holder: &Holder,
        group: &[&Self],
    ) -> Result<Vec<Option<Written>>, sqlx::Error> {
        let steps: Vec<_> = group.iter().map(|&advance| step(advance)).collect();
        let steps: Vec<_> = steps.iter().collect();
        let answers = Step::write(connection, holder, &steps).await?;
        Ok(answers
            .into_iter()
            .map(|answer| match answer? {
                Stepped::Advanced(written) => Some(written),
                other => panic!("the answer of an admission: {other:?}"),
            })
            .collect())
    }
}

fn step(advance: &Advance) -> Step {
    Step::Advance(Advance {
        stand: advance.stand,
        result: advance.result.clone(),
        next: advance.next,
    })
}

pub(super) fn advance(stand: Stand, result: Value, next: Next) -> Advance {
    Advance {
        stand,
        result: raw(&result.to_string()),
        next,
    }
}

pub(super) fn fail(stand: Stand, retry_in: Option<Duration>) -> Fail {
    Fail {
        stand,
        error: "no luck".into(),
        retry_in,
    }
}

pub(super) fn raw(json: &str) -> Box<RawValue> {
    RawValue::from_string(json.into()).unwrap()
}

/// Looks until it is so, or the deadline has passed.
pub(super) async fn until<F: Future<Output = bool>>(what: &str, mut look: impl FnMut() -> F) {
    let began = Instant::now();
    while !look().await {
        assert!(
            began.elapsed() < DEADLINE,
            "not within {DEADLINE:?}: {what}"
        );
        sleep(Duration::from_millis(5)).await;
    }
}

/// Makes a worker's heartbeat too old, while its lock is held.
/// Its patience is short, since no silence counts for longer than Postgres itself has been up.
pub(super) async fn stale(database: &Database, worker: &Worker) {
    let sql = format!(
        "UPDATE cliquet.workers SET seen_at = clock_timestamp() - interval '1 day', patience = '1 second' WHERE id = {}",
        worker.id()
    );
    database.run(&sql).await;
}

/// Cancels a job as an operator does: the epoch is taken from whoever holds it.
pub(super) async fn cancel(database: &Database, id: JobId) {
    let pool = database.address.pool("operator", 1);
    let answers = super::cancel(&pool, &[id], &by("not wanted"))
        .await
        .unwrap();
    assert_eq!(answers, [(id, Cancelled::Cancelled)]);
}

/// An operator with a reason.
pub(super) fn by(reason: &str) -> By {
    By::new("olga", Some(reason))
}

/// Enqueues a job in SQL, as a user does within a transaction of their own.
pub(super) async fn enqueue(database: &Database, message: &JobMessage) {
    let mut connection = database.own().await;
    sqlx::query("INSERT INTO cliquet.jobs (id, epoch, generation, sent, next_attempt_at, total, status, queue, kind, payload) VALUES ($1, 0, 0, -1, now(), $2, 'PENDING', 'jobs', $3, $4::json)")
        .bind(message.id.0)
        .bind(message.tasks.len() as i32)
        .bind(&message.kind)
        .bind(message.payload.get())
        .execute(&mut *connection)
        .await
        .unwrap();
    for (index, task) in message.tasks.iter().enumerate() {
        sqlx::query("INSERT INTO cliquet.tasks (job_id, position, handler, label, input) VALUES ($1, $2, $3, $4, $5::json)")
            .bind(message.id.0)
            .bind(index as i32 + 1)
            .bind(&task.handler)
            .bind(&task.label)
            .bind(task.input.get())
            .execute(&mut *connection)
            .await
            .unwrap();
    }
}
