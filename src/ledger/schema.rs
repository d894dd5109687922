//! The schema's versions: `cliquet migrate` brings a database up to date, and a worker refuses one that is not.

use std::borrow::Cow;

use sqlx::{
    Connection, PgConnection, Row, SqlSafeStr,
    migrate::{Migrate, MigrateError, Migration, MigrationType, Migrator},
};

use super::{
    LedgerError,
    connect::{LedgerAddress, Recovery, is_gone, sentence},
};

/// Forward-only, one intent each, each safe while the previous binary still runs.
const MIGRATIONS: [(i64, &str, &str); 15] = [
    (
        1,
        "jobs and tasks",
        include_str!("../../migrations/0001_jobs_and_tasks.sql"),
    ),
    (
        2,
        "failures",
        include_str!("../../migrations/0002_failures.sql"),
    ),
    (
        3,
        "workers",
        include_str!("../../migrations/0003_workers.sql"),
    ),
    (
        4,
        "succeed",
        include_str!("../../migrations/0004_succeed.sql"),
    ),
    (
        5,
        "fewer checks",
        include_str!("../../migrations/0005_fewer_checks.sql"),
    ),
    (
        6,
        "room for updates",
        include_str!("../../migrations/0006_room_for_updates.sql"),
    ),
    (
        7,
        "one check a row",
        include_str!("../../migrations/0007_one_check_a_row.sql"),
    ),
    (
        8,
        "rows are whole",
        include_str!("../../migrations/0008_rows_are_whole.sql"),
    ),
    (
        9,
        "brakes",
        include_str!("../../migrations/0009_brakes.sql"),
    ),
    (
        10,
        "interventions",
        include_str!("../../migrations/0010_interventions.sql"),
    ),
    (
        11,
        "activity",
        include_str!("../../migrations/0011_activity.sql"),
    ),
    (
        12,
        "ways to find jobs",
        include_str!("../../migrations/0012_ways_to_find_jobs.sql"),
    ),
    (
        13,
        "only one way to write",
        include_str!("../../migrations/0013_only_one_way_to_write.sql"),
    ),
    (
        14,
        "an index that has every job",
        include_str!("../../migrations/0014_an_index_that_has_every_job.sql"),
    ),
    (
        15,
        "one index by age",
        include_str!("../../migrations/0015_one_index_by_age.sql"),
    ),
];

/// In cliquet's own schema, since the database is the user's and may keep sqlx migrations of its own.
const TABLE: &str = "cliquet.migrations";

/// One migration and whether this database has it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct MigrationState {
    /// 1, 2, 3 …
    pub version: i64,
    /// What it brings.
    pub description: &'static str,
    /// Whether this call applied it (`true`) or found it applied (`false`).
    pub applied_now: bool,
}

/// Applies what is missing, in order; serialised between processes by an advisory lock. What somebody else holds is waited for
/// only briefly.
///
/// # Errors
/// [`LedgerError::Unavailable`] when Postgres cannot be reached or somebody else holds a table, [`LedgerError::Schema`] when a migration fails, was
/// changed since, or the database is newer than this binary.
pub async fn migrate(address: &LedgerAddress) -> Result<Vec<MigrationState>, LedgerError> {
    let mut connection = open(address).await?;
    let before = applied(&mut connection, address).await?;
    // Whoever waits for a table keeps all others from it, who come after: the workers, their heartbeats among them.
    sqlx::raw_sql("SET lock_timeout = '10s'")
        .execute(&mut connection)
        .await
        .map_err(|error| LedgerError::unavailable(address, &error))?;
    let mut migrator = Migrator::with_migrations(migrations());
    migrator.dangerous_set_table_name(TABLE);
    migrator.create_schema("cliquet");
    migrator
        .run(&mut connection)
        .await
        .map_err(|error| match error {
            MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)
                if is_gone(&error) =>
            {
                LedgerError::unavailable(address, &error)
            }
            MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)
                if Recovery::of(&error) == Recovery::Locked =>
            {
                LedgerError::Unavailable(format!(
                    "the migrations of {address} waited for 10 s for what somebody else holds there (a backup, an open transaction, another migration), and gave up, so that no worker waits: {}. Nothing of the one that waited was kept; run `cliquet migrate` again",
                    sentence(&error)
                ))
            }
            error => LedgerError::Schema(format!(
                "the migrations of {address} failed: {error}; nothing of the failed one was kept"
            )),
        })?;
    Ok(MIGRATIONS
        .map(|(version, description, _)| MigrationState {
            version,
            description,
            applied_now: !before.iter().any(|(applied, _)| *applied == version),
        })
        .to_vec())
}

