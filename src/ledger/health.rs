//! Facts about the ledger for whoever checks it: the server, the schema, the rights of this role, plans, workers and jobs.
//!
//! Nothing here judges, changes or locks anything, and every question is bounded in time. What the facts mean, and what is to
//! be done, is said by `cliquet doctor`.

use std::{future::Future, time::Duration};

use sqlx::{Connection, PgConnection, Row, postgres::PgRow, types::Json};
use tokio::time::timeout;

use super::{
    LedgerError,
    connect::{LedgerAddress, is_gone, sentence},
    plans::{Plan, plans},
    schema::{Standing, newest, standing},
};
use crate::{job::JobId, retry::BrakeState};

/// How long Postgres has for one answer. A table too large for it is a finding of its own.
const ANSWER: Duration = Duration::from_secs(10);

/// So much longer Postgres has to say itself that it takes too long.
const MERCY: Duration = Duration::from_secs(2);

/// An open look at a ledger.
pub(crate) struct Health {
    address: LedgerAddress,
    connection: PgConnection,
}

/// The server, as this role sees it.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) version: String,
    /// 150018 for 15.18.
    pub(crate) version_number: i32,
    /// The role whose rights count.
    pub(crate) role: String,
    /// The role that logged in: settings and limits are its.
    pub(crate) login: String,
    pub(crate) database: String,
    pub(crate) standby: bool,
    pub(crate) read_only: bool,
    pub(crate) settings: Json<Vec<Setting>>,
    pub(crate) limits: Json<Vec<Limit>>,
    /// The age of the oldest transaction that this role can see, in seconds.
    pub(crate) oldest_transaction: f64,
}

/// One setting, and where it was set.
#[derive(Clone, Debug, serde::Deserialize)]
pub(crate) struct Setting {
    pub(crate) name: String,
    pub(crate) value: String,
    /// In the words of `pg_settings`: `configuration file`, `database`, `user` …
    pub(crate) source: String,
}

/// How many sessions somebody may have, and how many there are.
#[derive(Clone, Debug, serde::Deserialize)]
pub(crate) struct Limit {
    /// `the server`, `the database` or `the role`.
    pub(crate) whose: String,
    pub(crate) allowed: i64,
    pub(crate) used: i64,
}

impl Server {
    pub(crate) fn setting(&self, name: &str) -> Option<&Setting> {
        self.settings.iter().find(|setting| setting.name == name)
    }
}

/// Has the server read its settings again.
pub(crate) const RELOAD: &str = "SELECT pg_reload_conf()";
/// Who waits for a lock, and for whom.
pub(crate) const WHO_WAITS: &str =
    "SELECT pid, pg_blocking_pids(pid), query FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
/// Whose transactions are open, the oldest first.
pub(crate) const OPEN_TRANSACTIONS: &str =
    "SELECT pid, usename, application_name, xact_start FROM pg_stat_activity ORDER BY xact_start";

/// One of cliquet's tables.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    pub(crate) name: String,
    pub(crate) live: i64,
    pub(crate) dead: i64,
    pub(crate) vacuum_off: bool,
}

/// Who a role is: each needs other rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Duty {
    /// Runs jobs.
    Worker,
    /// Enqueues jobs in SQL.
    Publisher,
    /// Looks.
    Reader,
    /// Looks, retries, cancels and skips.
    Operator,
}

/// A right that the role lacks, and the statement that grants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lacking {
    pub(crate) right: String,
    pub(crate) grant: String,
}

/// A worker process as the ledger knows it. Its silence is measured by the database's clock alone.
#[derive(Clone, Debug)]
pub(crate) struct WorkerFacts {
    pub(crate) name: String,
    pub(crate) host: String,
    pub(crate) pid: i32,
    pub(crate) version: String,
    pub(crate) queue: String,
    pub(crate) silent_for: Duration,
    pub(crate) patience: Duration,
    /// It said goodbye.
    pub(crate) stopped: bool,
    /// Silent beyond its patience, while Postgres was there to hear it.
    pub(crate) stale: bool,
    /// It holds its advisory lock.
    pub(crate) locked: bool,
    /// How many jobs it holds.
    pub(crate) holds: i64,
    pub(crate) brakes: Vec<BrakeState>,
}

impl WorkerFacts {
    /// Whether it is there, as far as anybody can tell.
    pub(crate) fn lives(&self) -> bool {
        !self.stopped && !self.stale
    }
}

