//! Whether all of it is true: every accepted job, every row of the effects, every execution and every message that is left.

use std::{collections::HashMap, time::Duration};

use cliquet::{broker::Place, broker::Topology, retry::Ladder};
use lapin::{BasicProperties, types::AMQPValue};
use sqlx::{PgPool, Row};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::{
    crew::Crew,
    ground::{Ground, QUEUE},
    jobs::{Act, Fate},
    load::{FORGED, GARBAGE, Published},
    rabbit::Rabbit,
    report::Report,
    worker::{RUNGS, executions},
};

/// How long the workers have for what is left, once everything is healthy. Long, for RabbitMQ's sake: what a rung
/// dead-lettered while the work queue was deleted it tries again after three minutes, and shows nowhere meanwhile; the
/// reconciler's copies may have to pass the same rung, and a job whose message was lost twice waits for its minute.
const QUIET: Duration = Duration::from_secs(420);

/// After so many crashes of one task its job is parked; the worker's default.
const CRASH_LIMIT: i64 = 3;

/// The queues of the run.
pub fn topology() -> Topology {
    let rungs: Vec<_> = RUNGS.iter().map(ToString::to_string).collect();
    Topology::new(QUEUE, Ladder::try_from(rungs).unwrap()).unwrap()
}

/// Waits until every job in the ledger is over and no message waits or is at a worker; whether that came.
pub async fn quiet(ground: &Ground, crew: &Crew, report: &mut Report) -> bool {
    let (began, mut rabbit, mut calm) = (Instant::now(), Rabbit::new(&ground.amqp_url), 0);
    let topology = topology();
    let places: Vec<_> = topology
        .places()
        .into_iter()
        .filter(|place| *place != Place::Dead)
        .map(|place| topology.name(place))
        .collect();
    let mut told = Instant::now();
    while began.elapsed() < QUIET {
        let unfinished: Option<i64> = sqlx::query_scalar(
            "SELECT count(*) FROM cliquet.jobs WHERE status NOT IN ('SUCCESS', 'FAILED', 'CANCELLED')",
        )
        .fetch_one(&ground.pool)
        .await
        .ok();
        let (mut waiting, mut consumers) = (0, 0);
        for place in &places {
            let queue = rabbit.queue(place).await;
            waiting += queue.map_or(1, |(ready, _)| ready);
            consumers += queue.map_or(0, |(_, consumers)| consumers);
        }
        let unacknowledged = ground.management.unacknowledged(QUEUE).await;
        if told.elapsed() > Duration::from_secs(10) {
            told = Instant::now();
            eprintln!(
                "chaos: waiting for quiet: {unfinished:?} jobs unfinished, {waiting} messages wait, {unacknowledged:?} at workers, {consumers} consumers"
            );
        }
        // The broker's own count is as old as a second.
        let is_calm = unfinished == Some(0)
            && waiting == 0
            && unacknowledged == Some(0)
            && consumers as usize == crew.workers();
        calm = if is_calm { calm + 1 } else { 0 };
        if calm >= 5 {
            report.count(
                "seconds until all was quiet",
                began.elapsed().as_secs() as i64,
            );
            return true;
        }
        sleep(Duration::from_millis(500)).await;
    }
    report.fault(format!(
        "not quiet within {QUIET:?} although everything is healthy"
    ));
    false
}

/// After the workers have left.
pub async fn audit(ground: &Ground, crew: &Crew, published: &Published, report: &mut Report) {
    jobs(&ground.pool, published, report).await;
    effects(&ground.pool, published, report).await;
    history(&ground.pool, report).await;
    load_executions(ground, crew).await;
    runs(&ground.pool, report).await;
    queues(ground, published, report).await;
}

async fn number(pool: &PgPool, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(pool).await.unwrap()
}

/// The rows of a question that should have none, each as a sentence.
async fn none(pool: &PgPool, report: &mut Report, what: &str, sql: &'static str) {
    let rows: Vec<String> = sqlx::query_scalar(sql).fetch_all(pool).await.unwrap();
    report.count(what, rows.len() as i64);
    for row in rows.iter().take(5) {
        report.fault(format!("{what}: {row}"));
    }
    if rows.len() > 5 {
        report.fault(format!("{what}: and {} more", rows.len() - 5));
    }
}

