//! What handlers wrote, and what the triggers remember of every transition.

use std::collections::HashMap;

use sqlx::PgPool;
use uuid::Uuid;

use super::{none, number};
use crate::{
    jobs::{Act, Job},
    load::Published,
    report::Report,
};

/// What was written through transactions: a row for each SUCCESS, of the right amount, and no other.
pub async fn effects(pool: &PgPool, published: &Published, report: &mut Report) {
    none(
        pool,
        report,
        "effects that do not balance with SUCCESS",
        "SELECT coalesce(task.job_id, effect.job_id) || ' position ' || coalesce(task.position, effect.position) || ': '
                || coalesce(effect.rows, 0) || ' rows, the task is ' || coalesce(task.status::text, 'unknown')
           FROM (SELECT * FROM cliquet.tasks WHERE handler = 'write') task
           FULL JOIN (SELECT job_id, position, count(*) AS rows, sum(amount) AS amount FROM effects GROUP BY 1, 2) effect
             ON effect.job_id = task.job_id AND effect.position = task.position
          WHERE CASE WHEN task.status = 'SUCCESS'
                     THEN effect.rows IS DISTINCT FROM 1 OR effect.amount IS DISTINCT FROM (task.input ->> 'amount')::bigint
                     ELSE effect.rows IS NOT NULL END",
    )
    .await;
    none(
        pool,
        report,
        "notes missing of tasks that are SUCCESS",
        "SELECT task.job_id || ' position ' || task.position FROM cliquet.tasks task
          WHERE task.handler = 'note' AND task.status = 'SUCCESS'
            AND NOT EXISTS (SELECT FROM notes WHERE notes.job_id = task.job_id AND notes.position = task.position)",
    )
    .await;
    let done: Vec<(Uuid, i32)> =
        sqlx::query_as("SELECT job_id, position FROM cliquet.tasks WHERE status = 'SUCCESS'")
            .fetch_all(pool)
            .await
            .unwrap();
    let asked: HashMap<Uuid, &Vec<Act>> = published
        .accepted
        .iter()
        .map(|Job { id, tasks }| (*id, tasks))
        .collect();
    let due: i64 = done
        .iter()
        .filter_map(|(job, position)| asked.get(job)?.get(*position as usize - 1))
        .map(|act| match act {
            Act::Write { amount, .. } => *amount,
            _ => 0,
        })
        .sum();
    let written = number(pool, "SELECT coalesce(sum(amount), 0)::bigint FROM effects").await;
    report.count("tasks SUCCESS", done.len() as i64);
    report.count(
        "effects, rows",
        number(pool, "SELECT count(*) FROM effects").await,
    );
    report.count("effects, sum", written);
    report.count("effects, sum that was asked for and done", due);
    if written != due {
        report.fault(format!(
            "the effects add up to {written}, and should to {due}"
        ));
    }
}

/// What the triggers remember: SUCCESS is committed once and never undone.
pub async fn history(pool: &PgPool, report: &mut Report) {
    none(
        pool,
        report,
        "tasks whose SUCCESS was not committed exactly once",
        "SELECT task.job_id || ' position ' || task.position || ': ' || count(history)
           FROM cliquet.tasks task
           LEFT JOIN task_history history ON history.job_id = task.job_id AND history.position = task.position
                AND history.status = 'SUCCESS'
          GROUP BY task.job_id, task.position, task.status
         HAVING count(history) <> (task.status = 'SUCCESS')::int",
    )
    .await;
    none(
        pool,
        report,
        "tasks whose SUCCESS was undone or written again",
        "SELECT job_id || ' position ' || position || ': ' || status FROM task_history WHERE former = 'SUCCESS'",
    )
    .await;
    none(
        pool,
        report,
        "jobs whose SUCCESS was undone or written again",
        "SELECT job_id || ': ' || status FROM job_history WHERE former = 'SUCCESS'",
    )
    .await;
    report.count(
        "claims",
        number(
            pool,
            "SELECT coalesce(sum(attempts), 0)::bigint FROM cliquet.jobs",
        )
        .await,
    );
    report.count(
        "crashes found by takeovers",
        number(pool, "SELECT count(*) FROM takeovers").await,
    );
    // Not a fault: on a busy machine a worker may be silent for too long by itself.
    report.count(
        "of them from a worker to which nothing had been done",
        number(pool, "SELECT count(*) FROM takeovers WHERE NOT explained").await,
    );
    report.count(
        "attempts that failed",
        number(pool, "SELECT count(*) FROM cliquet.failures WHERE error NOT LIKE 'the worker died, or was cut off%'").await,
    );
}