/// Jobs that were given up for the same reason.
#[derive(Clone, Debug)]
pub(crate) struct ParkedGroup {
    pub(crate) handler: String,
    pub(crate) error: String,
    pub(crate) jobs: i64,
    pub(crate) example: uuid::Uuid,
}

/// What waits, by work queue.
#[derive(Clone, Debug)]
pub(crate) struct Backlog {
    pub(crate) queue: String,
    /// Due now: their messages are, or should be, in the work queue.
    pub(crate) due: i64,
    /// On a rung, not due yet.
    pub(crate) later: i64,
    /// For how long the oldest has been due, in seconds; 0 when none is.
    pub(crate) oldest: f64,
    /// That one.
    pub(crate) example: Option<uuid::Uuid>,
    /// Enqueued in SQL and never sent.
    pub(crate) unsent: i64,
    /// For how long the oldest of those has waited, in seconds.
    pub(crate) oldest_unsent: f64,
}

/// A task in which workers have died, of a job that is not over.
#[derive(Clone, Debug)]
pub(crate) struct Suspect {
    pub(crate) job: uuid::Uuid,
    pub(crate) handler: String,
    pub(crate) crashes: i32,
}

macro_rules! read_by_name {
    ($($row:ident { $($column:ident),+ })+) => {
        $(impl<'r> sqlx::FromRow<'r, PgRow> for $row {
            fn from_row(row: &'r PgRow) -> Result<Self, sqlx::Error> {
                Ok(Self { $($column: row.try_get(stringify!($column))?),+ })
            }
        })+
    };
}
read_by_name! {
    Server {
        version, version_number, role, login, database, standby, read_only, settings, limits, oldest_transaction
    }
    Table { name, live, dead, vacuum_off }
    ParkedGroup { handler, error, jobs, example }
    Backlog { queue, due, later, oldest, example, unsent, oldest_unsent }
    Suspect { job, handler, crashes }
}

