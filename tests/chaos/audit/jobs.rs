//! What became of every job that was accepted.

use std::collections::HashMap;

use sqlx::{PgPool, Row};
use uuid::Uuid;

use super::none;
use crate::{
    jobs::{Act, Fate, Job},
    load::Published,
    report::Report,
};

/// After so many crashes of one task its job is parked; the worker's default.
const CRASH_LIMIT: i64 = 3;

/// What the ledger says of a job.
struct Told {
    status: String,
    error: String,
    /// The first task that is FAILED.
    failed: Option<i32>,
    /// How often its worker died in that task; and how often the harness knows of something that was done to that worker.
    crashes: i64,
    explained: i64,
}

pub async fn jobs(pool: &PgPool, published: &Published, report: &mut Report) {
    let known = known(pool).await;
    let mut counts: HashMap<String, i64> = HashMap::new();
    for job in &published.accepted {
        let Some(told) = known.get(&job.id) else {
            report.fault(format!("accepted and lost: {}", job.id));
            continue;
        };
        match end(job, told) {
            Ok(end) => *counts.entry(end.to_owned()).or_default() += 1,
            Err(what) => report.fault(format!(
                "{} is {} at task {} ({}), {what}; its tasks are {:?}: {:?}",
                job.id,
                told.status,
                told.failed.unwrap_or_default(),
                told.error,
                job.fate(),
                job.tasks
            )),
        }
    }
    report.count("jobs accepted", published.accepted.len() as i64);
    report.count("jobs in the ledger", known.len() as i64);
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    for (end, count) in counts {
        report.count(&format!("jobs {end}"), count);
    }
    none(
        pool,
        report,
        "jobs in the ledger that were never accepted",
        "SELECT id::text FROM cliquet.jobs WHERE id NOT IN (SELECT job_id FROM asked)",
    )
    .await;
    tasks(pool, report).await;
}

async fn known(pool: &PgPool) -> HashMap<Uuid, Told> {
    sqlx::query(
        "SELECT job.id, job.status::text, coalesce(job.error, '') AS error, failed.position, coalesce(failed.crashes, 0)::bigint AS crashes,
                (SELECT count(*) FROM takeovers WHERE takeovers.job_id = job.id AND takeovers.position = failed.position AND explained) AS explained
           FROM cliquet.jobs job
           LEFT JOIN LATERAL (SELECT position, crashes FROM cliquet.tasks WHERE job_id = job.id AND status = 'FAILED'
                               ORDER BY position LIMIT 1) failed ON true",
    )
    .fetch_all(pool)
    .await
    .unwrap()
    .iter()
    .map(|row| {
        let told = Told {
            status: row.get("status"),
            error: row.get("error"),
            failed: row.get("position"),
            crashes: row.get("crashes"),
            explained: row.get("explained"),
        };
        (row.get("id"), told)
    })
    .collect()
}

/// How a job ended, or what is wrong with that.
fn end(job: &Job, told: &Told) -> Result<&'static str, String> {
    let failed = told
        .failed
        .and_then(|position| job.tasks.get(position as usize - 1));
    match (told.status.as_str(), job.fate(), failed) {
        ("SUCCESS", Fate::Good, None) => Ok("SUCCESS"),
        ("FAILED", _, Some(Act::Permanent)) if told.error == "never works, as drawn" => {
            Ok("parked: fails for good")
        }
        ("FAILED", _, Some(failed)) if told.error.starts_with("the worker died ") => {
            // Once more, where the worker that was about to park it was killed, too: its claim had begun the task.
            if told.crashes < CRASH_LIMIT {
                return Err(format!("after {} crashes", told.crashes));
            }
            if told.explained < CRASH_LIMIT {
                return Err(format!(
                    "and only {} times anything had been done to the worker that held it",
                    told.explained
                ));
            }
            // Otherwise nothing can tell that it was the kill and not the task.
            Ok(match failed {
                Act::Poison => "parked: kills its process",
                _ => "parked: its worker was killed or cut off three times in one task",
            })
        }
        _ => Err("which nothing explains".into()),
    }
}

/// Whether the rows of the tasks are those that were asked for, and fit what became of their jobs.
async fn tasks(pool: &PgPool, report: &mut Report) {
    none(
        pool,
        report,
        "tasks that are not as they were asked for",
        "SELECT coalesce(asked.job_id, task.job_id) || ' position ' || coalesce(asked.position, task.position) || ': '
                || coalesce(task.label, 'missing') || ' instead of ' || coalesce(asked.label, 'none')
           FROM asked FULL JOIN cliquet.tasks task ON task.job_id = asked.job_id AND task.position = asked.position
          WHERE (asked.handler, asked.label, asked.input::jsonb) IS DISTINCT FROM (task.handler, task.label, task.input::jsonb)",
    )
    .await;
    none(
        pool,
        report,
        "jobs with another number of tasks than they say",
        "SELECT job.id || ' says ' || job.total || ' and has ' || count(task)
           FROM cliquet.jobs job LEFT JOIN cliquet.tasks task ON task.job_id = job.id
          GROUP BY job.id HAVING count(task) <> job.total",
    )
    .await;
    // Nobody cancels in a run; the ledger would have a cancelled job's running task FAILED.
    none(
        pool,
        report,
        "jobs whose tasks do not fit their status",
        "SELECT job.id || ' is ' || job.status || ', its tasks are ' || coalesce(string_agg(task.status::text, ', ' ORDER BY task.position), 'missing')
           FROM cliquet.jobs job LEFT JOIN cliquet.tasks task ON task.job_id = job.id
          GROUP BY job.id
         HAVING coalesce(string_agg(task.status || ' ', '' ORDER BY task.position), '') !~
                CASE job.status WHEN 'SUCCESS' THEN '^(SUCCESS )+$'
                                WHEN 'FAILED' THEN '^(SUCCESS )*FAILED (PENDING )*$'
                                ELSE 'only a job that is over' END",
    )
    .await;
    none(
        pool,
        report,
        "parked jobs that give another reason than their task",
        "SELECT job.id || ': ' || coalesce(job.error, 'none') || '; the task: ' || coalesce(task.error, 'none')
           FROM cliquet.jobs job LEFT JOIN cliquet.tasks task ON task.job_id = job.id AND task.status = 'FAILED'
          WHERE job.status = 'FAILED' AND (coalesce(job.error, '') = '' OR job.error IS DISTINCT FROM task.error)",
    )
    .await;
}