async fn jobs(pool: &PgPool, published: &Published, report: &mut Report) {
    let rows =
        sqlx::query("SELECT id, status::text, coalesce(error, '') AS error FROM cliquet.jobs")
            .fetch_all(pool)
            .await
            .unwrap();
    let known: HashMap<Uuid, (String, String)> = rows
        .iter()
        .map(|row| (row.get("id"), (row.get("status"), row.get("error"))))
        .collect();
    let crashes: HashMap<Uuid, i64> = sqlx::query(
        "SELECT job_id, max(crashes)::bigint AS crashes FROM cliquet.tasks GROUP BY job_id",
    )
    .fetch_all(pool)
    .await
    .unwrap()
    .iter()
    .map(|row| (row.get("job_id"), row.get("crashes")))
    .collect();
    let mut counts: HashMap<String, i64> = HashMap::new();
    for accepted in &published.accepted {
        let job = &accepted.job;
        let Some((status, error)) = known.get(&job.id) else {
            report.fault(format!("accepted and lost: {}", job.id));
            continue;
        };
        // Four times, where the worker that was about to park it was killed, too: its claim had begun the task.
        let crashed = error.starts_with("the worker died ") && crashes[&job.id] >= CRASH_LIMIT;
        let end = match (status.as_str(), job.fate()) {
            ("SUCCESS", Fate::Good) => "SUCCESS",
            ("FAILED", Fate::Poison) if crashed => "parked: kills its process",
            ("FAILED", Fate::Permanent) if error == "never works, as drawn" => {
                "parked: fails for good"
            }
            // Nothing can tell that it was the kill and not the task.
            ("FAILED", _) if crashed => "parked: its worker was killed three times in one task",
            (status, fate) => {
                report.fault(format!(
                    "{} is {status} ({error}), and its tasks are {fate:?}: {:?}",
                    job.id, job.tasks
                ));
                continue;
            }
        };
        *counts.entry(end.to_owned()).or_default() += 1;
    }
    report.count("jobs accepted", published.accepted.len() as i64);
    report.count("jobs in the ledger", known.len() as i64);
    if known.len() != published.accepted.len() {
        report.fault(format!(
            "{} jobs were accepted, and the ledger has {}",
            published.accepted.len(),
            known.len()
        ));
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    for (end, count) in counts {
        report.count(&format!("jobs {end}"), count);
    }
}

/// What was written through transactions: a row for each SUCCESS, of the right amount, and no other.
async fn effects(pool: &PgPool, published: &Published, report: &mut Report) {
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
        .map(|accepted| (accepted.job.id, &accepted.job.tasks))
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
async fn history(pool: &PgPool, report: &mut Report) {
    sqlx::raw_sql(
        "CREATE INDEX ON task_history (job_id, position, at); CREATE INDEX ON job_history (job_id, at); ANALYZE",
    )
    .execute(pool)
    .await
    .unwrap();
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
    none(
        pool,
        report,
        "parked jobs without a reason",
        "SELECT id::text FROM cliquet.jobs WHERE status = 'FAILED' AND coalesce(error, '') = ''",
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
        number(pool, "SELECT count(*) FROM cliquet.failures WHERE error LIKE 'the worker died, or was cut off%'").await,
    );
    report.count(
        "attempts that failed",
        number(pool, "SELECT count(*) FROM cliquet.failures WHERE error NOT LIKE 'the worker died, or was cut off%'").await,
    );
}

/// Puts the journals beside the ledger.
async fn load_executions(ground: &Ground, crew: &Crew) {
    sqlx::raw_sql(
        "CREATE TABLE executions (worker text, job_id uuid, position int, attempt int, began timestamptz, ended timestamptz);
         CREATE TABLE pauses (worker text, since timestamptz, until timestamptz)",
    )
    .execute(&ground.pool)
    .await
    .unwrap();
    for some in executions(&ground.folder).chunks(5_000) {
        sqlx::query(
            "INSERT INTO executions SELECT worker, job_id, position, attempt, timestamptz 'epoch' + began * interval '1 us',
                    timestamptz 'epoch' + ended * interval '1 us'
               FROM unnest($1::text[], $2::uuid[], $3::int4[], $4::int4[], $5::int8[], $6::int8[])
                    AS journal (worker, job_id, position, attempt, began, ended)",
        )
        .bind(some.iter().map(|one| one.worker.clone()).collect::<Vec<_>>())
        .bind(some.iter().map(|one| one.job).collect::<Vec<_>>())
        .bind(some.iter().map(|one| one.position).collect::<Vec<_>>())
        .bind(some.iter().map(|one| one.attempt).collect::<Vec<_>>())
        .bind(some.iter().map(|one| one.began).collect::<Vec<_>>())
        .bind(some.iter().map(|one| one.ended).collect::<Vec<_>>())
        .execute(&ground.pool)
        .await
        .unwrap();
    }
    for pause in crew.pauses() {
        sqlx::query(
            "INSERT INTO pauses VALUES ($1, timestamptz 'epoch' + $2 * interval '1 us', timestamptz 'epoch' + $3 * interval '1 us')",
        )
        .bind(pause.worker)
        .bind(pause.from)
        .bind(pause.to)
        .execute(&ground.pool)
        .await
        .unwrap();
    }
    // Beside each execution: when its task became SUCCESS, who held the job when it began (in the ledger's own words and by
    // the clock of this one machine), and whether its worker came out of a pause at that time.
    sqlx::raw_sql(
        "CREATE INDEX ON executions (job_id, position);
         CREATE TABLE judged AS
         SELECT executions.*, worker.id AS worker_id,
                (SELECT min(history.at) FROM task_history history
                  WHERE history.job_id = executions.job_id AND history.position = executions.position AND history.status = 'SUCCESS') AS success,
                (SELECT min(history.at) FROM task_history history
                  WHERE history.job_id = executions.job_id AND history.position = executions.position - 1 AND history.status = 'SUCCESS') AS former_success,
                (SELECT history.holder FROM job_history history
                  WHERE history.job_id = executions.job_id AND history.at <= executions.began
                  ORDER BY history.at DESC, history.number DESC LIMIT 1) AS holder,
                EXISTS (SELECT FROM pauses WHERE pauses.worker = executions.worker AND pauses.since <= executions.began
                                             AND pauses.until + interval '3 s' >= executions.began) AS paused
           FROM executions LEFT JOIN cliquet.workers worker ON worker.name = executions.worker",
    )
    .execute(&ground.pool)
    .await
    .unwrap();
}

/// What the journals say of executions.
async fn runs(pool: &PgPool, report: &mut Report) {
    report.count(
        "executions",
        number(pool, "SELECT count(*) FROM judged").await,
    );
    none(
        pool,
        report,
        "tasks SUCCESS that nobody executed",
        "SELECT task.job_id || ' position ' || task.position FROM cliquet.tasks task
          WHERE task.status = 'SUCCESS' AND NOT EXISTS (SELECT FROM judged WHERE judged.job_id = task.job_id AND judged.position = task.position)",
    )
    .await;
    none(
        pool,
        report,
        "executions before the task before was SUCCESS",
        "SELECT job_id || ' position ' || position || ' by ' || worker || ' at ' || began || ', the one before: ' || coalesce(former_success::text, 'never')
           FROM judged WHERE position > 1 AND (former_success IS NULL OR former_success > began)",
    )
    .await;
    none(
        pool,
        report,
        "executions of a SUCCESS task by its job's holder",
        "SELECT job_id || ' position ' || position || ' by ' || worker || ' at ' || began || ', SUCCESS at ' || success
           FROM judged WHERE success < began AND holder = worker_id",
    )
    .await;
    none(
        pool,
        report,
        "executions of a SUCCESS task by a former holder that was not paused",
        "SELECT job_id || ' position ' || position || ' by ' || worker || ' at ' || began || ', SUCCESS at ' || success
           FROM judged WHERE success < began AND holder IS DISTINCT FROM worker_id AND NOT paused",
    )
    .await;
    report.count(
        "executions of a SUCCESS task by a worker that had been paused past its heartbeat",
        number(pool, "SELECT count(*) FROM judged WHERE success < began AND holder IS DISTINCT FROM worker_id AND paused").await,
    );
    report.count(
        "executions begun by a former holder that had been paused",
        number(
            pool,
            "SELECT count(*) FROM judged WHERE holder IS DISTINCT FROM worker_id AND paused",
        )
        .await,
    );
    report.count(
        "executions begun by a former holder that had not been paused",
        number(
            pool,
            "SELECT count(*) FROM judged WHERE holder IS DISTINCT FROM worker_id AND NOT paused",
        )
        .await,
    );
}

/// Every message that is left, and what the ledger says of it.
async fn queues(ground: &Ground, published: &Published, report: &mut Report) {
    let (mut rabbit, topology) = (Rabbit::new(&ground.amqp_url), topology());
    for place in topology.places() {
        let name = topology.name(place);
        if place == Place::Dead {
            let dead = rabbit.drain(&name).await;
            parked(ground, published, &dead, report).await;
            continue;
        }
        let left = rabbit.drain(&name).await;
        for (body, properties) in &left {
            report.fault(format!(
                "{name} has a message left: {:?} {:?}",
                String::from_utf8_lossy(&body[..body.len().min(80)]),
                properties.headers()
            ));
        }
        report.count(&format!("messages left in {name}"), left.len() as i64);
    }
}

fn header<'a>(properties: &'a BasicProperties, name: &str) -> Option<&'a AMQPValue> {
    properties.headers().as_ref()?.inner().get(name)
}