const SERVER: &str = r"
WITH sessions AS (
    SELECT datname, usename FROM pg_stat_activity WHERE coalesce(backend_type, 'client backend') = 'client backend'
), limits (whose, allowed, used) AS (
    SELECT 'the server', current_setting('max_connections')::int8 - current_setting('superuser_reserved_connections')::int8
               - coalesce(current_setting('reserved_connections', true)::int8, 0), (SELECT count(*) FROM sessions)
    UNION ALL
    SELECT 'the database', datconnlimit, (SELECT count(*) FROM sessions WHERE sessions.datname = pg_database.datname)
      FROM pg_database WHERE datname = current_database() AND datconnlimit >= 0
    UNION ALL
    SELECT 'the role', rolconnlimit, (SELECT count(*) FROM sessions WHERE usename = rolname)
      FROM pg_roles WHERE rolname = session_user AND rolconnlimit >= 0
)
SELECT current_setting('server_version') AS version, current_setting('server_version_num')::int AS version_number,
       current_user::text AS role, session_user::text AS login, current_database()::text AS database,
       pg_is_in_recovery() AS standby, current_setting('transaction_read_only')::bool AS read_only,
       (SELECT json_agg(json_build_object('name', name, 'value', setting, 'source', source)) FROM pg_settings
         WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit', 'autovacuum', 'track_counts', 'default_transaction_read_only')) AS settings,
       (SELECT json_agg(limits) FROM limits) AS limits,
       coalesce((SELECT max(extract(epoch FROM clock_timestamp() - xact_start)) FROM pg_stat_activity
                  WHERE datname = current_database() AND pid <> pg_backend_pid()), 0)::float8 AS oldest_transaction";

const TABLES: &str = r"
SELECT stat.relname::text AS name, stat.n_live_tup AS live, stat.n_dead_tup AS dead,
       coalesce('autovacuum_enabled=false' = ANY (class.reloptions) OR 'autovacuum_enabled=off' = ANY (class.reloptions), false) AS vacuum_off
  FROM pg_stat_user_tables stat JOIN pg_class class ON class.oid = stat.relid
 WHERE stat.schemaname = 'cliquet' ORDER BY stat.relname";

/// What each duty needs: whose, on which table, which rights, and on which of its columns if not on all. The same as
/// `deploy/postgres-roles.sql` grants: a test takes each of its grants away.
type Right = (
    Duty,
    &'static str,
    &'static [&'static str],
    &'static [&'static str],
);
const RIGHTS: [Right; 31] = [
    (Duty::Worker, "jobs", &["SELECT", "INSERT"], &[]),
    (
        Duty::Worker,
        "jobs",
        &["UPDATE"],
        &[
            "epoch",
            "generation",
            "sent",
            "holder",
            "started_at",
            "finished_at",
            "next_attempt_at",
            "attempts",
            "status",
            "fingerprint",
            "error",
        ],
    ),
    (Duty::Worker, "tasks", &["SELECT", "INSERT"], &[]),
    (
        Duty::Worker,
        "tasks",
        &["UPDATE"],
        &[
            "epoch",
            "started_at",
            "finished_at",
            "attempt",
            "crashes",
            "status",
            "result",
            "error",
        ],
    ),
    (Duty::Worker, "failures", &["INSERT"], &[]),
    (
        Duty::Worker,
        "workers",
        &["SELECT", "INSERT", "DELETE"],
        &[],
    ),
    (
        Duty::Worker,
        "workers",
        &["UPDATE"],
        &[
            "locked_at",
            "seen_at",
            "stopped_at",
            "cleared_at",
            "brakes",
            "succeeded",
            "failed",
            "in_hand",
            "running",
        ],
    ),
    (
        Duty::Worker,
        "activity",
        &["SELECT", "INSERT", "DELETE"],
        &[],
    ),
    (
        Duty::Worker,
        "activity",
        &["UPDATE"],
        &["succeeded", "failed"],
    ),
    (Duty::Worker, "migrations", &["SELECT"], &[]),
    (
        Duty::Publisher,
        "jobs",
        &["INSERT"],
        &[
            "id",
            "epoch",
            "generation",
            "sent",
            "next_attempt_at",
            "total",
            "status",
            "queue",
            "kind",
            "payload",
        ],
    ),
    (Duty::Publisher, "jobs", &["SELECT"], &["id"]),
    (
        Duty::Publisher,
        "tasks",
        &["INSERT"],
        &[
            "job_id",
            "position",
            "handler",
            "label",
            "input",
            "max_attempts",
            "timeout_ms",
        ],
    ),
    (
        Duty::Publisher,
        "tasks",
        &["SELECT"],
        &["job_id", "position"],
    ),
    (Duty::Reader, "jobs", &["SELECT"], &[]),
    (Duty::Reader, "tasks", &["SELECT"], &[]),
    (Duty::Reader, "failures", &["SELECT"], &[]),
    (Duty::Reader, "workers", &["SELECT"], &[]),
    (Duty::Reader, "migrations", &["SELECT"], &[]),
    (Duty::Reader, "interventions", &["SELECT"], &[]),
    (Duty::Reader, "activity", &["SELECT"], &[]),
    (Duty::Operator, "jobs", &["SELECT"], &[]),
    (
        Duty::Operator,
        "jobs",
        &["UPDATE"],
        &[
            "epoch",
            "generation",
            "sent",
            "holder",
            "finished_at",
            "next_attempt_at",
            "status",
            "error",
        ],
    ),
    (Duty::Operator, "tasks", &["SELECT"], &[]),
    (
        Duty::Operator,
        "tasks",
        &["UPDATE"],
        &[
            "epoch",
            "started_at",
            "finished_at",
            "attempt",
            "status",
            "error",
        ],
    ),
    (Duty::Operator, "failures", &["SELECT"], &[]),
    (Duty::Operator, "workers", &["SELECT"], &[]),
    (Duty::Operator, "migrations", &["SELECT"], &[]),
    (Duty::Operator, "interventions", &["SELECT"], &[]),
    (
        Duty::Operator,
        "interventions",
        &["INSERT"],
        &["job_id", "position", "act", "operator", "reason"],
    ),
    (Duty::Operator, "activity", &["SELECT"], &[]),
];

const HAS_ON_TABLE: &str = r"
SELECT has_table_privilege(class.oid, $2) FROM pg_class class JOIN pg_namespace space ON space.oid = class.relnamespace
 WHERE space.nspname = 'cliquet' AND class.relname = $1";