/// How a database stands to this binary's migrations. What is amiss is told in a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It has them all. One that has more is newer, and fits: migrations are safe under the previous binary.
    Fits,
    /// It lacks some.
    Lacks(String),
    /// It has others than this binary's under the same numbers.
    Foreign(String),
}

/// Whether this database is migrated for this binary. One that is newer is accepted: migrations are safe under the
/// previous binary.
///
/// # Errors
/// [`LedgerError::Schema`] naming what is missing and the command that brings it; [`LedgerError::Unavailable`].
pub async fn check(address: &LedgerAddress) -> Result<(), LedgerError> {
    let mut connection = open(address).await?;
    match standing(&mut connection, address).await? {
        Standing::Fits => Ok(()),
        Standing::Lacks(sentence) | Standing::Foreign(sentence) => {
            Err(LedgerError::Schema(sentence))
        }
    }
}

/// As [`check`], on an open connection.
pub(super) async fn standing(
    connection: &mut PgConnection,
    address: &LedgerAddress,
) -> Result<Standing, LedgerError> {
    let applied = applied(connection, address).await?;
    let changed = migrations().into_iter().find(|ours| {
        applied
            .iter()
            .any(|(version, checksum)| *version == ours.version && *checksum != *ours.checksum)
    });
    if let Some(changed) = changed {
        return Ok(Standing::Foreign(format!(
            "the database {address} was migrated by another build: its migration {} ({}) is not this binary's. Use the binary that fits, or a fresh database",
            changed.version, changed.description
        )));
    }
    let missing: Vec<_> = MIGRATIONS
        .iter()
        .filter(|(ours, ..)| !applied.iter().any(|(version, _)| version == ours))
        .map(|(version, description, _)| format!("{version} ({description})"))
        .collect();
    if missing.is_empty() {
        return Ok(Standing::Fits);
    }
    Ok(Standing::Lacks(format!(
        "the database {address} is not migrated: missing {}. Run `cliquet migrate` with the same DATABASE_URL",
        missing.join(", ")
    )))
}

/// The newest migration that this binary knows.
pub(super) fn newest() -> i64 {
    MIGRATIONS.last().map_or(0, |(version, ..)| *version)
}

fn migrations() -> Vec<Migration> {
    MIGRATIONS
        .map(|(version, description, sql)| {
            let sql = sql.into_sql_str();
            Migration::new(
                version,
                Cow::Borrowed(description),
                MigrationType::Simple,
                sql,
                false,
            )
        })
        .to_vec()
}

async fn open(address: &LedgerAddress) -> Result<PgConnection, LedgerError> {
    PgConnection::connect_with(&address.options("schema"))
        .await
        .map_err(|error| LedgerError::unavailable(address, &error))
}

/// The versions that this database has, with their checksums.
async fn applied(
    connection: &mut PgConnection,
    address: &LedgerAddress,
) -> Result<Vec<(i64, Vec<u8>)>, LedgerError> {
    let exists: bool = sqlx::query("SELECT to_regclass('cliquet.migrations') IS NOT NULL")
        .fetch_one(&mut *connection)
        .await
        .and_then(|row| row.try_get(0))
        .map_err(|error| unreadable(address, &error))?;
    if !exists {
        return Ok(Vec::new());
    }
    let applied = connection.list_applied_migrations(TABLE).await;
    let applied = applied.map_err(|error| match error {
        MigrateError::Execute(error) => unreadable(address, &error),
        error => LedgerError::Schema(format!("{UNREADABLE}: {error}")),
    })?;
    Ok(applied
        .into_iter()
        .map(|migration| (migration.version, migration.checksum.into_owned()))
        .collect())
}

const UNREADABLE: &str = "the list of migrations cannot be read";

/// What Postgres says of the list itself is for people to mend. Whatever else keeps it from answering passes.
fn unreadable(address: &LedgerAddress, error: &sqlx::Error) -> LedgerError {
    let of_the_list = match error.as_database_error().and_then(|error| error.code()) {
        // 42 the object or the right to it, 3F the schema.
        Some(code) => code.starts_with("42") || code.starts_with("3F"),
        None => !is_gone(error),
    };
    match of_the_list {
        true => LedgerError::Schema(format!("{UNREADABLE}: {}", sentence(error))),
        false => LedgerError::unavailable(address, error),
    }
}
