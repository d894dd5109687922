//! How Postgres runs the statements that every task needs: they must look up each row by its place, whatever the planner
//! knows of the tables ([`step`](super::step)).

use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::{
    advance::FATE,
    claim::CLAIM,
    defer::DEFER,
    fail::FAIL,
    release::RELEASE,
    sent::SENT,
    step::{Parts, statement},
};

/// One statement's plan.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The verb it belongs to.
    pub(crate) name: &'static str,
    /// As `EXPLAIN` prints it.
    pub(crate) lines: Vec<String>,
}

impl Plan {
    /// What in it reads more than the rows that are written, if anything does.
    pub(crate) fn complaint(&self) -> Option<&str> {
        let whole = ["Seq Scan on jobs", "Seq Scan on tasks"];
        let next = self.lines.iter().skip(1).map(String::as_str).chain([""]);
        self.lines.iter().zip(next).find_map(|(line, next)| {
            let reads_all = whole.iter().any(|words| line.contains(words));
            let walks = match index_of(line) {
                Some("jobs_pkey" | "tasks_pkey") => !next.contains("Index Cond"),
                // An id that is no index's first column is looked for from its beginning to its end.
                Some(other) => other.starts_with("jobs_") || other.starts_with("tasks_"),
                None => false,
            };
            (reads_all || walks).then(|| line.trim())
        })
    }
}

/// The index that a line of a plan reads.
fn index_of(line: &str) -> Option<&str> {
    ["Scan using ", "Bitmap Index Scan on "]
        .iter()
        .find_map(|words| line.split_once(words)?.1.split(' ').next())
}

/// The statements, with every part that they may have.
pub(super) fn hot_statements() -> [(&'static str, String); 7] {
    // Every parameter has its type only where all parts are there; a lane declares the types.
    let step = statement(Parts {
        admits: true,
        moves: true,
        ends: true,
    });
    [
        ("claim", CLAIM.to_owned()),
        ("step", step),
        ("fail", FAIL.to_owned()),
        ("defer", DEFER.to_owned()),
        ("release", RELEASE.to_owned()),
        ("sent", SENT.to_owned()),
        ("fate", FATE.to_owned()),
    ]
}

/// The plans of all of them, on a connection with a writer's settings. Nothing is run.
pub(super) async fn plans(writer: &mut PgConnection) -> Result<Vec<Plan>, sqlx::Error> {
    let mut plans = Vec::new();
    for (name, statement) in hot_statements() {
        let lines = plan(writer, &statement).await?;
        plans.push(Plan { name, lines });
    }
    Ok(plans)
}

async fn plan(writer: &mut PgConnection, statement: &str) -> Result<Vec<String>, sqlx::Error> {
    let prepare = format!("PREPARE statement AS {statement}");
    sqlx::raw_sql(AssertSqlSafe(prepare))
        .execute(&mut *writer)
        .await?;
    let arguments: String = sqlx::query_scalar(
        "SELECT string_agg('NULL', ', ') FROM unnest((SELECT parameter_types FROM pg_prepared_statements WHERE name = 'statement'))",
    )
    .fetch_one(&mut *writer)
    .await?;
    let explain = format!("EXPLAIN EXECUTE statement({arguments})");
    let rows = sqlx::query(AssertSqlSafe(explain))
        .fetch_all(&mut *writer)
        .await?;
    sqlx::raw_sql("DEALLOCATE statement")
        .execute(&mut *writer)
        .await?;
    rows.iter().map(|row| row.try_get(0)).collect()
}