const HIDES_MIGRATIONS: &str = r"
SELECT NOT (has_schema_privilege(space.oid, 'USAGE') AND has_table_privilege(class.oid, 'SELECT'))
  FROM pg_class class JOIN pg_namespace space ON space.oid = class.relnamespace
 WHERE space.nspname = 'cliquet' AND class.relname = 'migrations'";
const HAS_ON_COLUMN: &str = r"
SELECT has_column_privilege(class.oid, $2, $3) FROM pg_class class JOIN pg_namespace space ON space.oid = class.relnamespace
 WHERE space.nspname = 'cliquet' AND class.relname = $1";
const HAS_ON_SCHEMA: &str =
    "SELECT has_schema_privilege(oid, 'USAGE') FROM pg_namespace WHERE nspname = 'cliquet'";
const HAS_ON_FUNCTION: &str = r"
SELECT bool_and(has_function_privilege(proc.oid, 'EXECUTE')) FROM pg_proc proc JOIN pg_namespace space ON space.oid = proc.pronamespace
 WHERE space.nspname = 'cliquet' AND proc.proname = $1";

/// Whoever was there within the last day, and whoever holds a job.
const WORKERS: &str = r"
WITH held AS MATERIALIZED (
    SELECT holder, count(*) AS jobs FROM cliquet.jobs WHERE holder IS NOT NULL GROUP BY holder
), known AS (
    SELECT worker.id, worker.name, worker.host, worker.pid, worker.version, worker.queue,
           extract(epoch FROM clock_timestamp() - worker.seen_at)::float8 AS silent_for,
           extract(epoch FROM worker.patience)::float8 AS patience, worker.stopped_at IS NOT NULL AS stopped,
           worker.seen_at < statement_timestamp() - worker.patience
               AND pg_postmaster_start_time() < statement_timestamp() - worker.patience AS stale,
           worker.lock_key, worker.brakes::text AS brakes
      FROM cliquet.workers worker
     WHERE worker.seen_at > statement_timestamp() - interval '1 day' OR worker.id IN (SELECT held.holder FROM held)
)
SELECT known.*, coalesce(held.jobs, 0) AS holds,
       EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND mode = 'ExclusiveLock' AND granted
                  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
                  AND classid = (known.lock_key >> 32)::oid AND objid = (known.lock_key & x'ffffffff'::int8)::oid) AS locked
  FROM known LEFT JOIN held ON held.holder = known.id ORDER BY known.id";

/// Jobs that are held by nobody the ledger knows are held by the dead, too.
const HELD_BY_NOBODY: &str = r"
SELECT count(*) FROM cliquet.jobs job WHERE job.holder IS NOT NULL AND NOT EXISTS (SELECT FROM cliquet.workers worker WHERE worker.id = job.holder)";

const PARKED: &str = r"
SELECT coalesce(task.handler, '') AS handler, left(coalesce(job.error, ''), 160) AS error, count(*) AS jobs,
       (array_agg(job.id ORDER BY job.finished_at DESC))[1] AS example
  FROM cliquet.jobs job LEFT JOIN cliquet.tasks task ON task.job_id = job.id AND task.status = 'FAILED'
 WHERE job.status = 'FAILED' GROUP BY 1, 2 ORDER BY 3 DESC, 2 LIMIT 20";

const BACKLOG: &str = r"
SELECT job.queue, count(*) FILTER (WHERE job.sent >= 0 AND job.next_attempt_at <= statement_timestamp()) AS due,
       count(*) FILTER (WHERE job.sent >= 0 AND job.next_attempt_at > statement_timestamp()) AS later,
       coalesce(max(extract(epoch FROM statement_timestamp() - job.next_attempt_at)) FILTER (WHERE job.sent >= 0 AND job.next_attempt_at <= statement_timestamp()), 0)::float8 AS oldest,
       (array_agg(job.id ORDER BY job.next_attempt_at) FILTER (WHERE job.sent >= 0 AND job.next_attempt_at <= statement_timestamp()))[1] AS example,
       count(*) FILTER (WHERE job.sent < 0) AS unsent,
       coalesce(max(extract(epoch FROM statement_timestamp() - job.next_attempt_at)) FILTER (WHERE job.sent < 0), 0)::float8 AS oldest_unsent
  FROM cliquet.jobs job WHERE job.next_attempt_at IS NOT NULL GROUP BY job.queue ORDER BY job.queue";