fn whole(properties: &BasicProperties, name: &str) -> Option<i64> {
    match header(properties, name)? {
        AMQPValue::LongLongInt(number) => Some(*number),
        AMQPValue::LongInt(number) => Some(i64::from(*number)),
        _ => None,
    }
}

/// A text in a header; empty where there is none.
pub fn says(properties: &BasicProperties, name: &str) -> String {
    match header(properties, name) {
        Some(AMQPValue::LongString(text)) => text.to_string(),
        _ => String::new(),
    }
}

async fn parked(
    ground: &Ground,
    published: &Published,
    dead: &[(Vec<u8>, BasicProperties)],
    report: &mut Report,
) {
    // At which generations each job was ever given up: a copy of an earlier one was superseded by an operator's retry.
    let given_up: Vec<(Uuid, i64)> = sqlx::query_as(
        "SELECT DISTINCT job_id, generation FROM job_history WHERE status = 'FAILED'",
    )
    .fetch_all(&ground.pool)
    .await
    .unwrap();
    let mut owed: HashMap<Uuid, i64> =
        sqlx::query_as("SELECT id, generation FROM cliquet.jobs WHERE status = 'FAILED'")
            .fetch_all(&ground.pool)
            .await
            .unwrap()
            .into_iter()
            .collect();
    let failed = owed.clone();
    let mut litter = vec![0u32; published.garbage.len()];
    let (mut copies, mut again, mut superseded, mut foreign) = (0, 0, 0, 0);
    for (body, properties) in dead {
        let (reason, error) = (
            says(properties, "cliquet-reason"),
            says(properties, "cliquet-error"),
        );
        let unexplained = || {
            format!(
                "the dead queue has a message that nothing explains: {:?} {:?}",
                String::from_utf8_lossy(&body[..body.len().min(80)]),
                properties.headers()
            )
        };
        if let Some(number) = whole(properties, GARBAGE) {
            if reason.is_empty() || error.is_empty() {
                report.fault(unexplained());
            }
            litter[number as usize] += 1;
            continue;
        }
        if reason == "foreign_generation" && whole(properties, FORGED).is_some() {
            foreign += 1;
            continue;
        }
        let job = serde_json::from_slice::<serde_json::Value>(body)
            .ok()
            .and_then(|body| body["id"].as_str()?.parse::<Uuid>().ok());
        let (Some(job), Some(generation)) = (job, whole(properties, "cliquet-generation")) else {
            report.fault(unexplained());
            continue;
        };
        if reason.is_empty() || error.is_empty() || !given_up.contains(&(job, generation)) {
            report.fault(unexplained());
        } else if failed.get(&job) != Some(&generation) {
            superseded += 1;
        } else if owed.remove(&job).is_some() {
            copies += 1;
        } else {
            again += 1;
        }
    }
    report.count("parked jobs with their copy in the dead queue", copies);
    report.count(
        "parked copies sent twice (always towards a duplicate)",
        again,
    );
    report.count("parked copies superseded by a retry", superseded);
    report.count(
        "forged copies that were ahead of the ledger, parked",
        foreign,
    );
    for (job, generation) in &owed {
        report.fault(format!(
            "{job} is FAILED at generation {generation} and has no copy in the dead queue"
        ));
    }
    report.count("messages that are no jobs, accepted", litter.len() as i64);
    report.count(
        "messages that are no jobs, parked with what is wrong",
        litter.iter().filter(|count| **count > 0).count() as i64,
    );
    let mut lost = 0;
    for (number, count) in litter.iter().enumerate() {
        let (what, at) = published.garbage[number];
        if *count > 0 {
            continue;
        }
        // Nobody sends it again, and the ledger never knew it.
        if published.deleted.iter().any(|deleted| at <= *deleted) {
            lost += 1;
        } else {
            report.fault(format!("a message that is no job ({what}) is nowhere"));
        }
    }
    report.count(
        "messages that are no jobs, gone with their deleted queue",
        lost,
    );
}