/// Of jobs that wait: one that runs now is no suspect while it does.
const SUSPECTS: &str = r"
SELECT task.job_id AS job, task.handler, task.crashes
  FROM cliquet.jobs job JOIN cliquet.tasks task ON task.job_id = job.id
 WHERE job.next_attempt_at IS NOT NULL AND task.crashes > 0 AND task.status <> 'SUCCESS'
 ORDER BY task.crashes DESC, task.job_id LIMIT 20";

impl Health {
    /// Connects as a worker's own writes do.
    pub(crate) async fn open(address: &LedgerAddress) -> Result<Self, LedgerError> {
        let options = address.options("doctor").options([
            ("statement_timeout", "10s"),
            ("lock_timeout", "2s"),
            ("jit", "off"),
        ]);
        let connection = timeout(ANSWER, PgConnection::connect_with(&options))
            .await
            .map_err(|_| no_answer(address))?
            .map_err(|error| LedgerError::unavailable(address, &error))?;
        Ok(Self {
            address: address.clone(),
            connection,
        })
    }

    pub(crate) async fn server(&mut self) -> Result<Server, LedgerError> {
        let asked = sqlx::query_as(SERVER).fetch_one(&mut self.connection);
        answered(&self.address, asked).await
    }

    /// How the database stands to this binary's migrations.
    pub(crate) async fn standing(&mut self) -> Result<Standing, LedgerError> {
        let asked = standing(&mut self.connection, &self.address);
        match timeout(ANSWER + MERCY, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(no_answer(&self.address)),
        }
    }

    /// Whether the list of migrations is there and this role may not read it.
    pub(crate) async fn hides_migrations(&mut self) -> Result<bool, LedgerError> {
        self.has(HIDES_MIGRATIONS, &[]).await
    }

    pub(crate) async fn tables(&mut self) -> Result<Vec<Table>, LedgerError> {
        let asked = sqlx::query_as(TABLES).fetch_all(&mut self.connection);
        answered(&self.address, asked).await
    }

    /// The rights that this role lacks for its duty.
    pub(crate) async fn lacking(
        &mut self,
        duty: Duty,
        role: &str,
    ) -> Result<Vec<Lacking>, LedgerError> {
        let mut lacking = Vec::new();
        let role = format!("\"{}\"", role.replace('"', "\"\""));
        if !self.has(HAS_ON_SCHEMA, &[]).await? {
            lacking.push(Lacking {
                right: "USAGE of the schema cliquet".into(),
                grant: format!("GRANT USAGE ON SCHEMA cliquet TO {role}"),
            });
        }
        for (_, table, rights, columns) in RIGHTS.into_iter().filter(|right| right.0 == duty) {
            let (mut lacked, mut where_) = (Vec::new(), Vec::new());
            for right in rights {
                if columns.is_empty() && !self.has(HAS_ON_TABLE, &[table, right]).await? {
                    lacked.push(*right);
                }
                for column in columns {
                    if !self.has(HAS_ON_COLUMN, &[table, column, right]).await? {
                        lacked = vec![*right];
                        where_.push(*column);
                    }
                }
            }
            if lacked.is_empty() {
                continue;
            }
            let lacked = lacked.join(", ");
            let columns = match where_.as_slice() {
                [] => String::new(),
                columns => format!(" ({})", columns.join(", ")),
            };
            lacking.push(Lacking {
                right: format!("{lacked}{columns} on {table}"),
                grant: format!("GRANT {lacked}{columns} ON cliquet.{table} TO {role}"),
            });
        }
        // The last two check each row that is written.
        let functions: &[&str] = match duty {
            Duty::Worker => &["succeed", "job_is_whole", "task_is_whole"],
            Duty::Publisher | Duty::Operator => &["job_is_whole", "task_is_whole"],
            Duty::Reader => &[],
        };
        for function in functions {
            if !self.has(HAS_ON_FUNCTION, &[function]).await? {
                lacking.push(Lacking {
                    right: format!("EXECUTE of {function}"),
                    grant: format!("GRANT EXECUTE ON FUNCTION cliquet.{function} TO {role}"),
                });
            }
        }
        Ok(lacking)
    }

    async fn has(
        &mut self,
        question: &'static str,
        arguments: &[&str],
    ) -> Result<bool, LedgerError> {
        let query = arguments
            .iter()
            .fold(sqlx::query(question), |query, argument| {
                query.bind(argument.to_string())
            });
        let asked = query.fetch_optional(&mut self.connection);
        let row = answered(&self.address, asked).await?;
        let has = row.map(|row| row.try_get::<Option<bool>, _>(0));
        Ok(matches!(has, Some(Ok(Some(true)))))
    }

    /// Migrations that this binary does not know: another version's.
    pub(crate) async fn newer_migrations(&mut self) -> Result<Vec<String>, LedgerError> {
        let asked = sqlx::query_scalar(
            "SELECT version || ' (' || description || ')' FROM cliquet.migrations WHERE version > $1 ORDER BY version",
        )
        .bind(newest())
        .fetch_all(&mut self.connection);
        answered(&self.address, asked).await
    }

    /// The plans of the statements that every task needs, as a worker's connections make them.
    pub(crate) async fn plans(&mut self) -> Result<Vec<Plan>, LedgerError> {
        let options = self.address.writer_options("doctor");
        let asked = async {
            let mut writer = PgConnection::connect_with(&options).await?;
            plans(&mut writer).await
        };
        answered(&self.address, asked).await
    }

    pub(crate) async fn workers(&mut self) -> Result<Vec<WorkerFacts>, LedgerError> {
        let asked = async {
            let rows = sqlx::query(WORKERS).fetch_all(&mut self.connection).await?;
            rows.iter().map(worker).collect()
        };
        answered(&self.address, asked).await
    }

    /// How many jobs are held by workers that the ledger has forgotten.
    pub(crate) async fn held_by_nobody(&mut self) -> Result<i64, LedgerError> {
        let asked = sqlx::query_scalar(HELD_BY_NOBODY).fetch_one(&mut self.connection);
        answered(&self.address, asked).await
    }

    /// The largest groups of jobs that were given up.
    pub(crate) async fn parked(&mut self) -> Result<Vec<ParkedGroup>, LedgerError> {
        let asked = sqlx::query_as(PARKED).fetch_all(&mut self.connection);
        answered(&self.address, asked).await
    }

    pub(crate) async fn backlog(&mut self) -> Result<Vec<Backlog>, LedgerError> {
        let asked = sqlx::query_as(BACKLOG).fetch_all(&mut self.connection);
        answered(&self.address, asked).await
    }

    pub(crate) async fn suspects(&mut self) -> Result<Vec<Suspect>, LedgerError> {
        let asked = sqlx::query_as(SUSPECTS).fetch_all(&mut self.connection);
        answered(&self.address, asked).await
    }
}

impl Suspect {
    pub(crate) fn job(&self) -> JobId {
        JobId(self.job)
    }
}

fn worker(row: &PgRow) -> Result<WorkerFacts, sqlx::Error> {
    let span = |column| {
        let seconds: f64 = row.try_get(column)?;
        Ok::<_, sqlx::Error>(Duration::try_from_secs_f64(seconds).unwrap_or_default())
    };
    // Another version may tell its brakes otherwise.
    let brakes: Option<String> = row.try_get("brakes")?;
    let brakes = brakes.and_then(|brakes| serde_json::from_str(&brakes).ok());
    Ok(WorkerFacts {
        name: row.try_get("name")?,
        host: row.try_get("host")?,
        pid: row.try_get("pid")?,
        version: row.try_get("version")?,
        queue: row.try_get("queue")?,
        silent_for: span("silent_for")?,
        patience: span("patience")?,
        stopped: row.try_get("stopped")?,
        stale: row.try_get("stale")?,
        locked: row.try_get("locked")?,
        holds: row.try_get("holds")?,
        brakes: brakes.unwrap_or_default(),
    })
}

/// Waits for an answer, but not for ever. Nothing that is asked here owns a transaction. `Unavailable` is a connection that is
/// gone, `Refused` all that Postgres says of the question alone.
async fn answered<T>(
    address: &LedgerAddress,
    asked: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, LedgerError> {
    match timeout(ANSWER + MERCY, asked).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) if is_gone(&error) => Err(LedgerError::unavailable(address, &error)),
        Ok(Err(error)) => Err(LedgerError::Refused(sentence(&error))),
        Err(_) => Err(no_answer(address)),
    }
}

fn no_answer(address: &LedgerAddress) -> LedgerError {
    LedgerError::Unavailable(format!(
        "Postgres at {address} does not answer within {} s",
        ANSWER.as_secs()
    ))
}
